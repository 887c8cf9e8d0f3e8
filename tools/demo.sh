#!/bin/sh
# demo.sh BUILD [OUT] - the main job on the embedded model, in a few minutes: quantise it with
# FlattenQuant, with FlatQuant (few epochs: its recipe in short) and by rounding to nearest,
# measure what each lost against the float model, and let them write. Everything it makes is in
# OUT (default out), named demo-*.
#
# Calibration needs no text: the float model samples it. The perplexity is over data/prose.txt,
# prose written for this project that the model has not seen. Needs nothing but BUILD/flatiron.
# SPDX-License-Identifier: MIT
set -eu
export LC_ALL=C
# Threads that wait asleep: two cores that are also busy elsewhere lose little time so.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

cd "$(dirname "$0")/.."
flatiron=${1:-build}/flatiron
out=${2:-out}
model=models/tiny-llama
text=data/prose.txt
min_tokens=20000
calibration='--calib self --samples 64 --seq-len 256 --seed 0'
flattenquant='--method flattenquant'
flatquant='--method flatquant --epochs 4'
rtn='--method rtn'
kv4='--kv-bits 4'
per_tensor='--a-granularity tensor'
prompt='The village lies on the north bank of the river'
report=$out/demo-report.md
log=$out/demo.log

fail() { # what
    echo "demo: $1" >&2
    exit 1
}

# Lines of: name of the row | directory | options of `flatiron quantize`
rows() {
    cat <<EOF
RTN W8A8, scale per token|demo-rtn-w8a8|$rtn --w-bits 8 --a-bits 8
FlattenQuant W8A8|demo-flattenquant-w8a8|$flattenquant --w-bits 8 --a-bits 8
FlattenQuant, mix of 4 and 8|demo-flattenquant|$flattenquant
FlattenQuant W4A4|demo-flattenquant-w4a4|$flattenquant --w-bits 4 --a-bits 4
RTN W4A4, scale per token|demo-rtn-w4a4|$rtn --w-bits 4 --a-bits 4
RTN W4A4, scale per tensor|demo-rtn-w4a4-tensor|$rtn --w-bits 4 --a-bits 4 $per_tensor
FlatQuant W4A4KV4|demo-flatquant-w4a4kv4|$flatquant --w-bits 4 --a-bits 4 $kv4
FlattenQuant W4A4KV4|demo-flattenquant-w4a4kv4|$flattenquant --w-bits 4 --a-bits 4 $kv4
RTN W4A4KV4, scale per token|demo-rtn-w4a4kv4|$rtn --w-bits 4 --a-bits 4 $kv4
EOF
}

say() { # what, with the seconds since the start
    printf '%4d s  %s\n' $(($(date +%s) - started)) "$1"
}

# Runs a command with its progress in the log; shows the end of it when the command fails.
run() { # stdout-file command...
    stdout=$1
    shift
    echo "\$ $*" >>"$log"
    "$@" >"$stdout" 2>>"$log" || {
        status=$?
        echo "demo: exit code $status: $*" >&2
        tail -n 3 "$log" >&2
        exit 1
    }
}

# First value of a key in the program's JSON (one key per line), 'model' or 'baseline' given: of
# the object under that key. Nothing when it is null.
value() { # file key [object]
    awk -v key="\"$2\":" -v object="${3:-}" '
        object != "" && $1 == "\"" object "\":" && $2 == "{" { inside = 1 }
        $1 == key && (object == "" || inside) {
            sub(/^[^:]*: */, ""); sub(/,$/, "")
            if ($0 != "null") print
            exit
        }' "$1"
}

