"""The tables of the docs, most of them made from bench/results/*.json. A figure short of what was wanted is bold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from docs_clients import clients_table
from docs_vllm import vllm_versions_table

RESULTS = Path(__file__).parents[1] / "bench" / "results"
GB, MB = 1e9, 1e6


def load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; all columns but the first are figures, so they stand to the right."""
    header = list(header)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def three_digits(value: float) -> str:
    if value < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def times(ratio: float, ok: bool | None = True) -> str:
    text = three_digits(ratio) + "x"
    return f"**{text}**" if ok is False else text


def number(value: float, ok: bool | None = True, unit: str = "") -> str:
    text = three_digits(value) + unit
    return f"**{text}**" if ok is False else text


def convert_table() -> str:
    """Both machines side by side: our seconds, those of what stands beside us, and the ratio that was wanted."""
    pairs = [
        ("warm copy, no fsync", "ours", "cp", 0),
        ("with fsync", "ours + fsync", "cp + fsync", 1),
        ("with read-back", "ours + read-back", "cp && cmp", 3),
        ("with `--sha256`", "ours + sha256", "cp && sha256sum", 4),
        ("whole program, beside llama.cpp's converter", "program", "upstream", 5),
    ]
    runs = [load("convert"), load("convert_xeon")]
    rows = []
    for label, ours, theirs, n in pairs:
        row = [label]
        for run in runs:
            verdict, ways = run["verdicts"][n], run["ways"]
            seconds = f"{number(ways[ours]['wall'])} / {number(ways[theirs]['wall'])} s"
            row += [seconds, times(verdict["ratio"], verdict["ok"])]
        rows.append([*row, runs[0]["verdicts"][n]["wanted"]])
    header = ["", "EPYC: ours / theirs", "ratio", "Xeon: ours / theirs", "ratio", "wanted"]
    return table(header, rows)


def convert_limits_table() -> str:
    runs = [load("convert"), load("convert_xeon")]
    shown = {
        2: "CPU time against `cp`",
        6: "anonymous memory, MB",
        7: "tokenizer part, s",
        8: "repacking against `memcpy`",
        9: "repacking against `memcpy`, gate and up in a pass each",
    }
    rows = []
    for n, label in shown.items():
        cells = [number(run["verdicts"][n]["ratio"], run["verdicts"][n]["ok"]) for run in runs]
        rows.append([label, *cells, runs[0]["verdicts"][n]["wanted"]])
    speeds = [run["kernels GB/s"] for run in runs]
    rows.append(["repacking, GB/s", *[number(one["repack"]) for one in speeds], ""])
    rows.append(["repacking against llama.cpp's", *[times(one["repack"] / one["upstream"]) for one in speeds], ">= 10"])
    return table(["", "EPYC", "Xeon", "wanted"], rows)


def harmony_render_table() -> str:
    found = load("harmony")["render"]
    sizes = sorted({row["messages"] for row in found})
    rows = []
    for what in dict.fromkeys(row["what"] for row in found):
        mine = {row["messages"]: row for row in found if row["what"] == what}
        wanted = mine[sizes[0]]["target"]
        cells = [times(mine[size]["mean"], mine[size]["meets"]) for size in sizes]
        rows.append([what, *cells, "" if wanted is None else f"{wanted:g}x"])
    return table(["", *[f"{size} messages" for size in sizes], "wanted"], rows)


def harmony_parse_table() -> str:
    found = load("harmony")["parse"]
    sizes = sorted({row["tokens"] for row in found})
    rows = []
    for what in dict.fromkeys(row["what"] for row in found):
        mine = {row["tokens"]: row for row in found if row["what"] == what}
        cells = [times(mine[size]["mean"], mine[size]["meets"]) if size in mine else "" for size in sizes]
        target = next(iter(mine.values()))["target"]
        rows.append([what, *cells, f"{target:g}x"])
    return table(["", *[f"{size:,} tokens".replace(",", " ") for size in sizes], "wanted"], rows)


def harmony_start_table() -> str:
    rows = []
    for row in load("harmony")["start"]:
        limit = "" if row["limit"] is None else f"{row['limit'] * 1000:.0f} ms"
        rows.append([row["what"].replace("_", "-"), f"{row['seconds'] * 1000:.0f} ms", limit])
    return table(["", "time", "at most"], rows)


