"""gptoss-harmony as a user runs it: output, exit codes, one line per error."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from gptoss_harmony import Conversation, LayoutError, Message, load_vocabulary, render
from gptoss_harmony.cli import main
from gptoss_harmony.view import printable

CALL = "<|channel|>commentary to=functions.f json<|message|>{}<|end|>"
CHAT = Conversation(
    [Message.system(), Message.user("Hi"), Message.assistant("Hmm.", "analysis"), Message.assistant("Hello!", "final")]
)


def run(*arguments: str, stdin: str = "", debug: bool = False) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of the program, in this process: starting one each time would cost minutes."""
    streams = [io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="") for data in (stdin.encode(), b"", b"")]
    with (
        mock.patch.multiple(
            sys, argv=["gptoss-harmony", *arguments], stdin=streams[0], stdout=streams[1], stderr=streams[2]
        ),
        mock.patch.dict(os.environ, GPTOSS_DEBUG="1" if debug else "", COLUMNS="120"),
    ):
        try:
            main()
            code: object = 0
        except SystemExit as done:
            code = done.code or 0
    for stream in streams[1:]:
        stream.seek(0)
    assert isinstance(code, int)
    return code, streams[1].read(), streams[2].read()


def test_as_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gptoss_harmony.cli", "render", "-"],
        input="[]",
        text=True,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)


def ok(*arguments: str, stdin: str = "") -> str:
    code, out, error = run(*arguments, stdin=stdin)
    assert (code, error) == (0, ""), (code, error)
    return out


@pytest.fixture
def chat(tmp_path: Path) -> str:
    file = tmp_path / "chat.json"
    file.write_text(CHAT.to_json())
    return str(file)


def test_render_in_both_forms() -> None:
    call = Conversation([Message.assistant("{}", "commentary", "functions.f")])
    texts = {form: ok("render", "-", "--form", form, stdin=call.to_json()) for form in ("role", "channel")}
    assert "assistant to=functions.f<|channel|>commentary<|message|>" in texts["role"]
    assert "assistant<|channel|>commentary to=functions.f<|message|>" in texts["channel"]


def test_render(chat: str) -> None:
    ids = render(CHAT)
    assert ok("render", chat, "--ids").split() == [*map(str, ids)]
    assert ok("render", chat) == ok("render", chat, "--text") == load_vocabulary().decode(ids) + "\n"
    assert json.loads(ok("render", "-", "--json", stdin=CHAT.to_json())) == {
        "ids": ids,
        "text": load_vocabulary().decode(ids),
        "count": len(ids),
    }
    training = render(CHAT, mode="training", drop="none")
    assert ok("render", chat, "--ids", "--mode", "training", "--drop", "none").split() == [*map(str, training)]
    assert ok("render", chat, "--ids", "--next-role", "tool").split()[-1] == str(load_vocabulary().encode("tool")[0])


def test_colour_shows_roles_channels_and_token_boundaries(chat: str) -> None:
    out = ok("render", chat, "--colour", "--mode", "plain", "--drop", "none")
    assert "\x1b[1;35m<|start|>\x1b[0m" in out
    assert "1;34massistant\x1b[0m" in out
    assert "1;32manalysis\x1b[0m" in out
    assert "Hmm\x1b[0m\x1b[48;5;" in out  # another shade for the full stop


def test_parse_ids_and_text() -> None:
    expected = "assistant channel=commentary to=functions.f type=json\n  ! unclosed_call\n  | {}\n"
    assert ok("parse", "-", stdin=CALL) == expected
    ids = [200005, 12606, 815, 316, 28, 44580, 1196, 5701, 200008, 12083, 200007]
    for text in (str(ids), " ".join(map(str, ids)), ",".join(map(str, ids))):
        assert ok("parse", "-", stdin=text) == expected
    (message,) = json.loads(ok("parse", "-", "--json", stdin=str(ids)))["messages"]
    assert message["recipient"] == "functions.f"
    assert message["flags"] == ["unclosed_call"]
    assert message["header"]["content"] == [12083]
    assert ok("parse", "-", "--text", stdin="42") == "assistant\n  ! missing_message\n  | 42\n"


def test_parse_shows_what_would_steer_the_terminal() -> None:
    out = ok(
        "parse",
        "-",
        "--text",
        stdin="<|channel|>x\x1b]0;p\x07 to=functions.\x1b[2Jx\u202e<|message|>\x9b2J\x7f\n\t\u2066é<|end|>\nx\x85",
    )
    assert (
        "to=functions.␛[2Jx⟨202E⟩" in out and "! unknown_channel:x␛]0;p␇" in out and "| ⟨9B⟩2J␡\n  | \t⟨2066⟩é\n" in out
    )
    assert not set(out) & {"\x1b", "\x07", "\x9b", "\x85", "\u202e", "\u2066"}
    assert all(line.startswith(("assistant", "  ! ", "  | ")) for line in out.splitlines())


def test_ordinary_text_is_printed_as_it_is() -> None:
    text = "a\u00a0b\u202fc 👩\u200d💻 é שלום\tx"
    assert printable(text) == text


def test_parse_options() -> None:
    assert "to=functions.f" in ok(
        "parse", "-", "--tool", "functions.f", stdin="<|channel|>final <|constrain|>f<|message|>{}"
    )
    assert ok("parse", "-", "--role", "none", stdin="<|start|>user<|message|>x<|end|>") == "user\n  | x\n"
    events = [
        json.loads(line)
        for line in ok("parse", "-", "--events", stdin="200005 17196 200008 3686 3686 200002").splitlines()
    ]
    assert [event["type"] for event in events] == ["message_start", "delta", "delta", "message_end"]
    assert events[-1]["reason"] == "return"


