#!/bin/sh
# peer_llama_cpp.sh build DIR - llama.cpp and ggml as opponents of `flatiron bench`.
#
# For developers. Downloads the source archive of llama-cpp-python (requirements_peer.txt) from
# PyPI with pip, builds llama.cpp from it and links peer_llama_cpp.c, which says what it can do:
#   DIR/bin/peer_avx2   with ggml for AVX2, FMA and F16C
#   DIR/bin/peer_amx    with ggml for Sapphire Rapids: AVX-512 VNNI and BF16, AMX
#   DIR/bin/peer        runs the one that this machine has
#   DIR/peer_llama_cpp.tar.xz   the three, to carry to a machine without compiler and network
# The programs are static. llama.cpp itself is built once; only ggml's CPU backend differs.
# Needs pip, cmake, ninja and g++; JOBS=1 is the number of compilers at a time.
#
# GCC 12 does not know that _tile_loadconfig reads memory and may drop the writes to it: the
# copy of ggml gets a compiler barrier in front of it.
# SPDX-License-Identifier: MIT
set -eu
here=$(cd "$(dirname "$0")" && pwd)
jobs=${JOBS:-1}

usage() {
    echo "usage: tools/peer_llama_cpp.sh build DIR" >&2
    exit 2
}

download() { # into $dir/src
    pip download --quiet --no-deps --no-binary llama-cpp-python -d "$dir/sdist" \
        "$(grep '^llama-cpp-python==' "$here/requirements_peer.txt")"
    mkdir -p "$dir/src"
    tar -xzf "$dir"/sdist/llama_cpp_python-*.tar.gz -C "$dir/src" --strip-components=1
}

add_barrier() { # file
    grep -q 'volatile("" ::: "memory")' "$1" && return
    sed -i 's/^\( *\)_tile_loadconfig(/\1__asm__ volatile("" ::: "memory");\n&/' "$1"
    grep -q 'volatile("" ::: "memory")' "$1" || {
        echo "peer_llama_cpp.sh: $1: no _tile_loadconfig where it was; look again" >&2
        exit 1
    }
}

configure() { # tree options...
    tree=$1
    shift
    cmake -S "$llama" -B "$dir/$tree" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF -DGGML_LLAMAFILE=ON -DGGML_SSE42=ON \
        -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON \
        -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_OPENSSL=OFF "$@" >"$dir/$tree.log"
}

link() { # isa
    g++ -static -s -fopenmp "$dir/peer.o" "$dir/avx2/src/libllama.a" \
        "$dir/avx2/ggml/src/libggml.a" "$dir/$1/ggml/src/libggml-cpu.a" \
        "$dir/avx2/ggml/src/libggml-base.a" -lm -lpthread -ldl -o "$dir/bin/peer_$1" \
        2>"$dir/link_$1.log" || { cat "$dir/link_$1.log" >&2; exit 1; }
}

write_chooser() {
    cat >"$dir/bin/peer" <<'END'
#!/bin/sh
isa=avx2
grep -q -m 1 amx_int8 /proc/cpuinfo && isa=amx
exec "$(dirname "$0")/peer_${PEER_ISA:-$isa}" "$@"
END
    chmod +x "$dir/bin/peer"
}

[ $# = 2 ] && [ "$1" = build ] || usage
mkdir -p "$2/bin"
dir=$(cd "$2" && pwd)
llama=$dir/src/vendor/llama.cpp
[ -d "$llama" ] || download
add_barrier "$llama/ggml/src/ggml-cpu/amx/mmq.cpp"
configure avx2
configure amx -DGGML_AVX_VNNI=ON -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON \
    -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON -DGGML_AMX_TILE=ON -DGGML_AMX_INT8=ON \
    -DGGML_AMX_BF16=ON -DCMAKE_C_FLAGS=-march=sapphirerapids \
    -DCMAKE_CXX_FLAGS=-march=sapphirerapids
nice -n 19 ninja -C "$dir/avx2" -j "$jobs" llama ggml ggml-cpu ggml-base
nice -n 19 ninja -C "$dir/amx" -j "$jobs" ggml-cpu
gcc -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -I"$llama/include" -I"$llama/ggml/include" \
    -c "$here/peer_llama_cpp.c" -o "$dir/peer.o"
link avx2
link amx
write_chooser
tar -cJf "$dir/peer_llama_cpp.tar.xz" -C "$dir/bin" peer peer_avx2 peer_amx
ls -l "$dir/bin" "$dir/peer_llama_cpp.tar.xz"
