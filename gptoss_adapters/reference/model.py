"""The canonical gpt-oss model in torch: the one place where the architecture is defined.

A decoder-only mixture-of-experts transformer, read here in forward order:

- token embedding; RMSNorm before attention and before the experts; untied output head
- attention with a learned sink per query head, grouped queries, sliding window on some layers, YaRN RoPE (half-split)
- experts chosen by top-k of a linear router, softmax over the chosen; clamped SwiGLU; biases everywhere
- expert weights stay in MXFP4 (blocks and scales as stored, memory-mapped) and are decoded one expert at a time, or
  multiplied by the native kernels without being decoded at all

The computation is float32 (or float64) on exactly decoded weights: the truth that every engine is judged against.
bfloat16 follows OpenAI's torch implementation. Dense weights stay in their stored dtype and are
widened as they are used, so memory is that of the checkpoint.

`experts="oracle"` uses torch alone, and with bfloat16 rounds where OpenAI's implementation does; the native kernels sum
in float32 inside the expert layer, so their bfloat16 is at least as close to the truth.

Formulas: openai/gpt-oss `torch/model.py`; YaRN: Peng et al. 2023, arXiv:2309.00071.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from gptoss_adapters.errors import UsageError
from gptoss_adapters.reference import native_ops
from gptoss_adapters.reference.experts import Experts, load_experts
from gptoss_adapters.reference.linear import Weight, as_tensor, linear, linear_in_torch
from gptoss_adapters.reference.packed import pack, packs
from gptoss_adapters.spec import MXFP4_BLOCK, SLIDING, GptOssConfig

if TYPE_CHECKING:
    from gptoss_adapters.checkpoint import Checkpoint
    from gptoss_adapters.reference.decode_graph import DecodeGraph
    from gptoss_adapters.reference.generate import Generation

Linear = Callable[[Tensor, Any, "Tensor | None"], Tensor]  # the weight: a tensor or packed
PACK_VALUES = 1 << 20  # smaller matrices stay as they are
ATTENTION_BYTES = 64 << 20  # bound on one chunk of attention scores


@dataclass(slots=True)
class Taps:
    """What a forward pass lets out, and what it lets in, for the parity work. Lists get one entry per layer.

    hidden: [B, T, H] after each layer; router_scores: [B, T, E] before top-k; experts: [B, T, K] int64, by falling
    score.
    forced: if given, [B, T, K] per layer: these experts are used (weighted by a softmax over their own scores).
    """

    hidden: list[Tensor] = field(default_factory=list)
    router_scores: list[Tensor] = field(default_factory=list)
    experts: list[Tensor] = field(default_factory=list)
    forced: Sequence[Tensor] | None = None


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """x [..., H] -> x / rms(x) * scale, in at least float32, rounded once to x's dtype."""
    t = x if x.dtype == torch.float64 else x.float()
    t = t * torch.rsqrt(t.square().mean(-1, keepdim=True) + eps)
    return (t * scale.to(t.dtype)).to(x.dtype)


