"""gpt-oss checkpoint -> what Ollama imports: a GGUF, a Modelfile and a README, in one folder.

Two template modes: "harmony" writes our Go template as TEMPLATE, for which Ollama chooses its harmony parser;
"embedded" writes none, and Ollama's llama-server uses the Jinja template in the GGUF; a metadata key tells its file
from that of the other mode. Checked against Ollama's grammar and its rules, and on llama.cpp's server, which current
Ollama runs; by hand on Ollama 0.33.0-rc2 in November 2026.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from gptoss_harmony.rendering.templates import chat_template
from gptoss_harmony.tokens import CALL, FIRST_SPECIAL, RETURN, SPECIAL_NAMES

from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.companions import speaks_harmony
from gptoss_adapters.checkpoint.formats.tokenizer_files import CHAT_TEMPLATE
from gptoss_adapters.checkpoint.writing.plan import Plan
from gptoss_adapters.errors import BadInput, CheckFailed, UsageError
from gptoss_converters.export_plan import ExportPlan
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from gptoss_converters.ollama import modelfile
from gptoss_converters.ollama.prompt import read_harmony_template
from gptoss_converters.ollama.rules import check_text
from gptoss_converters.rows.quantised import Rounding

Mode = Literal["harmony", "embedded"]
NAME = re.compile(r"[a-z0-9_][a-z0-9._-]{0,79}(:[A-Za-z0-9_][A-Za-z0-9._-]{0,79})?")
REQUIRES = "0.30.0"
MODE_KEY = "gptoss_adapters.ollama_template"  # Ollama keeps one runner for one file, whatever the models' templates
SAMPLING = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
}  # as OpenAI recommends; Ollama's own defaults cut the distribution
_METHOD = re.compile(r"(\{%-?\s*(?:el)?if)\s+(\w+)\[('items'|\"items\")\]\s*(-?%\})")  # a key that is a method's name
STOPS = tuple(SPECIAL_NAMES[t - FIRST_SPECIAL] for t in (RETURN, CALL))


@dataclass(frozen=True, slots=True)
class OllamaOptions:
    """`name`: the model's name in Ollama, NAME or NAME:TAG; None: from the checkpoint's. `messages`: (role, text)
    examples.
    `requires`: the REQUIRES version, None for no such line (Ollama before 0.14 refuses the command). num_ctx in tokens.
    """

    mode: Mode | None = None  # by the checkpoint's own template: embedded where that is not Harmony
    name: str | None = None
    num_ctx: int = 8192
    system: str | None = None
    messages: tuple[tuple[str, str], ...] = ()
    requires: str | None = REQUIRES


@dataclass(frozen=True)
class OllamaModel:
    """What will stand in the folder beside the model files of `gguf`: the texts of Modelfile and README, and the
    parts they say.
    """

    folder: Path
    name: str
    gguf: ExportPlan
    modelfile: str
    readme: str
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        return self.gguf.plan

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(f.path for f in self.plan.files)


def plan_ollama(
    checkpoint: Checkpoint, folder: Path, gguf: GgufOptions, options: OllamaOptions, rounding: Rounding | None = None
) -> OllamaModel:
    """Everything that will be written. Raises BadInput and UsageError: a bad name, a text that Ollama would change,
    no vocabulary.
    """
    name = options.name or name_model(checkpoint.path)
    if not NAME.fullmatch(name):
        raise UsageError("--name takes NAME or NAME:TAG in lower case", expected="letters, digits, . _ -", got=name)
    if gguf.tokenizer == "none":
        raise UsageError(
            "--tokenizer none: Ollama needs the vocabulary in the file", hint="name a folder with tokenizer.json"
        )
    own = checkpoint.chat_template
    mode: Mode = options.mode or ("harmony" if speaks_harmony(own) else "embedded")
    options = replace(options, mode=mode)
    if mode == "embedded":
        gguf = replace(gguf, chat_template=choose_embedded(own), notes=((MODE_KEY, "embedded"),))
    planned = plan_gguf(checkpoint, folder / f"{name.replace(':', '-')}.gguf", gguf, rounding)
    planned.notices.extend(_describe_template(own, mode))
    parts = _make_parts(checkpoint, options)
    text = modelfile.write(_list_commands(planned.plan, parts))
    _check_modelfile(text)
    return OllamaModel(
        folder, name, planned, text, _make_readme(name, parts, [f.path.name for f in planned.plan.files]), parts
    )


def choose_embedded(template: str | None) -> str:
    """The Jinja template for the GGUF of the embedded mode: the checkpoint's own, but ours instead of the published
    one, in which llama.cpp finds a method where an array of a tool's parameters has no items, and fails.
    """
    if template is None or template.strip() == CHAT_TEMPLATE.read_text("utf-8").strip():
        return chat_template()
    return _METHOD.sub(r"\1 (\3 in \2 and \2[\3]) \4", template)


def _describe_template(own: str | None, mode: Mode) -> list[str]:
    """What becomes of the checkpoint's own chat template."""
    what = "the checkpoint's own chat template"
    if not speaks_harmony(own):
        if mode == "embedded":
            return [f"{what} is not Harmony: it goes into the GGUF, and no TEMPLATE is written"]
        return [f"{what} is not Harmony, and TEMPLATE is: the model may not know it (--template embedded)"]
    if mode == "harmony" and own is not None and own != CHAT_TEMPLATE.read_text("utf-8"):
        return [f"{what} differs from the published one, which TEMPLATE follows (--template embedded uses its own)"]
    return []


