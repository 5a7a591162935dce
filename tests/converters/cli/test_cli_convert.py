"""`gptoss-convert` as a program: what it prints and writes, its help, and how it answers wrong usage."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from helpers.convert_cli import SOURCE, data_of, run


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
    serve, create, _, quantise = lines[lines.index("next:") + 1 :]
    assert shlex.split(quantise)[-3:] == [str(first), str(folder / "My Tune-Q4_K_M.gguf"), "Q4_K_M"]
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

    monkeypatch.setattr(hub, "download", lambda name: SOURCE)
    for path in ("openai/gpt-oss-20b", "openai/gpt-oss-20b/original", "https://hf.co/openai/gpt-oss-20b/tree/main"):
        app(["to-gguf", path, "-o", str(tmp_path / "out.gguf"), "--force"], standalone_mode=False)
        made = GgufFile(tmp_path / "out.gguf").metadata
        assert made["general.name"] == "Gpt Oss 20b" and made["gptoss_adapters.source.sha256"]


def test_a_revision_is_a_repository_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss_converters.cli.program import app

    from gptoss_adapters.checkpoint.formats import hub

    asked = []
    monkeypatch.setattr(hub, "download", lambda name: asked.append(name.revision) or SOURCE)
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
