#!/bin/sh
# Formatting and static analysis; with "tidy" also clang-tidy, which takes minutes.
set -eu
cd "$(dirname "$0")/.."
sources=$(git ls-files '*.c' '*.h' '*.cu' '*.cuh')
# shellcheck disable=SC2086
clang-format --dry-run -Werror $sources
git ls-files '*.c' | grep -v '^tests/' | xargs cppcheck --quiet --error-exitcode=1 -j 2 --std=c11 -I . \
  --enable=warning,performance,portability --inline-suppr --suppress=missingIncludeSystem -DFKV_VERSION='"0"' -DFKV_X86=1
if [ "${1:-}" = tidy ]; then
  git ls-files '*.c' | grep -v '^tests/' | xargs -P 2 -n 8 clang-tidy -p build --quiet --warnings-as-errors='*'
fi
echo "lint: clean"
