"""Modelfiles: read as Ollama reads them, written so that they come back, and every trap named with its line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gptoss_converters.ollama.modelfile import ModelfileError, collect_parameters, quote, read, write
from gptoss_converters.ollama.rules import check, check_text
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_adapters.errors import BadInput

GGUF = Path(__file__).parents[2] / "data" / "gguf" / "gguf" / "tiny-mxfp4.gguf"
HARMONY = 'TEMPLATE """<|start|>{{ range .Messages }}{{ .Content }}{{ end }}<|end|>"""'


def test_a_modelfile_is_read_as_ollama_reads_it() -> None:
    text = (
        '\ufeff# one\nfrom ./a.gguf\n\n  PARAMETER stop "a # b"\nPARAMETER temperature 1\r\nSYSTEM """two\n'
        '"""in""" more\nlines"""\nMESSAGE user hi # there\n LICENSE ""\n'
    )
    found = [(c.name, c.key, c.value, c.line) for c in read(text)]
    assert found == [
        ("from", "", "./a.gguf", 2),
        ("parameter", "stop", "a # b", 4),
        ("parameter", "temperature", "1", 5),
        ("system", "", 'two\n"""in""" more\nlines', 6),
        ("message", "user", "hi # there", 9),
        ("license", "", "", 10),
    ]
    assert collect_parameters(read("FROM x\nPARAMETER stop a\nPARAMETER stop b\n")) == {"stop": ["a", "b"]}


def test_quoted_values() -> None:
    text = 'FROM x\nSYSTEM """a\n  b """c" \n\n"""\nTEMPLATE "one "two" three"\nLICENSE   spaced   out   \n'
    assert [c.value for c in read(text)[1:]] == ['a\n  b """c" \n\n', 'one "two" three', "spaced   out"]


def test_lost_characters_are_remembered() -> None:
    command = read("FROM x\nSYSTEM a\u00a0b\u200bc\td\n")[1]
    assert command.value == "abc\td" and command.dropped == ((2, "\u00a0"), (2, "\u200b"))


@settings(max_examples=400, deadline=None)
@given(st.text(st.sampled_from('ab "#\n\r\t\\{}é'), max_size=12))
def test_what_is_written_comes_back(value: str) -> None:
    try:
        text = write([("FROM", "x"), ("SYSTEM", value), ("PARAMETER stop", "s")])
    except BadInput:
        assert any(line.rstrip().endswith('"') for line in value.replace("\r", "\n").split("\n"))
        return
    commands = read(text)
    assert [c.value for c in commands] == ["x", value, "s"]


@pytest.mark.parametrize("value", ["a\u00a0b", "\x07", 'x\n"""\ny"\nz'])
def test_what_cannot_be_written_is_refused(value: str) -> None:
    with pytest.raises(BadInput):
        quote(value, "SYSTEM")


