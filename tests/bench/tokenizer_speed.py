#!/usr/bin/env python3
"""The tokenizer beside HF tokenizers, one thread each, on the same 10 MB of mixed text: ids equal, MB/s, ratio.

usage: tokenizer_speed.py BENCH_TOKENIZER SHARED [NAME...] [--rounds N] [--mb N]

Run by a Python that has the package tokenizers (build/oracle/bin/python after tests/all.sh). BENCH_TOKENIZER is
build/tests/bench_tokenizer, SHARED the folder with tokenizers/ and prompts/; NAME a folder of tokenizers/
(all). Texts: LongBench's news and Chinese articles, this tree's sources, and a twelfth of random characters of all
scripts. HF's call is encode_batch_fast, its fastest. Both begin a round with an empty cache; the best round counts. Exit 1 when ids differ.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import unicodedata
import zipfile

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
import tokenizers  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def random_words(rng, points, n):
    out = []
    for _ in range(n):
        lo = rng.choice(points)
        out.append("".join(chr(c) for c in (lo + rng.randrange(60) for _ in range(rng.randrange(1, 9)))
                           if c < 0x110000 and unicodedata.category(chr(c)) not in ("Cn", "Cs")))
    return " ".join(out)


def texts(shared, n_bytes):
    """Parts of about 20 kB from every source in turns."""
    sources = {"longbench": [], "code": [], "random": []}
    with zipfile.ZipFile(os.path.join(shared, "prompts", "longbench-sample.zip")) as z:
        for name in z.namelist():
            if name.endswith(".jsonl"):
                for line in z.read(name).decode().splitlines():
                    sources["longbench"].append(json.loads(line)["context"])
    for folder, _, names in os.walk(ROOT):
        if "/build" in folder or "/.git" in folder:
            continue
        for name in sorted(names):
            if name.endswith((".c", ".h", ".py", ".md", ".cu")):
                with open(os.path.join(folder, name), encoding="utf-8") as f:
                    sources["code"].append(f.read())
    rng = random.Random(1)
    points = [c for c in range(0x80, 0x20000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    sources["random"] = [random_words(rng, points, 1500) for _ in range(n_bytes // 240000 + 1)]
    parts = {k: [t[i : i + 20000].replace("\0", "") for t in v for i in range(0, len(t), 20000)] for k, v in sources.items()}
    for v in parts.values():
        rng.shuffle(v)
    out, size, i = [], 0, 0
    while size < n_bytes:
        for k, v in parts.items():
            if k != "random" or i % 4 == 0:
                out.append(v[i % len(v)])
                size += len(out[-1].encode())
        i += 1
    return out


def hash_of(lists):
    h = 0xCBF29CE484222325
    for ids in lists:
        for i in ids:
            h = (h ^ i) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
        h = (h ^ 0xFFFFFFFF) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def main():
    args = argparse.ArgumentParser()
    args.add_argument("bench")
    args.add_argument("shared")
    args.add_argument("names", nargs="*")
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--mb", type=float, default=10)
    a = args.parse_args()
    folder = os.path.join(a.shared, "tokenizers")
    all_texts = texts(a.shared, int(a.mb * 1e6))
    n_bytes = sum(len(t.encode()) for t in all_texts)
    wrong = 0
    print(f"tokenizers {tokenizers.__version__}, {len(all_texts)} texts, {n_bytes / 1e6:.1f} MB, best of {a.rounds}")
    print("| tokenizer | ids | HF MB/s | ours MB/s | ratio | ids equal |\n|---|---|---|---|---|---|")
    with tempfile.NamedTemporaryFile(suffix=".texts") as f:
        f.write(b"".join(t.encode() + b"\0" for t in all_texts))
        f.flush()
        for name in a.names or sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            p = subprocess.run([a.bench, path, f.name, str(a.rounds)], stdout=subprocess.PIPE, text=True)
            if p.returncode:
                sys.exit(f"{a.bench}: exit {p.returncode}")
            seconds, _, n_ids, hashed = p.stdout.split()
            best = None
            for _ in range(a.rounds):
                hf = tokenizers.Tokenizer.from_file(os.path.join(path, "tokenizer.json"))
                start = time.perf_counter()
                encodings = hf.encode_batch_fast(all_texts, add_special_tokens=False)
                best = min(best or 1e9, time.perf_counter() - start)
            same = hash_of(e.ids for e in encodings) == hashed
            wrong += not same
            print(f"| {name} | {n_ids} | {n_bytes / best / 1e6:.2f} | {n_bytes / float(seconds) / 1e6:.2f} | "
                  f"{best / float(seconds):.2f} | {'yes' if same else 'NO'} |", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