def name_model(path: Path) -> str:
    """What Ollama may call a model: `My Tune-00001-of-00002.gguf` -> `my-tune`."""
    stem = path.stem if path.is_file() else path.resolve().name
    return re.sub(r"[^a-z0-9._-]+", "-", re.sub(r"-\d{5}-of-\d{5}$", "", stem).lower()).strip("-.") or "gpt-oss"


def _make_parts(checkpoint: Checkpoint, options: OllamaOptions) -> dict[str, Any]:
    """The Modelfile's content by the names that Ollama's API and its store use."""
    if not 1 <= options.num_ctx <= checkpoint.config.max_position_embeddings:
        raise UsageError(
            "--num-ctx is out of range",
            expected=f"1 to {checkpoint.config.max_position_embeddings}",
            got=options.num_ctx,
        )
    harmony = options.mode == "harmony"
    parameters: dict[str, Any] = {"num_ctx": options.num_ctx, **SAMPLING} | ({"stop": list(STOPS)} if harmony else {})
    return {
        "template": read_harmony_template() if harmony else None,
        "system": options.system,
        "parameters": parameters,
        "license": checkpoint.license_text,
        "requires": options.requires,
        "messages": [{"role": role, "content": text} for role, text in options.messages],
    }


def _list_commands(plan: Plan, parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [("FROM", f"./{file.path.name}") for file in plan.files]
    lines += [(name.upper(), parts[name]) for name in ("requires", "template") if parts[name]]
    for key, value in parts["parameters"].items():
        lines += [(f"PARAMETER {key}", f"{v}") for v in (value if isinstance(value, list) else [value])]
    lines += [("SYSTEM", parts["system"])] if parts["system"] is not None else []
    lines += [(f"MESSAGE {m['role']}", m["content"]) for m in parts["messages"]]
    return lines + ([("LICENSE", parts["license"])] if parts["license"] else [])


def _check_modelfile(text: str) -> None:
    """The text against our own rules; the model files are not there yet."""
    errors = [
        f for f in check_text(text, Path("/nowhere")) if not f.warning and not f.rule.startswith(("from-", "gguf"))
    ]
    if errors:
        raise BadInput(f"the Modelfile would be wrong: line {errors[0].line}: {errors[0].rule}: {errors[0].what}")


def finish(model: OllamaModel) -> None:
    """Writes Modelfile and README beside the finished model files and checks the folder. Raises CheckFailed."""
    for file, text in (("Modelfile", model.modelfile), ("README.md", model.readme)):
        write_text(model.folder / file, text)
    errors = [f for f in check_text(model.modelfile, model.folder) if not f.warning]
    if errors:
        raise CheckFailed(f"line {errors[0].line}: {errors[0].rule}: {errors[0].what}", file=model.folder / "Modelfile")


def write_text(path: Path, text: str) -> None:
    """All of a small file or nothing."""
    part = path.with_name(f".{path.name.removeprefix('.')}.part")
    with part.open("w", encoding="utf-8", newline="") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


def make_request(model: OllamaModel, digests: Mapping[str, str]) -> dict[str, Any]:
    """The body of /api/create that says what the Modelfile says; `digests` are sha256:... by file name."""
    said = {k: v for k, v in model.parts.items() if v not in (None, [], {})}
    return {"model": model.name, "files": dict(digests), **said}


_MODES = {
    "harmony": (
        "`TEMPLATE` is our Go template for Harmony, and Ollama's harmony parser reads reasoning, answers and "
        "tool calls."
    ),
    "embedded": (
        "There is no `TEMPLATE`: Ollama's llama-server uses the Harmony template inside the GGUF.\n\n"
        "In this mode Ollama parses the answers of `/api/chat` only (and of `/v1/chat/completions`):\n"
        '`ollama run NAME "..."` and `/api/generate` print raw Harmony, and a tool needs a `parameters` object.\n'
        "Where that is in the way, export with `--template harmony`."
    ),
}
_CHECKED = (
    "The files were checked against Ollama's grammar and rules and are made for\n"
    "llama.cpp's llama-server, which Ollama runs."
)


def describe_use(model: OllamaModel) -> str:
    """A command line that talks to the model, once it is in Ollama."""
    return _show_uses(model.name, harmony=model.parts["template"] is not None)[0]


def _show_uses(name: str, harmony: bool) -> list[str]:
    chat = json.dumps(
        {"model": name, "messages": [{"role": "user", "content": "Hello"}], "think": "low", "stream": False}
    )
    run = [f'ollama run {name} --think=low "Hello"'] if harmony else []
    return [*run, f"curl http://localhost:11434/api/chat -d '{chat}'"]


def _make_readme(name: str, parts: Mapping[str, Any], files: Sequence[str]) -> str:
    mode = "harmony" if parts["template"] else "embedded"
    needs = f"Ollama {parts['requires']} or later" if parts["requires"] else "Ollama 0.30 or later"
    uses = "\n".join(f"    {line}" for line in _show_uses(name, mode == "harmony"))
    return f"""# {name}

A gpt-oss model for {needs}: {", ".join(f"`{f}`" for f in files)} and a `Modelfile`. {_MODES[mode]}

    gptoss-convert check-modelfile Modelfile
    ollama create {name} -f Modelfile
{uses}

Think levels: `low`, `medium` (default), `high`. {_CHECKED}
"""
