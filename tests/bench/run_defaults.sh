#!/usr/bin/env bash
# What a user gets who sets nothing, on a machine with one GPU or several: a job of LongBench's lengths with
# slots = auto beside set numbers of slots, short prompts beside long ones, and answers of unlike lengths.
# Ends with a short table and what becomes of the targets; logs and results go to $OUT (default: build/defaults).
#
# usage: run_defaults.sh BUILD_DIR [PART]...
#        run_defaults.sh table RESULTS...     one table from several calls' results.jsonl
#   PART       auto 16 32 64 96 128   the job of 300 records; any number of slots
#              long short mixed skewed stop   see defaults.py
#              default: all, in an order that lets several GPUs end together
#   GPUS       (environment) how many GPUs are used at once, a part each (default: all; none: no GPU)
#   LIMIT      no part is begun after so many seconds (default 420), none lasts longer than until
#              LIMIT + 150
#   SHAPE      8b; tiny makes a small model and small jobs
#   BACKEND    cuda; cpu with SHAPE=tiny is this script's own dry check
#   TOKENIZER  a byte-level BPE's tokenizer.json (default: one is made)
#   SETTINGS   more settings for every part, "section.key=value ..."
#   SLOTS      of skewed (default 16) and stop (default 64)
# Other variables reach the program. Needs python3 and what the program needs, nothing else.
set -u
here=$(cd "$(dirname "$0")" && pwd)
bench() { python3 -B "$here/defaults.py" "$@"; }
[ $# -ge 1 ] || { sed -n '2,22s/^# \{0,1\}//p' "$0" >&2; exit 2; }
if [ "$1" = table ]; then
  shift
  bench table "$@"
  exit
fi
binary=$(realpath "$1/runner/fairkv-batch") || exit 2
shift
read -ra parts <<<"${*:-auto 64 96 128 32 16 stop long short mixed skewed}"
shape=${SHAPE:-8b}
limit=${LIMIT:-420}
out=${OUT:-build/defaults}
mkdir -p "$out"
out=$(realpath "$out")
results=$out/results.jsonl
: >"$results"
work=$(mktemp -d "${TMPDIR:-/tmp}/fkv-defaults-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
mkdir "$work/claims" "$work/runs"

gpus=$(nvidia-smi -L 2>/dev/null | wc -l)
[ "${GPUS:-$gpus}" = none ] && GPUS=0
gpus=${GPUS:-$gpus}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null

# --- models and jobs -----------------------------------------------------------
kind_of() { case $1 in auto | [0-9]*) echo lengths ;; *) echo "$1" ;; esac; }
model_of() { case $1 in stop) echo "$work/chain" ;; *) echo "$work/dummy" ;; esac; }
tokenizer=(${TOKENIZER:+--tokenizer "$TOKENIZER"})
bench model "$work/dummy" --shape "$shape" "${tokenizer[@]}" || exit 1
for part in "${parts[@]}"; do
  kind=$(kind_of "$part")
  [ -e "$work/$kind" ] && continue
  if [ "$kind" = stop ]; then
    bench model "$work/chain" --chain --shape "$shape" "${tokenizer[@]}" || exit 1
  fi
  bench job "$kind" "$work/$kind" "$(model_of "$part")" --shape "$shape" || exit 1
done
echo "made in $SECONDS s"

# --- runs: every GPU takes the next part -----------------------------------------
settings=()
for s in ${SETTINGS:-}; do settings+=(-s "$s"); done
worker() { # GPU, or - for none
  local part left
  [ "$1" = - ] || export CUDA_VISIBLE_DEVICES=$1
  for part in "${parts[@]}"; do
    mkdir "$work/claims/$part" 2>/dev/null || continue
    if [ $SECONDS -gt "$limit" ]; then
      echo "$part: not begun, $SECONDS s are over"
      continue
    fi
    left=$((limit + 150 - SECONDS))
    timeout "$left" python3 -B "$here/defaults.py" run "$part" "$binary" "$work/$(kind_of "$part")" \
      "$(model_of "$part")" "$results" "$work/runs" "${settings[@]}" || echo "$part: FAILED ($?)"
    cp "$work/runs/$part.log" "$out/" 2>/dev/null
    cp "$work/runs/$part/plan.json" "$out/$part.plan.json" 2>/dev/null
    rm -rf "${work:?}/runs/$part"
  done
}
workers=()
if [ "$gpus" -ge 1 ]; then
  for ((g = 0; g < gpus; g++)); do
    worker "$g" &
    workers+=($!)
  done
else
  worker - &
  workers+=($!)
fi
wait "${workers[@]}"

echo
bench table "$results" | tee "$out/table.txt"
exit "${PIPESTATUS[0]}"
