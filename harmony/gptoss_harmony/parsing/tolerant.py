"""The actions of `strict=False`: every input does something in every state, none raises, no text is lost."""

from __future__ import annotations

from gptoss_harmony.messages import Role
from gptoss_harmony.parsing.events import Header
from gptoss_harmony.parsing.flags import content_flags, first_json_value
from gptoss_harmony.parsing.header_text import (
    TOOL_LIKE,
    Section,
    is_cut_header,
    is_given_up_header,
    is_header_text,
    is_markup,
    is_markup_beginning,
    split_headless,
    split_stripped,
)
from gptoss_harmony.parsing.machine import KINDS, STOP_REASONS, Action, Input, InputKind, Machine, ParsingMode, State
from gptoss_harmony.parsing.repair import ReadHeader, read_header
from gptoss_harmony.parsing.token_text import token_bytes
from gptoss_harmony.parsing.tool_names import begins_name, cut_to, find_alike, find_declared, is_tool_word
from gptoss_harmony.parsing.utf8 import REPLACEMENT, Utf8Decoder
from gptoss_harmony.tokens import CHANNEL, CONSTRAIN, ENDOFTEXT, FINAL, FIRST_SPECIAL, SPECIAL_NAMES, is_special


def split_sections(machine: Machine) -> list[Section]:
    """The header read so far: text between special tokens."""
    out: list[Section] = [(None, "")]
    data = bytearray()
    for piece in [*machine.header, None]:
        if isinstance(piece, str):
            data += piece.encode("utf-8", "surrogatepass")
        elif piece is not None and not is_special(piece):
            data += token_bytes()[piece]
        else:
            out[-1] = (out[-1][0], out[-1][1] + data.decode("utf-8", "replace"))
            data.clear()
            out.append((piece, ""))
    return out[:-1]


def _spell_marker(token: int | None) -> str:
    return "" if token is None else SPECIAL_NAMES[token - FIRST_SPECIAL]


# -- between messages ------------------------------------------------------------------------------------------------


def _begin(machine: Machine, received: Input) -> None:
    machine.begin()


def _begin_unmarked(machine: Machine, received: Input) -> None:
    machine.begin()
    machine.started = machine.formed = False
    machine.collect(received)


def _skip(machine: Machine, received: Input) -> None:
    assert isinstance(received, int)
    _flag_last(machine, f"extra_special:{_spell_marker(received)}")


def _flag_last(machine: Machine, flag: str) -> None:
    """Between messages a flag belongs to the message before; if there is none, to the next."""
    if not machine.messages:
        _flag_once(machine, flag)
    elif flag not in machine.messages[-1].flags:
        machine.messages[-1].flags += (flag,)


def _end(machine: Machine, received: Input) -> None:
    """The stream is over: flags that wait for a next message go to the last one."""
    if machine.messages:
        machine.messages[-1].flags += tuple(machine.flags)
        machine.flags = []


# -- in a header -----------------------------------------------------------------------------------------------------


def _begin_again(machine: Machine, received: Input) -> None:
    """``<|start|>`` in a header: what came before is a message if it says more than a role."""
    parts = split_sections(machine)
    if _is_only_role(parts):
        text = "".join([text for _, text in parts])
        if machine.started or text:
            _flag_once(machine, f"repeated_start:{text}" if text else "repeated_start")
        _drop_header(machine)
        for marker, _ in parts[1:]:
            _flag_last(machine, f"extra_special:{_spell_marker(marker)}")
    else:
        _close_headless(machine, None, "cut")
    machine.begin()


def _is_only_role(parts: list[Section]) -> bool:
    markers, texts = zip(*parts, strict=True)
    return {CHANNEL, CONSTRAIN}.isdisjoint(markers) and "".join(texts).strip() in ("", *Role)


def _collect_channel(machine: Machine, received: Input) -> None:
    """Prose before a ``<|channel|>`` is a message of its own, not a header."""
    if not machine.started and not machine.has_channel and not _is_header(machine, split_sections(machine)[0][1]):
        _close_headless(machine, None, "cut")
        _begin_unmarked(machine, received)
    else:
        machine.collect(received)


def _is_header(machine: Machine, text: str) -> bool:
    """Words that headers have, or the name of a declared tool, which may have several."""
    name = text.strip()
    if is_header_text(text) or find_declared(name, machine.tools):
        return True
    called = cut_to(name)
    return called != name and bool(TOOL_LIKE.fullmatch(called) or find_alike(called, machine.tools, glued=False))


