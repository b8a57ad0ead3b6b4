# shellcheck shell=bash
# shellcheck disable=SC2154 # Variables that the other files of the script give and use.
# What travels: one archive beside the tracked files (kernels' sources and fixtures among them).

# Name of each test binary there, by its target here.
declare -A test_names=([cuda]=kernel-tests [gemm_tiles]=tile-tests [hardware]=hardware-tests [products]=product-tests)

pack() {
    local stage=$folder/pack profile=${SAIP_CHECK_PROFILE:-release}
    rm -rf "$stage" "$archive"
    mkdir -p "$stage/cache"
    # The kernels' names in the cache hold NVRTC's version: they stay valid where the same one is installed.
    nvrtc=$(bash tools/nvrtc.sh)
    binaries "$stage" "$profile"
    about "$stage" "$profile"
    cubins "$stage"
    test_kernels "$stage"
    peer "$stage"
    compress "$stage"
}

# Flags of cargo for a profile.
flags() {
    [ "$1" = dev ] || echo "--profile=$1"
}

# binaries STAGE PROFILE
binaries() {
    local stage=$1 profile=$2 target path name output=$2
    if [ -n "${SAIP_CHECK_BIN:-}" ]; then
        for name in saip-engine "${test_names[@]}"; do
            [ -f "$SAIP_CHECK_BIN/$name" ] || die "$SAIP_CHECK_BIN (SAIP_CHECK_BIN) holds no $name"
            cp "$SAIP_CHECK_BIN/$name" "$stage/$name"
        done
        [ ! -d "$SAIP_CHECK_BIN/instructions" ] || cp -r "$SAIP_CHECK_BIN/instructions" "$stage/"
        return
    fi
    [ "$profile" != dev ] || output=debug
    local arguments=(--message-format=json --no-run)
    for target in "${!test_names[@]}"; do
        [ -f "tests/$target.rs" ] || [ -f "tests/$target/main.rs" ] || die "tests/$target.rs is missing: it becomes ${test_names[$target]}"
        arguments+=(--test "$target")
    done
    # shellcheck disable=SC2046 # No flag holds a space.
    cargo build $(flags "$profile")
    # shellcheck disable=SC2046
    cargo test $(flags "$profile") "${arguments[@]}" >"$stage/build.json"
    cp "target/$output/saip-engine" "$stage/saip-engine"
    while read -r target path; do
        cp "$path" "$stage/${test_names[$target]}"
    done < <(python3 - "$stage/build.json" "${!test_names[@]}" <<'PY'
import json, sys
for line in open(sys.argv[1]):
    m = json.loads(line)
    if m.get("executable") and m["target"]["name"] in sys.argv[2:]:
        print(m["target"]["name"], m["executable"])
PY
    )
    rm "$stage/build.json"
    for name in saip-engine "${test_names[@]}"; do strip "$stage/$name"; done
    # What the interpreter's tests run, with what it made of it.
    # shellcheck disable=SC2046
    PTX_VM_RECORD=$PWD/$stage/instructions cargo test $(flags "$profile") --package ptx-vm --test instructions --test warp >/dev/null
}

# about STAGE PROFILE: what is measured, since the other machine has no repository to ask.
about() {
    local dirty=false commit version
    commit=$(git rev-parse --verify --quiet HEAD) || commit=unknown
    # What travels is the working tree, not the commit.
    [ -z "$(git status --porcelain)" ] || dirty=true
    version=$(sed -n '/^version = /{s/.*"\(.*\)"/\1/p;q}' Cargo.toml)
    printf '{"commit": "%s", "dirty": %s, "version": "%s", "profile": "%s"}\n' "$commit" "$dirty" "$version" "$2" >"$1/about.json"
}

# cubins STAGE: every kernel of the presets and the demos.
cubins() {
    local preset
    for preset in "${presets[@]}" demo demo-tinyvit demo-starnet demo-resnet; do
        LD_LIBRARY_PATH=$nvrtc "$1/saip-engine" kernels build --preset "$preset" --target sm_90a --out "$1/cache" ||
            die "the kernels of $preset were not built: see above"
    done
}

