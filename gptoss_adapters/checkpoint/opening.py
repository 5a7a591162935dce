"""`open_checkpoint`: tells what a path holds and opens it.

Only the named folder is read, nothing is unpickled, and no code that a config names is ever imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptoss_adapters import spellings
from gptoss_adapters.checkpoint import companions, layouts
from gptoss_adapters.checkpoint.adapters.finding import is_adapter
from gptoss_adapters.checkpoint.checkpoint import Checkpoint, TensorInfo
from gptoss_adapters.checkpoint.dtypes import DENSE
from gptoss_adapters.checkpoint.files import (
    PICKLE_SUFFIXES,
    MappedFile,
    Source,
    following_links,
    locate,
    read_json,
    refuse_pickle,
)
from gptoss_adapters.checkpoint.formats import safetensors
from gptoss_adapters.checkpoint.kinds import SAFETENSORS_KINDS, Kind
from gptoss_adapters.checkpoint.quantisation import explain_quantised
from gptoss_adapters.checkpoint.resolving import USE_LORA, resolve
from gptoss_adapters.errors import BadInput, UsageError
from gptoss_adapters.spec import GptOssConfig
from gptoss_adapters.spellings.hf_keys import name_odd_keys
from gptoss_adapters.spellings.relatives import refuse_relatives

METAL_MAGIC = b"GPT-"
_NO_WEIGHTS = (".json", ".jinja", ".md", ".txt", ".yaml", ".yml", ".py", ".modelfile")
_ACTIVATION_SCALES = (".input_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale", ".prob_scale")
_ATTENTION_SCALES = re.compile(r"\.self_attn\.(?:attn\.)?(?:[kvq]|prob)_scale$")


def open_checkpoint(
    path: str | Path, *, revision: str | None = None, strict: bool = True, follow_links: bool = False
) -> Checkpoint:
    """A checkpoint from a file (safetensors, GGUF, Metal's model.bin), a folder, a model of Ollama's store
    (`ollama:gpt-oss:20b`), or a Hub repository id `owner/name` (at `revision`).

    Names, shapes and dtypes are checked against the config before anything is read; tensor contents are not
    (`Checkpoint.check`). Raises BadInput, naming file and tensor. `strict=False`, for inspection, turns a config with
    `auto_map` into an oddity. `follow_links` takes files that lie elsewhere by a link.
    """
    with following_links(follow_links):
        return _open(path, revision, strict)


def _open(path: str | Path, revision: str | None, strict: bool) -> Checkpoint:
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
    if where.suffix.lower() in _NO_WEIGHTS:
        return _open_folder(_find_folder(where), strict)
    with_magic = MappedFile(where, where.resolve()).data[:4].tobytes()
    if with_magic == b"GGUF":
        from gptoss_adapters.checkpoint.formats.gguf import open_gguf

        return open_gguf(where)
    if with_magic == METAL_MAGIC:
        from gptoss_adapters.checkpoint.formats.metal import open_metal

        return open_metal(where)
    refuse_pickle(where, where.resolve())
    root = where.parent.resolve()
    alone = safetensors.Shards([safetensors.SafetensorsFile(root / where.name, where.resolve())])
    return _open_safetensors(where, root, alone, strict)


def _find_folder(file: Path) -> Path:
    """The folder that is meant by its index or its config. Raises BadInput for another file without weights."""
    if file.name in (safetensors.INDEX, "config.json"):
        return file.parent.resolve()
    raise BadInput(
        "is no file of weights", file=file, expected="a safetensors or GGUF file, or a folder", hint="name the folder"
    )


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
    return _open_safetensors(root, root, safetensors.open_folder(root), strict)


def _only_gguf(root: Path, ggufs: list[Path]) -> Path:
    first = [p for p in ggufs if "-of-" not in p.name or "-00001-of-" in p.name]
    if len(first) != 1:
        raise BadInput(
            "which GGUF file is meant is unclear", file=root, got=", ".join(p.name for p in ggufs), hint="name the file"
        )
    return locate(root, first[0].name)


def _open_safetensors(path: Path, root: Path, shards: safetensors.Shards, strict: bool) -> Checkpoint:
    raw = read_json(root / "config.json", locate(root, "config.json"))
    files, odd = shards.files, list(shards.odd)
    odd += _refuse_code(raw, root / "config.json", strict)
    config, spelling = read_config(raw, str(root / "config.json"))
    sources: dict[str, Source] = {name: s for f in files for name, s in f.tensors.items()}
    left: list[str] = []
    named = path if path.is_file() or len(files) > 1 else files[0].path
    try:
        kind, tensors = _resolve(named, config, sources, shards.orphans, odd, left)
    except BadInput as e:
        raise explain_quantised(e, raw, root, sources) from None
    odd += _odd_config(raw, kind, spelling) + [
        f"{p.name}: a pickle file, not read" for p in sorted(root.iterdir()) if p.suffix in PICKLE_SUFFIXES
    ]
    unheeded = tuple(f"config.json: {what}" for what in name_odd_keys(raw)) if spelling == "hf" else ()
    unheeded += tuple(left)
    there = companions.find_companions(root)
    templates = companions.read_templates(root, there)
    card, card_odd = companions.read_model_card(root)
    odd += [*templates.odd, *card_odd]
    if "tokenizer.json" not in there:
        odd.append("no tokenizer.json in the folder")
    return Checkpoint(
        kind,
        path,
        config,
        {f.path: f for f in files},
        tensors,
        config_file=root / "config.json",
        hf_config=raw if spelling == "hf" else {},
        tokenizer_files={name: there[name] for name in companions.TOKENIZER_FILES if name in there},
        chat_template=templates.default,
        chat_templates=templates.named,
        generation_config=companions.read_generation_config(root, there),
        license_text=companions.read_license(root, there),
        model_card=card,
        oddities=(*unheeded, *odd),
        unheeded=unheeded,
    )


def open_weights(files: Sequence[safetensors.SafetensorsFile], config: GptOssConfig) -> Checkpoint:
    """The checkpoint whose weights lie in these files, and whose config somebody else has read.

    Nothing beside the files is looked at: no config.json, no tokenizer, no adapter. Raises BadInput, as
    `open_checkpoint` does.
    """
    odd: list[str] = []
    safetensors.drop_doubles(files, odd)
    path = files[0].path.parent if len(files) > 1 else files[0].path
    sources = {name: source for file in files for name, source in file.tensors.items()}
    kind, tensors = _resolve(path, config, sources, frozenset(), odd, [])
    return Checkpoint(kind, path, config, {file.path: file for file in files}, tensors, oddities=tuple(odd))


def _resolve(
    path: Path,
    config: GptOssConfig,
    sources: dict[str, Source],
    orphans: frozenset[str],
    odd: list[str],
    left: list[str],
) -> tuple[Kind, dict[str, TensorInfo]]:
    """The kind, and the canonical tensors; what is unusual goes into `odd`, tensors that
    no index names into `left`.
    """
    try:
        kind = layouts.tell_kind(sources, config, SAFETENSORS_KINDS)
    except BadInput as e:
        raise BadInput(e.what, file=path, got=e.got) from None
    if kind is Kind.HF_BF16 and is_stored_out_in(sources, config):
        kind = Kind.HF_OUT_IN
        odd.append("the experts are stored [out, in], as transformers 4.55 left them: other programs expect [in, out]")
    sources = _without_activation_scales(kind, sources, odd)
    sources = _without_orphans(kind, config, sources, orphans, left)
    return kind, resolve(kind, path, config, sources, tuple(DENSE))


def _without_orphans(
    kind: Kind, config: GptOssConfig, sources: dict[str, Source], orphans: frozenset[str], left: list[str]
) -> dict[str, Source]:
    """Without tensors that neither the index names nor the model needs; one that it needs is read all the same."""
    if not orphans:
        return sources
    wanted = layouts.stored(kind, config, sources)
    for name in sorted(orphans & sources.keys()):
        kept = "read all the same" if name in wanted else "no part of the model, and left out"
        left.append(f"{sources[name].file.name}: {name} is not in {safetensors.INDEX}: {kept}")
    return {name: source for name, source in sources.items() if name not in orphans or name in wanted}


def is_stored_out_in(sources: Mapping[str, Source], config: GptOssConfig) -> bool:
    """Dense fused experts as [E, 2I, H]. Only gate_up tells: down_proj has the same shape either way when H is I."""
    gate_up = sources.get(layouts.parts(Kind.HF_OUT_IN, config)["layers.0.experts.gate_up.weight"][0].name)
    h, i = config.hidden_size, config.intermediate_size
    return gate_up is not None and h != 2 * i and gate_up.shape[1:] == (2 * i, h)


def _without_activation_scales(kind: Kind, sources: dict[str, Source], odd: list[str]) -> dict[str, Source]:
    """Quark and llm-compressor store scales for quantising activations and the KV cache; they are no weights, and
    are left out.
    """
    own = kind.packed and kind.per_expert
    extra = [name for name in sources if (own and name.endswith(_ACTIVATION_SCALES)) or _ATTENTION_SCALES.search(name)]
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
    refuse_relatives(raw, file)
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
