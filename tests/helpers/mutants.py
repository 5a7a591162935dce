"""Small GGUF and safetensors files, and what a random change makes of them. Not a test module."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.storage import BLOCKS, SCALES
from gptoss_adapters.spec import GptOssConfig
from helpers.hostile import SIZES, STRING, U64, Gguf, Info, Safetensors

GOLD = Path(__file__).parents[1] / "data"
TINY = GptOssConfig(
    num_hidden_layers=1,
    num_experts=2,
    experts_per_token=1,
    vocab_size=8,
    hidden_size=32,
    intermediate_size=32,
    head_dim=8,
    num_attention_heads=2,
    num_key_value_heads=1,
)
NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    31,
    32,
    33,
    64,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**53 + 1,
    2**61,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 32,
    2**64 - 1,
]
JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    1.5,
    0.5,
    1e300,
    1e-60,
    5e-324,
    10**400,
    2**63,
    5 * 10**9,
    "",
    "x",
    "\ud800",
    [],
    {},
    [1],
    [[]],
    {"a": 1},
    ["full_attention"] * 4,
]
WORDS = [
    "",
    "a",
    "__metadata__",
    "../x",
    "\0",
    "\n",
    "é",
    "x" * 63,
    "x" * 64,
    "x" * 2000,
    "blk.0.attn_q.weight",
    "general.alignment",
    "\u202e",
]


def tiny_gguf() -> Gguf:
    """A whole gpt-oss of some 20 kB without a vocabulary, written by gguf-py's rules."""
    keys = Gguf.parse((GOLD / "gguf" / "gguf" / "tiny-mxfp4.gguf").read_bytes()).keys
    g = Gguf([k for k in keys if not k[0].startswith(b"tokenizer.")], [], b"")
    sizes = {
        "block_count": 1,
        "embedding_length": 32,
        "feed_forward_length": 32,
        "expert_feed_forward_length": 32,
        "expert_count": 2,
        "expert_used_count": 1,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 8,
        "attention.value_length": 8,
    }
    for key, value in sizes.items():
        g.set(f"gpt-oss.{key}", 4, value.to_bytes(4, "little"))
    for name, spec in layouts.stored("gguf", TINY).items():
        kind, nbytes = (
            (39, 17 * (n_values(spec.shape) // 32)) if name.endswith("exps.weight") else (0, 4 * n_values(spec.shape))
        )
        g.infos.append(Info(name.encode(), list(spec.shape[::-1]), kind, len(g.data)))
        g.data += bytes(i % 128 for i in range(nbytes)) + b"\0" * (-nbytes % 32)
    return g


def n_values(shape: tuple[int, ...]) -> int:
    n = 1
    for d in shape:
        n *= d
    return n


def mutate_gguf(g: Gguf, r: random.Random, last_keys: Sequence[tuple[bytes, int, bytes]] = ()) -> bytes:
    """One to three changes of the six classes: metadata, tensor infos, header, consistency, alignment, data.

    `last_keys` follow the other keys and stay as they are.
    """
    g = Gguf(list(g.keys), [Info(t.name, list(t.ne), t.kind, t.offset) for t in g.infos], g.data)
    after: list[Callable[[bytes], bytes]] = []
    for _ in range(r.randint(1, 3)):
        i, k = r.randrange(len(g.infos)), r.randrange(len(g.keys))
        key, kind, value = g.keys[k]
        choice = r.randrange(16)
        if choice == 0:
            g.keys[k] = (key, r.choice([*SIZES, STRING, 9, 13, 2**32 - 1]), value)
        elif choice == 1:
            g.keys[k] = (
                r.choice([r.choice(WORDS).encode(), g.keys[r.randrange(len(g.keys))][0], key + b"\xff"]),
                kind,
                value,
            )
        elif choice == 2:
            g.keys[k] = (key, kind, bytes(r.randrange(256) for _ in value))
        elif choice == 3:
            g.keys[k] = (
                key,
                9,
                r.choice([0, 4, 7, 8, 9, 77]).to_bytes(4, "little") + U64.pack(r.choice(NUMBERS)) + value,
            )
        elif choice == 4:
            del g.keys[k]
        elif choice == 5:
            g.keys.insert(k, g.keys[r.randrange(len(g.keys))])
        elif choice == 6:
            g.infos[i].ne[r.randrange(len(g.infos[i].ne) or 1)] = r.choice(NUMBERS) if g.infos[i].ne else 1
        elif choice == 7:
            g.infos[i].ne = [r.choice(NUMBERS[:8]) for _ in range(r.randrange(7))] or g.infos[i].ne
        elif choice == 8:
            g.infos[i].kind = r.choice([*range(42), 999, 2**31, 2**32 - 1])
        elif choice == 9:
            g.infos[i].offset = r.choice([*NUMBERS, g.infos[i].offset + 32, g.infos[r.randrange(len(g.infos))].offset])
        elif choice == 10:
            g.infos[i].name = r.choice([r.choice(WORDS).encode(), g.infos[r.randrange(len(g.infos))].name, b"\xff"])
        elif choice == 11:
            g.infos = r.choice([g.infos[::-1], g.infos[:i] + g.infos[i + 1 :] or g.infos, [*g.infos, g.infos[i]]])
        elif choice == 12:
            g.counts[r.choice(["n_tensors", "n_keys"])] = r.choice([*NUMBERS, len(g.infos) - 1, len(g.keys) + 1])
        elif choice == 13:
            g.version, g.alignment = r.choice([0, 1, 2, 3, 4, 3 << 24]), r.choice([1, 8, 32, 64])
        elif choice == 14:
            g.data = (
                r.choice([g.data[: r.randrange(len(g.data))], g.data + b"\0" * r.randrange(1, 99), b""])
                if g.data
                else g.data
            )
        else:
            after.append(lambda raw: flip(raw, r, 2500))
    g.keys += last_keys
    raw = g.bytes()
    for change in after:
        raw = change(raw)
    return raw


def flip(raw: bytes, r: random.Random, within: int) -> bytes:
    """One byte of the header changed, or some cut out."""
    at = r.randrange(min(within, len(raw)))
    return raw[:at] + (bytes([r.randrange(256)]) + raw[at + 1 :] if r.random() < 0.8 else raw[at + r.randrange(1, 9) :])


def mutate_safetensors(s: Safetensors, r: random.Random) -> bytes:
    s = Safetensors(json.loads(json.dumps(s.header)), s.data)
    after: list[Callable[[bytes], bytes]] = []
    for _ in range(r.randint(1, 3)):
        name = r.choice([n for n in s.header if isinstance(s.header[n], dict)])
        entry = s.header[name]
        choice = r.randrange(11)
        if choice == 0:
            entry["dtype"] = r.choice(["F32", "BF16", "U8", "F4", "F64", "", None, 7, "f32"])
        elif choice == 1 and entry.get("shape") and isinstance(entry["shape"], list):
            entry["shape"][r.randrange(len(entry["shape"]))] = r.choice([*NUMBERS, -1, 2.0, "3", None, True, []])
        elif choice == 2:
            entry["shape"] = r.choice([[], [0], None, "x", [1] * 9, [[1]], {}])
        elif choice == 3 and isinstance(entry.get("data_offsets"), list) and len(entry["data_offsets"]) == 2:
            entry["data_offsets"][r.randrange(2)] = r.choice([*NUMBERS, -1, 1.5, None, "0"])
        elif choice == 4:
            entry["data_offsets"] = r.choice(
                [[], [0], [0, 0], [5, 1], None, dict(s.header[name]).get("data_offsets"), "0,1"]
            )
        elif choice == 5:
            entry[r.choice(["extra", "dtype", "shape"])] = r.choice([1, None, "x"])
        elif choice == 6:
            s.header[r.choice(WORDS)] = (
                r.choice([s.header.pop(name), {}, None, [], 1, {"format": 1}]) if len(s.header) > 1 else entry
            )
        elif choice == 7:
            s.data = r.choice([s.data[: r.randrange(len(s.data) + 1)], s.data + b"\0" * r.randrange(1, 9)])
        elif choice == 8:
            s.size = r.choice([*NUMBERS, len(json.dumps(s.header)) - 1, len(json.dumps(s.header)) + 1])
        else:
            after.append(lambda raw: flip(raw, r, 3000))
    raw = s.bytes() if s.size is None or s.size < 2**64 else b""
    for change in after:
        raw = change(raw)
    return raw


def tiny_safetensors() -> Safetensors:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, spec in layouts.stored("hf-mxfp4", TINY).items():
        packed = spec.storage in (BLOCKS, SCALES)
        nbytes = n_values(spec.shape) * (1 if packed else 2)
        header[name] = {
            "dtype": "U8" if packed else "BF16",
            "shape": list(spec.shape),
            "data_offsets": [len(data), len(data) + nbytes],
        }
        data += bytes(i % 120 for i in range(nbytes))
    return Safetensors(header, data)