def test_strict_is_bad_input() -> None:
    code, out, error = run("parse", "-", "--strict", stdin="hi<|end|>")
    assert (code, out) == (3, "")
    assert error == "error: Unexpected EOS while waiting for message header to complete\n"


def test_tokens() -> None:
    assert ok("tokens", "Hello <|end|>").startswith('13225\t"Hello"\n')
    assert ok("tokens", "--special", "<|end|>é") == '200007\t"<|end|>"\n377\t"é"\n'
    assert json.loads(ok("tokens", "-", "--json", stdin="\x1b[0m"))[0] == {
        "id": load_vocabulary().encode("\x1b")[0],
        "text": "␛",
    }


GOOD = Conversation(
    [Message.user("2+2?"), Message.assistant("Easy.", "analysis"), Message.assistant("4", "final")]
).to_json()


def test_validate_good(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(GOOD + "\n\n" + GOOD + "\n")
    assert ok("validate", str(file)).startswith("2 conversations, 0 with problems; ")
    code, out, error = run("validate", str(file), "--json")
    first = json.loads(out.splitlines()[0])
    assert code == 0 and first["ok"] and error.startswith("2 conversations")
    assert [span["trained_from"] is None for span in first["spans"]] == [True, False, False]
    assert first["trained"] == sum(
        span["end"] - span["trained_from"] for span in first["spans"] if span["trained_from"]
    )
    assert "\x1b[1;35;4m<|return|>" in ok("validate", str(file), "--colour")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "assistant", "content": "x"}, "messages[1].channel: None is no channel"),
        ({"role": "assistant", "content": "  ", "channel": "final"}, "messages[1].content: empty assistant message"),
        (
            {"role": "assistant", "content": "a<|end|>", "channel": "final"},
            "messages[1].content: contains <|end|> as text",
        ),
        (
            {"role": "assistant", "content": "{", "channel": "commentary", "recipient": "functions.f"},
            "messages[1].content: the arguments",
        ),
        (
            {"role": "assistant", "content": "{}", "channel": "commentary", "recipient": "functions.f"},
            "calls functions.f, which no developer",
        ),
        (
            {"role": "assistant", "content": "{}", "channel": "final", "recipient": "python"},
            "messages[1].channel: a tool call on final",
        ),
        ({"role": "tool", "content": "x", "recipient": "assistant"}, "messages[1].name: a tool message needs"),
        ({"role": "tool", "name": "functions.f", "content": "x"}, "messages[1].recipient: a tool's result"),
        ({"role": "user", "content": "x"}, "messages[1]: the last message is by user"),
        ({"role": "nobody", "content": "x"}, "messages[1].role: unknown value"),
        ({"role": "assistant"}, "messages[1]: no content"),
    ],
)
def test_validate_problems(message: dict[str, str], said: str) -> None:
    code, out, error = run("validate", "-", stdin=json.dumps({"messages": [{"role": "user", "content": "q"}, message]}))
    assert (code, error) == (1, "")
    assert f"line 1: {said}" in out or said in out


def test_validate_call_without_result_and_dropped_thought() -> None:
    call = {"role": "assistant", "content": "{}", "channel": "analysis", "recipient": "python"}
    answer = {"role": "assistant", "content": "x", "channel": "final"}
    code, out, _ = run(
        "validate", "-", stdin=json.dumps({"messages": [{"role": "user", "content": "q"}, call, answer]})
    )
    assert code == 1 and "a call of python without a result" in out
    code, out, _ = run("validate", "-", "--drop", "upstream", stdin=GOOD)
    assert code == 1 and "messages[1]: chain of thought" in out


def test_validate_line_that_is_no_json() -> None:
    code, out, _ = run("validate", "-", stdin=GOOD + "\n{oops\n")
    assert code == 1 and "line 2: not JSON" in out


@pytest.mark.parametrize("bad", ["[" * 100_000 + "]" * 100_000, "1" * 5000], ids=["deep", "long"])
def test_json_that_python_cannot_read(bad: str) -> None:
    code, out, error = run("validate", "-", stdin=f'{{"messages": {bad}}}\n{GOOD}\n')
    assert code == 1 and out.startswith("line 1: not JSON") and "2 conversations, 1 with problems" in out and not error
    code, out, error = run("render", "-", stdin=f'{{"messages": {bad}}}')
    assert (code, out, error.count("\n")) == (3, "", 1)


@pytest.mark.parametrize(
    ("arguments", "stdin", "code"),
    [
        (("render", "/no/such/file"), "", 4),
        (("render", "-"), "[]", 3),
        (("render", "-"), '{"messages": [{"role": "tool", "content": "x"}]}', 3),
        (("parse", "-", "--ids"), "hello", 3),
        (("parse", "-"), "4294967296", 3),
        (("parse", "-"), "1" * 5000, 3),
        (("parse", "-", "--role", "robot"), "", 2),
        (("parse", "-", "--ids", "--text"), "", 2),
        (("render", "-", "--ids", "--json"), "", 2),
        (("render",), "", 2),
        (("validate", "-"), "", 3),
    ],
)
def test_exit_codes(arguments: tuple[str, ...], stdin: str, code: int) -> None:
    got, _, error = run(*arguments, stdin=stdin)
    assert got == code
    assert "Traceback" not in error
    if code > 2 and arguments[0] != "validate":
        assert error.startswith("error: ") and error.count("\n") == 1


def test_debug_raises() -> None:
    with pytest.raises(LayoutError):
        run("render", "-", stdin="[]", debug=True)


def test_help_has_examples() -> None:
    for command in ("render", "parse", "tokens", "validate"):
        assert "Example" in ok(command, "--help")
