"""The model files that a Modelfile names: are they there, complete, and what Ollama's llama-server loads as gpt-oss?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from gptoss_harmony.tokens import CALL, FIRST_SPECIAL, GENERATION_STOPS, RETURN, SPECIAL_NAMES

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.errors import GptOssError
from gptoss_adapters.spec import GGUF_ARCH
from gptoss_converters.ollama.modelfile import Command, Finding

MODEL_NAME = re.compile(r"(?:[\w.-]+(?::\d+)?/)?(?:[\w.-]+/)?[\w.-]+(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_CONTROL, _USER_DEFINED = 3, 4
_WILDCARD_SINCE = (0, 34, 1)


def check_model_files(commands: Sequence[Command], folder: Path) -> list[Finding]:
    """What is wrong with the FROM lines and the files behind them."""
    found: list[Finding] = []
    files: list[tuple[Command, Path]] = []
    for c in commands:
        if c.name == "from":
            paths = list(_find_paths(c, folder, found, _read_requires(commands)))
            files += [(c, path) for path in paths]
    shards = [(c, p) for c, p in files if _SHARD.fullmatch(p.name)]
    whole = [(c, p) for c, p in files if not _SHARD.fullmatch(p.name)]
    for c, _ in whole[1:] or (shards and whole):
        found.append(Finding(c.line, "from-several", "a second model file: gpt-oss is one GGUF, or the shards of one"))
    found += _check_drafts(commands, folder)
    has_template = any(c.name == "template" for c in commands)
    for c, path in whole[:1] or shards[:1]:
        found += _check_model(c, _find_first_shard(path), has_template, {p.name for _, p in shards})
    return found


def _check_drafts(commands: Sequence[Command], folder: Path) -> Iterator[Finding]:
    """A draft model is a file that is there, and another one than the model."""
    sources = {c.value for c in commands if c.name == "from"}
    for c in commands:
        if c.name != "draft":
            continue
        if c.value in sources:
            yield Finding(c.line, "draft-is-model", "DRAFT names the same model as FROM: Ollama refuses that")
        elif _looks_local(c.value) and not (folder / Path(c.value).expanduser()).exists():
            yield Finding(c.line, "draft-missing", f"no such file {c.value}: Ollama finds no draft model")


def _read_requires(commands: Sequence[Command]) -> tuple[int, ...]:
    text = next((c.value for c in commands if c.name == "requires"), "")
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


def _find_paths(c: Command, folder: Path, found: list[Finding], requires: tuple[int, ...]) -> Iterator[Path]:
    """The local files of one FROM; [] for a model's name."""
    path = (folder / Path(c.value).expanduser()).absolute()
    if "*" in c.value or "?" in c.value:
        if requires < _WILDCARD_SINCE:
            found.append(
                Finding(
                    c.line,
                    "from-wildcard",
                    "Ollama before 0.34.1 takes a wildcard for a model's name: name each file, or add REQUIRES 0.34.1",
                )
            )
        matched = sorted(path.parent.glob(path.name))
        if not matched:
            found.append(Finding(c.line, "from-missing", f"no file matches {c.value}"))
        yield from matched
    elif path.is_dir():
        found.append(
            Finding(
                c.line,
                "from-folder",
                f"{c.value} is a folder: Ollama would pick files from it and from its subfolders; name the GGUF",
            )
        )
    elif path.exists():
        yield path
    elif _looks_local(c.value):
        found.append(
            Finding(c.line, "from-missing", f"no such file {c.value}: Ollama would take it for a model's name")
        )
    elif not MODEL_NAME.fullmatch(c.value):
        found.append(Finding(c.line, "from-name", f"{c.value!r} is neither a file nor a model's name"))


def _looks_local(value: str) -> bool:
    return value.startswith((".", "/", "~")) or value.endswith((".gguf", ".safetensors", ".bin"))


def _find_first_shard(path: Path) -> Path:
    match = _SHARD.fullmatch(path.name)
    return path.with_name(f"{match[1]}-00001-of-{match[3]}.gguf") if match else path


