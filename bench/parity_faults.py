"""How well gptoss-parity sees: the 41 seeded faults over seeds and tiers, and false alarms on clean runs ->
results/parity_faults.json and the table of it, parity_faults.md.

    python bench/parity_faults.py [--seeds 10] [--first 0] [--clean 20]

Per seed, new weights and new prompts: P1 in float32, P1 in bfloat16, P2 in bfloat16 with forced routing; fault and
noise in the same run. Runs of several seeds add to the file; `--seeds 0` only writes the table again. The rules were
chosen on seeds 0 to 2. One thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write as write_plan
from gptoss_adapters.parity.faults.table import CONTROL, all_faults
from gptoss_adapters.parity.logits.campaign import Campaign, op_level_gate
from gptoss_adapters.parity.noise.nulls import Noise

RESULTS = Path(__file__).parent / "results" / "parity_faults.json"
TABLE = RESULTS.with_suffix(".md")
CHOSEN_ON = (0, 1, 2)
TIERS = {
    "p1 float32": ("p1", Noise(), False),
    "p1 bfloat16": ("p1", Noise("bfloat16"), False),
    "p2 bfloat16 forced": ("p2", Noise("bfloat16"), True),
}


def made(preset: str, seed: int, folder: Path) -> Checkpoint:
    if not (folder / f"{preset}-{seed}").exists():
        write_plan(plan_new(preset, folder / f"{preset}-{seed}", seed=seed), sync=False)
    return open_checkpoint(folder / f"{preset}-{seed}")


def one_seed(seed: int, folder: Path, clean: int) -> dict[str, Any]:
    out: dict[str, Any] = {"seed": seed, "tiers": {}}
    for tier, (preset, noise, forced) in TIERS.items():
        start = time.monotonic()
        campaign = Campaign(made(preset, seed, folder), noise, seed, forced)
        runs = campaign.all_runs()
        alarms = [o for o in (campaign.run(None, 100 + n) for n in range(clean)) if o.caught]
        out["tiers"][tier] = {
            "caught": sum(o.caught for o in runs),
            "caught_by_excess_alone": sum(o.failed for o in runs),
            "missed": [o.fault for o in runs if not o.caught],
            "control": campaign.run(CONTROL).caught,
            "clean_runs": clean,
            "false_alarms": [[o.fault, o.excess] for o in alarms],
            "seconds": round(time.monotonic() - start, 1),
            "faults": {
                o.fault: {
                    "excess": float(f"{o.excess:.4g}"),
                    "coefficient": round(o.coefficient, 4),
                    "caught": o.caught,
                }
                for o in runs
            },
        }
        both = all_faults()["clamp_glu_both"]
        out["op_level_clamp_glu_both"] = op_level_gate(campaign.reference.model, both.apply(campaign.reference.model))
        print(
            seed,
            tier,
            {
                k: out["tiers"][tier][k]
                for k in ("caught", "caught_by_excess_alone", "missed", "false_alarms", "control")
            },
            flush=True,
        )
    return out


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    tiers = {t: [s["tiers"][t] for s in seeds] for t in TIERS}
    both = min(
        len(_names(s) - (set(s["tiers"]["p1 bfloat16"]["missed"]) & set(s["tiers"]["p2 bfloat16 forced"]["missed"])))
        for s in seeds
    )
    return {
        "seeds": len(seeds),
        "worst_caught": {t: min(x["caught"] for x in xs) for t, xs in tiers.items()},
        "worst_caught_by_excess_alone": {t: min(x["caught_by_excess_alone"] for x in xs) for t, xs in tiers.items()},
        "worst_p1_and_p2_forced_bfloat16": both,
        "clean_runs": sum(x["clean_runs"] for xs in tiers.values() for x in xs),
        "false_alarms": sum(len(x["false_alarms"]) for xs in tiers.values() for x in xs),
        "control_reported": sum(x["control"] for xs in tiers.values() for x in xs),
    }


def _names(seed: dict[str, Any]) -> set[str]:
    return set(seed["tiers"]["p1 bfloat16"]["faults"])


def independent(seeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that the rules were not chosen on."""
    return [s for s in seeds if s["seed"] not in CHOSEN_ON]


