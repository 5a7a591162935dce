"""`gptoss-convert` as a program: results, exit codes, one line per error, nothing left behind."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.crafted import GOLD, copy, sharded, with_config, with_tensors

SOURCE = GOLD / "src" / "tiny-mxfp4"
DOWN = "model.layers.2.mlp.experts.down_proj"
Done = subprocess.CompletedProcess[str]


def run(*arguments: object, **options: Any) -> Done:
    command = [sys.executable, "-m", "gptoss_converters.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def data_of(done: Done) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_convert_verify_inspect(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    said = run("to-gguf", SOURCE, "-o", out)
    assert said.returncode == 0 and f"llama-server -m {out}" in said.stdout and "ollama create" in said.stdout
    assert said.stderr.count("\n") == 1 and said.stderr.startswith("note: YaRN")  # no bars where there is no terminal
    report = data_of(run("verify", SOURCE, out, "--json"))
    assert report["ok"] and report["counts"]["BYTES EQUAL"] == 71
    found = data_of(run("inspect", out, "--json"))
    assert found["kind"] == "gguf" and found["parameters"] > 0 and found["histograms"]["scales"]
    text = run("inspect", SOURCE).stdout
    assert "hf-mxfp4" in text and "layer_types" in text and "MXFP4 scale bytes" in text


def test_the_next_commands_can_be_pasted(tmp_path: Path) -> None:
    """Spaces and per cents in names, a split file's model name; no server runs a file without vocabulary."""
    folder = tmp_path / "100% mine"
    folder.mkdir()
    lines = run("to-gguf", SOURCE, "-o", folder / "My Tune.gguf", "--split-max-size", "400K").stdout.splitlines()
    first = next(folder.glob("My Tune-00001-of-*.gguf"))
    serve, create = lines[lines.index("next:") + 1 :]
    words = shlex.split(create)
    assert shlex.split(serve) == ["llama-server", "-m", str(first), "--jinja"]
    assert (
        subprocess.run(words[: words.index(">")], capture_output=True, text=True, check=True).stdout
        == f"FROM {first}\n"
    )
    assert words[-6:] == ["&&", "ollama", "create", "my-tune", "-f", "Modelfile"]
    bare = run("to-gguf", SOURCE, "-o", tmp_path / "bare.gguf", "--tokenizer", "none").stdout
    assert (
        f"gptoss-parity run {SOURCE} --target llama_cpp={tmp_path / 'bare.gguf'}\n" in bare
        and "llama-server" not in bare
        and "ollama" not in bare
    )


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    plan = data_of(run("to-gguf", SOURCE, "-o", tmp_path / "out.gguf", "--dry-run", "--json"))
    assert len(plan["tensors"]) == 79 and plan["tensors"][0]["name"] == "blk.0.ffn_down_exps.weight" and plan["notices"]
    text = run("to-gguf", SOURCE, "-o", tmp_path / "out.gguf", "--dry-run").stdout
    assert "blk.3.ffn_up_exps.weight" in text and "odd rows: repacked" in text
    assert list(tmp_path.iterdir()) == []
    run("to-gguf", SOURCE, "-o", tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").stat().st_size == plan["bytes"]


def test_options_reach_the_file(tmp_path: Path) -> None:
    said = data_of(
        run(
            "to-gguf",
            SOURCE,
            "-o",
            tmp_path / "o.gguf",
            "--dense",
            "q8_0",
            "--experts",
            "f16",
            "--name",
            "My Model",
            "--split-max-size",
            "400K",
            "--sha256",
            "--threads",
            3,
            "--json",
        )
    )
    assert len(said["files"]) > 1 and all(Path(f).is_file() for f in said["files"])
    assert said["files"].pop().endswith("o.gguf.original-scales.mxfp4")  # the way back to every byte of the experts
    assert len(said["sha256"]) == 1 + len(said["files"])
    found = data_of(run("inspect", said["files"][0], "--json"))
    assert found["parts"]["expert weights"]["encodings"] == ["f16"] and found["parts"]["embedding"]["encodings"] == [
        "q8_0"
    ]


def test_a_hub_source_is_named_by_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the folder in it, nor by the hash that names the folder in the cache."""
    from gptoss_converters.cli.program import app

    from gptoss_adapters.checkpoint.formats import hub
    from gptoss_adapters.checkpoint.formats.gguf import GgufFile

    monkeypatch.setattr(hub, "download", lambda repo, inner, revision: SOURCE)
    for path in ("openai/gpt-oss-20b", "openai/gpt-oss-20b/original"):
        app(["to-gguf", path, "-o", str(tmp_path / "out.gguf"), "--force"], standalone_mode=False)
        made = GgufFile(tmp_path / "out.gguf").metadata
        assert made["general.name"] == "Gpt Oss 20b" and made["gptoss_adapters.source.sha256"]


def test_a_revision_is_a_repository_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss_converters.cli.program import app

    from gptoss_adapters.checkpoint.formats import hub

    asked = []
    monkeypatch.setattr(hub, "download", lambda repo, inner, revision: asked.append(revision) or SOURCE)
    app(["verify", "openai/gpt-oss-20b", str(SOURCE), "--revision", "abc"], standalone_mode=False)
    app(["verify", str(SOURCE), "openai/gpt-oss-20b", "--revision", "abc"], standalone_mode=False)
    assert asked == ["abc", "abc"]
    for command in (["inspect", SOURCE], ["to-gguf", SOURCE, "-o", tmp_path / "o.gguf"], ["verify", SOURCE, SOURCE]):
        done = run(*command, "--revision", "abc")
        assert (
            done.returncode == 2
            and "is local: a revision is for a Hub repository" in done.stderr
            and len(done.stderr.splitlines()) == 1
        )


def test_verify_shows_the_worst_block_and_exits_1(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    run("to-gguf", SOURCE, "-o", out)
    data = bytearray(out.read_bytes())
    data[40_000] ^= 0x70
    out.write_bytes(data)
    done = run("verify", SOURCE, out)
    assert done.returncode == 1 and "DIFFERENT" in done.stdout and "worst block of layers.0" in done.stdout
    assert re.fullmatch(r"error: .*out.gguf: 1 of 71 tensors are DIFFERENT\n", done.stderr)


def test_new_makes_and_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    assert data_of(run("new", "odd-shape", "-o", folder, "--layout", "openai", "--layers", 2, "--json"))["files"]
    assert data_of(run("inspect", folder, "--json"))["kind"] == "openai"
    assert run("new", "odd-shape", "-o", folder).returncode == 4
    assert run("new", "odd-shape", "-o", folder, "--layers", 99, "--force").returncode == 2
    assert (
        run("new", "odd-shape", "-o", tmp_path / "other", "--layers", 99).returncode == 2
        and not (tmp_path / "other").exists()
    )


@pytest.mark.parametrize("command", [[], ["to-gguf"], ["verify"], ["inspect"], ["new"]])
def test_help(command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0 and "Usage:" in done.stdout
    assert ("Examples:" if command else "Exit codes: 0 ok") in done.stdout and not re.search(r"\w\.\.\.", done.stdout)


USAGE: dict[str, list[object]] = {
    "no command": ["to-ggml"],
    "no output": ["to-gguf", SOURCE],
    "unknown option": ["to-gguf", SOURCE, "-o", "x.gguf", "--fast"],
    "unknown type": ["to-gguf", SOURCE, "-o", "x.gguf", "--dense", "int4"],
    "mxfp4 for dense": ["to-gguf", SOURCE, "-o", "x.gguf", "--dense", "mxfp4"],
    "size": ["to-gguf", SOURCE, "-o", "x.gguf", "--split-max-size", "big"],
    "size of nothing": ["to-gguf", SOURCE, "-o", "x.gguf", "--split-max-size", "0"],
    "threads": ["to-gguf", SOURCE, "-o", "x.gguf", "--threads", "0"],
    "preset": ["new", "30b-shape", "-o", "x"],
}


@pytest.mark.parametrize("case", USAGE)
def test_usage_errors(case: str, tmp_path: Path) -> None:
    done = run(*USAGE[case], cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# Each case damages a checkpoint folder; the one line must hold these words.
def cut(folder: Path, name: str = "model.safetensors", by: int = 1) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-by])


def header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + n])
    change(head)
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])


def set_shape(name: str, shape: list[int]) -> Callable[[Path], object]:
    return lambda f: header(f, lambda h: h[name].update(shape=shape))


def scale_255(folder: Path) -> None:
    def change(t: dict[str, Any]) -> None:
        dtype, shape, data = t[f"{DOWN}_scales"]
        t[f"{DOWN}_scales"] = (dtype, shape, data[:77] + b"\xff" + data[78:])

    with_tensors(folder, change)


def nan_in(name: str) -> Callable[[Path], object]:
    def change(t: dict[str, Any]) -> None:
        dtype, shape, data = t[name]
        t[name] = (dtype, shape, data[:-2] + b"\xc0\x7f")

    return lambda f: with_tensors(f, change)


def replace(name: str, text: str) -> Callable[[Path], object]:
    return lambda f: (f / name).write_text(text)


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        raw = json.loads((folder / "tokenizer.json").read_text())
        change(raw)
        (folder / "tokenizer.json").write_text(json.dumps(raw))

    return apply


def index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        sharded(folder, lambda n: 0 if "layers.0" in n else 1)
        path = folder / "model.safetensors.index.json"
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

    return apply


def missing_shard(folder: Path) -> None:
    sharded(folder, lambda n: 0 if "layers.0" in n else 1)
    (folder / "model-00002-of-00002.safetensors").unlink()


def config(**fields: Any) -> Callable[[Path], object]:
    return lambda f: with_config(f, lambda c: c.update(fields))


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda f: with_tensors(f, lambda t: t.update({new: t.pop(old)}))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated file": (cut, r"model.safetensors: .*(truncated|past the end)"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors"),
    "header length beyond any": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}"),
        "the header is too large",
    ),
    "header length past the end": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x09" + bytes(7) + b"{}"),
        "header runs past the end of the file .expected 9 bytes, got 2",
    ),
    "too short": (lambda f: (f / "model.safetensors").write_bytes(bytes(7)), "the file is too short for a checkpoint"),
    "trailing bytes": (lambda f: (f / "model.safetensors").open("ab").write(b"x"), "trailing bytes"),
    "overlapping tensors": (
        lambda f: header(f, lambda h: h["lm_head.weight"].update(data_offsets=h["model.norm.weight"]["data_offsets"])),
        "lm_head|norm",
    ),
    "missing scales": (
        lambda f: with_tensors(f, lambda t: t.pop(f"{DOWN}_scales")),
        f"{DOWN}_scales: the tensor is missing",
    ),
    "missing blocks": (
        lambda f: with_tensors(f, lambda t: t.pop(f"{DOWN}_blocks")),
        f"{DOWN}_blocks: the tensor is missing",
    ),
    "missing sinks": (
        lambda f: with_tensors(f, lambda t: t.pop("model.layers.1.self_attn.sinks")),
        "layers.1.self_attn.sinks: the tensor is missing",
    ),
    "missing head": (
        lambda f: with_tensors(f, lambda t: t.pop("lm_head.weight")),
        "lm_head.weight: the tensor is missing",
    ),
    "unknown tensor": (rename("model.norm.weight", "model.norm.wait"), "model.norm.wait: unexpected tensor"),
    "wrong dtype": (
        lambda f: header(f, lambda h: h["model.norm.weight"].update(dtype="U16")),
        "model.norm.weight: wrong dtype",
    ),
    "transposed": (set_shape("lm_head.weight", [96, 512]), "lm_head.weight: the shape does not fit the config"),
    "transposed blocks": (
        set_shape(f"{DOWN}_blocks", [8, 2, 96, 16]),
        f"{DOWN}_blocks: the shape does not fit the config",
    ),
    "scale byte 255": (scale_255, rf"model.safetensors: {DOWN}_scales: holds MXFP4 scale bytes of 255"),
    "NaN in a bias": (nan_in("model.layers.0.self_attn.q_proj.bias"), "q_proj.bias: holds NaN or Inf"),
    "NaN in the embedding": (nan_in("model.embed_tokens.weight"), "embed_tokens.weight: holds NaN or Inf"),
    "config with more layers": (config(num_hidden_layers=5, layer_types=None), "layers.4.* the tensor is missing"),
    "config with fewer layers": (config(num_hidden_layers=3, layer_types=None), "layers.3.* unexpected tensor"),
    "config with other experts": (config(num_local_experts=4), "another number of experts"),
    "config with another vocabulary": (config(vocab_size=500), "does not fit the config"),
    "config is not JSON": (replace("config.json", "{"), r"config.json: the JSON is malformed"),
    "config is a list": (replace("config.json", "[]"), "config.json: the JSON must be an object"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    "another architecture": (config(model_type="llama"), "model_type is not one of gpt-oss"),
    "auto_map": (config(auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "tied embeddings": (config(tie_word_embeddings=True), "tie_word_embeddings"),
    "layer_types too short": (config(layer_types=["full_attention"]), "layer_types must have 4 entries"),
    "layer_types unknown": (config(layer_types=["chunked_attention"] * 4), "layer_types"),
    "top-k above the experts": (config(num_experts_per_tok=9), "experts_per_token exceeds"),
    "theta is a word": (config(rope_theta="big"), "rope_theta must be a number"),
    "theta beyond float32": (config(rope_theta=1e300), "rope_theta must be a"),
    "eps below float32": (config(rms_norm_eps=1e-60), "rms_norm_eps must be a positive number that float32 holds"),
    "a factor that shrinks": (
        lambda f: with_config(f, lambda c: c["rope_scaling"].update(factor=0.5)),
        "rope_scaling_factor must be at least 1",
    ),
    "a factor of which YaRN makes 0": (
        lambda f: with_config(f, lambda c: c["rope_scaling"].update(factor=math.exp(-10), attention_factor=1.0)),
        "rope_scaling_factor must be at least 1",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        r"no tokenizer.json beside the weights: add --tokenizer",
    ),
    "tokenizer of another family": (
        tokenizer(lambda t: t.update(pre_tokenizer=None)),
        "pre_tokenizer is not the one of gpt-oss",
    ),
    "tokenizer without merges": (tokenizer(lambda t: t["model"].pop("merges")), "not a byte-level BPE tokenizer"),
    "tokenizer with broken merges": (
        tokenizer(lambda t: t["model"]["merges"].append(["a", 1])),
        "merges is malformed after 224 merges",
    ),
    "tokenizer with ids past the vocabulary": (
        tokenizer(lambda t: t["model"]["vocab"].update(zzz=512)),
        "id lies outside the vocabulary",
    ),
    "tokenizer with one id twice": (
        tokenizer(lambda t: t["model"]["vocab"].update(zzz=5)),
        "two tokens have the same id",
    ),
    "tokenizer without list of added tokens": (
        tokenizer(lambda t: t.update(added_tokens=None)),
        "tokenizer.json: added_tokens is malformed",
    ),
    "added token without id": (
        tokenizer(lambda t: t["added_tokens"][0].pop("id")),
        "tokenizer.json: added_tokens is malformed",
    ),
    "added token that is a list": (
        tokenizer(lambda t: t["added_tokens"][0].update(content=["a"])),
        "tokenizer.json: added_tokens is malformed",
    ),
    "surrogate in a token": (
        tokenizer(lambda t: t["model"]["vocab"].update({"\ud800": 505})),
        "tokenizer.json: a token is not UTF-8",
    ),
    "surrogate in a merge": (
        tokenizer(lambda t: t["model"]["merges"].append(["a", "\ud800"])),
        "tokenizer.json: model.merges holds what is not UTF-8",
    ),
    "token id beyond 32 bits": (
        lambda f: (config(bos_token_id=5_000_000_000)(f), (f / "tokenizer_config.json").unlink()),
        "bos_token_id must be a token id",
    ),
    "missing shard": (missing_shard, "model-00002-of-00002.safetensors: no such file"),
    "index names a file outside": (
        index(lambda i: i["weight_map"].update({"lm_head.weight": "../x.safetensors"})),
        "must be a plain name inside the folder",
    ),
    "index misplaces a tensor": (
        index(lambda i: i["weight_map"].update({"lm_head.weight": "model-00001-of-00002.safetensors"})),
        "lm_head.weight: the index places",
    ),
    "index forgets a tensor": (
        index(lambda i: i["weight_map"].pop("lm_head.weight")),
        "lm_head.weight: the tensor is not in",
    ),
    "a link out of the folder": (
        lambda f: (
            shutil.move(f / "model.safetensors", f.parent / "m"),
            (f / "model.safetensors").symlink_to(f.parent / "m"),
        ),
        "link that leaves its folder",
    ),
    "pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickle checkpoint"),
    "pickle in disguise": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04\x95" + bytes(40)),
        "model.safetensors",
    ),
    "empty folder": (lambda f: [p.unlink() for p in f.iterdir()], "no safetensors file in the folder"),
    "swiglu_limit": (config(swiglu_limit=5.0), "swiglu_limit is 5.*--allow-lossy"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path) -> None:
    damage, words = BAD[case]
    folder, out = copy(tmp_path / "c"), tmp_path / "out"
    damage(folder)
    out.mkdir()
    done = run("to-gguf", folder, "-o", out / "out.gguf")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert done.returncode == 3, done.stderr
    assert len(lines) == 1 and lines[0].startswith(f"error: {tmp_path}") and re.search(words, lines[0]), lines
    assert list(out.iterdir()) == [] and done.stdout == ""


def refused(done: Done, code: int, words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert done.returncode == code and len(lines) == 1 and re.search(words, lines[0]), done.stderr


def test_no_such_input(tmp_path: Path) -> None:
    refused(run("to-gguf", tmp_path / "nowhere", "-o", tmp_path / "x.gguf"), 3, "nowhere: no such file or folder")
    refused(
        run("to-gguf", SOURCE, "-o", tmp_path / "x.gguf", "--tokenizer", tmp_path),
        3,
        "tokenizer.json: no such tokenizer",
    )


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    folder, out = copy(tmp_path / "c\udcff"), tmp_path / "out.gguf"
    refused(run("to-gguf", folder, "-o", out), 3, r"metadata text is not UTF-8 .got C\\udcff")
    refused(run("to-gguf", SOURCE, "-o", out, "--name", "\udcff"), 3, "metadata text is not UTF-8")
    assert run("to-gguf", folder, "-o", out, "--name", "c").returncode == 0
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    refused(run("to-gguf", SOURCE, "-o", out, "--tokenizer", folder), 3, "chat_template.jinja: the text is not UTF-8")
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "\ud800"}))
    refused(run("to-gguf", folder, "-o", out, "--name", "c"), 3, "metadata text is not UTF-8")


def test_output_exists(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    out.write_bytes(b"mine")
    refused(run("to-gguf", SOURCE, "-o", out), 4, "x.gguf: exists already: add --force")
    assert out.read_bytes() == b"mine"
    assert run("to-gguf", SOURCE, "-o", out, "--force").returncode == 0


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    refused(run("to-gguf", SOURCE, "-o", tmp_path / "no" / "x.gguf"), 4, "no: no such folder")
    refused(run("to-gguf", SOURCE, "-o", "/proc/x.gguf"), 4, "x.gguf|/proc")


def test_full_disk(tmp_path: Path) -> None:
    """A small tmpfs in a mount namespace of our own; where that is not allowed, the answer of a disk of its size
    stands in.
    """
    command = [
        sys.executable,
        "-m",
        "gptoss_converters.cli",
        "to-gguf",
        str(SOURCE),
        "-o",
        f"{tmp_path}/x.gguf",
    ]
    mount = f"mount -t tmpfs -o size=300k none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode == 0:
        inside = f"{mount} && {shlex.join(command)}; code=$?; ls -A {tmp_path}; exit $code"
        done = subprocess.run(["unshare", "-rm", "sh", "-c", inside], capture_output=True, text=True, check=False)
    else:
        small = (
            "import os, sys; real = os.statvfs; os.statvfs = lambda p: os.statvfs_result((4096, 4096, 75, 75, "
            "75, *real(p)[5:]))"
        )
        inside = f"{small}; sys.argv[1:] = {command[3:]!r}; from gptoss_converters.cli.program import main; main()"
        done = subprocess.run([sys.executable, "-c", inside], capture_output=True, text=True, check=False)
    refused(done, 4, "not enough space .expected 88.... bytes free")
    assert done.stdout == "" and not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """While it makes a big checkpoint: no traceback, nothing under a final name, and it goes on where it was."""
    command = [
        sys.executable,
        "-m",
        "gptoss_converters.cli",
        "new",
        "20b-shape",
        "--layers",
        "1",
        "-o",
        str(tmp_path / "c"),
    ]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  a shell's background jobs inherit it ignored
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heard)
    while process.poll() is None and sum(p.stat().st_blocks for p in tmp_path.glob("c/.*.part-*")) < 2048:
        time.sleep(0.02)  # until it has written a megabyte
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    if number == signal.SIGINT:
        assert re.fullmatch(
            r"error: .*c/.*: interrupted: what is done stays in \..*\.part-[0-9a-f]*: run again with --resume\n", stderr
        ), stderr
    else:
        assert stderr == ""
    assert [p for p in (tmp_path / "c").iterdir() if not p.name.startswith(".")] == []


def test_ctrl_c_while_packages_are_imported() -> None:
    """Some print tracebacks of their own when they are interrupted, and raise another error."""
    program = (
        "from gptoss_adapters import console\nwith console.loading():\n    print(flush=True)\n    while True: pass"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stdout.readline() == "\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "error: interrupted\n")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("to-gguf", tmp_path / "nowhere", "-o", tmp_path / "x.gguf", env={**os.environ, "GPTOSS_DEBUG": "1"})
    assert done.returncode == 3 and "Traceback" in done.stderr


def test_stdout_that_nobody_reads(tmp_path: Path) -> None:
    command = f"{sys.executable} -m gptoss_converters.cli inspect {SOURCE} --no-histograms | head -0"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["to-hf", "to-openai", "to-mlx"])
def test_float32_that_bf16_cannot_hold_is_not_rounded_in_silence(command: str, tmp_path: Path) -> None:
    """The norms and biases of every GGUF are float32; those of a published model hold bfloat16 values, which come
    back without a word.
    """
    plain, finer = tmp_path / "plain.gguf", tmp_path / "finer.gguf"
    data_of(run("to-gguf", SOURCE, "-o", plain, "--json"))
    raw = plain.read_bytes()
    tensor = next(
        t
        for t in data_of(run("to-gguf", SOURCE, "-o", tmp_path / "x.gguf", "--dry-run", "--json"))["tensors"]
        if t["name"] == "blk.2.attn_norm.weight"
    )
    finer.write_bytes(raw[: tensor["offset"]] + b"\x01" + raw[tensor["offset"] + 1 :])  # the lowest bit of one float32
    for source, lossy in ((plain, False), (finer, True)):
        out = tmp_path / f"{source.stem}-out"
        said = run(command, source, "-o", out, "--exact-yarn", "--json")
        notices = [n for n in data_of(said)["notices"] if "float32" in n]
        assert len(notices) == lossy, notices
        assert ("note: 1 tensors hold float32 values that bfloat16 cannot, and were rounded" in said.stderr) == lossy
