#!/usr/bin/env python3
"""Jobs made from a seed that show what a user gets who sets nothing; run_defaults.sh runs them.

usage: defaults.py model DIR [--shape 8b|tiny] [--chain] [--tokenizer FILE] [--seed N]
       defaults.py job KIND DIR MODEL_DIR [--shape 8b|tiny] [--seed N]
       defaults.py run PART BINARY JOB_DIR MODEL_DIR RESULTS WORK [-s section.key=value]...
       defaults.py table RESULTS...

model  writes a model folder: config.json, tokenizer.json and, with --chain, weights. Without, they are the
       program's random ones (weights = dummy). --chain: attention and MLP compute as ever and add nothing,
       the next token follows from the last one alone: the words of a chain by turns, then the stop token. So
       the prompt's last word says how long the answer is, and neither the limit nor the scheduler knows.
       --tokenizer takes a byte-level BPE's tokenizer.json; without it one is made, whose words are all whole
       tokens.
job    writes prompts.jsonl, {"id", "prompt", "max_tokens"} a line, and expected.json: the tokens of every
       prompt and answer. KIND:
         lengths   300 records (environment: RECORDS) as LongBench's: prompts log-normal, median 8k, sigma 0.6, 1k to 30k; limits
                   32, 64, 64, 128, 128, 512
         long      prompts of 8,000 tokens, the yardstick of prefill
         short     4,000 prompts of 65 tokens with 4 new ones
         mixed     the same, limits even over 1 to 256
         skewed    160 records, every 8th with 900 new tokens, the others with 40, prompts of about 343
         stop      limit 4,096, answers of 30 to 900 tokens that the stop token ends, prompts of 1,000
       The shape tiny has lengths and numbers that a CPU does in seconds.
run    runs the binary once and adds a line of JSON to RESULTS.
table  prints all results, and what becomes of the targets.
Needs Python 3.8 and its standard library.
"""

import argparse
import json
import os
import random
import re
import shutil
import string
import subprocess
import sys
import time

SHAPES = {
    "8b": dict(hidden=4096, layers=32, heads=32, kv_heads=8, inter=14336, vocab=128256, positions=131072, scale=1),
    "tiny": dict(hidden=256, layers=4, heads=8, kv_heads=4, inter=512, vocab=4096, positions=8192, scale=16),
}
CHAIN = 900  # the longest answer
SLOTS = {"skewed": 16, "stop": 64}  # auto elsewhere
WORDS = re.compile("\u0120[a-z]{2,}")  # a blank, then letters: one piece of text, one token


# --- model folders -----------------------------------------------------------------


