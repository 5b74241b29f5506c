#!/bin/sh
# The demo: sets up, builds, runs demo.ini and shows questions with their answers.
set -eu
cd "$(dirname "$0")/../.."
tests/debian.sh
rm -rf build/demo
build/runner/fairkv-batch run jobs/examples/demo.ini
questions=$(mktemp)
trap 'rm -f "$questions"' EXIT
tar --zstd -xOf tests/data/needle.tar.zst data/needle_1k.jsonl | head -n 60 | jq -r '._id + "\t" + .input' >"$questions"
echo
zstd -dcq build/demo/shards/*.zst |
  jq -r '[.id, (.text | ltrimstr(" ")), .fields.answers[0], (if (.text | ltrimstr(" ")) == .fields.answers[0] then "right" else "wrong" end)] | @tsv' |
  awk -F '\t' 'NR == FNR { question[$1] = $2; next }
    { n++; right += $4 == "right"; if (n <= 10) printf "%-50s %-10s %s\n", question[$1], $2, $4 }
    END { printf "... %d of %d answers right\n", right, n }' "$questions" -
