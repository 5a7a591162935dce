"""A path or a Hub repository id -> a local path whose contents are what the Hub says they are.

`huggingface_hub` downloads, resumes and caches, and obeys HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE. It
compares sizes, not contents; so every file of a snapshot is hashed here once, against the hash that the Hub states for
it (sha256 for large files, git's blob hash for small ones). What was verified is remembered by size, time and inode in
the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from gptoss_adapters.checkpoint.files import MappedFile
from gptoss_adapters.checkpoint.formats.hub_names import HubName, choose_gguf, parse_hub_name
from gptoss_adapters.errors import BadInput, GptOssError, OutputError, UsageError

_WANTED = (
    ".safetensors",
    ".safetensors.index.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
)
_HTTP_LIBRARIES = ("http", "requests", "urllib3")  # httpx, httpx2, ...: it differs between versions of huggingface_hub
_CHUNK = 1 << 22


def resolve_path(path: str | Path, *, revision: str | None = None) -> Path:
    """The local file or folder that `path` names: itself when it exists, else what it means on the Hub (hub_names.py).

    Raises UsageError for an empty path, and for a revision beside a local one; BadInput when there is no such thing or
    a file's contents are not the Hub's; OutputError when the Hub cannot be reached.
    """
    if not str(path):
        raise UsageError("a path is empty", hint="name a checkpoint: is a shell variable not set?")
    local = Path(path)
    if os.path.lexists(local):
        if not local.exists():
            raise BadInput("is a link that leads nowhere", file=local)
        if revision is not None:
            raise UsageError(f"{local} is local: a revision is for a Hub repository", got=revision)
        return local
    name = parse_hub_name(str(path))
    if name is None:
        raise BadInput("no such file or folder", file=local)
    if None not in (name.revision, revision) and name.revision != revision:
        raise UsageError("--revision is not the one in the name", expected=name.revision, got=revision)
    return download(replace(name, revision=name.revision or revision))


def download(name: HubName) -> Path:
    """The verified local snapshot of a repository: its root, or the folder or file of it that is meant."""
    from huggingface_hub import constants

    repo = name.repo
    with _hub_errors(repo):
        root, hashes = _cached(repo, name.revision) if constants.HF_HUB_OFFLINE else _fetched(name)
    inner = name.inner
    if name.quant:
        inner = choose_gguf((p.relative_to(root).as_posix() for p in root.rglob("*.gguf")), name.quant, repo)
    target = root / inner
    if not target.exists():
        raise BadInput("the repository has no such file or folder", file=f"{repo}/{inner}")
    files = [target] if target.is_file() else sorted(p for p in target.iterdir() if p.is_file())
    for file in files:
        path = file.relative_to(root).as_posix()
        verify(file, hashes.get(path) or file.resolve().name, f"{repo}/{path}")
    return target


def _cached(repo: str, revision: str | None) -> tuple[Path, dict[str, str]]:
    """The snapshot in the cache, by the cache's documented layout: snapshot_download would ask for files we do not
    want.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    if ".." in Path(revision or "main").parts or (revision or "").startswith("/"):
        raise BadInput("the revision is not a branch, tag or commit", file=repo, got=revision)
    ref = folder / "refs" / (revision or "main")
    root = folder / "snapshots" / (ref.read_text().strip() if ref.is_file() else revision or "main")
    if not root.is_dir():
        raise BadInput(
            "no such file or folder, and the repository is not in the local cache",
            file=repo,
            hint="unset HF_HUB_OFFLINE to download it",
        )
    return root, {}


def _fetched(name: HubName) -> tuple[Path, dict[str, str]]:
    """Downloads what is wanted of the commit that the revision names now, and gives the hashes that the Hub states
    for it.
    """
    from huggingface_hub import HfApi, snapshot_download

    repo, revision = name.repo, name.revision
    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    hashes = {s.rfilename: s.lfs.sha256 if s.lfs else s.blob_id or "" for s in info.siblings or ()}
    inner = choose_gguf(hashes, name.quant, repo) if name.quant else name.inner
    names = wanted_files(hashes, inner, repo)
    root = Path(snapshot_download(repo, revision=revision, allow_patterns=names))
    if root.name != info.sha:
        raise BadInput(
            "the revision moved to another commit during the download",
            file=repo,
            expected=info.sha,
            got=root.name,
            hint="run again",
        )
    return root, hashes


