"""`general.*`: who made a model, from what, under which licence, and how to sample it.

As llama.cpp's own converter finds it, by its library's rules (gguf-py's Metadata): the front matter of the model card,
the config, the generation config, and the name. Of a GGUF it is what the file holds, the imatrix it was made with
included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.formats.gguf import GgufFile
from gptoss_converters.gguf.metadata import ARRAY, F32, STRING, U32, Key, StoredKey

MAX_CARD = 200_000  # characters of front matter
_MADE_ANEW = (  # by metadata.model_keys, or of a part of the old file
    "general.architecture",
    "general.type",
    "general.file_type",
    "general.quantization_version",
    "general.alignment",
    "general.name",
    "general.size_label",
)
_APACHE = re.compile(r"\s*Apache License\s+Version 2\.0", re.IGNORECASE)
_SAMPLING = {  # of generation_config.json, as llama.cpp reads it -> the key's end, its type
    "sequence": ("sequence", STRING),
    "top_k": ("top_k", U32),
    "top_p": ("top_p", F32),
    "min_p": ("min_p", F32),
    "xtc_probability": ("xtc_probability", F32),
    "xtc_threshold": ("xtc_threshold", F32),
    "temperature": ("temp", F32),
    "penalty_last_n": ("penalty_last_n", U32),
    "penalty_repeat": ("penalty_repeat", F32),
    "mirostat": ("mirostat", U32),
    "mirostat_tau": ("mirostat_tau", F32),
    "mirostat_eta": ("mirostat_eta", F32),
}
_TEXTS = (  # attributes of gguf-py's Metadata that are texts, and their keys, in its order
    ("author", "author"),
    ("version", "version"),
    ("organization", "organization"),
    ("finetune", "finetune"),
    ("basename", "basename"),
    ("description", "description"),
    ("quantized_by", "quantized_by"),
)
_AFTER_LABEL = (
    ("license", "license"),
    ("license_name", "license.name"),
    ("license_link", "license.link"),
    ("url", "url"),
    ("doi", "doi"),
    ("uuid", "uuid"),
    ("repo_url", "repo_url"),
    ("source_url", "source.url"),
    ("source_doi", "source.doi"),
    ("source_uuid", "source.uuid"),
    ("source_repo_url", "source.repo_url"),
)
_OF_A_MODEL = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")


def general_keys(checkpoint: Checkpoint, name: str, size_label: str, notices: list[str]) -> list[Key]:
    """The keys up to the architecture's own; what of a model card is malformed goes into `notices`."""
    stored = _copy_stored(checkpoint)
    label = Key("general.size_label", STRING, size_label)
    if stored:
        return [Key("general.name", STRING, name), label, *stored]
    card = _read_card(checkpoint.model_card, notices)
    made = _gather(checkpoint, card, notices)
    sampling = list(_make_sampling(checkpoint.generation_config or {}))
    if made.license is None and checkpoint.license_text and _APACHE.match(checkpoint.license_text):
        made.license = "apache-2.0"
    keys = [*sampling, Key("general.name", STRING, name), *_make_texts(made, _TEXTS, notices), label]
    keys += _make_texts(made, _AFTER_LABEL, notices)
    keys += _make_models("base_model", made.base_models, notices) + _make_models("dataset", made.datasets, notices)
    return keys + _make_lists(made, notices)


def _copy_stored(checkpoint: Checkpoint) -> list[Key]:
    """What a GGUF says of itself: as it stands there."""
    first = next(iter(checkpoint.stored.values()))
    if not isinstance(first, GgufFile):
        return []
    names = [n for n in first.metadata if n.startswith(("general.", "quantize.")) and n not in _MADE_ANEW]
    return [StoredKey(n, first.types[n], first.value_bytes(n)) for n in names]


