#!/usr/bin/env bash
# Prints the path of ONNX Runtime's library, in which the tests run exported models. It is fetched from PyPI into target/ (30 MB, once).
set -euo pipefail
cd "$(dirname "$0")/.."
version=1.32.0
here=$PWD/target/onnxruntime-$version
library=$here/libonnxruntime.so.$version

if [ ! -e "$library" ]; then
    command -v python3 >/dev/null 2>&1 || { echo "python3 is missing: it fetches ONNX Runtime from PyPI" >&2; exit 2; }
    mkdir -p target
    new=$(mktemp -d target/onnxruntime-XXXXXX)
    trap 'rm -rf "$new"' EXIT
    # The library in the wheel is the same for every Python; which one is named does not matter.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --implementation cp --python-version 3.11 --abi cp311 --platform "manylinux_2_28_$(uname -m)" \
        --dest "$new" "onnxruntime==$version" >&2
    python3 -m zipfile -e "$new"/*.whl "$new/wheel"
    rm -rf "$here"
    mv "$new/wheel/onnxruntime/capi" "$here"
fi
echo "$library"
