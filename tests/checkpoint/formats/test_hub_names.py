"""What people call a model of the Hub, and what they mean."""

from __future__ import annotations

import pytest

from gptoss_adapters.checkpoint.formats.hub import wanted_files
from gptoss_adapters.checkpoint.formats.hub_names import HubName, choose_gguf, parse_hub_name
from gptoss_adapters.errors import BadInput

X = "owner/x"
MEANT = {
    "owner/x": HubName(X),
    "owner/x/": HubName(X),
    "owner/x@main": HubName(X, revision="main"),
    "owner/x@refs%2Fpr%2F1": HubName(X, revision="refs/pr/1"),
    "owner/x/original": HubName(X, "original"),
    "owner/x/sub/a.gguf": HubName(X, "sub/a.gguf"),
    "owner/x@v1/a.gguf": HubName(X, "a.gguf", "v1"),
    "owner/x:Q4_K_M": HubName(X, quant="Q4_K_M"),
    "owner/x/config.json": HubName(X),
    "owner/x/original/model.safetensors.index.json": HubName(X, "original"),
    "https://huggingface.co/owner/x": HubName(X),
    "https://huggingface.co/owner/x/": HubName(X),
    "http://hf.co/owner/x": HubName(X),
    "https://www.huggingface.co/owner/x?library=transformers": HubName(X),
    "https://huggingface.co/owner/x#files": HubName(X),
    "https://huggingface.co/owner/x/tree/main": HubName(X, revision="main"),
    "https://huggingface.co/owner/x/tree/main/original": HubName(X, "original", "main"),
    "https://huggingface.co/owner/x/tree/refs%2Fpr%2F3": HubName(X, revision="refs/pr/3"),
    "https://huggingface.co/owner/x/tree/refs/pr/3/original": HubName(X, "original", "refs/pr/3"),
    "https://huggingface.co/owner/x/blob/main/a.gguf": HubName(X, "a.gguf", "main"),
    "https://huggingface.co/owner/x/blob/abc123/config.json": HubName(X, "", "abc123"),
    "https://huggingface.co/owner/x/resolve/main/sub/a%20b.gguf?download=true": HubName(X, "sub/a b.gguf", "main"),
    "https://huggingface.co/owner/x/commit/abc123": HubName(X, revision="abc123"),
    "huggingface.co/owner/x": HubName(X),
    "hf.co/owner/x-GGUF:Q4_K_M": HubName("owner/x-GGUF", quant="Q4_K_M"),
    "https://hf.co/owner/x-GGUF:UD-Q4_K_XL": HubName("owner/x-GGUF", quant="UD-Q4_K_XL"),
    "hf://owner/x": HubName(X),
    "hf://models/owner/x": HubName(X),
    "hf://owner/x@v2/sub/a.gguf": HubName(X, "sub/a.gguf", "v2"),
}


@pytest.mark.parametrize("text", MEANT)
def test_names_mean_what_people_mean(text: str) -> None:
    assert parse_hub_name(text) == MEANT[text]


@pytest.mark.parametrize("text", ["x", "./owner/x", "../x", "/owner/x", "a/b c", "", "~/x", "owner/"])
def test_what_is_no_name_of_the_hub(text: str) -> None:
    assert parse_hub_name(text) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://example.com/owner/x", "not an address of the Hugging Face Hub"),
        ("https://modelscope.cn/models/owner/x", "download the files, or give owner/name"),
        ("s3://bucket/x", "not an address of the Hugging Face Hub"),
        ("https://huggingface.co/owner", "not the address of a model's files"),
        ("https://huggingface.co/datasets/owner/x", "not the address of a model's files"),
        ("https://huggingface.co/spaces/owner/x", "not the address of a model's files"),
        ("https://huggingface.co/owner/x/discussions/3", "not the address of a model's files"),
        ("https://huggingface.co/owner/x/tree", "not the address of a model's files"),
        ("hf://datasets/owner/x", "not the address of a model's files"),
        ("hf://owner", "not the address of a model's files"),
    ],
)
def test_other_addresses_are_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(BadInput) as e:
        parse_hub_name(text)
    assert words in str(e.value) and str(e.value).startswith(text) and "\n" not in str(e.value)


FILES = (
    "x-Q4_K_M.gguf",
    "x-Q4_K.gguf",
    "x-UD-Q4_K_XL.gguf",
    "x-Q8_0-00001-of-00002.gguf",
    "x-Q8_0-00002-of-00002.gguf",
    "BF16/x-BF16-00001-of-00002.gguf",
    "BF16/x-BF16-00002-of-00002.gguf",
    "x-mxfp4.gguf",
    "README.md",
)


@pytest.mark.parametrize(
    ("quant", "file"),
    [
        ("Q4_K_M", "x-Q4_K_M.gguf"),
        ("q4_k_m", "x-Q4_K_M.gguf"),
        ("Q4_K", "x-Q4_K.gguf"),
        ("Q4_K_XL", "x-UD-Q4_K_XL.gguf"),
        ("Q8_0", "x-Q8_0-00001-of-00002.gguf"),
        ("BF16", "BF16/x-BF16-00001-of-00002.gguf"),
        ("MXFP4", "x-mxfp4.gguf"),
    ],
)
def test_a_type_names_its_gguf(quant: str, file: str) -> None:
    assert choose_gguf(FILES, quant, X) == file


def test_a_type_that_is_not_there_or_there_twice_is_refused() -> None:
    with pytest.raises(BadInput, match=r"no GGUF file of that type: Q2_K .*x-Q4_K_M\.gguf.*name one: owner/x/"):
        choose_gguf(FILES, "Q2_K", X)
    with pytest.raises(BadInput, match=r"several GGUF files of that type: Q4_K_M"):
        choose_gguf((*FILES, "y-Q4_K_M.gguf"), "Q4_K_M", X)
    with pytest.raises(BadInput, match="no GGUF file"):
        choose_gguf(("a.safetensors",), "Q4_K_M", X)


def test_all_parts_of_a_gguf_are_wanted() -> None:
    assert wanted_files(FILES, "x-Q8_0-00001-of-00002.gguf", X) == [*FILES[3:5], "README.md"]
