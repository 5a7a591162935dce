"""What to paste into clients so that they use a server: printed when it starts."""

from __future__ import annotations

import json
import re

_KEY = "GPTOSS_API_KEY"


def lines_to_paste(url: str, model: str, context: int, key: bool) -> str:
    """For the clients that people use most. url: ends in /v1; model: its name; key: does the server want one? It is
    never shown: the clients read it from the environment variable GPTOSS_API_KEY.
    """
    url = re.sub(r"//(0\.0\.0\.0|\[::\])", "//localhost", url)
    root = url.removesuffix("/v1")
    pairs = {
        "Codex (~/.codex/config.toml)": _codex(url, model, context, key),
        "opencode (opencode.json)": _opencode(url, model, context, key),
        "Claude Code (shell)": _claude_code(root, model, key),
        "OpenAI SDK (Python)": f"client = OpenAI(base_url={json.dumps(url)}, api_key={_python_key(key)})",
        "Anthropic SDK (Python)": f"client = Anthropic(base_url={json.dumps(root)}, api_key={_python_key(key)})",
    }
    return "\n".join(f"# {name}\n{text}\n" for name, text in pairs.items())


def _codex(url: str, model: str, context: int, key: bool) -> str:
    lines = [
        f"model = {json.dumps(model)}",
        'model_provider = "gptoss"',
        f"model_context_window = {context}",
        "[model_providers.gptoss]",
        'name = "gptoss-serve"',
        f"base_url = {json.dumps(url)}",
        'wire_api = "responses"',
    ]
    return "\n".join(lines + ([f'env_key = "{_KEY}"'] if key else []))


def _opencode(url: str, model: str, context: int, key: bool) -> str:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "gptoss-serve",
        "options": {"baseURL": url, "apiKey": f"{{env:{_KEY}}}" if key else "none"},
        "models": {model: {"name": model, "limit": {"context": context, "output": context // 4}}},
    }
    return json.dumps({"provider": {"gptoss": provider}, "model": f"gptoss/{model}"})


def _claude_code(root: str, model: str, key: bool) -> str:
    token = f'"${_KEY}"' if key else "none"
    variables = {
        "ANTHROPIC_BASE_URL": root,
        "ANTHROPIC_AUTH_TOKEN": token,
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
    }
    return "\n".join(f"export {name}={value}" for name, value in variables.items())


def _python_key(key: bool) -> str:
    return f'os.environ["{_KEY}"]' if key else '"none"'
