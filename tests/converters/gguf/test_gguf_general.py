"""general.* of a GGUF against what llama.cpp's own converter would write, by its library; chat templates likewise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from gptoss_converters.cli.options import open_input, rounding_for
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from gptoss_converters.to_hf import HfOptions, companions
from helpers.crafted import copy

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.writing.writer import write

CARDS: dict[str, str] = {
    "a tune": """---
license: apache-2.0
base_model: openai/gpt-oss-20b
tags: [gpt-oss, medical]
language: [en, "no"]
datasets:
- owner/some-data-v2
pipeline_tag: text-generation
model_creator: Jo
author: Jo Doe
version: "1.2"
---
# A tune
""",
    "a merge": """---
license: other
license_name: my-licence
license_link: https://example.org/l
base_model:
- openai/gpt-oss-20b
- https://huggingface.co/owner/other-20b
- {name: Third, organization: Them, repo_url: "https://x.org/3"}
tags: one
url: https://example.org
doi: 10.1/2
---
""",
    "several licences": "---\nlicense: [mit, apache-2.0]\nlanguage: de\n---\n",
    "no front matter": "# Only text\n",
    "never closed": "---\nlicense: mit\n",
    "empty": "---\n---\n",
}
GENERATION = {
    "temperature": 0.7,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.05,
    "do_sample": True,
    "penalty_repeat": 1.1,
    "eos_token_id": [1, 2],
}


def make(folder: Path, card: str | None, generation: dict[str, Any] | None = None) -> Path:
    copy(folder)
    if card is not None:
        (folder / "README.md").write_text(card)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def write_gguf(source: Path | Checkpoint, out: Path, **options: Any) -> dict[str, Any]:
    """The metadata of what to-gguf makes."""
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    write(plan_gguf(checkpoint, out, GgufOptions(**options)).plan, sync=False)
    return read(out)


def read(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items() if "." in name}


def ask_upstream(folder: Path, size: int) -> dict[str, Any]:
    """What its Metadata and its writer make of the folder, as its converter calls them."""
    found = gguf.Metadata.load(model_path=folder, total_params=size)
    writer = gguf.GGUFWriter(None, "gpt-oss")
    found.set_gguf_meta_model(writer)
    return {name: field.value for name, field in writer.kv_data[0].items()}


@pytest.mark.parametrize("card", CARDS)
def test_a_model_card_gives_what_llama_cpp_s_converter_writes(card: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "tiny-mxfp4", CARDS[card], GENERATION if card != "empty" else None)
    (folder / "LICENSE").unlink(missing_ok=True)
    ours = write_gguf(folder, tmp_path / "o.gguf", tokenizer="none")
    theirs = ask_upstream(folder, open_checkpoint(folder).config.parameters()[0])
    made_anew = {"general.size_label", "general.architecture"}
    for name in theirs.keys() - made_anew:
        right = pytest.approx(theirs[name], rel=1e-6) if isinstance(theirs[name], float) else theirs[name]
        assert ours[name] == right, name
    extra = {name for name in ours if name.startswith("general.")} - theirs.keys() - made_anew
    assert extra == {"general.type", "general.file_type", "general.quantization_version"}


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("---\nlicense: [\n---\n", "not YAML"),
        ("---\nauthor: {a: 1}\n---\n", "author is not a text"),
        ("---\ntags: [a, {b: 1}, 3]\n---\n", "entries of tags that are no texts"),
        ("---\nbase_model: [[1], openai/x]\n---\n", ""),
        ("---\nbase_model: -\n---\n", ""),
        ("---\nlicense: &a [x]\ntags: [*a, *a]\n---\n", "entries of tags"),
        ("---\n- a list\n---\n", ""),
        ("---\n1: 2\nnull: x\nlicense: mit\n---\n", ""),
        ("---\nx: " + "[" * 3000 + "\n---\n", "not YAML"),
        ("---\nx: " + "y" * 300_000 + "\n---\n", "too large"),
        ("---\ndescription: !!python/object/apply:os.system ['true']\n---\n", "not YAML"),
    ],
)
def test_a_malformed_card_is_said_and_stops_nothing(card: str, words: str, tmp_path: Path) -> None:
    planned = plan_gguf(open_checkpoint(make(tmp_path / "x", card)), tmp_path / "o.gguf", GgufOptions(tokenizer="none"))
    said = [line for line in planned.notices if "README.md" in line]
    assert (any(words in line for line in said) if words else True) and all("\n" not in line for line in said)


def test_a_card_that_is_no_text_is_not_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "x", None)
    (folder / "README.md").write_bytes(b"---\nlicense: \xff\n")
    assert any("README.md is not read" in line for line in open_checkpoint(folder).oddities)


def test_a_licence_text_gives_its_name(tmp_path: Path) -> None:
    folder = make(tmp_path / "x", None)
    (folder / "LICENSE").write_text("                    Apache License\n              Version 2.0, January 2004\n")
    assert write_gguf(folder, tmp_path / "o.gguf", tokenizer="none")["general.license"] == "apache-2.0"


def test_what_a_gguf_says_of_itself_survives(tmp_path: Path) -> None:
    """Licence, author, and the imatrix that llama-quantize notes: from GGUF to GGUF, types changed or not."""
    folder = make(tmp_path / "tiny-mxfp4", CARDS["a merge"], GENERATION)
    write_gguf(folder, tmp_path / "a.gguf")
    noted = {
        "quantize.imatrix.file": "imatrix.gguf",
        "quantize.imatrix.dataset": "calibration.txt",
        "quantize.imatrix.entries_count": 16,
        "quantize.imatrix.chunks_count": 2,
    }
    add_keys(tmp_path / "a.gguf", tmp_path / "b.gguf", noted)
    before = read(tmp_path / "b.gguf")
    for options in ({}, {"dense": "q8_0"}, {"experts": "bf16"}):
        after = write_gguf(tmp_path / "b.gguf", tmp_path / f"{len(options)}{list(options)}.gguf", **options)
        kept = [name for name in before if name.startswith(("general.", "quantize."))]
        changed = {name for name in kept if after.get(name) != before[name]}
        assert changed <= {"general.file_type"} and set(noted) <= set(kept)


def add_keys(source: Path, out: Path, more: dict[str, Any]) -> None:
    """A copy with more metadata, by gguf-py's own writer."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(out, "gpt-oss")
    for field in reader.fields.values():
        if field.name in ("general.architecture",) or field.name.startswith("GGUF."):
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    for name, value in more.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Chat templates -------------------------------------------------------------------------------------------------------

