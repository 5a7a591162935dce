"""The layout table: every row, both directions, against the names and counts of the published checkpoints."""

import dataclasses

import numpy as np
import pytest

from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.storage import (
    BIASED,
    BLOCKS,
    PACKED,
    SCALES,
    SWAPPED,
    WORDS,
    FusedRows,
    Part,
)
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import GPT_OSS_20B, GPT_OSS_120B, GptOssConfig

SMALL = GptOssConfig(
    num_hidden_layers=2,
    num_experts=3,
    experts_per_token=2,
    vocab_size=40,
    hidden_size=96,
    intermediate_size=64,
    head_dim=16,
    num_attention_heads=6,
    num_key_value_heads=2,
)

ITEMS = {BLOCKS: 16, PACKED: 16, WORDS: 4, SCALES: 1, BIASED: 1}  # elements per block of 32


@pytest.mark.parametrize(
    ("kind", "per_layer"),
    [("openai", 15), ("hf-mxfp4", 19), ("hf-bf16", 17), ("hf-bf16-out-in", 17), ("gguf", 19), ("ollama", 19)],
)
def test_counts_are_the_published_ones(kind: str, per_layer: int) -> None:
    for config in (GPT_OSS_20B, GPT_OSS_120B):
        assert len(layouts.stored(kind, config)) == per_layer * config.num_hidden_layers + 3


@pytest.mark.parametrize("config", [GPT_OSS_20B, GPT_OSS_120B])
def test_bytes_are_the_published_ones(config: GptOssConfig) -> None:
    published = {24: (13_761_264_768, 41_829_514_368), 36: (65_248_815_744, 233_658_313_344)}[config.num_hidden_layers]
    for kind, want in zip(("hf-mxfp4", "hf-bf16"), published, strict=True):
        total = 0
        for s in layouts.stored(kind, config).values():
            total += s.nbytes
        assert total == want


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", tuple(Kind))
def test_every_row_goes_there_and_back(kind: str, fused: bool) -> None:
    """Each canonical element is stored exactly once: filling the stored arrays and reading them back loses nothing."""
    present = (
        {
            f"blk.{n}.{name}.{what}"
            for n in range(2)
            for name in ("attn_qkv", "ffn_gate_up_exps")
            for what in ("weight", "bias")
        }
        if fused
        else set()
    )
    shapes, parts = layouts.canonical(SMALL), layouts.parts(kind, SMALL, present)
    rng = np.random.default_rng(0)
    whole = {name: rng.integers(0, 1 << 30, shape) for name, shape in shapes.items()}
    stores = {name: np.full(s.shape, -1) for name, s in layouts.stored(kind, SMALL, present).items()}

    def share(name: str, part: Part) -> np.ndarray:
        array = whole[name] if part.expert is None else whole[name][part.expert : part.expert + 1]
        return array[part.rows.index]

    def place(part: Part) -> np.ndarray:
        array = stores[part.name] if part.expert is None else stores[part.name][None]
        if isinstance(part.storage, FusedRows):  # pairs stay pairs
            return array[part.storage.span(SMALL)]
        return array.swapaxes(-1, -2) if part.storage == SWAPPED else array

    for name in whole:
        for part in parts[name]:
            if part.storage in ITEMS:  # blocks of 32 values: some of them stand for the codes, one for the scale
                values = share(name, part).reshape(*share(name, part).shape[:-1], -1, 32)
                place(part)[...] = values[..., : ITEMS[part.storage]].reshape(place(part).shape)
            else:
                place(part)[...] = share(name, part)
    assert all((s >= 0).all() for s in stores.values()), "a stored element that no canonical tensor fills"
    for name in whole:
        for part in parts[name]:
            if part.storage not in ITEMS:
                assert np.array_equal(place(part), share(name, part))


def test_fused_qkv_is_q_then_k_then_v() -> None:
    qkv = layouts.stored("openai", SMALL)["block.1.attn.qkv.weight"]
    assert qkv.shape == (6 * 16 + 2 * 2 * 16, 96)
    assert qkv.terms == tuple((f"layers.1.{x}_proj.weight", Part(qkv.name, storage=FusedRows(x))) for x in "qkv")


def test_gguf_names_and_shapes() -> None:
    stored = layouts.stored("gguf", GPT_OSS_20B)
    assert stored["blk.23.ffn_up_exps.weight"].shape == (32, 2880, 2880)
    assert stored["blk.0.attn_sinks.weight"].shape == (64,)
    norm = stored["blk.0.post_attention_norm.weight"]
    assert norm.terms == (("layers.0.mlp_norm.weight", Part(norm.name)),)


def test_kind_is_told_by_names() -> None:
    for kind in tuple(Kind):
        names = list(layouts.stored(kind, SMALL))
        told = layouts.tell_kind(names, SMALL)
        assert told == ("hf-bf16" if kind == "hf-bf16-out-in" else kind)  # the same names: shapes tell them apart
    with pytest.raises(BadInput, match="no tensor name is one of gpt-oss"):
        layouts.tell_kind(["model.layers.0.mlp.up_proj.weight"], SMALL)


def test_forward_order() -> None:
    names = list(layouts.canonical(dataclasses.replace(SMALL, layer_types=())))
    assert names[0] == "embedding.weight" and names[-2:] == ["norm.weight", "unembedding.weight"]
    assert len(names) == 17 * 2 + 3 and names[1] == "layers.0.attn_norm.weight"
