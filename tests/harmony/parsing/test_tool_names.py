"""A tool's name in the wrong place or in the wrong letters is still that tool's, if it can be only that one's."""

from __future__ import annotations

import pytest
from gptoss_harmony import Message, load_vocabulary, parse
from gptoss_harmony.openai.chat_completions import ChatStream, from_messages
from gptoss_harmony.openai.requests import ToolTable
from gptoss_harmony.parsing.tool_names import find_alike
from helpers.tool_answers import to_ids

TOOLS = ["functions.bash", "functions.Web_Search", "functions.get", "functions.get_weather", "functions.final_report"]
ARGS = '<|message|>{"cmd":"ls"}<|call|>'


def read(text: str, tools: list[str] | None = None) -> Message:
    (message,) = parse(to_ids(text), tools=TOOLS if tools is None else tools)
    return message


SLOTS = {  # header: (recipient, channel, a flag)
    "<|channel|>bash<|channel|>commentary json": ("bash", "commentary", "tool_in_channel:bash"),
    "<|channel|>bash<|channel|>analysis": ("bash", "analysis", "tool_in_channel:bash"),
    "<|channel|>functions.bash": ("bash", None, "tool_in_channel:functions.bash"),
    "<|channel|>commentaryfunctions.bash json": ("bash", "commentary", "tool_in_channel:commentaryfunctions.bash"),
    "<|channel|>Final_Report json": ("final_report", None, "tool_in_channel:Final_Report"),
    "<|channel|>final <|constrain|>functions.bash": ("bash", "final", "tool_in_constrain"),
    "<|channel|>commentary <|constrain|>Bash": ("bash", "commentary", "tool_in_constrain:Bash"),
    " bash<|channel|>commentary json": ("bash", "commentary", "missing_to"),
    "<|channel|>commentary bash json": ("bash", "commentary", "missing_to"),
    "<|channel|>commentary to:functions.bash json": ("bash", "commentary", "missing_to:to:"),
    "<|channel|>commentary TO=Bash json": ("bash", "commentary", "missing_to:TO="),
    "<|channel|>commentary recipient=functions.bash": ("bash", "commentary", "missing_to:recipient="),
    "<|channel|>commentary to = functions.bash json": ("bash", "commentary", "missing_to:to ="),
    " TO=functions.bash<|channel|>commentary": ("bash", "commentary", "missing_to:TO="),
    "<|channel|>commentary <|constrain|>json to=functions.<|constrain|>bash": (
        "bash",
        "commentary",
        "tool_in_constrain",
    ),
}
ROLES = [
    "bash<|channel|>commentary json",
    "bash<|channel|>commentary",
    "Bash<|channel|>commentary <|constrain|>json",
    "functions.bash<|channel|>commentary json",
    "functions.bash to=functions.bash<|channel|>commentary",
    "tool_call to=functions.bash<|channel|>commentary",
    "tool to=bash<|channel|>commentary json",
    "assistantbash<|channel|>commentary json",
]
ALIKE = {
    "functions.functions.bash": "bash",
    "functions/bash": "bash",
    "function.bash": "bash",
    "functions::bash": "bash",
    "functions.bash?": "bash",
    "functions.bashcommentary": "bash",
    "functions.bashjson": "bash",
    "functions.Bash": "bash",
    "FUNCTIONS.BASH": "bash",
    "functions.bash\u200b": "bash",
    "\ufefffunctions.bash": "bash",
    "functions_bash": "bash",
    "functions.Web Search": "Web_Search",
    "Web Search": "Web_Search",
    "functions.web-search": "Web_Search",
    "functions . bash": "bash",
    "functions.get weather": "get_weather",
    "functions.getWeather": "get_weather",
    "functions.get": "get",
    "tools.bash": "bash",
    "func/get_weather": "get_weather",
    "default_api.bash": "bash",
    "functions.\uff42\uff41\uff53\uff48": "bash",
    '"functions.bash"': "bash",
    "functions.bash()": "bash",
}


@pytest.mark.parametrize("header", SLOTS)
def test_names_in_the_wrong_place(header: str) -> None:
    recipient, channel, flag = SLOTS[header]
    message = read(header + ARGS)
    assert (message.recipient, message.channel) == (f"functions.{recipient}", channel)
    assert flag in message.flags
    assert "undeclared_tool" not in message.flags


