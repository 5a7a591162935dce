"""Makes tests/data/gguf_references: transformers' fp32 logits of the odd-shape preset, with rounded and with exact YaRN
bounds.

python scripts/make_gguf_references.py        # needs transformers; run from the repository root
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gptoss_adapters.backends import open_backend
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write

OUT = Path("tests/data/gguf_references")
PRESET, SEED, TOKENS = "odd-shape", 0, 96


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    ids = np.random.RandomState(0).randint(0, 1000, TOKENS)
    logits = {}
    with tempfile.TemporaryDirectory() as folder:
        write(plan_new(PRESET, Path(folder), seed=SEED))
        for truncate in (True, False):
            with open_backend("transformers", folder, truncate=truncate) as backend:
                logits[f"trunc_{str(truncate).lower()}"] = np.asarray(backend.logits(ids), np.float32)
                info = backend.info
    np.savez_compressed(OUT / f"{PRESET}.npz", ids=ids, **logits)
    provenance = {
        "made by": "scripts/make_gguf_references.py",
        "preset": PRESET,
        "seed": SEED,
        "engine": info.version,
        "settings": {**info.settings, "truncate": "True and False"},
        "numpy": version("numpy"),
        "ids": f"numpy.random.RandomState(0).randint(0, 1000, {TOKENS})",
    }
    (OUT / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


if __name__ == "__main__":
    main()
