"""How well gptoss-parity sees: the 41 seeded faults over seeds and tiers, and false alarms on clean runs -> results/parity_faults.json.

    python bench/parity_faults.py [--seeds 10] [--first 0] [--clean 20]

Per seed, new weights and new prompts: P1 in float32, P1 in bfloat16, P2 in bfloat16 with forced routing; fault and noise in the
same run. Runs of several seeds add to the file. One thread.
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
from gptoss_adapters.checkpoint.synthetic import plan_new
from gptoss_adapters.checkpoint.writer import write
from gptoss_adapters.parity.campaign import Campaign, op_level_gate
from gptoss_adapters.parity.faults import CONTROL, all_faults
from gptoss_adapters.parity.nulls import Noise

RESULTS = Path(__file__).parent / "results" / "parity_faults.json"
TIERS = {"p1 float32": ("p1", Noise(), False), "p1 bfloat16": ("p1", Noise("bfloat16"), False), "p2 bfloat16 forced": ("p2", Noise("bfloat16"), True)}


def made(preset: str, seed: int, folder: Path) -> Checkpoint:
    if not (folder / f"{preset}-{seed}").exists():
        write(plan_new(preset, folder / f"{preset}-{seed}", seed=seed), sync=False)
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
            "faults": {o.fault: {"excess": float(f"{o.excess:.4g}"), "coefficient": round(o.coefficient, 4), "caught": o.caught} for o in runs},
        }
        both = all_faults()["clamp_glu_both"]
        out["op_level_clamp_glu_both"] = op_level_gate(campaign.reference.model, both.broken(campaign.reference.model))
        print(seed, tier, {k: out["tiers"][tier][k] for k in ("caught", "caught_by_excess_alone", "missed", "false_alarms", "control")}, flush=True)
    return out


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    tiers = {t: [s["tiers"][t] for s in seeds] for t in TIERS}
    worst = {t: min(x["caught"] for x in xs) for t, xs in tiers.items()}
    both = min(len(set(s["tiers"]["p1 bfloat16"]["faults"]) - (set(s["tiers"]["p1 bfloat16"]["missed"]) & set(s["tiers"]["p2 bfloat16 forced"]["missed"]))) for s in seeds)
    return {
        "seeds": len(seeds), "worst_caught": worst, "worst_caught_by_excess_alone": {t: min(x["caught_by_excess_alone"] for x in xs) for t, xs in tiers.items()},
        "worst_p1_and_p2_forced_bfloat16": both, "clean_runs": sum(x["clean_runs"] for xs in tiers.values() for x in xs),
        "false_alarms": sum(len(x["false_alarms"]) for xs in tiers.values() for x in xs),
        "control_reported": sum(x["control"] for xs in tiers.values() for x in xs),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("--seeds", 10), ("--first", 0), ("--clean", 7)):
        parser.add_argument(name, type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    old = json.loads(RESULTS.read_text())["seeds"] if RESULTS.exists() else []
    seeds = {s["seed"]: s for s in old}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.first, args.first + args.seeds):
            seeds[seed] = one_seed(seed, Path(folder), args.clean)
            rows = [seeds[s] for s in sorted(seeds)]
            about = {"torch": torch.__version__, "cpu": platform.machine(), "threads": 1}
            RESULTS.write_text(json.dumps({"about": about, "summary": summary(rows), "seeds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
