# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # Variables that the other files of the script give and use.
# The parts of each mode, the most telling first. Their limits are upper ones: the call's own time ends them earlier.

# Checks whether the kernels are right, and what a step takes for a start.
diagnose() {
    card
    # Fills its compiler's cache while the tests run; what it measures counts for nothing.
    if has_peer; then
        # shellcheck disable=SC2016 # The inner shell's.
        start torch_compile 170 nice bash -c 'cache=$1; shift; "$@" && tar -C "$cache" -I "xz -3 -T4" -cf "$cache.tar.xz" .' _ "$work/torch" \
            "${peer[@]}" bench --batch 256 --device cuda --bf16 --compile --steps 1 --warmup 0 || true
    else
        absent torch_compile "the pack holds no PyTorch peer"
    fi
    part tile_tests 40 "${checked[@]}" "$pack/tile-tests" --test-threads 1
    kernel_tests
    part product_tests 60 "${checked[@]}" "$pack/product-tests" --test-threads 1 --nocapture
    fixtures
    part bench_ops 40 "${engine[@]}" bench ops --preset saip-vit-tiny --batch 256 --device cuda --repeats 5 --tune off --json "${kernels[@]}"
    part step_own 25 "${engine[@]}" bench step "${vit[@]}" --gemm own --tune off --json "${kernels[@]}"
    part step_tuned 40 "${engine[@]}" bench step "${vit[@]}" --tune "$tuner" --json "${kernels[@]}"
    part interpreter_against_hardware 60 "${checked[@]}" "$pack/hardware-tests" --test-threads 1 --nocapture
    sanitizer memcheck 45
    if [ -z "$listing" ]; then await torch_compile; fi
}

# What later calls need of this one.
diagnose_end() {
    local packed=$work/torch.tar.xz
    [ -n "$(ls -A "$work/torch")" ] || return 0
    # Where it was cut, even a part of it saves time later.
    if grep -q $'^torch_compile\t[^0]' "$work/results/parts.tsv"; then
        timeout -k 1 3 tar -C "$work/torch" -I 'xz -3 -T0' -cf "$packed" . || return 0
    fi
    [ -s "$packed" ] || return 0
    if [ "$(size "$packed")" -gt $((16 << 20)) ]; then
        echo "gpu_check: PyTorch's cache is larger than 16 MiB ($(mib "$(size "$packed")")) and stays here" >&2
    else
        keep torch-cache.tar.xz "$packed"
    fi
}

# Tells where the time goes.
profile() {
    local preset
    card
    for preset in "${presets[@]}"; do
        part "bench_ops.$preset" 35 "${engine[@]}" bench ops --preset "$preset" --batch 256 --device cuda --tune "$tuner" --json "${kernels[@]}"
    done
    # One launch of each, then products: 3 to 6 are a block's (queries, residual, GELU, residual), 300 to 303 the
    # gradients' with respect to inputs and weights.
    counters ncu.kernels saip-vit-tiny '::regex:^(attention_resident|attention_resident_backward|layer_norm_backward|gemm|chunk_sums|chunk_gradient|adamw)$:1'
    counters ncu.products saip-vit-tiny '::gemm_sm90:3|4|5|6|300|301|302|303'
    counters ncu.windows saip-tinyvit-5m '::regex:^window_attention(_backward)?$:1'
    sanitizer racecheck 45
}

profile_end() { :; }

# Measures in turn with PyTorch, nothing beside it.
publish() {
    local round kind
    card
    for round in 1 2; do
        step "$round" saip-vit-tiny
        torch "$round" eager vit-tiny
    done
    for kind in tinyvit-5m starnet-s3; do
        step 1 "saip-$kind"
        torch 1 eager "$kind"
    done
    # shellcheck disable=SC2016 # The inner shell's.
    # Stopped as a user would stop it, and then it has to end in order.
    part train 25 bash -c 'status=0; timeout -s INT -k 6 15 "$@" || status=$?; [ $status = 124 ] || exit $status' _ \
        "${engine[@]}" train --preset saip-vit-tiny --device cuda --tune "$tuner" --out "$work/train" \
        --set optim.batch=256 --set optim.effective_batch=256 "${kernels[@]}"
    # Last, with all the time that is left: its compiler takes longer than three minutes where its cache is empty.
    torch 1 compiled vit-tiny --compile
}

