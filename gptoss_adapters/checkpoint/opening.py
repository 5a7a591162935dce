"""`open_checkpoint`: tells what a path holds and opens it.

Only the named folder is read, nothing is unpickled, and no code that a config names is ever imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss_adapters import spellings
from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.adapters.finding import USE_LORA, is_adapter
from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.dtypes import DENSE
from gptoss_adapters.checkpoint.files import PICKLE_SUFFIXES, MappedFile, Source, locate, read_json, refuse_pickle
from gptoss_adapters.checkpoint.formats import safetensors
from gptoss_adapters.checkpoint.kinds import SAFETENSORS_KINDS, Kind
from gptoss_adapters.checkpoint.resolving import resolve
from gptoss_adapters.errors import BadInput, UsageError
from gptoss_adapters.spec import GptOssConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
METAL_MAGIC = b"GPT-"
_MAX_TEXT = 10_000_000
_ACTIVATION_SCALES = (".input_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale", ".prob_scale")


def open_checkpoint(path: str | Path, *, revision: str | None = None, strict: bool = True) -> Checkpoint:
    """A checkpoint from a file (safetensors, GGUF, Metal's model.bin), a folder, a model of Ollama's store
    (`ollama:gpt-oss:20b`), or a Hub repository id `owner/name` (at `revision`).

    Names, shapes and dtypes are checked against the config before anything is read; tensor contents are not
    (`Checkpoint.check`). Raises BadInput, naming file and tensor. `strict=False`, for inspection, turns a config with
    `auto_map` into an oddity.
    """
    from gptoss_adapters.checkpoint.formats.hub import resolve_path
    from gptoss_adapters.checkpoint.formats.ollama import PREFIX, find_in_store

    in_store = str(path).startswith(PREFIX)
    if in_store and revision is not None:
        raise UsageError(f"{path} is local: a revision is for a Hub repository", got=revision)
    where = find_in_store(str(path)) if in_store else resolve_path(path, revision=revision)
    if is_adapter(where):
        raise BadInput("is a LoRA adapter, not a model", file=where, hint=USE_LORA)
    if where.is_dir():
        return _open_folder(where.resolve(), strict)
    with_magic = MappedFile(where, where.resolve()).data[:4].tobytes()
    if with_magic == b"GGUF":
        from gptoss_adapters.checkpoint.formats.gguf import open_gguf

        return open_gguf(where)
    if with_magic == METAL_MAGIC:
        from gptoss_adapters.checkpoint.formats.metal import open_metal

        return open_metal(where)
    refuse_pickle(where, where.resolve())
    root = where.parent.resolve()
    return _open_safetensors(where, root, [safetensors.SafetensorsFile(root / where.name, where.resolve())], [], strict)


def _open_folder(root: Path, strict: bool) -> Checkpoint:
    if not any(root.glob("*.safetensors")) and not (root / safetensors.INDEX).exists():
        if ggufs := sorted(root.glob("*.gguf")):
            from gptoss_adapters.checkpoint.formats.gguf import open_gguf

            return open_gguf(_only_gguf(root, ggufs))
        model = root / "model.bin"
        if model.is_file() and MappedFile(model, locate(root, model.name)).data[:4].tobytes() == METAL_MAGIC:
            from gptoss_adapters.checkpoint.formats.metal import open_metal

            return open_metal(locate(root, model.name))
        for file in sorted(root.iterdir()):
            if file.suffix in PICKLE_SUFFIXES:
                refuse_pickle(file)
    files, odd = safetensors.open_folder(root)
    return _open_safetensors(root, root, files, odd, strict)


def _only_gguf(root: Path, ggufs: list[Path]) -> Path:
    first = [p for p in ggufs if "-of-" not in p.name or "-00001-of-" in p.name]
    if len(first) != 1:
        raise BadInput(
            "which GGUF file is meant is unclear", file=root, got=", ".join(p.name for p in ggufs), hint="name the file"
        )
    return locate(root, first[0].name)


def _open_safetensors(
    path: Path, root: Path, files: list[safetensors.SafetensorsFile], odd: list[str], strict: bool
) -> Checkpoint:
    raw = read_json(root / "config.json", locate(root, "config.json"))
    odd += _refuse_code(raw, root / "config.json", strict)
    config, spelling = read_config(raw, str(root / "config.json"))
    sources: dict[str, Source] = {name: s for f in files for name, s in f.tensors.items()}
    try:
        kind = layouts.tell_kind(sources, config, SAFETENSORS_KINDS)
    except BadInput as e:
        raise BadInput(e.what, file=path, got=e.got) from None
    if kind is Kind.HF_BF16 and _stored_out_in(sources, config):
        kind = Kind.HF_OUT_IN
        odd.append("the experts are stored [out, in], as transformers 4.55 left them: other programs expect [in, out]")
    sources = _without_activation_scales(kind, sources, odd)
    tensors = resolve(kind, path if path.is_file() or len(files) > 1 else files[0].path, config, sources, tuple(DENSE))
    odd += _odd_config(raw, kind, spelling) + [
        f"{p.name}: a pickle file, not read" for p in sorted(root.iterdir()) if p.suffix in PICKLE_SUFFIXES
    ]
    there = _find_companions(root)
    if "tokenizer.json" not in there:
        odd.append("no tokenizer.json in the folder")
    return Checkpoint(
        kind,
        path,
        config,
        {f.path: f for f in files},
        tensors,
        config_file=root / "config.json",
        tokenizer_files={name: there[name] for name in TOKENIZER_FILES if name in there},
        chat_template=_read_chat_template(root, there),
        generation_config=_read_generation_config(root, there),
        license_text=next((read_text(root / name, there[name]) for name in _LICENSES if name in there), None),
        oddities=tuple(odd),
    )


def _stored_out_in(sources: Mapping[str, Source], config: GptOssConfig) -> bool:
    """Dense fused experts as [E, 2I, H]. Only gate_up tells: down_proj has the same shape either way when H is I."""
    gate_up = sources.get(layouts.parts(Kind.HF_OUT_IN, config)["layers.0.experts.gate_up.weight"][0].name)
    h, i = config.hidden_size, config.intermediate_size
    return gate_up is not None and h != 2 * i and gate_up.shape[1:] == (2 * i, h)


def _without_activation_scales(kind: Kind, sources: dict[str, Source], odd: list[str]) -> dict[str, Source]:
    """Quark and llm-compressor store scales for quantising activations and the KV cache; they are no weights, and
    are left out.
    """
    if not (kind.packed and kind.per_expert):
        return sources
    extra = [name for name in sources if name.endswith(_ACTIVATION_SCALES)]
    if extra:
        odd.append(
            f"{len(extra)} scales of activations or of the KV cache (such as {extra[0]}) are not part of the "
            "weights and are left out"
        )
    return {name: s for name, s in sources.items() if name not in set(extra)}


def read_config(raw: Mapping[str, Any], file: str) -> tuple[GptOssConfig, str]:
    """The config and its spelling ("openai" or "hf"), told by its keys."""
    if "num_experts" in raw and "rope_scaling_factor" in raw and "model_type" not in raw:
        return spellings.from_openai(raw, file), "openai"
    if raw.get("model_type", "gpt_oss") != "gpt_oss":
        raise BadInput(
            "config field model_type is not one of gpt-oss", file=file, expected="gpt_oss", got=raw["model_type"]
        )
    return spellings.from_hf(raw, file), "hf"


def _refuse_code(raw: Mapping[str, Any], file: Path, strict: bool) -> list[str]:
    if "auto_map" not in raw:
        return []
    what = "config field auto_map names code to run with the checkpoint"
    if strict:
        raise BadInput(what, file=file, hint="gpt-oss needs none: remove the field if you trust the weights")
    return [f"config.json: {what}"]


def _odd_config(raw: Mapping[str, Any], kind: Kind, spelling: str) -> list[str]:
    """What other programs may stumble over. Tensor names decide, whatever the config says."""
    odd = []
    quantised = raw.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    if not kind.packed and quantised is not None:
        odd.append(f"config.json states quant_method {method}, but the experts are stored dense: the entry is stale")
    if kind.per_expert and not kind.packed:
        odd.append(
            "every expert is stored as layers of its own, which llama.cpp's converter and transformers do not read"
        )
    if kind is Kind.HF_MXFP4 and method != "mxfp4":
        odd.append(
            f"the experts are stored as MXFP4, but config.json states quant_method {method}: transformers and "
            "llama.cpp's converter go by that"
        )
    if (kind is Kind.OPENAI) != (spelling == "openai"):
        odd.append(
            f"config.json is in {'OpenAI' if spelling == 'openai' else 'Hugging Face'} spelling, the tensors are "
            f"of kind {kind}"
        )
    return odd


def _find_companions(root: Path) -> dict[str, Path]:
    """Tokenizer files, chat template, generation config and licence that lie in the folder, by name."""
    names = (*TOKENIZER_FILES, *_LICENSES, "generation_config.json")
    return {name: locate(root, name) for name in names if (root / name).exists()}


def _read_generation_config(root: Path, there: Mapping[str, Path]) -> dict[str, Any] | None:
    name = "generation_config.json"
    return read_json(root / name, there[name]) if name in there else None


def _read_chat_template(root: Path, there: Mapping[str, Path]) -> str | None:
    if "chat_template.jinja" in there:
        return read_text(root / "chat_template.jinja", there["chat_template.jinja"])
    if "tokenizer_config.json" in there:
        template = read_json(root / "tokenizer_config.json", there["tokenizer_config.json"]).get("chat_template")
        return template if isinstance(template, str) else None
    return None


def read_text(path: Path, real: Path) -> str:
    """A companion file of a checkpoint. Raises BadInput for one that is not UTF-8, or no text of sensible size."""
    data = MappedFile(path, real).data
    if data.size > _MAX_TEXT:
        raise BadInput("the text file is too large", file=path, expected=f"at most {_MAX_TEXT} bytes", got=data.size)
    try:
        return data.tobytes().decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput("the text is not UTF-8", file=path) from None
