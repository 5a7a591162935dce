"""What a gpt-oss model is: its config, and every literal of the architecture.

`GptOssConfig` reads and writes the three spellings in circulation (OpenAI's `config.json`, Hugging Face's of
transformers 4.x and 5.x, GGUF metadata) and validates by field name. No other file carries a number of the
architecture.

Sources: openai/gpt-oss `torch/model.py` (OpenAI spelling, formulas), the published HF `config.json`, llama.cpp's
gpt-oss keys.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gptoss_adapters.errors import BadInput

SLIDING, FULL = "sliding_attention", "full_attention"
GGUF_ARCH = "gpt-oss"
MXFP4_BLOCK = 32  # values that share one scale, along the input dimension
RMS_NORM_EPS, SWIGLU_ALPHA, SWIGLU_LIMIT = 1e-5, 1.702, 7.0
MAX_POSITIONS = 131072
MAX_LAYERS, MAX_EXPERTS = 1024, 65536  # nobody's model; bounds what a hostile config can make us allocate
_MIN_F32, _MAX_F32 = (
    2.0**-126,
    3.4028234663852886e38,
)  # of the normal float32 values: GGUF and every engine keep these numbers so
BOS_TOKEN_ID, PAD_TOKEN_ID = 199998, 199999
EOS_TOKEN_IDS = (
    200002,
    199999,
    200012,
)  # <|return|>, <|endoftext|>, <|call|>; the first is the one that HF and GGUF call eos


@dataclass(frozen=True, slots=True)
class GptOssConfig:
    """The hyperparameters of one gpt-oss model. The defaults are those of every published model; sizes have none.

    Raises BadInput, naming the field, from `validate()` and from the readers.
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

    @property
    def uses_yarn(self) -> bool:
        return self.rope_scaling_factor > 1.0

    @property
    def concentration(self) -> float:
        """The factor on cos and sin that YaRN brings (0.1 ln s + 1), or the checkpoint's own attention_factor."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.rope_scaling_factor) + 1.0

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
        h, i, e = self.hidden_size, self.intermediate_size, self.num_experts
        attention = h * (self.q_rows + 2 * self.kv_rows) + self.q_rows + 2 * self.kv_rows
        attention += self.q_rows * h + h + self.num_attention_heads
        dense = self.num_hidden_layers * (attention + 2 * h + h * e + e) + h
        expert = 3 * h * i + 2 * i + h
        total = dense + 2 * self.vocab_size * h + self.num_hidden_layers * e * expert
        return total, dense + self.vocab_size * h + self.num_hidden_layers * self.experts_per_token * expert

    # Validation ---------------------------------------------------------------------------------------------------

    def validate(self, file: str | None = None) -> GptOssConfig:
        """Check every field against the architecture; returns self. Raises BadInput naming the field."""

        def need(ok: bool, field: str, what: str, got: object) -> None:
            if not ok:
                raise BadInput(f"config field {field} {what}", file=file, got=got)

        for name in _POSITIVE_INTS:
            value = getattr(self, name)
            need(
                isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31,
                name,
                "must be a positive integer",
                value,
            )
        need(self.num_hidden_layers <= MAX_LAYERS, "num_hidden_layers", f"exceeds {MAX_LAYERS}", self.num_hidden_layers)
        need(self.num_experts <= MAX_EXPERTS, "num_experts", f"exceeds {MAX_EXPERTS}", self.num_experts)
        for name in _POSITIVE_FLOATS:
            value = getattr(self, name)
            need(_is_number(value) and value >= _MIN_F32, name, "must be a positive number that float32 holds", value)
        need(
            self.experts_per_token <= self.num_experts,
            "experts_per_token",
            f"exceeds num_experts {self.num_experts}",
            self.experts_per_token,
        )
        need(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_attention_heads",
            f"is not a multiple of num_key_value_heads {self.num_key_value_heads}",
            self.num_attention_heads,
        )
        need(self.head_dim % 2 == 0, "head_dim", "must be even", self.head_dim)
        need(
            len(self.layer_types) == self.num_hidden_layers,
            "layer_types",
            f"must have {self.num_hidden_layers} entries",
            len(self.layer_types),
        )
        for kind in self.layer_types:
            need(kind in (SLIDING, FULL), "layer_types", f"may hold {SLIDING} and {FULL} only", kind)
        factor = self.attention_factor
        need(
            factor is None or (_is_number(factor) and factor >= _MIN_F32),
            "attention_factor",
            "must be a positive number that float32 holds",
            factor,
        )
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            need(
                value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31),
                name,
                "must be a token id",
                value,
            )
        need(self.rope_theta >= 1 + 2**-23, "rope_theta", "must exceed 1 in float32", self.rope_theta)
        need(self.rope_scaling_factor >= 1, "rope_scaling_factor", "must be at least 1", self.rope_scaling_factor)
        if self.uses_yarn:
            low, high = self.yarn_bounds()
            need(low < high, "rope_scaling", "makes an invalid YaRN ramp", f"low {low:.4g}, high {high:.4g}")
        return self

    # OpenAI spelling ----------------------------------------------------------------------------------------------

    @classmethod
    def from_openai(cls, raw: Mapping[str, Any], file: str | None = None) -> GptOssConfig:
        """From OpenAI's `original/config.json`. YaRN bounds are never rounded there; eps and alpha are fixed."""
        take = _Taker(raw, file)
        values = {ours: take(theirs) for ours, theirs in _OPENAI.items()}
        layers = take.integer("num_hidden_layers")
        scaling = take.number("rope_scaling_factor", 32.0)
        context = take.integer("initial_context_length", 4096)
        return cls(
            **{k: v for k, v in values.items() if v is not None},
            num_hidden_layers=layers,
            rope_scaling_factor=scaling,
            initial_context_length=context,
            max_position_embeddings=round(context * scaling),
        ).validate(file)

    def to_openai(self) -> dict[str, Any]:
        """The keys of OpenAI's `config.json`, in the published order. Its loader raises on any other key.

        Raises BadInput for a field that this spelling cannot express (eps, alpha, layer_types, rounded YaRN).
        """
        self._refuse(
            "OpenAI's config.json",
            rms_norm_eps=RMS_NORM_EPS,
            swiglu_alpha=SWIGLU_ALPHA,
            yarn_truncate=False,
            attention_factor=None,
            layer_types=alternating(self.num_hidden_layers),
        )
        ours = {theirs: getattr(self, ours) for ours, theirs in _OPENAI.items()}
        ours |= {
            "num_hidden_layers": self.num_hidden_layers,
            "rope_scaling_factor": float(self.rope_scaling_factor),
            "initial_context_length": self.initial_context_length,
        }
        return {
            key: _plain(ours[key]) if key not in ("swiglu_limit", "rope_scaling_factor") else ours[key]
            for key in _OPENAI_ORDER
        }

    # Hugging Face spelling ----------------------------------------------------------------------------------------

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], file: str | None = None) -> GptOssConfig:
        """From an HF `config.json`: `rope_scaling` + `rope_theta` (transformers 4.x) or `rope_parameters` (5.x).

        A config with neither (absent, null or empty) has the published YaRN, as in transformers and vLLM, which fill it
        in: not plain RoPE. That is `rope_type` "default", or a `rope_parameters` that names no type.
        """
        if raw.get("tie_word_embeddings"):
            raise BadInput("config field tie_word_embeddings is true; gpt-oss has an output head of its own", file=file)
        take = _Taker(raw, file)
        rope = take.mapping("rope_parameters") or {
            "rope_theta": take("rope_theta"),
            **(take.mapping("rope_scaling") or HF_ROPE),
        }
        inner = _Taker(rope, file)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("yarn", "default"):
            raise BadInput("config field rope_type is not one of gpt-oss", file=file, expected="yarn", got=kind)
        yarn = kind == "yarn"
        max_positions = take.integer("max_position_embeddings", MAX_POSITIONS)
        first_context = take.integer("initial_context_length", 4096 if yarn else max_positions)
        layer_types = take("layer_types")
        if layer_types is not None and not isinstance(layer_types, list | tuple):
            raise BadInput("config field layer_types must be a list", file=file, got=layer_types)
        null = next((key for key in (*_HF, "num_hidden_layers") if key in raw and raw[key] is None), None)
        if null:
            raise BadInput(f"config field {null} is null", file=file)
        values = {ours: take(theirs) for ours, theirs in _HF.items()}
        topk = take("num_experts_per_tok", take("experts_per_token"))
        experts = take.integer("num_local_experts" if "num_local_experts" in raw else "num_experts")
        eos = take("eos_token_id")
        return cls(
            **{k: v for k, v in values.items() if v is not None},
            num_hidden_layers=take.integer("num_hidden_layers"),
            num_experts=experts,
            **{k: v for k, v in (("experts_per_token", topk),) if v is not None},
            layer_types=tuple(layer_types or ()),
            rope_theta=inner.number("rope_theta", 150000.0),
            rope_scaling_factor=inner.number("factor") if yarn else 1.0,
            initial_context_length=inner.integer("original_max_position_embeddings", first_context),
            max_position_embeddings=max_positions,
            yarn_beta_fast=inner.number("beta_fast", 32.0),
            yarn_beta_slow=inner.number("beta_slow", 1.0),
            yarn_truncate=inner.boolean("truncate", yarn),  # an absent key means rounding, as in transformers
            attention_factor=inner("attention_factor"),
            bos_token_id=take("bos_token_id"),
            eos_token_id=eos[0] if isinstance(eos, list) and eos else eos,
            pad_token_id=take("pad_token_id"),
        ).validate(file)

    def to_hf(self, *, mxfp4: bool, spelling: int = 4) -> dict[str, Any]:
        """An HF `config.json` as published (spelling 4: `rope_scaling`) or as transformers 5 saves it (spelling 5)."""
        rope: dict[str, Any] = {
            "beta_fast": float(self.yarn_beta_fast),
            "beta_slow": float(self.yarn_beta_slow),
            "factor": float(self.rope_scaling_factor),
            "original_max_position_embeddings": self.initial_context_length,
            "rope_type": "yarn",
            "truncate": self.yarn_truncate,
        }
        if self.attention_factor is not None:
            rope["attention_factor"] = self.attention_factor
        if not self.uses_yarn:
            rope = {"rope_type": "default"}
        out: dict[str, Any] = {
            "architectures": ["GptOssForCausalLM"],
            "attention_bias": True,
            "attention_dropout": 0.0,
            "eos_token_id": self.eos_token_id,
            "experts_per_token": self.experts_per_token,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initial_context_length": self.initial_context_length,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "layer_types": list(self.layer_types),
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "gpt_oss",
            "num_attention_heads": self.num_attention_heads,
            "num_experts_per_tok": self.experts_per_token,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "num_local_experts": self.num_experts,
            "output_router_logits": False,
            "pad_token_id": self.pad_token_id,
            "rms_norm_eps": self.rms_norm_eps,
            "router_aux_loss_coef": 0.9,
            "sliding_window": self.sliding_window,
            "swiglu_limit": float(self.swiglu_limit),
            "tie_word_embeddings": False,
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }
        if mxfp4:
            out["quantization_config"] = {"modules_to_not_convert": list(HF_NOT_QUANTISED), "quant_method": "mxfp4"}
        if self.swiglu_alpha != SWIGLU_ALPHA or spelling == 5:
            out["swiglu_alpha"] = self.swiglu_alpha
        if spelling == 5:
            out |= {"rope_parameters": rope | {"rope_theta": _plain(self.rope_theta)}, "dtype": "bfloat16"}
        else:
            out |= {"rope_scaling": rope, "rope_theta": _plain(self.rope_theta), "transformers_version": "4.55.0.dev0"}
        return dict(sorted(out.items()))

    # GGUF metadata ------------------------------------------------------------------------------------------------

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], vocab_size: int, file: str | None = None) -> GptOssConfig:
        """From GGUF metadata (keys with the architecture's prefix). What has no key is what llama.cpp computes."""
        arch = _Taker(metadata, file).string("general.architecture", "")
        if arch != GGUF_ARCH:
            raise BadInput("general.architecture is not gpt-oss", file=file, expected=GGUF_ARCH, got=arch)
        own = {key.removeprefix(f"{arch}."): value for key, value in metadata.items() if key.startswith(f"{arch}.")}
        for key in _GGUF_REQUIRED:
            if key not in own:
                raise BadInput(
                    f"metadata key {arch}.{key} is missing", file=file, hint="llama.cpp does not load such a file"
                )
        take = _Taker({key: _shortest(value) for key, value in own.items()}, file)
        heads, context = take.integer("attention.head_count"), take.integer("context_length")
        usual_head = take.integer("embedding_length") // max(heads, 1)
        defaults = {
            "attention.head_count_kv": heads,
            "attention.key_length": usual_head,
            "rope.freq_base": 10000.0,
            "rope.scaling.original_context_length": context,
        }
        values = {ours: take(theirs, defaults.get(theirs)) for ours, theirs in _GGUF.items()}
        layers, head_dim = take.integer("block_count"), take.integer("attention.key_length", usual_head)
        for key, usual in (("attention.value_length", usual_head), ("rope.dimension_count", head_dim)):
            if (got := take.integer(key, usual)) != head_dim:
                raise BadInput(
                    f"metadata key {arch}.{key} differs from the head dimension", file=file, expected=head_dim, got=got
                )
        scaling = take.string("rope.scaling.type", "missing" if "rope.scaling.factor" in own else "none")
        if scaling not in ("yarn", "none"):
            raise BadInput(
                f"metadata key {arch}.rope.scaling.type is not one of gpt-oss", file=file, expected="yarn", got=scaling
            )
        factor = take.number("rope.scaling.factor", 1.0) if scaling == "yarn" else 1.0
        multiplier = take.number("rope.scaling.attn_factor", 1.0)
        ours = _Taker({key: _shortest(value) for key, value in metadata.items()}, file)
        return cls(
            **{k: v for k, v in values.items() if v is not None},
            num_hidden_layers=layers,
            vocab_size=vocab_size,
            layer_types=_types_from_pattern(
                own.get("attention.sliding_window_pattern", _all_full(metadata, take)), layers, file
            ),
            rope_scaling_factor=factor,
            yarn_truncate=ours.boolean("gptoss_adapters.yarn_truncate", True),
            swiglu_alpha=ours.number("gptoss_adapters.swiglu_alpha", SWIGLU_ALPHA),
            swiglu_limit=ours.number("gptoss_adapters.swiglu_limit", SWIGLU_LIMIT),
            attention_factor=None
            if multiplier == 1.0
            else float(f"{multiplier * (0.1 * math.log(max(factor, 1.0)) + 1.0):.7g}"),  # f32 in the file
            **{
                f"{name}_token_id": ours(f"tokenizer.ggml.{key}_token_id")
                for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
            },
        ).validate(file)

    # --------------------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _refuse(self, target: str, **fixed: Any) -> None:
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise BadInput(
                    f"config field {name} cannot be expressed in {target}", expected=value, got=getattr(self, name)
                )


