"""A LoRA adapter as PEFT, Unsloth and Tinker save it, put on a base.

Read are linear layers of attention, router and head, the embedding, experts as fused parameters
(`target_parameters`), one by one or with an axis of their own; modules saved whole, trained biases, single rows of the
vocabulary. Every tensor is used or named in an error. Where the files leave two readings with equal shapes, the caller
is asked: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gptoss_adapters.checkpoint.adapters.finding import AdapterFiles
from gptoss_adapters.checkpoint.adapters.fused_experts import FUSED, FusedExperts
from gptoss_adapters.checkpoint.adapters.merging import VOCABULARY, Factors, Merging
from gptoss_adapters.checkpoint.adapters.peft_config import MERGE_ELSEWHERE, AdapterConfig, explain_left_out
from gptoss_adapters.checkpoint.adapters.targets import Target, list_parameters, list_targets, name_module
from gptoss_adapters.checkpoint.checkpoint import TensorInfo
from gptoss_adapters.checkpoint.dtypes import DENSE
from gptoss_adapters.checkpoint.files import Array, Source
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.layouts import parts

_LORA = re.compile(r"(.+?)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?$")
_TOKENS = re.compile(r"(.+?)\.token_adapter\.trainable_tokens_(delta|original)(?:\.default)?$")
_WRAPPER = re.compile(r"\.(?:base_layer|token_adapter\.base_layer|modules_to_save(?:\.default)?)\b")
_BY_PEFT = re.compile(r"model\.layers\.\d+\.self_attn\.[qkvo]_proj|model\.embed_tokens|lm_head")
"""Linear layers that PEFT itself finds in transformers' model, so that its config says which of them it adapts."""
_NO_PLACE = "a tensor of the adapter has no place in this model"


def put_peft(files: AdapterFiles, merging: Merging, scale: float, order: str | None) -> None:
    """Adds an adapter to `merging`. `order` ("peft", "unsloth"): of fused experts, where the files do not say.

    Raises BadInput naming the file and the tensor or key.
    """
    adapter = _PeftAdapter(files, merging, scale, order)
    adapter.put_whole()
    adapter.put_rows()
    adapter.put_pairs()
    merging.summarise(files, adapter.pairs, scale, adapter.notes)


