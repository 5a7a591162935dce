"""`tokenizer.json` -> GGUF tokenizer keys, packed straight into the bytes that the file holds (650 000 strings in well
under a second).

Special tokens must keep their text: llama.cpp finds out what ends a generation by it.
"""

from __future__ import annotations

import json
import re
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.companions import Templates, find_companions, read_templates
from gptoss_adapters.checkpoint.files import MappedFile, parse_json, read_json
from gptoss_adapters.checkpoint.formats.gguf import GgufFile
from gptoss_adapters.checkpoint.formats.tokenizer_files import CHAT_TEMPLATE, PAD_TEXT
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import GGUF_ARCH, GptOssConfig
from gptoss_converters.gguf.metadata import ARRAY, BOOL, I32, STRING, U32, Key, StoredKey

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
PRE_TOKENIZER = "gpt-4o"  # llama.cpp's name of o200k's splitting rule
_O200K_MARK = (
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"  # case-aware words: no other family splits so
)
_MERGES = re.compile(rb'"merges"\s*:\s*\[')
_BETWEEN = re.compile(rb'(?<=[]"])\s*,(?=\s*["[])')  # two merges, or something in the text of one
_MERGES_BYTES = 1 << 20  # parsed at a time
_ROLES = (("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token"))


@dataclass(frozen=True)
class TokenizerFiles:
    """The files a tokenizer is read from, and the chat templates that go with it, if any."""

    tokenizer: Path
    config: Path | None
    templates: Templates


def find_tokenizer(checkpoint: Checkpoint, where: str | None) -> TokenizerFiles:
    """The checkpoint's own tokenizer, or the one in the folder (or file) `where`. Raises BadInput when there is
    none.
    """
    own = Templates(checkpoint.chat_template, checkpoint.chat_templates)
    if where is None:
        files = checkpoint.tokenizer_files
        if "tokenizer.json" not in files:
            raise BadInput(
                "no tokenizer.json beside the weights",
                file=checkpoint.path,
                hint="add --tokenizer DIR, or --tokenizer none for a file without vocabulary",
            )
        return TokenizerFiles(files["tokenizer.json"], files.get("tokenizer_config.json"), own)
    folder = Path(where) if Path(where).is_dir() else Path(where).parent
    path = folder / "tokenizer.json" if Path(where).is_dir() else Path(where)
    if not path.is_file():
        raise BadInput("no such tokenizer", file=path, hint="--tokenizer names a folder with tokenizer.json, or none")
    config = folder / "tokenizer_config.json"
    found = read_templates(folder.resolve(), find_companions(folder.resolve()))
    has_one = found.default is not None or bool(found.named)
    return TokenizerFiles(path, config if config.is_file() else None, found if has_one else own)


def tokenizer_keys(files: TokenizerFiles, checkpoint: Checkpoint) -> list[Key]:
    """Every `tokenizer.*` key. Raises BadInput naming the file and what in it is wrong."""
    raw, merges = _read_tokenizer(files.tokenizer)
    model = raw.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or merges is None:
        raise BadInput(
            "is not a byte-level BPE tokenizer", file=files.tokenizer, expected="model.vocab and model.merges"
        )
    _check_splitting(raw, files.tokenizer)
    added = _read_added(raw, files.tokenizer)
    tokens, types = _make_token_table(model["vocab"], added, checkpoint.config.vocab_size, files.tokenizer)
    keys = [
        Key("tokenizer.ggml.model", STRING, "gpt2"),
        Key("tokenizer.ggml.pre", STRING, PRE_TOKENIZER),
        Key("tokenizer.ggml.tokens", ARRAY, _pack_strings(tokens, files.tokenizer), of=STRING, count=len(tokens)),
        Key("tokenizer.ggml.token_type", ARRAY, types.tobytes(), of=I32, count=len(types)),
        Key("tokenizer.ggml.merges", ARRAY, merges[0], of=STRING, count=merges[1]),
    ]
    ids = {t["content"]: t["id"] for t in added}
    settings = read_json(files.config) if files.config else {}
    keys += _find_special_ids(settings, ids, checkpoint)
    keys += [
        Key(f"tokenizer.ggml.add_{w}_token", BOOL, bool(settings.get(f"add_{w}_token", False))) for w in ("bos", "eos")
    ]
    return keys + _make_template_keys(files.templates)


