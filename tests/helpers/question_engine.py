"""An engine whose answer is found by the last user message, so that clients may ask in any order. Not a test module."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptoss_harmony import load_vocabulary, tokens

from gptoss_adapters.backends import Capabilities, Engine, Info, Request, Token

MARKERS = {
    "<|start|>": tokens.START,
    "<|end|>": tokens.END,
    "<|message|>": tokens.MESSAGE,
    "<|channel|>": tokens.CHANNEL,
    "<|constrain|>": tokens.CONSTRAIN,
    "<|return|>": tokens.RETURN,
    "<|call|>": tokens.CALL,
}
USER = "<|start|>user<|message|>"
_OF_A_TOOL = r"(?: to=assistant<\|channel\|>commentary|<\|channel\|>commentary to=assistant)"  # Harmony has two forms
RESULT = re.compile(rf"<\|start\|>\S+?{_OF_A_TOOL}<\|message\|>(.*?)<\|end\|>", re.DOTALL)
EFFORT = re.compile(r"\nReasoning: (\w+)")
DEVELOPER = re.compile(r"<\|start\|>developer<\|message\|># Instructions\n\n(.*?)(?:\n\n# |<\|end\|>)", re.DOTALL)


def encode(text: str) -> list[int]:
    """Ids of a text in which markers are written out."""
    vocabulary = load_vocabulary()
    ids: list[int] = []
    for piece in re.split(r"(<\|\w+\|>)", text):
        ids += [MARKERS[piece]] if piece in MARKERS else vocabulary.encode(piece)
    return ids


class ByQuestion(Engine):
    """Answers by a JSON file: {"answers": [{"asks": text, "says": [output of step 0, of step 1...]}]}.

    An answer is taken when the last user message holds its `asks`; the step is the number of tool results after it.
    A call is made only where functions are declared (programs ask for a title of the conversation with the same words),
    unless the answer says "undeclared": true.
    In an output {result} is the last of these results and {results} their number, {thought} whether the chain of
    thought before them is "kept" or "lost", {users} the number of user messages, {developer} the instructions, {effort}
    the effort.
    """

    def __init__(self, path: str | None) -> None:
        assert path is not None
        self._answers: list[dict[str, Any]] = json.loads(Path(path).read_text())["answers"]
        self.info = Info("by question", "1", 201_088, 131_072, (tokens.RETURN, tokens.CALL), Capabilities("full"))

    def generate(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Token]:
        prompt = load_vocabulary().decode(request.tokens)
        for ident in encode(self._output(prompt)):
            yield Token(ident, None if request.logprobs is None else -1.0)

    def _output(self, prompt: str) -> str:
        after = prompt.rpartition(USER)[2]
        question = after.partition("<|end|>")[0]
        results = RESULT.findall(after)
        answer = next((answer for answer in self._answers if answer["asks"] in question), None)
        if answer is None:
            return f"<|channel|>final<|message|>Nobody taught me: {question[:80]}<|return|>"
        output = str(answer["says"][min(len(results), len(answer["says"]) - 1)])
        if " to=" in output and "\nnamespace " not in prompt and not answer.get("undeclared"):
            output = "<|channel|>final<|message|>A title<|return|>"
        developer = DEVELOPER.search(prompt)
        effort = EFFORT.search(prompt)
        meant = {
            "result": results[-1] if results else "nothing",
            "results": str(len(results)),
            "thought": "kept" if "<|channel|>analysis<|message|>" in after else "lost",
            "users": str(prompt.count(USER)),
            "developer": developer[1] if developer else "none",
            "effort": effort[1] if effort else "none",
        }
        return re.sub(r"\{(\w+)\}", lambda found: meant.get(found[1], found[0]), output)