def decode_table() -> str:
    """Decoding (best of the rounds, then the median), prefill, and memory, on both machines."""
    labels = {
        "torch-q24-packed": "reference, float32, q24 experts, dense in 12 bits (`gptoss-chat`)",
        "torch-q16-packed": "reference, float32, q16 experts, dense in 12 bits",
        "torch-q24": "reference, float32, q24 experts, dense as stored",
        "torch-bf16": "reference, bfloat16",
        "llama.cpp-bf16": "llama.cpp, dense in bf16 (like for like)",
        "llama.cpp-q8_0": "llama.cpp, dense in Q8_0 (fewer bytes, other values)",
    }
    runs = [load("decode_xeon")["results"], load("decode")["results"]]
    rows = []
    for name, label in labels.items():
        row = [label]
        for run in runs:
            if name in run:
                one = run[name]
                row += [
                    f"{number(one['decode_tps'])} ({number(one['decode_tps_median'])})",
                    f"{one['prefill_tps']:.0f}",
                ]
            else:
                row += ["not run", ""]
        rows.append([*row, number(max(run[name]["peak_rss_gb"] for run in runs if name in run), unit=" GB")])
    return table(["tokens a second", "decode, Xeon", "prefill", "decode, EPYC", "prefill", "peak RSS"], rows)


def decode_ratio_table() -> str:
    """Against llama.cpp with the same bytes, and against what reading the stored bytes would allow."""
    rows = []
    for name, label in (("torch-q24-packed", "dense in 12 bits"), ("torch-q24", "dense as stored")):
        row = [label]
        for machine in ("decode_xeon", "decode"):
            found = load(machine)["results"]
            ours, theirs = found[name], found["llama.cpp-bf16"]
            ratio = ours["decode_tps"] / theirs["decode_tps"]
            prefill = ours["prefill_tps"] / theirs["prefill_tps"]
            row += [times(ratio, ratio >= 1.1), times(prefill), number(ours["of_ceiling"], ours["of_ceiling"] >= 0.75)]
        rows.append(row)
    header = ["", "decode, Xeon", "prefill", "of the read limit", "decode, EPYC", "prefill", "of the read limit"]
    return table(header, [*rows, ["wanted", "1.1x", "", "0.75", "1.1x", "", "0.75"]])


def decode_parts_table() -> str:
    runs = [load("decode_xeon")["results"], load("decode")["results"]]
    parts = [run["torch-q24-packed"]["parts_ms"] for run in runs]
    rows = [[name, *[f"{one[name]:.1f}" for one in parts]] for name in sorted(parts[0], key=lambda n: -parts[0][n])]
    return table(["ms a token", "Xeon", "EPYC"], rows)


def kernels_table() -> str:
    """Every promise of the kernel benchmark, with what was reached on both machines."""
    runs = [{row["what"]: row for row in load(name)["promises"]} for name in ("mxfp4_xeon", "mxfp4")]
    rows = []
    for what in [what for what in runs[0] if what in runs[1]]:
        share = "share" in what
        cells = []
        for run in runs:
            show = number if share else times
            cells.append(show(run[what]["reached"], run[what]["meets"]))
        promised = runs[0][what]["promised"]
        label = what.replace("1 threads", "1 thread").replace("avx512vbmi", "AVX512-VBMI").replace("avx2", "AVX2")
        rows.append([label, *cells, f"{promised:g}" if share else f"{promised:g}x"])
    return table(["", "Xeon", "EPYC", "wanted"], rows)


def quantise_speed_table() -> str:
    speed = load("quantize")["speed"]
    makers = list(dict.fromkeys((row["by"], row["with"]) for row in speed))
    rules = {"fixed rules": ("ocp", "ggml", "triton", "even", "floor"), "least squared error (the default)": ("mse,",)}
    rows = []
    for label, starts in rules.items():
        row = [label]
        for by, kernels in makers:
            found = [
                one["gb_per_s"]
                for one in speed
                if (one["by"], one["with"]) == (by, kernels)
                and one["what"].startswith(starts)
                and "kept" not in one["what"]
            ]
            low, high = (min(found), max(found)) if found else (0, 0)
            digits = 3 if high < 0.1 else 1
            same = f"{low:.{digits}f}" == f"{high:.{digits}f}"
            text = f"{high:.{digits}f}" if same else f"{low:.{digits}f} to {high:.{digits}f}"
            row.append(text if found else "")
        rows.append(row)
    return table(["GB/s of input", *[k if by == "ours" else by for by, k in makers]], rows)


def quantise_error_table() -> str:
    found = load("quantize")["relative_mse"]
    rules = list(next(iter(found.values())))
    rows = [[name, *[f"{errors[rule]:.5f}" for rule in rules]] for name, errors in found.items()]
    return table(["relative squared error", *[f"`{rule}`" for rule in rules]], rows)


def serve_table() -> str:
    found = load("serve")
    full = found["per_token"]["full speed"]["added_us"]
    promised = found["promised"]
    rows = [
        [f"a token, {name}", f"{cost['wall']:.1f} us", f"{promised['us_per_token']:g} us"]
        for name, cost in full.items()
    ]
    rows += [
        [f"a request, {name}", f"{ms:.2f} ms", f"{promised['ms_per_request']:g} ms"]
        for name, ms in found["per_request"]["added_ms"].items()
    ]
    return table(["what `gptoss-serve` adds", "time", "promised"], rows)