def alternating(layers: int) -> tuple[str, ...]:
    """The published pattern: even layers slide, odd layers see everything."""
    return tuple(FULL if n % 2 else SLIDING for n in range(layers))


def _all_full(metadata: Mapping[str, Any], take: _Taker) -> Any:
    """`to-gguf`'s own note that no layer slides, for which llama.cpp has no pattern: believed where the window it
    reads hides nothing.
    """
    hides_nothing = take.integer("attention.sliding_window") >= take.integer("context_length")
    return metadata.get("gptoss_adapters.sliding_window_pattern") if hides_nothing else None


def _types_from_pattern(pattern: Any, layers: int, file: str | None) -> tuple[str, ...]:
    """llama.cpp's pattern: one flag per layer, or a period n (layer i slides iff i % n < n - 1; 0: all slide)."""
    if pattern is None or not 0 < layers <= MAX_LAYERS:
        return ()
    if isinstance(pattern, int):
        return tuple(SLIDING if not pattern or i % pattern < pattern - 1 else FULL for i in range(layers))
    if getattr(getattr(pattern, "dtype", None), "kind", "") not in ("b", "u", "i"):
        raise BadInput(
            "metadata key attention.sliding_window_pattern must hold one flag per layer", file=file, got=pattern
        )
    return tuple(SLIDING if flag else FULL for flag in pattern)


