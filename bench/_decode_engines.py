"""The engines of decode.py, each of which loads, prefills and decodes in a child of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

PROMPT, DECODED = 128, 32
GGUF = {"llama.cpp-bf16": "bf16.gguf", "llama.cpp-q8_0": "q8_0.gguf"}


def prompt(n: int) -> list[int]:
    import random

    return [random.Random(0).randrange(199_000) for _ in range(1)] + [
        random.Random(i).randrange(199_000) for i in range(1, n)
    ]


def timed(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def run_torch(work: Path, threads: int, precision: str, dense: str = "stored") -> dict[str, Any]:
    import torch

    from gptoss_adapters.reference.model import GptOss

    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    start = time.perf_counter()
    model = GptOss.from_checkpoint(
        work / "checkpoint", dtype=dtype, experts="q16" if precision == "bf16" else precision, dense=dense
    )
    load = time.perf_counter() - start
    warm = read_weights(model, threads)
    if dense == "packed":
        for name in model.checkpoint.tensors:
            if name.endswith(("_proj.weight", "unembedding.weight")):
                model.checkpoint.release(name)  # read just now, for the sake of the measurement
    ids = torch.tensor([prompt(PROMPT)])
    model(ids[:, :4], last_only=True)
    cache = model.new_cache()
    prefill = timed(lambda: model(ids, cache=cache, last_only=True))
    token = torch.tensor([[11]])
    model(token, cache=cache)
    steps = [timed(lambda: model(token, cache=cache)) for _ in range(DECODED)]
    spent = parts(model, cache, token)
    return {
        "load_s": load,
        "prefill_tps": PROMPT / prefill,
        "decode_s": sorted(steps),
        "parts_ms": spent,
        **warm,
        "kernel_gbps": kernel_rates(model, spent),
    }


def kernel_rates(model: Any, spent: dict[str, float]) -> dict[str, float]:
    """GB/s at which the weights of a part are read in a decode step."""
    config, tensors = model.config, model.checkpoint.tensors
    experts = (
        sum(info.nbytes for name, info in tensors.items() if ".experts." in name)
        * config.experts_per_token
        / config.num_experts
    )
    attention = sum(
        weight.nbytes for layer, _ in model.layers for name, weight in layer.w.items() if name.endswith("_proj.weight")
    )
    sizes = {"head": model.unembedding.nbytes, "experts": experts, "attention weights": attention}
    return {part: size / spent[part] / 1e6 for part, size in sizes.items()}


def read_weights(model: Any, threads: int) -> dict[str, float]:
    """Reads every weight but the embedding, 3 times; the best counts. -> bytes that one token reads, GB/s."""
    config, size = model.config, 0
    arrays = [
        model.checkpoint.raw(s)
        for name, info in model.checkpoint.tensors.items()
        if name != "embedding.weight"
        for s in info.sources
    ]
    for name, info in model.checkpoint.tensors.items():
        share = config.experts_per_token / config.num_experts if ".experts." in name else 1.0
        size += 0 if name == "embedding.weight" else round(info.nbytes * share)
    return {"bytes_per_token": size, "read_gbps": read_gbps(arrays, threads)}


def read_gbps(arrays: list[Any], threads: int) -> float:
    best = min(timed(lambda: sum_all(arrays, threads)) for _ in range(3))
    return sum(a.nbytes for a in arrays) / best / 1e9


def sum_all(arrays: list[Any], threads: int) -> None:
    """Sums every array as int64, each thread its share of each: plain reading, from outside of any kernel."""
    import torch

    torch.set_num_threads(1)
    words = [torch.from_numpy(a[: len(a) // 8 * 8].view("int64")) for a in arrays if len(a) >= 1 << 20]
    with ThreadPoolExecutor(threads) as pool:
        for whole in words:
            list(pool.map(torch.sum, whole.chunk(threads)))
    torch.set_num_threads(threads)


class Stopwatch:
    """Seconds spent in functions, by the name that `name(*arguments)` gives a call."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def wrap(self, name: Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            start = time.perf_counter()
            out = function(*args)
            key = name(*args)
            self.spent[key] = self.spent.get(key, 0.0) + time.perf_counter() - start
            return out

        return run


