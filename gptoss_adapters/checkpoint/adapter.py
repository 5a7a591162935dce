"""One LoRA adapter as PEFT and Unsloth save it: its tensors, and where each belongs.

Read are linear layers of attention, router and head, the embedding, experts as fused three-axis parameters
(`target_parameters`) or one by one, and modules saved whole. Every tensor is used or named in an error. Where the files
leave two readings with equal shapes, the caller is asked: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptoss_adapters.checkpoint.adapter_config import CONFIG, MERGE_ELSEWHERE, PEFT, AdapterConfig
from gptoss_adapters.checkpoint.checkpoint import Checkpoint, TensorInfo
from gptoss_adapters.checkpoint.deltas import Deltas, Pair
from gptoss_adapters.checkpoint.dtypes import DENSE
from gptoss_adapters.checkpoint.files import Array, Source, locate, read_json
from gptoss_adapters.checkpoint.formats.safetensors import SafetensorsFile
from gptoss_adapters.checkpoint.storage import ALL, GATE, UP, Part, Rows
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import GptOssConfig

WEIGHTS = "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt")
_PREFIX = re.compile(r"^(?:base_model\.)?(?:model\.)?(?=model\.|lm_head|layers\.|embed_tokens)")
_LORA = re.compile(r"(.+?)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?$")
_FUSED = re.compile(r"(?:model\.)?layers\.(\d+)\.mlp\.experts(\.base_layer)?")
_NO_PLACE = "a tensor of the adapter has no place in this model"
_NO_FIT = "the shapes do not fit the base"


@dataclass(frozen=True, slots=True)
class _Target:
    """What a module of the adapter adapts: a canonical tensor, or one expert's, or some rows of it."""

    canonical: str
    expert: int | None = None
    rows: Rows = ALL