def _collect_unknown(machine: Machine, received: Input) -> None:
    machine.formed = False
    _flag_once(machine, "unknown_token")


def _begin_unknown(machine: Machine, received: Input) -> None:
    _begin_unmarked(machine, None)
    _collect_unknown(machine, received)


def _open(machine: Machine, received: Input) -> None:
    _open_as(machine, _read_header(machine, split_sections(machine)))


def _read_header(machine: Machine, parts: list[Section]) -> ReadHeader:
    read = read_header(parts, machine.next_role, machine.tools, machine.started)
    if not machine.started and machine.next_role is None:
        read.flags.insert(0, "missing_start")
    return read


def _open_as(machine: Machine, read: ReadHeader) -> None:
    machine.flags += read.flags
    if machine.role is Role.ASSISTANT:
        if machine.last_reason == "return":
            machine.flags.append("after_return")
        if read.header.role is not Role.ASSISTANT:
            machine.flags.append("hallucinated_turn")
    machine.open(read.header)


def _stop_in_header(machine: Machine, received: Input) -> None:
    assert received is None or isinstance(received, int)
    _close_headless(machine, received, STOP_REASONS[received])


def _close_headless(machine: Machine, end: int | None, reason: str) -> None:
    """The header ended without ``<|message|>``: its words and the content are told apart."""
    parts = split_sections(machine)
    if (
        end is None and machine.started and len(parts) == 1 and _is_only_role(parts)
    ):  # a prompt, ready for its completion
        _drop_header(machine)
        _end(machine, end)
        return
    parts = _join_meaningless(parts)
    if len(parts) == 1 and not machine.started and not parts[0][1].lstrip().startswith("to="):
        _close_bare(machine, parts[0][1], end, reason)
        return
    head, content = split_headless(parts, machine.tools)
    read = _read_header(machine, head)
    if content and _is_given_up(machine, content, reason, head, read.header.channel):
        read.flags.append(f"truncated_header:{content}")
        content = ""
    else:
        read.flags += _judge_headless(read.header, content, reason)
    _add_message(machine, read, content, end, reason)


def _is_given_up(machine: Machine, text: str, reason: str, head: list[Section], channel: str | None) -> bool:
    """Is what stands where a content could begin only more of the header? A final answer may be one of its words."""
    if reason == "eos":
        marker, before = head[-1]
        any_name = not before and (marker == CHANNEL or (marker is None and machine.started))
        return is_cut_header(text, machine.tools, any_name) or begins_name(before + text, machine.tools)
    may_answer = len(head) > 1 and channel == FINAL and reason not in ("cut", "call")
    return not may_answer and is_given_up_header(text, machine.tools)


def _judge_headless(header: Header, content: str, reason: str) -> list[str]:
    """No call before its ``<|message|>``, unless a whole JSON object and a token after it say that it was meant."""
    if not content:
        return ["truncated_header"]
    if header.recipient is None or header.role is not Role.ASSISTANT:
        return ["missing_message"]
    if reason == "eos":
        return ["missing_message", "truncated_header"]
    return ["missing_message"] if _begins_with_object(content) else ["missing_message", "abandoned_call"]


def _begins_with_object(text: str) -> bool:
    return isinstance(first_json_value(text)[0], dict)


def _close_bare(machine: Machine, text: str, end: int | None, reason: str) -> None:
    """Text without any markup: the whole answer, or what stands between two messages."""
    given = machine.next_role
    if not text or (given is None and _is_filler(machine, text, reason)):
        _drop_header(machine)
        if text or end is not None:
            _flag_last(machine, f"stray_text:{text}" if text else f"extra_special:{_spell_marker(end)}")
        return
    if given is Role.ASSISTANT and reason in ("cut", "eos") and _is_filler(machine, text, reason):
        _add_message(machine, ReadHeader(Header(given), [f"truncated_header:{text}"]), "", end, reason)
        return
    if given is None:
        _add_message(machine, ReadHeader(Header(Role.ASSISTANT), ["stray_text"]), text, end, reason)
        return
    whole: list[tuple[list[Section], str]] = [([(None, "")], text)]
    messages = split_stripped(text) if given is Role.ASSISTANT else whole
    for at, (head, content) in enumerate(messages):
        read = read_header(head, given, machine.tools, started=False)
        read.flags.append("specials_stripped" if len(messages) > 1 else "missing_message")
        last = at == len(messages) - 1
        if read.header.recipient is not None and not _begins_with_object(content):
            read.flags.append("truncated_header" if last and reason == "eos" else "abandoned_call")
        _add_message(machine, read, content, end if last else None, reason if last else "cut")


