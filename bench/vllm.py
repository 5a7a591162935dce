"""vLLM on a CPU: the plugin's packed MXFP4 experts beside vLLM's own on the same weights dequantised to bf16.

    .venv-vllm/bin/python bench/vllm.py [--layers 2] [--threads 2] [--rounds 3] [--modes eager compiled] [--work DIR]
    [--out bench/results/vllm.json]

Makes a true-shape 20b checkpoint of a few layers twice from one seed, in MXFP4 and in bf16, then loads and decodes each
in a child of its own, in turn; with `--enforce-eager` and in vLLM's default mode, compiled. Both sides run in the same
mode. Speeds are compared by their medians, and by each one's best round beside that. Whole decoding is judged against
the ratio that the bytes a token reads allow: the bf16 head alone is 1.16 GB, so a cut of few layers can gain little
however fast its experts are. The plugin is told to take over, so that its kernels are what is measured on machines with
AMX too, where it would hand back vLLM's.

In a compiled graph no module is called, so the time in the experts is that of their operations, as torch's profiler
sees them: without the router, in a run of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROMPT, DECODED = 64, 24
VARIANTS = {"plugin, MXFP4": ("hf-mxfp4", "force"), "built-in, bf16": ("hf-bf16", "off")}
BETTER: dict[str, Any] = {
    "load_s": min,
    "experts_bytes": min,
    "peak_rss": min,
    "decode_tok_s": max,
    "moe_ms_per_token": min,
    "prefill_s": min,
}
WANTED = {"expert memory": 0.35, "MoE layer": 2.5, "decode of what the bytes allow": 0.85}
MODES = ("eager", "compiled")
EXPERTS_OPERATIONS = ("gptoss_adapters::experts", "cpu_fused_moe")  # ours, vLLM's in bf16

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def child(checkpoint: str, plugin: str, mode: str, threads: int) -> dict[str, Any]:
    """Load, decode greedily, and time every MoE layer on the way."""
    os.environ |= ENVIRONMENT | {"OMP_NUM_THREADS": str(threads), "GPTOSS_ADAPTERS_VLLM": plugin}
    sys.path = [p for p in sys.path if Path(p).resolve() != ROOT / "bench"]  # this file has the name of the package
    import torch
    import vllm

    from gptoss_adapters.vllm_plugin import register

    register()
    torch.set_num_threads(threads)
    start = time.perf_counter()
    llm = open_model(checkpoint, eager=mode == "eager")
    load = time.perf_counter() - start
    torch.set_num_threads(threads)
    watch: MoeWatch | OperationsWatch = MoeWatch() if mode == "eager" else OperationsWatch()
    held = llm.apply_model(watch.hook)[0]
    generate(llm, 2)
    with watch:
        short = generate(llm, 1)
    short_moe = watch.spent
    with watch:
        long = generate(llm, 1 + DECODED)
    long_moe = watch.spent
    if mode == "compiled":  # the profiler slows things down
        short, long = generate(llm, 1), generate(llm, 1 + DECODED)
    return {
        "load_s": load,
        "experts_bytes": held,
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "decode_tok_s": DECODED / (long - short),
        "moe_ms_per_token": (long_moe - short_moe) / DECODED * 1e3,
        "prefill_s": short,
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
    }


def open_model(checkpoint: str, eager: bool) -> Any:
    import vllm

    return vllm.LLM(
        checkpoint,
        dtype="bfloat16",
        skip_tokenizer_init=True,
        enforce_eager=eager,
        max_model_len=256,
        max_num_seqs=1,
        enable_prefix_caching=False,
    )


class MoeWatch:
    """Seconds that a model spends in its MoE layers, while it is entered."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._begun = 0.0

    def __enter__(self) -> None:
        self.spent = 0.0

    def __exit__(self, *_: Any) -> None:
        pass

    def hook(self, model: Any) -> int:
        """Watches every MoE layer of `model` -> the bytes that they hold."""
        for module in moe_layers(model):
            module.register_forward_pre_hook(self._begin)
            module.register_forward_hook(self._end)
        return count_bytes(model)

    def _begin(self, *_: Any) -> None:
        self._begun = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.spent += time.perf_counter() - self._begun


