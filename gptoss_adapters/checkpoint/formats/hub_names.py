"""What people call a model of the Hugging Face Hub -> repository, revision, and a file or folder in it.

owner/name[@revision][/folder or file]       owner/name:Q4_K_M               the GGUF of that type
https://huggingface.co/owner/name[/tree|blob|resolve/revision[/folder or file]]
hf://owner/name[@revision][/..]              hf.co/owner/name[:Q4_K_M]
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from gptoss_adapters.errors import BadInput

HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co")
_VIEWS = ("tree", "blob", "resolve", "raw", "blame", "commits", "commit")
_OTHER = ("datasets", "spaces", "collections", "papers", "blog", "docs")
_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[^/:@\s]+))?"
    r"(?:/(?P<inner>[^:@\s]+))?(?::(?P<quant>[\w.-]+))?"
)
_FOLDER_FILES = ("config.json", "model.safetensors.index.json")  # which stand for the folder that they are in


@dataclass(frozen=True, slots=True)
class HubName:
    """`inner`: a folder or file in the repository, "" for its root; `quant`: the type of the GGUF that is meant."""

    repo: str
    inner: str = ""
    revision: str | None = None
    quant: str | None = None


def parse_hub_name(text: str) -> HubName | None:
    """None for what is no name of the Hub at all. Raises BadInput for an address that is not one of a model."""
    scheme, mark, rest = text.partition("://")
    if mark and scheme == "hf":
        return _parse_path(text, rest.removeprefix("models/").rstrip("/"))
    if mark and scheme in ("http", "https"):
        return _parse_address(text, urlsplit(text).netloc, urlsplit(text).path)
    if mark:
        raise BadInput("is not an address of the Hugging Face Hub", file=text, expected="owner/name")
    host, _, rest = text.partition("/")
    if host in HOSTS:
        return _parse_address(text, host, rest.partition("?")[0])
    match = _NAME.fullmatch(text.rstrip("/"))
    return _make(match) if match and not text.startswith((".", "/")) else None


def choose_gguf(names: Iterable[str], quant: str, repo: str) -> str:
    """The GGUF, or the first part of one, whose name says its type: `gpt-oss-20b-Q4_K_M.gguf`. Raises BadInput."""
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    said = re.compile(rf"(?:^|[-./]){re.escape(quant)}(?=[-./])", re.IGNORECASE)
    found = [
        name for name in ggufs if said.search(name) and re.search(r"(-00001-of-\d{5}|(?<!-of-\d{5}))\.gguf$", name)
    ]
    if len(found) != 1:
        what = "has no GGUF file of that type" if not found else "has several GGUF files of that type"
        raise BadInput(
            f"the repository {what}: {quant}",
            file=repo,
            got=", ".join(found or ggufs) or "no GGUF file",
            hint=f"name one: {repo}/{(found or ggufs)[0]}" if ggufs else None,
        )
    return found[0]


def _parse_path(text: str, path: str) -> HubName:
    match = _NAME.fullmatch(path)
    if path.partition("/")[0] in _OTHER or not match:
        raise _fail(text)
    return _make(match)


def _parse_address(text: str, host: str, path: str) -> HubName:
    own = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc
    if host not in (*HOSTS, own):
        raise BadInput(
            "is not an address of the Hugging Face Hub",
            file=text,
            hint="download the files, or give owner/name of a Hub repository",
        )
    parts = [part for part in path.split("/") if part]
    if len(parts) < 2 or parts[0] in _OTHER:
        raise _fail(text)
    repo = "/".join(parts[:2])
    if len(parts) == 2:
        return _parse_path(text, repo)
    if parts[2] not in _VIEWS or len(parts) == 3:
        raise _fail(text)
    pull = parts[3] == "refs" and len(parts) > 5  # a branch of its own kind: refs/pr/1
    revision, inner = ("/".join(parts[3:6]), parts[6:]) if pull else (unquote(parts[3]), parts[4:])
    return HubName(repo, _stand_for_folder(unquote("/".join(inner))), revision)


def _make(match: re.Match[str]) -> HubName:
    inner = _stand_for_folder((match["inner"] or "").strip("/"))
    revision = match["revision"]
    return HubName(match["repo"], inner, revision and unquote(revision), match["quant"])


def _stand_for_folder(inner: str) -> str:
    path = PurePosixPath(inner)
    return "/".join(path.parts[:-1]) if path.name in _FOLDER_FILES else inner


def _fail(text: str) -> BadInput:
    return BadInput(
        "is not the address of a model's files on the Hub",
        file=text,
        expected="owner/name, or https://huggingface.co/owner/name/tree/REVISION",
    )
