"""The canonical gpt-oss model in torch: the one place where the architecture is defined.

A decoder-only mixture-of-experts transformer, read here in forward order:

- token embedding; RMSNorm before attention and before the experts; untied output head
- attention with a learned sink per query head, grouped queries, sliding window on some layers, YaRN RoPE (half-split)
- experts chosen by top-k of a linear router, softmax over the chosen; clamped SwiGLU; biases everywhere
- expert weights stay in MXFP4, as stored, and are decoded one expert at a time (`experts.py`: `OracleExperts`)

The computation is float32 (or float64) on exactly decoded weights: the truth that every engine is judged against.
bfloat16 follows OpenAI's torch implementation. Dense weights keep their stored dtype and are widened when used. Each
operation is defined here and called through `Ops` (`ops.py`), which may hold a faster one that gives the same.

B rows, T tokens, S keys, H hidden, V vocabulary, E experts of which K are chosen, I wide; n and n_kv heads of hd.

Formulas: openai/gpt-oss `torch/model.py`; YaRN: Peng et al. 2023, arXiv:2309.00071.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.reference.cache import Cache, KeyValues, next_position
from gptoss_adapters.reference.checks import check_ids, check_positions, count_positions
from gptoss_adapters.reference.experts import ExpertLayer, load_experts
from gptoss_adapters.reference.linear import linear
from gptoss_adapters.reference.loading import DenseWeights, open_for_model
from gptoss_adapters.reference.ops import Ops, choose_ops
from gptoss_adapters.reference.taps import Taps
from gptoss_adapters.spec import GptOssConfig


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """x [..., H] -> x / rms(x) * scale, in at least float32, rounded once to x's dtype."""
    t = x if x.dtype == torch.float64 else x.float()
    t = t * torch.rsqrt(t.square().mean(-1, keepdim=True) + eps)
    return (t * scale.to(t.dtype)).to(x.dtype)


def yarn_inverse_frequencies(config: GptOssConfig) -> Tensor:
    """(hd/2,) float64: interpolated for slow pairs, as trained for fast ones, a linear ramp in between."""
    pair = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
    freq = config.rope_theta ** (pair / config.head_dim)
    if not config.uses_yarn:
        return 1.0 / freq
    low, high = config.yarn_bounds()
    ramp = ((pair / 2 - low) / (high - low)).clamp(0, 1)
    return ramp / (config.rope_scaling_factor * freq) + (1 - ramp) / freq


@dataclass(frozen=True, eq=False)
class Rope:
    """YaRN rotary embedding: rotates the two halves of a head by position x inverse frequency.

    inv_freq: (hd/2,) float64. concentration: YaRN's factor on cosine and sine.
    """

    inv_freq: Tensor
    concentration: float

    @classmethod
    def from_config(cls, config: GptOssConfig, device: torch.device) -> Rope:
        return cls(yarn_inverse_frequencies(config).to(device), config.concentration)

    def angles(self, positions: Tensor) -> Tensor:
        """positions [B, T] -> [B, T, hd/2]."""
        return positions[..., None].to(torch.float64) * self.inv_freq

    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions [B, T] -> cos, sin [B, T, 1, hd/2] in dtype, times the concentration factor."""
        angle = self.angles(positions)
        cos, sin = torch.cos(angle) * self.concentration, torch.sin(angle) * self.concentration
        return cos.to(dtype).unsqueeze(-2), sin.to(dtype).unsqueeze(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, T, n, hd] -> the same, rotated."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, q_pos: Tensor, k_pos: Tensor, window: int | None) -> Tensor:
    """Attention with sinks. q [B, T, n, hd]; k, v [B, S, n_kv, hd]; sinks [n]; positions [B, T] and [B, S] ->
    [B, T, n * hd].

    Query t sees key s iff 0 <= p_s <= p_t and, in a sliding layer, p_t - p_s < window. The sink is one more score per
    query head, not scaled, without a value.
    """
    b, t, n, hd = q.shape
    n_kv = k.shape[2]
    q = q.view(b, t, n_kv, n // n_kv, hd)  # query heads in groups g of a key head
    scores = torch.einsum("btkgd,bskd->bkgts", q, k) * hd**-0.5
    distance = q_pos[:, :, None] - k_pos[:, None, :]  # (B, T, S)
    hidden = (distance < 0) | (k_pos[:, None, :] < 0)
    if window is not None:
        hidden |= distance >= window
    scores = scores.masked_fill(hidden[:, None, None], -math.inf)
    sink = sinks.to(scores.dtype).view(1, n_kv, n // n_kv, 1, 1).expand(b, -1, -1, t, 1)
    weights = torch.cat((scores, sink), -1).softmax(-1)[..., :-1]
    return torch.einsum("bkgts,bskd->btkgd", weights, v).reshape(b, t, n * hd)


def choose_experts(scores: Tensor, k: int) -> Tensor:
    """scores [.., E] -> the k best experts [.., K], the best first."""
    return scores.topk(k, dim=-1, sorted=True).indices


def weigh_experts(scores: Tensor, chosen: Tensor) -> Tensor:
    """scores [.., E], chosen [.., K] -> the experts' weights [.., K]: softmax over the chosen ones only."""
    return scores.gather(-1, chosen).softmax(-1)


