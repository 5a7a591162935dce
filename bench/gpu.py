"""The Triton kernels and whole-model decoding on a GPU, as fractions of what its memory can deliver ->
bench/results/gpu.json.

    python bench/gpu.py [--checkpoint DIR] [--layers 24] [--batches 1 8 64] [--transformers] [--out FILE]

Needs a CUDA device and the `torch` and `triton` extras; makes the 20b-shape checkpoint if none is given. The bandwidth
is that of summing a few GB in the same run; the bytes of a step are the experts that the batch chose, once each, and
the dense weights. `--transformers` adds its model in bf16 on the same tokens, where that fits: its experts are decoded
to bf16. `--device cpu` runs the same program on a small checkpoint, to see that it works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "harmony"), str(ROOT / "converters")]
CONTEXT, ROUNDS = 1024, 30


def seconds(step: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """The median of `rounds` runs, each with everything before it done."""
    taken, first = [], min(3, rounds)  # the first ones compile and warm up
    for _ in range(first + rounds):
        wait(device)
        start = time.perf_counter()
        step()
        wait(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[first:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth(device: torch.device, rounds: int) -> float:
    """GB/s of reading memory."""
    words = torch.ones((1 << 30 if device.type == "cuda" else 1 << 20), dtype=torch.float32, device=device)
    return words.nbytes / seconds(words.sum, device, rounds) / 1e9


def layer(model: Any, batch: int, rounds: int) -> dict[str, float]:
    """One layer's experts on random tokens: microseconds, and GB/s of the experts that were chosen."""
    config, experts = model.config, model.layers[0][1].experts
    random = torch.Generator().manual_seed(batch)
    x = torch.randn((batch, config.hidden_size), generator=random).to(model.device, model.dtype)
    chosen = torch.stack(
        [torch.randperm(config.num_experts, generator=random)[: config.experts_per_token] for _ in range(batch)]
    ).to(model.device)
    weights = torch.full(chosen.shape, 1 / config.experts_per_token, dtype=model.dtype, device=model.device)
    taken = seconds(lambda: experts(x, chosen, weights), model.device, rounds)
    size = len(chosen.unique()) * expert_bytes(model)
    return {"batch": batch, "experts": len(chosen.unique()), "us": taken * 1e6, "gbps": size / taken / 1e9}


def expert_bytes(model: Any) -> int:
    w = model.layers[0][1].experts.weights
    return sum(t[0].nbytes for t in (w.gate_up_blocks, w.gate_up_scales, w.down_blocks, w.down_scales))


def decode(model: Any, batch: int, rounds: int) -> dict[str, Any]:
    """Steps of the whole model at random tokens, by the graph where one holds them and without it."""
    from gptoss_adapters.reference.decode_graph import DecodeGraph, capturable
    from gptoss_adapters.reference.taps import Taps

    tokens = torch.randint(0, model.config.vocab_size, (batch,), generator=torch.Generator().manual_seed(batch))
    cache, taps = model.new_cache(), Taps()
    model(tokens[:, None], cache=cache, taps=taps)
    dense = sum(t.nbytes for parts in model.layers for t in parts[0].w.values()) + model.unembedding.nbytes
    size = dense + sum(len(chosen.unique()) for chosen in taps.experts) * expert_bytes(model)
    plain = seconds(lambda: model(tokens[:, None], cache=cache), model.device, rounds)
    out: dict[str, Any] = {"batch": batch, "bytes": size, "ms_without_graph": plain * 1e3}
    best = plain
    if capturable(model, batch):
        graph, position = DecodeGraph(model, batch, CONTEXT), torch.zeros((batch, 1), dtype=torch.int64)
        graph.load(cache)
        best = seconds(lambda: graph.step(tokens, position), model.device, rounds)
        out["ms_graph"] = best * 1e3
    return out | {"tokens_per_s": batch / best, "gbps": size / best / 1e9}


@torch.inference_mode()
def transformers_steps(path: Path, batches: list[int], device: torch.device, rounds: int) -> Iterator[dict[str, float]]:
    from transformers import AutoModelForCausalLM, Mxfp4Config

    options = Mxfp4Config(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, quantization_config=options).to(device)
    for batch in batches:
        ids = torch.randint(0, model.config.vocab_size, (batch, 1), device=device)
        past = model(ids, use_cache=True).past_key_values
        step = partial(model, ids, past_key_values=past, use_cache=True)
        taken = seconds(step, device, rounds)
        yield {"batch": batch, "ms": taken * 1e3, "tokens_per_s": batch / taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "gpu.json")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here: nothing was run")
    from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
    from gptoss_adapters.checkpoint.writing.writer import write
    from gptoss_adapters.reference.model import GptOss

    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        path = args.checkpoint or Path(folder) / "20b"
        if args.checkpoint is None:
            write(plan_new("20b-shape", path, layers=args.layers), sync=False)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = GptOss.from_checkpoint(path, dtype=dtype, device=device, experts="triton")
        gbps = bandwidth(device, args.rounds)
        about = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, interpreted",
            "torch": torch.__version__,
        }
        result: dict[str, Any] = {"about": about | {"layers": model.config.num_hidden_layers}, "read_gbps": gbps}
        result["experts"] = [layer(model, batch, args.rounds) for batch in args.batches]
        result["decode"] = [decode(model, batch, args.rounds) for batch in args.batches]
        for row in result["experts"] + result["decode"]:
            row["of_bandwidth"] = row["gbps"] / gbps
        if args.transformers:
            del model
            result["transformers"] = list(transformers_steps(path, args.batches, device, args.rounds))
    for part in ("experts", "decode", "transformers"):
        for row in result.get(part, ()):
            print(part, " ".join(f"{name} {value:.4g}" for name, value in row.items()))
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