class OperationsWatch:
    """Seconds in the operations of the experts, by torch's profiler; known when it is left."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._profile: Any = None

    def __enter__(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._profile.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        found = [e for e in self._profile.key_averages() if any(name in e.key for name in EXPERTS_OPERATIONS)]
        if not found:
            sys.exit(f"no operation of the experts was seen: {[e.key for e in self._profile.key_averages()]}")
        self.spent = max(e.cpu_time_total for e in found) / 1e6

    def hook(self, model: Any) -> int:
        """The bytes that the MoE layers hold."""
        return count_bytes(model)


def moe_layers(model: Any) -> list[Any]:
    return [layer.mlp.experts for layer in model.model.layers]


def count_bytes(model: Any) -> int:
    return sum(tensor_bytes(module) for module in moe_layers(model))


def generate(llm: Any, tokens: int) -> float:
    """Seconds for the prompt and so many tokens."""
    import vllm

    prompt = {"prompt_token_ids": [(i * 7919) % 199_000 for i in range(PROMPT)]}
    sampling = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    llm.generate([prompt], sampling, use_tqdm=False)
    return time.perf_counter() - start


def tensor_bytes(module: Any) -> int:
    """Bytes of the storages that a module holds, each once: parameters, and what its method keeps beside them."""
    import torch

    seen: dict[int, int] = {}

    def visit(value: Any, depth: int) -> None:
        if isinstance(value, torch.Tensor) and value.device.type != "meta":
            storage = value.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for inner in value.values():
                visit(inner, depth)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                visit(inner, depth)
        elif depth and hasattr(value, "__dict__") and not isinstance(value, type):
            visit(vars(value), depth - 1)

    visit(vars(module), 3)
    return sum(seen.values())


def bytes_per_token(layers: int, expert_bytes_per_weight: float) -> float:
    """Weights that one decoded token reads: the head, attention and router in bf16, 4 experts a layer."""
    from gptoss_adapters.spec import GPT_OSS_20B as c

    attention = 2 * (
        c.hidden_size * (c.q_rows + 2 * c.kv_rows) + c.q_rows * c.hidden_size + c.num_experts * c.hidden_size
    )
    experts = c.experts_per_token * 3 * c.hidden_size * c.intermediate_size * expert_bytes_per_weight
    return 2 * c.vocab_size * c.hidden_size + layers * (attention + experts)


def compared(ours: dict[str, float], theirs: dict[str, float], allowed: float) -> dict[str, float]:
    decode = ours["decode_tok_s"] / theirs["decode_tok_s"]
    return {
        "expert memory": ours["experts_bytes"] / theirs["experts_bytes"],
        "MoE layer": theirs["moe_ms_per_token"] / ours["moe_ms_per_token"],
        "decode": decode,
        "decode that the bytes allow": allowed,
        "decode of what the bytes allow": decode / allowed,
    }


def make(work: Path, layers: int) -> None:
    """The checkpoint in both layouts, where it is not there yet."""
    new = [sys.executable, "-m", "gptoss_converters.cli", "new", "20b-shape", "--layers", str(layers)]
    for layout, _ in VARIANTS.values():
        if not (work / layout / "config.json").exists():
            subprocess.run([*new, "-o", str(work / layout), "--layout", layout], check=True)


def run_child(name: str, mode: str, work: Path, threads: int) -> dict[str, Any]:
    """One round of a variant. What was compiled is kept for the next."""
    layout, plugin = VARIANTS[name]
    command = [sys.executable, __file__, "--threads", str(threads), "--child", str(work / layout), plugin, mode]
    kept = {
        "TORCHINDUCTOR_CACHE_DIR": str(work.resolve() / "compiled"),
        "VLLM_CACHE_ROOT": str(work.resolve() / "vllm"),
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | kept)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        sys.exit(f"{name}, {mode} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    print(name, mode, {k: v for k, v in found.items() if k != "versions"}, file=sys.stderr)
    return found


def summarise(runs: dict[str, list[dict[str, Any]]], layers: int) -> dict[str, Any]:
    """Of one mode: each variant's best and median figures, and their ratios."""
    best = {
        name: {key: better(run[key] for run in found) for key, better in BETTER.items()} for name, found in runs.items()
    }
    middle = {
        name: {key: statistics.median(run[key] for run in found) for key in BETTER} for name, found in runs.items()
    }
    allowed = bytes_per_token(layers, 2) / bytes_per_token(layers, 17 / 32)
    ratios = compared(*middle.values(), allowed) | {
        f"{name}, best rounds": value for name, value in compared(*best.values(), allowed).items() if name in WANTED
    }
    return {"best": best, "median": middle, "ratios": ratios, "rounds": runs}


def measure(mode: str, args: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for _ in range(args.rounds):
        for name, found in runs.items():
            found.append(run_child(name, mode, args.work, args.threads))
    return summarise(runs, args.layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--work", type=Path, default=Path("build/bench-vllm"))
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "vllm.json")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print("RESULT " + json.dumps(child(*args.child, args.threads)))
        return
    make(args.work, args.layers)
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "threads": args.threads,
        "layers": args.layers,
        "rounds": args.rounds,
    }
    found = {mode: measure(mode, args) for mode in args.modes}
    report = {"machine": machine, "wanted": WANTED} | found.pop("eager", {}) | found
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    for mode in args.modes:
        for name, value in report.get(mode, report)["ratios"].items():
            print(f"{mode:<9} {name:<44} {value:.2f}" + (f"  (wanted {WANTED[name]})" if name in WANTED else ""))


if __name__ == "__main__":
    main()
