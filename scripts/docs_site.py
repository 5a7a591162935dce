"""MkDocs hook: pages link to files outside docs/ as they do in the repository; the site takes those files along.

`../recipes/parity/ci_gate.md` becomes a page of the site, `../bench/results/convert.json` a file beside it.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(\.\./(?!\.)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the linked files, under their path in the repository."""
    linked: set[str] = set()
    for page in Path(config.docs_dir).glob("*.md"):
        linked |= {path for path, _ in LINK.findall(page.read_text())}
    linked |= {recipe.relative_to(ROOT).as_posix() for recipe in ROOT.glob("recipes/*/*.md")}
    for path in sorted(linked):
        if (ROOT / path).is_file() and files.get_file_from_path(path) is None:
            files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The pages of docs/ stand at the top of the site, where `../` leads nowhere."""
    if "/" in page.file.src_uri:
        return markdown
    return LINK.sub(lambda link: f"]({link[1]}{link[2] or ''})", markdown)
