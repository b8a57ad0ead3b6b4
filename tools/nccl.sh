#!/usr/bin/env bash
# Prints the path of libnccl.so.2, NVIDIA's library that sums between GPUs, in which tests look symbols and texts up: it loads
# without a GPU. Only with the argument `fetch` is it fetched from PyPI into target/ (220 MB, once); else nothing is printed where
# it was not.
set -euo pipefail
cd "$(dirname "$0")/.."
version=2.30.7
here=$PWD/target/nccl-$version
library=$here/libnccl.so.2

if [ ! -e "$library" ]; then
    [ "${1:-}" = fetch ] || exit 0
    command -v python3 >/dev/null 2>&1 || { echo "python3 is missing: it fetches NCCL from PyPI" >&2; exit 2; }
    mkdir -p target
    new=$(mktemp -d target/nccl-XXXXXX)
    trap 'rm -rf "$new"' EXIT
    # The library in the wheel is the same for every Python.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$new" "nvidia-nccl-cu13==$version" >&2
    python3 -m zipfile -e "$new"/*.whl "$new/wheel"
    rm -rf "$here"
    mv "$new/wheel/nvidia/nccl/lib" "$here"
fi
echo "$library"
