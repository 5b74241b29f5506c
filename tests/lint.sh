#!/bin/sh
# Formatting, static analysis and the laws of the tree (structure.py, on what is built in build/); with
# "tidy" also clang-tidy, which takes minutes.
set -eu
cd "$(dirname "$0")/.."
folders="engine jobs kernels runner tokenizer"
# shellcheck disable=SC2086
find $folders tests -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' | xargs clang-format --dry-run -Werror
# shellcheck disable=SC2086
find $folders -name '*.c' | xargs cppcheck --quiet --error-exitcode=1 -j 2 --std=c11 -I . --inline-suppr \
  --enable=warning,performance,portability --suppress=missingIncludeSystem -DFKV_VERSION='"0"' -DFKV_BUILT_WITH='"0"' -DFKV_X86=1
python3 tests/structure.py --self-test
python3 tests/structure.py
if [ "${1:-}" = tidy ]; then
  # shellcheck disable=SC2086
  find $folders -name '*.c' | xargs -P 2 -n 8 clang-tidy -p build --quiet --extra-arg=-Wno-unknown-warning-option --warnings-as-errors='*'
fi
echo "lint: clean"
