"""The parent's side: `open_backend("llama_cpp=model.gguf")` starts a child process and talks to it.

Engines abort on some files, hang on others, and cannot all live in one environment: so each runs in a process of its
own, under a time limit, in another interpreter if need be. What happens there is a `BackendFailed` here; the next call
starts a new child.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import gptoss_harmony
import numpy as np

import gptoss_adapters
from gptoss_adapters import errors
from gptoss_adapters.backends.protocol import (
    BackendFailed,
    Completion,
    Info,
    Request,
    StopReason,
    Token,
    check_count,
    check_tokens,
    read_spec,
)
from gptoss_adapters.backends.scoring import PromptLogprobs
from gptoss_adapters.backends.wire import Channel, Closed, SharedArray
from gptoss_adapters.errors import GptOssError, NotComparable, UsageError

_FATAL = re.compile(r"GGML_ASSERT|GGML_ABORT|what\(\):|^\w*Error: |^Fatal Python error")
_ERROR = re.compile(r"\berror\b|\bfailed\b|\binvalid\b", re.IGNORECASE)


def open_backend(
    spec: str,
    path: str | Path | Mapping[str, str | Path] | None = None,
    *,
    python: str | None = None,
    timeout: float = 600.0,
    **options: Any,
) -> Backend:
    """Start the backend that `spec` names: `name`, `name=PATH`, `name@PYTHON`, `name@PYTHON=PATH` or
    `module:Class=PATH`.

    path: the model where the spec names none, or one for each form that an engine may open, {"hf": .., "gguf": ..}: it
    takes the first of its `Engine.opens`, or none. python: another interpreter (it needs numpy and the engine; this
    package is lent to it). timeout: seconds of silence after which a call is given up and the child killed. options:
    the engine's. Raises UsageError for a bad spec or option, BadInput and BackendFailed for what the engine says.
    """
    name, other, named_path = read_spec(spec)
    path = named_path or path
    offers = {form: str(model) for form, model in path.items()} if isinstance(path, Mapping) else {}
    named = None if path is None or offers else str(path)
    return Backend(name, named, offers, other or python, timeout, options)


class Backend:
    """One engine in a child process. Calls are served one at a time; `cancel` may come from any thread.

    Every call may raise UsageError (arguments), NotComparable (the engine cannot do that) or BackendFailed (it died,
    hung or answered nonsense; the text says what). After a failure the next call starts a new child. `reused`: how many
    tokens of its prompt the last generation found in the engine's cache (`Request.reuse`). `path`: the model it was
    told to open, or chose from what was offered.
    """

    def __init__(
        self,
        name: str,
        path: str | None,
        offers: dict[str, str],
        python: str | None,
        timeout: float,
        options: dict[str, Any],
    ) -> None:
        self.name = name
        self.path = path
        self.python = python
        self.timeout = timeout
        self.options = options
        self._offers = offers
        self._lock = threading.Lock()
        self.reused = 0
        self._child: _Child | None = None
        with self._lock:
            self.info: Info = self._start()

    def logits(self, tokens: Sequence[int], start: int = 0) -> np.ndarray:
        """Logits float32 [T-start, V]: row i is the prediction after tokens[: start + i + 1]."""
        self._need("full")
        return self._arrays("logits", tokens=self._prompt(tokens, start), start=start)["logits"]

    def top_logprobs(self, tokens: Sequence[int], k: int, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [T-start, k], best first, and natural log-probabilities float32 of the k most probable next
        tokens.
        """
        self._need("full", "top_k")
        check_count(k, self.info.capabilities.most or self.info.vocab_size)
        answer = self._arrays("top_logprobs", tokens=self._prompt(tokens, start), k=k, start=start)
        return answer["ids"], answer["logprobs"]

    def prompt_logprobs(self, tokens: Sequence[int], k: int = 1) -> PromptLogprobs:
        """How probable each token but the first is after those before it, beside the k most probable ones. `cancel`
        ends it with a BackendFailed.
        """
        if not self.info.capabilities.scores_prompts:
            raise NotComparable(f"{self.name}: gives no log-probabilities of a prompt's tokens")
        check_count(k, self.info.vocab_size)
        return PromptLogprobs(**self._arrays("prompt_logprobs", tokens=self._prompt(tokens), k=k))

    def generate(self, tokens: Sequence[int], **request: Any) -> Completion:
        """Generate after `tokens`; keyword arguments are Request's."""
        stream = self.stream(tokens, **request)
        out: list[Token] = []
        while True:
            try:
                out.append(next(stream))
            except StopIteration as end:
                return Completion(tuple(out), end.value)

    def stream(self, tokens: Sequence[int], **request: Any) -> Generator[Token, None, StopReason]:
        """The same, token by token; the generator returns the stop reason. Closing it early cancels the generation."""
        asked = Request(self._prompt(tokens), **request)
        asked.check(self.info)
        return self._stream(asked)

    def taps(self, tokens: Sequence[int], forced: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """One forward pass from the inside: hidden [L, T, H] after each layer, router_scores [L, T, E], the chosen
        experts [L, T, K] int32 by falling score, logits [T, V]. forced [L, T, K]: these experts are used instead.
        """
        if not self.info.capabilities.taps:
            raise NotComparable(f"{self.name}: has no taps")
        return self._arrays("taps", {} if forced is None else {"forced": forced}, tokens=self._prompt(tokens))

    def tokenize(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Each text's ids by the engine's own vocabulary; special: names of control tokens become control tokens."""
        found = self._arrays("tokenize", texts=list(texts), special=special)
        ends = np.cumsum(found["counts"])
        return [part.tolist() for part in np.split(found["ids"], ends[:-1])] if len(ends) else []

    def chat_prompt(self, request: Mapping[str, Any]) -> str:
        """The prompt text that the engine's own chat template makes of a Chat Completions request."""
        return str(self._answer("chat_prompt", request))

    def chat(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A chat that the engine renders and parses by itself: "message", "finish_reason" and "usage"."""
        answer: dict[str, Any] = self._answer("chat", request)
        return answer

    def cancel(self) -> None:
        """End the running generation after its current token, or in its prefill (reason "cancelled")."""
        child = self._child
        if child:
            child.channel.send({"op": "cancel"})

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child:
            child.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _need(self, *outputs: str) -> None:
        if self.info.capabilities.output not in outputs:
            raise NotComparable(f"{self.name}: gives {self.info.capabilities.output}, not {' or '.join(outputs)}")

    def _prompt(self, tokens: Sequence[int], start: int = 0) -> list[int]:
        check_tokens(tokens, self.info)
        if not 0 <= start < len(tokens):
            raise UsageError("argument start is out of range", expected=f"0..{len(tokens) - 1}", got=start)
        return [int(t) for t in tokens]

    def _arrays(self, op: str, given: dict[str, np.ndarray] | None = None, **call: Any) -> dict[str, np.ndarray]:
        with self._lock:
            self._send(op, call, given)
            message, arrays = self._receive(op)
            assert message.get("done") == op, message
            return arrays

    def _answer(self, op: str, request: Mapping[str, Any]) -> Any:
        with self._lock:
            self._send(op, {"request": dict(request)})
            message, _ = self._receive(op)
            self._receive(op)
            return message["answer"]

    def _stream(self, request: Request) -> Generator[Token, None, StopReason]:
        reason: StopReason = "engine"
        with self._lock:
            self._send("generate", asdict(request))
            self.reused, over = 0, False
            try:
                while True:
                    over = True  # if this raises, the call has ended
                    message, _ = self._receive("generate")
                    over = "done" in message
                    if over:
                        return reason
                    reason, self.reused = message.get("reason", reason), message.get("reused", self.reused)
                    if "token" in message:
                        ident, logprob, top = message["token"]
                        yield Token(ident, logprob, tuple((i, p) for i, p in top))
            finally:
                if not over and self._child:  # closed early, or interrupted
                    self.cancel()
                    while "done" not in self._receive("generate")[0]:
                        pass

    def _start(self) -> Info:
        self._child = _Child(self.python)
        self._send("open", {"name": self.name, "path": self.path, "offers": self._offers, "options": self.options})
        message, _ = self._receive("open")
        self.path = message["path"]
        message, _ = self._receive("open")
        info = Info.from_json(message["info"])
        self._receive("open")
        return info

    def _send(self, op: str, call: dict[str, Any], given: dict[str, np.ndarray] | None = None) -> None:
        if self._child is None:
            self.info = self._start()
        assert self._child is not None
        arrays = {name: SharedArray.of(array) for name, array in (given or {}).items()}
        try:
            self._child.channel.send({"op": op, **call}, arrays)
        except Closed:
            self._fail(op, None)
        finally:
            for array in arrays.values():
                array.close()

    def _receive(self, op: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        assert self._child is not None
        try:
            message, arrays = self._child.channel.receive(self.timeout)
        except TimeoutError:
            self._fail(op, f"said nothing for {self.timeout:g} s in {op} and was ended")
        except Closed:
            self._fail(op, None)
        if "error" in message:
            line = message["line"]
            if op == "open":
                child, self._child = self._child, None
                child.wait()  # it ends by itself, its log complete
                child.end()
                line = f"{line} ({child.complaint})" if child.complaint else line
            raise self._error(message["error"], line)
        return message, arrays

    def _fail(self, op: str, what: str | None) -> Any:
        child, self._child = self._child, None
        assert child is not None
        code = child.end(kill=what is not None)
        died = f"died with {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        complaint = f" ({child.complaint})" if child.complaint else ""
        raise BackendFailed(f"{self.name}: {what or f'{died} in {op}'}{complaint}", file=self.path)

    def _error(self, kind: str, line: str) -> GptOssError:
        found = getattr(errors, kind, BackendFailed)
        if found is UsageError:
            return UsageError(line)
        return BackendFailed(f"{self.name}: {line}", file=self.path) if found is BackendFailed else found(line)


class _Child:
    """The process, its socket, and what it wrote on stdout and stderr."""

    def __init__(self, python: str | None) -> None:
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by end()
        self._lent: tempfile.TemporaryDirectory[str] | None = None
        env = os.environ | {"GGML_NO_BACKTRACE": "1"}
        if python is not None:
            env["PYTHONPATH"] = self._lend()
        command = [python or sys.executable, "-m", "gptoss_adapters.backends.worker", str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=env,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            raise BackendFailed(f"cannot start the interpreter: {error.strerror}", file=python) from error
        finally:
            theirs.close()

    def _lend(self) -> str:
        """A folder with nothing but links to our packages: a foreign interpreter must not see our site-packages."""
        self._lent = tempfile.TemporaryDirectory(prefix="gptoss-lent-")
        for package in (gptoss_adapters, gptoss_harmony):
            folder = Path(package.__path__[0]).resolve()
            (Path(self._lent.name) / folder.name).symlink_to(folder)
        return self._lent.name

    def wait(self) -> None:
        """Give the process 5 s to end in order."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)

    def end(self, kill: bool = False) -> int:
        """Close the conversation, wait for the process (kill it after 5 s, or at once); returns its exit code."""
        self.channel.close()
        try:
            if kill:
                self._process.kill()
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self.complaint = self._last_words()
        self._log.close()
        if self._lent:
            self._lent.cleanup()
        return code

    def _last_words(self) -> str:
        """The line of its output that tells what went wrong: an abort, else the first error (later ones follow from
        it).
        """
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 65536))
        lines = [line.strip()[-300:] for line in self._log.read().decode(errors="replace").splitlines()]
        fatal = [line for line in lines if _FATAL.search(line)]
        return fatal[-1] if fatal else next((line for line in lines if _ERROR.search(line)), "")
