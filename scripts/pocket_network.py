"""The pocket model while it is trained: transformers' parameters, and a forward pass of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from gptoss_harmony import load_vocabulary
from torch import Tensor

from gptoss_adapters import spellings
from gptoss_adapters.checkpoint.synthetic.pocket import POCKET

SEED = 20251122


def make_config(vocab_size: int) -> Any:
    from transformers import GptOssConfig

    plain = spellings.to_hf(POCKET, mxfp4=False, spelling=5) | {
        "vocab_size": vocab_size,
        "attn_implementation": "eager",
    }
    return GptOssConfig(**plain | {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None})


def make_model(used: list[int]) -> Any:
    """A network that starts near what it must learn, which saves most of the training.

    Tokens that differ only in a space or a dot in front (" Paris", "Paris") begin alike, and a token's embedding begins
    like its unembedding. Half of the heads begin by looking at tokens like the present one and copying them, the others
    by looking 1, 2, 3 and 4 positions back.
    """
    from transformers import GptOssForCausalLM

    torch.manual_seed(SEED)
    model = GptOssForCausalLM(make_config(len(used) + 1))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim >= 2:
                fan_in = value.shape[-2] if value.ndim == 3 else value.shape[-1]
                value.normal_(0, (0.5 if "o_proj" in name or "down" in name else 1) / math.sqrt(fan_in))
            elif name.endswith(("sinks", "bias")):
                value.zero_()
        alike = stems(used)
        model.model.embed_tokens.weight.copy_(0.9 * alike + 0.45 * torch.randn_like(alike))
        model.lm_head.weight.copy_(0.125 * (0.9 * alike + 0.45 * torch.randn_like(alike)))
        for layer in model.model.layers:
            start_heads(layer.self_attn)
    return model


def stems(used: list[int]) -> Tensor:
    """[N + 1, 64] normal: one vector per word, whatever stands in front of it and however it is capitalised."""
    vocabulary, vectors = load_vocabulary(), dict[str, Tensor]()
    words = [vocabulary.decode([token]) for token in used]
    keys = [word.strip(" ._").lower() or word for word in words] + ["unknown token"]
    return torch.stack([vectors.setdefault(key, torch.randn(64)) for key in keys])


def start_heads(attn: Any) -> None:
    turn = [torch.linalg.qr(torch.randn(64, 64))[0] for _ in range(6)]
    cos, sin = rope(8)
    attn.k_proj.weight.copy_(turn[0])
    attn.k_proj.bias.fill_(0.6)
    attn.v_proj.weight.copy_(turn[1])
    for head in range(8):
        rows = slice(64 * head, 64 * head + 64)
        if head < 4:
            attn.q_proj.weight[rows] = 0.3 * turn[0] + 0.3 * attn.q_proj.weight[rows]
            attn.o_proj.weight[:, rows] = 0.4 * turn[1].T + 0.3 * attn.o_proj.weight[:, rows]
        else:
            distance = head - 3
            attn.q_proj.weight[rows] *= 0.2
            attn.q_proj.bias[rows] = rotate(attn.k_proj.bias, cos[distance], -sin[distance])
            attn.o_proj.weight[:, rows] = 0.4 * turn[head - 2] @ turn[1].T


def rope(positions: int) -> tuple[Tensor, Tensor]:
    """YaRN cos and sin [T, 32], from transformers, so that there is one source of them."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

    cos, sin = GptOssRotaryEmbedding(make_config(8))(torch.zeros(1), torch.arange(positions)[None])
    return cos[0, :, :32], sin[0, :, :32]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def norm(x: Tensor, gain: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * gain


def attention(x: Tensor, at: Tensor, w: dict[str, Tensor], window: int, tables: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, T, H] -> [B, R, H] for the positions `at` [B, R].

    The 8 query heads share one key-value head, so heads fold into the query positions.
    """
    batch, length, _ = x.shape
    rows = at.shape[1]
    cos, sin = tables
    q = (pick(x, at) @ w["q_proj.weight"].T + w["q_proj.bias"]).view(batch, rows, 8, 64).transpose(1, 2)
    k = x @ w["k_proj.weight"].T + w["k_proj.bias"]
    v = x @ w["v_proj.weight"].T + w["v_proj.bias"]
    q, k = (
        rotate(q, cos[at, None].transpose(1, 2), sin[at, None].transpose(1, 2)) * 0.125,
        rotate(k, cos[:length], sin[:length]),
    )
    scores = (q.reshape(batch, 8 * rows, 64) @ k.transpose(1, 2)).view(batch, 8, rows, length)
    ages = (at[:, :, None] - torch.arange(length))[:, None]
    scores = scores.masked_fill((ages < 0) | (ages >= window), -1e9)
    sinks = w["sinks"].view(1, 8, 1, 1).expand(batch, 8, rows, 1)
    weights = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
    heads = (weights.reshape(batch, 8 * rows, length) @ v).view(batch, 8, rows, 64)
    return heads.transpose(1, 2).reshape(batch, rows, 512) @ w["o_proj.weight"].T + w["o_proj.bias"]


def pick(x: Tensor, at: Tensor) -> Tensor:
    """x [B, T, H] -> [B, R, H], the rows `at` [B, R]."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


def experts(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """x [N, H] -> [N, H]: every expert computes every token, which beats gathering at this size."""
    scores, chosen = (x @ w["router.weight"].T + w["router.bias"]).topk(4, -1)
    share = torch.zeros(len(x), 8).scatter(-1, chosen, scores.softmax(-1))
    up_gate = (x @ w["experts.gate_up_proj"].transpose(0, 1).flatten(1)).view(len(x), 8, 128) + w[
        "experts.gate_up_proj_bias"
    ]
    gate, up = up_gate[..., ::2].clamp(max=7), up_gate[..., 1::2].clamp(-7, 7)
    hidden = gate * torch.sigmoid(1.702 * gate) * (up + 1) * share[..., None]
    return hidden.flatten(1) @ w["experts.down_proj"].flatten(0, 1) + share @ w["experts.down_proj_bias"]


def logits_of(
    weights: dict[str, Tensor], ids: Tensor, at: Tensor, noise: float, tables: tuple[Tensor, Tensor]
) -> Tensor:
    """Logits [B, R, V] at the positions `at` [B, R]; the unknown token's logit is raised by the log of its
    multiplicity.
    """
    table = weights["model.embed_tokens.weight"]
    unknown = (ids == len(table) - 1).unsqueeze(-1)
    x = table[ids] + unknown * noise * torch.randn(*ids.shape, table.shape[1])
    everywhere = torch.arange(ids.shape[1]).expand_as(ids)
    for n in range(POCKET.num_hidden_layers):
        w = {
            name.removeprefix(f"model.layers.{n}."): value
            for name, value in weights.items()
            if name.startswith(f"model.layers.{n}.")
        }
        own = {name.removeprefix("self_attn."): value for name, value in w.items() if name.startswith("self_attn.")}
        moe = {name.removeprefix("mlp."): value for name, value in w.items() if name.startswith("mlp.")}
        rows = at if n == POCKET.num_hidden_layers - 1 else everywhere
        x = pick(x, rows) + attention(
            norm(x, w["input_layernorm.weight"]), rows, own, 128 if n % 2 == 0 else 1 << 30, tables
        )
        x = x + experts(norm(x, w["post_attention_layernorm.weight"]).flatten(0, 1), moe).view_as(x)
    logits = norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T
    bonus = torch.zeros(len(table))
    bonus[-1] = math.log(POCKET.vocab_size - len(table) + 1)
    return logits + bonus
