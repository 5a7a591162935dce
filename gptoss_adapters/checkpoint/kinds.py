"""The kinds of checkpoint, and what is true of each: the only place where they are listed."""

from __future__ import annotations

from enum import Enum, StrEnum


class Container(Enum):
    """What the tensors lie in."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    MODEL_BIN = "model.bin"


class Names(Enum):
    """Whose names the tensors have, where the table does not say otherwise."""

    OPENAI = "openai"
    HF = "hf"
    GGUF = "gguf"


class Kind(StrEnum):
    """A kind by its name, which is also what reports and options say.

    `packed`: the experts are MXFP4 by the kind's own names (in a GGUF, each tensor's type says it). `per_expert`: every
    expert has tensors of its own.
    """

    # fmt: off
    #               name                     container              names         packed  per expert
    OPENAI =       ("openai",                Container.SAFETENSORS, Names.OPENAI, True,   False)
    HF_MXFP4 =     ("hf-mxfp4",              Container.SAFETENSORS, Names.HF,     True,   False)
    HF_BF16 =      ("hf-bf16",               Container.SAFETENSORS, Names.HF,     False,  False)
    # fused and dense, [E, out, in]: what transformers 4.55 made
    HF_OUT_IN =    ("hf-bf16-out-in",        Container.SAFETENSORS, Names.HF,     False,  False)
    # one linear layer per expert, gate and up interleaved: Unsloth, bitsandbytes
    DEFUSED =      ("hf-defused",            Container.SAFETENSORS, Names.HF,     False,  True)
    # one linear layer per expert, gate and up apart: AutoRound, slime, unquantised llm-compressor
    LINEAR =       ("hf-linear-experts",     Container.SAFETENSORS, Names.HF,     False,  True)
    # MXFP4 per expert, gate and up interleaved
    QUARK =        ("hf-quark",              Container.SAFETENSORS, Names.HF,     True,   True)
    # MXFP4 per expert, gate and up apart: llm-compressor
    COMPRESSED =   ("hf-compressed-tensors", Container.SAFETENSORS, Names.HF,     True,   True)
    # MXFP4 as 32-bit words, gate and up apart
    MLX =          ("mlx",                   Container.SAFETENSORS, Names.HF,     True,   False)
    GGUF =         ("gguf",                  Container.GGUF,        Names.GGUF,   False,  False)
    # GGUF of architecture gptoss
    OLLAMA =       ("ollama",                Container.GGUF,        Names.GGUF,   False,  False)
    # OpenAI's model.bin
    METAL =        ("metal",                 Container.MODEL_BIN,   Names.OPENAI, True,   False)
    # fmt: on

    container: Container
    names: Names
    packed: bool
    per_expert: bool

    def __new__(cls, name: str, container: Container, names: Names, packed: bool, per_expert: bool) -> Kind:
        kind = str.__new__(cls, name)
        kind._value_ = name
        kind.container = container
        kind.names = names
        kind.packed = packed
        kind.per_expert = per_expert
        return kind

    @property
    def gguf_like(self) -> bool:
        return self.container is Container.GGUF


SAFETENSORS_KINDS = tuple(kind for kind in Kind if kind.container is Container.SAFETENSORS)
