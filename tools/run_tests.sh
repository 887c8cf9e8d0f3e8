#!/usr/bin/env bash
# run_tests.sh BUILD [ctest options] - runs ctest in BUILD, lists what was skipped and closes
# with the sum over all test executables, 'N passed, N failed, N skipped' alone on a line.
#
# Each executable must close with such a line of its own: one that does not, or that fails
# without counting a failure (a crash), adds one failed test. No test at all is a failure.
# SPDX-License-Identifier: MIT
set -u
build=$1
shift
log=$build/Testing/Temporary/LastTest.log
rm -f "$log"

# Tests ask for absurd amounts of memory on purpose.
export ASAN_OPTIONS=allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
# Executables run side by side: a thread that waits must not spin on the core of another.
export OMP_WAIT_POLICY=passive
ctest --test-dir "$build" --parallel "$(nproc)" --timeout 900 --no-tests=error \
    --output-on-failure "$@" </dev/null
rc=$?

[ -f "$log" ] || log=/dev/null
awk -v rc=$rc '
    /^[0-9]+\/[0-9]+ Test: / { name = $3; counted = 0 }
    /^SKIP: / { print name ": " $0 }
    /^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { counted = 1; p = $1; f = $3; s = $5 }
    /^Test time =/ { ended = 1 }
    ended && /^Test (Passed|Failed)\.$/ {
        ended = 0
        if (counted) { passed += p; failed += f; skipped += s }
        if (!counted) print name ": printed no counts"
        if (!counted || ($2 == "Failed." && f == 0)) failed++
    }
    END {
        if (rc != 0 && failed == 0) failed++
        printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
        exit rc != 0 || failed > 0 || passed == 0
    }' "$log"