def byte_names():
    """How byte-level BPE writes the 256 bytes."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names, n = {b: chr(b) for b in seen}, 256
    for b in range(256):
        if b not in names:
            names[b] = chr(n)
            n += 1
    return [names[b] for b in range(256)]


def make_tokenizer(n_vocab, rng):
    vocab = {name: i for i, name in enumerate(byte_names())}
    n_words = n_vocab - 256 - 2
    while len(vocab) < 256 + n_words:
        vocab.setdefault("\u0120" + "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 7))), len(vocab))
    special = [(n_vocab - 2, "<|begin|>"), (n_vocab - 1, "<|end|>")]
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    bos = {"id": special[0][1], "ids": [special[0][0]], "tokens": [special[0][1]]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [dict(id=i, content=text, **flags) for i, text in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos["id"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos["id"]: bos},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is in the vocabulary is a token
            "vocab": vocab,
            "merges": [],
        },
    }


def whole_words(tokenizer):
    """(text, id) of the words that are one token each, wherever they stand behind one another."""
    vocab = tokenizer["model"]["vocab"]
    return sorted(((w, i) for w, i in vocab.items() if WORDS.fullmatch(w)), key=lambda x: x[1])


def chain_of(tokenizer, config):
    """Words whose rows in the embedding differ, which repeats itself: see write_weights."""
    period, seen, chain = block_rows(config), set(), []
    for word, i in whole_words(tokenizer):
        if i % period not in seen and len(chain) < CHAIN:
            seen.add(i % period)
            chain.append((word, i))
    assert len(chain) == CHAIN, "the tokenizer has too few words for a chain"
    return chain


def block_rows(config):
    return max(1, (32 << 20) // config["hidden_size"])


def random_bf16(n, rng):
    """n numbers between 0.5 and 2 in size, of either sign."""
    low = rng.getrandbits(8 * n).to_bytes(n, "little")
    signs = rng.getrandbits(8 * n).to_bytes(n, "little")
    out = bytearray(2 * n)
    out[0::2] = low
    out[1::2] = signs.translate(bytes([0x3F] * 128 + [0xBF] * 128))
    return bytes(out)


def write_weights(path, config, chain, eos, rng):
    """A checkpoint most of which is holes in the file. The residual stream is the embedding of the last token,
    as the output and down projections are zeros; the row of the head that it fits is that of the next one."""
    hidden, inter, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    q = config["num_attention_heads"] * config["head_dim"]
    tensors = [("model.embed_tokens.weight", [vocab, hidden], "random"), ("model.norm.weight", [hidden], "ones")]
    for layer in range(config["num_hidden_layers"]):
        name = "model.layers.%d." % layer
        tensors += [
            (name + "input_layernorm.weight", [hidden], "ones"),
            (name + "post_attention_layernorm.weight", [hidden], "ones"),
            (name + "self_attn.q_proj.weight", [q, hidden], "random"),
            (name + "self_attn.k_proj.weight", [kv, hidden], "random"),
            (name + "self_attn.v_proj.weight", [kv, hidden], "random"),
            (name + "self_attn.o_proj.weight", [hidden, q], "zeros"),
            (name + "mlp.gate_proj.weight", [inter, hidden], "zeros"),
            (name + "mlp.up_proj.weight", [inter, hidden], "zeros"),
            (name + "mlp.down_proj.weight", [hidden, inter], "zeros"),
        ]
    tensors.append(("lm_head.weight", [vocab, hidden], "head"))
    header, at = {}, 0
    for name, shape, _ in tensors:
        n_bytes = 2
        for d in shape:
            n_bytes *= d
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = random_bf16(block_rows(config) * hidden, rng)
    row = 2 * hidden
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        base = f.tell()
        f.truncate(base + at)
        for name, shape, what in tensors:
            begin, end = header[name]["data_offsets"]
            f.seek(base + begin)
            if what == "ones":
                f.write(b"\x80\x3f" * shape[0])
            for k in range(begin, end if what == "random" else begin, len(block)):
                f.write(block[: end - k])
            for (_, this), following in zip(chain, [i for _, i in chain[1:]] + [eos]) if what == "head" else ():
                f.seek(base + begin + following * row)
                k = this * row % len(block)
                f.write(block[k : k + row])


def make_model(args):
    shape, rng = SHAPES[args.shape], random.Random(args.seed)
    os.makedirs(args.dir, exist_ok=True)
    if args.tokenizer:
        shutil.copyfile(args.tokenizer, os.path.join(args.dir, "tokenizer.json"))
        with open(args.tokenizer, encoding="utf-8") as f:
            tokenizer = json.load(f)
        eos = max(t["id"] for t in tokenizer["added_tokens"])
    else:
        tokenizer, eos = make_tokenizer(shape["vocab"], rng), shape["vocab"] - 1
        with open(os.path.join(args.dir, "tokenizer.json"), "w", encoding="utf-8") as f:
            json.dump(tokenizer, f)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["inter"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["hidden"] // shape["heads"],
        "vocab_size": max(shape["vocab"], eos + 1),
        "max_position_embeddings": shape["positions"],
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "bos_token_id": eos - 1,
        "eos_token_id": eos,
    }
    with open(os.path.join(args.dir, "config.json"), "w") as f:
        json.dump(config, f, indent=1)
    if args.chain:
        chain = chain_of(tokenizer, config)
        write_weights(os.path.join(args.dir, "model.safetensors"), config, chain, eos, rng)


# --- jobs --------------------------------------------------------------------------


def lengths_of(kind, scale, rng):
    """(tokens of the prompt, limit, tokens of the answer) of every record. scale: shorter and fewer by that."""
    records = []
    n = {"lengths": int(os.environ.get("RECORDS", 300)), "long": 64, "short": 4000, "mixed": 4000, "skewed": 160, "stop": 640}[kind]
    if kind not in ("skewed", "stop"):
        n = max(24, n // scale)
    for i in range(n if scale == 1 or kind != "stop" else 2 * SLOTS["stop"]):
        if kind == "lengths":
            t = min(30000, max(1000, round(8000 * rng.lognormvariate(0, 0.6)))) // scale
            limit = max(2, rng.choice((32, 64, 64, 128, 128, 512)) // scale)
        elif kind == "long":
            t, limit = 8000 // scale, 4
        elif kind in ("short", "mixed"):
            t, limit = 65, 4 if kind == "short" else rng.randint(1, 256)
        elif kind == "skewed":
            t, limit = rng.randint(300, 386), 900 if i % 8 == 0 else 40
        else:
            t, limit = 1000 if scale == 1 else 300, 4096
        records.append((t, limit, rng.randint(30, 900) if kind == "stop" else limit))
    return records


def make_job(args):
    with open(os.path.join(args.model, "tokenizer.json"), encoding="utf-8") as f:
        tokenizer = json.load(f)
    with open(os.path.join(args.model, "config.json")) as f:
        config = json.load(f)
    words = [w[1:] for w, _ in whole_words(tokenizer)]
    chain = [w[1:] for w, _ in chain_of(tokenizer, config)]
    rng = random.Random("%s %d" % (args.kind, args.seed))
    records = lengths_of(args.kind, SHAPES[args.shape]["scale"], rng)
    os.makedirs(args.dir, exist_ok=True)
    with open(os.path.join(args.dir, "prompts.jsonl"), "w") as f:
        for i, (n_tokens, limit, answer) in enumerate(records):
            text = rng.choices(words, k=n_tokens - 1)  # and the token that begins every prompt
            if args.kind == "stop":
                text[-1] = chain[CHAIN - answer]
            f.write(json.dumps({"id": i, "prompt": " " + " ".join(text), "max_tokens": limit}) + "\n")
    with open(os.path.join(args.dir, "expected.json"), "w") as f:
        json.dump({"kind": args.kind, "prompts": [r[0] for r in records], "answers": [r[2] for r in records]}, f)
    print("%s: %d records, %d tokens in, %d out" % (args.kind, len(records), sum(r[0] for r in records), sum(r[2] for r in records)))


# --- runs --------------------------------------------------------------------------

JOB = """[job]
name = {name}
output = {output}
[input]
archives = {job}/prompts.jsonl
members = *
format = prompt
[model]
path = {model}
weights = {weights}
[profile]
{profile}
[engine]
{engine}
"""


def kind_of(part):
    return "lengths" if part == "auto" or part.isdigit() else part


def settings_of(part, backend):
    """The sections profile and engine. All else is left to the program."""
    kind, engine = kind_of(part), ["backend = " + backend]
    if part.isdigit():
        engine.append("slots = " + part)
    if kind in SLOTS:
        engine.append("slots = %d" % int(os.environ.get("SLOTS", SLOTS[kind])))
    kept = {"skewed": 100, "stop": 256}.get(kind)
    profile = "method = uniform\nbudget = %d" % kept if kept else "budget = 1024"
    return profile, "\n".join(engine)


def steps_needed(answers, n_slots):
    """Decode steps of slots that are refilled at once, in order: all of them, and the slots' steps and tokens
    until the input ends. An answer's first token comes from prefill."""
    free, ends = [0] * n_slots, 0
    for n in answers:
        s = min(range(n_slots), key=free.__getitem__)
        ends = free[s]
        free[s] += n - 1
    return max(free), ends


