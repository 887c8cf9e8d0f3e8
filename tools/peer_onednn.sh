#!/bin/sh
# peer_onednn.sh build DIR [BUILD] - the program with a newer oneDNN to compare with.
#
# For developers. Debian's oneDNN is 2.6.3. This links the objects of a finished build (BUILD,
# default build) once more, against oneDNN 3.2.0 from PyPI (requirements_peer.txt, the wheels
# that need nothing but GNU OpenMP): only src/kernels/onednn.c sees oneDNN's headers, so only
# that file is compiled again.
#   DIR/bin/flatiron_onednn3   finds the library in DIR/lib or through LD_LIBRARY_PATH
#   DIR/lib/libdnnl.so.3
#   DIR/peer_onednn.tar.xz     both, to carry to a machine without compiler and network
# Then: DIR/bin/flatiron_onednn3 bench kernels --json --threads 2; "machine" names the version.
# SPDX-License-Identifier: MIT
set -eu
here=$(cd "$(dirname "$0")" && pwd)

usage() {
    echo "usage: tools/peer_onednn.sh build DIR [BUILD]" >&2
    exit 2
}

download() { # into $dir/lib and $dir/include
    pip download --quiet --no-deps -d "$dir/wheels" \
        $(grep '^onednn-' "$here/requirements_peer.txt")
    for wheel in "$dir"/wheels/onednn*.whl; do
        unzip -q -o "$wheel" -d "$dir/unpacked"
    done
    mkdir -p "$dir/lib" "$dir/include"
    cp "$dir"/unpacked/*.data/data/lib/libdnnl.so.3 "$dir/lib"
    strip --strip-unneeded "$dir/lib/libdnnl.so.3"
    cp -r "$dir"/unpacked/*.data/data/include/. "$dir/include"
    rm -rf "$dir/unpacked"
}

[ $# -ge 2 ] && [ "$1" = build ] || usage
build=$(cd "${3:-build}" && pwd)
mkdir -p "$2/bin"
dir=$(cd "$2" && pwd)
[ -f "$dir/lib/libdnnl.so.3" ] || download
gcc -std=c11 -D_GNU_SOURCE -O3 -fPIC -fopenmp -fvisibility=hidden -ffp-contract=off \
    -I"$dir/include" -I"$here/../include" -I"$here/../src" \
    -c "$here/../src/kernels/onednn.c" -o "$dir/onednn.o"
gcc -s -fopenmp -o "$dir/bin/flatiron_onednn3" "$build"/CMakeFiles/flatiron.dir/cli/*.o \
    "$dir/onednn.o" "$build/libflatiron.a" \
    $(pkg-config --libs jansson libpcre2-8 libutf8proc openblas lapacke) -lpthread -lm \
    "$dir/lib/libdnnl.so.3" -Wl,-rpath,'$ORIGIN/../lib'
tar -cJf "$dir/peer_onednn.tar.xz" -C "$dir" bin/flatiron_onednn3 lib/libdnnl.so.3
ls -l "$dir/bin" "$dir/lib" "$dir/peer_onednn.tar.xz"
