#!/bin/sh
# Takes into corpus/ those inputs of $BUILD/fuzz/corpus/ (run_all.sh gathers them)
# that reach code which none in corpus/ does, the smallest first, up to 4 KiB each.
#   tests/fuzz/merge.sh [TARGET...]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
BUILD=${BUILD:-$here/../../build-fuzz}
if [ $# -eq 0 ]; then
  for work in "$BUILD"/fuzz/corpus/*; do
    set -- "$@" "${work##*/}"
  done
fi
for name in "$@"; do
  into=$here/corpus/fuzz_$name
  # Without counters how often code runs is no news, only that it does.
  "$BUILD/tests/fuzz_$name" -merge=1 -use_counters=0 -max_len=4096 -rss_limit_mb=2048 "$into" \
    "$BUILD/fuzz/corpus/$name" >/dev/null 2>&1
  echo "$name: $(find "$into" -type f | wc -l) inputs, $(cat "$into"/* | wc -c) bytes"
done