def clocked(model: Any, watch: Stopwatch) -> Any:
    """A copy of the model whose operations are timed."""

    def name_product(x: Any, weight: Any, bias: Any) -> str:
        named = {model.config.vocab_size: "head", model.config.num_experts: "router"}
        return named.get(weight.shape[0], "attention weights")

    ops = replace(
        model.ops,
        linear=watch.wrap(name_product, model.ops.linear),
        rms_norm=watch.wrap(lambda *_: "norms", model.ops.rms_norm),
        attend=watch.wrap(lambda *_: "attention scores", model.ops.attend),
    )
    layers = []
    for block in model.layers:
        experts = watch.wrap(lambda *_: "experts", block.moe.experts)
        attention, moe = replace(block.attention, ops=ops), replace(block.moe, ops=ops, experts=experts)
        layers.append(block._replace(attention=attention, moe=moe))
    return replace(model, ops=ops, layers=layers)


def parts(model: Any, cache: Any, token: Any) -> dict[str, float]:
    """Milliseconds of one decode step in each part; the rest is rotation, the cache and Python."""
    watch = Stopwatch()
    timed_model = clocked(model, watch)
    runs = []
    for _ in range(5):
        watch.spent = {}
        runs.append((timed(lambda: timed_model(token, cache=cache)), watch.spent))
    whole, fastest = min(runs, key=lambda run: run[0])
    return {k: v * 1e3 for k, v in fastest.items()} | {"Python and the rest": (whole - sum(fastest.values())) * 1e3}


def run_llama(work: Path, threads: int, file: str) -> dict[str, Any]:
    import numpy as np
    from llama_cpp import Llama

    read = read_gbps([np.memmap(work / file, np.uint8, "r")], threads)
    start = time.perf_counter()
    llama = Llama(
        str(work / file),
        n_ctx=512,
        n_batch=512,
        n_ubatch=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    load = time.perf_counter() - start
    llama.eval(prompt(PROMPT))
    llama.reset()
    llama._ctx.kv_cache_clear()
    prefill = timed(lambda: llama.eval(prompt(PROMPT)))
    llama.eval([11])
    steps = [timed(lambda: llama.eval([11])) for _ in range(DECODED)]
    return {"load_s": load, "prefill_tps": PROMPT / prefill, "decode_s": sorted(steps), "read_gbps": read}


def run_transformers(work: Path, threads: int) -> dict[str, Any]:
    import torch
    from transformers import GptOssForCausalLM

    torch.set_num_threads(threads)
    start = time.perf_counter()
    model = GptOssForCausalLM.from_pretrained(work / "checkpoint", dtype=torch.bfloat16)
    load = time.perf_counter() - start
    ids = torch.tensor([prompt(PROMPT)])
    with torch.inference_mode():
        model(ids[:, :4])
        start = time.perf_counter()
        out = model(ids, use_cache=True)
        prefill = time.perf_counter() - start
        cache, steps = out.past_key_values, []
        for _ in range(DECODED):
            steps.append(timed(lambda: model(torch.tensor([[11]]), past_key_values=cache, use_cache=True)))
    return {"load_s": load, "prefill_tps": PROMPT / prefill, "decode_s": sorted(steps)}


def run(engine: str, work: Path, threads: int) -> dict[str, Any]:
    """What one round of an engine gives, as JSON holds it."""
    if engine.startswith("torch"):
        result = run_torch(work, threads, *engine.split("-")[1:])
    elif engine.startswith("llama"):
        result = run_llama(work, threads, GGUF[engine])
    else:
        result = run_transformers(work, threads)
    steps = result.pop("decode_s")
    result |= {"decode_tps": 1 / steps[0], "decode_tps_median": 1 / steps[len(steps) // 2]}
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    result |= {
        "peak_rss_gb": int(status["VmHWM"].split()[0]) / 1e6,
        "anonymous_gb": int(status["RssAnon"].split()[0]) / 1e6,
    }
    return result
