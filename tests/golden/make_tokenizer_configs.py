#!/usr/bin/env python3
"""Makes tests/golden/tokenizer_configs.json: what HF transformers 5 makes of tokenizer_config.json and its like.

usage: make_tokenizer_configs.py     (with transformers 5 and tokenizers)

Each case is a tokenizer of golden/tokenizers with files beside it, and the ids and texts that AutoTokenizer gives.
"""
import json
import os
import random
import tempfile

import tokenizers
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA = {"model_type": "llama"}


def token(content, **flags):
    return {**dict(content=content, lstrip=False, rstrip=False, single_word=False, normalized=False, special=True), **flags}


def typed(content, **flags):
    return {"__type": "AddedToken", **token(content, **flags)}


# name, tokenizer, config.json, tokenizer_config.json, special_tokens_map.json, perhaps added_tokens.json
CASES = [
    ("nothing", "llama-2", LLAMA, {}, None),
    ("llama class", "llama-2", LLAMA, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}, None),
    ("llama class, legacy", "llama-2", LLAMA, {"tokenizer_class": "LlamaTokenizerFast", "legacy": True}, None),
    ("llama class, no prefix", "llama-2", LLAMA, {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}, None),
    ("llama class, legacy null", "mistral-v0.3", LLAMA, {"tokenizer_class": "LlamaTokenizer", "legacy": None, "bos_token": "<s>"}, None),
    ("llama class of a mistral", "mistral-v0.3", {"model_type": "mistral"}, {"tokenizer_class": "LlamaTokenizer", "legacy": False}, None),
    ("llama class of a phi3", "llama-2", {"model_type": "phi3"}, {"tokenizer_class": "LlamaTokenizer", "legacy": False}, None),
    ("llama class with bytes", "llama-3", LLAMA, {"tokenizer_class": "LlamaTokenizer", "bos_token": "<|begin_of_text|>"}, None),
    ("llama class, tokens", "llama-2", LLAMA, {"tokenizer_class": "LlamaTokenizer", "pad_token": "<pad>", "added_tokens_decoder": {
        "0": token("<unk>"), "1": token("<s>"), "2": token("</s>"), "1180": token("<new>", special=False),
        "1179": token("it", special=False, normalized=True)}}, None),
    ("gemma class", "gemma-layout", {"model_type": "gemma2"}, {"tokenizer_class": "GemmaTokenizer", "bos_token": "<s>",
     "eos_token": "</s>", "clean_up_tokenization_spaces": False}, None),
    ("gemma type", "llama-2", {"model_type": "gemma3_text"}, {"unk_token": "<unk>", "mask_token": None}, None),
    ("qwen class", "qwen-2.5", {"model_type": "qwen2"}, {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}, None),
    ("qwen class, prefix", "qwen-2.5", {"model_type": "qwen2"}, {"add_prefix_space": True}, None),
    ("named and not special", "gpt-2", LLAMA, {"eos_token": "<n1>", "extra_special_tokens": {"x": "<n2>"}, "added_tokens_decoder": {
        "1999": token("<n1>", special=False), "2000": token("<n2>", special=False), "2001": token("<n3>", special=False)}}, None),
    ("qwen type wins", "deepseek-v4", {"model_type": "qwen2"}, {"tokenizer_class": "LlamaTokenizerFast"}, None),
    ("qwen3 type yields", "deepseek-v4", {"model_type": "qwen3"}, {"tokenizer_class": "PreTrainedTokenizerFast"}, None),
    ("qwen3 type", "gpt-2", {"model_type": "qwen3"}, {}, None),
    ("add_bos_token false", "llama-3", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False}, None),
    ("add_bos_token true", "gpt-2", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True,
     "bos_token": "<|endoftext|>", "clean_up_tokenization_spaces": True}, None),
    ("special ones", "gpt-2", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "bos_token": typed("<b>", lstrip=True),
     "eos_token": "he", "additional_special_tokens": ["<x>", typed("<y>", rstrip=True)], "image_token": "<image>"}, None),
    ("special ones by name", "gpt-2", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": {"a_token": "<aa>"}}, None),
    ("special_tokens_map", "gpt-2", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<p1>"},
     {"pad_token": token("<p2>"), "additional_special_tokens": ["<z>"]}),
    ("special_tokens_map is left out", "gpt-2", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<p1>", "added_tokens_decoder": {}},
     {"pad_token": token("<p2>")}),
    ("added tokens", "gpt-2", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {
        "2000": token("<n2>", special=False), "1999": token("<n1>", special=False, normalized=True), "3": token("he", special=False)}}, None),
    ("other flags", "llama-2", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "added_tokens_decoder": {
        "0": token("<unk>", special=False), "1": token("<s>", lstrip=True, rstrip=True), "2": token("</s>", normalized=True)}}, None),
    ("other flags, then special", "gemma-layout", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "\n\n", "pad_token": "\n\n\n",
     "added_tokens_decoder": {"1": token("\n\n", special=False, normalized=True), "2": token("\t\t", special=True, normalized=True),
                              "3": token("<table>", special=False, normalized=True)}}, None),
    ("not special and named", "gemma-layout", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "\n\n"}, None),
    ("added_tokens.json", "gpt-2", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<p>"}, {"bos_token": token("<b>", lstrip=True)},
     {"<n2>": 3000, "<n1>": 2999, "<p>": 2998, "<b>": 2997, "he": 3}),
    ("added_tokens.json, extra ones", "gpt-2", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<x>"],
     "eos_token": typed("<e>", rstrip=True)}, None, {"<e>": 2500, "<y>": 2501, "<x>": 2502}),
    ("added_tokens.json, known ones", "gemma-layout", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}, None,
     {"\n\n": 5000, "<table>": 3, "<more>": 2, "\t\t": 1}),
    ("added_tokens.json is left out", "gpt-2", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {}}, None, {"<n1>": 2999}),
    ("added_tokens.json, llama class", "llama-2", LLAMA, {"tokenizer_class": "LlamaTokenizer", "legacy": False, "pad_token": "<pad>"}, None,
     {"<pad>": 1180, "<new>": 1179}),
    ("added_tokens.json, qwen class", "qwen-2.5", {"model_type": "qwen2"}, {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}, None,
     {"<|im_end|>": 4000, "<other>": 4001}),
    ("tokens that tokenizer.json lacks", "llama-2", LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<x>", "<y>"],
     "added_tokens_decoder": {"0": token("<unk>"), "1": token("<s>"), "2": token("</s>"), "9000": token("<far>", special=False), "1000": token("<near>")}}, None),
]


