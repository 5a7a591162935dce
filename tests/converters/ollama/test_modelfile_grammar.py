"""More than a hundred Modelfiles, as the parser of Ollama 0.33.0-rc2 took or refused them.

Whether Ollama takes a file was measured there for files of each kind (November 2026); these are our own of the same
kinds. {} stands for a GGUF that is there.
"""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest
from gptoss_converters.ollama.printable import is_printable
from gptoss_converters.ollama.rules import check

GGUF = Path(__file__).parents[2] / "data" / "gguf" / "gguf" / "tiny-mxfp4.gguf"
HARMONY = '"""<|start|>{{ range .Messages }}{{ .Content }}{{ end }}<|end|>"""'
TAKEN: list[str | bytes] = [
    "FROM {}",
    "from {}",
    "FrOm {}\n",
    "FROM\t{}\n",
    "FROM   {}  \t\n",
    'FROM "{}"\n',
    'FROM """{}"""\n',
    "\n\n  \t\nFROM {}\n",
    "# a comment\nFROM {}\n# another",
    "   # indented\nFROM {}",
    "#\nFROM {}",
    "FROM {}\r\nPARAMETER seed 1\r\n",
    "FROM {}\rPARAMETER seed 1\r",
    "\ufeffFROM {}\n",
    "\u00a0FROM {}\n",
    "\u200bFROM {}\n",
    "\x07FROM {}\n",
    "FROM {}\n\u2060SYSTEM x\n",
    "FROM {}\n\tSYSTEM x",
    "FROM {}\nSYSTEM x # no comment\n",
    'FROM {}\nSYSTEM ""\n',
    "FROM {}\nSYSTEM \n",
    'FROM {}\nSYSTEM "a"\u200b\n',
    'FROM {}\nSYSTEM """a"""\u00a0\u00a0\n',
    'FROM {}\nSYSTEM """\nlines\n\n\nmore\n"""\n',
    'FROM {}\nSYSTEM """a "b" ""c"" d"""\n',
    'FROM {}\nSYSTEM it\'s "so"\n',
    'FROM {}\nSYSTEM "two\nlines"\n',
    "FROM {}\nSYSTEM \U0001fae8 \U0001f6dc \U00011f04\n",
    "FROM {}\nSYSTEM 日本 é ß ı\n",
    "FROM {}\nSYSTEM a\u0301\u20e3\n",
    b"FROM {}\nSYSTEM na\xefve\n",
    "FROM {}\nSYSTEM x\n".encode("utf-16"),
    b"\xfe\xff" + "FROM {}\nSYSTEM x\n".encode("utf-16-be"),
    "FROM {}\nPARAMETER num_ctx 4096\n",
    "FROM {}\nPARAMETER num_ctx +4096\n",
    "FROM {}\nPARAMETER num_ctx 0004096\n",
    'FROM {}\nPARAMETER num_ctx "4096"\n',
    "FROM {}\nPARAMETER seed -9223372036854775808\n",
    "FROM {}\nPARAMETER seed 9223372036854775807\n",
    "FROM {}\nPARAMETER num_predict -1\n",
    "FROM {}\nPARAMETER num_ctx   4096   \n",
    "FROM {}\nPARAMETER temperature .5\n",
    "FROM {}\nPARAMETER temperature 1.\n",
    "FROM {}\nPARAMETER temperature 1e0\n",
    "FROM {}\nPARAMETER temperature 0x1p-1\n",
    "FROM {}\nPARAMETER temperature 0X.8P+0\n",
    "FROM {}\nPARAMETER repeat_penalty 1e38\n",
    "FROM {}\nPARAMETER presence_penalty -2\n",
    "FROM {}\nPARAMETER use_mmap T\n",
    "FROM {}\nPARAMETER use_mmap 0\n",
    "FROM {}\nPARAMETER stop a\nPARAMETER stop b\n",
    'FROM {}\nPARAMETER stop " # "\n',
    "FROM {}\nparameter top_k 40\n",
    "FROM {}\nMESSAGE user hi\nMESSAGE assistant hello\n",
    'FROM {}\nMESSAGE user """a\nb"""\n',
    "FROM {}\nMESSAGE user\thi\n",
    "FROM {}\nmessage system x\n",
    'FROM {}\nMESSAGE user ""\n',
    "FROM {}\nREQUIRES 0.30\n",
    "FROM {}\nREQUIRES v0.30.0\n",
    "FROM {}\nREQUIRES 1\n",
    "FROM {}\nREQUIRES 0.30.0-rc1+build.7\n",
    'FROM {}\nLICENSE """Apache\n\n"2.0" terms"""\n',
    "FROM {}\nLICENSE a\nLICENSE b\n",
    f"FROM {{}}\nTEMPLATE {HARMONY}\n",
    f"FROM {{}}\nTEMPLATE {HARMONY}\nPARSER harmony\n",
    "FROM gpt-oss:20b\n",
]