def occupancy(expected, stats, n_slots):
    """Tokens of finished records per slot and step while input lasts, as far as totals show it: the steps
    that were too many all count as steps of that time."""
    most, ends = steps_needed(expected["answers"], n_slots)
    if not ends:
        return None
    spent = stats["decode_steps"] - (most - ends)
    return ends / spent if spent > 0 else None


def run(args):
    with open(os.path.join(args.job, "expected.json")) as f:
        expected = json.load(f)
    output = os.path.join(args.work, args.part)
    shutil.rmtree(output, ignore_errors=True)
    profile, engine = settings_of(args.part, os.environ.get("BACKEND", "cuda"))
    dummy = not os.path.exists(os.path.join(args.model, "model.safetensors"))
    text = JOB.format(
        name=args.part,
        output=output,
        job=os.path.abspath(args.job),
        model=os.path.abspath(args.model),
        weights="dummy" if dummy else "files",
        profile=profile,
        engine=engine,
    )
    path = output + ".ini"
    with open(path, "w") as f:
        f.write(text)
    # Constants are calibrated anew, as on a machine that has seen no job.
    env = dict(os.environ, XDG_CACHE_HOME=output + ".cache")
    shutil.rmtree(env["XDG_CACHE_HOME"], ignore_errors=True)
    argv = [args.binary, "run", path] + [x for s in args.settings or () for x in ("-s", s)]
    start = time.monotonic()
    with open(output + ".log", "wb") as log:
        code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env).returncode
    result = {
        "part": args.part,
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", "-"),
        "settings": args.settings or [],
        "code": code,
        "wall": time.monotonic() - start,
    }
    for name in ("stats.json", "plan.json"):
        if os.path.exists(os.path.join(output, name)):
            with open(os.path.join(output, name)) as f:
                result[name.split(".")[0]] = json.load(f)
    stats, plan = result.get("stats"), result.pop("plan", {})
    if stats and "run" in stats:
        stats = result["stats"] = stats["run"]
    result.update(slots=plan.get("slots"), ranks=plan.get("ranks"))
    if stats and stats["complete"]:
        result["same_prompts"] = stats["prompt_tokens"] == sum(expected["prompts"])
        result["same_answers"] = stats["completion_tokens"] == sum(expected["answers"])
        if plan and kind_of(args.part) in SLOTS:
            result["occupancy"] = occupancy(expected, stats, plan["slots"])
    with open(args.results, "a") as f:
        f.write(json.dumps(result) + "\n")
    if code:
        with open(output + ".log", errors="replace") as f:
            print("".join(f.readlines()[-5:]), end="")
    print("%s: exit %d in %.1f s" % (args.part, code, result["wall"]), flush=True)
    return 0 if code == 0 else 1


