#!/usr/bin/env bash
# Prints the folder of libnvrtc.so.13, NVIDIA's compiler for kernels, which needs no GPU: to be put on LD_LIBRARY_PATH.
# Where it is not installed, the package nvidia-cuda-nvrtc is fetched from PyPI into target/ (90 MB, once).
set -euo pipefail
cd "$(dirname "$0")/.."
version=13.0.88
here=$PWD/target/nvrtc-$version

installed=$(ldconfig -p 2>/dev/null | awk '/libnvrtc\.so\.13 /{print $NF; exit}') || true
if [ -n "$installed" ]; then dirname "$installed"; exit; fi
if [ ! -e "$here/libnvrtc.so.13" ]; then
    bash tools/wheel.sh NVRTC "nvidia-cuda-nvrtc==$version" nvidia/cu13/lib "$here"
fi
echo "$here"