# text of a Modelfile -> (line, rule) of its first error; {} stands for a GGUF that is there
BAD: list[tuple[str, int, str]] = [
    ("", 1, "no-from"),
    ("SYSTEM hi", 1, "no-from"),
    ("FRM {}", 1, "unknown-command"),
    ("FROM {}\nSET x 1", 2, "unknown-command"),
    ("FROM {}\n/bye", 2, "unknown-command"),
    ("FROM {}\n1 x", 2, "unknown-command"),
    ("FROM:{}", 1, "command-name"),
    ("FROM {}\nSYSTEM\nhi", 2, "command-name"),
    ("FROM {}\nSYSTEM=hi", 2, "command-name"),
    ("FROM   \nSYSTEM x", 1, "empty-value"),
    ('FROM {}\nTEMPLATE ""', 2, "empty-value"),
    ('FROM {}\n\nSYSTEM """never\nclosed\n', 3, "unterminated"),
    ('FROM {}\nSYSTEM "never closed\n', 2, "unterminated"),
    ('FROM {}\nSYSTEM """a"""b\n', 2, "unterminated"),
    ('FROM {}\nSYSTEM """a line that ends in """\nand goes on\n"""\n', 3, "unknown-command"),
    ('FROM {}\nSYSTEM "he said "hi"\nand left"\n', 3, "unknown-command"),
    ("FROM {}\nPARAMETER", 2, "command-name"),
    ("FROM {}\nPARAMETER temperature", 2, "no-value"),
    ("FROM {}\nPARAMETER =1", 2, "parameter-name"),
    ("FROM {}\nPARAMETER stop=x", 2, "no-value"),
    ("FROM {}\nMESSAGE tool 5", 2, "message-role"),
    ("FROM {}\nMESSAGE developer x", 2, "message-role"),
    ("FROM {}\nMESSAGE user: hi", 2, "no-value"),
    ("FROM {}\nPARAMETER temprature 1", 2, "unknown-parameter"),
    ("FROM {}\nPARAMETER think low", 2, "unknown-parameter"),
    ("FROM {}\nPARAMETER reasoning_effort low", 2, "unknown-parameter"),
    ("FROM {}\nPARAMETER num_ctx 8k", 2, "parameter-value"),
    ("FROM {}\nPARAMETER num_ctx 8192.5", 2, "parameter-value"),
    ("FROM {}\nPARAMETER num_ctx 0", 2, "parameter-value"),
    ("FROM {}\nPARAMETER temperature hot", 2, "parameter-value"),
    ("FROM {}\nPARAMETER temperature 1 # warm", 2, "parameter-value"),
    ("FROM {}\nPARAMETER top_p 1.5", 2, "parameter-value"),
    ("FROM {}\nPARAMETER use_mmap yes", 2, "parameter-value"),
    ("FROM {}\nPARAMETER stop <|call|> # the call", 2, "comment-in-value"),
    ("FROM {}\nPARAMETER seed 1\nPARAMETER seed 2", 3, "repeated"),
    ("FROM {}\nSYSTEM a\nSYSTEM b", 3, "repeated"),
    ("FROM {}\nREQUIRES latest", 2, "requires-version"),
    ("FROM {}\nREQUIRES 0.030.0", 2, "requires-version"),
    ("FROM {}\nREQUIRES 0.11.5", 2, "requires-too-old"),
    ("FROM {}\nADAPTER ./lora", 2, "adapter"),
    ("FROM {}\nRENDERER harmony", 2, "renderer-harmony"),
    ("FROM {}\nRENDERER qwen3-coder", 2, "renderer"),
    ("FROM {}\nPARSER harmony", 2, "parser-without-template"),
    (f"FROM {{}}\n{HARMONY}\nPARSER qwen3", 3, "parser"),
    ("FROM {}\nSYSTEM a\u00a0b", 2, "nonprintable"),
    ('FROM {}\nSYSTEM """a\nb\u200b\n"""', 3, "nonprintable"),
    ('FROM {}\nTEMPLATE """<|start|>{{ .Messages }<|end|>"""', 2, "template-syntax"),
    ('FROM {}\nTEMPLATE """<|start|>\n{{ range .Messages }}<|end|>"""', 3, "template-syntax"),
    ('FROM {}\nTEMPLATE """<|start|>\n\n{{ tojson .Messages }}<|end|>"""', 4, "template-syntax"),
    ('FROM {}\nTEMPLATE """<|start|>{{ .Messages }}\n{{ template "x" }}<|end|>"""', 3, "template-undefined"),
    ('FROM {}\nTEMPLATE """<|start|>hello<|end|>"""', 2, "template-prompt"),
    ('FROM {}\nTEMPLATE """### User: {{ .Messages }}"""', 2, "template-not-harmony"),
    ("FROM ./missing.gguf", 1, "from-missing"),
    ("FROM .", 1, "from-folder"),
    ("FROM ./m-*-of-*.gguf", 1, "from-missing"),
    ("FROM a b c", 1, "from-name"),
    ("FROM {}\nFROM {}", 2, "from-several"),
]


@pytest.mark.parametrize("text,line,rule", BAD)
def test_bad_modelfiles_name_line_and_rule(text: str, line: int, rule: str, tmp_path: Path) -> None:
    assert len(BAD) >= 50
    shutil.copyfile(GGUF, tmp_path / "m.gguf")
    found = [
        f
        for f in check_text(text.replace("{}", "./m.gguf", 2), tmp_path)
        if not f.warning and f.rule != "gguf-stop-token"
    ]
    assert found and (found[0].line, found[0].rule) == (line, rule), found
    assert "\n" not in found[0].what


@pytest.mark.parametrize(
    "text,rule",
    [
        ("PARAMETER mirostat 1", "deprecated-parameter"),
        ("DRAFT x", "draft"),
        ('TEMPLATE "<|start|>{{ .Prompt }}<|end|>"', "template-messages"),
    ],
)
def test_warnings_are_no_errors(text: str, rule: str, tmp_path: Path) -> None:
    found = check_text(f"FROM gpt-oss:20b\n{text}\n", tmp_path)
    assert [(f.line, f.rule, f.warning) for f in found] == [(2, rule, True)]


def test_names_of_models_are_no_files(tmp_path: Path) -> None:
    for name in ("gpt-oss", "gpt-oss:20b", "hf.co/unsloth/gpt-oss-20b-GGUF:F16", "localhost:5000/me/tune:v1"):
        assert check_text(f"FROM {name}\n", tmp_path) == []


def test_the_error_of_read_is_one_line() -> None:
    with pytest.raises(ModelfileError, match=r"^line 2: unknown-command: 'SET x' is no command"):
        read("FROM x\nSET x\n")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        check(tmp_path / "Modelfile")


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text("FROM gpt-oss\nPARSER harmony\nRENDERER harmony\n")
    done = subprocess.run(
        [sys.executable, "-m", "gptoss_converters.cli", "check-modelfile", tmp_path / "Modelfile"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"error: {tmp_path}/Modelfile: 2 errors, 0 warnings"]
    assert (
        f"{tmp_path}/Modelfile:2: error: parser-without-template: PARSER harmony without TEMPLATE sends "
        "the bare prompt: remove the line, or add a Harmony TEMPLATE"
    ) in done.stdout
    assert f"{tmp_path}/Modelfile:3: error: renderer-harmony: " in done.stdout