# --- the table ---------------------------------------------------------------------


def seconds(result, name):
    return result["stats"]["seconds"].get(name, 0.0)


def calibration(result):
    """What measuring the device took; a program that does not state it apart does it as it plans."""
    return seconds(result, "calibrate") if "calibrate" in result["stats"]["seconds"] else seconds(result, "plan")


def records_alone(result):
    return result["wall"] - calibration(result) - seconds(result, "sample") - seconds(result, "profile")


def rate(result):
    return result["stats"]["prompt_tokens"] / max(1e-9, seconds(result, "prefill"))


def restarted(result):
    stats = result["stats"]
    return stats.get("restarted_tokens", 0) / max(1, stats["completion_tokens"])


def targets(good):
    """(what, whether it is met or None, how it came out)."""
    slots = {part: records_alone(r) for part, r in good.items() if part.isdigit()}
    if "auto" in good and slots:
        best = min(slots, key=slots.get)
        ratio = records_alone(good["auto"]) / slots[best]
        whole = good["auto"]["wall"] / min(good[p]["wall"] for p in slots)
        text = "%.3f of %s slots' (%d settings; with calibration and profile %.3f of the best)"
        yield "auto within 3% of the best number of slots", ratio <= 1.03, text % (ratio, best, len(slots), whole)
    else:
        yield "auto within 3% of the best number of slots", None, ""
    took = [calibration(good["auto"])] if "auto" in good else []
    yield "calibration at most 5 s", max(took) <= 5 if took else None, "%.1f s" % max(took) if took else ""
    for part in ("short", "mixed"):
        if part in good and "long" in good:
            share = rate(good[part]) / rate(good["long"])
            text = "%.0f tokens/s, %.2f of %.0f" % (rate(good[part]), share, rate(good["long"]))
            yield part + " prompts at 80% of long ones' prefill", share >= 0.8, text
        else:
            yield part + " prompts at 80% of long ones' prefill", None, ""
    for part in ("skewed", "stop"):
        r = good.get(part)
        share = r and r.get("occupancy")
        yield part + ": 0.95 tokens a slot and step", share and share >= 0.95, "%.3f" % share if share else ""
        yield part + ": at most 3% restarted", r and restarted(r) <= 0.03, "%.2f%%" % (100 * restarted(r)) if r else ""