class _PeftAdapter:
    """One adapter on its way into a base."""

    def __init__(self, files: AdapterFiles, merging: Merging, scale: float, order: str | None) -> None:
        self.files, self.merging, self.scale = files, merging, scale
        self.config = AdapterConfig(files)
        self.targets = list_targets(merging.config)
        self.pairs = 0
        self.notes: list[str] = []
        self.lora: dict[str, dict[str, Source]] = {}  # module -> "A", "B"
        self.rows: dict[str, Source] = {}
        self.whole: dict[str, Source] = {}  # parameter -> the tensor that replaces it
        for name, source in files.tensors.items():
            self._sort(name, source)
        self.experts = FusedExperts(files, self.config, merging, order, self.lora)

    def _sort(self, name: str, source: Source) -> None:
        """By what the tensor is for."""
        if match := _LORA.fullmatch(name):
            self.lora.setdefault(name_module(match[1]), {})[match[3]] = source
        elif match := _TOKENS.fullmatch(name):
            if match[2] == "delta":  # the other one holds the rows as they were
                self.rows[name_module(match[1])] = source
        elif ".original_module." not in name:  # the module as it was
            plain = name_module(_WRAPPER.sub("", name))
            if name.count(".modules_to_save") == 0 or plain not in self.whole:
                self.whole[plain] = source  # where PEFT saved it twice, it loads the one under the plain name

    # Whole tensors ---------------------------------------------------------------------------------------------------

    def put_whole(self) -> None:
        """modules_to_save, trained biases, and the embeddings that PEFT saves by itself."""
        known = list_parameters(self.merging.config)
        stored = parts(Kind.HF_BF16, self.merging.config)
        for name, source in self.whole.items():
            canonical = known.get(_as_transformers(name))
            if canonical is None:
                raise self.files.fail(_NO_PLACE, source, hint=f"nothing is dropped silently: {MERGE_ELSEWHERE}")
            part = stored[canonical][0]
            shape = self.merging.tensors[canonical].shape
            if canonical in VOCABULARY:
                shape = (*source.shape[:1], *shape[1:])
            expected = part.shape(shape, self.merging.config)
            if source.shape != expected or source.dtype not in DENSE:
                raise self.files.fail(
                    "the saved module does not fit the base",
                    source,
                    expected=list(expected),
                    got=f"{source.dtype} {list(source.shape)}",
                )
            self.files.read(source)
            info = TensorInfo(canonical, shape, source.dtype.lower(), source.nbytes, (source,), (part,))
            self.merging.replace(self.files, info)
        before = self.merging.config.vocab_size
        if rows := self.merging.resize_vocabulary(self.files):
            self.notes.append(self._describe_vocabulary(before, rows))

    def _describe_vocabulary(self, before: int, rows: int) -> str:
        if self.merging.tokenizer:
            return f"the vocabulary goes from {before} to {rows} rows; the tokenizer is the adapter's"
        return f"the vocabulary goes from {before} to {rows} rows, and no tokenizer.json came with the adapter"

    def put_rows(self) -> None:
        """trainable_token_indices: the rows as they are now, in the order of the config's list."""
        for module, source in self.rows.items():
            targets = self.targets.get(module)
            if targets is None or targets[0].canonical not in VOCABULARY:
                raise self.files.fail(_NO_PLACE, source, hint="is it for another base?")
            canonical = targets[0].canonical
            size, width = self.merging.tensors[canonical].shape
            tokens = self.config.tell_tokens(module)
            if source.shape != (len(tokens), width):
                raise self.files.fail(
                    "the trained rows do not fit trainable_token_indices",
                    source,
                    expected=[len(tokens), width],
                    got=list(source.shape),
                )
            if max(tokens, default=0) >= size:
                raise self.files.fail("a trained token is not in the vocabulary", source, f"below {size}", max(tokens))
            for token, values in zip(tokens, self.files.read(source), strict=True):
                self.merging.put_row(self.files, canonical, token, values)
            self.notes.append(f"{len(tokens)} rows of {canonical} replaced")

    # Pairs -----------------------------------------------------------------------------------------------------------

    def put_pairs(self) -> None:
        """Every product B A where it belongs."""
        for module, a, b in self._pair_up():
            fused = FUSED.fullmatch(module)
            if fused and len(a.shape) == 2:
                self.experts.add(fused, module, a, b, self.scale)
            else:
                self._put_module(module, a, b)
            self.pairs += 1

    def _pair_up(self) -> Iterator[tuple[str, Source, Source]]:
        for module, found in self.lora.items():
            if found.keys() != {"A", "B"}:
                one = next(iter(found.values()))
                raise self.files.fail("the other half of the pair is missing", one, expected="lora_A and lora_B")
            a, b = found["A"], found["B"]
            if not a.nbytes and not b.nbytes:
                continue  # Tinker's placeholder for a projection that was not trained
            for source in (a, b):
                if source.dtype not in DENSE or len(source.shape) not in (2, 3):
                    raise self.files.fail(
                        "is not a matrix of numbers, nor one per expert",
                        source,
                        got=f"{source.dtype} {list(source.shape)}",
                    )
            yield module, a, b

    def _put_module(self, module: str, a: Source, b: Source) -> None:
        targets = self.targets.get(module)
        if targets is None:
            raise self.files.fail(_NO_PLACE, a, hint="is it for another base?")
        key: str | None = module
        if _BY_PEFT.fullmatch(module) or module.endswith(".mlp.router"):
            key = self.config.choose_key(module)
        if key is None:
            raise explain_left_out(self.files, a)
        left, right = self._read_pair(targets[0], a, b)
        rank = left.shape[-2]
        # Tinker's rank per expert is smaller than r, and it divides by r all the same
        factor = self.config.factor(key, rank, a, self.scale, any_rank=targets[0].tinker and left.ndim == 3)
        for target in targets:
            self.merging.add(self.files, target, Factors(left, right, factor, (a, b)))

    def _read_pair(self, target: Target, a: Source, b: Source) -> tuple[Array, Array]:
        """A [.., r, in] and B [.., out, r]; the embedding's stand transposed, and so do experts' of some tools."""
        left, right = self.files.read(a), self.files.read(b)
        if ".lora_embedding_" in a.name:
            return right.T, left.T
        if left.ndim == right.ndim == 3:
            shape = self.merging.tensors[target.canonical].shape
            out, width = shape[-2] // target.rows.step, shape[-1]
            ranks = left.shape[1] == right.shape[2], left.shape[2] == right.shape[1]
            plain = (left.shape[2], right.shape[1]) == (width, out) and ranks[0]
            turned = (left.shape[1], right.shape[2]) == (width, out) and ranks[1]
            if plain and turned:
                raise self.files.fail("which axis is the rank cannot be told", a, hint=MERGE_ELSEWHERE)
            if turned:
                return left.swapaxes(1, 2), right.swapaxes(1, 2)
        return left, right


def _as_transformers(name: str) -> str:
    """A parameter as transformers' model has it: patched routers and Tinker's attention have names of their own."""
    return name.replace(".mlp.router.linear.", ".mlp.router.").replace(".attn.", ".self_attn.")
