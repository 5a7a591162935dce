"""Small GGUF and safetensors files, and what a random change makes of them. Not a test module."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass
class Spot:
    """Where a change happens: tensor info number `i`, key number `k`."""

    g: Gguf
    i: int
    k: int

    @property
    def info(self) -> Info:
        return self.g.infos[self.i]

    def set_key(self, *, key: bytes | None = None, kind: int | None = None, value: bytes | None = None) -> None:
        old_key, old_kind, old_value = self.g.keys[self.k]
        self.g.keys[self.k] = (
            old_key if key is None else key,
            old_kind if kind is None else kind,
            old_value if value is None else value,
        )


def _rename_key(at: Spot, r: random.Random) -> None:
    keys = at.g.keys
    at.set_key(
        key=r.choice([r.choice(WORDS).encode(), keys[r.randrange(len(keys))][0], keys[at.k][0] + b"\xff"]),
    )


def _make_array(at: Spot, r: random.Random) -> None:
    head = r.choice([0, 4, 7, 8, 9, 77]).to_bytes(4, "little") + U64.pack(r.choice(NUMBERS))
    at.set_key(kind=9, value=head + at.g.keys[at.k][2])


def _change_dimension(at: Spot, r: random.Random) -> None:
    ne = at.info.ne
    number = r.choice(NUMBERS) if ne else 1
    ne[r.randrange(len(ne) or 1)] = number


def _change_dimensions(at: Spot, r: random.Random) -> None:
    at.info.ne = [r.choice(NUMBERS[:8]) for _ in range(r.randrange(7))] or at.info.ne


def _move_tensor(at: Spot, r: random.Random) -> None:
    infos = at.g.infos
    at.info.offset = r.choice([*NUMBERS, at.info.offset + 32, infos[r.randrange(len(infos))].offset])


def _rename_tensor(at: Spot, r: random.Random) -> None:
    infos = at.g.infos
    at.info.name = r.choice([r.choice(WORDS).encode(), infos[r.randrange(len(infos))].name, b"\xff"])


def _shuffle_tensors(at: Spot, r: random.Random) -> None:
    infos, i = at.g.infos, at.i
    at.g.infos = r.choice([infos[::-1], infos[:i] + infos[i + 1 :] or infos, [*infos, infos[i]]])


def _change_count(at: Spot, r: random.Random) -> None:
    number = r.choice([*NUMBERS, len(at.g.infos) - 1, len(at.g.keys) + 1])
    at.g.counts[r.choice(["n_tensors", "n_keys"])] = number


def _change_header(at: Spot, r: random.Random) -> None:
    at.g.version = r.choice([0, 1, 2, 3, 4, 3 << 24])
    at.g.alignment = r.choice([1, 8, 32, 64])


def _change_data(at: Spot, r: random.Random) -> None:
    data = at.g.data
    if data:
        at.g.data = r.choice([data[: r.randrange(len(data))], data + b"\0" * r.randrange(1, 99), b""])


GGUF_CHANGES: list[Callable[[Spot, random.Random], object]] = [
    lambda at, r: at.set_key(kind=r.choice([*SIZES, STRING, 9, 13, 2**32 - 1])),
    _rename_key,
    lambda at, r: at.set_key(value=bytes(r.randrange(256) for _ in at.g.keys[at.k][2])),
    _make_array,
    lambda at, r: at.g.keys.pop(at.k),
    lambda at, r: at.g.keys.insert(at.k, at.g.keys[r.randrange(len(at.g.keys))]),
    _change_dimension,
    _change_dimensions,
    lambda at, r: setattr(at.info, "kind", r.choice([*range(42), 999, 2**31, 2**32 - 1])),
    _move_tensor,
    _rename_tensor,
    _shuffle_tensors,
    _change_count,
    _change_header,
    _change_data,
]


def mutate_gguf(g: Gguf, r: random.Random, last_keys: Sequence[tuple[bytes, int, bytes]] = ()) -> bytes:
    """One to three changes of the six classes: metadata, tensor infos, header, consistency, alignment, data.

    `last_keys` follow the other keys and stay as they are.
    """
    g = Gguf(list(g.keys), [Info(t.name, list(t.ne), t.kind, t.offset) for t in g.infos], g.data)
    flips = 0
    for _ in range(r.randint(1, 3)):
        at = Spot(g, r.randrange(len(g.infos)), r.randrange(len(g.keys)))
        choice = r.randrange(len(GGUF_CHANGES) + 1)
        if choice < len(GGUF_CHANGES):
            GGUF_CHANGES[choice](at, r)
        else:
            flips += 1
    g.keys += last_keys
    raw = g.bytes()
    for _ in range(flips):
        raw = flip(raw, r, 2500)
    return raw


def flip(raw: bytes, r: random.Random, within: int) -> bytes:
    """One byte of the header changed, or some cut out."""
    at = r.randrange(min(within, len(raw)))
    return raw[:at] + (bytes([r.randrange(256)]) + raw[at + 1 :] if r.random() < 0.8 else raw[at + r.randrange(1, 9) :])


def _change_safetensors_dimension(entry: dict[str, Any], r: random.Random) -> bool:
    shape = entry.get("shape")
    possible = isinstance(shape, list) and bool(shape)
    if possible:
        number = r.choice([*NUMBERS, -1, 2.0, "3", None, True, []])
        shape[r.randrange(len(shape))] = number
    return possible


def _change_offset(entry: dict[str, Any], r: random.Random) -> bool:
    offsets = entry.get("data_offsets")
    possible = isinstance(offsets, list) and len(offsets) == 2
    if possible:
        number = r.choice([*NUMBERS, -1, 1.5, None, "0"])
        offsets[r.randrange(2)] = number
    return possible


def _change_entry(entry: dict[str, Any], choice: int, r: random.Random) -> bool:
    """One of the first six changes of a tensor's entry in the header. False: it has nothing that this one changes."""
    if choice == 0:
        entry["dtype"] = r.choice(["F32", "BF16", "U8", "F4", "F64", "", None, 7, "f32"])
    elif choice == 1:
        return _change_safetensors_dimension(entry, r)
    elif choice == 2:
        entry["shape"] = r.choice([[], [0], None, "x", [1] * 9, [[1]], {}])
    elif choice == 3:
        return _change_offset(entry, r)
    elif choice == 4:
        entry["data_offsets"] = r.choice([[], [0], [0, 0], [5, 1], None, entry.get("data_offsets"), "0,1"])
    else:
        value = r.choice([1, None, "x"])
        entry[r.choice(["extra", "dtype", "shape"])] = value
    return True


