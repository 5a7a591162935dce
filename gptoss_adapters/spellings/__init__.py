"""How a gpt-oss config is spelled: OpenAI's `config.json`, Hugging Face's (transformers 4.x and 5.x), GGUF metadata.

One reader and one writer a spelling. Readers raise BadInput naming the key or the field; a writer raises it for a field
that its spelling cannot express.
"""

from gptoss_adapters.spellings.gguf import from_gguf, to_gguf
from gptoss_adapters.spellings.hf import from_hf, to_hf
from gptoss_adapters.spellings.openai import from_openai, to_openai

__all__ = ["from_gguf", "from_hf", "from_openai", "to_gguf", "to_hf", "to_openai"]
