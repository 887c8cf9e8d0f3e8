#!/usr/bin/env bash
# cuda_engine.sh --check|--bench - the GPU engine as a whole, by build/flatiron: logits and
# perplexities beside the CPU's on the embedded model, float and quantised three ways; or whole
# models of random weights beside 16-bit ones. Run by make cuda-check and cuda-bench.
# SPDX-License-Identifier: MIT
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
build=${BUILD:-$root/build}
flatiron=$build/flatiron
if [ ! -x "$flatiron" ] || [ ! -x "$build/compare_devices" ]; then
    echo "SKIP: $flatiron is not there: make build first"
    echo "0 passed, 0 failed, 1 skipped"
    exit 1
fi
if [ "$1" = --bench ]; then
    for batch in 1 16 64; do
        "$flatiron" bench model --device cuda --kv-bits 4 -p 2048 -n 64 -b $batch -r 3 || exit 1
    done
    exec "$flatiron" bench model --device cuda --kv-bits 4 -p 4096 -n 8 -r 5
fi
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
model=$root/models/tiny-llama
text=$root/data/prose.txt
passed=0 failed=0
count() { # name, whether it is good
    if [ "$2" = 1 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $1"
    fi
}
quantize() { # name, options...
    local out=$work/$1
    shift
    "$flatiron" quantize "$model" "$out" --calib "$text" --samples 4 "$@" >"$work/log" 2>&1 ||
        cat "$work/log"
}
quantize quarot --method quarot --kv-bits 4
quantize rtn --method rtn --w-bits 8 --a-bits 8 --kv-bits 8 --head-bits 8
quantize flattenquant --method flattenquant
log=$work/compare
"$build/compare_devices" "$text" "$model" "$work/quarot=$model" "$work/rtn=$model" \
    "$work/flattenquant=$model" 2>&1 | tee "$log"
read -r p _ f _ < <(grep -E '^[0-9]+ passed, ' "$log" | tail -n 1)
: "${p:=0}" "${f:=4}"
passed=$((passed + p)) failed=$((failed + f))
ppl() { # model, device
    "$flatiron" eval "$1" --ppl "$text" --seq-len 256 --limit 16 --device "$2" --json |
        sed -n 's/^ *"ppl": *\([0-9.e+-]*\).*/\1/p' | head -n 1
}
# Half a percent: errors of rounding that differ, over a few thousand tokens.
for m in "$model" "$work/quarot" "$work/rtn" "$work/flattenquant"; do
    cpu=$(ppl "$m" cpu) gpu=$(ppl "$m" cuda)
    echo "$(basename "$m"): perplexity $cpu on the CPU, $gpu on the GPU"
    count "perplexity of $(basename "$m")" \
        "$(awk -v a="$cpu" -v b="$gpu" 'BEGIN {
            d = a - b; if (d < 0) d = -d; print (a > 0 && b > 0 && d <= 0.005 * a) ? 1 : 0 }')"
done
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
