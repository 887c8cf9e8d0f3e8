#!/usr/bin/env bash
# cuda_run.sh --check|--bench PROGRAM... - runs each GPU check (or bench) after another, goes on
# when one fails, and closes with the sum of what they counted. Fails when one failed, or when a
# check counted nothing. A bench checks nothing: there each program counts as one.
# SPDX-License-Identifier: MIT
set -u
mode=$1
shift
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
passed=0 failed=0 skipped=0
for program; do
    printf '\n==== %s %s\n' "$program" "$mode"
    "$program" "$mode" </dev/null 2>&1 | tee "$log"
    rc=${PIPESTATUS[0]} p=0 f=0 s=0
    if [ "$mode" = --check ]; then
        read -r p _ f _ s _ < <(
            grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1
        )
    elif [ "$rc" = 0 ]; then
        p=1
    fi
    : "${p:=0}" "${f:=0}" "${s:=0}"
    if [ "$f" = 0 ] && { [ "$rc" != 0 ] || [ "$p" = 0 ]; }; then f=1; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