def swiglu(x: Tensor, alpha: float, limit: float) -> Tensor:
    """x [..., 2I], gate on even and up on odd columns -> [..., I]: clamp, gate * sigmoid(alpha * gate) * (up + 1)."""
    gate, up = x[..., ::2].clamp(max=limit), x[..., 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


DEFINITION = Ops(linear, rms_norm, rotate, attend, choose_experts, weigh_experts, swiglu)


@dataclass(eq=False)
class Attention:
    """Norm, q/k/v, rotation, attention, output projection. Returns what is added to the residual stream."""

    config: GptOssConfig
    w: dict[str, Any]
    window: int | None
    ops: Ops

    def __call__(self, x: Tensor, rope: tuple[Tensor, Tensor], positions: Tensor, cache: KeyValues | None) -> Tensor:
        (b, t, _), hd = x.shape, self.config.head_dim
        w, ops = self.w, self.ops
        x = ops.rms_norm(x, w["attn_norm.weight"], self.config.rms_norm_eps)
        q, k, v = (ops.linear(x, w[f"{p}_proj.weight"], w[f"{p}_proj.bias"]).view(b, t, -1, hd) for p in "qkv")
        q, k = ops.rotate(q, *rope), ops.rotate(k, *rope)
        k_pos = positions
        if cache is not None:
            k, v, k_pos = cache.extend(k, v, positions)  # (B, S, n_kv, hd)
        y = ops.attend(q, k, v, w["sinks"], positions, k_pos, self.window)
        return ops.linear(y, w["o_proj.weight"], w["o_proj.bias"])


@dataclass(eq=False)
class MoE:
    """Norm, router, top-k experts. Returns what is added to the residual stream."""

    config: GptOssConfig
    w: dict[str, Any]
    experts: ExpertLayer
    ops: Ops

    def __call__(self, x: Tensor, layer: int, taps: Taps | None) -> Tensor:
        w, ops = self.w, self.ops
        x = ops.rms_norm(x, w["mlp_norm.weight"], self.config.rms_norm_eps)
        scores = ops.linear(x, w["router.weight"], w["router.bias"])  # (B, T, E)
        if taps is not None and taps.forced is not None:
            chosen = taps.forced[layer].to(scores.device)
        else:
            chosen = ops.choose(scores, self.config.experts_per_token)  # (B, T, K)
        if taps is not None:
            taps.router_scores.append(scores)
            taps.experts.append(chosen)
        weights = ops.weigh(scores, chosen)
        return self.experts(x.flatten(0, 1), chosen.flatten(0, 1), weights.flatten(0, 1)).view_as(x)


class Block(NamedTuple):
    """One layer: x + attention(x), then x + moe(x)."""

    attention: Attention
    moe: MoE


@dataclass(eq=False)
class GptOss:
    """A gpt-oss model over a checkpoint's weights. `model(ids [B, T]) -> logits [B, T, V]`.

    dtype: of activations. embedding, unembedding: [V, H]; norm: [H].
    """

    checkpoint: Checkpoint
    config: GptOssConfig
    dtype: torch.dtype
    device: torch.device
    ops: Ops
    rope: Rope
    embedding: Tensor
    layers: list[Block]
    norm: Tensor
    unembedding: Any
    graph: Any = field(default=None, init=False)  # `generate` keeps its last decode step here, for the next answer

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

        experts: "oracle" (torch alone, one expert decoded at a time: bit-identical logits between the layouts, and
        bfloat16 rounds where OpenAI's implementation does); "q24", "q16" (on a CPU, MXFP4 multiplied as it is, in two
        precisions, summed in float32 inside an expert layer: at least as close to the truth); "triton"; or "auto", the
        fastest of them in full precision. dense: "stored", or "packed": attention weights and output head are copied
        into memory in 12 bits a weight, without loss, where this machine then decodes faster (AVX512, float32).

        Raises BadInput naming file and tensor, UsageError for options that cannot be served.
        """
        checkpoint, device = open_for_model(path, dtype), torch.device(device)
        config, ops = checkpoint.config, choose_ops(DEFINITION, dtype, device, experts)
        weights = DenseWeights(checkpoint, dtype, device, experts, dense)
        embedding, norm = weights.tensor("embedding.weight"), weights.tensor("norm.weight")
        unembedding = weights.matrix("unembedding.weight")
        layers = []
        for n in range(config.num_hidden_layers):
            w = weights.layer(n)
            attention = Attention(config, w, config.window_of(n), ops)
            moe = MoE(config, w, load_experts(checkpoint, n, dtype, device, experts, DEFINITION), ops)
            layers.append(Block(attention, moe))
        rope = Rope.from_config(config, device)
        return cls(checkpoint, config, dtype, device, ops, rope, embedding, layers, norm, unembedding)

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
        with self.ops.step(input_ids.numel()):
            x = self.hidden(input_ids, cache=cache, positions=positions, taps=taps)
            return self.head(x[:, -1:] if last_only else x)

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
        check_ids(ids, self.config)
        if positions is None:
            positions = count_positions(ids, next_position(cache))
        check_positions(positions, ids, self.config)
        return self.forward(ids, positions.to(self.device), cache, taps)

    def forward(
        self, ids: Tensor, positions: Tensor, cache: Sequence[KeyValues] | None = None, taps: Taps | None = None
    ) -> Tensor:
        """`hidden` of ids and positions that are known to be right, on the model's device. Asks the host nothing."""
        x = F.embedding(ids, self.embedding).to(self.dtype)  # (B, T, H)
        rope = self.rope.tables(positions.clamp(min=0), self.dtype)
        for n, (attention, moe) in enumerate(self.layers):
            x = x + attention(x, rope, positions, None if cache is None else cache[n])
            x = x + moe(x, n, taps)
            if taps is not None:
                taps.hidden.append(x)
        return self.ops.rms_norm(x, self.norm, self.config.rms_norm_eps)

    def head(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """hidden [..., H] -> logits [..., V], or of the vocabulary's `rows` [n] alone: [..., n]."""
        return self.ops.linear(hidden, self.unembedding if rows is None else self.unembedding[rows], None)

    def as_module(self) -> torch.nn.Module:
        """ids [B, T] -> logits [B, T, V] as a torch.nn.Module for torch.compile and torch.export. Products are nodes of
        their graph (`gptoss::mxfp4_moe`, `gptoss::linear_bf16`); ids are not checked there, and there is no cache.
        """
        from gptoss_adapters.reference.tracing import Traceable, trace

        return Traceable(trace(self, DEFINITION))
