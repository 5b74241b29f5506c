#!/usr/bin/env python3
"""Makes tests/golden/tokenizers/NAME.json: a small tokenizer of every layout, with the ids and texts HF gives.

usage: make_tokenizers.py SHARED_TOKENIZERS [NAME...]     (with the PyPI package tokenizers, 0.23.x)

Each is cut from a published tokenizer.json (../shared/tokenizers): the single characters and bytes, and the
first merges with what they make, ids counted anew; of the added tokens a few of each kind of flags. Variants
change one setting of such a file. A NAME.json has "tokenizer" (a tokenizer.json), "encode" (text, ids, and ids with
what the post-processor adds) and "decode" (ids, and their text without and with special tokens).
"""
import copy
import json
import os
import random
import sys

import tokenizers

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizers")
N_MERGES, N_TEXTS, N_SEQUENCES = 700, 110, 50
FAMILIES = ["deepseek-v4", "falcon", "gemma-layout", "gpt-2", "gpt-oss", "llama-2", "llama-3", "mistral-nemo",
            "mistral-v0.3", "mistral-v7-metaspace", "qwen-2.5"]
LINE = "\u2581"
EXTRA = ["", " ", "  two  spaces  ", "<s>", "</s><s> a", "a<s>b<s> c", LINE, f"{LINE}a {LINE} b", "x\u00b2\u00b3 1\u00bd 12345 3.14 \u0664\u0662",
         "\U0001f468\u200d\U0001f469 \U0001f600\U0001f600", "caf\u00e9 cafe\u0301", "!?...,;\u3002\u00ab\u00bb--", "a\nb\r\n\n c\t\td", "<0x41><0x0A>",
         "\u4f60\u597d\u4e16\u754c abc", "Don't we'LL", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "=" * 70, "\x00\x01", "\U000e0001z\U0010ffff"]


def pair(merge):
    return tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)


def cut(source):
    """source with few tokens."""
    t = copy.deepcopy(source)
    vocab, merges = source["model"]["vocab"], source["model"]["merges"]
    added = {}
    for a in source["added_tokens"]:
        kind = (a["special"], a["normalized"], a["lstrip"], a["rstrip"], a["content"] in vocab)
        if len(added.setdefault(kind, [])) < 6:
            added[kind].append(a)
    added = sorted((a for group in added.values() for a in group), key=lambda a: a["id"])
    keep = {s for s in vocab if len(s) == 6 and s.startswith("<0x")} | {a["content"] for a in added}
    keep |= {source["model"].get("unk_token")}
    byte_level = not any(s.startswith("<0x") for s in keep if s)
    alphabet = set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    keep |= alphabet if byte_level else {chr(c) for c in [*range(32, 127), *range(0xA0, 0x180), *range(0x400, 0x450), 0x2581]}
    few = []
    for m in merges:
        a, b = pair(m)
        if len(few) < N_MERGES and (byte_level or len(a + b) < 9) and all(len(s) == 1 or s in keep for s in (a, b)):
            keep |= {a, b, a + b}
            few.append(m)
    order = sorted((s for s in vocab if s in keep), key=vocab.get)
    t["model"]["vocab"] = {s: i for i, s in enumerate(order)}
    t["model"]["merges"] = few
    t["added_tokens"] = [dict(a, id=t["model"]["vocab"].get(a["content"], len(order) + i)) for i, a in enumerate(
        sorted(added, key=lambda a: a["content"] in vocab and -1 or 0))]
    new = len(order)
    for a in t["added_tokens"]:
        if a["content"] in t["model"]["vocab"]:
            continue
        a["id"] = new
        new += 1
    ids = {a["content"]: a["id"] for a in t["added_tokens"]} | t["model"]["vocab"]

    def renumber(o):
        if isinstance(o, dict):
            if "ids" in o and "tokens" in o:
                o["ids"] = [ids[s] for s in o["tokens"]]
            for v in o.values():
                renumber(v)
        elif isinstance(o, list):
            for v in o:
                renumber(v)

    renumber(t["post_processor"])
    return t


def metaspace(scheme, split):
    return {"type": "Metaspace", "replacement": LINE, "prepend_scheme": scheme, "split": split}