def _is_filler(machine: Machine, text: str, reason: str) -> bool:
    """Words that belong to headers, alone between two messages: a habit of models in repeated calls."""
    if machine.next_role is not None and not text.startswith((Role.ASSISTANT, " ")):
        return is_markup(text) or (reason == "eos" and is_markup_beginning(text, started=False))
    if reason == "eos":
        return is_cut_header(text, machine.tools, any_name=False)
    return is_markup(" ".join([word for word in text.split() if not is_tool_word(word, machine.tools)]))


def _add_message(machine: Machine, read: ReadHeader, content: str, end: int | None, reason: str) -> None:
    machine.formed = False
    _open_as(machine, read)
    machine.emit(content)
    machine.close(end, reason, content_flags)


def _drop_header(machine: Machine) -> None:
    machine.next_role = None
    machine.expect_start()


def _join_meaningless(parts: list[Section]) -> list[Section]:
    """Special tokens that mean nothing in a header become text again."""
    out = parts[:1]
    for marker, text in parts[1:]:
        if marker in (CHANNEL, CONSTRAIN):
            out.append((marker, text))
        else:
            out[-1] = (out[-1][0], out[-1][1] + _spell_marker(marker) + text)
    return out


# -- in a content ----------------------------------------------------------------------------------------------------


def _append(machine: Machine, received: Input) -> None:
    if isinstance(received, list):
        machine.append_run(received)
    else:
        assert isinstance(received, str)
        machine.append_text(received)


def _append_special(machine: Machine, received: Input) -> None:
    assert isinstance(received, int)
    _flag_once(machine, "special_in_content")
    machine.append(_spell_marker(received).encode())


def _append_message_token(machine: Machine, received: Input) -> None:
    if machine.parts or not machine.decoder.clean:
        _append_special(machine, received)
    else:
        machine.formed = False
        _flag_once(machine, "repeated_message")


def _append_unknown(machine: Machine, received: Input) -> None:
    machine.formed = False
    _flag_once(machine, "unknown_token")
    machine.append(REPLACEMENT.encode())


def _flag_once(machine: Machine, flag: str) -> None:
    if flag not in machine.flags:
        machine.flags.append(flag)


def _close(machine: Machine, received: Input) -> None:
    assert received is None or isinstance(received, int)
    machine.close(received, STOP_REASONS[received], content_flags)


def _cut(machine: Machine, received: Input) -> None:
    machine.flags.append("missing_end")
    machine.close(None, "cut", content_flags)
    machine.begin()


def _cut_unmarked(machine: Machine, received: Input) -> None:
    _cut(machine, received)
    _begin_unmarked(machine, received)


ACTIONS: dict[State, dict[InputKind, Action]] = {
    State.EXPECT_START: {
        InputKind.RUN: _begin_unmarked,
        InputKind.START: _begin,
        InputKind.CHANNEL: _begin_unmarked,
        InputKind.MESSAGE: _skip,
        InputKind.STOP: _skip,
        InputKind.SPECIAL: _skip,
        InputKind.UNKNOWN: _begin_unknown,
        InputKind.EOS: _end,
    },
    State.HEADER: {
        InputKind.RUN: Machine.collect,
        InputKind.START: _begin_again,
        InputKind.CHANNEL: _collect_channel,
        InputKind.MESSAGE: _open,
        InputKind.STOP: _stop_in_header,
        InputKind.SPECIAL: Machine.collect,
        InputKind.UNKNOWN: _collect_unknown,
        InputKind.EOS: _stop_in_header,
    },
    State.CONTENT: {
        InputKind.RUN: _append,
        InputKind.START: _cut,
        InputKind.CHANNEL: _cut_unmarked,
        InputKind.MESSAGE: _append_message_token,
        InputKind.STOP: _close,
        InputKind.SPECIAL: _append_special,
        InputKind.UNKNOWN: _append_unknown,
        InputKind.EOS: _close,
    },
}

MODE = ParsingMode({**KINDS, ENDOFTEXT: InputKind.STOP}, ACTIONS, Utf8Decoder)
