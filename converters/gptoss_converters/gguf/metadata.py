"""GGUF metadata of a gpt-oss model: the keys that llama.cpp and Ollama read, in upstream's order, and our provenance
keys.

Sources: llama.cpp's converter and loader (which keys are obeyed was measured); Ollama reads the same ones. What has no
key (SwiGLU limit and alpha, YaRN betas, unrounded YaRN bounds) is in `lossy` and `rounds_yarn`, and recorded under
`gptoss_adapters.`.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_adapters import spellings
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import FULL, GGUF_ARCH, SWIGLU_ALPHA, SWIGLU_LIMIT, GptOssConfig

# Type codes of the GGUF specification.
U16, U32, I32, F32, BOOL, STRING, ARRAY = 2, 4, 5, 6, 7, 8, 9
_FORMATS = {U16: "<H", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}
LLAMA_BETA_FAST, LLAMA_BETA_SLOW = 32.0, 1.0
FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q8_0": 7,
    "bf16": 32,
    "mxfp4": 38,
}  # by the experts' type, as llama.cpp's quantiser says it


@dataclass(frozen=True, slots=True)
class Key:
    """One metadata entry. An array is `kind` ARRAY with `of` its element type; `value` may be packed bytes with
    `count`.
    """

    name: str
    kind: int
    value: Any
    of: int = 0
    count: int = 0

    def pack(self) -> bytes:
        head = pack_string(self.name) + struct.pack("<I", self.kind)
        if self.kind != ARRAY:
            return head + _pack_value(self.kind, self.value)
        packed = isinstance(self.value, bytes)
        body = self.value if packed else b"".join(_pack_value(self.of, v) for v in self.value)
        return head + struct.pack("<IQ", self.of, self.count if packed else len(self.value)) + body


@dataclass(frozen=True, slots=True)
class StoredKey(Key):
    """An entry whose value is the bytes that another GGUF holds."""

    def pack(self) -> bytes:
        return pack_string(self.name) + struct.pack("<I", self.kind) + bytes(self.value)


def pack_string(text: str | bytes) -> bytes:
    try:
        data = text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise BadInput("a metadata text is not UTF-8", got=text) from None
    return struct.pack("<Q", len(data)) + data


def _pack_value(kind: int, value: Any) -> bytes:
    return pack_string(value) if kind == STRING else struct.pack(_FORMATS[kind], value)


def model_keys(config: GptOssConfig, general: list[Key], experts: str) -> list[Key]:
    """The keys of the architecture, after those of who made the model. `experts` is the type of the expert weights
    ("mxfp4", "bf16", ...).
    """
    own = [_architecture_key(f"{GGUF_ARCH}.{key}", value) for key, value in spellings.to_gguf(config).items()]
    window = next(n for n, key in enumerate(own) if key.name.endswith(".sliding_window"))
    return [
        Key("general.architecture", STRING, GGUF_ARCH),
        Key("general.type", STRING, "model"),
        *general,
        *own[:window],
        Key("general.file_type", U32, FILE_TYPES[experts]),
        *own[window:],
        Key("general.quantization_version", U32, 2),
    ]


def _architecture_key(name: str, value: Any) -> Key:
    if isinstance(value, list):
        return Key(name, ARRAY, value, of=BOOL)
    return Key(name, {int: U32, float: F32, str: STRING}[type(value)], value)


def lossy(config: GptOssConfig) -> list[tuple[str, float, float]]:
    """(field, the checkpoint's value, what llama.cpp computes with) for every field that a GGUF cannot carry."""
    fixed = [("swiglu_limit", SWIGLU_LIMIT), ("swiglu_alpha", SWIGLU_ALPHA)]
    if config.uses_yarn:
        fixed += [("yarn_beta_fast", LLAMA_BETA_FAST), ("yarn_beta_slow", LLAMA_BETA_SLOW)]
    return [(name, getattr(config, name), value) for name, value in fixed if getattr(config, name) != value]


def rounds_yarn(config: GptOssConfig) -> bool:
    """Whether llama.cpp's rounding of the YaRN bounds changes this model."""
    return config.uses_yarn and not config.yarn_truncate


def provenance_keys(config: GptOssConfig, kind: str, version: str) -> list[Key]:
    """What made the file from what, and what of the config the other keys could not say."""
    keys = [
        Key("gptoss_adapters.version", STRING, version),
        Key("gptoss_adapters.source_kind", STRING, kind),
        Key("gptoss_adapters.yarn_truncate", BOOL, config.yarn_truncate),
    ]
    if all(layer == FULL for layer in config.layer_types):
        keys.append(Key("gptoss_adapters.sliding_window_pattern", ARRAY, [False] * config.num_hidden_layers, of=BOOL))
    return keys + [Key(f"gptoss_adapters.{field}", F32, value) for field, value, _ in lossy(config)]


def title(name: str) -> str:
    """`tiny-mxfp4` -> `Tiny Mxfp4`, as upstream derives general.name from a folder's name; sizes and versions stay
    as they are.
    """
    words = re.split(r"[-\s]+", name.strip())
    return " ".join(w.title() if w.islower() and not re.fullmatch(r"v?\d.*", w) else w for w in words)


def size_label(shapes: Iterable[tuple[str, Sequence[int]]], experts: int) -> str:
    """`32x2.4B` as upstream counts it: one expert's matrices of each layer, and everything else (all experts'
    biases too).
    """
    count = sum(math.prod(shape) // (experts if "_exps." in name and len(shape) > 2 else 1) for name, shape in shapes)
    unit, suffix = next(((u, s) for u, s in ((1e12, "T"), (1e9, "B"), (1e6, "M")) if count > u), (1e3, "K"))
    scaled = count / unit
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{experts}x{scaled:.{digits}f}{suffix}"