def serve_compare_table() -> str:
    found = load("serve_compare")
    order = sorted(found["servers"].items(), key=lambda pair: -pair[1]["right"])
    rows = [[name, one["version"], f"{one['right']} of {found['requests']}"] for name, one in order]
    return table(["server", "version", "right"], rows)


def hold_headers_table() -> str:
    found = load("hold_headers")
    rows = []
    for engine, one in found["engines"].items():
        for n_tools, measured in one["by_tools"].items():
            ratio = {way: ratios["cpu"] for way, ratios in measured["ratio"].items()}
            good = ratio["held"] <= max(found["allowed"], ratio["free again"])
            shown = f"{ratio['held']:.3f}x"
            by_grammar = f"{ratio['grammar']:.3f}x" if "grammar" in ratio else ""
            cells = [shown if good else f"**{shown}**", f"{ratio['free again']:.3f}x", by_grammar]
            rows.append([f"{engine}, {n_tools} {'tool' if n_tools == '1' else 'tools'}", *cells])
    return table(["CPU time of a token", "headers held", "free again", "all by a grammar"], rows)


def vllm_table() -> str:
    runs = [load("vllm_xeon"), load("vllm")]
    ours, theirs = "plugin, MXFP4", "built-in, bf16"
    wanted = runs[0]["wanted"]
    rows = []
    for name in ("expert memory", "MoE layer", "decode", "decode of what the bytes allow"):
        goal = wanted.get(name)

        def cell(run: dict[str, Any], name: str = name, goal: float | None = goal) -> str:
            if not run:
                return "not run"
            value = run["ratios"][name]
            return times(value, goal is None or (value <= goal if name == "expert memory" else value >= goal))

        for mode, found in (("", runs), (", compiled", [run.get("compiled", {}) for run in runs])):
            if any(found):
                rows.append([name + mode, *map(cell, found), "" if goal is None else f"{goal:g}x"])
    peaks = [
        f"{run['median'][ours]['peak_rss'] / GB:.1f} / {run['median'][theirs]['peak_rss'] / GB:.1f} GB" for run in runs
    ]
    return table(["plugin against vLLM's own", "Xeon", "EPYC", "wanted"], [*rows, ["peak memory", *peaks, ""]])


def parity_faults_table() -> str:
    found = load("parity_faults")
    rows = []
    for tier, worst in found["summary"]["worst_caught"].items():
        other = found["independent"]["worst_caught"][tier]
        by_size = found["summary"]["worst_caught_by_excess_alone"][tier]
        rows.append([tier, str(worst), str(other), str(by_size)])
    seeds, others = found["summary"]["seeds"], found["independent"]["seeds"]
    header = [
        "faults caught, of 41",
        f"worst of {seeds} seeds",
        f"the {others} seeds no rule was settled on",
        "by size alone",
    ]
    return table(header, rows)


def parity_clean_table() -> str:
    """Runs with nothing wrong: simulated, through real engines, and over the matrix of kinds and exporters."""
    faults, clean, matrix = (
        load("parity_faults")["summary"],
        load("parity_clean")["summary"],
        load("parity_matrix_full"),
    )
    rows = [["simulated clean runs", str(faults["clean_runs"]), str(faults["false_alarms"])]]
    rows += [[f"real engine: {name}", str(n), str(clean["false_alarms"][name])] for name, n in clean["runs"].items()]
    alarms = sum(row["verdict"] in ("DIFFERENT", "NOT COMPARABLE") for row in matrix["results"])
    rows.append(["combinations of checkpoint kind, exporter and engine", str(matrix["cells"]), str(alarms)])
    return table(["", "runs", "false alarms"], rows)


def fuzz_table() -> str:
    rows = []
    for name, one in load("fuzz_harmony").items():
        rows.append([name, f"{one['cases']:,}".replace(",", " "), str(one["differences"])])
    return table(["random cases against openai-harmony, or against the rules of repair", "cases", "differences"], rows)


TABLES: dict[str, Callable[[], str]] = {
    function.__name__.removesuffix("_table").replace("_", "-"): function
    for function in (
        clients_table,
        convert_table,
        convert_limits_table,
        harmony_render_table,
        harmony_parse_table,
        harmony_start_table,
        decode_table,
        decode_ratio_table,
        decode_parts_table,
        kernels_table,
        quantise_speed_table,
        quantise_error_table,
        serve_table,
        serve_compare_table,
        hold_headers_table,
        vllm_table,
        vllm_versions_table,
        parity_faults_table,
        parity_clean_table,
        fuzz_table,
    )
}
