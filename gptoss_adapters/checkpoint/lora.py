"""LoRA adapters merged into a checkpoint: a view whose tensors are base + scale * B A, computed when they are read.

    >>> c = with_adapters(open_checkpoint("gpt-oss-20b"), [("my-adapter", 1.0)])
    >>> c.array("layers.3.q_proj.weight")                      # merged in float32, rounded once to bf16

Reads what PEFT and Unsloth save: linear layers of attention, router and head, the embedding, experts as fused
three-axis parameters (`target_parameters`) or one by one, and modules saved whole. Every tensor of the adapter is used
or named in an error. Where the
files leave two readings with equal shapes, the caller is asked: nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.checkpoint import DENSE, Checkpoint, TensorInfo
from gptoss_adapters.checkpoint.files import Array, Source, locate, read_json
from gptoss_adapters.checkpoint.formats.safetensors import SafetensorsFile
from gptoss_adapters.errors import BadInput, UsageError

F32 = npt.NDArray[np.float32]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT, UNSLOTH = "peft", "unsloth"
_GRANULE = (
    512  # rows of a delta that are computed at once, at fixed places: the same numbers whatever rows are asked for
)
_PREFIX = re.compile(r"^(?:base_model\.)?(?:model\.)?(?=model\.|lm_head|layers\.|embed_tokens)")
_LORA = re.compile(r"(.+?)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?$")
_REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "biases of its own (lora_bias)",
    "fan_in_fan_out": "fan_in_fan_out",
    "use_qalora": "QALoRA",
}


@dataclass(frozen=True, slots=True)
class _Pair:
    """A [r, in] and B [out, r] of one matrix as stored, with the factor alpha / r * scale: canonical [out, in] +=
    factor * B A.

    `half`: B has the gate or the up rows only.
    """

    a: Array
    b: Array
    factor: float
    half: str = ""

    def add_to(self, total: npt.NDArray[np.float64], first: int, stop: int) -> None:
        """Adds rows first..stop (of all rows, an even run) to `total`."""
        rows = slice(first // 2, stop // 2) if self.half else slice(first, stop)
        into = total[layouts.place(self.half)[1]] if self.half else total
        into += self.factor * (self.b[rows].astype(np.float64) @ self.a.astype(np.float64))


_kept = threading.local()  # the granule that each thread is at


class Deltas:
    """What adapters add to one canonical tensor, as rows [prod(leading), in]; `pairs`: by expert, or under None."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.pairs = shape, dict[int | None, list[_Pair]]()
        self.per_matrix = shape[-2]

    def add(self, expert: int | None, pair: _Pair) -> None:
        self.pairs.setdefault(expert, []).append(pair)

    def rows(self, begin: int, end: int) -> F32:
        """Rows begin..end, float32: computed in float64 and rounded once."""
        out = np.full((end - begin, self.shape[-1]), -0.0, np.float32)  # x + -0 is x, also for x = -0
        at = begin
        while at < end:
            expert, row = divmod(at, self.per_matrix)
            first = row // _GRANULE * _GRANULE
            stop = min(first + _GRANULE, self.per_matrix)
            n = min(stop - row, end - at)
            granule = self._granule(expert if len(self.shape) == 3 else None, first, stop)
            if granule is not None:
                out[at - begin : at - begin + n] = granule[row - first : row - first + n]
            at += n
        return out

    def _granule(self, expert: int | None, first: int, stop: int) -> F32 | None:
        pairs = self.pairs.get(expert)
        if not pairs:
            return None
        if getattr(_kept, "at", None) != (id(self), expert, first):
            total = np.full((stop - first, self.shape[-1]), -0.0)
            for pair in pairs:
                pair.add_to(total, first, stop)
            _kept.granule, _kept.at = total.astype(np.float32), (id(self), expert, first)
        granule: F32 = _kept.granule
        return granule


