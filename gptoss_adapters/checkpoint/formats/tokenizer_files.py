"""The tokenizer files of a published gpt-oss checkpoint, made from the vocabulary that `gptoss_harmony` ships.

`tokenizer.json` is Hugging Face's byte-level BPE: every ordinary token as text (bytes written in GPT-2's printable
alphabet), and as merges *all* splits of a token into two other tokens, in rank order (446 189, the number of the
published file; one merge per token would tokenise the same, but is not what other tools expect to find).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from gptoss_harmony.tokens import FIRST_SPECIAL, N_RANKS, SPECIAL_NAMES
from gptoss_harmony.vocabulary import PATTERN, load_vocabulary

from gptoss_adapters.spec import BOS_TOKEN_ID, EOS_TOKEN_IDS, PAD_TOKEN_ID

ADDED = {FIRST_SPECIAL + n: name for n, name in enumerate(SPECIAL_NAMES[:20])} | {FIRST_SPECIAL + 20: "<|endofprompt|>"}
"""The 21 added tokens of the published files; their names follow tiktoken, which calls the last one endofprompt."""

PAD_TEXT = "[PAD{}]"
"""How transformers and llama.cpp name the ids above the added tokens, for which the published files have no entry."""

CHAT_TEMPLATE = Path(__file__).parents[1] / "data" / "chat_template.jinja"
"""The published chat template, 16 738 bytes; see NOTICE."""


@cache
def _alphabet() -> dict[int, str]:
    """GPT-2's byte alphabet: printable Latin-1 bytes stand for themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}


def token_texts(tokens: Iterable[bytes]) -> list[str]:
    """The text of each ordinary token in `tokenizer.json` and in GGUF files."""
    alphabet = _alphabet()
    return [token.decode("latin-1").translate(alphabet) for token in tokens]


def vocabulary_texts(size: int) -> list[str]:
    """The texts of ids 0 to `size` - 1: ordinary tokens, added tokens, then fillers. GGUF's token list."""
    known = [*token_texts(load_vocabulary().token_bytes[:N_RANKS]), *ADDED.values()]
    return known[:size] + [PAD_TEXT.format(n) for n in range(len(known), size)]


def merges(tokens: list[bytes]) -> Iterator[tuple[int, int]]:
    """Every (left, right) pair of ranks that makes a token: by the token's rank, then by the pair's ranks."""
    rank_of = {token: rank for rank, token in enumerate(tokens)}
    find = rank_of.get
    for token in tokens:
        pairs = []
        for cut in range(1, len(token)):
            left = find(token[:cut])
            if left is not None and (right := find(token[cut:])) is not None:
                pairs.append((left, right))
        yield from sorted(pairs)


def tokenizer_json() -> str:
    """The content of `tokenizer.json`: 27.87 MB, indented by two as published."""
    tokens = load_vocabulary().token_bytes[:N_RANKS]
    quoted = ['"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in token_texts(tokens)]
    vocab = ",\n".join([f"      {text}: {rank}" for rank, text in enumerate(quoted)])
    pairs = ",\n".join(
        [f"      [\n        {quoted[left]},\n        {quoted[right]}\n      ]" for left, right in merges(tokens)]
    )
    frame = json.dumps(_frame(), indent=2, ensure_ascii=False)
    head, tail = frame.split('"VOCAB"')
    middle, tail = tail.split('"MERGES"')
    return f"{head}{{\n{vocab}\n    }}{middle}[\n{pairs}\n    ]{tail}"


def _frame() -> dict[str, Any]:
    """`tokenizer.json` around its two large tables."""
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, **_added(name)} for token, name in ADDED.items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                split,
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {**level, "trim_offsets": False, "use_regex": True},
        "decoder": {**level, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": "VOCAB",
            "merges": "MERGES",
        },
    }


def _added(name: str) -> dict[str, Any]:
    return {
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def small_files() -> dict[str, str]:
    """The other files that stand beside a published checkpoint's weights, by name."""
    special = {"bos_token": ADDED[BOS_TOKEN_ID], "eos_token": ADDED[EOS_TOKEN_IDS[0]], "pad_token": ADDED[PAD_TOKEN_ID]}
    config = {
        "added_tokens_decoder": {str(token): dict(sorted(_added(name).items())) for token, name in ADDED.items()},
        "bos_token": special["bos_token"],
        "clean_up_tokenization_spaces": False,
        "eos_token": special["eos_token"],
        "extra_special_tokens": {},
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": int(1e30),
        "pad_token": special["pad_token"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation = {
        "bos_token_id": BOS_TOKEN_ID,
        "do_sample": True,
        "eos_token_id": list(EOS_TOKEN_IDS),
        "pad_token_id": PAD_TOKEN_ID,
        "transformers_version": "4.55.0.dev0",
    }
    tables = {"tokenizer_config.json": config, "special_tokens_map.json": special, "generation_config.json": generation}
    texts = {name: json.dumps(table, indent=2) + "\n" for name, table in tables.items()}
    return texts | {"chat_template.jinja": CHAT_TEMPLATE.read_text()}


def write_tokenizer_files(folder: Path) -> None:
    """Writes `tokenizer.json` and the small files into an existing folder."""
    for name, text in ({"tokenizer.json": tokenizer_json()} | small_files()).items():
        (folder / name).write_text(text, encoding="utf-8")
