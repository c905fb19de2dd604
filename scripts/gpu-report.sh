#!/usr/bin/env bash
# Runs everything that needs a GPU, once, and writes what came out to FILE: device, versions, tests of the CUDA kernels,
# their times. Needs cargo and python3; where there is no GPU the report says so. Fails if a test fails.
#
#   scripts/gpu-report.sh [FILE]        by default cuda-report.txt
set -uo pipefail
cd "$(dirname "$0")/.."

if [ $# -gt 1 ]; then
    echo "usage: $0 [FILE]" >&2
    exit 2
fi
report=${1:-cuda-report.txt}
failed=0

section() {
    printf '\n== %s\n' "$1"
}

# A command's output and, if it is not 0, its exit status.
run() {
    "$@" 2>&1
    local status=$?
    if [ $status -ne 0 ]; then echo "exit status $status: $*"; fi
    return $status
}

nvrtc=$(scripts/nvrtc.sh "${CARGO_TARGET_DIR:-target}/nvrtc") || exit 1
eval "$nvrtc"
export CARGO_TERM_COLOR=never FINEGRAIN_REQUIRE_NVRTC=1
: >"$report" || exit 1

{
    echo "finegrain on a GPU, $(date -u +%Y-%m-%dT%H:%MZ)"
    section "machine"
    uname -srm
    if command -v nvidia-smi >/dev/null; then
        run nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total,clocks.max.sm,clocks.max.mem,power.limit \
            --format=csv
    else
        echo "nvidia-smi is not there"
    fi
    section "versions"
    rustc --version
    echo "finegrain $(git describe --always --dirty 2>/dev/null || echo 'without git')"
    section "tests"
    run cargo test --release --features cuda --test cuda -- --nocapture || failed=1
    section "times"
    run cargo bench --features cuda --bench cuda || failed=1
    section "result"
    if [ $failed -eq 0 ]; then echo "no failure"; else echo "something failed, see above"; fi
} | tee -a "$report"

# The braces ran in a process of their own: its word is in the report.
grep -q '^no failure$' "$report"