def parse_adapter(text: str) -> tuple[str, float]:
    """`ADAPTER[:SCALE]` of the command line. Raises UsageError for a scale that is not a finite number."""
    path, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        value = float(scale)
    except ValueError:
        if "/" in scale or "\\" in scale:
            return text, 1.0
        raise UsageError(
            "--lora takes ADAPTER or ADAPTER:SCALE", expected="a number after the colon", got=text
        ) from None
    if not np.isfinite(value):
        raise UsageError("--lora: the scale must be finite", got=text)
    return path, value


def with_adapters(
    base: Checkpoint, adapters: Sequence[tuple[str | Path, float]], order: str | None = None
) -> Checkpoint:
    """A view of `base` with the adapters added. `order` ("peft", "unsloth"): of fused expert adapters that do not say.

    Raises BadInput naming the adapter's file and tensor: another base, a rank or shape that does not fit, a tensor that
    has no place.
    """
    deltas: dict[str, Deltas] = {}
    tensors, stored, words = dict(base.tensors), dict(base.stored), list[str]()
    for path, scale in adapters:
        adapter = _Adapter(Path(path), base, scale, order)
        adapter.add_to(deltas)
        tensors |= adapter.replaced
        stored[adapter.file.path] = adapter.file
        words.append(adapter.summary())
    merged = dataclasses.replace(base, tensors=tensors, stored=stored)
    added = tensors | {name: _merged(tensors[name]) for name in deltas}
    return dataclasses.replace(
        base,
        tensors=added,
        stored=stored,
        deltas=deltas,
        base=merged if adapters else None,
        adapters=words,
        oddities=[*base.oddities, *words],
    )


def _merged(info: TensorInfo) -> TensorInfo:
    """bf16 is what fine-tunes are saved in; a base that is stored wider stays so."""
    encoding = "f32" if info.encoding in ("f32", "f16") else "bf16"
    return TensorInfo(
        info.name,
        info.shape,
        encoding,
        math.prod(info.shape) * DENSE[encoding.upper()].itemsize,
        info.sources[:1],
        ("merged",),
    )


