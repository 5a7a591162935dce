"""The actions of `strict=False`: every input does something in every state, none raises, no text is lost."""

from __future__ import annotations

from gptoss_harmony.messages import Role
from gptoss_harmony.parsing.events import Header
from gptoss_harmony.parsing.flags import content_flags
from gptoss_harmony.parsing.machine import KINDS, STOP_REASONS, Action, Item, Kind, Machine, Mode, State, token_bytes
from gptoss_harmony.parsing.repair import (
    ReadHeader,
    Section,
    is_header_text,
    read_header,
    split_headless,
    split_stripped,
)
from gptoss_harmony.parsing.utf8 import REPLACEMENT, Utf8Decoder
from gptoss_harmony.tokens import CHANNEL, CONSTRAIN, ENDOFTEXT, FIRST_SPECIAL, SPECIAL_NAMES, is_special


def sections(machine: Machine) -> list[Section]:
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


def _name(token: int | None) -> str:
    return "" if token is None else SPECIAL_NAMES[token - FIRST_SPECIAL]


# -- between messages ------------------------------------------------------------------------------------------------


def _begin(machine: Machine, item: Item) -> None:
    machine.begin()


def _begin_unmarked(machine: Machine, item: Item) -> None:
    machine.begin()
    machine.started = machine.formed = False
    machine.collect(item)


def _skip(machine: Machine, item: Item) -> None:
    assert isinstance(item, int)
    _flag_last(machine, f"extra_special:{_name(item)}")


def _flag_last(machine: Machine, flag: str) -> None:
    """Between messages a flag belongs to the message before; if there is none, to the next."""
    if not machine.messages:
        _flag_once(machine, flag)
    elif flag not in machine.messages[-1].flags:
        machine.messages[-1].flags += (flag,)


def _end(machine: Machine, item: Item) -> None:
    """The stream is over: flags that wait for a next message go to the last one."""
    if machine.messages:
        machine.messages[-1].flags += tuple(machine.flags)
        machine.flags = []


# -- in a header -----------------------------------------------------------------------------------------------------


def _begin_again(machine: Machine, item: Item) -> None:
    """``<|start|>`` in a header: what came before is a message if it says more than a role."""
    parts = sections(machine)
    if _is_only_role(parts):
        text = "".join([text for _, text in parts])
        if machine.started or text:
            _flag_once(machine, f"repeated_start:{text}" if text else "repeated_start")
        _drop_header(machine)
        for marker, _ in parts[1:]:
            _flag_last(machine, f"extra_special:{_name(marker)}")
    else:
        _close_headless(machine, None, "cut")
    machine.begin()


def _is_only_role(parts: list[Section]) -> bool:
    markers, texts = zip(*parts, strict=True)
    return {CHANNEL, CONSTRAIN}.isdisjoint(markers) and "".join(texts).strip() in ("", *Role)


def _collect_channel(machine: Machine, item: Item) -> None:
    """Prose before a ``<|channel|>`` is a message of its own, not a header."""
    if not machine.started and not machine.has_channel and not is_header_text(sections(machine)[0][1]):
        _close_headless(machine, None, "cut")
        _begin_unmarked(machine, item)
    else:
        machine.collect(item)


def _collect_unknown(machine: Machine, item: Item) -> None:
    machine.formed = False
    _flag_once(machine, "unknown_token")


def _begin_unknown(machine: Machine, item: Item) -> None:
    _begin_unmarked(machine, None)
    _collect_unknown(machine, item)


def _open(machine: Machine, item: Item) -> None:
    _open_as(machine, _read_header(machine, sections(machine)))


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


def _stop_in_header(machine: Machine, item: Item) -> None:
    assert item is None or isinstance(item, int)
    _close_headless(machine, item, STOP_REASONS[item])