def _make_template_keys(templates: Templates) -> list[Key]:
    """As llama.cpp's converter names them; the published template where the checkpoint has none."""
    named = {re.sub(r"[^A-Za-z0-9]", "_", name): text for name, text in templates.named.items() if name}
    keys = [Key(f"tokenizer.chat_template.{name}", STRING, text) for name, text in named.items()]
    if named:
        keys.append(Key("tokenizer.chat_templates", ARRAY, sorted(named), of=STRING))
    if templates.default is None and named:
        return keys
    default = CHAT_TEMPLATE.read_text("utf-8") if templates.default is None else templates.default
    return [*keys, Key("tokenizer.chat_template", STRING, default)]


def stored_keys(checkpoint: Checkpoint) -> list[Key]:
    """The `tokenizer.*` keys of a GGUF that has a vocabulary, as they are; of anything else none."""
    first = next(iter(checkpoint.stored.values()))
    # an adapter that resizes the vocabulary takes the tokenizer out of the checkpoint's own metadata
    if not isinstance(first, GgufFile) or "tokenizer.ggml.tokens" not in checkpoint.metadata:
        return []
    keys: list[Key] = [
        StoredKey(name, first.types[name], first.value_bytes(name))
        for name in first.metadata
        if name.startswith("tokenizer.")
    ]
    return _adapt_to_llama_cpp(keys, checkpoint) if checkpoint.kind is Kind.OLLAMA else keys


