"""What a gpt-oss model is: its config, and every literal of the architecture.

`GptOssConfig` holds one model's sizes, derives the others and validates by field name; `spellings` reads and writes it
as OpenAI, Hugging Face and GGUF files do. No other file carries a number of the architecture.

Sources: openai/gpt-oss `torch/model.py` (formulas), the published configs (numbers).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from gptoss_adapters.errors import BadInput

SLIDING, FULL = "sliding_attention", "full_attention"
GGUF_ARCH = "gpt-oss"
MXFP4_BLOCK = 32  # values that share one scale, along the input dimension
RMS_NORM_EPS, SWIGLU_ALPHA, SWIGLU_LIMIT = 1e-5, 1.702, 7.0
MAX_POSITIONS = 131072
MAX_LAYERS, MAX_EXPERTS = 1024, 65536  # nobody's model; bounds what a hostile config can make us allocate
MIN_F32, MAX_F32 = 2.0**-126, 3.4028234663852886e38  # of normal float32 values: GGUF and every engine keep numbers so
BOS_TOKEN_ID, PAD_TOKEN_ID = 199998, 199999
# <|return|>, <|endoftext|>, <|call|>; the first is the one that HF and GGUF call eos.
EOS_TOKEN_IDS = (200002, 199999, 200012)


@dataclass(frozen=True, slots=True)
class GptOssConfig:
    """The hyperparameters of one gpt-oss model. The defaults are those of every published model; sizes have none.

    `validate()` raises BadInput, naming the field.
    """

    num_hidden_layers: int
    num_experts: int
    experts_per_token: int = 4
    vocab_size: int = 201088
    hidden_size: int = 2880
    intermediate_size: int = 2880
    head_dim: int = 64
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    sliding_window: int = 128  # keys a sliding layer sees, the query's own included
    layer_types: tuple[str, ...] = ()  # empty: alternating, even layers slide
    experts_per_layer: tuple[int, ...] = ()  # empty: num_experts, which is the most, in every layer
    windows: tuple[int, ...] = ()  # of each layer, 0 for a full one; empty: sliding_window in every sliding layer
    rms_norm_eps: float = RMS_NORM_EPS
    swiglu_limit: float = SWIGLU_LIMIT
    swiglu_alpha: float = SWIGLU_ALPHA
    rope_theta: float = 150000.0
    rope_scaling_factor: float = 32.0  # from 1.0, which means no YaRN
    initial_context_length: int = 4096
    max_position_embeddings: int = MAX_POSITIONS
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    yarn_truncate: bool = False  # round the ramp's bounds to integers; llama.cpp always does
    attention_factor: float | None = None  # None: 0.1 ln(rope_scaling_factor) + 1
    bos_token_id: int | None = BOS_TOKEN_ID
    eos_token_id: int | None = EOS_TOKEN_IDS[0]
    pad_token_id: int | None = PAD_TOKEN_ID

    def __post_init__(self) -> None:
        if not self.layer_types and isinstance(self.num_hidden_layers, int):
            object.__setattr__(self, "layer_types", alternating(min(self.num_hidden_layers, MAX_LAYERS)))

    # Derived sizes ------------------------------------------------------------------------------------------------

    @property
    def q_rows(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_rows(self) -> int:
        return self.num_key_value_heads * self.head_dim

    def experts_of(self, layer: int) -> int:
        """How many experts a layer has."""
        return self.experts_per_layer[layer] if self.experts_per_layer else self.num_experts

    def window_of(self, layer: int) -> int | None:
        """How many keys a layer sees, the query's own included; None: all of them."""
        if self.layer_types[layer] == FULL:
            return None
        return self.windows[layer] if self.windows else self.sliding_window

    @property
    def uses_yarn(self) -> bool:
        return self.rope_scaling_factor > 1.0

    @property
    def concentration(self) -> float:
        """The factor on cos and sin that YaRN brings (0.1 ln s + 1), or the checkpoint's own attention_factor."""
        if self.attention_factor is not None:
            return self.attention_factor
        return yarn_concentration(self.rope_scaling_factor)

    def yarn_bounds(self) -> tuple[float, float]:
        """(low, high) of the YaRN ramp over rotary pair indices, inside the head; rounded outwards if `yarn_truncate`.

        transformers, vLLM and llama.cpp clamp alike. It matters for contexts below 2 pi beta_fast only, where OpenAI's
        code gives up.
        """
        half = self.head_dim / 2

        def dim(rotations: float) -> float:
            return half * math.log(self.initial_context_length / (rotations * 2 * math.pi)) / math.log(self.rope_theta)

        low, high = dim(self.yarn_beta_fast), dim(self.yarn_beta_slow)
        if self.yarn_truncate:
            low, high = math.floor(low), math.ceil(high)
        return max(low, 0), min(high, self.head_dim - 1)

    def parameters(self) -> tuple[int, int]:
        """(total, active per token without the embedding table) parameter counts."""
        h, i = self.hidden_size, self.intermediate_size
        experts = sum(self.experts_of(n) for n in range(self.num_hidden_layers))
        attention = h * (self.q_rows + 2 * self.kv_rows) + self.q_rows + 2 * self.kv_rows
        attention += self.q_rows * h + h + self.num_attention_heads
        dense = self.num_hidden_layers * (attention + 2 * h) + experts * (h + 1) + h
        expert = 3 * h * i + 2 * i + h
        total = dense + 2 * self.vocab_size * h + experts * expert
        return total, dense + self.vocab_size * h + self.num_hidden_layers * self.experts_per_token * expert

    # Validation ---------------------------------------------------------------------------------------------------

    def validate(self, file: str | None = None) -> GptOssConfig:
        """Check every field against the architecture; returns self. Raises BadInput naming the first bad field."""
        for field, what, got in _problems(self):
            raise BadInput(f"config field {field} {what}", file=file, got=got)
        return self

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_POSITIVE_INTS = (
    "num_hidden_layers",
    "num_experts",
    "experts_per_token",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "sliding_window",
    "initial_context_length",
    "max_position_embeddings",
)
_POSITIVE_FLOATS = (
    "rms_norm_eps",
    "swiglu_limit",
    "swiglu_alpha",
    "rope_theta",
    "rope_scaling_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
)


