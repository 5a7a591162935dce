"""Compiles the Triton kernels, as `moe` launches them on the 20b's shapes, to machine code for GPUs that are not here.

Run as a program: Triton decides once in a process whether it interprets. Prints one JSON object per kernel, dtype and
target.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gptoss_adapters.mxfp4 import triton_kernels as kernels

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
NAMES = ("_partial_rows", "_add_swiglu", "_add_combine", "_tile")
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.uint8: "*u8", torch.int32: "*i32"}
EXPERTS, HIDDEN, INTER, TOP_K = 32, 2880, 2880, 4


class Recorder:
    """Stands for a kernel: keeps the arguments of every launch."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.launches = kernel, list[dict[str, Any]]()

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **named: self.launches.append(dict(zip(self.kernel.arg_names, args, strict=False)) | named)


def launches(tokens: int, dtype: torch.dtype) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(kernel, its arguments by name) of a layer of so many tokens; tensors without memory, but for what the host
    looks at.
    """

    def part(rows: int, width: int) -> list[torch.Tensor]:
        blocks, scales = (
            torch.empty((EXPERTS, rows, width // 32, *tail), dtype=torch.uint8, device="meta") for tail in ((16,), ())
        )
        return [blocks, scales, torch.empty((EXPERTS, rows), device="meta")]

    recorders = {name: Recorder(getattr(kernels, name)) for name in NAMES}
    originals = {name: r.kernel for name, r in recorders.items()}
    order = kernels._sort(torch.arange(tokens * TOP_K, dtype=torch.int32) % EXPERTS, EXPERTS, 16)
    sort, kernels._sort = kernels._sort, lambda *_: order
    vars(kernels).update(recorders)
    try:
        x, weights = (torch.empty((tokens, n), dtype=dtype, device="meta") for n in (HIDDEN, TOP_K))
        ids = torch.empty((tokens, TOP_K), dtype=torch.int32, device="meta")
        kernels.moe(x, kernels.Experts(*part(2 * INTER, HIDDEN), *part(HIDDEN, INTER)), ids, weights, 1.702, 7.0)
    finally:
        vars(kernels).update(originals)
        kernels._sort = sort
    for recorder in recorders.values():
        for launch in recorder.launches:
            yield recorder.kernel, launch


def compiled(kernel: Any, launch: dict[str, Any], target: GPUTarget) -> Any:
    """With the specialisation of a launch: pointers and integers that 16 divides, and the integer 1 as a constant."""
    constants = {p.name for p in kernel.params if p.is_constexpr}
    constants |= {name for name, value in launch.items() if isinstance(value, int) and value == 1}
    signature, attributes = {}, {}
    for n, name in enumerate(kernel.arg_names):
        value = launch[name]
        if name in constants:
            signature[name] = "constexpr"
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if name not in constants and (isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)):
            attributes[(n,)] = [["tt.divisibility", 16]]
    options = {"num_warps": launch["num_warps"]} if "num_warps" in launch else {}
    return triton.compile(
        ASTSource(kernel, signature, {name: launch[name] for name in constants}, attributes),
        target=target,
        options=options,
    )


def machine_code(cubin: bytes, *options: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, *options, file.name], capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes) -> dict[str, int]:
    """What ptxas gave the kernel: registers a thread, bytes of local memory a thread (where registers did not
    suffice).
    """
    said = machine_code(cubin, "-res-usage")
    registers, stack = (re.search(rf"{key}:(\d+)", said) for key in ("REG", "STACK"))
    assert registers and stack
    return {"registers": int(registers[1]), "stack": int(stack[1])}


def longest_loop(cubin: bytes) -> int:
    """Instructions between a backward branch and where it goes."""
    listed = re.findall(
        r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_.]+)\s*([^;]*);", machine_code(cubin, "-sass")
    )
    index = {int(at, 16): n for n, (at, *_) in enumerate(listed)}
    jumps = [
        (n, re.search(r"0x([0-9a-f]+)", where)) for n, (_, name, where) in enumerate(listed) if name.startswith("BRA")
    ]
    return max((n - index[int(to[1], 16)] + 1 for n, to in jumps if to and int(to[1], 16) in index), default=0)


def main(names: list[str]) -> None:
    for target, dtype, tokens in itertools.product(names, (torch.bfloat16, torch.float32), (1, 64, 2048)):
        for kernel, launch in launches(tokens, dtype):
            made = compiled(kernel, launch, TARGETS[target])
            out = {
                "kernel": kernel.__name__,
                "dtype": str(dtype).removeprefix("torch."),
                "target": target,
                "shared": made.metadata.shared,
            }
            if "cubin" in made.asm:
                cubin, ptx = made.asm["cubin"], made.asm["ptx"]
                out |= resources(cubin)
                out["wide_loads"] = len(re.findall(r"ld\.global\S*\.v4\.b32", ptx))
                out["products"] = len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async)", ptx))
                if kernel is kernels._partial_rows:
                    values = kernels.BLOCK_N * kernels.BLOCK_G * 32 / (32 * made.metadata.num_warps)
                    out["instructions_per_value"] = longest_loop(cubin) / values
            else:
                out["code"] = len(made.asm["hsaco"])
            print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(TARGETS))
