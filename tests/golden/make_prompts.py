"""Makes prompts.json: the ids that LongBench's pred.py feeds a model, with its build_chat replaced by the
model's own chat template (HF transformers' apply_chat_template) and one BOS. tests/unit/test_prompt.c
compares them.

usage: make_prompts.py      needs transformers (PyPI); prompts.json says which made it
"""

import datetime
import json
import os
import random
import tempfile

import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
# A tokenizer of tokenizers/, and the template that goes with its kind.
FOLDERS = {
    "llama-2": "mistralai-Mistral-7B-Instruct-v0.2",
    "gemma-layout": "google-gemma-2-2b-it",
    "llama-3": "meta-llama-Llama-3.2-3B-Instruct",
    "qwen-2.5": "Qwen-QwQ-32B",
}
TOKENS = {"llama-3": ["<|begin_of_text|>", "<|end_of_text|>"], "qwen-2.5": [None, "<|endoftext|>"]}
DATE = datetime.date.today().isoformat()  # strftime_now is the machine's
WORDS = (
    "the a context question of passage Paragraph answer 42 \u00e9t\u00e9 \u4e2d\u6587\uff0c \U0001f600 isn't\n\n"
    "  - and 3.14 <s> </s> [INST] <|end_of_text|> "
).split(" ")


def texts():
    draw = random.Random(11)
    yield "Answer the question.\n\nContext: a b c.\n\nQuestion: why?\nAnswer:"
    yield " leading and trailing white space \n "
    for n in (20, 61, 150):
        yield " ".join(draw.choice(WORDS) for _ in range(n))


def ids_of(tokenizer, prompt, chat, max_length):
    """pred.py's get_pred, and how many tokens it cuts out."""
    ids = tokenizer(prompt, truncation=False).input_ids
    cut = 0
    if len(ids) > max_length:
        half = int(max_length / 2)
        cut = len(ids) - 2 * half
        prompt = tokenizer.decode(ids[:half], skip_special_tokens=True) + tokenizer.decode(
            ids[-half:], skip_special_tokens=True
        )
    if not chat:
        return tokenizer(prompt, truncation=False).input_ids, cut
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer(text, truncation=False, add_special_tokens=False).input_ids, cut


def main():
    out = {"transformers": transformers.__version__, "date": DATE, "cases": []}
    for name, template in FOLDERS.items():
        with open(os.path.join(HERE, "tokenizers", name + ".json")) as f:
            tokenizer_json = json.load(f)["tokenizer"]
        with open(os.path.join(HERE, "..", "data", "templates", template + ".jinja")) as f:
            chat_template = f.read()
        bos, eos = TOKENS.get(name, ["<s>", "</s>"])
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "tokenizer.json"), "w") as f:
                json.dump(tokenizer_json, f)
            tokenizer = transformers.PreTrainedTokenizerFast(
                tokenizer_file=os.path.join(folder, "tokenizer.json"),
                chat_template=chat_template,
                bos_token=bos,
                eos_token=eos,
            )
            tokens = {k: v for k, v in (("bos_token", bos), ("eos_token", eos)) if v}
            for text in texts():
                for chat in (False, True):
                    for max_length in (10, 17, 64, 1000):
                        ids, cut = ids_of(tokenizer, text, chat, max_length)
                        out["cases"].append(
                            {
                                "tokenizer": name,
                                "template": template if chat else None,
                                "tokens": tokens,
                                "text": text,
                                "max_length": max_length,
                                "cut": cut,
                                "ids": ids,
                            }
                        )
    with open(os.path.join(HERE, "prompts.json"), "w") as f:
        json.dump(out, f, separators=(",", ":"))
        f.write("\n")


main()
