"""A model in an Ollama server, through the `ollama` client: raw text generation behind the common protocol, and chats.

Ollama takes and gives text. A prompt's ids go as the text of their tokens, and are refused where that text would be
read as other ids; answers come back as ids by their logprob entries, one per token, or by encoding the text. The id
that ends an answer is not
shown: it is the one that the last header asks for (a call with a recipient, else the return).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gptoss_harmony import Vocabulary, load_vocabulary
from gptoss_harmony.tokens import CALL, GENERATION_STOPS, RETURN, SPECIAL_TOKENS

from gptoss_adapters.backends.prompt_texts import prompt_text, text_ids
from gptoss_adapters.backends.protocol import BackendFailed, Capabilities, Engine, Info, Request, Token
from gptoss_adapters.errors import BadInput, NotComparable, UsageError, missing_extra
from gptoss_adapters.spec import GPT_OSS_20B

MOST = 20  # alternatives that Ollama reports
KNOWN = 10  # of them, as many as are no part of a character at every position
_OPTIONS = ("temperature", "top_p", "seed")
Json = dict[str, Any]


class Ollama(Engine):
    """`ollama=NAME`. Options: host (URL, default Ollama's own), n_ctx (tokens; None: what the model's Modelfile says,
    which Ollama then keeps to in every call: another num_ctx would load the model anew). cache_type and flash_attn say
    how its server was started (OLLAMA_KV_CACHE_TYPE, OLLAMA_FLASH_ATTENTION), by which its rounding is judged.
    """

    arithmetic = "ggml"
    opens = ()  # a name that its server knows

    def __init__(
        self,
        path: str | None,
        host: str | None = None,
        n_ctx: int | None = None,
        cache_type: str = "f16",
        flash_attn: bool = True,
    ) -> None:
        if path is None:
            raise UsageError("ollama needs a model's name", expected="ollama=NAME")
        try:
            import ollama
        except ImportError as error:
            raise missing_extra("ollama", "ollama") from error
        self._client = ollama.Client(host)
        self._model = path
        self._vocabulary = load_vocabulary()
        try:
            shown = self._client.show(path)
        except ollama.ResponseError as error:
            raise BadInput(
                f"Ollama has no such model: {error.error}", file=path, hint=f"ollama create {path} -f Modelfile"
            ) from error
        except ConnectionError as error:
            raise BadInput("no Ollama server answers", file=host, hint="ollama serve") from error
        about = dict(shown.modelinfo or {})
        longest = about.get(f"{about.get('general.architecture')}.context_length")
        room = n_ctx or _read_num_ctx(shown.parameters) or longest or GPT_OSS_20B.max_position_embeddings
        self._context = {"num_ctx": n_ctx} if n_ctx else {}
        self._ids = {data: i for i, data in enumerate(self._vocabulary.token_bytes)}
        self.info = Info(
            engine="ollama",
            version=f"ollama client, {about.get('general.architecture', 'unknown')} model",
            vocab_size=about.get("gpt-oss.vocab_size") or GPT_OSS_20B.vocab_size,
            n_ctx=room,
            stop_ids=tuple(sorted(GENERATION_STOPS)),
            capabilities=Capabilities("top_k", most=KNOWN, as_text=True),
            settings={"model": path, "n_ctx": room, "cache_type": cache_type, "flash_attn": flash_attn},
        )

    def generate(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Token]:
        text = prompt_text(request.tokens, self._vocabulary)
        options = {name: getattr(request, name) for name in ("temperature", "top_p", "top_k", "min_p", "seed")}
        stream = self._client.generate(
            self._model,
            text,
            raw=True,
            stream=True,
            logprobs=True,
            top_logprobs=request.logprobs or None,
            options={**options, "num_predict": request.max_tokens, **self._context},
        )
        answer: list[int] = []
        reason = None
        for part in stream:
            for token in self._tokens(part, request.logprobs):
                answer.append(token.id)
                yield token
            reason = part.done_reason or reason
            if cancelled():
                return
        if reason == "stop":
            yield Token(_ending([*request.tokens, *answer], self._vocabulary))

    def top_logprobs(self, tokens: Sequence[int], k: int, start: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.empty((len(tokens) - start, k), np.int32)
        logprobs = np.empty((len(tokens) - start, k), np.float32)
        for row, end in enumerate(range(start + 1, len(tokens) + 1)):
            best = self._ask_alternatives(tokens[:end])
            if len(best) < k:
                raise NotComparable("Ollama named too few of its alternatives", expected=k, got=len(best))
            ids[row], logprobs[row] = [i for i, _ in best[:k]], [p for _, p in best[:k]]
        return ids, logprobs

    def _ask_alternatives(self, tokens: Sequence[int]) -> list[tuple[int, float]]:
        """The best (id, logprob) after `tokens`, without those that are part of a character, which have no text."""
        answer = self._client.generate(
            self._model,
            prompt_text(tokens, self._vocabulary),
            raw=True,
            logprobs=True,
            top_logprobs=MOST,
            options={"temperature": 0.0, "num_predict": 1, **self._context},
        )
        if not answer.logprobs:
            raise NotComparable("this Ollama gives no logprobs", hint="Ollama 0.12.11 or later does")
        named = [(self._find(t.token), t.logprob) for t in answer.logprobs[0].top_logprobs or ()]
        return [(ident, logprob) for ident, logprob in named if ident is not None]

    def chat(self, request: Mapping[str, Any]) -> Json:
        arguments = chat_arguments({**request, "model": self._model})
        arguments["options"] = {**arguments.get("options", {}), **self._context}
        answer = self._client.chat(**arguments, stream=False)
        message = chat_message(answer)
        usage = {"prompt_tokens": answer.prompt_eval_count, "completion_tokens": answer.eval_count}
        return {"finish_reason": message.pop("finish_reason"), "message": message, "usage": usage}

    def _tokens(self, part: Any, wanted: int | None) -> Iterator[Token]:
        """By the logprob entries where there are some, which are exact, else by the text."""
        known = all(self._find(e.token) is not None for e in part.logprobs or ())
        if not part.logprobs or (wanted is None and not known):  # a character in several tokens
            if wanted is not None and part.response:
                raise NotComparable("this Ollama gives no logprobs")
            yield from (Token(i) for i in text_ids(part.response or "", self._vocabulary))
            return
        for entry in part.logprobs:
            top = tuple((self._id(t.token), t.logprob) for t in (entry.top_logprobs or ())[:wanted] if wanted)
            yield Token(self._id(entry.token), None if wanted is None else entry.logprob, top)

    def _find(self, text: str) -> int | None:
        """The id of a token's text; None for part of a character, which Ollama shows as U+FFFD."""
        return None if "\ufffd" in text else SPECIAL_TOKENS.get(text, self._ids.get(text.encode()))

    def _id(self, text: str) -> int:
        found = self._find(text)
        if found is None:
            raise BackendFailed(
                "Ollama reported a token that is not in the vocabulary, or part of a character", got=repr(text)
            )
        return found