def _close_headless(machine: Machine, end: int | None, reason: str) -> None:
    """The header ended without ``<|message|>``: its words and the content are told apart."""
    parts = sections(machine)
    if (
        end is None and machine.started and len(parts) == 1 and _is_only_role(parts)
    ):  # a prompt, ready for its completion
        _drop_header(machine)
        _end(machine, end)
        return
    parts = _join_meaningless(parts)
    if len(parts) == 1 and not machine.started:
        _close_bare(machine, parts[0][1], end, reason)
        return
    head, content = split_headless(parts)
    read = _read_header(machine, head)
    read.flags.append("missing_message" if content else "truncated_header")
    _add_message(machine, read, content, end, reason)


def _close_bare(machine: Machine, text: str, end: int | None, reason: str) -> None:
    """Text without any markup: the whole answer, or what stands between two messages."""
    given = machine.next_role
    if not text or (given is None and text.strip() in ("", *Role)):
        _drop_header(machine)
        if text or end is not None:
            _flag_last(machine, f"stray_text:{text}" if text else f"extra_special:{_name(end)}")
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
        _add_message(machine, read, content, end if last else None, reason if last else "cut")


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
            out[-1] = (out[-1][0], out[-1][1] + _name(marker) + text)
    return out


# -- in a content ----------------------------------------------------------------------------------------------------


def _append(machine: Machine, item: Item) -> None:
    if isinstance(item, list):
        machine.append_run(item)
    else:
        assert isinstance(item, str)
        machine.append_text(item)


def _append_special(machine: Machine, item: Item) -> None:
    assert isinstance(item, int)
    _flag_once(machine, "special_in_content")
    machine.append(_name(item).encode())


def _append_message_token(machine: Machine, item: Item) -> None:
    if machine.parts or not machine.decoder.clean:
        _append_special(machine, item)
    else:
        machine.formed = False
        _flag_once(machine, "repeated_message")


def _append_unknown(machine: Machine, item: Item) -> None:
    machine.formed = False
    _flag_once(machine, "unknown_token")
    machine.append(REPLACEMENT.encode())


def _flag_once(machine: Machine, flag: str) -> None:
    if flag not in machine.flags:
        machine.flags.append(flag)


def _close(machine: Machine, item: Item) -> None:
    assert item is None or isinstance(item, int)
    machine.close(item, STOP_REASONS[item], content_flags)


def _cut(machine: Machine, item: Item) -> None:
    machine.flags.append("missing_end")
    machine.close(None, "cut", content_flags)
    machine.begin()


def _cut_unmarked(machine: Machine, item: Item) -> None:
    _cut(machine, item)
    _begin_unmarked(machine, item)


ACTIONS: dict[State, dict[Kind, Action]] = {
    State.EXPECT_START: {
        Kind.RUN: _begin_unmarked,
        Kind.START: _begin,
        Kind.CHANNEL: _begin_unmarked,
        Kind.MESSAGE: _skip,
        Kind.STOP: _skip,
        Kind.SPECIAL: _skip,
        Kind.UNKNOWN: _begin_unknown,
        Kind.EOS: _end,
    },
    State.HEADER: {
        Kind.RUN: Machine.collect,
        Kind.START: _begin_again,
        Kind.CHANNEL: _collect_channel,
        Kind.MESSAGE: _open,
        Kind.STOP: _stop_in_header,
        Kind.SPECIAL: Machine.collect,
        Kind.UNKNOWN: _collect_unknown,
        Kind.EOS: _stop_in_header,
    },
    State.CONTENT: {
        Kind.RUN: _append,
        Kind.START: _cut,
        Kind.CHANNEL: _cut_unmarked,
        Kind.MESSAGE: _append_message_token,
        Kind.STOP: _close,
        Kind.SPECIAL: _append_special,
        Kind.UNKNOWN: _append_unknown,
        Kind.EOS: _close,
    },
}

MODE = Mode({**KINDS, ENDOFTEXT: Kind.STOP}, ACTIONS, Utf8Decoder)
