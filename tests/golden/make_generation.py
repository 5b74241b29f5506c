"""Makes generation.json: the ids that HF transformers (float32, CPU, greedy) gives for the small Llama of
tests/cli/checkpoints.py with what a generation_config.json may say beside chance.

usage: make_generation.py      needs torch and transformers (PyPI); generation.json says which made it
"""

import json
import os
import sys
import tempfile

import torch
import transformers
from tokenizers import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "cli"))
import checkpoints  # noqa: E402

TOKENIZER = os.path.join(HERE, "..", "data", "needle-tiny", "tokenizer.json")


def answers(model, settings):
    tokenizer = Tokenizer.from_file(TOKENIZER)
    out = []
    for prompt in checkpoints.PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        with torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=checkpoints.NEW_TOKENS,
                pad_token_id=1,
                **dict({"eos_token_id": 1}, **settings)
            )
        out.append(made[0][ids.shape[1] :].tolist())
    return out


def main():
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.write("llama", folder, TOKENIZER)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    plain = answers(model, {})
    often = max({i for row in plain for i in row}, key=[i for row in plain for i in row].count)
    # Ends that come early, so that a minimum matters.
    ends = sorted({row[k] for row in plain for k in (0, 2)})
    cases = [
        {"repetition_penalty": 1.05},
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.8},
        {"suppress_tokens": sorted({often, plain[0][0], plain[1][3]})},
        {"eos_token_id": ends, "min_new_tokens": 5},
        {"eos_token_id": ends, "min_new_tokens": 2, "repetition_penalty": 1.3, "suppress_tokens": [plain[2][1]]},
    ]
    out = {"transformers": transformers.__version__, "torch": torch.__version__, "plain": plain, "cases": []}
    for settings in cases:
        ids = answers(model, settings)
        assert ids != plain, settings
        out["cases"].append({"settings": settings, "ids": ids})
    with open(os.path.join(HERE, "generation.json"), "w") as f:
        json.dump(out, f)
        f.write("\n")


main()