def _problems(c: GptOssConfig) -> Iterator[tuple[str, str, object]]:
    """(field, what is wrong with it, its value), in an order in which no later check trips over an earlier fault."""
    yield from _number_problems(c)
    yield from _shape_problems(c)
    yield from _optional_problems(c)
    yield from _rope_problems(c)


def _number_problems(c: GptOssConfig) -> Iterator[tuple[str, str, object]]:
    for name in _POSITIVE_INTS:
        value = getattr(c, name)
        if not (_is_int(value) and 0 < value < 2**31):
            yield name, "must be a positive integer", value
    if c.num_hidden_layers > MAX_LAYERS:
        yield "num_hidden_layers", f"exceeds {MAX_LAYERS}", c.num_hidden_layers
    if c.num_experts > MAX_EXPERTS:
        yield "num_experts", f"exceeds {MAX_EXPERTS}", c.num_experts
    for name in _POSITIVE_FLOATS:
        value = getattr(c, name)
        if not (is_number(value) and value >= MIN_F32):
            yield name, "must be a positive number that float32 holds", value


def _shape_problems(c: GptOssConfig) -> Iterator[tuple[str, str, object]]:
    if c.experts_per_token > c.num_experts:
        yield "experts_per_token", f"exceeds num_experts {c.num_experts}", c.experts_per_token
    if c.num_attention_heads % c.num_key_value_heads:
        what = f"is not a multiple of num_key_value_heads {c.num_key_value_heads}"
        yield "num_attention_heads", what, c.num_attention_heads
    if c.head_dim % 2:
        yield "head_dim", "must be even", c.head_dim
    if len(c.layer_types) != c.num_hidden_layers:
        yield "layer_types", f"must have {c.num_hidden_layers} entries", len(c.layer_types)
    for kind in c.layer_types:
        if kind not in (SLIDING, FULL):
            yield "layer_types", f"may hold {SLIDING} and {FULL} only", kind
    yield from _layer_problems(c)


def _layer_problems(c: GptOssConfig) -> Iterator[tuple[str, str, object]]:
    for name in ("experts_per_layer", "windows"):
        values = getattr(c, name)
        if values and len(values) != c.num_hidden_layers:
            yield name, f"must have {c.num_hidden_layers} entries", len(values)
    for count in c.experts_per_layer:
        if not (_is_int(count) and c.experts_per_token <= count <= c.num_experts):
            yield "experts_per_layer", f"must lie in {c.experts_per_token} to {c.num_experts}", count
    for kind, window in zip(c.layer_types, c.windows, strict=False):
        if not _is_int(window) or not (0 < window < 2**31 if kind == SLIDING else window == 0):
            yield "windows", f"must be {'positive' if kind == SLIDING else '0'} for a layer of {kind}", window


def _optional_problems(c: GptOssConfig) -> Iterator[tuple[str, str, object]]:
    factor = c.attention_factor
    if factor is not None and not (is_number(factor) and factor >= MIN_F32):
        yield "attention_factor", "must be a positive number that float32 holds", factor
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(c, name)
        if value is not None and not (_is_int(value) and 0 <= value < 2**31):
            yield name, "must be a token id", value


def _rope_problems(c: GptOssConfig) -> Iterator[tuple[str, str, object]]:
    if c.rope_theta < 1 + 2**-23:
        yield "rope_theta", "must exceed 1 in float32", c.rope_theta
    if c.rope_scaling_factor < 1:
        yield "rope_scaling_factor", "must be at least 1", c.rope_scaling_factor
    if c.uses_yarn:
        low, high = c.yarn_bounds()
        if low >= high:
            yield "rope_scaling", "makes an invalid YaRN ramp", f"low {low:.4g}, high {high:.4g}"


def alternating(layers: int) -> tuple[str, ...]:
    """The published pattern: even layers slide, odd layers see everything."""
    return tuple(FULL if n % 2 else SLIDING for n in range(layers))


def yarn_concentration(factor: float) -> float:
    """What YaRN multiplies cos and sin with when it stretches the context `factor` times."""
    return 0.1 * math.log(factor) + 1.0


def is_number(value: object) -> bool:
    """Whether this is a number, and one that float32 holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_F32


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


GPT_OSS_20B = GptOssConfig(num_hidden_layers=24, num_experts=32)
GPT_OSS_120B = GptOssConfig(num_hidden_layers=36, num_experts=128)
