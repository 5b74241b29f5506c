#!/usr/bin/env python3
"""Peak memory of a job over a small and a large input: it must not grow with the archive.

usage: memory_bound.py BINARY [--small MB] [--large MB] [--dir DIR]

Repeats the prompts of tests/data until there are 10 MB and 1 GB of JSONL (about 260,000
records), as a plain file and as .zst, and runs a job over each: prompts cut to 64 tokens,
one new token. Prints a line a run and exits 1 where the large one's peak differs by more
than 5%. The peak is VmHWM (stats.json) and the kernel's ru_maxrss, both of the program.
Needs the zstd program, Python's standard library, and twice the large size on disk. Not a
part of ctest: with 1 GB it takes minutes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(TESTS, "data")
MB = 1000 * 1000
ALLOWED = 0.05

JOB = """[job]
name = memory-bound
output = {output}
[input]
archives = {archive}
members = *
format = longbench
prompts = {data}/needle-dataset2prompt.json
max_new_tokens_by = {folder}/one-token.json
[model]
path = {data}/needle-tiny
max_prompt_tokens = 64
truncate = left
[profile]
method = none
[engine]
backend = cpu
"""


def lines():
    """The lines of needle_1k.jsonl, from the archive of the tests."""
    tar = subprocess.run(
        ["zstd", "-dcq", os.path.join(DATA, "needle.tar.zst")], stdout=subprocess.PIPE, check=True
    ).stdout
    return [x + b"\n" for x in tar[tar.index(b'{"input"') :].split(b"\0", 1)[0].split(b"\n") if x]


def write_input(path, size, source):
    """JSONL of at least size bytes. Returns the number of records."""
    n = written = 0
    with open(path, "wb") as f:
        while written < size:
            f.write(source[n % len(source)])
            written += len(source[n % len(source)])
            n += 1
    return n


def run(binary, archive, folder, n_records):
    """Seconds, VmHWM and ru_maxrss of one job."""
    output = os.path.join(folder, "out")
    job = os.path.join(folder, "job.ini")
    with open(job, "w") as f:
        f.write(JOB.format(output=output, archive=archive, data=DATA, folder=folder))
    start = time.time()
    # A child of its own, so that RUSAGE_CHILDREN is of this run. The small interpreter
    # in between keeps this one's memory out of ru_maxrss, which outlives exec.
    wrapper = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stderr=subprocess.DEVNULL); "
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    code, kib = subprocess.run(
        [sys.executable, "-S", "-c", wrapper, binary, "run", job], stdout=subprocess.PIPE, check=True
    ).stdout.split()[-2:]
    seconds = time.time() - start
    with open(os.path.join(output, "stats.json")) as f:
        stats = json.load(f)["run"]
    if int(code) or stats["records"] != n_records or stats["errors"] or not stats["complete"]:
        sys.exit("the run failed: exit %d, %s" % (int(code), stats))
    if stats["completion_tokens"] != n_records:
        sys.exit("more than one new token a record: %s" % stats)
    shutil.rmtree(output)
    return seconds, stats["peak_rss_bytes"], int(kib) * 1024


def main():
    p = argparse.ArgumentParser()
    p.add_argument("binary")
    p.add_argument("--small", type=int, default=10)
    p.add_argument("--large", type=int, default=1000)
    p.add_argument("--dir", help="where the inputs are made (default: a temporary folder)")
    a = p.parse_args()
    folder = tempfile.mkdtemp(prefix="fairkv-memory-", dir=a.dir)
    failed = False
    try:
        with open(os.path.join(folder, "one-token.json"), "w") as f:
            json.dump({"needle_1k": 1}, f)
        source = lines()
        print("%-6s %9s %9s %9s %12s %12s" % ("form", "MB", "records", "s", "VmHWM MB", "ru_maxrss MB"))
        peaks = {}
        for size in (a.small, a.large):
            plain = os.path.join(folder, "needle_1k.jsonl")
            n = write_input(plain, size * MB, source)
            for form in ("plain", ".zst"):
                archive = plain
                if form == ".zst":
                    subprocess.run(["zstd", "-q", "-3", "--rm", plain], check=True)
                    archive = plain + ".zst"
                seconds, hwm, maxrss = run(os.path.abspath(a.binary), archive, folder, n)
                peaks[form, size] = hwm, maxrss
                print(
                    "%-6s %9d %9d %9.1f %12.2f %12.2f" % (form, size, n, seconds, hwm / MB, maxrss / MB),
                    flush=True,
                )
            os.remove(plain + ".zst")
        for form in ("plain", ".zst"):
            for name, small, large in zip(("VmHWM", "ru_maxrss"), peaks[form, a.small], peaks[form, a.large]):
                growth = large / small - 1
                ok = abs(growth) <= ALLOWED
                failed = failed or not ok
                print(
                    "%-6s %s: %+.1f%% from %d to %d MB: %s"
                    % (form, name, 100 * growth, a.small, a.large, "ok" if ok else "MORE THAN 5%")
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
