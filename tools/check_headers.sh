#!/usr/bin/env bash
# check_headers.sh BUILD - the public face of the library as its users meet it.
#
#   1. include/flatiron/flatiron.h compiles alone as C11 and as C++17, with every compiler here;
#   2. libflatiron.so exports what that header declares, all of it and nothing else;
#   3. a program compiles and links against an installed copy through pkg-config, and runs.
# SPDX-License-Identifier: MIT
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:-build}
header=include/flatiron/flatiron.h
n_passed=0 n_failed=0 n_skipped=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

result() { # exit-code what
    if [ "$1" = 0 ]; then
        n_passed=$((n_passed + 1))
    else
        n_failed=$((n_failed + 1))
        echo "FAILED: $2"
    fi
}

skip() { # what
    n_skipped=$((n_skipped + 1))
    echo "SKIP: $1"
}

compiles_alone() {
    local pair compiler std
    for pair in gcc:c11 g++:c++17 clang:c11 clang++:c++17; do
        compiler=${pair%%:*} std=${pair##*:}
        if ! command -v "$compiler" >/dev/null; then
            skip "$header with $compiler: not installed"
            continue
        fi
        "$compiler" -x "$([ "$std" = c11 ] && echo c || echo c++)" -std="$std" -pedantic -Wall \
            -Wextra -Werror -fsyntax-only -Iinclude "$header"
        result $? "$header as $std with $compiler"
    done
}

declared() { # names of the functions that the header declares FL_API
    gcc -E -P -x c -std=c11 "$header" | tr '\n' ' ' | tr ';' '\n' |
        grep -F 'visibility("default")' | grep -v typedef |
        sed 's/.*visibility("default")))//' | grep -oE '^[^(]*\(' |
        sed 's/ *($//; s/.*[ *]//' | sort
}

exports_match() {
    local lib=$build/libflatiron.so extra absent
    if [ ! -f "$lib" ]; then
        result 1 "$lib is not there"
        return
    fi
    declared >"$tmp/declared"
    nm -D --defined-only "$lib" | awk '{ print $NF }' | sed 's/@.*//' | sort >"$tmp/exported"
    extra=$(comm -13 "$tmp/declared" "$tmp/exported" | tr '\n' ' ')
    absent=$(comm -23 "$tmp/declared" "$tmp/exported" | tr '\n' ' ')
    [ -z "$extra" ]
    result $? "$lib exports what $header does not declare: $extra"
    if [ ! -d src/api ]; then
        skip "$header against $lib: src/api is not there"
        return
    fi
    [ -s "$tmp/declared" ] && [ -z "$absent" ]
    result $? "$lib does not export: $absent"
}

installed_copy_works() {
    if ! grep -qx fl_version "$tmp/exported" 2>/dev/null; then
        skip "installed copy: $build/libflatiron.so has no fl_version"
        return
    fi
    DESTDIR=$tmp/root cmake --install "$build" >/dev/null
    result $? "cmake --install"
    cat >"$tmp/user.c" <<'EOF'
#include <flatiron/flatiron.h>
#include <string.h>
int main(void)
{
    return strcmp(fl_version(), FL_VERSION) != 0;
}
EOF
    local pc libdir
    pc=$(find "$tmp/root" -name flatiron.pc)
    libdir=$(dirname "$(dirname "$pc")")
    # shellcheck disable=SC2046
    gcc -std=c11 -Wall -Wextra -Werror -o "$tmp/user" "$tmp/user.c" \
        $(PKG_CONFIG_SYSROOT_DIR=$tmp/root PKG_CONFIG_PATH=$libdir/pkgconfig \
            pkg-config --cflags --libs flatiron) &&
        LD_LIBRARY_PATH=$libdir "$tmp/user"
    result $? "a program against the installed copy"
}

compiles_alone
exports_match
installed_copy_works
echo "$n_passed passed, $n_failed failed, $n_skipped skipped"
[ "$n_failed" = 0 ] && [ "$n_passed" -gt 0 ]
