#!/usr/bin/env python3
"""Compares what `critical`, `keydiff` and `expected` keep with the PyPI package `kvpress` (0.5.5), on the CPU in float32.

usage: scorers_vs_kvpress.py KEPT_POSITIONS MODEL_DIR [--prompts N]

KEPT_POSITIONS is tests/unit/kept_positions.c as it was built. kvpress compresses the needle prompts with uniform
budgets and no pooling; a head's set is read off the keys that are left. It forces no window but where `critical` builds
on SnapKV, so for the others each head of ours gets the budget with which it chooses as many of the keys between sinks
and window as kvpress kept there; then the sets must be the same. Where they are not, scores of the tokens that differ
must be alike to within float32's rounding, and that is counted and printed. Exits 77 when kvpress can't be imported: it
wants a Python of its own, with transformers below 5.3.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys

os.environ["TQDM_DISABLE"] = "1"
try:
    import torch
    import transformers
    from kvpress import CriticalKVPress, ExpectedAttentionPress, KeyDiffPress, SnapKVPress
except ImportError as e:
    print(f"skipped: the Python package kvpress can't be imported ({e})")
    sys.exit(77)

WINDOW = 32
SHARES = (0.1, 0.2, 0.5)
ALIKE = 1e-4  # of scores, relative: sums of some hundred float32 numbers


class Watched:
    """A press that compresses nothing, and notes for each layer what it scored and would have kept."""

    def __init__(self, press):
        self.press, self.kept, self.scores = press, [], []

    def hook(self, module, _, kwargs, output):
        cache = kwargs["past_key_values"].layers[module.layer_idx]
        keys, values = cache.keys, cache.values
        args = (module, kwargs["hidden_states"], keys, values, output[1], kwargs)
        left, _ = self.press.compress(*args)
        self.scores.append(self.press.score(*args)[0])
        same = (left[0].unsqueeze(2) == keys[0].unsqueeze(1)).all(-1)  # [heads, kept, tokens]
        assert (same.sum(-1) == 1).all(), "two tokens have the same key"
        self.kept.append([sorted(row.argmax(-1).tolist()) for row in same.int()])
        return output

    def run(self, model, ids):
        self.kept, self.scores = [], []
        hooks = []
        for layer in model.model.layers:
            layer.self_attn.rotary_emb = model.model.rotary_emb
            hooks.append(layer.self_attn.register_forward_hook(self.hook, with_kwargs=True))
        with torch.no_grad():
            model(torch.tensor([ids]), past_key_values=transformers.DynamicCache(), use_cache=True)
        for h in hooks:
            h.remove()
        return [set(h) for layer in self.kept for h in layer], torch.cat(self.scores)


def share_of(n_kept, n):
    """The ratio by which kvpress keeps n_kept of n."""
    return 1 - (n_kept + 0.5) / n


def critical(n, budget):
    """Half of what is chosen first, beside the window, which kvpress counts in both stages."""
    first = WINDOW + max(1, (budget - WINDOW) // 2)
    base = SnapKVPress(compression_ratio=share_of(budget, n), window_size=WINDOW, kernel_size=1)
    return CriticalKVPress(base, first_stage_ratio=(first + 0.25) / (budget + 0.5))


def keydiff(n, budget):
    return KeyDiffPress(compression_ratio=share_of(budget, n))


def expected(n, budget):
    return ExpectedAttentionPress(compression_ratio=share_of(budget, n), n_sink=4)


SCORERS = {"critical": (critical, 0), "keydiff": (keydiff, 0), "expected": (expected, 4)}


def ours(args, scorer, sinks, budgets):
    lines = "\n".join(" ".join(map(str, b)) for b in budgets)
    run = subprocess.run([args.binary, args.model, "keep", str(len(budgets)), scorer, "1", str(sinks), str(WINDOW)],
                         input=lines, capture_output=True, text=True, check=True)
    return [[set(h) for h in json.loads(line)] for line in run.stdout.splitlines()]


def compare(args, model, prompts, scorer, share):
    """Heads compared, and those with a near-tie; ends the program where sets differ by more."""
    make, sinks = SCORERS[scorer]
    theirs, budgets = [], []
    for ids in prompts:
        n, budget = len(ids), max(WINDOW + sinks + 8, int(share * len(ids)))
        sets, scores = Watched(make(n, budget)).run(model, ids)
        open_ = set(range(sinks, n - WINDOW))
        theirs.append(([s & open_ for s in sets], scores, open_))
        budgets.append([sinks + WINDOW + len(s & open_) for s in sets])
    n_heads = n_ties = 0
    for (sets, scores, open_), mine in zip(theirs, ours(args, scorer, sinks, budgets)):
        for h, (want, got) in enumerate(zip(sets, mine)):
            n_heads += 1
            if got & open_ == want:
                continue
            n_ties += 1
            differing = scores[h][sorted(want ^ (got & open_))]
            spread = (differing.max() - differing.min()).item()
            assert spread <= ALIKE * differing.abs().max().item(), \
                f"{scorer} at {share}: head {h} keeps {sorted(got & open_ - want)} for {sorted(want - got)}: {differing}"
    return n_heads, n_ties


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=6)
    args = parser.parse_args()
    listed = subprocess.run([args.binary, args.model, "ids", str(args.prompts)], capture_output=True, text=True, check=True)
    prompts = [json.loads(line) for line in listed.stdout.splitlines()]
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    print("kvpress", importlib.metadata.version("kvpress"), "transformers", transformers.__version__)
    for scorer in SCORERS:
        for share in SHARES:
            n_heads, n_ties = compare(args, model, prompts, scorer, share)
            assert n_ties * 50 <= n_heads, f"{scorer} at {share}: {n_ties} of {n_heads} heads differ"
            print(f"{scorer} at {share:.0%}: {n_heads} heads, {n_heads - n_ties} of them the same set"
                  + (f", {n_ties} but for near-ties" if n_ties else ""))


if __name__ == "__main__":
    main()
