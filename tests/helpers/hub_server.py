"""A small Hub on loopback, with the addresses that huggingface_hub asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPO, COMMIT = "someone/tiny-gpt-oss", "c" * 40


class Hub:
    """The few addresses of the Hub that huggingface_hub asks for. `files` holds what is served, `stated` the hashes
    it claims.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.stated = {
            name: hashlib.sha256(data).hexdigest() if name.endswith(".safetensors") else git_hash(data)
            for name, data in files.items()
        }
        self.requests: list[str] = []
        self.break_off_after: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, r: BaseHTTPRequestHandler, body: bool) -> None:
        path = r.path.partition("?")[0]
        self.requests.append(
            f"{r.command} {path} {r.headers.get('Range', '')} {r.headers.get('Authorization', '')}".rstrip()
        )
        if path.startswith(f"/api/models/{REPO}"):
            answer = self.tree() if "/tree/" in path else self.info()
            self.send(r, 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)
            return
        name = path.removeprefix(f"/{REPO}/resolve/").partition("/")[2] if path.startswith(f"/{REPO}/resolve/") else ""
        if name not in self.files:
            self.send(r, 404, b"{}", {"X-Error-Code": "EntryNotFound" if name else "RepoNotFound"}, body)
            return
        data, headers = (
            self.files[name],
            {"ETag": f'"{self.stated[name]}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"},
        )
        begin = int(r.headers["Range"].removeprefix("bytes=").partition("-")[0]) if r.headers.get("Range") else 0
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self.send(r, 206 if begin else 200, data[begin:], headers, body)

    def send(self, r: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        r.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            r.send_header(key, value)
        r.end_headers()
        if body and self.break_off_after is not None and len(data) > self.break_off_after:
            r.wfile.write(data[: self.break_off_after])
            r.wfile.flush()
            r.connection.close()
            self.break_off_after = None
        elif body:
            r.wfile.write(data)

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": self.stated[name][:40]}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"sha256": self.stated[name], "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {
            "id": REPO,
            "sha": COMMIT,
            "private": False,
            "siblings": siblings,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }

    def tree(self) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": s["rfilename"],
                "size": s["size"],
                "oid": s["blobId"],
                **({"lfs": {"oid": s["lfs"]["sha256"], "size": s["size"], "pointerSize": 130}} if "lfs" in s else {}),
            }
            for s in self.info()["siblings"]
        ]


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
