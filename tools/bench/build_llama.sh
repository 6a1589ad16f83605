#!/usr/bin/env bash
# Build llama.cpp's llama-server, llama-bench and llama-quantize from the source inside PyPI's llama-cpp-python. Usage:
#   bash tools/bench/build_llama.sh FOLDER [native|avx2]   the programs are FOLDER/native/llama-server and so on
# native uses every instruction of this machine; avx2 stops at AVX2, as most machines have it. The source stays in
# FOLDER, so a second build needs no network. VERSION=0.3.36 chooses a release, JOBS=2 how many compilers run at once.
# Needs pip, cmake, make and a C++ compiler.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
variant=${2:-native}
version=${VERSION:-0.3.36}

case $variant in
    native) flags=(-DGGML_NATIVE=ON) ;;
    # With GGML_NATIVE off, all that is not named here is off, also AVX-512.
    avx2) flags=(-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON
                 -DGGML_AVX512=OFF -DGGML_AVX_VNNI=OFF) ;;
    *) echo "build_llama.sh: $variant is neither native nor avx2" >&2; exit 2 ;;
esac

package=llama_cpp_python-$version
if [ ! -d "$folder/$package" ]; then
    pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$folder" "llama-cpp-python==$version"
    tar -xf "$folder/$package.tar.gz" -C "$folder"
fi
# Static libraries: each program is one file. No web page and no HTTPS: both would be fetched or found elsewhere.
cmake -S "$folder/$package/vendor/llama.cpp" -B "$folder/build-$variant" -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_NUMBER=0 \
    -DLLAMA_BUILD_COMMIT="$package-$variant" "${flags[@]}"
nice -n 10 cmake --build "$folder/build-$variant" --parallel "${JOBS:-2}" --target llama-{server,bench,quantize}
mkdir -p "$folder/$variant"
cp "$folder/build-$variant"/bin/llama-{server,bench,quantize} "$folder/$variant/"
