#!/bin/bash
# Runs a static program on an emulated CPU with AVX-512, VBMI, VNNI and BF16, for machines that lack them:
#
#     scripts/avx512.sh --install                    # once: a Python environment under target/avx512 (Python 3, pip, cc)
#     RUSTFLAGS='-C target-feature=+crt-static' cargo test --release --target x86_64-unknown-linux-gnu --no-run
#     scripts/avx512.sh [--limit SECONDS] PROGRAM [ARGUMENT...]
#
# The program gets this environment and its exit status is this script's; 124 says that the limit (600 s) was reached.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
emulator=${CARGO_TARGET_DIR:-$here/../target}/avx512

if [ "${1:-}" = --install ]; then
    python3 -m venv "$emulator"
    "$emulator/bin/pip" install --quiet --no-deps bochscpu-python==0.4.0
    # The package is built against C library 2.38, whose names for these two functions older ones lack.
    printf '%s\n' '.globl __isoc23_sscanf, __isoc23_strtoull' '__isoc23_sscanf: jmp __isoc99_sscanf@plt' \
        '__isoc23_strtoull: jmp strtoull@plt' '.section .note.GNU-stack,"",@progbits' |
        cc -shared -x assembler - -o "$emulator/names.so"
    exit
fi
limit=600
if [ "${1:-}" = --limit ]; then
    limit=$2
    shift 2
fi
if [ ! -e "$emulator/names.so" ]; then
    echo "avx512: no emulator yet; run $0 --install (it needs Python 3 with venv and pip, and cc)" >&2
    exit 125
fi
LD_PRELOAD=$emulator/names.so exec timeout "$limit" "$emulator/bin/python" -u "$here/avx512.py" "$@"