def _read_num_ctx(parameters: str | None) -> int | None:
    """That of a Modelfile, from the lines in which Ollama shows its parameters."""
    match = re.search(r"^num_ctx\s+(\d+)\s*$", parameters or "", re.MULTILINE)
    return int(match[1]) if match else None


def _ending(tokens: Sequence[int], vocabulary: Vocabulary) -> int:
    """What the model must have ended with, which Ollama does not show."""
    header = vocabulary.decode(tokens).rpartition("<|start|>")[2].partition("<|message|>")[0]
    return CALL if " to=" in header else RETURN


# Chats ----------------------------------------------------------------------------------------------------------------


def chat_arguments(request: Mapping[str, Any]) -> Json:
    """A Chat Completions request as the arguments of `ollama.Client.chat`: messages, tools, think, format and
    options.
    """
    names: dict[str, str] = {}
    out: Json = {"model": request["model"], "messages": [_message(m, names) for m in request["messages"]]}
    if request.get("tools") and request.get("tool_choice") != "none":
        out["tools"] = list(request["tools"])
    wanted = request.get("response_format") or {}
    if wanted.get("type") in ("json_object", "json_schema"):
        out["format"] = wanted["json_schema"]["schema"] if wanted["type"] == "json_schema" else "json"
    think = _choose_think(request.get("reasoning_effort"), held="format" in out)
    if think is not None:
        out["think"] = think
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    options = {k: request[k] for k in _OPTIONS if request.get(k) is not None} | (
        {"num_predict": limit} if limit else {}
    )
    return out | ({"options": options} if options else {}) | ({"logprobs": True} if request.get("logprobs") else {})


def _choose_think(effort: str | None, held: bool) -> str | bool | None:
    """Ollama's level for a reasoning effort; None: its default. An answer that is held to a format needs a level:
    without thinking Ollama lets its grammar meet the header, and drops the format.
    """
    if effort == "none":
        return "low" if held else False
    if effort is None:
        return "medium" if held else None
    return {"minimal": "low", "xhigh": "high"}.get(effort, effort)


def _message(message: Mapping[str, Any], names: dict[str, str]) -> Json:
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    out: Json = {"role": "system" if message["role"] == "developer" else message["role"], "content": text}
    if thinking := message.get("reasoning_content") or message.get("reasoning"):
        out["thinking"] = thinking
    for call in message.get("tool_calls") or ():
        function = call["function"]
        names[call.get("id", "")] = function["name"]
        out.setdefault("tool_calls", []).append(
            {"function": {"name": function["name"], "arguments": json.loads(function["arguments"] or "{}")}}
        )
    if message["role"] == "tool":
        out["tool_name"] = message.get("name") or names.get(message.get("tool_call_id", ""), "")
    return out


def chat_message(answer: Any) -> Json:
    """The assistant message of an Ollama chat answer in Chat Completions' form, with its finish_reason."""
    message = answer.message
    calls = [
        {
            "id": f"call_{i}",
            "type": "function",
            "function": {
                "name": c.function.name,
                "arguments": json.dumps(dict(c.function.arguments), ensure_ascii=False),
            },
        }
        for i, c in enumerate(message.tool_calls or ())
    ]
    out: Json = {"role": "assistant", "content": message.content or None, "reasoning_content": message.thinking or None}
    reason = "tool_calls" if calls else {"stop": "stop", "length": "length"}.get(answer.done_reason or "stop", "stop")
    return out | ({"tool_calls": calls} if calls else {}) | {"finish_reason": reason}
