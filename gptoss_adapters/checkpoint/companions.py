"""What lies beside the weights: tokenizer files, chat templates, generation config, licence and model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_adapters.checkpoint.files import MappedFile, locate, read_json
from gptoss_adapters.errors import BadInput

JINJA, LEGACY_JSON, TOKENIZER_CONFIG = "chat_template.jinja", "chat_template.json", "tokenizer_config.json"
NAMED_FOLDER = "additional_chat_templates"
TOKENIZER_FILES = ("tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", JINJA, LEGACY_JSON)
LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
MODEL_CARD = "README.md"
GENERATION = "generation_config.json"
_MAX_TEXT = 10_000_000
_HARMONY = ("<|start|>", "<|channel|>", "<|message|>")


@dataclass(frozen=True)
class Templates:
    """`default`: the template for a chat; `named`: others, by their names; `odd`: what of them is not taken."""

    default: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)
    odd: tuple[str, ...] = ()


def find_companions(root: Path) -> dict[str, Path]:
    """The files of these kinds that lie in the resolved folder `root`, by name."""
    names = (*TOKENIZER_FILES, *LICENSES, GENERATION)
    return {name: locate(root, name) for name in names if (root / name).exists()}


def read_generation_config(root: Path, there: Mapping[str, Path]) -> dict[str, Any] | None:
    return read_json(root / GENERATION, there[GENERATION]) if GENERATION in there else None


def read_license(root: Path, there: Mapping[str, Path]) -> str | None:
    return next((read_text(root / name, there[name]) for name in LICENSES if name in there), None)


def read_model_card(root: Path) -> tuple[str | None, list[str]]:
    """The text of README.md, and why it is not read; it is no part of the model, so nothing about it is an error."""
    if not (root / MODEL_CARD).is_file():
        return None, []
    try:
        return read_text(root / MODEL_CARD, locate(root, MODEL_CARD)), []
    except BadInput as e:
        return None, [f"{MODEL_CARD} is not read: {e.what}"]


def read_templates(root: Path, there: Mapping[str, Path]) -> Templates:
    """As transformers chooses: chat_template.jinja with its folder of others, else what tokenizer_config.json holds,
    else the older chat_template.json.
    """
    stored = {name: _parse(read_json(root / name, there[name]), name) for name in _JSON_FILES if name in there}
    if JINJA not in there:
        return next((t for t in stored.values() if t.default is not None or t.named), _merge_odd(stored.values()))
    default = read_text(root / JINJA, there[JINJA])
    odd = [f"{name} holds another chat template than {JINJA}, which counts" for name, t in stored.items()
           if t.default not in (None, default)]  # fmt: skip
    return Templates(default, _read_folder(root / NAMED_FOLDER), tuple(odd))


def speaks_harmony(template: str | None) -> bool:
    """Whether a chat template writes Harmony, with or without changes; None, none of its own, counts as the published
    one.
    """
    return template is None or all(mark in template for mark in _HARMONY)


def read_text(path: Path, real: Path) -> str:
    """A companion file of a checkpoint. Raises BadInput for one that is not UTF-8, or no text of sensible size."""
    data = MappedFile(path, real).data
    if data.size > _MAX_TEXT:
        raise BadInput("the text file is too large", file=path, expected=f"at most {_MAX_TEXT} bytes", got=data.size)
    try:
        return data.tobytes().decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput("the text is not UTF-8", file=path) from None


_JSON_FILES = (TOKENIZER_CONFIG, LEGACY_JSON)


def _parse(raw: Mapping[str, Any], file: str) -> Templates:
    """The entry `chat_template` of a JSON file: a text, or a list of named ones."""
    given = raw.get("chat_template")
    if given is None or isinstance(given, str):
        return Templates(given)
    if isinstance(given, dict):  # by name, as some tools write it
        given = [{"name": name, "template": text} for name, text in given.items()]
    if not isinstance(given, list) or not all(_is_named(one) for one in given):
        return Templates(odd=(f"{file}: chat_template is neither a text nor a list of named ones: not read",))
    named = {one["name"]: one["template"] for one in given}
    return Templates(named.pop("default", None), named)


def _is_named(one: Any) -> bool:
    return isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("template"), str)


def _merge_odd(templates: Any) -> Templates:
    return Templates(odd=tuple(line for t in templates for line in t.odd))


def _read_folder(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        return {}
    root = folder.resolve()
    return {p.stem: read_text(p, locate(root, p.name)) for p in sorted(folder.glob("*.jinja"))}