def variants(family):
    """name: a tokenizer that is like a family's but for what is set here."""
    sp, raw = family["mistral-v7-metaspace"], family["llama-2"]
    for scheme in ("first", "always", "never"):
        for split in (False, True):
            yield f"metaspace-{scheme}{'-split' if split else ''}", sp, {
                "pre_tokenizer": metaspace(scheme, split), "decoder": {**metaspace(scheme, split)}}
    for fuse in (False, True):
        yield f"unk-{'fused' if fuse else 'alone'}", raw, {"model.byte_fallback": False, "model.fuse_unk": fuse}
    yield "no-unk", raw, {"model.byte_fallback": False, "model.unk_token": None}
    some = {s: i for s, i in raw["model"]["vocab"].items() if s not in ("<0xF0>", "<0xE4>")}
    for fuse in (False, True):
        yield f"some-bytes-{'fused' if fuse else 'alone'}", raw, {"model.vocab": some, "model.fuse_unk": fuse}
    byte_merges = [["<0xF0>", "<0x9F>"], ["<0x98>", "<0x80>"], ["<0xF0><0x9F>", "<0x98><0x80>"], ["a", "<0xF0><0x9F>"]]
    n = max(raw["model"]["vocab"].values())
    yield "byte-merges", raw, {
        "model.vocab": raw["model"]["vocab"] | {a + b: n + 4 + i for i, (a, b) in enumerate(byte_merges)},
        "model.merges": [list(pair(m)) for m in raw["model"]["merges"]] + byte_merges}
    yield "ignore-merges", raw, {"model.ignore_merges": True, "pre_tokenizer": metaspace("never", True)}
    yield "replace-regex", raw, {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "[0-9]+|\\s{2,}"}, "content": " 7 "},
        {"type": "Prepend", "prepend": "a "}, {"type": "Replace", "pattern": {"String": " "}, "content": LINE}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "ByteFallback"}, {"type": "Replace", "pattern": {"String": LINE}, "content": "  "},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}}
    roberta = {"type": "RobertaProcessing", "sep": ["<|endoftext|>", 0], "cls": ["!", 1], "trim_offsets": True,
               "add_prefix_space": True}
    yield "roberta", family["gpt-2"], {"post_processor": roberta, "pre_tokenizer": {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
    yield "behind-bytes", family["gpt-2"], {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, byte_level, {"type": "Punctuation", "behavior": "MergedWithNext"},
        {"type": "Split", "pattern": {"Regex": "\u0120+"}, "behavior": "MergedWithPrevious", "invert": False}]}}
    yield "missing-bytes", family["gpt-2"], {"model.unk_token": "!", "model.vocab": {
        s: i for s, i in family["gpt-2"]["model"]["vocab"].items() if s not in ("\u00f0", "\u0141")}, "model.merges": []}
    flags = [dict(content=c, single_word=False, lstrip=False, rstrip=False, normalized=True, special=False, **{"id": 0})
             for c in ("cafe\u0301", "7 up", LINE + "it", "<special>")]
    flags[-1]["special"] = True
    n = max(raw["model"]["vocab"].values()) + 1
    yield "normalized-added", raw, {"added_tokens": raw["added_tokens"] + [dict(f, id=n + i) for i, f in enumerate(flags)]}


def changed(tokenizer, changes):
    t = copy.deepcopy(tokenizer)
    for path, value in changes.items():
        *folders, name = path.split(".")
        o = t
        for f in folders:
            o = o[f]
        o[name] = value
    return t


def write(name, tokenizer, texts, rng):
    hf = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
    ids = sorted(hf.get_vocab().values())
    special = [a["id"] for a in tokenizer["added_tokens"]]
    sequences = [[rng.choice(ids) for _ in range(rng.randrange(1, 12))] for _ in range(N_SEQUENCES // 2)]
    raw_bytes = [hf.token_to_id(f"<0x{b:02X}>") for b in "\u00e9\U0001f600\n".encode() + b"\xff\xe2\x82"]
    pool = [i for i in raw_bytes if i is not None] + special + [i for i in ids[:400:13]]
    sequences += [[rng.choice(pool) for _ in range(rng.randrange(1, 14))] for _ in range(N_SEQUENCES // 2)]
    sequences += [hf.encode(t).ids for t in texts[:20]]
    data = {
        "origin": f"HF tokenizers {tokenizers.__version__}, by make_tokenizers.py",
        "encode": [{"text": t, "ids": hf.encode(t, add_special_tokens=False).ids, "ids_special": hf.encode(t).ids}
                   for t in texts],
        "decode": [{"ids": s, "decoded": hf.decode(s), "decoded_all": hf.decode(s, skip_special_tokens=False)}
                   for s in sequences],
        "tokenizer": tokenizer,
    }
    lines = [f"{json.dumps(k)}: " + ("[\n" + ",\n".join(map(json.dumps, v)) + "\n]" if isinstance(v, list) else json.dumps(v))
             for k, v in data.items()]
    with open(os.path.join(OUT, name + ".json"), "w", encoding="utf-8") as f:
        f.write("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{name}: {len(ids)} ids, {len(texts)} texts, {sum(map(len, lines)) // 1024} KiB")


def main():
    shared, only = sys.argv[1], sys.argv[2:]
    with open(os.path.join(shared, "llama-2", "vectors.inp"), encoding="utf-8") as f:
        public = f.read().split("\n__ggml_vocab_test__\n")
    with open(os.path.join(shared, "qwen-2.5", "vectors.json"), encoding="utf-8") as f:
        texts = [e["text"] for e in json.load(f)["encode"]]
    rng = random.Random(1)
    texts = EXTRA + public + [t for t in rng.sample(texts, len(texts)) if 0 < len(t) < 120]
    family = {}
    for name in FAMILIES:
        with open(os.path.join(shared, name, "tokenizer.json"), encoding="utf-8") as f:
            family[name] = cut(json.load(f))
    todo = [(n, t, {}, N_TEXTS) for n, t in family.items()] + [(*v, 60) for v in variants(family)]
    for name, tokenizer, changes, n in todo:
        if not only or name in only:
            t = changed(tokenizer, changes)
            own = [a["content"] for a in t["added_tokens"][:5] + t["added_tokens"][-4:]]
            mixed = [f"a {c}{c} b{d}1 " for c, d in zip(own, own[1:] + own[:1])]
            write(name, t, texts[: n - len(mixed)] + mixed, random.Random(name))


if __name__ == "__main__":
    main()
