#!/usr/bin/env bash
# Installs what the tests need (a Rust toolchain, NVRTC and ONNX Runtime, when there are none) and runs all of them:
# formatting, lints, unit and integration tests. Needs network access the first time, no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

if ! command -v cargo >/dev/null 2>&1; then
    for dir in "${CARGO_HOME:-$HOME/.cargo}/bin" /usr/local/cargo/bin; do
        [ -x "$dir/cargo" ] && PATH="$dir:$PATH"
    done
fi
if ! command -v cargo >/dev/null 2>&1; then
    command -v curl >/dev/null 2>&1 || { echo "cargo is missing: install Rust from https://rustup.rs" >&2; exit 2; }
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
fi

nvrtc=$(bash tools/nvrtc.sh)
export LD_LIBRARY_PATH=$nvrtc${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# Another one may be chosen, such as on a machine without network access.
if [ -z "${ORT_DYLIB_PATH:-}" ]; then
    ORT_DYLIB_PATH=$(bash tools/onnxruntime.sh)
    export ORT_DYLIB_PATH
fi

# A quarter of a gigabyte that few tests look into: where it cannot be had, they say that they are skipped.
timeout 60 bash tools/nccl.sh fetch >/dev/null 2>&1 || echo "NCCL cannot be fetched: tests of NVIDIA's own library are skipped" >&2

step() { printf '\n== %s\n' "$*"; "$@"; }
if cargo fmt --version >/dev/null 2>&1; then step cargo fmt --check; fi
if cargo clippy --version >/dev/null 2>&1; then step cargo clippy --workspace --all-targets --quiet -- -D warnings; fi
step cargo test --workspace --no-fail-fast "$@"
