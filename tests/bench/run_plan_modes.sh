#!/usr/bin/env bash
# What Fair-Copying gains over the usual split on real GPUs, in one call: plan modes of the 70B shape over all of them
# beside their predictions, prefill, the other way to split the same GPUs, and every rank timed alone on one; a table
# last. Full logs go to $OUT (default: build/plan_modes).
#
# usage: run_plan_modes.sh BUILD_DIR [DEVICES]
#   BUILD_DIR  holds tests/ as CMake built them with FKV_CUDA=ON
#   DEVICES    default 4; 8 as well
#   SECONDS_EACH (environment) for the first table, 330; its last settings are left out where it takes longer
#   SHARED     (environment) the folder with profiles/
set -u
build=$1
devices=${2:-4}
out=${OUT:-build/plan_modes}
profiles=${SHARED:-../shared}/profiles
mkdir -p "$out"
export NCCL_NVLS_ENABLE=0 # nothing depends on NVLink multicast
summary=$out/summary.txt
: >"$summary"

table() { # NAME SECONDS COMMAND...: its output, into the summary too
  local name=$1 limit=$2 start=$SECONDS rc; shift 2
  echo "--- $name" >>"$summary"
  timeout "$limit" "$@" >"$out/$name.log" 2>"$out/$name.err"; rc=$?
  cat "$out/$name.log" >>"$summary"
  [ $rc = 0 ] || { echo "FAILED ($rc): $(tail -n 2 "$out/$name.err")" >>"$summary"; }
  echo "$name: exit $rc after $((SECONDS - start)) s"
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee -a "$summary"
# Scores of 32 layers; HeadKV's and DuoAttention's with a floor, kept counts as they are.
files=$profiles/llama-3-8b.headkv.json@0.2
for scorer in fastkvzip snapkv keydiff expected-attention; do
  files=$files,$profiles/llama-3.1-8b-instruct.$scorer.json@0
done
files=$files,$profiles/mistral-7b-v0.2.headkv.json@0.2,$profiles/llama-3.1-8b.duo.json@0.2
modes=("$build/tests/bench_modes" backend=cuda)
table prefill-one 60 "${modes[@]}" devices=1 layers=16 slots= prefill=8192,32768 "scores=$files"
table modes $((${SECONDS_EACH:-330} + 60)) "${modes[@]}" "devices=$devices" prefill=8192,32768 "scores=$files" \
  "seconds=${SECONDS_EACH:-330}"
# The same GPUs as two replicas of half as many ranks each: twice these tokens/s.
table half 60 "${modes[@]}" "devices=$((devices / 2))" modes=standard slots=0 budgets=1024,4096 prompt=8192 \
  "scores=$profiles/llama-3-8b.headkv.json@0.2"
for budget in 1024 4096; do
  table "alone-$budget" 60 "$build/tests/bench_ranks" "$profiles/llama-3-8b.headkv.json" "$devices" 0.2 cuda 64 "$budget"
done
cat "$summary"
! grep -q "FAILED" "$summary"
