#!/bin/sh
# Installs what is missing on Debian 12 to build (and, with "tests", to test), then
# configures and builds into build/. As root, or with sudo.
set -eu
cd "$(dirname "$0")/.."
packages="cmake ninja-build gcc libc6-dev pkg-config libarchive-dev libzstd-dev libinih-dev libjansson-dev
  libpcre2-dev libutf8proc-dev libxxhash-dev zlib1g-dev
  zstd jq"
test "${1:-}" = tests && packages="$packages libcmocka-dev python3 python3-venv ca-certificates clang-format
  cppcheck libasan8 libubsan1 libtsan2 strace tmux slurm-wlm munge nettle-dev liblzma-dev libbz2-dev debootstrap debian-archive-keyring
  chromium"
missing=
for p in $packages; do
  dpkg -s "$p" 2>/dev/null | grep -q '^Status: install ok installed' || missing="$missing $p"
done
if [ -n "$missing" ]; then
  sudo=
  [ "$(id -u)" = 0 ] || sudo=sudo
  export DEBIAN_FRONTEND=noninteractive
  $sudo apt-get update -qq
  # shellcheck disable=SC2086
  $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
testing=OFF
[ "${1:-}" = tests ] && testing=ON
# The CUDA backend takes minutes to compile, so only where it can run.
cuda=OFF
nvidia-smi -L >/dev/null 2>&1 && cuda=AUTO
cmake -S . -B build -G Ninja -DBUILD_TESTING=$testing -DFKV_CUDA=$cuda
ninja -C build