class Adapter:
    """An adapter's folder, opened for a base. `replaced`: modules that it saves whole. Raises BadInput for what is not
    a sum with B A.
    """

    def __init__(self, path: Path, base: Checkpoint, scale: float, order: str | None) -> None:
        from gptoss_adapters.checkpoint.formats.hub import resolve_path

        folder = resolve_path(path)
        folder = folder if folder.is_dir() else folder.parent
        root = folder.resolve()
        if not (folder / WEIGHTS).exists() and any((folder / name).exists() for name in _PICKLES):
            raise BadInput(
                "is a pickle adapter, which can run code when loaded",
                file=folder / "adapter_model.bin",
                hint="save it as safetensors",
            )
        values = read_json(folder / CONFIG, locate(root, CONFIG))
        self.file = SafetensorsFile(folder / WEIGHTS, locate(root, WEIGHTS))
        self.config = AdapterConfig(values, folder, self.file.path)
        self.config.check()
        self.path = folder
        self.base = base
        self.scale = scale
        self.order = order
        self.targets = _list_targets(base.config)
        self.replaced: dict[str, TensorInfo] = {}
        self.used = 0

    def add_to(self, deltas: dict[str, Deltas]) -> None:
        """Puts every pair where it belongs. Raises BadInput for a tensor that has no place."""
        for module, a, b in self._pair_up():
            fused = _FUSED.fullmatch(module)
            if fused:
                self._add_fused(int(fused[1]), bool(fused[2]), module, a, b, deltas)
            else:
                self._add_linear(module, a, b, deltas)
            self.used += 2
        if not self.used and not self.replaced:
            raise BadInput("the adapter holds no tensor", file=self.file.path)

    def summarise(self) -> str:
        whole = f", {len(self.replaced)} modules replaced" if self.replaced else ""
        factor = "" if self.scale == 1 else f" times {self.scale:g}"
        return f"{self.path} merged{factor}: {self.used // 2} pairs{whole}, every tensor used"

    def _pair_up(self) -> Iterator[tuple[str, Source, Source]]:
        """A and B of each module; what else there is are modules saved whole."""
        pairs: dict[str, dict[str, Source]] = {}
        for name, source in self.file.tensors.items():
            match = _LORA.fullmatch(name)
            if match:
                pairs.setdefault(_name_module(match[1]), {})[match[3]] = source
            else:
                self._replace(name, source)
        for module, found in pairs.items():
            if found.keys() != {"A", "B"}:
                one = next(iter(found.values()))
                raise self.config.fail(
                    "the other half of the pair is missing", tensor=one.name, expected="lora_A and lora_B"
                )
            for source in found.values():
                if source.dtype not in DENSE or len(source.shape) != 2:
                    raise self.config.fail(
                        "is not a matrix of numbers", tensor=source.name, got=f"{source.dtype} {list(source.shape)}"
                    )
            yield module, found["A"], found["B"]

    def _replace(self, name: str, source: Source) -> None:
        """modules_to_save: a whole tensor of the base, trained; PEFT also saves the embedding layers that it adapts."""
        saved = name.replace(".modules_to_save.default", "").replace(".modules_to_save", "")
        plain = _name_module(saved.replace(".base_layer.", "."))
        target = self.targets.get(plain.removesuffix(".weight")) if plain.endswith(".weight") else None
        if target is None or target.expert is not None:
            raise self.config.fail(_NO_PLACE, tensor=name, hint=f"nothing is dropped silently: {MERGE_ELSEWHERE}")
        shape = self.base.tensors[target.canonical].shape
        if source.shape != shape or source.dtype not in DENSE:
            raise self.config.fail(
                "the saved module does not fit the base", tensor=name, expected=list(shape), got=list(source.shape)
            )
        self.replaced[target.canonical] = TensorInfo(
            target.canonical, source.shape, source.dtype.lower(), source.nbytes, (source,), (Part(source.name),)
        )

    def _add_linear(self, module: str, a: Source, b: Source, deltas: dict[str, Deltas]) -> None:
        target = self.targets.get(module)
        if target is None:
            raise self.config.fail(_NO_PLACE, tensor=a.name, hint="is it for another base?")
        shape = self.base.tensors[target.canonical].shape
        out, width = shape[-2] // target.rows.step, shape[-1]
        embedding = ".lora_embedding_" in a.name
        want_in, want_out = (out, width) if embedding else (width, out)
        if a.shape[1] != want_in or b.shape[0] != want_out or a.shape[0] != b.shape[1]:
            raise self.config.fail(
                _NO_FIT,
                tensor=a.name,
                expected=f"A [r, {want_in}], B [{want_out}, r]",
                got=f"{list(a.shape)}, {list(b.shape)}",
            )
        left, right = self._read(a), self._read(b)
        if embedding:  # stored for the transposed table
            left, right = right.T, left.T
        pair = Pair(left, right, self.config.factor(module, a.shape[0], a.name, self.scale), target.rows)
        self._deltas_of(target.canonical, deltas).add(target.expert, pair)

    def _add_fused(self, layer: int, inner: bool, module: str, a: Source, b: Source, deltas: dict[str, Deltas]) -> None:
        """`target_parameters`: the inner wrapper is gate_up_proj, the outer down_proj; a single one is what the
        config says.
        """
        which = self._tell_parameter(layer, inner, module)
        canonical = f"layers.{layer}.experts.{which}.weight"
        if canonical not in self.base.tensors:
            layers = self.base.config.num_hidden_layers
            raise self.config.fail("the layer is not one of this model", tensor=a.name, expected=f"{layers} layers")
        experts, out, width = self.base.tensors[canonical].shape
        if a.shape[0] % experts or a.shape[0] != b.shape[1]:
            raise self.config.fail(
                "the number of experts does not fit the base",
                tensor=a.name,
                expected=f"a multiple of {experts}, the same in A and B",
                got=f"{a.shape[0]}, {b.shape[1]}",
            )
        rank = a.shape[0] // experts
        swapped = self._is_swapped(layer, a, b, out, width)
        by_expert = self._tell_order(a, experts, rank) == PEFT
        left = self._read(a).reshape(experts, rank, -1)
        columns = self._read(b)
        if by_expert:
            right = columns.reshape(-1, rank, experts).transpose(2, 0, 1)
        else:
            right = columns.reshape(-1, experts, rank).transpose(1, 0, 2)
        parameter = f"{module.removesuffix('.base_layer')}.{which}_proj"
        factor = self.config.factor(parameter, rank, a.name, self.scale)
        delta = self._deltas_of(canonical, deltas)
        for e in range(experts):
            matrices = (right[e].T, left[e].T) if swapped else (left[e], right[e])
            delta.add(e, Pair(*matrices, factor))

    def _tell_parameter(self, layer: int, inner: bool, module: str) -> str:
        if self._find_inner(layer, "lora_"):
            return "gate_up" if inner else "down"
        return self.config.tell_parameter(f"{module}.lora_A.weight")

    def _find_inner(self, layer: int, suffix: str) -> Source | None:
        """A tensor of the inner wrapper, which is there when both parameters are adapted."""
        inner = re.compile(rf"\blayers\.{layer}\.mlp\.experts\.base_layer\.{suffix}")
        return next((source for name, source in self.file.tensors.items() if inner.search(name)), None)

    def _is_swapped(self, layer: int, a: Source, b: Source, out: int, width: int) -> bool:
        """Whether A indexes the output axis: a pair of PEFT and transformers that disagreed about `is_transposed`.

        Shapes say it, for down_proj those of gate_up_proj when hidden and intermediate size are equal.
        """
        ends = (a.shape[1], b.shape[0])
        plain, swapped = ends == (width, out), ends == (out, width)
        if not plain and not swapped:
            raise self.config.fail(
                _NO_FIT,
                tensor=a.name,
                expected=f"A [E r, {width}], B [{out}, r E]",
                got=f"{list(a.shape)}, {list(b.shape)}",
            )
        if plain != swapped:
            return swapped
        other = self._find_inner(layer, "lora_A")
        both = 2 * self.base.config.intermediate_size
        if other is None or self.base.config.hidden_size == both:
            raise self.config.fail(
                "which axis is which cannot be told: hidden and intermediate size are equal and there is no "
                "adapter of gate_up_proj",
                tensor=a.name,
                hint=MERGE_ELSEWHERE,
            )
        return bool(other.shape[1] == both)

    def _tell_order(self, a: Source, experts: int, rank: int) -> str:
        if rank == 1 or experts == 1:
            return PEFT
        return self.order or self.config.tell_order(a.name)

    def _deltas_of(self, canonical: str, deltas: dict[str, Deltas]) -> Deltas:
        return deltas.setdefault(canonical, Deltas(self.base.tensors[canonical].shape))

    def _read(self, source: Source) -> Array:
        """The matrix as it is mapped, once it was seen to be finite."""
        data = self.file.data[source.offset : source.offset + source.nbytes]
        values: Array = data.view(DENSE[source.dtype]).reshape(source.shape)
        if not np.isfinite(values).all():
            raise self.config.fail("holds NaN or Inf", tensor=source.name)
        return values