def norm(product: Linear, x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """`rms_norm`, natively for a few tokens of a model whose products are native."""
    native = product is linear and native_ops.usable(x) and x.is_contiguous()
    return (native_ops.rms_norm if native else rms_norm)(x, scale, eps)


class Rope:
    """YaRN rotary embedding: rotates the two halves of a head by position x inverse frequency."""

    def __init__(self, config: GptOssConfig, device: torch.device) -> None:
        self.concentration = config.concentration
        self.inv_freq = yarn_inverse_frequencies(config).to(device)  # (hd/2,) float64

    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions [B, T] -> cos, sin [B, T, 1, hd/2] in dtype, times the concentration factor."""
        angle = positions[..., None].to(torch.float64) * self.inv_freq
        return tuple((f(angle) * self.concentration).to(dtype).unsqueeze(-2) for f in (torch.cos, torch.sin))  # type: ignore[return-value]


def yarn_inverse_frequencies(config: GptOssConfig) -> Tensor:
    """(hd/2,) float64: interpolated for slow pairs, as trained for fast ones, a linear ramp in between."""
    pair = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
    freq = config.rope_theta ** (pair / config.head_dim)
    if not config.uses_yarn:
        return 1.0 / freq
    low, high = config.yarn_bounds()
    ramp = ((pair / 2 - low) / (high - low)).clamp(0, 1)
    return ramp / (config.rope_scaling_factor * freq) + (1 - ramp) / freq


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, T, n, hd] -> the same, rotated."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class KeyValues(Protocol):
    """What a layer's attention needs of a cache."""

    def extend(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Append T columns; returns k, v [B, S, n_kv, hd] and positions [B, S] of every column that the new queries
        may need.
        """
        ...


class Cache:
    """Keys and values of one layer: [B, S, n_kv, hd] with the position of every column, [B, S] (-1: padding, on the
    left).

    Columns stand in the order of their positions, `start` to `end` of the buffers, so the tail is the most recent. A
    sliding layer keeps what its window can still reach; a full layer's buffer doubles as it grows. Appending changes no
    column before `end`: who keeps the buffers and the two ends can go back to them.
    """

    def __init__(self, window: int | None) -> None:
        self.window, self.start, self.end = window, 0, 0
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.positions: Tensor | None = None

    def __len__(self) -> int:
        return self.end - self.start

    def extend(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        new, t = (k, v, positions), k.shape[1]
        if self.window is not None and t >= self.window:  # long: more than will be kept
            every = tuple(torch.cat((old, x), 1) for old, x in zip(self.held(), new, strict=True)) if len(self) else new
            self._move([x[:, x.shape[1] - (self.window - 1) :] for x in every], 2 * self.window)
            return every
        if self.k is None or self.end + t > self.k.shape[1]:
            held = self.held() if self.k is not None else [x[:, :0] for x in new]
            grown = 2 * self.window if self.window is not None else max(len(self) + t, 2 * len(self))
            self._move(held, grown)
        for buffer, x in zip(self._buffers(), new, strict=True):
            buffer[:, self.end : self.end + t] = x
        self.end += t
        every = self.held()
        if self.window is not None:
            self.start = max(self.start, self.end - (self.window - 1))
        return every

    def _buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.k is not None and self.v is not None and self.positions is not None
        return self.k, self.v, self.positions

    def held(self) -> tuple[Tensor, ...]:
        """k, v, positions of the columns in use, as views. Only after the first `extend`."""
        return tuple(x[:, self.start : self.end] for x in self._buffers())

    def _move(self, held: Sequence[Tensor], size: int) -> None:
        """Into new buffers of `size` columns."""
        made = [x.new_empty((x.shape[0], size, *x.shape[2:])) for x in held]
        self.start, self.end = 0, held[0].shape[1]
        for buffer, x in zip(made, held, strict=True):
            buffer[:, : self.end] = x
        self.k, self.v, self.positions = made


def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, q_pos: Tensor, k_pos: Tensor, window: int | None) -> Tensor:
    """Attention with sinks. q [B, T, n, hd]; k, v [B, S, n_kv, hd]; sinks [n]; positions [B, T] and [B, S] -> [B, T, n
    * hd].

    Query t sees key s iff 0 <= p_s <= p_t and, in a sliding layer, p_t - p_s < window. The sink is one more score per
    query head, not scaled, without a value.
    """
    b, t, n, hd = q.shape
    if torch.compiler.is_compiling():  # the number of chunks would fix the length
        return _attend_chunk(q, k, v, sinks, q_pos, k_pos, window).reshape(b, t, n * hd)
    step = max(1, ATTENTION_BYTES // (b * n * k.shape[1] * q.element_size()))
    past = k.shape[1] - t  # query column lo stands at key column past + lo
    out = []
    for lo in range(0, t, step):
        hi = min(lo + step, t)
        keys = slice(
            0 if window is None else max(0, past + lo - window + 1), past + hi
        )  # all that these queries can see
        out.append(_attend_chunk(q[:, lo:hi], k[:, keys], v[:, keys], sinks, q_pos[:, lo:hi], k_pos[:, keys], window))
    return torch.cat(out, 1).reshape(b, t, n * hd)


def _attend_chunk(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, q_pos: Tensor, k_pos: Tensor, window: int | None
) -> Tensor:
    b, t, n, hd = q.shape
    n_kv = k.shape[2]
    q = q.view(b, t, n_kv, n // n_kv, hd)  # (B, T, Nkv, G, D)
    scores = torch.einsum("btkgd,bskd->bkgts", q, k) * hd**-0.5
    distance = q_pos[:, :, None] - k_pos[:, None, :]  # (B, T, S)
    hidden = (distance < 0) | (k_pos[:, None, :] < 0)
    if window is not None:
        hidden |= distance >= window
    scores = scores.masked_fill(hidden[:, None, None], -math.inf)
    sink = sinks.to(scores.dtype).view(1, n_kv, n // n_kv, 1, 1).expand(b, -1, -1, t, 1)
    weights = torch.cat((scores, sink), -1).softmax(-1)[..., :-1]
    return torch.einsum("bkgts,bskd->btkgd", weights, v).reshape(b, t, n, hd)


class Attention:
    """Norm, q/k/v, rotation, attention, output projection. Returns what is added to the residual stream."""

    def __init__(self, config: GptOssConfig, weights: dict[str, Any], layer: int, linear: Linear) -> None:
        self.config, self.w, self.linear = config, weights, linear
        self.window = config.sliding_window if config.layer_types[layer] == SLIDING else None

    def __call__(self, x: Tensor, rope: tuple[Tensor, Tensor], positions: Tensor, cache: KeyValues | None) -> Tensor:
        b, t, _ = x.shape
        hd, w = self.config.head_dim, self.w
        x = norm(self.linear, x, w["attn_norm.weight"], self.config.rms_norm_eps)
        q, k, v = (self.linear(x, w[f"{p}_proj.weight"], w[f"{p}_proj.bias"]).view(b, t, -1, hd) for p in "qkv")
        turn = native_ops.rotate if self.linear is linear and native_ops.usable(x) else rotate
        q, k = turn(q, *rope), turn(k, *rope)
        k_pos = positions
        if cache is not None:
            k, v, k_pos = cache.extend(k, v, positions)
        return self.linear(self.attend(q, k, v, positions, k_pos), w["o_proj.weight"], w["o_proj.bias"])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """Rotated q [B, T, n, hd] on every column that the cache gave -> [B, T, n * hd]."""
        native = (
            self.linear is linear
            and native_ops.usable(q.flatten(2))
            and self.config.num_attention_heads <= native_ops.MAX_GROUP * k.shape[2]
        )
        return (native_ops.attend if native else attend)(q, k, v, self.w["sinks"], q_pos, k_pos, self.window)


class MoE:
    """Norm, router, top-k experts. Returns what is added to the residual stream."""

    def __init__(self, config: GptOssConfig, weights: dict[str, Any], experts: Experts, linear: Linear) -> None:
        self.config, self.w, self.experts, self.linear = config, weights, experts, linear

    def __call__(self, x: Tensor, layer: int, taps: Taps | None) -> Tensor:
        x = norm(self.linear, x, self.w["mlp_norm.weight"], self.config.rms_norm_eps)
        scores = self.linear(x, self.w["router.weight"], self.w["router.bias"])  # (B, T, E)
        if taps is not None and taps.forced is not None:
            chosen = taps.forced[layer].to(scores.device)
        else:
            chosen = self.choose(scores)
        if taps is not None:
            taps.router_scores.append(scores)
            taps.experts.append(chosen)
        weights = self.combine(scores, chosen)
        flat = self.experts(x.flatten(0, 1), chosen.flatten(0, 1), weights.flatten(0, 1))
        return flat.view_as(x)

    def choose(self, scores: Tensor) -> Tensor:
        """scores [.., E] -> the chosen experts [.., K], the best first."""
        return scores.topk(self.config.experts_per_token, dim=-1, sorted=True).indices

    @staticmethod
    def combine(scores: Tensor, chosen: Tensor) -> Tensor:
        """scores [.., E], chosen [.., K] -> the experts' weights [.., K]: softmax over the chosen ones only."""
        return scores.gather(-1, chosen).softmax(-1)


class GptOss:
    """A gpt-oss model over a checkpoint's weights. `model(ids [B, T]) -> logits [B, T, V]`.

    Attributes: config, dtype (of activations), device, layers (list of (Attention, MoE)), checkpoint.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        experts: str = "auto",
        dense: str = "stored",
    ) -> None:
        if dense not in ("stored", "packed"):
            raise UsageError("dense must be stored or packed", got=dense)
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self.dtype, self.device = dtype, torch.device(device)
        self.linear: Linear = linear_in_torch if experts == "oracle" else linear
        self.packs = (
            dense == "packed"
            and self.linear is linear
            and dtype == torch.float32
            and self.device.type == "cpu"
            and packs()
        )
        self.rope = Rope(self.config, self.device)
        self.embedding, self.norm = self._dense("embedding.weight"), self._dense("norm.weight")
        self.unembedding: Any = self._matrix("unembedding.weight")
        self.layers: list[tuple[Attention, MoE]] = []
        for n in range(self.config.num_hidden_layers):
            w: dict[str, Any] = {
                name: (self._matrix if name in PROJECTIONS else self._dense)(f"layers.{n}.{name}")
                for name in LAYER_TENSORS
            }
            moe = MoE(self.config, w, load_experts(checkpoint, n, dtype, self.device, experts), self.linear)
            self.layers.append((Attention(self.config, w, n, self.linear), moe))
        self.graph: DecodeGraph | None = None  # of the last answer on a GPU, for the next one

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path | Checkpoint,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        experts: str = "auto",
        dense: str = "stored",
    ) -> GptOss:
        """Open a checkpoint of any kind. dtype: float32 (the truth), float64 or bfloat16.

        experts: "auto" (native kernels where they run, else torch), "q24", "q16" (native
        precisions), "triton", "oracle" (decode one
        expert at a time in torch; bit-identical logits between the layouts). dense: "stored", or "packed": attention
        weights and output head are copied into memory in 12 bits a weight, without loss, where this machine then
        decodes faster (AVX512, float32). Raises BadInput naming file and tensor.
        """
        from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint

        if dtype not in (torch.float32, torch.float64, torch.bfloat16):
            raise UsageError("dtype must be float32, float64 or bfloat16", got=dtype)
        checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path)
        return cls(checkpoint, dtype, device, experts, dense)

    def new_cache(self) -> list[Cache]:
        """An empty KV cache: one Cache per layer."""
        return [Cache(attention.window) for attention, _ in self.layers]

    @torch.inference_mode()
    def __call__(
        self,
        input_ids: Tensor,
        *,
        cache: list[Cache] | None = None,
        positions: Tensor | None = None,
        taps: Taps | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """input_ids [B, T] int64 -> logits [B, T, V] in the model's dtype.

        positions [B, T]: of each token, ascending, -1 for padding on the left (its logits mean nothing). Default: 0..
        after what the cache holds.
        last_only: logits of the last column only, [B, 1, V]. Raises UsageError for ids or lengths out of range.
        """
        small = (
            input_ids.numel() <= native_ops.NATIVE_ROWS
            and self.linear is linear
            and self.dtype == torch.float32
            and self.device.type == "cpu"
        )
        with native_ops.small_step() if small else nullcontext():
            x = self.hidden(input_ids, cache=cache, positions=positions, taps=taps)
            return self.linear(x[:, -1:] if last_only else x, self.unembedding, None)

    @torch.inference_mode()
    def hidden(
        self,
        input_ids: Tensor,
        *,
        cache: list[Cache] | None = None,
        positions: Tensor | None = None,
        taps: Taps | None = None,
    ) -> Tensor:
        """The same without the output head: [B, T, H] after the last norm. What a prompt's earlier chunks need."""
        ids = input_ids.to(self.device)
        return self.hidden_unchecked(ids, self._check(ids, positions, cache), cache, taps)

    def hidden_unchecked(
        self, ids: Tensor, positions: Tensor, cache: Sequence[KeyValues] | None = None, taps: Taps | None = None
    ) -> Tensor:
        """`hidden` of ids and positions that are known to be right, on the model's device: [B, T, H]. Asks the host
        nothing itself.
        """
        x = F.embedding(ids, self.embedding).to(self.dtype)  # (B, T, H)
        rope = self.rope.tables(positions.clamp(min=0), self.dtype)
        for n, (attention, moe) in enumerate(self.layers):
            x = x + attention(x, rope, positions, None if cache is None else cache[n])
            x = x + moe(x, n, taps)
            if taps is not None:
                taps.hidden.append(x)
        return norm(self.linear, x, self.norm, self.config.rms_norm_eps)

    def as_module(self) -> torch.nn.Module:
        """ids [B, T] -> logits [B, T, V] as a torch.nn.Module for torch.compile and torch.export: the native products
        are nodes of the graph (`gptoss::mxfp4_moe`, `gptoss::linear_bf16`). Ids are not checked there, and there is no
        cache.
        """
        if self.packs:
            raise UsageError('a model with packed dense weights cannot be traced: load it with dense="stored"')
        return _Traceable(self)

    def generate(self, input_ids: Tensor | Sequence[Sequence[int]] | Sequence[int], **options: Any) -> list[Generation]:
        """Continue prompts (ragged lists are fine): see `gptoss_adapters.reference.generate.generate`."""
        from gptoss_adapters.reference.generate import generate

        return generate(self, input_ids, **options)

    def _check(self, ids: Tensor, positions: Tensor | None, cache: list[Cache] | None) -> Tensor:
        if ids.dim() != 2 or not ids.numel() or ids.dtype not in (torch.int64, torch.int32):
            raise UsageError("input_ids must be int64 of shape [B, T], not empty", got=f"{ids.dtype} {list(ids.shape)}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise UsageError(
                "input_ids: token id outside the vocabulary",
                expected=f"0..{self.config.vocab_size - 1}",
                got=low if low < 0 else high,
            )
        if positions is None:
            past = _next_position(cache)
            if past < 0:
                raise UsageError("rows of different lengths are in the cache: give their positions")
            positions = torch.arange(past, past + ids.shape[1], device=self.device).expand(ids.shape[0], -1)
        if positions.shape != ids.shape:
            raise UsageError(
                "positions must have the shape of input_ids", expected=list(ids.shape), got=list(positions.shape)
            )
        longest = int(positions.max()) + 1
        if longest > self.config.max_position_embeddings:
            raise UsageError(
                "prompt is longer than the context", expected=f"<= {self.config.max_position_embeddings}", got=longest
            )
        if bool((positions.diff(dim=1) < 0).any()):
            raise UsageError("positions must ascend in each row, padding (-1) on the left")
        return positions.to(self.device)

    def _dense(self, name: str) -> Tensor:
        quantised = self.checkpoint.tensors[name].encoding == "q8_0"
        tensor = as_tensor(self.checkpoint.read(name) if quantised else self.checkpoint.array(name))
        if tensor.dim() == 1:
            tensor = tensor.float()  # norms, biases and sinks: what they are added to is float32 or wider
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    def _matrix(self, name: str) -> Weight:
        weight = self._dense(name)
        if not self.packs or weight.dtype != torch.bfloat16 or weight.numel() < PACK_VALUES:
            return weight
        packed = pack(weight.contiguous())
        self.checkpoint.release(name)
        return weight if packed is None else packed


class _Traceable(torch.nn.Module):
    """What `GptOss.as_module` returns; it holds no weight of its own."""

    def __init__(self, model: GptOss) -> None:
        from gptoss_adapters.mxfp4 import torch_ops  # noqa: F401 - registers the operators

        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=self.model.device).expand(input_ids.shape[0], -1)
        return self.model.linear(self.model.hidden_unchecked(input_ids, positions), self.model.unembedding, None)


def _next_position(cache: list[Cache] | None) -> int:
    """The position after what the cache holds; -1 if its rows differ."""
    last = [c.positions[:, c.end - 1] for c in cache or () if c.positions is not None and len(c)]
    if not last:
        return 0
    return int(last[0][0]) + 1 if bool((last[0] == last[0][0]).all()) else -1


PROJECTIONS = tuple(f"{p}_proj.weight" for p in "qkvo")
LAYER_TENSORS = (
    "attn_norm.weight",
    *(f"{p}_proj.{w}" for p in "qkvo" for w in ("weight", "bias")),
    "sinks",
    "mlp_norm.weight",
    "router.weight",
    "router.bias",
)


def plan_memory(config: GptOssConfig, context: int, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    """Bytes of a whole model in MXFP4 at this context: experts, dense (bf16), kv_cache (in dtype, one row), total."""
    total, _ = config.parameters()
    per_expert = 3 * config.hidden_size * config.intermediate_size
    packed = config.num_hidden_layers * config.num_experts * per_expert
    experts = packed // 2 + packed // MXFP4_BLOCK
    columns = sum(
        min(context, config.sliding_window - 1) if kind == SLIDING else context for kind in config.layer_types
    )
    plan = {
        "experts": experts,
        "dense": (total - packed) * 2,
        "kv_cache": columns * 2 * config.kv_rows * dtype.itemsize,
    }
    return plan | {"total": sum(plan.values())}