def main():
    out = []
    for name, base, config, tokenizer_config, special_map, *added in CASES:
        with open(os.path.join(HERE, "tokenizers", base + ".json"), encoding="utf-8") as f:
            golden = json.load(f)
        files = {"config.json": config, "tokenizer_config.json": tokenizer_config}
        if special_map is not None:
            files["special_tokens_map.json"] = special_map
        if added:
            files["added_tokens.json"] = added[0]
        with tempfile.TemporaryDirectory() as folder:
            for file, value in {**files, "tokenizer.json": golden["tokenizer"]}.items():
                with open(os.path.join(folder, file), "w", encoding="utf-8") as f:
                    json.dump(value, f)
            hf = transformers.AutoTokenizer.from_pretrained(folder)
        own = [t.content for t in hf.added_tokens_decoder.values()]
        rng = random.Random(name)
        texts = ["", "a b", "  it's he there\n\n 12", "caf\u00e9 cafe\u0301 \u4f60\u597d \U0001f600", "x\n\n\n\t\t<table> y", "he <x> he<pad>he <b> <s> a </s> b"]
        texts += [f"a {t}{t} b {t} it " for t in own[:6] + own[-8:]]
        ids = sorted(hf.get_vocab().values())
        sequences = [[rng.choice(ids + 20 * [i for i in hf.added_tokens_decoder]) for _ in range(7)] for _ in range(15)]
        out.append({
            "name": name, "class": type(hf).__name__, "tokenizer": base, "files": files,
            "encode": [{"text": t, "ids": hf(t, add_special_tokens=False).input_ids, "ids_special": hf(t).input_ids} for t in texts],
            "decode": [{"ids": s, "decoded": hf.decode(s, skip_special_tokens=True), "decoded_all": hf.decode(s)} for s in sequences],
        })
        print(f"{name}: {type(hf).__name__}, {len(ids)} ids")
    with open(os.path.join(HERE, "tokenizer_configs.json"), "w", encoding="utf-8") as f:
        f.write(f'{{"origin": "HF transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, by make_tokenizer_configs.py",\n"cases": [\n')
        f.write(",\n".join(json.dumps(c) for c in out) + "\n]}\n")


if __name__ == "__main__":
    main()
