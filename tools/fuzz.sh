#!/usr/bin/env bash
# fuzz.sh BUILD SECONDS - runs each libFuzzer target of BUILD for SECONDS, starting from its
# corpus in tests/fuzz/corpus. What it finds stays in BUILD/fuzz: new inputs under <parser>/,
# crashes as crash-*; a crash is added to the corpus by hand, with its fix.
# SPDX-License-Identifier: MIT
set -u
cd "$(dirname "$0")/.." || exit 1
build=$1 seconds=$2
n_passed=0 n_failed=0
export ASAN_OPTIONS=allocator_may_return_null=1

for source in tests/fuzz/fuzz_*.c; do
    [ -f "$source" ] || continue
    target=$(basename "$source" .c)
    parser=${target#fuzz_}
    mkdir -p "$build/fuzz/$parser" "tests/fuzz/corpus/$parser"
    echo "fuzz: $parser, $seconds s"
    if "$build/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
        -max_len=65536 -print_final_stats=1 -artifact_prefix="$build/fuzz/" \
        "$build/fuzz/$parser" "tests/fuzz/corpus/$parser" >"$build/fuzz/$parser.log" 2>&1; then
        n_passed=$((n_passed + 1))
        grep -E '^stat::(number_of_executed_units|new_units_added)' "$build/fuzz/$parser.log"
    else
        n_failed=$((n_failed + 1))
        tail -n 40 "$build/fuzz/$parser.log"
        echo "FAILED: fuzz: $parser"
    fi
done
echo "$n_passed passed, $n_failed failed, 0 skipped"
[ "$n_failed" = 0 ] && [ "$n_passed" -gt 0 ]