def _check_model(c: Command, path: Path, has_template: bool, shards: set[str]) -> Iterator[Finding]:
    """One GGUF (or the first of its shards), opened and looked at."""
    if path.suffix != ".gguf" and _read_magic(path) != b"GGUF":
        yield Finding(
            c.line,
            "from-not-gguf",
            f"{path.name}: Ollama makes gpt-oss models from GGUF files only: run gptoss-convert to-ollama",
        )
        return
    match = _SHARD.fullmatch(path.name)
    wanted = {f"{match[1]}-{n:05d}-of-{match[3]}.gguf" for n in range(1, int(match[3]) + 1)} if match else set()
    if missing := sorted(wanted - shards):
        yield Finding(
            c.line, "from-shards", f"{', '.join(missing)} missing: every shard must be named, best by a wildcard"
        )
        return
    try:
        checkpoint = open_checkpoint(path)
    except GptOssError as error:
        yield Finding(c.line, "gguf", str(error))
        return
    yield from _check_metadata(c, checkpoint, has_template)


def _read_magic(path: Path) -> bytes:
    """The first four bytes, which tell what a file is: Ollama's own blobs have no suffix. b"" if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""


def _check_metadata(c: Command, checkpoint: Checkpoint, has_template: bool) -> Iterator[Finding]:
    m = checkpoint.metadata
    name = checkpoint.path.name
    if m.get("general.architecture") != GGUF_ARCH:
        yield Finding(
            c.line,
            "gguf-architecture",
            f"{name}: general.architecture is {m.get('general.architecture')!r}, llama.cpp knows {GGUF_ARCH!r}",
        )
    if "tokenizer.ggml.tokens" not in m:
        yield Finding(c.line, "gguf-vocabulary", f"{name}: has no vocabulary: export with the tokenizer")
        return
    if m.get("tokenizer.ggml.pre") != "gpt-4o":
        yield Finding(
            c.line,
            "gguf-pre",
            f"{name}: tokenizer.ggml.pre is {m.get('tokenizer.ggml.pre')!r}, not 'gpt-4o': text would be split "
            "differently",
        )
    yield from _check_tokens(c, checkpoint)
    template = checkpoint.chat_template
    if not template:
        if not has_template:
            yield Finding(
                c.line,
                "gguf-chat-template",
                f"{name}: has no tokenizer.chat_template and the Modelfile no TEMPLATE: Ollama would send bare text",
            )
    elif "<|channel|>" not in template and not has_template:
        yield Finding(
            c.line, "gguf-not-harmony", f"{name}: its chat template is not Harmony, and the Modelfile has no TEMPLATE"
        )


def _check_tokens(c: Command, checkpoint: Checkpoint) -> Iterator[Finding]:
    """llama.cpp knows what ends a generation by the texts of the tokens, and Ollama finds the calls by that."""
    m = checkpoint.metadata
    name = checkpoint.path.name
    tokens = m["tokenizer.ggml.tokens"]
    types = m.get("tokenizer.ggml.token_type", ())
    where = {text: i for i, text in enumerate(tokens) if text.startswith("<|")}
    for ident in sorted(GENERATION_STOPS):
        text = SPECIAL_NAMES[ident - FIRST_SPECIAL]
        at = where.get(text)
        if at is None:
            yield Finding(c.line, "gguf-stop-token", f"{name}: the vocabulary has no {text}: answers would not end")
        elif ident in (RETURN, CALL) and int(types[at]) not in (_CONTROL, _USER_DEFINED):
            yield Finding(c.line, "gguf-stop-token", f"{name}: {text} is not a control token: answers would not end")
    for text in ("<|start|>", "<|message|>", "<|channel|>", "<|end|>"):
        if text not in where:
            yield Finding(
                c.line, "gguf-harmony-token", f"{name}: the vocabulary has no {text}: a base model without Harmony"
            )
    eos = m.get("tokenizer.ggml.eos_token_id")
    if eos is None or not 0 <= int(eos) < len(tokens):
        yield Finding(c.line, "gguf-eos", f"{name}: tokenizer.ggml.eos_token_id is {eos}, outside the vocabulary")