NAMED = [
    {"name": "default", "template": "D {{ messages }}"},
    {"name": "tool_use", "template": "T"},
    {"name": "rag-2", "template": "R"},
]
PLACES: dict[str, dict[str, Any]] = {
    "jinja": {"chat_template.jinja": "J {{ messages }}"},
    "jinja and a folder": {
        "chat_template.jinja": "J",
        "additional_chat_templates/tool_use.jinja": "T",
        "additional_chat_templates/rag-2.jinja": "R",
    },
    "json": {"chat_template.json": {"chat_template": "S {{ messages }}"}},
    "text in tokenizer_config.json": {"tokenizer_config.json": {"chat_template": "C"}},
    "names in tokenizer_config.json": {"tokenizer_config.json": {"chat_template": NAMED}},
    "names, no default": {"tokenizer_config.json": {"chat_template": NAMED[1:]}},
}


def place(folder: Path, files: dict[str, Any]) -> Path:
    """Only these chat templates."""
    copy(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if name == "tokenizer_config.json":
            content = config | content
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize("where", PLACES)
def test_chat_templates_go_where_llama_cpp_s_converter_puts_them(where: str, tmp_path: Path) -> None:
    folder = place(tmp_path / "x", PLACES[where])
    ours = write_gguf(folder, tmp_path / "o.gguf")
    writer = gguf.GGUFWriter(None, "gpt-oss")
    gguf.SpecialVocab(folder).add_to_gguf(writer, quiet=True)
    theirs = {name: field.value for name, field in writer.kv_data[0].items() if "chat_template" in name}
    mine = {name: value for name, value in ours.items() if "chat_template" in name}
    for both in (theirs, mine):
        both["tokenizer.chat_templates"] = sorted(both.get("tokenizer.chat_templates", ()))
    assert mine == theirs and theirs


def test_a_template_of_a_gguf_goes_on(tmp_path: Path) -> None:
    write_gguf(place(tmp_path / "x", PLACES["names in tokenizer_config.json"]), tmp_path / "a.gguf")
    back = open_checkpoint(tmp_path / "a.gguf")
    assert back.chat_template == "D {{ messages }}" and dict(back.chat_templates) == {"tool_use": "T", "rag_2": "R"}
    again = write_gguf(back, tmp_path / "b.gguf")
    assert again["tokenizer.chat_template.tool_use"] == "T"


def test_other_templates_are_carried_to_hf_or_named(tmp_path: Path) -> None:
    c = open_checkpoint(place(tmp_path / "x", PLACES["json"]))
    assert json.loads(companions(c, HfOptions())[0]["chat_template.json"]) == {"chat_template": "S {{ messages }}"}
    c = open_checkpoint(place(tmp_path / "y", PLACES["jinja and a folder"]))
    files, notices = companions(c, HfOptions())
    assert files["chat_template.jinja"] == b"J"
    assert notices == [
        "the chat templates rag-2, tool_use are not written: additional_chat_templates/NAME.jinja is where they belong"
    ]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer_config.json": {"chat_template": 5}}, "neither a text nor a list of named ones"),
        ({"tokenizer_config.json": {"chat_template": [{"name": 1}]}}, "neither a text nor a list of named ones"),
        (
            {"chat_template.jinja": "J", "tokenizer_config.json": {"chat_template": "K"}},
            "another chat template than chat_template.jinja",
        ),
    ],
)
def test_a_template_that_is_not_taken_is_an_oddity(files: dict[str, Any], words: str, tmp_path: Path) -> None:
    c = open_checkpoint(place(tmp_path / "x", files))
    assert any(words in line for line in c.oddities)


def test_no_template_and_no_default_are_said(tmp_path: Path) -> None:
    for n, (files, words) in enumerate(
        (({}, "no chat template came"), (PLACES["names, no default"], "none is the default"))
    ):
        c = open_input(str(place(tmp_path / str(n), files)), None)
        planned = plan_gguf(c, tmp_path / "o.gguf", GgufOptions(), rounding_for(c, None, None))
        assert any(words in line for line in planned.notices)
