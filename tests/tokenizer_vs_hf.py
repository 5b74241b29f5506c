#!/usr/bin/env python3
"""Compares `fairkv-batch tokenize` with the PyPI package `tokenizers`.

usage: tokenizer_vs_hf.py BINARY FOLDER... [--seed N] [--texts N]

Every folder holds a tokenizer.json. Texts: each character that Unicode 14 has
assigned (newer ones may be classed differently by the libraries; where the file asks for no class of
characters the others, too, many in a text), and random mixes of scripts, white space, line ends, marks, contractions, digits and the
file's own added tokens. Ids: random sequences, which mostly are not valid
UTF-8. Exits 77 when `tokenizers` can't be imported.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import unicodedata

try:
    import tokenizers
except ImportError as e:
    print(f"skipped: the Python package tokenizers can't be imported ({e})")
    sys.exit(77)

SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n", "\r\n\r\n", "\v", "\f", "\x1c", "\x85", "\u00a0", "\u1680",
          "\u180e", "\u2003", "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff"]
WORDS = ["the", "The", "don't", "DON'T", "we'LL", "I'\u017f", "it'S", "'re", "'Ve", "'d", "K", "\u212a", "na\u00efve", "e\u0301",
         "\u1e9b\u0323", "\ufb01n", "x86_64", "foo_bar", "CamelCaseWord", "1234567", "3.14", "\u0661\u0662\u0663\u0664", "\u00bd", "\u2167",
         "\u4f60\u597d\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f", "\u304b\u3099", "\uc548\ub155", "\u1100\u1161\u11a8", "\u0928\u092e\u0938\u094d\u0924\u0947",
         "\u0645\u0631\u062d\u0628\u0627", "\u05e9\u05dc\u05d5\u05dd", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u041f\u0440\u0438\u0432\u0435\u0442", "\u0393\u03b5\u03b9\u03ac",
         "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0001d4d0", "...", "!?", "---", "(){};", "http://a.b/c?d=e&f", "#", "'", "''s",
         "a" * 70, "=" * 100, "\u00e9" * 40, "ab" * 300, "\u0301" * 5, "a\u0323\u0301\u0307"]


def assigned():
    """Code points of Unicode 14, or of a subset of it."""
    db = unicodedata if unicodedata.unidata_version == "14.0.0" else unicodedata.ucd_3_2_0
    return [c for c in range(0x110000) if db.category(chr(c)) not in ("Cn", "Cs", "Co")]


def random_text(rng, points, added, vocab):
    parts = []
    for _ in range(rng.randrange(1, 30)):
        k = rng.random()
        if k < 0.25:
            parts.append(rng.choice(SPACES) * rng.choice((1, 1, 1, 2, 5)))
        elif k < 0.5:
            parts.append(rng.choice(WORDS))
        elif k < 0.6:
            parts.append("".join(chr(rng.choice(points)) for _ in range(rng.randrange(1, 8))))
        elif k < 0.7:
            lo = rng.choice(points)
            parts.append("".join(chr(c) for c in (lo + rng.randrange(40) for _ in range(6)) if c in POINTS))
        elif k < 0.78 and added:
            token = rng.choice(added)
            parts.append(token if rng.random() < 0.8 else token[: rng.randrange(1, len(token) + 1)])
        elif k < 0.95:
            parts.append(rng.choice(vocab))
        else:
            parts.append(chr(rng.randrange(32, 127)) * rng.randrange(1, 400))
    return "".join(parts)


def lines_of(binary, folder, options, lines):
    p = subprocess.run([binary, "tokenize", folder, *options], input="".join(l + "\n" for l in lines).encode(),
                       stdout=subprocess.PIPE)
    if p.returncode:
        sys.exit(f"{binary} tokenize {folder} {' '.join(options)}: exit {p.returncode}")
    out = p.stdout.decode().split("\n")
    if len(out) != len(lines) + 1:
        sys.exit(f"{folder}: {len(out) - 1} lines came back for {len(lines)}")
    return out[:-1]


def compare(what, inputs, got, want):
    bad = [(i, g, w) for i, g, w in zip(inputs, got, want) if g != w]
    print(f"  {what}: {len(inputs)} compared, {len(bad)} differ")
    for i, g, w in bad[:5]:
        print(f"    {i!r}\n      here {g!r}\n      HF   {w!r}")
    return len(bad)


def check(binary, folder, rng, n_texts):
    hf = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    hf.no_truncation()
    hf.no_padding()
    added = [t.content for t in hf.get_added_tokens_decoder().values()]
    vocab = [hf.decode([i], skip_special_tokens=False) for i in hf.get_vocab().values()]
    with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
        text = f.read()
    classes = any(kind in text for kind in ('"Regex"', '"ByteLevel"', '"NFC"', '"Digits"', '"Punctuation"'))
    rest = [] if classes else [chr(c) for c in range(1, 0x110000) if c not in POINTS and not 0xD800 <= c < 0xE000]
    points = sorted(POINTS) + [ord(c) for c in rest]
    bad = 0
    print(folder)
    texts = [f"a{chr(c)}b {chr(c)}1{chr(c)}{chr(c)}.{chr(c)} \n" for c in sorted(POINTS)]
    texts += [" ".join(c + c for c in rest[i : i + 20]) for i in range(0, len(rest), 20)]
    texts += [random_text(rng, points, added, vocab) for _ in range(n_texts)] + [""]
    for options in (["--json"], ["--json", "--bos"]):
        some = texts if len(options) == 1 else texts[-1000:]
        got = [[int(i) for i in l.split()] for l in lines_of(binary, folder, options, map_json(some))]
        want = [e.ids for e in hf.encode_batch(some, add_special_tokens="--bos" in options)]
        bad += compare("texts" if len(options) == 1 else "texts with BOS", some, got, want)
    ids = list(hf.get_vocab().values())
    seqs = [[rng.choice(ids) for _ in range(rng.randrange(0, 20))] for _ in range(n_texts)] + [[i] for i in sorted(set(ids))]
    got = [json.loads(l) for l in lines_of(binary, folder, ["--decode", "--json"], [" ".join(map(str, s)) for s in seqs])]
    return bad + compare("id sequences", seqs, got, hf.decode_batch(seqs, skip_special_tokens=False))


def map_json(texts):
    return [json.dumps(t) for t in texts]


def main():
    args = argparse.ArgumentParser()
    args.add_argument("binary")
    args.add_argument("folders", nargs="+")
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--texts", type=int, default=5000)
    a = args.parse_args()
    print(f"tokenizers {tokenizers.__version__}, seed {a.seed}")
    return 1 if sum(check(a.binary, f, random.Random(a.seed), a.texts) for f in a.folders) else 0


POINTS = set(assigned())
if __name__ == "__main__":
    sys.exit(main())
