#!/bin/sh
# The test suite in parts, with the time that each one took; stops at the end with failure if any part failed.
set -u
BIN=${BIN:-.venv/bin}
BIN_VLLM=${BIN_VLLM:-.venv-vllm/bin}
status=0
spend=""
part() {
    name=$1; bin=$2; shift 2
    start=$(date +%s)
    "$bin/pytest" -q -m "not slow" "$@" || status=1  # 5, nothing ran, is a failure too
    spend="$spend$name $(( $(date +%s) - start )) s\n"
}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
part harmony "$BIN" tests/harmony
part core "$BIN" tests --ignore=tests/harmony --ignore=tests/vllm_plugin --ignore=tests/parity --ignore=tests/serve
[ -d tests/parity ] && part parity "$BIN" tests/parity
[ -d tests/serve ] && part serve "$BIN" tests/serve
part vllm "$BIN_VLLM" tests/vllm_plugin  # vLLM's pins need an environment of their own
printf "\nspend per part:\n$spend"
exit $status
