"""Run as a program: a vLLM engine in processes of its own, told by arguments; prints the generated ids and the
logprobs as JSON.
"""

from __future__ import annotations

import json
import sys

if __name__ == "__main__":
    from helpers import vllm_engine as engine

    path, options, prompts = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    scored = engine.score(engine.load(path, **options), prompts)
    print("RESULT " + json.dumps([{"logprobs": table.tolist(), "ids": new} for table, new in scored]))
