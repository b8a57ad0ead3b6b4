# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # Variables that the other files of the script give and use.
# How parts are run: each in processes of its own, under its own limit and that of the whole call, with results on disk
# after every one of them.

# Seconds of a call, its start and the unpacking included.
declare -A seconds=([diagnose]=200 [profile]=140 [publish]=140)
# Kept back for the last archive.
reserve=5
# With less than this left a part is not begun.
least=3
# Parts of a group that run at a time.
width=4

declare -A running=() limits=() commands=()
listing='' only='' saved=0 failed=0
mode='' out='' work='' pack='' tuner='' ours=() engine=() checked=() peer=() kernels=()

# list MODE: names of parts, none of which is run.
list() {
    [ -n "${seconds[$1]:-}" ] || die "list needs a mode: diagnose, profile or publish"
    listing=1
    "$1"
}

run() {
    local name known
    mode=${1:-} out=${2:-}
    [ -n "${seconds[$mode]:-}" ] || die "run needs a mode: diagnose, profile or publish"
    [ -n "$out" ] || die "run needs a folder for what it measures: gpu_check.sh run $mode OUT"
    shift 2
    local tuner_from=$folder/tuner.json torch_from=$folder/torch-cache.tar.xz
    while [ $# -gt 0 ]; do
        [ -n "${2:-}" ] || die "$1 needs a value"
        case $1 in
        --only) only=$2 ;;
        --kernels) kernels=(--kernels "$2") ;;
        --tuner) tuner_from=$2 ;;
        --torch-cache) torch_from=$2 ;;
        *) die "$1 is not known: see tools/gpu_check.sh" ;;
        esac
        [[ $1 == --only || -e $2 ]] || die "$1 names $2, which is not there"
        shift 2
    done
    known=$(list "$mode")
    for name in ${only//,/ }; do
        is_known "$name" "$known" || die "$mode has no part $name, but ${known//$'\n'/, }"
    done
    listing=''
    deadline=$((${SAIP_CHECK_SECONDS:-${seconds[$mode]}} - reserve))
    prepare
    if [ -z "${SAIP_CHECK_WITHOUT_GPU:-}" ] && ! has_gpu; then
        while read -r name; do
            ! wanted "$name" || row "${name%.\*}" no-gpu
        done <<<"$known"
    else
        "$mode"
        while [ ${#running[@]} -gt 0 ]; do collect; done
        "${mode}_end"
    fi
    save
    cat "$out/table.md" || true
    [ "$failed" = 0 ]
}

# The work folder, the pack in it, and how the engine and its peer are called.
prepare() {
    [ -f "$archive" ] || die "$archive is missing: make it with tools/gpu_check.sh pack"
    mkdir -p "$out"
    work=$(mktemp -d)
    trap stop EXIT
    # Itself instead of a script that looks for it.
    python=$(python3 -c 'import sys; print(sys.executable)')
    trap 'exit 143' TERM INT
    pack=$work/pack
    mkdir -p "$pack" "$work/results" "$work/lib" "$work/torch"
    unpack "$archive" "$pack" || die "$archive cannot be unpacked: make it again with tools/gpu_check.sh pack"
    [ ! -f "$tuner_from" ] || cp "$tuner_from" "$work/tuner.json"
    [ ! -f "$torch_from" ] || unpack "$torch_from" "$work/torch" || echo "gpu_check: $torch_from cannot be unpacked" >&2
    libraries
    # Set for ours alone: PyTorch brings its own of the same names.
    ours=(env "LD_LIBRARY_PATH=$work/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "SAIP_ENGINE_CACHE=$pack/cache")
    engine=("${ours[@]}" "$pack/saip-engine")
    checked=("${ours[@]}" SAIP_ENGINE_TEST_DEVICE=cuda "SAIP_ENGINE_PTX_RECORDS=$pack/instructions")
    peer=(env "TORCHINDUCTOR_CACHE_DIR=$work/torch" PYTHONUNBUFFERED=1 python3 "$pack/saip_reference.py")
    tuner=$work/tuner.json
}

# unpack ARCHIVE FOLDER
unpack() {
    if command -v xz >/dev/null; then
        xz -dc -T0 "$1" | tar -C "$2" -x
    else
        python3 -m tarfile -e "$1" "$2"
    fi
}

# Only the libraries that ours load, wherever the toolkit or a Python package has them: a whole folder of the toolkit's
# would also replace what the profilers bring.
libraries() {
    local path name
    {
        ls -d /usr/local/cuda*/lib64 /usr/local/cuda*/targets/*/lib 2>/dev/null || true
        python3 - <<'PY' 2>/dev/null || true
import glob, site
for root in site.getsitepackages() + [site.getusersitepackages()]:
    for path in glob.glob(root + "/nvidia/*/lib"): print(path)
PY
    } | while read -r path; do
        for name in "$path"/libnvrtc.so.13 "$path"/libnvrtc-builtins.so.13.* "$path"/libcublasLt.so.13; do
            [ ! -e "$name" ] || [ -e "$work/lib/${name##*/}" ] || ln -s "$name" "$work/lib/"
        done
    done
}

# Asked for whole: whoever writes into a pipe that was closed at the first match fails.
has_gpu() {
    local told
    told=$("${engine[@]}" info 2>/dev/null) || true
    [[ $told != *cuda:0* ]] || return 0
    told=$(nvidia-smi -L 2>/dev/null) || true
    [[ $told == *GPU* ]]
}

left() {
    echo $((deadline - SECONDS))
}

# wanted NAME: whether --only names it, its group, or one of it.
wanted() {
    local name=${1%.\*}
    [ -z "$only" ] || [[ ,$only, == *,$name,* ]] || [[ ,$only, == *,${name%%.*},* ]] || [[ $1 == *.\* && ,$only == *,$name.* ]]
}

# is_known NAME PARTS: a part, a group, or one of a group whose members are found out when it runs.
is_known() {
    local part
    while read -r part; do
        [[ $part != "$1" && ${part%%.*} != "$1" && $part != "${1%%.*}.*" ]] || return 0
    done <<<"$2"
    return 1
}

# row NAME STATUS [SECONDS LIMIT COMMAND...]: a line of what the report is made of.
row() {
    local name=$1 status=$2 spent=${3:-0} limit=${4:-0}
    case $status in 0 | absent) ;; *) failed=1 ;; esac
    shift $(($# < 4 ? $# : 4))
    printf '%s\t%s\t%s\t%s\t%s\n' "$name" "$status" "$spent" "$limit" "$*" >>"$work/results/parts.tsv"
}

# start NAME LIMIT COMMAND...: begins a part beside what runs; false if it is not to run.
start() {
    local name=$1 limit=$2 room
    shift 2
    if [ -n "$listing" ]; then
        echo "$name"
        return 1
    fi
    wanted "$name" || return 1
    room=$(left)
    if [ "$room" -lt "$least" ]; then
        row "$name" no-time
        return 1
    fi
    [ "$limit" -le "$room" ] || limit=$room
    limited "$name" "$limit" "$@" &
    running[$!]=$name
    limits[$name]=$limit
    commands[$name]=${*//[$'\n\t']/ }
}

# limited NAME LIMIT COMMAND...: runs it and writes down how it ended. It always ends well itself: bash forgets a child
# that a signal ended, and what it forgot cannot be waited for.
limited() {
    local name=$1 limit=$2 status=0 began=$EPOCHREALTIME
    shift 2
    trap 'kill -TERM "$!" 2>/dev/null' TERM
    timeout -k 2 "$limit" "$@" >"$work/results/$name.log" 2>&1 </dev/null &
    { wait "$!" || status=$?; } 2>/dev/null
    awk -v s="$status" -v a="${began/,/.}" -v b="${EPOCHREALTIME/,/.}" 'BEGIN { printf "%d %.1f\n", s, b - a }' >"$work/ended.$name"
}

# collect: waits for one of the parts that run, and tells how it ended.
collect() {
    local pid='' status=137 name spent=0
    wait -n -p pid "${!running[@]}" || true
    if [ -z "${pid:-}" ]; then
        # Killed from outside, say for memory.
        for pid in "${!running[@]}"; do kill -0 "$pid" 2>/dev/null || break; done
    fi
    name=${running[$pid]}
    unset "running[$pid]"
    [ ! -s "$work/ended.$name" ] || read -r status spent <"$work/ended.$name"
    # Its lines of JSON, which are what is measured.
    grep '^[{]' "$work/results/$name.log" >"$work/results/$name.json" || rm -f "$work/results/$name.json"
    row "$name" "$status" "$spent" "${limits[$name]}" "${commands[$name]//"$work"/.}"
    report tell "$work/results" "$name" || true
}

# await NAME: until that part has ended.
await() {
    local name
    while :; do
        for name in "${running[@]}"; do [ "$name" != "$1" ] || break; done
        [ "${name:-}" = "$1" ] || return 0
        collect
        name=''
    done
}

# part NAME LIMIT COMMAND...: runs it, with what runs beside it left alone.
part() {
    if start "$@"; then
        await "$1"
        save
    fi
}

# group NAME: begins parts that are found out here; false where there is nothing to begin.
group() {
    if [ -n "$listing" ]; then echo "$1.*"; fi
    [ -z "$listing" ] && wanted "$1.*"
}

# member NAME LIMIT COMMAND...: one of a group, of which a few run at a time beside what runs in the background.
member() {
    while [ ${#running[@]} -ge $((width + $(in_background))) ]; do
        collect
        [ $((SECONDS - saved)) -lt 3 ] || save
    done
    start "$@" || true
}

# The number of parts that run until they are awaited.
in_background() {
    [[ " ${running[*]} " == *" torch_compile "* ]] && echo 1 || echo 0
}

# group_end: until all of the group have ended.
group_end() {
    [ -z "$listing" ] || return 0
    while [ ${#running[@]} -gt "$(in_background)" ]; do collect; done
    save
}

# absent NAME WHY: a part that cannot be asked here.
absent() {
    if [ -n "$listing" ]; then echo "$1"; elif wanted "$1"; then
        echo "$2" >"$work/results/$1.log"
        row "$1" absent
    fi
}

# save: what is known so far, so that a call that is killed leaves it.
save() {
    saved=$SECONDS
    report save "$work/results" "$pack/about.json" "$mode" "$SECONDS" "$out" || failed=1
    keep tuner.json "$tuner"
}

# report COMMAND...: what the logs tell; without the search for packages, since it runs after every part. What cannot be
# told must not end the call.
report() {
    "$python" -S "$here/report.py" "$@" || { echo "gpu_check: report.py $1 failed" >&2 && return 1; }
}

# keep NAME FILE: brings a file back, and leaves it for a later call on this machine.
keep() {
    [ -f "$2" ] || return 0
    cp "$2" "$out/$1.new" && mv "$out/$1.new" "$out/$1" || failed=1
    cp "$2" "$folder/$1" 2>/dev/null || true
}

# What runs is ended with the call, and nothing is left behind.
stop() {
    local pid
    for pid in "${!running[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    [ ${#running[@]} = 0 ] || sleep 0.3
    rm -rf "${work:?}"
}