class _Adapter:
    """One adapter: its config, its tensors, and where each belongs."""

    def __init__(self, path: Path, base: Checkpoint, scale: float, order: str | None) -> None:
        from gptoss_adapters.checkpoint.formats.hub import resolve_path

        folder = resolve_path(path)
        folder = folder if folder.is_dir() else folder.parent
        root = folder.resolve()
        self.path, self.base, self.scale, self.order = folder, base, scale, order
        if not (folder / WEIGHTS).exists() and any(
            (folder / n).exists() for n in ("adapter_model.bin", "adapter_model.pt")
        ):
            raise BadInput(
                "is a pickle adapter, which can run code when loaded",
                file=folder / "adapter_model.bin",
                hint="save it as safetensors",
            )
        self.config = read_json(folder / CONFIG, locate(root, CONFIG))
        self.file = SafetensorsFile(folder / WEIGHTS, locate(root, WEIGHTS))
        self.sizes = base.config
        self._check_config()
        self.names = _targets(base.config)
        self.replaced: dict[str, TensorInfo] = {}
        self.used = 0

    # config
    # ---------------------------------------------------------------------------------------------------------------

    def _fail(
        self, what: str, tensor: str | None = None, expected: object = None, got: object = None, hint: str | None = None
    ) -> BadInput:
        return BadInput(
            what,
            file=self.file.path if tensor else self.path / CONFIG,
            tensor=tensor,
            expected=expected,
            got=got,
            hint=hint,
        )

    def _check_config(self) -> None:
        kind = self.config.get("peft_type", "LORA")
        if kind != "LORA":
            raise self._fail(
                "peft_type is not LoRA", expected="LORA", got=kind, hint="merge it with the tool that made it"
            )
        for field, what in _REFUSED.items():
            if self.config.get(field):
                raise self._fail(
                    f"the adapter uses {what}, which is not a sum with B A", hint="merge it with the tool that made it"
                )
        if self.config.get("bias", "none") != "none":
            raise self._fail(
                "the adapter trained biases of the base",
                expected="bias none",
                got=self.config["bias"],
                hint="merge it with the tool that made it",
            )

    def _factor(self, module: str, rank: int, tensor: str) -> float:
        """alpha / r (or / sqrt(r)) of a module, by the config's patterns, times the user's scale."""
        r = self._pattern("rank_pattern", module, self.config.get("r"))
        alpha = self._pattern("alpha_pattern", module, self.config.get("lora_alpha"))
        if not isinstance(r, int) or isinstance(r, bool) or r < 1 or not isinstance(alpha, int | float):
            raise self._fail("r must be a positive integer and lora_alpha a number", got=f"{r}, {alpha}")
        if r != rank:
            raise self._fail("the rank is not the one that the config says", tensor=tensor, expected=r, got=rank)
        return float(self.scale * alpha / (np.sqrt(r) if self.config.get("use_rslora") else r))

    def _pattern(self, field: str, module: str, default: Any) -> Any:
        patterns = self.config.get(field) or {}
        if not isinstance(patterns, dict):
            raise self._fail(f"{field} must be an object", got=patterns)
        for pattern, value in patterns.items():
            try:
                if re.fullmatch(rf"(?:.*\.)?({pattern})", module):
                    return value
            except re.error:
                raise self._fail(f"{field} holds what is not a pattern", got=pattern) from None
        return default

    # tensors
    # --------------------------------------------------------------------------------------------------------------

    def add_to(self, deltas: dict[str, Deltas]) -> None:
        """Puts every pair where it belongs. Raises BadInput for a tensor that has no place."""
        pairs: dict[str, dict[str, Source]] = {}
        for name, source in self.file.tensors.items():
            match = _LORA.fullmatch(name)
            if match:
                pairs.setdefault(_module(match[1]), {})[match[3]] = source
            else:
                self._replace(name, source)
        for module, found in pairs.items():
            if found.keys() != {"A", "B"}:
                one = next(iter(found.values()))
                raise self._fail("the other half of the pair is missing", tensor=one.name, expected="lora_A and lora_B")
            for source in found.values():
                if source.dtype not in DENSE or len(source.shape) != 2:
                    raise self._fail(
                        "is not a matrix of numbers", tensor=source.name, got=f"{source.dtype} {list(source.shape)}"
                    )
            self._place(module, found["A"], found["B"], deltas)
            self.used += 2
        if not self.used and not self.replaced:
            raise BadInput("the adapter holds no tensor", file=self.file.path)

    def _replace(self, name: str, source: Source) -> None:
        """modules_to_save: a whole tensor of the base, trained; PEFT also saves the embedding layers that it adapts."""
        plain = _module(
            name.replace(".modules_to_save.default", "").replace(".modules_to_save", "").replace(".base_layer.", ".")
        )
        target = self.names.get(plain.removesuffix(".weight")) if plain.endswith(".weight") else None
        canonical = target[0] if target and target[1] is None else None
        if canonical is None:
            raise self._fail(
                "a tensor of the adapter has no place in this model",
                tensor=name,
                hint="nothing is dropped silently: merge it with the tool that made it",
            )
        if source.shape != self.base.tensors[canonical].shape or source.dtype not in DENSE:
            raise self._fail(
                "the saved module does not fit the base",
                tensor=name,
                expected=list(self.base.tensors[canonical].shape),
                got=list(source.shape),
            )
        self.replaced[canonical] = TensorInfo(
            canonical, source.shape, source.dtype.lower(), source.nbytes, (source,), ("whole",)
        )

    def _place(self, module: str, a: Source, b: Source, deltas: dict[str, Deltas]) -> None:
        fused = re.fullmatch(r"(?:model\.)?layers\.(\d+)\.mlp\.experts(\.base_layer)?", module)
        if fused:
            self._fused_experts(int(fused[1]), bool(fused[2]), module, a, b, deltas)
            return
        target = self.names.get(module)
        if target is None:
            raise self._fail(
                "a tensor of the adapter has no place in this model", tensor=a.name, hint="is it for another base?"
            )
        canonical, expert, half = target
        shape = self.base.tensors[canonical].shape
        out, width = shape[-2] // (2 if half else 1), shape[-1]
        embedding = ".lora_embedding_" in a.name
        want_in, want_out = (out, width) if embedding else (width, out)
        if a.shape[1] != want_in or b.shape[0] != want_out or a.shape[0] != b.shape[1]:
            raise self._fail(
                "the shapes do not fit the base",
                tensor=a.name,
                expected=f"A [r, {want_in}], B [{want_out}, r]",
                got=f"{list(a.shape)}, {list(b.shape)}",
            )
        left, right = self._read(a), self._read(b)
        if embedding:  # stored for the transposed table
            left, right = right.T, left.T
        self._deltas(deltas, canonical).add(expert, _Pair(left, right, self._factor(module, a.shape[0], a.name), half))

    def _fused_experts(
        self, layer: int, inner: bool, module: str, a: Source, b: Source, deltas: dict[str, Deltas]
    ) -> None:
        """`target_parameters`: the inner wrapper is gate_up_proj, the outer down_proj; a single one is what the
        config says.
        """
        which = self._which_parameter(layer, inner, module)
        canonical = f"layers.{layer}.experts.{which}.weight"
        if canonical not in self.base.tensors:
            raise self._fail(
                "the layer is not one of this model", tensor=a.name, expected=f"{self.sizes.num_hidden_layers} layers"
            )
        experts, out, width = self.base.tensors[canonical].shape
        if a.shape[0] % experts or a.shape[0] != b.shape[1]:
            raise self._fail(
                "the number of experts does not fit the base",
                tensor=a.name,
                expected=f"a multiple of {experts}, the same in A and B",
                got=f"{a.shape[0]}, {b.shape[1]}",
            )
        rank = a.shape[0] // experts
        swapped = self._orientation(layer, canonical, a, b, out, width)
        order = self._column_order(a, experts, rank)
        left = self._read(a).reshape(experts, rank, -1)
        columns = self._read(b)
        right = (
            columns.reshape(-1, rank, experts).transpose(2, 0, 1)
            if order == PEFT
            else columns.reshape(-1, experts, rank).transpose(1, 0, 2)
        )
        factor = self._factor(f"{module.removesuffix('.base_layer')}.{which}_proj", rank, a.name)
        delta = self._deltas(deltas, canonical)
        for e in range(experts):
            pair = (right[e].T, left[e].T) if swapped else (left[e], right[e])
            delta.add(e, _Pair(*pair, factor))

    def _which_parameter(self, layer: int, inner: bool, module: str) -> str:
        names = [
            t.removesuffix(".base_layer")
            for t in self.file.tensors
            if re.search(rf"\blayers\.{layer}\.mlp\.experts\.base_layer\.lora_", t)
        ]
        if names:
            return "gate_up" if inner else "down"
        said = {
            w
            for t in self.config.get("target_parameters") or ()
            for w in ("gate_up", "down")
            if str(t).endswith(f"{w}_proj")
        }
        if len(said) != 1:
            raise self._fail(
                "which of the experts' parameters it is for is not said",
                tensor=f"{module}.lora_A.weight",
                expected="target_parameters with gate_up_proj or down_proj",
                got=self.config.get("target_parameters"),
            )
        return said.pop()

    def _orientation(self, layer: int, canonical: str, a: Source, b: Source, out: int, width: int) -> bool:
        """Whether A indexes the output axis: a pair of PEFT and transformers that disagreed about `is_transposed`.

        Shapes say it, for down_proj those of gate_up_proj when hidden and intermediate size are equal.
        """
        plain, turned = (a.shape[1], b.shape[0]) == (width, out), (a.shape[1], b.shape[0]) == (out, width)
        if not plain and not turned:
            raise self._fail(
                "the shapes do not fit the base",
                tensor=a.name,
                expected=f"A [E r, {width}], B [{out}, r E]",
                got=f"{list(a.shape)}, {list(b.shape)}",
            )
        if plain != turned:
            return turned
        other = next(
            (
                s
                for n, s in self.file.tensors.items()
                if re.search(rf"\blayers\.{layer}\.mlp\.experts\.base_layer\.lora_A", n)
            ),
            None,
        )
        h, both = self.sizes.hidden_size, 2 * self.sizes.intermediate_size
        if other is None or h == both:
            raise self._fail(
                "which axis is which cannot be told: hidden and intermediate size are equal and there is no "
                "adapter of gate_up_proj",
                tensor=a.name,
                hint="merge it with the tool that made it",
            )
        return bool(other.shape[1] == both)

    def _column_order(self, a: Source, experts: int, rank: int) -> str:
        """PEFT lets the expert run fastest in B's columns, Unsloth the rank; the shapes are the same."""
        if rank == 1 or experts == 1:
            return PEFT
        if self.order:
            return self.order
        mapping = self.config.get("auto_mapping")
        unsloth = isinstance(mapping, dict) and bool(mapping.get("unsloth_fixed"))
        hinted = "unsloth" in str(self.config.get("base_model_name_or_path", "")).lower()
        if unsloth:
            return UNSLOTH
        if self.config.get("peft_version") and not hinted:
            return PEFT
        raise self._fail(
            "PEFT and Unsloth order the columns of a fused expert adapter differently, and this one does not say "
            "who made it",
            tensor=a.name,
            hint="add --lora-order peft or --lora-order unsloth",
        )

    def _deltas(self, deltas: dict[str, Deltas], canonical: str) -> Deltas:
        return deltas.setdefault(canonical, Deltas(self.base.tensors[canonical].shape))

    def _read(self, source: Source) -> Array:
        """The matrix as it is mapped, once it was seen to be finite."""
        values: Array = (
            self.file.data[source.offset : source.offset + source.nbytes]
            .view(DENSE[source.dtype])
            .reshape(source.shape)
        )
        if not np.isfinite(values).all():
            raise self._fail("holds NaN or Inf", tensor=source.name)
        return values

    def summary(self) -> str:
        whole = f", {len(self.replaced)} modules replaced" if self.replaced else ""
        factor = "" if self.scale == 1 else f" times {self.scale:g}"
        return f"{self.path} merged{factor}: {self.used // 2} pairs{whole}, every tensor used"


