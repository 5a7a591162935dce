"""The table of layouts, asked: which tensors a model has, and how a kind of checkpoint stores them."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.storage import Part, Shape, Storage
from gptoss_adapters.checkpoint.table import TABLE, Parts, Row
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import GptOssConfig

_ONE_EXPERT = re.compile(r"\.experts\.(?:\w+_projs\.)?\d+\.")
_WRITTEN_BYTES = {"U8": 1, "U32": 4, "BF16": 2}


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor that a kind stores: its shape (row-major; MXFP4 in GGUF counts values) and the canonical tensors
    in it, with their parts.
    """

    name: str
    shape: Shape
    terms: tuple[tuple[str, Part], ...]  # (canonical name, its part here), in the order in which they lie

    @property
    def canonical(self) -> str:
        """The first, or only, canonical tensor in it."""
        return self.terms[0][0]

    @property
    def part(self) -> Part:
        """Its part."""
        return self.terms[0][1]

    @property
    def storage(self) -> Storage:
        return self.part.storage

    @property
    def dtype(self) -> str:
        """The dtype that exporters write: numbers as bfloat16."""
        return self.storage.dtypes[0] if self.storage.dtypes else "BF16"

    @property
    def nbytes(self) -> int:
        """Of what exporters write."""
        return math.prod(self.shape) * _WRITTEN_BYTES[self.dtype]


def canonical(config: GptOssConfig) -> dict[str, Shape]:
    """Every canonical tensor of a model and its shape, in forward order."""
    sizes = _sizes(config)
    return {
        row.name.format(n=n): tuple(config.experts_of(n) if a == "E" else sizes[a] for a in row.axes)
        for row, n in _fill_layers(config)
    }


def parts(kind: str, config: GptOssConfig, present: Container[str] = ()) -> dict[str, Parts]:
    """Canonical name -> the stored parts that make it up in a checkpoint of this kind; `present`: the names that are
    there, by which the other form of some tensors is told.
    """
    out = {}
    for row, n in _fill_layers(config):
        other = row.other.get(kind, ())
        chosen = other if other and other[0].name.format(n=n) in present else row.parts[kind]
        out[row.name.format(n=n)] = _expand(chosen, n, config)
    return out


def _expand(given: Parts, n: int, config: GptOssConfig) -> Parts:
    """With the layer, and expert by expert where a part is one expert's."""
    if "{e}" not in given[0].name:
        return tuple(Part(p.name.format(n=n), p.rows, p.storage) for p in given)
    return tuple(
        Part(p.name.format(n=n, e=e), p.rows, p.storage, e) for e in range(config.experts_of(n)) for p in given
    )


def stored(kind: str, config: GptOssConfig, present: Container[str] = ()) -> dict[str, Stored]:
    """Every tensor that a checkpoint of this kind stores, in forward order, with what of the canonical tensors is
    in it.
    """
    shapes, out = canonical(config), dict[str, Stored]()
    for name, share in parts(kind, config, present).items():
        for part in share:
            before = out[part.name].terms if part.name in out else ()
            out[part.name] = Stored(part.name, part.shape(shapes[name], config), (*before, (name, part)))
    return out


def tell_kind(names: Iterable[str], config: GptOssConfig, kinds: Iterable[Kind] = tuple(Kind)) -> Kind:
    """The kind that explains most of the names, of several the one in whose own form most are; of two with the same
    names the first. Raises BadInput when none explains any.
    """
    present = set(names)
    if not any(_ONE_EXPERT.search(name) for name in present):
        kinds = [kind for kind in kinds if not kind.per_expert]
    found = {kind: len(present & stored(kind, config, present).keys()) for kind in kinds}
    most = max(found.values())
    equal = [kind for kind in found if found[kind] == most]
    best = equal[0] if len(equal) == 1 else max(equal, key=lambda k: len(present & stored(k, config).keys()))
    if not most:
        raise BadInput("no tensor name is one of gpt-oss", got=", ".join(sorted(present)[:3]))
    return best


def find_kind(names: Iterable[str], config: GptOssConfig, kinds: Sequence[Kind]) -> Kind | None:
    """The first kind all of whose experts' tensors are among the names, whatever else is; None if there is none. Their
    own form counts before the others that some tensors may have.
    """
    present = set(names)
    own = (kind for kind in kinds if holds_experts(kind, config, present))
    other = (kind for kind in kinds if holds_experts(kind, config, present, present))
    return next(own, None) or next(other, None)


def holds_experts(kind: Kind, config: GptOssConfig, present: Container[str], told: Container[str] = ()) -> bool:
    """Whether all experts' tensors of the kind are present; `told`: see `parts`."""
    return all(
        part.name in present
        for name, share in parts(kind, config, told).items()
        if ".experts." in name
        for part in share
    )


def _fill_layers(config: GptOssConfig) -> Iterable[tuple[Row, int]]:
    """The table's rows in forward order: before the layers, each layer, after them."""
    split = [i for i, row in enumerate(TABLE) if "{n}" in row.name]
    first, last = split[0], split[-1] + 1
    yield from ((row, 0) for row in TABLE[:first])
    yield from ((row, n) for n in range(config.num_hidden_layers) for row in TABLE[first:last])
    yield from ((row, 0) for row in TABLE[last:])


def _sizes(c: GptOssConfig) -> dict[str, int]:
    return {
        "V": c.vocab_size,
        "H": c.hidden_size,
        "I": c.intermediate_size,
        "2I": 2 * c.intermediate_size,
        "Q": c.q_rows,
        "KV": c.kv_rows,
        "NQ": c.num_attention_heads,
    }
