#!/usr/bin/env bash
# Checks and measures the engine on a machine with an NVIDIA GPU that has neither Rust nor a network.
#   pack      builds here; puts stripped binaries, fixtures and the PyTorch peer into gpu_check/ (at most 60 MB)
#   run OUT   there: every part under its own limit of time (530 seconds in all); goes on after a failure, ends with one
#             table, leaves JSON and logs in OUT
# The PyTorch peer is the reference implementation of a step: name it with REFERENCE=path/to/saip_reference.py.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=gpu_check

pack() {
    local name path reference=${REFERENCE:-../shared/reference/saip_reference.py}
    cargo build --release
    rm -rf "$pack"
    mkdir -p "$pack/fixtures"
    cp target/release/saip-engine "$pack/saip-engine"
    cargo test --release --test cuda --test gemm_tiles --test hardware --no-run --message-format=json 2>/dev/null |
        python3 -c 'import json, sys
names = {"cuda": "kernel-tests", "gemm_tiles": "tile-tests", "hardware": "hardware-tests"}
for line in sys.stdin:
    m = json.loads(line)
    if m.get("executable") and m["target"]["name"] in names: print(names[m["target"]["name"]], m["executable"])' |
        while read -r name path; do cp "$path" "$pack/$name"; done
    strip "$pack/saip-engine" "$pack"/*-tests
    # What the interpreter's tests run, with what it made of it.
    PTX_VM_RECORD=$PWD/$pack/instructions cargo test --release --package ptx-vm --test instructions --test warp >/dev/null
    cp tests/fixtures/*.safetensors "$pack/fixtures/"
    [ -f "$reference" ] && cp "$reference" "$pack/saip_reference.py" || echo "no PyTorch peer at $reference" >&2
    du -sm "$pack" | awk '{print $1 " MB in " $2; exit $1 > 60}'
}

# Folders in which CUDA's libraries lie: the toolkit's, and those of Python packages.
libraries() {
    ls -d /usr/local/cuda*/lib64 2>/dev/null || true
    python3 - <<'PY' 2>/dev/null || true
import glob, site, sys
for root in site.getsitepackages() + [site.getusersitepackages()]:
    for path in glob.glob(root + "/nvidia/*/lib"): print(path)
PY
}

rows=()
# part NAME SECONDS COMMAND...: its output goes to OUT/NAME.log, its JSON lines to OUT/NAME.json.
part() {
    local name=$1 limit=$2 began=$SECONDS status=0 state
    shift 2
    printf '== %s\n' "$name"
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
    case $status in 0) state=ok ;; 124) state=TIMEOUT ;; *) state="FAILED ($status)" ;; esac
    grep '^[{[]' "$out/$name.log" >"$out/$name.json" || rm -f "$out/$name.json"
    rows+=("$name|$state|$((SECONDS - began))|$(tail -n 1 "$out/$name.log" | cut -c1-100)")
    printf '%s\n' "$state"
}

skip() {
    rows+=("$1|skipped|0|$2")
}

run() {
    out=$1
    mkdir -p "$out"
    local engine=$pack/saip-engine dtype round
    LD_LIBRARY_PATH=$(libraries | paste -sd:)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH SAIP_ENGINE_CACHE="$out/cache"
    part info 10 "$engine" info
    part kernel_tests 60 env SAIP_ENGINE_TEST_DEVICE=cuda "$pack/kernel-tests" --skip every_variant --test-threads 8
    part tile_tests 20 env SAIP_ENGINE_TEST_DEVICE=cuda "$pack/tile-tests" --test-threads 1
    part interpreter_against_hardware 50 env SAIP_ENGINE_TEST_DEVICE=cuda SAIP_ENGINE_PTX_RECORDS="$pack/instructions" \
        "$pack/hardware-tests" --test-threads 1 --nocapture
    for dtype in f32 bf16; do
        part verify_$dtype 40 "$engine" verify "$pack"/fixtures/*.safetensors --device cuda --dtype $dtype
    done
    if command -v compute-sanitizer >/dev/null; then
        part sanitizer 30 compute-sanitizer --error-exitcode 3 "$engine" bench step --preset demo --batch 2 --steps 1 --warmup 0 --device cuda --dtype bf16
    else
        skip sanitizer "compute-sanitizer is not installed"
    fi
    part bench_ops 70 "$engine" bench ops --preset saip-vit-tiny --batch 256 --device cuda --json
    for round in 1 2; do
        part "bench_step_$round" 20 "$engine" bench step --preset saip-vit-tiny --batch 256 --device cuda --dtype bf16 --json
        if [ -f "$pack/saip_reference.py" ]; then
            part "pytorch_$round" 25 python3 "$pack/saip_reference.py" bench --batch 256 --device cuda --bf16
        else
            skip "pytorch_$round" "the pack holds no PyTorch peer"
        fi
    done
    if [ -f "$pack/saip_reference.py" ]; then
        part pytorch_compile 60 python3 "$pack/saip_reference.py" bench --batch 256 --device cuda --bf16 --compile
    fi
    # One round: where they stand, not how much they vary.
    for encoder in tinyvit-5m starnet-s3; do
        part "bench_step_$encoder" 20 "$engine" bench step --preset saip-$encoder --batch 256 --device cuda --dtype bf16 --json
        if [ -f "$pack/saip_reference.py" ]; then
            part "pytorch_$encoder" 25 python3 "$pack/saip_reference.py" bench --case $encoder --batch 256 --device cuda --bf16
        fi
    done
    part train 30 "$engine" train --preset demo --device cuda --out "$out/train" --set optim.steps=400
    rm -rf "$out/cache" "$out/train/checkpoints"
    printf '\n| part | result | seconds | last line |\n|---|---|---|---|\n'
    printf '%s\n' "${rows[@]}" | awk -F'|' '{printf "| %s | %s | %s | %s |\n", $1, $2, $3, $4}' | tee "$out/table.md"
    ! printf '%s\n' "${rows[@]}" | grep -q 'FAILED\|TIMEOUT'
}

case ${1:-} in
pack) pack ;;
run) run "${2:?run needs a folder for what it measures}" ;;
*)
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
