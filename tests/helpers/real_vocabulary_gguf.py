"""A random-weights gpt-oss GGUF with the real vocabulary: what a grammar needs to meet llama.cpp's own sampler."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gptoss_harmony import load_vocabulary
from gptoss_harmony.tokens import FIRST_SPECIAL, RETURN, SPECIAL_NAMES

TINY = Path(__file__).parents[1] / "data" / "gguf" / "gguf" / "tiny-deq-f32.gguf"
NORMAL, CONTROL = 1, 3


def pieces() -> list[bytes]:
    """The bytes of each id that a model can sample."""
    names = [name.encode() for name in SPECIAL_NAMES[:-1]]
    return [*load_vocabulary().token_bytes[:FIRST_SPECIAL], *names]


def write(path: Path, seed: int = 0) -> None:
    """The tiny gold model with another vocabulary, embedding and head. Its merges are not real: pass ids to it."""
    source, writer = gguf.GGUFReader(TINY), gguf.GGUFWriter(path, "gpt-oss")
    for key, field in source.fields.items():
        if not key.startswith(("GGUF.", "general.architecture", "tokenizer.")):
            writer.add_key_value(
                key, field.contents(), field.types[0], field.types[1] if len(field.types) > 1 else None
            )
    tokens = [_gpt2_text(piece) for piece in pieces()[:FIRST_SPECIAL]] + list(SPECIAL_NAMES[:-1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list(tokens)
    writer.add_token_types([NORMAL] * FIRST_SPECIAL + [CONTROL] * (len(tokens) - FIRST_SPECIAL))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(RETURN)
    rng = np.random.default_rng(seed)
    for tensor in source.tensors:
        data = tensor.data
        if tensor.name in ("token_embd.weight", "output.weight"):
            data = rng.standard_normal((len(tokens), int(tensor.shape[0])), dtype=np.float32).astype(np.float16)
        writer.add_tensor(tensor.name, np.array(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gpt2_text(piece: bytes) -> str:
    return "".join(_GPT2[byte] for byte in piece)


_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_GPT2 = {byte: chr(byte) for byte in _VISIBLE} | {
    b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in _VISIBLE)
}