def table(args):
    results = []
    for path in args.results:
        with open(path) as f:
            results += [json.loads(line) for line in f]
    good, bad = {}, 0
    head = ("part", "gpu", "slots", "start-end", "calibr.", "profile", "prefill", "decode", "steps", "prefill t/s", "note")
    print("%-7s %3s %5s %9s %8s %8s %8s %8s %7s %11s  %s" % head)
    for r in results:
        if r["code"] not in (0, 1) or "stats" not in r:
            bad += 1
            print("%-7s %3s %5s %9.1f  exit %d" % (r["part"], r["gpu"], r["slots"] or "", r["wall"], r["code"]))
            continue
        good[r["part"]] = r
        notes = [] if r.get("same_prompts") else ["other prompt tokens than made"]
        # Random weights may draw a stop token.
        if not r.get("same_answers") and r["part"] == "stop":
            notes.append("other answers than made")
        if r["stats"]["errors"]:
            notes.append("%d error rows" % r["stats"]["errors"])
        bad += len(notes)
        if r["settings"]:
            notes.append(" ".join(r["settings"]))
        print(
            "%-7s %3s %5d %9.1f %8.1f %8.1f %8.1f %8.1f %7d %11.0f  %s"
            % (r["part"], r["gpu"], r["slots"], r["wall"], calibration(r), seconds(r, "profile"), seconds(r, "prefill"),
               seconds(r, "decode"), r["stats"]["decode_steps"], rate(r), "; ".join(notes))
        )
    print()
    for what, met, how in targets(good):
        print("%-7s %-46s %s" % ("not run" if met is None else "pass" if met else "FAIL", what, how))
        bad += met is False
    return 1 if bad else 0


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("model")
    p.add_argument("dir")
    p.add_argument("--chain", action="store_true")
    p.add_argument("--tokenizer")
    p.set_defaults(function=make_model)
    q = commands.add_parser("job")
    for name in ("kind", "dir", "model"):
        q.add_argument(name)
    q.set_defaults(function=make_job)
    for each in (p, q):
        each.add_argument("--shape", choices=SHAPES, default="8b")
        each.add_argument("--seed", type=int, default=1)
    p = commands.add_parser("run")
    for name in ("part", "binary", "job", "model", "results", "work"):
        p.add_argument(name)
    p.add_argument("-s", dest="settings", action="append")
    p.set_defaults(function=run)
    p = commands.add_parser("table")
    p.add_argument("results", nargs="+")
    p.set_defaults(function=table)
    args = parser.parse_args()
    sys.exit(args.function(args))


if __name__ == "__main__":
    main()
