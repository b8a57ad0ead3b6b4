#!/usr/bin/env bash
# Prints the path of ONNX Runtime's library, in which the tests run exported models. It is fetched from PyPI into target/ (30 MB, once).
set -euo pipefail
cd "$(dirname "$0")/.."
version=1.32.0
here=$PWD/target/onnxruntime-$version
library=$here/libonnxruntime.so.$version

if [ ! -e "$library" ]; then
    # Which Python is named does not matter.
    bash tools/wheel.sh "ONNX Runtime" "onnxruntime==$version" onnxruntime/capi "$here" \
        --implementation cp --python-version 3.11 --abi cp311 --platform "manylinux_2_28_$(uname -m)"
fi
echo "$library"
