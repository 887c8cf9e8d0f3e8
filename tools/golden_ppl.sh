#!/bin/sh
# golden_ppl.sh - full WikiText-2 test perplexity of the four reference models beside
# golden.json. Developer tool, minutes per model: tools/golden_ppl.sh [SHARED] [FLATIRON]
# Exit code 1 when one is more than 0.01 away.
# SPDX-License-Identifier: MIT
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
shared=${1:-$root/../shared}
flatiron=${2:-$root/build/flatiron}

row='
import json, os, sys
want = json.load(open(os.environ["GOLDEN"]))["ppl_float32"]
got = json.loads(os.environ["RESULT"])
away = got["ppl"] - want
print("| %s | %.4f | %.4f | %+.5f | %d | %.0f |" % (os.environ["MODEL"], want, got["ppl"],
      away, got["windows"], got["elapsed_s"]))
sys.exit(abs(away) > 0.01)
'
echo '| model | reference | flatiron | difference | windows | seconds |'
echo '|---|---:|---:|---:|---:|---:|'
status=0
for model in llama-2m opt-2m llama-28m opt-27m; do
    result=$("$flatiron" eval "$shared/models/$model" --seq-len 1024 --json \
        --ppl "$shared/data/wikitext-2/wiki.test.raw")
    MODEL=$model GOLDEN=$shared/models/$model/golden/golden.json RESULT=$result \
        python3 -c "$row" || status=1
done
exit $status