def _change_file(s: Safetensors, name: str, choice: int, r: random.Random) -> None:
    entry = s.header[name]
    if choice == 6:
        moved = r.choice([s.header.pop(name), {}, None, [], 1, {"format": 1}]) if len(s.header) > 1 else entry
        s.header[r.choice(WORDS)] = moved
    elif choice == 7:
        s.data = r.choice([s.data[: r.randrange(len(s.data) + 1)], s.data + b"\0" * r.randrange(1, 9)])
    else:
        s.size = r.choice([*NUMBERS, len(json.dumps(s.header)) - 1, len(json.dumps(s.header)) + 1])


def mutate_safetensors(s: Safetensors, r: random.Random) -> bytes:
    """One to three changes: of a tensor's entry, of the file, or of single bytes of the header."""
    s = Safetensors(json.loads(json.dumps(s.header)), s.data)
    flips = 0
    for _ in range(r.randint(1, 3)):
        name = r.choice([n for n in s.header if isinstance(s.header[n], dict)])
        choice = r.randrange(11)
        if choice in (6, 7, 8):
            _change_file(s, name, choice, r)
        elif choice > 8 or not _change_entry(s.header[name], choice, r):
            flips += 1
    raw = s.bytes() if s.size is None or s.size < 2**64 else b""
    for _ in range(flips):
        raw = flip(raw, r, 3000)
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
