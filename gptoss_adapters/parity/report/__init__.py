"""A report's data, and its renderings as Markdown and HTML."""
