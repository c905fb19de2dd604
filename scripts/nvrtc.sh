#!/usr/bin/env bash
# Installs CUDA's run-time compiler, disassembler and headers under DIR, from PyPI by name, and prints the export lines
# that let cargo find them. Needs python3; nothing else of CUDA, and no GPU.
#
#   eval "$(scripts/nvrtc.sh target/nvrtc)"
set -euo pipefail

version=13.5.37
packages=(nvidia-cuda-nvrtc nvidia-cuda-nvdisasm nvidia-cuda-runtime)

if [ $# -ne 1 ]; then
    echo "usage: eval \"\$($0 DIR)\"" >&2
    exit 2
fi
mkdir -p "$1"
dir=$(cd "$1" && pwd)

# The marker is written last: an interrupted installation is done again.
marker=$dir/installed-$version
if [ ! -f "$marker" ]; then
    {
        rm -rf "$dir/venv"
        python3 -m venv "$dir/venv"
        "$dir/venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]/%/==$version}"
        touch "$marker"
    } >&2
fi

root=$(echo "$dir"/venv/lib/python3*/site-packages/nvidia/cu13)
for file in lib/libnvrtc.so.13 bin/nvdisasm include/cuda.h; do
    if [ ! -e "$root/$file" ]; then
        echo "$root/$file is not there: remove $dir and run this again" >&2
        exit 1
    fi
done

# cudarc looks for the unversioned name; the loader finds libnvrtc-builtins beside it.
ln -sf libnvrtc.so.13 "$root/lib/libnvrtc.so"
printf 'export LD_LIBRARY_PATH=%q${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\n' "$root/lib"
printf 'export FINEGRAIN_NVDISASM=%q\n' "$root/bin/nvdisasm"
printf 'export CUDA_PATH=%q\n' "$root"
