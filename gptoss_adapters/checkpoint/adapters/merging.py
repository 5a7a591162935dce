"""A base on which adapters are put, one after the other: its tensors, what is added to them, what replaces them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gptoss_adapters.checkpoint.adapters.deltas import Deltas, Pair
from gptoss_adapters.checkpoint.adapters.finding import AdapterFiles
from gptoss_adapters.checkpoint.adapters.targets import Target
from gptoss_adapters.checkpoint.checkpoint import Checkpoint, TensorInfo
from gptoss_adapters.checkpoint.files import Array, MappedFile, Source
from gptoss_adapters.errors import BadInput

VOCABULARY = ("embedding.weight", "unembedding.weight")
_NO_FIT = "the shapes do not fit the base"


@dataclasses.dataclass(frozen=True, slots=True)
class Factors:
    """A [r, in] and B [out, r] of one module, or with an axis of experts in front, of length 1 where all share it;
    `sources` name them in errors.
    """

    a: Array
    b: Array
    factor: float
    sources: tuple[Source, Source]

    @property
    def shapes(self) -> str:
        return f"{list(self.a.shape)}, {list(self.b.shape)}"


class Merging:
    """See the module's text. `words`: what each adapter did, and what there is to know about it."""

    def __init__(self, base: Checkpoint) -> None:
        self.base = base
        self.config = base.config
        self.tensors: dict[str, TensorInfo] = dict(base.tensors)
        self.stored: dict[Path, MappedFile] = dict(base.stored)
        self.deltas: dict[str, Deltas] = {}
        self.tokenizer: Path | None = None  # the folder whose tokenizer knows the tokens that an adapter added
        self.words: list[str] = []
        self._whole: dict[str, Path] = {}  # canonical name -> the adapter that brings the whole tensor

    def add(self, adapter: AdapterFiles, target: Target, factors: Factors) -> None:
        """Adds factor * B A to what the target says. Raises BadInput for shapes that do not fit."""
        shape = self._refuse_whole(adapter, target.canonical)
        out, width = shape[-2] // target.rows.step, shape[-1]
        b = factors.b
        lead = shape[:-2] if target.expert is None else ()
        fits = factors.a.ndim == b.ndim == 2 + len(lead)
        if target.piece is not None and fits:
            first, stop, total = target.piece
            fits = len(b) == total
            b = b[first:stop]
        if fits and lead:
            fits = factors.a.shape[0] in (1, *lead) and b.shape[0] in (1, *lead)
        if not fits or factors.a.shape[-1] != width or b.shape[-2] != out or factors.a.shape[-2] != b.shape[-1]:
            axes = f"{lead[0]}, " if lead else ""
            raise adapter.fail(
                _NO_FIT,
                factors.sources[0],
                expected=f"A [{axes}r, {width}], B [{axes}{out}, r]",
                got=factors.shapes,
            )
        delta = self.deltas_of(target.canonical)
        if not lead:
            delta.add(target.expert, Pair(factors.a, b, factors.factor, target.rows))
            return
        for e in range(lead[0]):
            one_a, one_b = (m[e if len(m) > 1 else 0] for m in (factors.a, b))
            delta.add(e, Pair(one_a, one_b, factors.factor, target.rows))

    def deltas_of(self, canonical: str) -> Deltas:
        return self.deltas.setdefault(canonical, Deltas(self.tensors[canonical].shape))

    def put_row(self, adapter: AdapterFiles, canonical: str, row: int, values: Array) -> None:
        """One row of a tensor becomes `values`. Raises BadInput when an earlier adapter put it too."""
        self._refuse_whole(adapter, canonical)
        delta = self.deltas_of(canonical)
        if row in delta.anew:
            raise adapter.fail(f"token {row} is trained by an earlier adapter too: which row is meant is unclear")
        delta.put(row, values)

    def replace(self, adapter: AdapterFiles, info: TensorInfo) -> None:
        """The whole tensor comes from the adapter. Raises BadInput when an earlier one changed it."""
        if info.name in self.deltas or info.name in self._whole:
            raise adapter.fail(
                f"{info.name} is saved whole here, and changed by an earlier adapter: their sum is not defined",
                info.sources[0],
                hint="merge one of them first",
            )
        self.tensors[info.name] = info
        self._whole[info.name] = adapter.path

    def _refuse_whole(self, adapter: AdapterFiles, canonical: str) -> tuple[int, ...]:
        """The tensor's shape. Raises BadInput when another adapter brought it whole."""
        if self._whole.get(canonical, adapter.path) != adapter.path:
            raise adapter.fail(
                f"{canonical} is saved whole by an earlier adapter and changed here: their sum is not defined",
                hint="merge one of them first",
            )
        return self.tensors[canonical].shape

    def resize_vocabulary(self, adapter: AdapterFiles) -> int:
        """The vocabulary's size follows the tensors that the adapter brought; the new one, or 0 if it stayed.

        Raises BadInput when embedding and head differ.
        """
        rows = [self.tensors[name].shape[0] for name in VOCABULARY]
        if rows[0] != rows[1]:
            raise adapter.fail(
                "the adapter resizes the vocabulary of one of embedding and head only",
                expected="both saved, with as many rows",
                got=f"{rows[0]} and {rows[1]} rows",
                hint="save both: modules_to_save with embed_tokens and lm_head",
            )
        if rows[0] == self.config.vocab_size:
            return 0
        self.config = dataclasses.replace(self.config, vocab_size=rows[0])
        folder = adapter.path if adapter.path.is_dir() else adapter.path.parent
        if (folder / "tokenizer.json").is_file():
            self.tokenizer = folder
        return rows[0]

    def summarise(self, adapter: AdapterFiles, pairs: int, scale: float, notes: list[str]) -> None:
        """Raises BadInput for an adapter that holds nothing."""
        whole = sum(path == adapter.path for path in self._whole.values())
        if not (pairs or whole or notes):
            raise BadInput("the adapter holds no tensor", file=adapter.path)
        replaced = f", {whole} tensors replaced" if whole else ""
        factor = "" if scale == 1 else f" times {scale:g}"
        self.words.append(f"{adapter.path} merged{factor}: {pairs} pairs{replaced}, every tensor used")
        self.words += [f"{adapter.path}: {note}" for note in notes]