def _module(name: str) -> str:
    """A module's name as the whole model has it, without the wrappers' prefixes."""
    plain = _PREFIX.sub("", name)
    return f"model.{plain}" if plain.startswith(("layers.", "embed_tokens")) else plain


def _targets(config: Any) -> Mapping[str, tuple[str, int | None, str]]:
    """Module name, as adapters spell it without prefix -> canonical tensor, expert, and half (of gate_up) that it
    adapts.
    """
    out: dict[str, tuple[str, int | None, str]] = {
        "model.embed_tokens": ("embedding.weight", None, ""),
        "lm_head": ("unembedding.weight", None, ""),
        "model.norm": ("norm.weight", None, ""),
    }
    for n in range(config.num_hidden_layers):
        at, ours = f"model.layers.{n}", f"layers.{n}"
        for which in "qkvo":
            out |= {
                f"{at}.{attention}.{which}_proj": (f"{ours}.{which}_proj.weight", None, "")
                for attention in ("self_attn", "attn")
            }
        out |= {f"{at}.mlp.router{linear}": (f"{ours}.router.weight", None, "") for linear in ("", ".linear")}
        out |= {
            f"{at}.input_layernorm": (f"{ours}.attn_norm.weight", None, ""),
            f"{at}.post_attention_layernorm": (f"{ours}.mlp_norm.weight", None, ""),
        }
        for e in range(config.num_experts):
            for which in ("gate_up", "down"):
                for name in (f"{which}_projs.{e}", f"{e}.{which}_proj"):
                    out[f"{at}.mlp.experts.{name}"] = (f"{ours}.experts.{which}.weight", e, "")
            for half in ("gate", "up"):
                out[f"{at}.mlp.experts.{e}.{half}_proj"] = (f"{ours}.experts.gate_up.weight", e, half)
    return out
