"""`to-ollama`: the folder, what it refuses, and its GGUF in llama.cpp's own server, which is what Ollama runs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gptoss_converters.gguf.to_gguf import GgufOptions
from gptoss_converters.ollama.modelfile import read
from gptoss_converters.ollama.prompt import read_harmony_template
from gptoss_converters.ollama.rules import check
from gptoss_converters.ollama.store import hash_file
from gptoss_converters.ollama.to_ollama import (
    MODE_KEY,
    OllamaModel,
    OllamaOptions,
    choose_embedded,
    finish,
    make_request,
    plan_ollama,
)
from gptoss_harmony import load_vocabulary, render
from gptoss_harmony.openai.chat_completions import to_conversation
from gptoss_harmony.rendering.templates import chat_template
from helpers.fake_ollama import fake_ollama

from gptoss_adapters.backends import open_backend
from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.formats.gguf import GgufFile
from gptoss_adapters.checkpoint.formats.tokenizer_files import CHAT_TEMPLATE
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.errors import BadInput, UsageError

GOLD = Path(__file__).parents[2] / "data" / "gguf"
SOURCE = GOLD / "src" / "tiny-mxfp4"


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gptoss_converters.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
    )


def export(folder: Path, gguf: GgufOptions | None = None, source: Path = SOURCE, **options: Any) -> OllamaModel:
    folder.mkdir(parents=True, exist_ok=True)
    model = plan_ollama(open_checkpoint(source), folder, gguf or GgufOptions(), OllamaOptions(**options))
    write(model.plan, threads=2, sync=False, force=True)
    finish(model)
    return model


PARAMETERS = {"temperature": "1.0", "top_p": "1.0", "top_k": "0"}


def test_harmony_mode(tmp_path: Path) -> None:
    model = export(
        tmp_path / "out",
        name="my-tune:v1",
        system='Be "brief".\nAlways.',
        messages=(
            ("user", "hi"),
            ("assistant", "Hello."),
        ),
        num_ctx=256,
    )
    commands = read((tmp_path / "out" / "Modelfile").read_text())
    said = [(c.name, c.key, c.value) for c in commands]
    assert said[:3] == [
        ("from", "", "./my-tune-v1.gguf"),
        ("requires", "", "0.30.0"),
        ("template", "", read_harmony_template()),
    ]
    stops = [("stop", "<|return|>"), ("stop", "<|call|>")]
    assert said[3:9] == [("parameter", *p) for p in (("num_ctx", "256"), *PARAMETERS.items(), *stops)]
    assert said[9:] == [
        ("system", "", 'Be "brief".\nAlways.'),
        ("message", "user", "hi"),
        ("message", "assistant", "Hello."),
    ]
    assert check(tmp_path / "out" / "Modelfile") == []
    assert "ollama create my-tune:v1 -f Modelfile" in (tmp_path / "out" / "README.md").read_text()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["Modelfile", "README.md", "my-tune-v1.gguf"]
    body = make_request(model, {"my-tune-v1.gguf": "sha256:0"})
    assert body["template"] == read_harmony_template() and body["messages"][1] == {
        "role": "assistant",
        "content": "Hello.",
    }
    assert {"renderer", "parser", "adapters", "license"}.isdisjoint(body)


def test_embedded_mode(tmp_path: Path) -> None:
    export(tmp_path, mode="embedded", requires=None, num_ctx=64)
    commands = read((tmp_path / "Modelfile").read_text())
    assert [c.name for c in commands] == ["from", *["parameter"] * 4]
    assert check(tmp_path / "Modelfile") == []
    text = (tmp_path / "README.md").read_text()
    assert "/api/chat" in text and "ollama run tiny-mxfp4" not in text and "--template harmony" in text


def test_the_two_modes_never_share_a_file(tmp_path: Path) -> None:
    """Ollama keeps one runner for one file, with the template of the model that was loaded first."""
    both = [export(tmp_path / mode, mode=mode, name="m", num_ctx=64).files[0] for mode in ("harmony", "embedded")]
    notes = [GgufFile(file).metadata.get(MODE_KEY) for file in both]
    assert notes == [None, "embedded"] and hash_file(both[0]) != hash_file(both[1])
    done = run("verify", *both)
    assert done.returncode == 0 and "BYTES EQUAL" in done.stdout, done.stdout + done.stderr


ITEMS = """{%- if spec['items'] -%}[{{ spec['items'] }}]{%- elif spec["items"] %}x{% endif %}{{ spec['items'] }}"""


def test_which_template_is_embedded() -> None:
    assert choose_embedded(None) == choose_embedded(CHAT_TEMPLATE.read_text()) == chat_template()
    assert choose_embedded(ITEMS) == (
        "{%- if ('items' in spec and spec['items']) -%}[{{ spec['items'] }}]"
        """{%- elif ("items" in spec and spec["items"]) %}x{% endif %}{{ spec['items'] }}"""
    )


@pytest.mark.backend("llama_server")
def test_the_embedded_template_in_llama_cpp(tmp_path: Path) -> None:
    """The server that Ollama runs makes Harmony of it, of arrays without items too, where the published one fails."""
    model = export(tmp_path, mode="embedded", num_ctx=64)
    array = {"type": "object", "properties": {"all": {"type": "array"}, "one": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "f", "description": "F", "parameters": array}}]
    request = {"messages": [{"role": "user", "content": "hi"}], "tools": tools}
    expected = load_vocabulary().decode(render(to_conversation(request, date="2025-06-28"), drop="none"))
    with open_backend(f"llama_server={model.files[0]}", n_ctx=256) as backend:
        said = backend.chat_prompt(request | {"chat_template_kwargs": {"conversation_start_date": "2025-06-28"}})
    assert said == expected


def test_a_licence_goes_along(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "c")
    (tmp_path / "c" / "LICENSE").write_text('Apache "2.0"\n\nterms\n')
    export(tmp_path / "out", source=tmp_path / "c", num_ctx=64)
    assert read((tmp_path / "out" / "Modelfile").read_text())[-1].value == 'Apache "2.0"\n\nterms\n'


def test_split_files_are_named_one_by_one(tmp_path: Path) -> None:
    """As Ollama 0.33 took them; a wildcard needs 0.34.1."""
    model = export(tmp_path, GgufOptions(split_max_size=300_000), name="s", num_ctx=64)
    commands = read((tmp_path / "Modelfile").read_text())
    shards = [f"./s-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert len(model.files) == 3 and [c.value for c in commands[:4]] == [*shards, "0.30.0"]
    assert check(tmp_path / "Modelfile") == []


@pytest.mark.parametrize(
    "options,error",
    [
        ({"name": "My Tune"}, UsageError),
        ({"name": "a/b"}, UsageError),
        ({"num_ctx": 0}, UsageError),
        ({"num_ctx": 10**9}, UsageError),
        ({"system": "a\u00a0b"}, BadInput),
        ({"system": 'x\n"""\n"y"\nz'}, BadInput),
        ({"requires": "latest"}, BadInput),
        ({"requires": "0.11.5"}, BadInput),
        ({"messages": (("tool", "x"),)}, BadInput),
    ],
)
def test_what_would_be_a_bad_modelfile_is_refused_before_anything_is_written(
    options: Any, error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error):
        plan_ollama(open_checkpoint(SOURCE), tmp_path, GgufOptions(), OllamaOptions(**{"num_ctx": 64, **options}))
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("to-ollama", SOURCE, "-o", out, "--num-ctx", 64, "--message", "user:hi", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["name"] == "tiny-mxfp4"
    assert run("to-ollama", SOURCE, "-o", out, "--num-ctx", 64).returncode == 4
    assert run("to-ollama", SOURCE, "-o", tmp_path / "x", "--num-ctx", 64, "--message", "tool:hi").returncode == 2
    dry = run("to-ollama", SOURCE, "-o", tmp_path / "y", "--num-ctx", 64, "--dry-run")
    assert dry.returncode == 0 and "FROM ./tiny-mxfp4.gguf" in dry.stdout and not (tmp_path / "y").exists()
    assert run("check-modelfile", out / "Modelfile").returncode == 0


def test_the_recipe_runs(tmp_path: Path) -> None:
    """Its `gptoss-convert` lines in order, with a small checkpoint for the fine-tune and a server on loopback."""
    text = (Path(__file__).parents[3] / "recipes" / "ollama" / "from_fine_tune.md").read_text()
    lines = [line for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    shutil.copytree(SOURCE, tmp_path / "my-tune", copy_function=shutil.copyfile)
    with fake_ollama() as server:
        ran = 0
        for line in lines:
            program, *arguments = shlex.split(
                line.replace("~/.ollama", str(tmp_path / "store")).replace("http://localhost:11434", server.url)
            )
            if program == "gptoss-convert":
                context = ["--num-ctx", "64"] if arguments[0] == "to-ollama" else []
                done = run(*arguments, *context, cwd=tmp_path)
                assert done.returncode == 0, (line, done.stderr)
                ran += 1
        assert ran == 6 and "my-tune" in server.models
    assert (
        tmp_path / "store" / "models" / "manifests" / "registry.ollama.ai" / "library" / "my-tune" / "latest"
    ).is_file()


# Bad exports ----------------------------------------------------------------------------------------------------------


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    assert len(old) == len(new)

    def change(data: bytes) -> bytes:
        assert old in data, old
        return data.replace(old, new)

    return change


def packed(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def eos(data: bytes) -> bytes:
    at = data.index(packed("tokenizer.ggml.eos_token_id")) + 8 + len("tokenizer.ggml.eos_token_id") + 4
    return data[:at] + struct.pack("<I", 999_999) + data[at + 4 :]


BAD_FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no GGUF": (lambda d: b"text" + d[4:], "gguf"),
    "big endian": (lambda d: d[:4] + d[4:8][::-1] + d[8:], "gguf"),
    "unknown version": (lambda d: d[:4] + struct.pack("<I", 9) + d[8:], "gguf"),
    "cut off": (lambda d: d[: len(d) // 2], "gguf"),
    "empty": (lambda d: b"", "gguf"),
    "trailing bytes": (lambda d: d + b"\0" * 64, "gguf"),
    "another architecture": (replaced(packed("gpt-oss"), packed("llama-4")), "gguf"),
    "Ollama's old architecture name": (replaced(packed("gpt-oss"), packed("gptosss")), "gguf"),
    "Ollama's old tensor names": (replaced(b"attn_output.", b"attn_out.xxx"), "gguf"),
    "sinks lost": (replaced(b"attn_sinks", b"attn_links"), "gguf"),
    "a layer's experts lost": (replaced(b"blk.0.ffn_gate_exps.weight", b"blk.9.ffn_gate_exps.weight"), "gguf"),
    "no expert count": (replaced(b"gpt-oss.expert_used_count", b"gpt-oss.expert_used_xxxxx"), "gguf"),
    "another splitting rule": (replaced(packed("gpt-4o"), packed("llama3")), "gguf-pre"),
    "no call token": (replaced(packed("<|call|>"), packed("<|c4ll|>")), "gguf-stop-token"),
    "no return token": (replaced(packed("<|return|>"), packed("<|r3turn|>")), "gguf-stop-token"),
    "no end of text": (replaced(packed("<|endoftext|>"), packed("<|endoftexd|>")), "gguf-stop-token"),
    "no channel token": (replaced(packed("<|channel|>"), packed("<|ch4nnel|>")), "gguf-harmony-token"),
    "no start token": (replaced(packed("<|start|>"), packed("<|st4rt|>")), "gguf-harmony-token"),
    "end of sequence outside the vocabulary": (eos, "gguf-eos"),
    "no chat template": (replaced(b"tokenizer.chat_template", b"tokenizer.chat_templatx"), "gguf-chat-template"),
    "a chat template without Harmony": (
        lambda d: d.replace(b"<|channel|>", b"<|chann31|>").replace(packed("<|chann31|>"), packed("<|channel|>")),
        "gguf-not-harmony",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_exports_name_line_and_rule(name: str, tmp_path: Path) -> None:
    assert len(BAD_FILES) >= 20
    change, rule = BAD_FILES[name]
    (tmp_path / "m.gguf").write_bytes(change((GOLD / "gguf" / "tiny-mxfp4.gguf").read_bytes()))
    (tmp_path / "Modelfile").write_text("# ours\nFROM ./m.gguf\n")
    found = check(tmp_path / "Modelfile")
    assert [(f.line, f.rule) for f in found] == [(2, rule)], found
    assert "\n" not in found[0].what and "m.gguf" in found[0].what


def test_the_file_that_they_are_made_of_is_good(tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text(f"FROM {GOLD / 'gguf' / 'tiny-mxfp4.gguf'}\n")
    assert check(tmp_path / "Modelfile") == []


def test_shards(tmp_path: Path) -> None:
    export(tmp_path, GgufOptions(split_max_size=300_000), name="s", num_ctx=64)
    lines = "".join(f"FROM ./s-{n:05d}-of-00003.gguf\n" for n in (1, 2, 3))
    (tmp_path / "Modelfile").write_text(lines)
    assert check(tmp_path / "Modelfile") == []
    (tmp_path / "Modelfile").write_text("\n".join(lines.splitlines()[:2]))
    assert [(f.line, f.rule) for f in check(tmp_path / "Modelfile")] == [(1, "from-shards")]
    shutil.copyfile(tmp_path / "s-00002-of-00003.gguf", tmp_path / "s-00003-of-00003.gguf")
    (tmp_path / "Modelfile").write_text("FROM ./s-*-of-*.gguf\nREQUIRES 0.30.0\n")
    assert [(f.line, f.rule) for f in check(tmp_path / "Modelfile")] == [(1, "from-wildcard"), (1, "gguf")]


def test_safetensors_and_no_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text(f"FROM {SOURCE / 'model.safetensors'}\n")
    assert [(f.line, f.rule) for f in check(tmp_path / "Modelfile")] == [(1, "from-not-gguf")]
    with pytest.raises(UsageError, match="needs the vocabulary"):
        plan_ollama(open_checkpoint(SOURCE), tmp_path, GgufOptions(tokenizer="none"), OllamaOptions(num_ctx=64))
