#!/bin/sh
# All tests but the longest (ctest --test-dir build -L night): sets up, builds, and runs them
# plain, under ASan and UBSan, and (what has threads) under TSan; then formatting and cppcheck.
set -eu
cd "$(dirname "$0")/.."
tests/debian.sh tests

# HF tokenizers and jinja2 are the oracles of tokenizer and templates, the others read rows as jobs/GUIDE.md says;
# their tests say so and skip without them.
venv=build/oracle
packages="tokenizers jinja2 datasets duckdb pandas polars zstandard"
if ! $venv/bin/python -c "import $(echo $packages | tr ' ' ,)" 2>/dev/null; then
  # shellcheck disable=SC2086
  python3 -m venv $venv && $venv/bin/pip install -q $packages || echo "PyPI can't be reached: $packages are not all there"
fi

# promtool judges metrics.prom; of its package, a whole server, it alone is taken.
if ! command -v promtool >/dev/null; then
  tools=$PWD/build/tools
  if [ ! -x "$tools/promtool" ]; then
    mkdir -p "$tools"
    (cd "$tools" && apt-get download -qq prometheus && dpkg-deb --fsys-tarfile prometheus_*.deb |
      tar -x --strip-components=3 ./usr/bin/promtool && rm prometheus_*.deb) || echo "promtool can't be had: its test is skipped"
  fi
  PATH=$tools:$PATH
fi
cmake -S . -B build -DFKV_ORACLE_PYTHON="$PWD/$venv/bin/python" >/dev/null
ninja -C build
ctest --test-dir build --output-on-failure -j 2 -LE night

cmake --preset asan -G Ninja >/dev/null
ninja -C build-asan
ctest --test-dir build-asan --output-on-failure -j 2 -LE slow

cmake --preset tsan -G Ninja >/dev/null
ninja -C build-tsan fairkv-batch test_backend_collectives test_claims test_device_failure test_engine test_log test_prompt test_tally test_template
# In FP8 the same threads do the same: three minutes more would show nothing new.
FKV_TEST_SKIP='*fp8*' ctest --test-dir build-tsan --output-on-failure -j 2 \
  -R '^unit/test_(backend_collectives|claims|device_failure|engine|log|prompt|tally|template)$|^cli/threads$'

# Where nvcc is, also without a GPU, cli/tarball has compiled the CUDA backend and linked the program.
command -v nvcc >/dev/null || echo "nvcc is not there: the CUDA backend is not compiled"

tests/lint.sh