weights_bytes() { # directory
    cat "$1"/*.safetensors | wc -c
}

# A row of the table; a number that there is none for is a dash.
print_row() { # name ppl ratio kld top1 activation-bits bytes
    awk -v name="$1" -v ppl="$2" -v ratio="$3" -v kld="$4" -v top1="$5" -v bits="$6" \
        -v bytes="$7" '
        function cell(x, factor, width, fmt) {
            return " " sprintf("%" width "s", x == "" ? "-" : sprintf(fmt, x * factor)) " |"
        }
        BEGIN {
            printf "| %-28s |", name
            printf "%s", cell(ppl, 1, 10, "%.2f") cell(ratio, 1, 6, "%.3f")
            printf "%s", cell(kld, 1, 6, "%.4f") cell(top1, 100, 7, "%.1f")
            print cell(bits, 1, 8, "%.2f") cell(bytes, 1e-6, 5, "%.2f")
        }'
}

quantise_and_measure() { # name directory options
    dir=$out/$2
    say "$1"
    # shellcheck disable=SC2086
    run "$dir.quantize.json" "$flatiron" quantize "$model" "$dir" $3 $calibration --json
    run "$dir.eval.json" "$flatiron" eval "$dir" --ppl "$text" --baseline "$model" --json
    ppl=$(value "$dir.eval.json" ppl)
    float_ppl=$(value "$dir.eval.json" ppl baseline)
    ratio=$(awk -v a="$ppl" -v b="$float_ppl" 'BEGIN { if (a != "") print a / b }')
    print_row "$1" "$ppl" "$ratio" "$(value "$dir.eval.json" kld_mean)" \
        "$(value "$dir.eval.json" top1_agreement)" \
        "$(value "$dir.quantize.json" effective_activation_bits)" "$(weights_bytes "$dir")" \
        >>"$out/demo-rows.md"
}

write_text() { # model, its words after the prompt
    run "$out/demo-text.txt" "$flatiron" generate "$1" -p "$prompt" -n 60 --seed 3
    printf '%s' "$prompt"
    cat "$out/demo-text.txt"
    echo
}

write_report() {
    eval_json=$out/demo-flattenquant.eval.json
    plan_json=$out/demo-flattenquant.quantize.json
    echo "# The demo's figures"
    echo
    echo "Model $model ($(weights_bytes "$model") bytes of weights); text $text:" \
        "$(value "$eval_json" tokens) tokens, $(value "$eval_json" windows) windows of" \
        "$(value "$eval_json" seq_len). Made by \`make demo\` with flatiron" \
        "$("$flatiron" --version | awk '{ print $NF }'), instruction set" \
        "$(value "$eval_json" isa | tr -d '"'), $(value "$eval_json" threads) threads."
    echo
    cat <<'EOF'
| model                        | perplexity |   x FP | KL     | top-1 % | act bits |    MB |
|------------------------------|-----------:|-------:|-------:|--------:|---------:|------:|
EOF
    print_row 'FP' "$(value "$eval_json" ppl baseline)" 1 0 1 16 "$(weights_bytes "$model")"
    cat "$out/demo-rows.md"
    cat <<'EOF'

x FP: perplexity over the float model's. KL: mean divergence of the distribution of the next
token from the float model's. Top-1: share of positions where both put the same token first. Act
bits: mean over input channels of log2 of the levels that a code can take, the copies of
flattening counted. MB: the safetensors files; embedding and head stay BF16. KV4: keys and
values of 4 bits, elsewhere BF16. FlatQuant trains 4 epochs here, 15 by default.

EOF
    awk -v share="$(value "$plan_json" int4_share_linears)" \
        -v ratio="$(value "$plan_json" flatten_ratio summary)" 'BEGIN {
            printf "FlattenQuant, mix of 4 and 8: %.1f %% of the linear layers at 4 bits, ",
                100 * share
            printf "%.1f %% extra channels by flattening.\n", 100 * ratio
        }'
    echo
    echo 'Commands, for each row its options:'
    echo
    echo "    flatiron quantize $model DIR OPTIONS $calibration"
    echo "    flatiron eval DIR --ppl $text --baseline $model"
    echo
    rows | awk -F'|' '{ printf "    %-28s %s\n", $1, $3 }'
    echo
    echo '## Text, the same prompt and seed'
    echo
    echo 'Float model:'
    echo
    write_text "$model" | sed 's/^/> /'
    echo
    echo 'FlattenQuant, mix of 4 and 8:'
    echo
    write_text "$out/demo-flattenquant" | sed 's/^/> /'
    echo
    echo 'FlatQuant W4A4KV4:'
    echo
    write_text "$out/demo-flatquant-w4a4kv4" | sed 's/^/> /'
}

[ -x "$flatiron" ] || fail "$flatiron: no program there; run make build first"
for file in "$model/model.safetensors" "$text"; do
    [ -f "$file" ] || fail "$file: missing; restore it with git checkout"
done
mkdir -p "$out"
rm -rf "$report" "$log" "$out"/demo-rows.md
rows | while IFS='|' read -r _ dir _; do
    rm -rf "${out:?}/$dir" "$out/$dir.partial" "$out/$dir.quantize.json" "$out/$dir.eval.json"
done
started=$(date +%s)

echo "demo: $model quantised in several ways, measured on $text (progress in $log)"
rows >"$out/demo-rows.txt"
while IFS='|' read -r name dir options <&3; do
    quantise_and_measure "$name" "$dir" "$options"
done 3<"$out/demo-rows.txt"
tokens=$(value "$out/demo-flattenquant.eval.json" tokens)
[ "$tokens" -ge $min_tokens ] || fail "$text: $tokens tokens, the comparison needs $min_tokens"
say 'text'
write_report >"$report"
rm -f "$out/demo-rows.txt" "$out/demo-rows.md" "$out/demo-text.txt"
say 'done'
echo
sed -n '/^| model/,/^$/p; /^## Text/,$p' "$report"
echo
echo "demo: report in $report, the quantised models in $out/demo-*"
