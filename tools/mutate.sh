#!/usr/bin/env bash
# mutate.sh [PATTERN] - mutation proof: each fault of tools/mutations.txt, planted alone in a
# copy of the tree, must turn its test red. PATTERN keeps only the lines that contain it.
#
# A fault is caught when its test fails or does not end within a minute. A fault that changes
# nothing, does not compile or passes its test is a failure of this proof, and so is a test that
# is red before anything was planted.
# SPDX-License-Identifier: MIT
set -u
cd "$(dirname "$0")/.." || exit 1
list=tools/mutations.txt pattern=${1:-}
n_passed=0 n_failed=0
copy=$(mktemp -d) || exit 1
trap 'rm -rf "$copy"' EXIT

build() { # targets...
    cmake --build "$copy/build" --parallel "$(nproc)" --target "$@" >"$copy/log" 2>&1
}

fails() { # test
    ! timeout 60 "$copy/build/$1" >"$copy/log" 2>&1 </dev/null
}

missed() { # line-number text
    n_failed=$((n_failed + 1))
    echo "FAILED: $list:$1: $2"
}

git ls-files -coz --exclude-standard | xargs -0 cp --parents -t "$copy" || exit 1
# Faults leave unused variables behind, which is not what this is about.
cmake -S "$copy" -B "$copy/build" -G Ninja -DFL_WERROR=OFF >/dev/null || exit 1

number=0
declare -A checked=()
while read -r file test edit; do
    number=$((number + 1))
    case $file in '' | '#'*) continue ;; esac
    case "$file $test $edit" in *"$pattern"*) ;; *) continue ;; esac
    if [ -z "${checked[$test]:-}" ]; then
        checked[$test]=green
        if ! build "$test" || fails "$test"; then checked[$test]=red; fi
    fi
    if [ "${checked[$test]}" = red ]; then
        missed $number "$test fails without a fault"
    elif ! sed -i -E "$edit" "$copy/$file" || cmp -s "$file" "$copy/$file"; then
        missed $number "changes nothing: $edit"
    elif ! build "$test"; then
        missed $number "does not compile: $edit"
    elif ! fails "$test"; then
        missed $number "$test did not see: $file: $edit"
    else
        n_passed=$((n_passed + 1))
        echo "caught: $file: $edit"
    fi
    cp "$file" "$copy/$file"
done <"$list"
echo "$n_passed passed, $n_failed failed, 0 skipped"
[ "$n_failed" = 0 ] && [ "$n_passed" -gt 0 ]