# Result files in the form of benches/results, one for each command with its rounds.
publish_end() {
    local first name preset
    for preset in "${presets[@]}"; do
        name=${preset#saip-}
        for first in "step.$name" "eager.$name" "compiled.$name"; do
            report result "$work/results" "$pack/about.json" "$first" >"$work/results/new.json" 2>/dev/null || continue
            mv "$work/results/new.json" "$work/results/$(card_name)-${first/./-}.result.json"
        done
    done
    rm -f "$work/results/new.json"
}

vit=(--preset saip-vit-tiny --batch 256 --device cuda --dtype bf16)

# step ROUND PRESET
step() {
    part "step.${2#saip-}.$1" 30 "${engine[@]}" bench step --preset "$2" --batch 256 --device cuda --dtype bf16 --steps 20 --tune "$tuner" --json "${kernels[@]}"
}

# torch ROUND HOW CASE [FLAG]
torch() {
    if has_peer; then
        part "$2.$3.$1" $([ "$2" = compiled ] && echo 300 || echo 40) "${peer[@]}" bench --case "$3" --batch 256 --device cuda --bf16 --steps 20 "${@:4}"
    else
        absent "$2.$3.$1" "the pack holds no PyTorch peer"
    fi
}

has_peer() {
    [ -n "$listing" ] || [ -f "$pack/saip_reference.py" ]
}

# The card and what is installed: which machine gave the figures.
card() {
    # shellcheck disable=SC2016
    part card 20 bash -c '"$@" info
if ! command -v nvidia-smi >/dev/null; then echo "error: nvidia-smi is missing: the card cannot be named"; exit 1; fi
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu --format=csv
nvidia-smi | grep CUDA
python3 -c "from importlib.metadata import version as v; print(\"torch\", v(\"torch\"), \"timm\", v(\"timm\"))" || true' _ "${engine[@]}"
}

# For file names: h200, h100.
card_name() {
    local name
    name=$(report card "$work/results") || true
    if [[ ${name,,} =~ [a-z]*[0-9][0-9a-z]* ]]; then echo "${BASH_REMATCH[0]}"; else echo gpu; fi
}

# One process a family of kernels: after an illegal address the rest of a process fails, too.
kernel_tests() {
    local family names
    group kernel_tests || return 0
    while IFS=$'\t' read -r family names; do
        # shellcheck disable=SC2086 # Names of tests are words.
        member "kernel_tests.${family#cu_}" 60 "${checked[@]}" "$pack/kernel-tests" --test-threads 1 --exact $names
    done < <("${checked[@]}" "$pack/kernel-tests" --list 2>/dev/null | awk '
        # The families are the modules that are named after a file of kernels/; the rest needs no GPU.
        /^cu_.*: test$/ {
            sub(/: test$/, ""); family = $0; sub(/::.*/, "", family)
            if (!(family in names)) order[++count] = family
            names[family] = names[family] " " $0
        }
        END { for (i = 1; i <= count; i++) print order[i] "\t" names[order[i]] }')
    group_end
}

# ViT first: if that is wrong, so is all the rest.
fixtures() {
    local dtype fixture
    group verify || return 0
    for dtype in f32 bf16; do
        for fixture in tests/fixtures/vit-*.safetensors tests/fixtures/[!v]*.safetensors; do
            [ -f "$fixture" ] || continue
            member "verify.$(basename "$fixture" .safetensors).$dtype" 30 "${engine[@]}" verify "$fixture" --device cuda --dtype "$dtype" --tune off "${kernels[@]}"
        done
    done
    group_end
}

# sanitizer TOOL LIMIT
sanitizer() {
    if [ -n "$listing" ] || command -v compute-sanitizer >/dev/null; then
        # The engine asks for a kernel's parameters until there is none, which is an error of the driver's but no fault, and
        # looks at every status itself.
        part "$1" "$2" "${ours[@]}" compute-sanitizer --tool "$1" --report-api-errors no --error-exitcode 3 "$pack/saip-engine" \
            bench step --preset demo --batch 2 --steps 1 --warmup 0 --device cuda --dtype bf16 --tune off "${kernels[@]}"
    else
        absent "$1" "compute-sanitizer is not installed"
    fi
}

# counters NAME PRESET KERNELS: at a quarter of the batch, since what a kernel writes is put back for every pass.
counters() {
    local ncu
    ncu=$(command -v ncu || compgen -G '/opt/nvidia/nsight-compute/*/ncu' | tail -n 1) || true
    if [ -n "$listing" ] || [ -n "$ncu" ]; then
        part "$1" 45 "${ours[@]}" "${ncu:-ncu}" --csv --page raw --clock-control none --kernel-id "$3" \
            --section SpeedOfLight --section LaunchStats --section Occupancy --section MemoryWorkloadAnalysis --section WarpStateStats \
            "$pack/saip-engine" bench step --preset "$2" --batch 64 --steps 1 --warmup 0 --device cuda --dtype bf16 --tune off "${kernels[@]}"
    else
        absent "$1" "ncu is not installed"
    fi
}
