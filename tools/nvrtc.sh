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
    command -v python3 >/dev/null 2>&1 || { echo "python3 is missing: it fetches NVRTC from PyPI" >&2; exit 2; }
    mkdir -p target
    new=$(mktemp -d target/nvrtc-XXXXXX)
    trap 'rm -rf "$new"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$new" "nvidia-cuda-nvrtc==$version" >&2
    python3 -m zipfile -e "$new"/*.whl "$new/wheel"
    rm -rf "$here"
    mv "$new/wheel/nvidia/cu13/lib" "$here"
fi
echo "$here"
