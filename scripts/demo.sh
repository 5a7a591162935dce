#!/bin/sh
# The main job on the embedded pocket checkpoint: make it, convert it, account for every byte, run it, parse its answer, and
# judge whether llama.cpp runs the same model.
set -eu
BIN=${BIN:-.venv/bin}
OUT=${OUT:-demo-out}
mkdir -p "$OUT"

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
say() { step "\$ $*"; "$BIN/$@"; }

say gptoss-convert new pocket -o "$OUT/pocket" --force
say gptoss-convert to-gguf "$OUT/pocket" -o "$OUT/pocket.gguf" --force
say gptoss-convert verify "$OUT/pocket" "$OUT/pocket.gguf"
say gptoss-chat "$OUT/pocket.gguf" "What is 2 + 2?" --backend llama_server --date 2026-01-01
say gptoss-chat "$OUT/pocket.gguf" "What is the weather in Paris?" --backend llama_server --date 2026-01-01 \
    --tools recipes/weather_tool.json
say gptoss-parity run "$OUT/pocket" --target "llama_server=$OUT/pocket.gguf" -o "$OUT/parity"
step "The report: $OUT/parity/report.html"