@pytest.mark.parametrize("header", ROLES)
def test_names_in_the_role(header: str) -> None:
    text = "<|channel|>analysis<|message|>hm<|end|><|start|>"
    _, message = parse(to_ids(text + header + ARGS), tools=TOOLS)
    assert (message.role, message.name, message.recipient) == ("assistant", None, "functions.bash")
    assert any(flag.startswith("tool_in_role") for flag in message.flags)
    assert "hallucinated_turn" not in message.flags


@pytest.mark.parametrize(
    "header", ["functions.bash to=assistant<|channel|>commentary", "functions.bash", "bash to=user"]
)
def test_a_made_up_result_is_no_call(header: str) -> None:
    _, message = parse(to_ids(f"<|channel|>final<|message|>x<|end|><|start|>{header}<|message|>x<|end|>"), tools=TOOLS)
    assert message.role == "tool"
    assert "hallucinated_turn" in message.flags


@pytest.mark.parametrize("written", ALIKE)
@pytest.mark.parametrize("form", ["<|channel|>commentary to={} json", " to={}<|channel|>commentary <|constrain|>json"])
def test_names_in_other_letters(written: str, form: str) -> None:
    message = read(form.format(written) + ARGS)
    assert (message.recipient, message.channel) == (f"functions.{ALIKE[written]}", "commentary")
    same = written == f"functions.{ALIKE[written]}"
    assert any(flag.startswith("resolved_recipient") for flag in message.flags) is not same
    stream = ChatStream("m", 1, [{"type": "function", "function": {"name": name[10:]}} for name in TOOLS])
    stream.feed(to_ids(form.format(written) + ARGS))
    stream.finish()
    assert stream.message["tool_calls"][0]["function"]["name"] == ALIKE[written]
    assert stream.undeclared == []


@pytest.mark.parametrize(
    "written", ["functions.bas", "functions.bash_commands", "functions.get_weat", "bashful", "x.y"]
)
def test_what_is_like_no_tool_is_called_as_it_is_written(written: str) -> None:
    message = read(f"<|channel|>commentary to={written} json{ARGS}")
    assert message.recipient == written
    assert "undeclared_tool" in message.flags
    assert read(f"<|channel|>commentary to={written} json{ARGS}", []).flags == ()


@pytest.mark.parametrize(
    "written", ["Assistant", "system", "final", "commentary", "json", "none", "functions", "functions.", ""]
)
@pytest.mark.parametrize("tools", [TOOLS, []])
def test_words_of_the_markup_are_no_tools(written: str, tools: list[str]) -> None:
    message = read(f"<|channel|>commentary to={written}{ARGS}", tools)
    assert message.recipient == written.lower()
    assert ToolTable().api_name(message.recipient) is None
    assert "undeclared_tool" not in message.flags


HEADERS = [
    *SLOTS,
    *(f"<|channel|>analysis<|message|>hm<|end|><|start|>{role}" for role in ROLES),
    *(f"<|channel|>commentary to={written} json" for written in ALIKE),
    "<|channel|>comment to=functions.bash",
    "<|channel|>functions to=bash",
    "<|channel|>call bash",
    "<|channel|>commentary\u200bto=functions.bash",
    "<|channel|>final<|message|><|end|><|start|>assistantto=functions.bash<|channel|>commentary",
    "assistantcommentary to=functions.bash",
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_misspelt_header_cut_after_any_token_says_nothing(header: str) -> None:
    tools = [{"type": "function", "function": {"name": name[10:]}} for name in TOOLS]
    ids = to_ids(header)
    for cut in range(len(ids) + 1):
        message = from_messages(parse(ids[:cut], tools=TOOLS), tools)
        assert (message["content"], message.get("tool_calls")) == (None, None), load_vocabulary().decode(ids[:cut])


def test_a_name_like_two_tools_means_neither() -> None:
    tools = frozenset({"functions.get_it", "functions.getIt", "functions.a", "browser", "browser.open", "mcp.a"})
    assert find_alike("functions.get-it", tools) is None
    assert find_alike("open", tools) == "browser.open"
    assert find_alike("A", tools) == "functions.a"
    assert find_alike("Browser.Open", tools) == "browser.open"
    assert find_alike("?", tools) is None


def test_channels_and_types_are_no_tools() -> None:
    tools = ["functions.json", "functions.analysis", "functions.comment"]
    assert read("<|channel|>analysis<|message|>x<|end|>", tools).recipient is None
    assert read("<|channel|>comment<|message|>x<|end|>", tools).recipient is None
    assert read("<|channel|>final <|constrain|>json<|message|>{}<|end|>", tools).recipient is None
