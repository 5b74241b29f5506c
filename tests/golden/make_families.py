"""Makes families.json: the ids that HF transformers (float32, CPU, eager attention, greedy) gives for the
small models of tests/cli/checkpoints.py, and checks that every part of a family changes some of them.

Where an answer crosses the positions that a longrope model was trained on, HF changes the rope in the middle of
it. Such a record uses the long list all along (engine/model/rope.h): HF is asked with the long list alone.

usage: make_families.py [FAMILY]...      needs torch and transformers (PyPI); families.json says which made it
"""

import json
import os
import shutil
import sys
import tempfile

import torch
import transformers
from tokenizers import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "cli"))
import checkpoints  # noqa: E402

TOKENIZER = os.path.join(HERE, "..", "data", "needle-tiny", "tokenizer.json")
# What makes a family another one: without it, by tensors or by the config, an answer must differ.
PARTS = {
    "qwen2": ["q_proj.bias", "k_proj.bias", "v_proj.bias"],
    "qwen3": ["q_norm", "k_norm"],
    "gemma2": ["post_attention_layernorm", "pre_feedforward", "post_feedforward"],
    "gemma3": ["q_norm", "k_norm", "post_feedforward"],
}
# Keys of the config without which an answer must differ.
KEYS = {
    "mistral-window": ["sliding_window"],
    "qwen2-window": ["sliding_window", "max_window_layers"],
    "gemma2": ["attn_logit_softcapping", "query_pre_attn_scalar", "sliding_window"],
    "gemma3": ["query_pre_attn_scalar", "sliding_window_pattern", "rope_local_base_freq", "rope_scaling"],
}
OTHER = {"sliding_window": 400, "max_window_layers": 2, "query_pre_attn_scalar": 100, "sliding_window_pattern": 3, "rope_local_base_freq": 500.0}
# Changes of the object about RoPE by which an answer must differ: each leaves one part out.
LONGROPE = {"no short list": {"short_factor": None}, "no long list": {"long_factor": None},
            "no attention factor": {"attention_factor": 1.0}}
ROPES = {
    "phi3-longrope": LONGROPE,
    "phi3-partial": {"all turns": {"partial_rotary_factor": 1.0}},
    "phi4-mini": dict(LONGROPE, **{"all turns": {"partial_rotary_factor": 1.0}}),
    "gemma3-nested": {
        "no linear factor": {"full_attention": {"rope_type": "default", "rope_theta": 1000000.0}},
        "the usual local rope": {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
        "the usual global rope": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0}},
    },
}
PLAIN_ROPE = ["llama-linear", "llama-yarn", "qwen2-yarn"]


def change_rope(folder, changes):
    """A list of None is the other one; lists follow the pairs that turn."""
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        config = json.load(f)
    rope = config.get("rope_parameters") or config["rope_scaling"]
    for mine, other in (("short_factor", "long_factor"), ("long_factor", "short_factor")):
        if mine in changes:
            changes = dict(changes, **{mine: rope[other]})
    rope.update(changes)
    for key in ("short_factor", "long_factor"):
        if key in rope and "partial_rotary_factor" in changes:
            rope[key] += [1.0] * (32 - len(rope[key]))
    with open(path, "w") as f:
        json.dump(config, f)
    return folder


def load(name, folder):
    kind = "ImageTextToText" if "text_config" in checkpoints.CONFIGS[name] else "CausalLM"
    model = getattr(transformers, "AutoModelFor" + kind).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.generation_config.eos_token_id = 1
    model.generation_config.pad_token_id = 1
    return model


def answers(name, folder):
    model = crossing = load(name, folder)
    trained = 1 << 30
    if "original_max_position_embeddings" in checkpoints.CONFIGS[name]:
        trained = checkpoints.CONFIGS[name]["original_max_position_embeddings"]
        with tempfile.TemporaryDirectory() as work:
            long = shutil.copytree(folder, os.path.join(work, "long"))
            crossing = load(name, change_rope(long, {"short_factor": None}))
    tokenizer = Tokenizer.from_file(TOKENIZER)
    out, margin = [], 1e9
    for prompt in checkpoints.PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        crosses = ids.shape[1] <= trained < ids.shape[1] + checkpoints.NEW_TOKENS
        with torch.inference_mode():
            made = (crossing if crosses else model).generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=checkpoints.NEW_TOKENS,
                output_logits=True,
                return_dict_in_generate=True,
            )
        for row in made.logits:
            best = row[0].topk(2).values
            margin = min(margin, float(best[0] - best[1]))
        out.append(made.sequences[0][ids.shape[1] :].tolist())
    return out, margin


def save(path, golden):
    with open(path, "w") as f:
        json.dump(golden, f)
        f.write("\n")


def main():
    path = os.path.join(HERE, "families.json")
    golden = {"families": {}}
    if sys.argv[1:]:
        with open(path) as f:
            golden = json.load(f)
    golden = {"transformers": transformers.__version__, "torch": torch.__version__, "families": golden["families"]}
    with tempfile.TemporaryDirectory() as work:
        for name in sys.argv[1:] or checkpoints.CONFIGS:
            ids, margin = answers(name, checkpoints.write(name, os.path.join(work, name), TOKENIZER))
            golden["families"][name] = ids
            save(path, golden)
            distinct = len({i for row in ids for i in row})
            print(name, "margin %.4f," % margin, distinct, "different ids")
            assert margin > 5e-4 and distinct > 20, "draw others: near ties, or answers that say little"
            for part in PARTS.get(name, []):
                other, _ = answers(name, checkpoints.write(name, os.path.join(work, "without"), TOKENIZER, part))
                assert other != ids, part
            for key in KEYS.get(name, []):
                folder = checkpoints.write(name, os.path.join(work, "other"), TOKENIZER)
                with open(os.path.join(folder, "config.json")) as f:
                    config = json.load(f)
                with open(os.path.join(folder, "config.json"), "w") as f:
                    json.dump(dict(config, **{key: OTHER.get(key)}), f)
                assert answers(name, folder)[0] != ids, key
            for what, changes in ROPES.get(name, {}).items():
                folder = checkpoints.write(name, os.path.join(work, "other"), TOKENIZER)
                assert answers(name, change_rope(folder, changes))[0] != ids, what
            if name in PLAIN_ROPE:
                config_path = os.path.join(work, name, "config.json")
                with open(config_path) as f:
                    config = json.load(f)
                theta = (config.pop("rope_parameters", None) or {}).get("rope_theta", config.get("rope_theta"))
                config.pop("rope_scaling", None)
                with open(config_path, "w") as f:
                    json.dump(dict(config, rope_theta=theta), f)
                assert answers(name, os.path.join(work, name))[0] != ids, "the rope"


main()
