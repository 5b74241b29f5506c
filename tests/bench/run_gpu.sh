#!/usr/bin/env bash
# Everything that needs a GPU, in one call: correctness first, then speed; a short
# table last. Full logs go to $OUT (default: build/gpu).
#
# usage: run_gpu.sh BUILD_DIR [STEP]...     steps: ops small engine families attention speed table conformance sanitize
#   BUILD_DIR  holds runner/fairkv-batch and tests/ as CMake built them with FKV_CUDA=ON
#   SHARED     (environment) the folder with conformance/, models/, prompts/, profiles/
set -u
build=$1; shift
steps=${*:-ops small engine families attention speed table conformance sanitize}
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-build/gpu}
mkdir -p "$out"
summary=$out/summary.txt
: >"$summary"

note() { echo "$*" | tee -a "$summary"; }
step() { # NAME SECONDS COMMAND...: runs it, keeps the log, notes the result
  local name=$1 limit=$2 start=$SECONDS rc; shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1; rc=$?
  note "$name: $([ $rc = 0 ] && echo ok || echo "FAILED ($rc)") in $((SECONDS - start)) s"
  [ $rc = 0 ] || tail -n 15 "$out/$name.log"
}
wants() { [[ " $steps " == *" $1 "* ]]; }

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee -a "$summary"
if wants ops; then
  for name in fp8 ops pack scorers; do
    step "$name" 120 "$build/tests/test_backend_$name" cuda
  done
  # where the library does not multiply by scales
  step fp8-bare 120 env FAIRKV_TEST_BARE_SUMS=1 "$build/tests/test_backend_fp8" cuda
fi
if wants small; then # as on a GPU with little shared memory and no code made for it
  for name in fp8 ops pack rows attention scorers; do
    step "small-$name" 180 env FKV_TEST_GPU=small CUDA_FORCE_PTX_JIT=1 "$build/tests/test_backend_$name" cuda
  done
fi
wants engine && step engine 120 "$build/tests/test_engine" cuda
if wants families; then
  step families 250 python3 -B "$here/family_logits.py" "$build/tests/teacher_forced"
  tail -n 1 "$out/families.log" | tee -a "$summary"
fi
if wants attention; then
  step attention 120 "$build/tests/bench_cuda_attention"
  tail -n 30 "$out/attention.log" | tee -a "$summary"
  step scorers-alone 240 "$build/tests/bench_cuda_scorers"
  tail -n 25 "$out/scorers-alone.log" | tee -a "$summary"
fi
if wants speed; then
  for slots in 64; do
    step "speed-8b-$slots" 200 "$build/tests/bench_engine" backend=cuda shape=8b slots=$slots budget=1024 \
      ${SHARED:+scores=$SHARED/profiles/llama-3-8b.headkv.json} prompt=16384 prefill=8192 gbps=4270 modes=standard
    grep -E "prefill|step" "$out/speed-8b-$slots.log" | tee -a "$summary"
  done
fi
if wants table; then # every kind of op beside what the GPU can, and a job's prompts beside its steps
  for form in bf16 fp8; do
    step "ceilings-$form" 60 "$build/tests/bench_ceilings" 8b 5 $form
    read -ra ceilings <<<"$(tail -n 1 "$out/ceilings-$form.log")"
    note "$form: ${ceilings[*]}"
    step "table-$form" 120 "$build/tests/bench_engine" backend=cuda shape=8b slots=64 prompt=16384 ops=1 budget=1024 \
      prefill=8192 modes=standard weights=$form kv=$form "${ceilings[@]}"
    step "job-$form" 240 "$build/tests/bench_engine" backend=cuda shape=8b slots=128 prompt=8192 budget=1024 modes=standard \
      weights=$form kv=$form steps=16 job=300 "${ceilings[@]}"
    cat "$out/table-$form.log" "$out/job-$form.log" | tee -a "$summary"
  done
fi
if wants conformance; then
  step conformance 420 python3 "$SHARED/conformance/conformance.py" "$build/runner/fairkv-batch" --set engine.backend=cuda
  tail -n 25 "$out/conformance.log" | tee -a "$summary"
fi
if wants sanitize; then
  for tool in memcheck initcheck; do
    step "sanitize-$tool" 150 compute-sanitizer --tool $tool --error-exitcode 9 "$build/tests/test_backend_ops" cuda
  done
  for test in attention rows scorers; do
    step "sanitize-$test" 240 compute-sanitizer --tool memcheck --error-exitcode 9 "$build/tests/test_backend_$test" cuda
  done
  step sanitize-race-decode 240 env FKV_TEST_SKIP='*prefill*' \
    compute-sanitizer --tool racecheck --error-exitcode 9 "$build/tests/test_backend_attention" cuda
  # Draws by the thousand are left to the others: these kernels run in the other tests too.
  step sanitize-racecheck 240 env FKV_TEST_SKIP='*top_p*' \
    compute-sanitizer --tool racecheck --error-exitcode 9 "$build/tests/test_backend_ops" cuda
fi
echo "---"
cat "$summary"