def markdown(made: dict[str, Any]) -> str:
    """The page parity_faults.md, from the JSON alone."""
    return "\n".join([*_caught(made), *_clean(made), *_by_fault(made["seeds"])]) + "\n"


def _caught(made: dict[str, Any]) -> list[str]:
    groups = [("all seeds", made["summary"])]
    if made.get("independent"):
        groups.append(("without " + ", ".join(map(str, CHOSEN_ON)), made["independent"]))
    lines = [
        "# Which faults gptoss-parity sees",
        "",
        "Written by `bench/parity_faults.py` from `parity_faults.json`. Per seed new weights and new prompts; "
        "fault and noise in the same run. The checkpoints",
        "are `p1` and `p2` of `gptoss-convert new`, head_dim 32. The rules were chosen on seeds "
        f"{', '.join(map(str, CHOSEN_ON))}; the others are independent of them.",
        "",
        f"| worst seed, caught of {len(all_faults())} | seeds | {' | '.join(TIERS)} | p1 and p2 in bfloat16 together |",
        "|---|" + "---|" * (len(TIERS) + 2),
    ]
    for name, s in groups:
        lines.append(
            f"| {name} | {s['seeds']} | {' | '.join(str(s['worst_caught'][t]) for t in TIERS)} | "
            f"{s['worst_p1_and_p2_forced_bfloat16']} |"
        )
        lines.append(
            f"| {name}, by the error's size alone | {s['seeds']} | "
            f"{' | '.join(str(s['worst_caught_by_excess_alone'][t]) for t in TIERS)} | |"
        )
    return lines


def _clean(made: dict[str, Any]) -> list[str]:
    whole = made["summary"]
    op = min(s["op_level_clamp_glu_both"] for s in made["seeds"])
    return [
        "",
        f"Clean runs of the same noise: {whole['clean_runs']}, false alarms: {whole['false_alarms']}; the "
        "control (a change without effect) was reported "
        f"{whole['control_reported']} times.",
        f"`clamp_glu_both` is seen by its op-level probe in every seed (smallest difference {op:.3g}).",
    ]


def _by_fault(seeds: list[dict[str, Any]]) -> list[str]:
    lines = [
        "",
        "Each cell: the smallest excess over the noise of any seed (above 10 the error's size speaks), and in "
        "how many seeds the fault was caught, by size or by",
        "direction (the least-squares amount of the fault's effect in the error).",
        "",
        f"| | fault | what | {' | '.join(TIERS)} |",
        "|---|---|---|" + "---|" * len(TIERS),
    ]
    for fault in all_faults().values():
        lines.append(
            f"| {fault.number} | `{fault.name}` | {fault.what} | "
            f"{' | '.join(_cell(seeds, t, fault.name) for t in TIERS)} |"
        )
    return lines


def _cell(seeds: list[dict[str, Any]], tier: str, fault: str) -> str:
    runs = [s["tiers"][tier]["faults"][fault] for s in seeds if fault in s["tiers"][tier]["faults"]]
    if not runs:
        return "does not apply"
    least, caught = min(r["excess"] for r in runs), sum(r["caught"] for r in runs)
    return f"{least:.2g}, {'all' if caught == len(runs) else f'**{caught} of {len(runs)}**'}"


def write(about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    made = {
        "about": about,
        "summary": summary(rows),
        "independent": summary(independent(rows)) if independent(rows) else None,
        "seeds": rows,
    }
    RESULTS.write_text(json.dumps(made, indent=1) + "\n")
    TABLE.write_text(markdown(made))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("--seeds", 10), ("--first", 0), ("--clean", 7)):
        parser.add_argument(name, type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    old = json.loads(RESULTS.read_text())["seeds"] if RESULTS.exists() else []
    seeds = {s["seed"]: s for s in old}
    about = {"torch": torch.__version__, "cpu": platform.machine(), "threads": 1}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.first, args.first + args.seeds):
            seeds[seed] = one_seed(seed, Path(folder), args.clean)
            write(about, [seeds[s] for s in sorted(seeds)])
    write(about, [seeds[s] for s in sorted(seeds)])


if __name__ == "__main__":
    main()
