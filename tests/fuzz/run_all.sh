#!/bin/sh
# Fuzzes every target, or those named, for SECONDS each (600), two at a time and at
# the lowest priority:
#   tests/fuzz/run_all.sh [SECONDS] [TARGET...]     e.g.  run_all.sh 60 record job
# Prints a row of LOG.md's table for each. Exit 1 if one found something: its log and
# the input are in $BUILD/fuzz/. Inputs found on the way gather in $BUILD/fuzz/corpus/,
# which later runs start from; tests/fuzz/merge.sh takes the best of them into corpus/.
# BUILD (build-fuzz) is a folder configured with the preset fuzz, JOBS (2) how many run
# at once.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
BUILD=${BUILD:-$here/../../build-fuzz}
export BUILD

# The longest input worth trying: what the formats need, no more, or mutation drowns.
max_len() {
  case $1 in
    archive) echo 16384 ;;
    tokenizer_json) echo 8192 ;;
    template) echo 2048 ;;
    tokenizer_text | row) echo 1024 ;;
    *) echo 4096 ;;
  esac
}

# fuzz_one SECONDS NAME
fuzz_one() {
  name=$2
  work=$BUILD/fuzz
  log=$work/$name.log
  mkdir -p "$work/corpus/$name"
  set -- -max_total_time="$1" -max_len="$(max_len "$name")" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$work/$name-" "$work/corpus/$name" "$here/corpus/fuzz_$name"
  if [ -f "$here/dict/$name.dict" ]; then
    set -- -dict="$here/dict/$name.dict" "$@"
  fi
  status=0
  nice -n 19 "$BUILD/tests/fuzz_$name" "$@" >"$log" 2>&1 || status=$?
  findings=0
  if [ $status -ne 0 ]; then
    findings="exit $status, see $log"
  fi
  # The last line of progress: "#123  DONE  cov: 1 ft: 2 corp: 3/45Kb lim: ..."
  grep -a '^#.* cov: ' "$log" | tail -n 1 | awk -v name="$name" -v findings="$findings" -v date="$(date +%F)" \
    -v seconds="$(sed -n 's/^Done [0-9]* runs in \([0-9]*\) second.*/\1/p' "$log")" \
    -v runs="$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" '
    { for (i = 1; i < NF; i++) { if ($i == "cov:") cov = $(i + 1); if ($i == "ft:") ft = $(i + 1)
                                 if ($i == "corp:") split($(i + 1), corpus, "/") } }
    END { printf "| %s | %s | %d | %d | %d | %d | %d | %d | %s |\n", date, name, seconds, runs,
                 seconds ? runs / seconds : 0, cov, ft, corpus[1], findings }'
  [ $status -eq 0 ]
}

if [ "${1:-}" = --one ]; then # by the call below
  fuzz_one "$2" "$3"
  exit
fi
seconds=600
case ${1:-} in
  '' | *[!0-9]*) ;;
  *)
    seconds=$1
    shift
    ;;
esac
if [ $# -eq 0 ]; then
  for source in "$here"/fuzz_*.c; do
    name=${source##*/fuzz_}
    set -- "$@" "${name%.c}"
  done
fi
echo "| date | target | seconds | executions | exec/s | edges | features | corpus | findings |"
echo "|---|---|---|---|---|---|---|---|---|"
printf '%s\n' "$@" | xargs -P "${JOBS:-2}" -I {} "$0" --one "$seconds" {}
