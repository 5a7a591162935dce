"""Ollama's own way in: upload the model files by digest, then /api/create, on a running server.

A blob that the server has is not sent again, so a second run goes on where the first was cut off, file by file.
"""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from gptoss_adapters.errors import BadInput, CheckFailed, OutputError, UsageError

_PIECE = 1 << 20
TIMEOUT = 600.0  # seconds of silence; the server hashes and checks a whole file before it answers
Progress = Callable[[str, int, int], None]


class Server:
    """An Ollama server at `url`. Every call raises OutputError when it cannot be reached or breaks off."""

    def __init__(self, url: str, timeout: float = TIMEOUT) -> None:
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("--create takes the URL of an Ollama server", expected="http://localhost:11434", got=url)
        self.url = url
        self.timeout = timeout
        self.prefix = parts.path.rstrip("/")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._address = parts.hostname, parts.port or (443 if parts.scheme == "https" else 11434)

    def check(self) -> str:
        """Its version. Raises OutputError where no Ollama answers."""
        status, text = self._ask("GET", "/api/version")
        version = _parse_object(text).get("version")
        if status != 200 or not isinstance(version, str):
            raise OutputError("what answers is no Ollama server", file=self.url, got=status)
        return version

    def has(self, digest: str) -> bool:
        return self._ask("HEAD", f"/api/blobs/{digest}")[0] == 200

    def upload(self, file: Path, digest: str, progress: Progress | None = None) -> None:
        """Sends a file unless the server has it. Raises CheckFailed when the server finds another digest."""
        if self.has(digest):
            return
        size = file.stat().st_size
        with file.open("rb") as data:
            headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
            status, text = self._ask("POST", f"/api/blobs/{digest}", _Body(data, size, progress), headers)
        if status == 400 and "digest" in text:
            raise CheckFailed(f"Ollama got other bytes than were sent: {text}", file=file, hint="run again")
        if status not in (200, 201):
            raise OutputError(f"Ollama refused the upload: {text}", file=file, got=status)
        if not self.has(digest):
            raise CheckFailed("Ollama does not have the file after the upload", file=file)

    def create(self, body: Mapping[str, Any]) -> list[str]:
        """Makes the model; returns what the server said on the way. Raises BadInput with the server's reason."""
        said: list[str] = []
        status, text = self._ask("POST", "/api/create", json.dumps(body).encode(), {"Content-Type": "application/json"})
        for line in text.splitlines():
            answer = _parse_object(line)
            if "error" in answer:
                raise BadInput(f"Ollama refused the model: {answer['error']}", file=str(body["model"]), got=status)
            said.append(str(answer.get("status", "")))
        if status != 200 or said[-1:] != ["success"]:
            raise OutputError(
                "Ollama did not finish", file=self.url, expected="success", got=said[-1] if said else status
            )
        return said

    def _ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        connection = self._kind(*self._address, timeout=self.timeout)
        try:
            try:
                connection.request(method, self.prefix + path, body, dict(headers or {}))
            except (BrokenPipeError, ConnectionResetError):
                if connection.sock is None:  # else it answered before it had read everything
                    raise
            response = connection.getresponse()
            return response.status, _extract_reason(response.read().decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException) as error:
            what = str(error) or type(error).__name__
            raise OutputError(
                f"the Ollama server broke off: {what}",
                file=self.url,
                hint="is it running? run the same command again to go on",
            ) from None
        finally:
            connection.close()


class _Body:
    """A file as a request's body, counted."""

    def __init__(self, data: IO[bytes], size: int, progress: Progress | None) -> None:
        self.data = data
        self.size = size
        self.progress = progress
        self.done = 0

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.data.read(_PIECE):
            yield piece
            self.done += len(piece)
            if self.progress:
                self.progress("upload", self.done, self.size)


def _parse_object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"status": line}


def _extract_reason(text: str) -> str:
    """The text of {"error": ...} where that is the whole answer."""
    found = _parse_object(text.strip()) if text.count("\n") <= 1 else {}
    return (
        str(found["error"])
        if list(found) == ["error"] and "\n" not in text.strip() and not text.endswith("\n")
        else text.strip()
    )


def create_model(
    url: str, files: Sequence[Path], request: Mapping[str, Any], progress: Progress | None = None
) -> list[str]:
    """Uploads `files` and creates the model of `request`, which names their digests; returns the server's words."""
    server = Server(url)
    for file in files:
        server.upload(file, request["files"][file.name], progress)
    return server.create(request)
