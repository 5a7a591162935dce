"""`gptoss-serve`: an OpenAI-compatible server in front of one gpt-oss checkpoint."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptoss_adapters.console import run
from gptoss_adapters.errors import OutputError, UsageError, missing_extra
from gptoss_adapters.serve.cors import allow_origins, check_origins
from gptoss_adapters.serve.pasting import lines_to_paste
from gptoss_adapters.serve.settings import OWN_TOOLS, Settings

if TYPE_CHECKING:
    from gptoss_adapters.backends import Backend
    from gptoss_adapters.serve.starting import Start

HELP = """Serve a gpt-oss checkpoint through OpenAI's Responses and Chat Completions APIs.

\b
Examples:
  gptoss-serve gpt-oss-20b.gguf --set n_threads=8
  gptoss-serve ./gpt-oss-20b --context 32768
  gptoss-serve --backend llama_cpp=gpt-oss-20b.gguf --set cache_type=f16
  gptoss-serve --backend torch=./gpt-oss-20b --store responses.sqlite
  gptoss-serve --backend ollama=gpt-oss:20b
  gptoss-serve --backend llama_server=http://localhost:8080
"""
# Longer than clients keep idle connections (httpx: 5), or both sides close at once and a request is lost.
_KEEP_ALIVE_SECONDS = 75
_SLACK_SECONDS = 30.0  # a backend that is silent for so much longer than a request may last is ended

app = typer.Typer(add_completion=True, rich_markup_mode=None)


@app.command(help=HELP)
def serve(
    path: Annotated[
        str | None,
        typer.Argument(help="The model. A GGUF file runs on llama_server or llama_cpp, any other checkpoint on torch."),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help=(
                "name=PATH, name@PYTHON=PATH or module:Class=PATH; names: llama_cpp, llama_server, torch, ollama, "
                "transformers, vllm. A name alone takes the model named before."
            )
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of prompt and answer. Default: the model's maximum, or what memory holds."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="GPTOSS_API_KEY", help="Key that clients must send.", show_envvar=True)
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="The model's name for clients; may be repeated. Default: from the path."),
    ] = None,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Answer requests for other models too, with a warning.")
    ] = False,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the backend, NAME=VALUE; may be repeated.")
    ] = None,
    slots: Annotated[
        int, typer.Option(min=1, max=64, help="Copies of the backend: requests that run at the same time.")
    ] = 1,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; more get a 429.")] = 64,
    store: Annotated[str, typer.Option(help="SQLite file of responses, or :memory:.")] = "gptoss-responses.sqlite",
    request_seconds: Annotated[float, typer.Option(min=1, help="Longest time of a request, waiting included.")] = 600.0,
    grace_seconds: Annotated[
        int, typer.Option(min=0, help="How long running requests may go on when the server is told to end.")
    ] = 30,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Largest request body.")] = 16,
    max_tools: Annotated[int, typer.Option(min=0, help="Most tools in a request.")] = 128,
    day: Annotated[
        str | None, typer.Option("--date", help="The prompt's current date, YYYY-MM-DD. Default: today.")
    ] = None,
    log_contents: Annotated[bool, typer.Option("--log-contents", help="Prompts and answers in the log.")] = False,
    builtin_tools: Annotated[
        str | None,
        typer.Option(help="browser, python or both: the caller runs a web search, or a code interpreter."),
    ] = None,
    encryption_key_file: Annotated[
        str | None,
        typer.Option(
            help="Keys of encrypted reasoning, made if it is not there. Default: a key in the store.", metavar="FILE"
        ),
    ] = None,
    strict_arguments: Annotated[
        bool,
        typer.Option(
            "--strict-arguments", help="Refuse what is not done as asked; else the answer's warnings name it."
        ),
    ] = False,
    hold_headers: Annotated[
        bool | None,
        typer.Option(
            "--hold-headers/--no-hold-headers",
            help="Hold calls to the declared tools. Default: where the engine loses nothing by it.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help='A web page\'s origin, as https://host, or "*": its scripts may ask; may be repeated.'),
    ] = None,
) -> None:
    from gptoss_adapters.serve.starting import plan_start

    start = plan_start(path, backend, _read_options(setting or []), context, slots)
    names = model or [_derive_name(start.spec)]
    settings = Settings(
        model=names[0],
        aliases=tuple(names[1:]),
        any_model=any_model,
        api_key=api_key or None,
        queue=queue,
        request_seconds=request_seconds,
        body_bytes=max_body_mb * 2**20,
        max_tools=max_tools,
        date=day,
        log_contents=log_contents,
        strict_arguments=strict_arguments,
        hold_headers=hold_headers,
        builtin_tools=_read_builtin_tools(builtin_tools or ""),
        encryption_key_file=encryption_key_file,
        cors_origins=check_origins(cors_origin or []),
    )
    _serve(settings, start, slots, store, _listen(host, port), grace_seconds)


def _serve(settings: Settings, start: Start, slots: int, store: str, listening: socket.socket, grace: int) -> None:
    try:
        import cryptography  # noqa: F401
        import openai  # noqa: F401  # its types describe the answers
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise missing_extra(error.name or "starlette", "serve") from error
    from gptoss_adapters.backends import open_backend
    from gptoss_adapters.serve.app import JsonLines, create_app
    from gptoss_adapters.serve.asking import choose_holding
    from gptoss_adapters.serve.store import Store

    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    log = logging.getLogger("gptoss.serve")
    for event, said in start.said:
        log.info(event, extra={"facts": said})
    kept = Store(None if store == ":memory:" else store)
    backends: list[Backend] = []
    try:
        for _ in range(slots):
            timeout = settings.request_seconds + _SLACK_SECONDS
            backends.append(open_backend(start.spec, timeout=timeout, **start.options))
        host, port = listening.getsockname()[:2]
        facts: dict[str, Any] = {
            "url": f"http://{f'[{host}]' if ':' in host else host}:{port}/v1",
            "model": settings.model,
            "key": settings.api_key is not None,
            "context": backends[0].info.n_ctx,
        }
        config = uvicorn.Config(
            allow_origins(create_app(backends, settings, kept), settings.cors_origins),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=grace,
            backlog=1024,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        by, why = choose_holding(settings.hold_headers, backends[0].info)
        change = "--hold-headers" if by is None else "--no-hold-headers"
        log.info("hold_headers", extra={"facts": {"on": by is not None, "why": why, "change": change}})
        print(lines_to_paste(facts["url"], settings.model, facts["context"], facts["key"]), flush=True)
        log.info("listening", extra={"facts": facts})
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        for one in backends:
            one.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise OutputError(
            f"cannot listen on {host} port {port}: {error.strerror or error}", hint="choose another --port"
        ) from error
    # asyncio sets it only on sockets that it makes itself.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _read_builtin_tools(text: str) -> frozenset[str]:
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    if not names <= set(OWN_TOOLS):
        raise UsageError("option --builtin-tools", expected=" or ".join(OWN_TOOLS), got=text)
    return names


def _read_options(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; a value that reads as JSON is that, any other a text."""
    out: dict[str, Any] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UsageError("option --set", expected="NAME=VALUE", got=pair)
        try:
            out[name] = json.loads(text)
        except ValueError:
            out[name] = text
    return out


def _derive_name(spec: str) -> str:
    path = spec.partition("=")[2]
    if not path or "://" in path:
        return "gpt-oss"
    return Path(path).name.removesuffix(".gguf") or path


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