def wanted_files(names: Iterable[str], inner: str, repo: str) -> list[str]:
    """What a checkpoint consists of, among a repository's file names: never pickles, never another folder's files."""
    names = list(names)
    if inner in names:
        beside = PurePosixPath(inner).parent
        parts = re.sub(r"-\d{5}-of-", "-of-", inner)
        return [
            n
            for n in names
            if re.sub(r"-\d{5}-of-", "-of-", n) == parts
            or (PurePosixPath(n).parent == beside and _is_wanted(n) and not n.endswith(".safetensors"))
        ]
    here = [n for n in names if PurePosixPath(n).parent == PurePosixPath(inner or ".")]
    chosen = [n for n in here if _is_wanted(n)]
    if any(n.endswith(".safetensors") for n in chosen):
        return chosen
    ggufs = [n for n in here if n.endswith(".gguf")]
    if not ggufs:
        raise BadInput(
            "the repository has no safetensors or GGUF file there", file=f"{repo}/{inner}" if inner else repo
        )
    if len({re.sub(r"-\d{5}-of-", "-of-", n) for n in ggufs}) > 1:
        raise BadInput(
            "which GGUF file is meant is unclear", file=repo, got=", ".join(ggufs), hint=f"name one: {repo}/{ggufs[0]}"
        )
    return ggufs


def _is_wanted(name: str) -> bool:
    return name.rpartition("/")[2].endswith(_WANTED)


def verify(file: Path, expected: str, shown: str) -> None:
    """Compares a file's hash with the Hub's (64 hex digits: sha256; 40: git's blob hash). Raises BadInput when it
    differs.
    """
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", expected):
        raise BadInput("the Hub states no hash for the file", file=shown, got=expected)
    real = file.resolve()
    stat = real.stat()
    stamp = f"{real} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
    note = _verified_folder() / expected
    if note.is_file() and note.read_text() == stamp:
        return
    got = file_hash(real, "sha256" if len(expected) == 64 else "git")
    if got != expected:
        raise BadInput(
            "the contents are not those that the Hub states",
            file=shown,
            expected=expected,
            got=got,
            hint=f"delete {real} and download again",
        )
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(stamp)
    except OSError:
        pass  # a read-only cache folder only means that the file is hashed again next time


def file_hash(file: Path, kind: str) -> str:
    """ "sha256" of a file, or "git": its blob hash."""
    view = memoryview(MappedFile(file).buffer)
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % len(view), usedforsecurity=False)
    for at in range(0, len(view), _CHUNK):
        digest.update(view[at : at + _CHUNK])
    return digest.hexdigest()


def _verified_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptoss-adapters" / "verified"


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """The Hub's many exceptions as ours, one line each."""
    from huggingface_hub import errors

    try:
        yield
    except GptOssError:
        raise
    except errors.GatedRepoError:
        raise BadInput(
            "the repository is gated", file=repo, hint="accept its terms on the Hub and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise BadInput(
            "no such file, folder or Hub repository", file=repo, hint="for a private repository set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise BadInput("the repository has no such revision", file=repo) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise OutputError(
            "no such file or folder here, the Hub cannot be reached, and the repository is not in the local cache",
            file=repo,
        ) from None
    except Exception as e:
        if not isinstance(e, OSError | errors.HfHubHTTPError) and not type(e).__module__.startswith(_HTTP_LIBRARIES):
            raise
        first = str(e).partition("\n")[0]
        what = f"no such file or folder here, and the Hub cannot be reached or broke off ({type(e).__name__}: {first})"
        raise OutputError(what, file=repo, hint="run again: downloads resume") from None