@pytest.mark.parametrize("text", TAKEN)
def test_what_ollama_takes_has_no_error(text: str | bytes, tmp_path: Path) -> None:
    assert [f for f in find(text, tmp_path) if not f.warning] == []


# text -> (line, rule): what Ollama refuses, at create or with the first chat
REFUSED: list[tuple[str, int, str]] = [
    ("FROM {}\nPARAMETER  temperature 0.5\n", 2, "parameter-name"),
    ("FROM {}\nPARAMETER \tseed 1\n", 2, "parameter-name"),
    ("FROM {}\nPARAMETER\t\tseed 1\n", 2, "parameter-name"),
    ("FROM {}\nMESSAGE  user hi\n", 2, "message-name"),
    ("FROM {}\nMESSAGE \tassistant hi\n", 2, "message-name"),
    ("FROM {}\nMESSAGE User hi\n", 2, "message-role"),
    ("FROM {}\nMESSAGE user\nhi\n", 2, "no-value"),
    ("FROM {}\nMESSAGE", 2, "command-name"),
    ("FROM {}\nPARAMETER num-ctx 1\n", 2, "no-value"),
    ("FROM {}\nPARAMETER num_ctx\n", 2, "no-value"),
    ("FROM {}\nPARAMETER num_ctx\u00a04096\n", 2, "no-value"),
    ("FROM {}\nPARAMETER num_ctx 8_192\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER num_ctx \u0664\u0660\u0669\u0666\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER num_ctx 4e3\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER num_ctx 0x1000\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER num_ctx 4096.0\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER num_ctx 4 096\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER seed 9223372036854775808\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER seed 99999999999999999999999\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER seed -9223372036854775809\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER seed 1 1\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER repeat_penalty 1e39\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER repeat_penalty -1e39\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER repeat_penalty inf\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER repeat_penalty -Infinity\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER repeat_penalty NaN\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER temperature 0,7\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER temperature \u0661\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER temperature 0x1\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER temperature 0x1p99999\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER temperature 1__0\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER temperature _1\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER use_mmap TrUe\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER use_mmap on\n", 2, "parameter-value"),
    ("FROM {}\nPARAMETER Temperature 1\n", 2, "unknown-parameter"),
    ("FROM {}\nPARAMETER numa true\n", 2, "unknown-parameter"),
    ("FROM {}\nREQUIRES 0.030.0\n", 2, "requires-version"),
    ("FROM {}\nREQUIRES 00.30\n", 2, "requires-version"),
    ("FROM {}\nREQUIRES 0.30.0-01\n", 2, "requires-version"),
    ("FROM {}\nREQUIRES 0.30-rc1\n", 2, "requires-version"),
    ("FROM {}\nREQUIRES 0.30.0.1\n", 2, "requires-version"),
    ("FROM {}\nREQUIRES >=0.30.0\n", 2, "requires-version"),
    ("FROM {}\nREQUIRES 0.13\n", 2, "requires-too-old"),
    ("FROM {}\nDRAFT ./missing.gguf\n", 2, "draft-missing"),
    ("FROM {}\nDRAFT {}\n", 2, "draft-is-model"),
    ("FROM {}\n\x0c\nSYSTEM x\n", 2, "unknown-command"),
    ("FROM {}\n\u00a0# comment\n", 2, "unknown-command"),
    ("FROM {}\n\u00a0\u00a0SYSTEM x\n", 2, "unknown-command"),
    ("FROM {}\nSYSTEM\u00a0x\n", 2, "command-name"),
    ("FROM {}\nSYSTEM", 2, "command-name"),
    ("FROM {}\nSYS TEM x\n", 2, "unknown-command"),
    ("FROM {}\n- SYSTEM x\n", 2, "unknown-command"),
    ("FROM {}\nSYSTEM_ x\n", 2, "command-name"),
    ("FROM {}\nFROM2 x\n", 2, "command-name"),
    ("FROM {}\n{ }\n", 2, "unknown-command"),
    ("FROM {}\n--\n", 2, "unknown-command"),
    ("FROM ./m*.gguf\n", 1, "from-wildcard"),
    ("REQUIRES 0.30.0\nFROM ./?.gguf\n", 2, "from-wildcard"),
    ("FROM {}\nSYSTEM \U0001fac8\n", 2, "nonprintable"),
    ("FROM {}\nSYSTEM a\u00adb\n", 2, "nonprintable"),
    ("FROM {}\nSYSTEM a\u3000b\n", 2, "nonprintable"),
    ("FROM {}\nSYSTEM a\x00b\n", 2, "nonprintable"),
    ('FROM {}\nSYSTEM "\u200ba"\n', 2, "nonprintable"),
    ('FROM {}\nSYSTEM "a\u200b"\n', 2, "nonprintable"),
    ('FROM {}\nSYSTEM """\n', 2, "unterminated"),
    ('FROM {}\nSYSTEM "\n', 2, "unterminated"),
    ('FROM {}\nSYSTEM """"\n', 2, "unterminated"),
    ('FROM {}\nSYSTEM """""\n', 2, "unterminated"),
    ("FROM {}\nPARSER passthrough\n", 2, "parser"),
    (
        'FROM {}\nTEMPLATE """<|start|>{{ range .Messages }}\n{{ .Contents }}{{ end }}<|end|>"""\n',
        3,
        "template-execution",
    ),
    (
        'FROM {}\nTEMPLATE """<|start|>{{ range .Messages }}{{ .Role.Name }}{{ end }}<|end|>"""\n',
        2,
        "template-execution",
    ),
    (
        'FROM {}\nTEMPLATE """<|start|>{{ range .Messages }}{{ range .ToolCalls }}{{ .Name }}{{ end }}{{ end }}'
        '<|end|>"""',
        2,
        "template-execution",
    ),
    (
        'FROM {}\nTEMPLATE """<|start|>{{ (index .Messages 7).Content }}<|end|>"""\n',
        2,
        "template-execution",
    ),
    (
        'FROM {}\nTEMPLATE """{{ define "x" }}{{ template "x" . }}{{ end }}<|start|>{{ template "x" .Messages }}'
        '<|end|>"""',
        2,
        "template-execution",
    ),
]


