"""One row of `bench/against.py` over the sources that PYTHONPATH names: runs once for each line of its input.

Names that moved since the other checkout are looked up under both; nothing else of the rows differs.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# An editable install of this project would win over PYTHONPATH.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__.lower()]
sys.path[:0] = [p for p in os.environ["AGAINST_PATH"].split(os.pathsep) if p not in sys.path[:1]]

Row = Callable[[], object]
THREADS = 2


def gemv(work: Path) -> Row:
    """One token through the expert layer of the 20b: 4 of 32 experts, and the products' bf16 twin of the head."""
    import numpy as np

    from gptoss_adapters import mxfp4

    rng = np.random.default_rng(0)
    hidden = intermediate = 2880
    n, groups = 8, hidden // 32
    up_blocks = rng.integers(0, 256, (n, 2 * intermediate, groups, 16), np.uint8)
    down_blocks = rng.integers(0, 256, (n, hidden, groups, 16), np.uint8)
    scales = np.full((n, 2 * intermediate, groups), 120, np.uint8)
    x = rng.standard_normal((1, hidden)).astype(np.float32)

    def run() -> None:
        for _ in range(24):
            for e in range(n):
                mxfp4.matmul(x, up_blocks[e], scales[e], precision="q24", threads=1)
                mxfp4.matmul(x, down_blocks[e], scales[e][:hidden], precision="q24", threads=1)

    return run


def decode(work: Path) -> Row:
    import torch

    try:
        from gptoss_adapters.reference.model import GptOss
    except ImportError:
        from gptoss_adapters.model import GptOss

    torch.set_num_threads(THREADS)
    model = GptOss.from_checkpoint(work / "checkpoint", experts="q24")
    ids, token = torch.arange(16)[None] * 37, torch.tensor([[11]])

    def run() -> None:
        cache = model.new_cache()
        model(ids, cache=cache, last_only=True)
        for _ in range(8):
            model(token, cache=cache)

    return run


def convert(work: Path) -> Row:
    try:
        import gptoss_converters.cli.program as program
    except ImportError:
        import gptoss_converters.cli as program
    out = work / "out" / f"{os.getpid()}.gguf"
    out.parent.mkdir(exist_ok=True)
    command = [sys.executable, str(Path(__file__)), "run", program.__name__, "to-gguf", str(work / "checkpoint")]

    def run() -> None:
        subprocess.run([*command, "-o", str(out)], check=True, capture_output=True)
        out.unlink()

    return run


def render(work: Path) -> Row:
    from _harmony_render import conversation_json
    from gptoss_harmony import Conversation, render

    conversation = Conversation.from_dict(conversation_json("english", 100))
    return lambda: [render(conversation) for _ in range(10)]


def stream() -> list[int]:
    from _harmony_texts import texts
    from gptoss_harmony import load_vocabulary
    from gptoss_harmony.tokens import CHANNEL, END, MESSAGE, RETURN, START

    encode = load_vocabulary().encode
    ids = [i for text in texts("english", 640, 620) for i in encode(text)][:12_000]
    role, analysis, final = encode("assistant"), encode("analysis"), encode("final")
    head = [CHANNEL, *analysis, MESSAGE, *ids[:6_000], END]
    return [*head, START, *role, CHANNEL, *final, MESSAGE, *ids[6_000:], RETURN]


def parse(work: Path) -> Row:
    from gptoss_harmony import parse

    ids = stream()
    return lambda: [parse(ids) for _ in range(300)]


def parse_token_by_token(work: Path) -> Row:
    from gptoss_harmony import Parser

    ids = stream()

    def run() -> None:
        for _ in range(3):
            parser = Parser("assistant")
            for token in ids:
                parser.feed((token,))

    return run


def serve_long_answers(work: Path) -> Row:
    """Chat Completions, streamed: 4 answers of 3 000 tokens."""
    return serve_answers(work, words=3000, times=4)


def serve_short_answers(work: Path) -> Row:
    """Chat Completions, streamed: 200 answers of one word."""
    return serve_answers(work, words=1, times=200)


def serve_answers(work: Path, words: int, times: int) -> Row:
    """The application without a socket over an engine that costs nothing; the CPU time is the server's alone."""
    from gptoss_adapters.backends import open_backend
    from gptoss_adapters.serve.app import create_app
    from gptoss_adapters.serve.settings import Settings

    backend = open_backend("_against_engine:Talker", python=write_interpreter(work), words=words)
    app = create_app([backend], Settings(model="m", date="2026-01-01"))
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Say something."}]}
    loop = asyncio.new_event_loop()

    async def answer_all() -> None:
        for _ in range(times):
            answer = await post(app, "/v1/chat/completions", json.dumps(body).encode())
            assert answer.endswith(b"data: [DONE]\n\n"), answer[-300:]

    return lambda: loop.run_until_complete(answer_all())


def write_interpreter(work: Path) -> str:
    """This Python without its .pth files, of which an editable install's would win over the checkout that is lent."""
    packages = [str(Path(__file__).parent), *(p for p in sys.path if p.endswith("site-packages"))]
    script = work / "python"
    script.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(["$PYTHONPATH", *packages])
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec "{sys.executable}" -S "$@"\n')
    script.chmod(0o755)
    return str(script)


async def post(app: Any, path: str, body: bytes) -> bytes:
    """The body of the answer, as an ASGI server would send it."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
    }
    scope |= {"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "headers": headers, "root_path": ""}
    asked = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[bytes] = []

    async def receive() -> dict[str, Any]:
        if asked:
            return asked.pop()
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b""))

    await app(scope, receive, send)
    return b"".join(sent)


ROWS: dict[str, Callable[[Path], Row]] = {
    "gemv": gemv,
    "decode": decode,
    "convert": convert,
    "render": render,
    "parse": parse,
    "parse token by token": parse_token_by_token,
    "serve long answers": serve_long_answers,
    "serve short answers": serve_short_answers,
}


def cpu_seconds() -> float:
    """Of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def serve(name: str, work: Path) -> None:
    import gptoss_harmony

    import gptoss_adapters

    shutil.rmtree(work / "out", ignore_errors=True)
    sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the oracle that _harmony_render imports
    run = ROWS[name](work)
    sources = {str(Path(str(m.__file__)).parents[n]) for m, n in ((gptoss_adapters, 1), (gptoss_harmony, 2))}
    assert len(sources) == 1, sources
    print(json.dumps({"source": sources.pop()}), flush=True)
    for _ in sys.stdin:
        cpu, wall = cpu_seconds(), time.perf_counter()
        run()
        print(json.dumps({"cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall}), flush=True)


def run_program(module: str, arguments: list[str]) -> None:
    from importlib import import_module

    sys.argv = [module, *arguments]
    program: Any = import_module(module)
    program.main()


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run_program(sys.argv[2], sys.argv[3:])
    else:
        serve(sys.argv[1], Path(sys.argv[2]))
