#!/usr/bin/env bash
# Prints the path of nvdisasm, NVIDIA's disassembler, which needs no GPU. Where it is not installed, the package
# nvidia-cuda-nvdisasm is fetched from PyPI into target/ (5 MB, once).
set -euo pipefail
cd "$(dirname "$0")/.."
version=13.2.78
here=$PWD/target/nvdisasm-$version

if command -v nvdisasm >/dev/null 2>&1; then command -v nvdisasm; exit; fi
if [ ! -e "$here/nvdisasm" ]; then
    bash tools/wheel.sh nvdisasm "nvidia-cuda-nvdisasm==$version" nvidia/cu13/bin "$here"
    chmod +x "$here/nvdisasm"
fi
echo "$here/nvdisasm"
