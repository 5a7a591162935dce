#!/bin/sh
# The test suite in parts, with the time that each one took; stops at the end with failure if any part failed.
set -u
BIN=${BIN:-.venv/bin}
status=0
spend=""
part() {
    name=$1; shift
    start=$(date +%s)
    "$BIN/pytest" -q -m "not slow" "$@" || status=1
    spend="$spend$name $(( $(date +%s) - start )) s\n"
}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
part harmony tests/harmony
part core tests --ignore=tests/harmony
printf "\nspend per part:\n$spend"
exit $status