def _shortest(value: Any) -> Any:
    """The shortest decimal that rounds to the same float32: GGUF stores 1e-05 as 9.999999747378752e-06."""
    if not isinstance(value, float) or not math.isfinite(value) or abs(value) > _MAX_F32:
        return value
    f32 = struct.Struct("<f")
    shorter = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((s for s in shorter if abs(s) <= _MAX_F32 and f32.pack(s) == f32.pack(value)), value)


# Field of ours -> key of theirs; what needs more than a rename is handled by hand above.
_OPENAI = {
    "num_experts": "num_experts",
    "experts_per_token": "experts_per_token",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "swiglu_limit": "swiglu_limit",
    "head_dim": "head_dim",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "sliding_window": "sliding_window",
    "rope_theta": "rope_theta",
    "yarn_beta_slow": "rope_ntk_alpha",
    "yarn_beta_fast": "rope_ntk_beta",
}
_OPENAI_ORDER = (
    "num_hidden_layers",
    "num_experts",
    "experts_per_token",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "swiglu_limit",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "sliding_window",
    "initial_context_length",
    "rope_theta",
    "rope_scaling_factor",
    "rope_ntk_alpha",
    "rope_ntk_beta",
)
_HF = {
    name: name
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "head_dim",
        "num_attention_heads",
        "num_key_value_heads",
        "sliding_window",
        "rms_norm_eps",
        "swiglu_limit",
        "swiglu_alpha",
    )
}
HF_ROPE = {  # of transformers' GptOssConfig for a config that says nothing
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
HF_NOT_QUANTISED = ("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head")
_GGUF = {
    "num_experts": "expert_count",
    "experts_per_token": "expert_used_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "expert_feed_forward_length",
    "head_dim": "attention.key_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "sliding_window": "attention.sliding_window",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "initial_context_length": "rope.scaling.original_context_length",
    "max_position_embeddings": "context_length",
    "yarn_beta_fast": "rope.scaling.yarn_beta_fast",
    "yarn_beta_slow": "rope.scaling.yarn_beta_slow",
}
_GGUF_REQUIRED = (
    "block_count",
    "context_length",
    "embedding_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
)
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


class _Taker:
    """Typed access to one JSON object; every complaint names the key and the file."""

    def __init__(self, raw: Mapping[str, Any], file: str | None) -> None:
        self.raw, self.file = raw, file

    def __call__(self, key: str, default: Any = None) -> Any:
        value = self.raw.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
            raise BadInput(
                f"config field {key} must be an integer", file=self.file, got="nothing" if value is None else value
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self(key, default)
        if not _is_number(value):
            raise BadInput(
                f"config field {key} must be a number", file=self.file, got="nothing" if value is None else value
            )
        return float(value)

    def string(self, key: str, default: str) -> str:
        value = self(key, default)
        if not isinstance(value, str):
            raise BadInput(f"config field {key} must be a string", file=self.file, got=value)
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self(key, default)
        if not isinstance(value, bool):
            raise BadInput(f"config field {key} must be true or false", file=self.file, got=value)
        return value

    def mapping(self, key: str) -> dict[str, Any] | None:
        value = self(key)
        if value is not None and not isinstance(value, dict):
            raise BadInput(f"config field {key} must be an object", file=self.file, got=value)
        return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MAX_F32


def _plain(value: Any) -> Any:
    """150000.0 is spelled 150000 in the published configs."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


GPT_OSS_20B = GptOssConfig(num_hidden_layers=24, num_experts=32)
GPT_OSS_120B = GptOssConfig(num_hidden_layers=36, num_experts=128)