def _adapt_to_llama_cpp(keys: list[Key], checkpoint: Checkpoint) -> list[Key]:
    """Of an Ollama blob: its engine knew the splitting rule and the stops, and kept the template outside the file."""
    said = {name: checkpoint.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")}
    ours = {
        f"tokenizer.ggml.{name}_token_id": Key(f"tokenizer.ggml.{name}_token_id", U32, int(value))
        for name, value in said.items()
        if value is not None
    }
    ours["tokenizer.ggml.pre"] = Key("tokenizer.ggml.pre", STRING, PRE_TOKENIZER)
    if checkpoint.chat_template is None:
        ours["tokenizer.chat_template"] = Key("tokenizer.chat_template", STRING, CHAT_TEMPLATE.read_text("utf-8"))
    return [*(k for k in keys if k.name not in ours), *ours.values()]


def no_vocabulary_keys(config: GptOssConfig) -> list[Key]:
    """For `--tokenizer none`: llama.cpp then makes filler tokens itself; it wants to know how many."""
    return [Key(f"{GGUF_ARCH}.vocab_size", U32, config.vocab_size), Key("tokenizer.ggml.model", STRING, "no_vocab")]


def _read_tokenizer(file: Path) -> tuple[dict[str, Any], tuple[bytes, int] | None]:
    """The tokenizer without its merges, and these packed. Parsed as one the 446 189 merges would take 200 MB."""
    data = MappedFile(file, file.resolve()).data.tobytes()
    begin = _MERGES.search(data)
    if begin is None:
        return parse_json(data, file), None
    packed: list[bytes] = []
    count = 0
    at = begin.end()
    while at < len(data):
        merges, at, ended = _parse_some_merges(data, at, count, file)
        packed.append(_pack_strings(_join_merges(merges, count, file), file, "model.merges holds what is not UTF-8"))
        count += len(merges)
        if ended:
            break
    return parse_json(data[: begin.end()] + data[at:], file), (b"".join(packed), count)


def _parse_some_merges(data: bytes, at: int, count: int, file: Path) -> tuple[list[Any], int, bool]:
    """Some merges from `at` on, where they end, and whether the list does too. A cut inside a merge's text leaves a
    quote open, so it
    cannot be mistaken for one between merges: parsing fails, and the next one is tried."""
    for cut in islice(_BETWEEN.finditer(data, at + _MERGES_BYTES), 100):
        try:
            return json.loads(b"[%b]" % data[at : cut.start()]), cut.end(), False
        except ValueError:
            pass
    try:
        text = "[" + data[at:].decode()
        merges, end = json.JSONDecoder().raw_decode(text)
    except UnicodeDecodeError:
        raise BadInput("model.merges holds what is not UTF-8", file=file) from None
    except (ValueError, RecursionError):
        raise BadInput(f"model.merges is malformed after {count} merges or more", file=file) from None
    return merges, at + len(text[1 : end - 1].encode()), True


def _join_merges(merges: list[Any], before: int, file: Path) -> list[str]:
    """Each "left right" or, since tokenizers 0.20, a pair -> "left right"."""
    if {*map(type, merges)} <= {str}:
        return merges
    for n, merge in enumerate(merges):
        if type(merge) is not list or len(merge) != 2 or type(merge[0]) is not str or type(merge[1]) is not str:
            raise BadInput(f"model.merges is malformed after {before + n} merges", file=file)
    return [*map(" ".join, merges)]


def _check_splitting(raw: Mapping[str, Any], file: Path) -> None:
    """llama.cpp knows splitting rules by name; any other vocabulary would be split wrongly without a word."""
    if _O200K_MARK not in json.dumps(raw.get("pre_tokenizer")).replace("\\\\", "\\"):
        raise BadInput(
            "the pre_tokenizer is not the one of gpt-oss (o200k)",
            file=file,
            hint="llama.cpp would split text differently",
        )


def _read_added(raw: Mapping[str, Any], file: Path) -> list[dict[str, Any]]:
    """The added tokens, each with its text and id."""
    added = raw.get("added_tokens", [])
    if not isinstance(added, list) or not all(
        isinstance(t, dict) and isinstance(t.get("content"), str) and isinstance(t.get("id"), int) for t in added
    ):
        raise BadInput("added_tokens is malformed", file=file, expected="a list of objects with content and id")
    return added


def _make_token_table(
    vocab: Mapping[str, int], added: list[dict[str, Any]], size: int, file: Path
) -> tuple[list[str], array[int]]:
    """Token texts and types by id; ids without a token are filled as upstream does."""
    tokens: list[str | None] = [None] * size
    types = array("i", [UNUSED]) * size
    special = {t["content"]: (t["id"], CONTROL if t.get("special") else USER_DEFINED) for t in added}
    try:
        for text, number in vocab.items():
            tokens[number] = text
            types[number] = NORMAL
        for text, (number, kind) in special.items():
            tokens[number] = text
            types[number] = kind
    except (IndexError, TypeError):
        raise BadInput(
            "a token's id lies outside the vocabulary",
            file=file,
            expected=f"0 to {size - 1}",
            got=f"{text!r}: {number}",
        ) from None
    if min(vocab.values(), default=0) < 0 or len(vocab.keys() | special.keys()) != size - tokens.count(None):
        raise BadInput("two tokens have the same id", file=file)
    return [PAD_TEXT.format(i) if t is None else t for i, t in enumerate(tokens)], types


def _pack_strings(texts: list[str], file: Path, what: str = "a token is not UTF-8") -> bytes:
    """GGUF string array elements: an 8-byte length and the UTF-8 bytes, each. Lengths repeat, so they are packed
    once.
    """
    try:
        data = [t.encode() for t in texts]
    except UnicodeEncodeError as e:
        raise BadInput(what, file=file, got=e.object) from None
    prefix = {n: struct.pack("<Q", n) for n in set(map(len, data))}
    return b"".join(chain.from_iterable((prefix[len(d)], d) for d in data))


def _find_special_ids(settings: Mapping[str, Any], ids: Mapping[str, int], checkpoint: Checkpoint) -> list[Key]:
    """bos, eos and padding: by the text in tokenizer_config.json, else by the model's config."""
    keys = []
    for name, field in _ROLES:
        text = settings.get(field)
        text = text.get("content") if isinstance(text, dict) else text
        number = ids.get(text) if isinstance(text, str) else None
        if number is None:
            number = getattr(checkpoint.config, f"{field}_id")
        if number is not None:
            keys.append(Key(f"tokenizer.ggml.{name}_token_id", U32, number))
    return keys
