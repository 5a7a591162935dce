"""Any gpt-oss checkpoint -> the MLX layout that mlx-lm loads: a plan for the streaming writer.

MXFP4 moves as bytes: blocks seen as 32-bit words, the scales as they are, gate and up apart. Other weights are
bfloat16.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from gptoss_adapters import spellings
from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.formats.shards import Contents, plan_files
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.layouts import Stored
from gptoss_adapters.checkpoint.storage import SCALES, WORDS
from gptoss_adapters.checkpoint.writing.plan import Plan, PlannedFile, Tensor
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import FULL, MXFP4_BLOCK, SLIDING, SWIGLU_ALPHA, SWIGLU_LIMIT
from gptoss_converters.export_plan import ExportPlan, refuse_differing_layers
from gptoss_converters.rows.quantised import Quantised, Regrouped, Rounding
from gptoss_converters.rows.readers import Readers
from gptoss_converters.rows.rows import Encoded
from gptoss_converters.to_hf import HfOptions, Made, companions

QUANTISATION = {"group_size": MXFP4_BLOCK, "bits": 4, "mode": "mxfp4"}
FIXED = {
    "swiglu_limit": SWIGLU_LIMIT,
    "swiglu_alpha": SWIGLU_ALPHA,
}  # what mlx-lm computes with, whatever the config says


def plan_mlx(checkpoint: Checkpoint, folder: Path, options: HfOptions, rounding: Rounding | None = None) -> ExportPlan:
    """Every file and tensor, from headers alone. Raises BadInput for what mlx-lm would compute otherwise."""
    rounding, config = rounding or Rounding(), checkpoint.config
    file = checkpoint.config_file or checkpoint.path
    refuse_differing_layers(config, file, "mlx-lm")
    for name, value in FIXED.items():
        if getattr(config, name) != value:
            raise BadInput(
                f"config field {name}: mlx-lm knows one value only",
                file=file,
                expected=value,
                got=getattr(config, name),
            )
    for kind in (SLIDING, FULL):
        if kind not in config.layer_types:
            raise BadInput("config field layer_types: mlx-lm wants layers of both types", file=file, got=f"no {kind}")
    stored = layouts.stored(Kind.MLX, config)
    made = list(_fill_tensors(checkpoint, stored, rounding))
    how = {name: words for _, names, words in made for name in names}
    tensors = {name: Tensor(name, spec.dtype, spec.shape, spec.nbytes, how[name]) for name, spec in stored.items()}
    extra, notices = companions(checkpoint, dataclasses.replace(options, kind=Kind.MLX))
    sources = {path: f.stamp for path, f in (checkpoint.stored | rounding.files).items()}
    facts = {"kind": Kind.MLX, "rounding": rounding.rule, "adapters": checkpoint.adapters}
    contents = Contents(Kind.MLX, config, tensors, [(fill, names) for fill, names, _ in made])
    plan = plan_files(
        contents,
        folder,
        extra,
        max_shard_bytes=options.max_shard_bytes,
        sources=sources,
        options=facts,
    )
    if config.uses_yarn and not config.yarn_truncate:
        notices.append(
            "YaRN bounds are not rounded in this model; mlx-lm rounds them, so long contexts differ slightly"
        )
    lossy = sorted({t.encoding for t in checkpoint.tensors.values() if t.encoding in ("f16", "q8_0")})
    notices += [f"tensors that are stored as {kind} are rounded to bfloat16" for kind in lossy]
    return ExportPlan(_with_config(plan, checkpoint), notices)


def _fill_tensors(checkpoint: Checkpoint, stored: dict[str, Stored], rounding: Rounding) -> Iterator[Made]:
    readers = Readers(checkpoint)
    scales = {(s.canonical, s.part.rows): name for name, s in stored.items() if s.storage == SCALES}
    for name, spec in stored.items():
        canonical, rows = spec.canonical, spec.part.rows
        info = checkpoint.tensors[canonical]
        words = f"{canonical}{rows.word and f', {rows.word} rows'}"
        if spec.storage == WORDS:
            pair = (name, scales[canonical, rows])
            if info.encoding == "mxfp4":
                yield Regrouped(readers.packed(canonical, rows), ggml=False), pair, f"{words}: the same bytes"
                continue
            if canonical not in rounding.quantised:
                rounding.quantised.append(canonical)
            fill = Quantised(
                readers.values(canonical, rows), canonical, rows, info.shape, info.sources[0], rounding, ggml=False
            )
            yield fill, pair, f"{words}: {info.encoding} to mxfp4 by rule {rounding.rule}"
        elif spec.storage != SCALES:
            yield Encoded(readers.values(canonical, rows), "bf16", info.sources[0]), (name,), words


def _with_config(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """config.json as mlx-lm's own converter leaves it: the published one, and how the experts are quantised."""
    config = spellings.to_hf(checkpoint.config, mxfp4=False, source=checkpoint.hf_config) | {
        "quantization": QUANTISATION,
        "quantization_config": QUANTISATION,
    }
    text = (json.dumps(dict(sorted(config.items())), indent=2) + "\n").encode()
    files = tuple(
        PlannedFile(f.path, text, (), (), len(text)) if f.path.name == "config.json" else f for f in plan.files
    )
    return dataclasses.replace(plan, files=files)