@pytest.mark.parametrize("text,line,rule", REFUSED)
def test_what_ollama_refuses_is_named_with_its_line(text: str, line: int, rule: str, tmp_path: Path) -> None:
    errors = [f for f in find(text, tmp_path) if not f.warning]
    assert errors and (errors[0].line, errors[0].rule) == (line, rule), errors
    assert "\n" not in errors[0].what and len(errors[0].what) < 400


def test_there_are_more_than_a_hundred_files() -> None:
    assert len(TAKEN) + len(REFUSED) > 100


def find(text: str | bytes, folder: Path) -> list[object]:
    shutil.copyfile(GGUF, folder / "m.gguf")
    data = text.encode() if isinstance(text, str) else text
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        data = data.replace("{}".encode(encoding), "./m.gguf".encode(encoding))
    (folder / "Modelfile").write_bytes(data)
    return [f for f in check(folder / "Modelfile") if f.rule != "gguf-stop-token"]


def test_an_odd_byte_is_a_warning_with_its_line(tmp_path: Path) -> None:
    (found,) = find(b"FROM {}\n\nSYSTEM na\xefve\n", tmp_path)
    assert (found.line, found.rule, found.warning) == (3, "encoding", True)


def test_what_ollama_shows_can_be_checked(tmp_path: Path) -> None:
    """`ollama show --modelfile`: FROM a blob without a suffix, its own comment lines, and its default template."""
    blob = tmp_path / "blobs" / f"sha256-{'0' * 64}"
    blob.parent.mkdir()
    shutil.copyfile(GGUF, blob)
    head = f'# Modelfile generated by "ollama show"\n# FROM x:latest\n\nFROM {blob}\n'
    rest = "PARAMETER num_ctx 8192\nPARAMETER stop <|return|>\n"
    for template, rules in ((HARMONY, set()), ("{{ .Prompt }}", {"template-default"})):
        found = find(f"{head}TEMPLATE {template}\n{rest}", tmp_path)
        assert {f.rule for f in found} == rules and all(f.warning for f in found), found


def test_printable_is_that_of_unicode_15() -> None:
    """Where Python knows a character of Unicode 15.0 both agree; later characters Go 1.26 does not print."""
    later = [chr(c) for c in range(0x110000) if chr(c).isprintable() and not is_printable(chr(c))]
    if unicodedata.unidata_version <= "15.0.0":
        assert later == []
    else:
        assert all(unicodedata.ucd_3_2_0.category(c) == "Cn" for c in later)
    assert is_printable("\U0001fae8") and is_printable(" ") and not is_printable("\U0001fac8")
    assert not any(map(is_printable, "\u00a0\u00ad\u200b\u2028\ufeff\ue000\x7f\t\n"))
