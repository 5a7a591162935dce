"""The Ollama exporter: Modelfile, Go template, store, and creation on a server."""
