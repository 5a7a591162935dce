"""The same 60 requests against gptoss-serve, llama.cpp's own server (xllamacpp) and vLLM's own: what each gets wrong.

    python bench/serve_compare.py [--vllm BIN/vllm] [--out bench/results/serve_compare.json]

All serve pocket, whose right answers are known. Without --vllm, vLLM is marked as not run. vLLM's CPU build starts only
where this
package is installed beside it: its command asks for a distribution that is not there.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import _paths
import httpx
from _serve_cases import CASES
from _serve_checks import run
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from helpers.serve_fakes import DATE, Served

from gptoss_adapters.backends.llama_http import start_in_process
from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write

Running = tuple[httpx.Client, str]  # and the server's version
SECONDS = 60.0  # for one answer
_EACH_ITS_OWN = httpx.Limits(
    max_keepalive_connections=0
)  # connection: llama.cpp's server closes idle ones after some seconds
VLLM_ENVIRONMENT = {
    "VLLM_SYSTEM_START_DATE": DATE,
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_RESPONSES_API_STORE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
VLLM_OPTIONS = (
    "--served-model-name=pocket",
    "--enforce-eager",
    "--max-model-len=1024",
    "--enable-auto-tool-choice",
    "--tool-call-parser=openai",
    "--max-num-seqs=2",
)


@contextmanager
def ours(folder: Path) -> Iterator[Running]:
    with Served("llama_cpp=pocket.gguf", folder, "--model", "pocket") as server:
        yield server.http, f"gptoss-serve on llama-cpp-python {version('llama-cpp-python')}"


@contextmanager
def llama_cpp(folder: Path) -> Iterator[Running]:
    settings = {"n_batch": 512, "n_threads": 1, "cache_type": "f32", "flash_attn": False}
    served = start_in_process(str(folder / "pocket.gguf"), 4096, settings)
    client = served.client
    base = f"{client._at.scheme}://{client._at.netloc}"
    with httpx.Client(base_url=base, headers=client._headers, timeout=SECONDS, limits=_EACH_ITS_OWN) as http:
        yield http, served.version


@contextmanager
def vllm(folder: Path, binary: str) -> Iterator[Running]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [binary, "serve", str(folder / "pocket"), "--host", "127.0.0.1", "--port", str(port), *VLLM_OPTIONS]
    with (folder / "vllm.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | VLLM_ENVIRONMENT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS, limits=_EACH_ITS_OWN) as http:
            await_health(http, process, folder / "vllm.log")
            yield http, f"vllm {http.get('/version').json()['version']}"
    finally:
        process.terminate()
        process.wait()


def await_health(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 280
    while True:
        try:
            if http.get("/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"vLLM did not start: {log.read_text()[-3000:]}")
        time.sleep(0.5)


def judged(running: Running) -> dict[str, Any]:
    http, name = running
    wrong = {case.name: found for case in CASES if (found := run(case, http, "pocket"))}
    return {"version": name, "right": len(CASES) - len(wrong), "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", help="the vllm program of an environment that has one")
    parser.add_argument("--out", type=Path, default=_paths.RESULTS / "serve_compare.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(plan_new("pocket", folder / "pocket"), sync=False)
        write(plan_gguf(open_checkpoint(folder / "pocket"), folder / "pocket.gguf", GgufOptions()).plan, sync=False)
        servers: dict[str, Any] = {"gptoss-serve": lambda: ours(folder), "llama.cpp": lambda: llama_cpp(folder)}
        if options.vllm:
            servers["vllm"] = lambda: vllm(folder, options.vllm)
        results: dict[str, Any] = {
            "requests": len(CASES),
            "date": date.today().isoformat(),
            "servers": {"vllm": "not run"},
        }
        for which, start in servers.items():
            with start() as running:
                results["servers"][which] = judged(running)
            print(which, json.dumps(results["servers"][which], indent=1, ensure_ascii=False), flush=True)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
