"""What OpenAI's own writer makes of seed-made checkpoints, as hashes: tests/data/metal_references/references.json.

    pip download --no-deps --ignore-requires-python gpt-oss==0.0.9 -d WHEELS && unzip WHEELS/gpt_oss-*.whl -d PACKAGE
    python scripts/make_metal_references.py PACKAGE [--large]

The script in the wheel needs torch, tiktoken, openai-harmony and tqdm; the vocabulary is ours, put where tiktoken looks
for it. `--large` also makes the 2-layer 20b-shape (3.6 GB twice).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from gptoss_harmony.vocabulary import published_file

from gptoss_adapters.checkpoint.formats.shards import plan_checkpoint
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.synthetic.checkpoints import SeedMade, plan_new
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.spec import GptOssConfig

OUT = Path(__file__).parents[1] / "tests" / "data" / "metal_references" / "references.json"
VOCABULARY_URL = (
    "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"  # its hash is the cached file's name
)
ODD_METAL = GptOssConfig(
    num_hidden_layers=2,
    num_experts=5,
    hidden_size=96,
    intermediate_size=160,
    num_attention_heads=16,
    num_key_value_heads=2,
    sliding_window=16,
)


def make(name: str, folder: Path, kind: str = Kind.OPENAI) -> Path:
    """The checkpoint of a reference: pocket, odd (hidden != intermediate, five experts) or 20b-2."""
    folder.mkdir()
    if name == "odd":
        write(plan_checkpoint(SeedMade(ODD_METAL, 0), kind, folder, {}, "odd"), sync=False)
    else:
        write(
            plan_new(
                "20b-shape" if name == "20b-2" else name, folder, kind=kind, layers=2 if name == "20b-2" else None
            ),
            sync=False,
        )
    return folder


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("package", type=Path)
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    known = (
        json.loads(OUT.read_text())
        if OUT.exists()
        else {"writer": "gpt-oss 0.0.9, gpt_oss/metal/scripts/create-local-model.py", "files": {}}
    )
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name in ("o200k_base.tiktoken", hashlib.sha1(VOCABULARY_URL.encode()).hexdigest()):
            (root / name).write_bytes(published_file())
        env = {**os.environ, "TIKTOKEN_CACHE_DIR": scratch, "TIKTOKEN_ENCODINGS_BASE": scratch}
        script = arguments.package / "gpt_oss" / "metal" / "scripts" / "create-local-model.py"
        for name in ("pocket", "odd", *(["20b-2"] if arguments.large else [])):
            source, out = make(name, root / name), root / f"{name}.bin"
            subprocess.run([sys.executable, str(script), "-s", str(source), "-d", str(out)], env=env, check=True)
            known["files"][name] = {"bytes": out.stat().st_size, "sha256": sha256(out)}
            out.unlink()
    OUT.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
