#!/usr/bin/env bash
# What needs several GPUs, in one call: the same bits as on one GPU, a device that fails,
# then speed beside the plan's predictions; a short table last. Full logs go to $OUT
# (default: build/multi_gpu).
#
# usage: run_multi_gpu.sh BUILD_DIR [DEVICES]
#   BUILD_DIR  holds runner/fairkv-batch and tests/ as CMake built them with FKV_CUDA=ON
#   DEVICES    default 2; with fewer GPUs they share these, which proves the bits and the
#              order of events; times say nothing then
#   BENCH      (environment) no: leave speed out
#   SHARED     (environment) the folder with models/, prompts/, profiles/
set -u
build=$1
devices=${2:-2}
out=${OUT:-build/multi_gpu}
shared=${SHARED:-../shared}
mkdir -p "$out"
summary=$out/summary.txt
: >"$summary"
export XDG_CACHE_HOME=$PWD/$out/cache # constants are calibrated anew, between open devices
case $out in /*) XDG_CACHE_HOME=$out/cache ;; esac
rm -rf "$XDG_CACHE_HOME"
export NCCL_NVLS_ENABLE=0 # nothing depends on NVLink multicast

note() { echo "$*" | tee -a "$summary"; }
step() { # NAME SECONDS COMMAND...: runs it, keeps the log, notes the result
  local name=$1 limit=$2 start=$SECONDS rc; shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1; rc=$?
  note "$name: $([ $rc = 0 ] && echo ok || echo "FAILED ($rc)") in $((SECONDS - start)) s"
  [ $rc = 0 ] || tail -n 15 "$out/$name.log"
  return $rc
}

gpus=$(nvidia-smi -L | wc -l)
if [ "$gpus" -lt "$devices" ]; then
  note "$devices devices share $gpus GPU: a dry run"
  # Kernels that wait for others run beside these: nothing may be loaded meanwhile.
  export FAIRKV_DEVICES_PER_GPU=$devices CUDA_MODULE_LOADING=EAGER
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee -a "$summary"
nvidia-smi topo -m >"$out/topology.log" 2>&1

# --- the same bits -------------------------------------------------------------
step collectives 200 "$build/tests/test_backend_collectives" cuda 2
if [ "$gpus" -ge 2 ]; then
  export FAIRKV_COLLECTIVES=nccl
  step collectives-nccl 200 "$build/tests/test_backend_collectives" cuda 2
  [ "$gpus" -ge 3 ] && step collectives-nccl-3 200 "$build/tests/test_backend_collectives" cuda 3
  unset FAIRKV_COLLECTIVES
fi
step engine 200 "$build/tests/test_engine" cuda
step engine-small 300 "$build/tests/test_engine" cuda "$shared/models/needle-small"
cat >"$out/job.ini" <<INI
[job]
name = multi
output = OUTPUT
[input]
archives = $shared/prompts/needle.tar.zst
members = *needle_2k.jsonl
prompts = $shared/prompts/needle-dataset2prompt.json
max_new_tokens_by = $shared/prompts/needle-dataset2maxlen.json
[model]
path = $shared/models/needle-small
[profile]
budget = 64
[engine]
backend = cuda
slots = 8
[output]
records_per_shard = 5
token_ids = yes
INI
job() { # NAME SETTING...: a job of its own output folder
  local name=$1; shift
  sed "s#OUTPUT#$out/$name#" "$out/job.ini" >"$out/$name.ini"
  rm -rf "${out:?}/$name"
  local s=(); for x in "$@"; do s+=(-s "$x"); done
  step "$name" 200 "$build/runner/fairkv-batch" run "$out/$name.ini" "${s[@]}"
}
same() { # NAME NAME
  if [ "$(cat "$out/$1"/shards/*.zst | sha256sum)" = "$(cat "$out/$2"/shards/*.zst | sha256sum)" ]; then
    note "$2: shards as of $1"
  else
    note "$2: FAILED: shards differ from $1's"
  fi
}
for ranks in "$devices" $((2 * devices)); do
  [ "$ranks" -gt 8 ] && continue
  job "one-$ranks" engine.devices=1 "engine.tensor_parallel=$ranks" plan.mode=standard
  for mode in standard best-effort fair-copying; do
    job "many-$ranks-$mode" "engine.devices=$devices" "engine.tensor_parallel=$ranks" "plan.mode=$mode"
    same "one-$ranks" "many-$ranks-$mode"
  done
done
# Replicas; on a GPU that they share, none may take all memory.
job alone engine.devices=1 engine.tensor_parallel=1
job replicas "engine.devices=$devices" engine.tensor_parallel=1 "engine.data_parallel=$devices" engine.kv_memory=4096
same alone replicas
cmp "$out"/{alone,replicas}/profile.json && note "replicas: profile as of alone" || note "replicas: FAILED: another profile"
# The other way of moving bytes.
if [ "$gpus" -ge "$devices" ]; then
  FAIRKV_COLLECTIVES=nccl job "nccl-$devices" "engine.devices=$devices" "engine.tensor_parallel=$devices"
  same "one-$devices" "nccl-$devices"
fi
# Killed and resumed, over several GPUs.
rm -rf "$out/killed"
sed "s#OUTPUT#$out/killed#" "$out/job.ini" >"$out/killed.ini"
killed() { # twice, where three records are answered (runner/hold.h)
  local pid held=$out/killed.held
  local settings=(-s "engine.devices=$devices" -s "engine.tensor_parallel=$devices" -s plan.mode=fair-copying)
  for _ in 1 2; do
    rm -f "$held"
    FAIRKV_TEST_HOLD="records 3 $held" "$build/runner/fairkv-batch" run "$out/killed.ini" "${settings[@]}" & pid=$!
    while [ ! -e "$held" ] && kill -0 $pid; do sleep 0.1; done
    kill -KILL $pid; wait $pid
  done
  "$build/runner/fairkv-batch" run "$out/killed.ini" "${settings[@]}"
}
start=$SECONDS
killed >"$out/killed.log" 2>&1 && note "killed: ok in $((SECONDS - start)) s" || note "killed: FAILED"
same "one-$devices" killed

# A device that fails while records are answered, as one tensor-parallel group and as replicas: exit 4 within 5 s, by
# name, and the next run goes on.
fails() { # NAME launch|alloc SETTING...
  local name=$1 what=$2 pid rc began held=$out/$1.held broken=$out/$1.broken s=(); shift 2
  for x in "$@"; do s+=(-s "$x"); done
  rm -rf "${out:?}/$name" "$held" "$broken"
  sed "s#OUTPUT#$out/$name#" "$out/job.ini" >"$out/$name.ini"
  FAIRKV_TEST_HOLD="records 6 $held" FAIRKV_TEST_FAIL="$what 1 $broken" \
    "$build/runner/fairkv-batch" run "$out/$name.ini" "${s[@]}" >"$out/$name.log" 2>&1 & pid=$!
  while [ ! -e "$held" ] && kill -0 $pid 2>/dev/null; do sleep 0.05; done
  touch "$broken"
  rm -f "$held"
  began=$(date +%s%N)
  wait $pid; rc=$?
  local ms=$((($(date +%s%N) - began) / 1000000))
  if [ $rc = 4 ] && [ $ms -lt 5000 ] && grep -q "GPU 1" "$out/$name.log"; then
    note "$name: exit 4 after $ms ms, naming GPU 1"
  else
    note "$name: FAILED: exit $rc after $ms ms: $(tail -n 1 "$out/$name.log")"
  fi
  step "$name-resumed" 200 "$build/runner/fairkv-batch" run "$out/$name.ini" "${s[@]}"
}
if [ "$gpus" -ge 2 ]; then
  for what in launch alloc; do
    fails "fails-$what" "$what" "engine.devices=$devices" "engine.tensor_parallel=$devices" plan.mode=fair-copying
    same "one-$devices" "fails-$what"
    fails "replica-fails-$what" "$what" "engine.devices=$devices" engine.tensor_parallel=1 "engine.data_parallel=$devices"
    same alone "replica-fails-$what"
  done
fi

[ "${BENCH:-yes}" = no ] && { cat "$summary"; ! grep -q FAILED "$summary"; exit; }
# --- speed -----------------------------------------------------------------------
scores=$shared/profiles/llama-3-8b.headkv.json
engine() { # NAME SECONDS ARG...: one line of bench_engine's log a figure
  local name=$1 limit=$2; shift 2
  step "$name" "$limit" "$build/tests/bench_engine" backend=cuda "scores=$scores" "$@" || return
  grep -E "constants|prefill|step|segments" "$out/$name.log" | tee -a "$summary"
}
for tokens in 8192 32768; do
  for n in 1 "$devices"; do
    engine "prefill-$tokens-on-$n" 200 shape=8b "ranks=$n" "devices=$n" slots=16 modes=standard steps=2 "prompt=$tokens" "prefill=$tokens"
  done
done
many=("ranks=$devices" "devices=$devices" prompt=32768 steps=64 calibrate=1)
for slots in 128 192; do
  engine "8b-$slots" 300 shape=8b "slots=$slots" budget=4096 "${many[@]}"
done
if [ "$gpus" -ge 2 ]; then # a GPU holds half of a 70B model's weights, not all
  for budget in 1024 4096; do
    for slots in 64 32 16 8 4; do # the most that fit
      engine "70b-$budget-$slots" 300 shape=70b "slots=$slots" "budget=$budget" "${many[@]}" && break
    done
    for slots in 128 112 96 64; do
      engine "70b-40-layers-$budget-$slots" 300 shape=70b layers=40 "slots=$slots" "budget=$budget" "${many[@]}" && break
    done
  done
fi
echo; echo "--- summary ---"; cat "$summary"
! grep -q "FAILED: " "$summary"
