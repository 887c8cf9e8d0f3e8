#!/bin/sh
# golden_ppl.sh - full WikiText-2 test perplexity of the four reference models beside golden.json.
# Developer tool, minutes per model:  tools/golden_ppl.sh [SHARED] [FLATIRON]
# SPDX-License-Identifier: MIT
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
shared=${1:-$root/../shared}
flatiron=${2:-$root/build/flatiron}

printf '| model | reference | flatiron | difference | windows | seconds |\n|---|---:|---:|---:|---:|---:|\n'
status=0
for model in llama-2m opt-2m llama-28m opt-27m; do
    result=$("$flatiron" eval "$shared/models/$model" --seq-len 1024 --json \
        --ppl "$shared/data/wikitext-2/wiki.test.raw")
    MODEL=$model GOLDEN=$shared/models/$model/golden/golden.json RESULT=$result python3 - <<'PY' || status=1
import json, os, sys
want = json.load(open(os.environ["GOLDEN"]))["ppl_float32"]
got = json.loads(os.environ["RESULT"])
print("| %s | %.4f | %.4f | %+.5f | %d | %.0f |" % (os.environ["MODEL"], want, got["ppl"],
      got["ppl"] - want, got["windows"], got["elapsed_s"]))
sys.exit(abs(got["ppl"] - want) > 0.01)
PY
done
exit $status
