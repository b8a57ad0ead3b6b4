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
    bash tools/wheel.sh NCCL "nvidia-nccl-cu13==$version" nvidia/nccl/lib "$here"
fi
echo "$library"
