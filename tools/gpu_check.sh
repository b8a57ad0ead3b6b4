#!/usr/bin/env bash
# Checks and measures the engine on a machine with an NVIDIA GPU that has neither Rust nor a network.
#   pack                here: builds, and packs binaries, compiled kernels and the PyTorch peer into gpu_check/pack.tar.xz
#   run MODE OUT        there: the parts of a mode in order of worth, within its time; a table, and files in OUT (at most 6)
#     diagnose          200 s: is it right? Tests, fixtures, first times, memcheck
#     profile           140 s: where does the time go? Every op, hardware counters, racecheck
#     publish           140 s: how fast is it? In turn with PyTorch; nothing runs beside it
#   list MODE           the parts of a mode
# Options of run: --only PART[,PART]; --kernels DIR (sources that replace those in the binary); --tuner FILE and
# --torch-cache FILE (what an earlier call brought back; default: those that lie in gpu_check/).
# Environment: REFERENCE (the PyTorch peer), SAIP_CHECK_PROFILE (release), SAIP_CHECK_BIN (folder of binaries that are there
# already), SAIP_CHECK_LIMIT (MiB that may travel, 60), SAIP_CHECK_ARCHIVE, SAIP_CHECK_SECONDS, SAIP_CHECK_WITHOUT_GPU=1.
set -euo pipefail
cd "$(dirname "$0")/.."
here=tools/gpu_check
folder=gpu_check
archive=${SAIP_CHECK_ARCHIVE:-$folder/pack.tar.xz}
presets=(saip-vit-tiny saip-tinyvit-5m saip-starnet-s3)

# die WORDS...: what is wrong and what to do.
die() {
    printf 'gpu_check: %s\n' "$*" >&2
    exit 2
}

# shellcheck source=tools/gpu_check/pack.sh
source "$here/pack.sh"
# shellcheck source=tools/gpu_check/run.sh
source "$here/run.sh"
# shellcheck source=tools/gpu_check/parts.sh
source "$here/parts.sh"

case ${1:-} in
pack) pack ;;
run) shift && run "$@" ;;
list) list "${2:-}" ;;
*)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
    exit 2
    ;;
esac