def _name_module(name: str) -> str:
    """A module's name as the whole model has it, without the wrappers' prefixes."""
    plain = _PREFIX.sub("", name)
    return f"model.{plain}" if plain.startswith(("layers.", "embed_tokens")) else plain


def _list_targets(config: GptOssConfig) -> Mapping[str, _Target]:
    """What each module name, as adapters spell it without prefix, adapts."""
    out = {
        "model.embed_tokens": _Target("embedding.weight"),
        "lm_head": _Target("unembedding.weight"),
        "model.norm": _Target("norm.weight"),
    }
    for n in range(config.num_hidden_layers):
        at, ours = f"model.layers.{n}", f"layers.{n}"
        for which in "qkvo":
            for attention in ("self_attn", "attn"):
                out[f"{at}.{attention}.{which}_proj"] = _Target(f"{ours}.{which}_proj.weight")
        for linear in ("", ".linear"):
            out[f"{at}.mlp.router{linear}"] = _Target(f"{ours}.router.weight")
        out[f"{at}.input_layernorm"] = _Target(f"{ours}.attn_norm.weight")
        out[f"{at}.post_attention_layernorm"] = _Target(f"{ours}.mlp_norm.weight")
        for e in range(config.num_experts):
            for which in ("gate_up", "down"):
                for name in (f"{which}_projs.{e}", f"{e}.{which}_proj"):
                    out[f"{at}.mlp.experts.{name}"] = _Target(f"{ours}.experts.{which}.weight", e)
            for rows in (GATE, UP):
                out[f"{at}.mlp.experts.{e}.{rows.word}_proj"] = _Target(f"{ours}.experts.gate_up.weight", e, rows)
    return out
