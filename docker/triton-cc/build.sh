#!/bin/sh
# build.sh PYTHON FOLDER: compiles the driver.c of PYTHON's Triton into FOLDER, where `cc` (beside this file) finds it.
# It needs gcc and Python's headers, no GPU and no driver: an empty library stands for libcuda.so.1.
set -eu
python=$1 to=$2 here=$(dirname "$0")
path() { "$python" -c "import sysconfig; print(sysconfig.get_path('$1'))"; }
nvidia=$(path platlib)/triton/backends/nvidia

if grep -q 'def make_launcher' "$nvidia/driver.py"; then
    echo "build.sh: this Triton is older than 3.7 and compiles C code for each kernel: it needs a C compiler to run" >&2
    exit 1
fi
mkdir -p "$to"
stub=$(mktemp -d)
trap 'rm -r "$stub"' EXIT
gcc -shared -x c /dev/null -Wl,-soname,libcuda.so.1 -o "$stub/libcuda.so.1"
gcc "$nvidia/driver.c" -O3 -shared -fPIC -Wno-psabi -I"$nvidia/include" -I"$(path include)" \
    -L"$stub" -Wl,--no-as-needed -l:libcuda.so.1 -o "$to/driver.so"
cp "$nvidia/driver.c" "$here/cc" "$to"