def _read_card(text: str | None, notices: list[str]) -> dict[str, Any]:
    """The front matter of a model card: YAML between two lines of three dashes."""
    lines = (text or "").splitlines()
    if not lines or lines[0] != "---":
        return {}
    end = next((n for n, line in enumerate(lines[1:], 1) if line == "---"), len(lines))
    matter = "\n".join(lines[1:end]) + "\n"
    if len(matter) > MAX_CARD:
        notices.append("README.md: the front matter is too large, and is not read")
        return {}
    import yaml

    try:
        card = yaml.safe_load(matter.replace("- no\n", '- "no"\n').replace("\t", "  "))  # as llama.cpp's converter does
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        notices.append(f"README.md: the front matter is not YAML, and is not read: {str(e).partition(chr(10))[0]}")
        return {}
    return card if isinstance(card, dict) else {}


def _gather(checkpoint: Checkpoint, card: dict[str, Any], notices: list[str]) -> Any:
    """gguf-py's Metadata of them. The name and the label are ours, so the folder's name adds nothing else."""
    from gguf import Metadata

    path = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    name = Path(re.sub(r"^[0-9a-f]{40}$", "", path.name))  # a snapshot of the Hub's cache is named by a hash
    hf = {key: value for key, value in checkpoint.hf_config.items() if key != "_name_or_path" or isinstance(value, str)}
    clean = {key: value for key, value in card.items() if isinstance(key, str)}
    size = checkpoint.config.parameters()[0]
    try:
        return Metadata.apply_metadata_heuristic(Metadata(), clean, hf, name, size)
    except (TypeError, ValueError, LookupError, AttributeError):
        notices.append("README.md: llama.cpp's rules do not understand the front matter: it is not read")
        return Metadata.apply_metadata_heuristic(Metadata(), {}, hf, name, size)


def _make_sampling(generation: Mapping[str, Any]) -> Iterator[Key]:
    for said, (end, kind) in _SAMPLING.items():
        value = generation.get(said)
        fits = isinstance(value, str) if kind == STRING else isinstance(value, int | float)
        if (
            value is None
            or not fits
            or isinstance(value, bool)
            or (kind == U32 and not (isinstance(value, int) and 0 <= value < 2**31))
        ):
            continue
        yield Key(f"general.sampling.{end}", kind, float(value) if kind == F32 else value)


def _make_texts(made: Any, names: tuple[tuple[str, str], ...], notices: list[str]) -> list[Key]:
    keys = []
    for attribute, end in names:
        value = getattr(made, attribute)
        if attribute == "license" and isinstance(value, list):
            value = ",".join(one for one in value if isinstance(one, str))
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)  # `version: 1.0` is a number in YAML
        if isinstance(value, str):
            keys.append(Key(f"general.{end}", STRING, value))
        elif value is not None:
            notices.append(f"README.md: {attribute} is not a text, and is not written")
    return keys


def _make_models(what: str, models: Any, notices: list[str]) -> list[Key]:
    """`general.base_model.0.name` and the like."""
    if models is None:
        return []
    known = [model for model in models if isinstance(model, dict)]
    if len(known) < len(models):
        notices.append(f"README.md: {len(models) - len(known)} entries of {what} are malformed, and are not written")
    keys = [Key(f"general.{what}.count", U32, len(known))]
    for n, model in enumerate(known):
        fields = [(field, model.get(field)) for field in _OF_A_MODEL]
        keys += [Key(f"general.{what}.{n}.{f}", STRING, v) for f, v in fields if isinstance(v, str)]
    return keys


def _make_lists(made: Any, notices: list[str]) -> list[Key]:
    keys = []
    for name in ("tags", "languages"):
        values = getattr(made, name)
        texts = [value for value in values or () if isinstance(value, str)]
        if len(texts) < len(values or ()):
            notices.append(f"README.md: entries of {name} that are no texts are not written")
        if texts:
            keys.append(Key(f"general.{name}", ARRAY, texts, of=STRING))
    return keys
