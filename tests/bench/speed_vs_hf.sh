#!/bin/sh
# Whole-job speed on the CPU beside HF transformers' generate, both in float32
# with the same prompts and cores, in turns so that both see the same machine.
#
# usage: speed_vs_hf.sh BINARY [SHARED_DIR] [LIMIT]
#   SHARED_DIR  holds models/needle-tiny and prompts/ (default: ../shared beside the project)
#   LIMIT       the first records only (default: 0, all 300)
# PYTHON names the interpreter that has transformers and torch (default: python3).
#
# transformers' time leaves out imports and loading the model; ours is the whole
# process. Round 1 runs batch 1 and batch 8; the better one stays for the rest.
set -eu

[ $# -ge 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
binary=$(realpath "$1")
shared=$(realpath "${2:-$here/../../../shared}")
limit=${3:-0}
python=${PYTHON:-python3}
threads=$(nproc)
rounds=3

work=$(mktemp -d "${TMPDIR:-/tmp}/fkv-speed-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

cat >"$work/job.ini" <<JOB
[job]
name = speed
output = $work/out
limit = $limit
[input]
archives = $shared/prompts/needle.tar.zst
members = data/needle_1k.jsonl
format = longbench
prompts = $shared/prompts/needle-dataset2prompt.json
max_new_tokens_by = $shared/prompts/needle-dataset2maxlen.json
[model]
path = $shared/models/needle-tiny
[profile]
method = none
[engine]
backend = cpu
tensor_parallel = 1
slots = 16
JOB

# One HF run of the batch sizes $1: a JSON line each, kept in hf.jsonl.
run_hf() {
    "$python" "$here/hf_generate.py" --model "$shared/models/needle-tiny" --input "$shared/prompts/needle.tar.zst" \
        --member data/needle_1k.jsonl --prompts "$shared/prompts/needle-dataset2prompt.json" \
        --limits "$shared/prompts/needle-dataset2maxlen.json" --limit "$limit" --threads "$threads" \
        --batch "$1" --json >>"$work/hf.jsonl" 2>"$work/hf.err" || { st=$?; cat "$work/hf.err" >&2; exit $st; }
}

# One run of the binary: a JSON line of the same form, kept in ours.jsonl.
run_ours() {
    rm -rf "$work/out"
    "$python" - "$binary" "$work" >>"$work/ours.jsonl" <<'PY'
import glob, json, subprocess, sys, time
binary, work = sys.argv[1:]
started = time.perf_counter()
done = subprocess.run([binary, "run", work + "/job.ini"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                      stderr=subprocess.STDOUT, text=True)
seconds = time.perf_counter() - started
if done.returncode:
    sys.exit(f"exit {done.returncode}: {done.stdout[-2000:]}")
rows = []
for shard in sorted(glob.glob(work + "/out/shards/*.jsonl.zst")):
    text = subprocess.run(["zstd", "-dcq", shard], check=True, stdout=subprocess.PIPE).stdout.decode()
    rows += [json.loads(line) for line in text.splitlines()]
exact = sum(r["text"].strip() == r["fields"]["answers"][0] for r in rows)
print(json.dumps({"records": len(rows), "seconds": seconds, "records_per_second": len(rows) / seconds,
                  "exact": exact}))
PY
}

echo "load average before the start: $(cut -d' ' -f1 /proc/loadavg) (numbers mean little when others use the cores)"
batch=1,8
round=1
while [ $round -le $rounds ]; do
    run_hf "$batch"
    run_ours
    [ $round -gt 1 ] || batch=$("$python" - "$work" <<'PY'
import json, sys
runs = [json.loads(line) for line in open(sys.argv[1] + "/hf.jsonl")]
print(max(runs, key=lambda r: r["records_per_second"])["batch"])
PY
    )
    round=$((round + 1))
done

"$python" - "$work" "$threads" <<'PY'
import json, statistics, sys
hf, ours = [[json.loads(line) for line in open(f"{sys.argv[1]}/{name}.jsonl")] for name in ("hf", "ours")]
first = hf[:2]
batch = max(first, key=lambda r: r["records_per_second"])["batch"]
used = [r for r in hf if r["batch"] == batch]
print(f"needle-tiny, {ours[0]['records']} prompts of needle_1k, {sys.argv[2]} cores, float32, "
      f"transformers {hf[0]['transformers']}, torch {hf[0]['torch']}")
print("  ".join(f"batch {r['batch']}: {r['records_per_second']:.2f} records/s" for r in first)
      + f"  (batch {batch} is compared; load {used[0]['load_seconds']:.1f} s and imports "
      f"{used[0]['import_seconds']:.1f} s left out)")
print(f"{'round':<8}{'HF rec/s':>10}{'ours rec/s':>12}{'ratio':>8}{'HF exact':>10}{'ours exact':>12}")
for i, (a, b) in enumerate(zip(used, ours), 1):
    print(f"{i:<8}{a['records_per_second']:>10.2f}{b['records_per_second']:>12.2f}"
          f"{b['records_per_second'] / a['records_per_second']:>8.2f}{a['exact']:>10}{b['exact']:>12}")
a, b = [statistics.median(r["records_per_second"] for r in runs) for runs in (used, ours)]
print(f"{'median':<8}{a:>10.2f}{b:>12.2f}{b / a:>8.2f}")
PY