# test_kernels STAGE: the tests and fixtures meet a driver that computes nothing, and so compile all they launch. What
# they say of the results does not count, and what is not reached in time is compiled there.
test_kernels() {
    local stage=$1 name fixture dtype driver
    driver=$(stand_in)
    if [ -z "$driver" ]; then
        echo "gpu_check: no stand-in for the driver: the tests' kernels will be compiled there" >&2
        return
    fi
    local beside=(env "LD_LIBRARY_PATH=$driver:$nvrtc" "SAIP_ENGINE_CACHE=$PWD/$stage/cache" SAIP_ENGINE_TEST_DEVICE=cuda)
    for name in tile-tests kernel-tests product-tests; do
        "${beside[@]}" timeout -k 5 240 "$stage/$name" --skip every_variant --skip the_largest >/dev/null 2>&1 || true
    done
    for dtype in f32 bf16; do
        for fixture in tests/fixtures/*.safetensors; do
            "${beside[@]}" timeout -k 5 60 "$stage/saip-engine" verify "$fixture" --device cuda --dtype "$dtype" --tune off >/dev/null 2>&1 || true
        done
    done
}

# The folder of a driver's library that checks calls and computes nothing; nothing where there is none.
stand_in() {
    local output=${SAIP_CHECK_PROFILE:-release} found=$folder/stand-in
    [ -d tools/cuda-stand-in ] && [ -z "${SAIP_CHECK_BIN:-}" ] || return 0
    # shellcheck disable=SC2046 # No flag holds a space.
    cargo build $(flags "$output") --package cuda-stand-in >&2
    [ "$output" != dev ] || output=debug
    mkdir -p "$found"
    # The name that the engine looks for first, and no other: a libcuda.so.1 NVRTC asks for tables that only NVIDIA's has.
    rm -f "$found/libcuda.so.1"
    cp "target/$output/libcuda_stand_in.so" "$found/libcuda.so"
    echo "$PWD/$found"
}

# peer STAGE
peer() {
    local reference=${REFERENCE:-../shared/reference/saip_reference.py}
    if [ -f "$reference" ]; then
        cp "$reference" "$1/saip_reference.py"
    else
        echo "gpu_check: no PyTorch peer at $reference: name it with REFERENCE=FILE" >&2
    fi
}

# size PATH: bytes
size() {
    du -sb "$1" | cut -f1
}

# mib BYTES
mib() {
    awk -v b="$1" 'BEGIN { printf "%.1f MiB", b / 1048576 }'
}

# compress STAGE: the archive, what it is made of, and whether all of it may travel.
compress() {
    local stage=$1 limit=${SAIP_CHECK_LIMIT:-60} entry tree=0 packed
    printf '%-28s %12s\n' "part" "size"
    for entry in "$stage"/*; do
        printf '%-28s %12s\n' "${entry#"$stage/"}" "$(mib "$(size "$entry")")"
    done
    # Blocks are unpacked beside each other.
    tar -C "$stage" -c . | xz -6 -T0 --block-size=16MiB >"$archive"
    rm -rf "$stage"
    packed=$(size "$archive")
    # Untracked files that are not ignored travel, too.
    tree=$(git ls-files -z --cached --others --exclude-standard | du -cb --files0-from=- 2>/dev/null | awk 'END { print $1 + 0 }')
    printf '%-28s %12s\n' "$archive" "$(mib "$packed")" "the tree's files" "$(mib "$tree")" \
        "sum, at most $limit MiB" "$(mib $((packed + tree)))"
    if [ $((packed + tree)) -gt $((limit * 1048576)) ]; then
        rm "$archive"
        die "too large to travel: $(mib $((packed + tree))) of at most $limit MiB. Large files of the tree: git ls-files | xargs du -b | sort -n | tail"
    fi
    cat <<TEXT
There, with the folder $folder/ brought along, and what comes back put into $folder/ in between:
  bash tools/gpu_check.sh run diagnose OUT
  bash tools/gpu_check.sh run profile OUT
  bash tools/gpu_check.sh run publish OUT
TEXT
}
