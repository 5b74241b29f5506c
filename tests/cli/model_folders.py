"""What a model folder may hold: one source of weights, in HF's layout, and what is said of anything else. What HF
transformers 5.24 does in each case stands beside it."""

import json
import os
import shutil

import cli
from cli import Job, PromptJob, codes_of, command, test

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read(name=SINGLE):
    with open(os.path.join(cli.TINY, name), "rb") as f:
        return f.read()


def unpack():
    return cli.tensors_of(cli.TINY)


def folder(name, *without, config=None, **files):
    """A copy of needle-tiny without some files, with other keys in config.json, and with other files (bytes or JSON)."""
    name = "model-" + name
    path = os.path.join(cli.WORK, name)
    shutil.copytree(cli.TINY, path)
    if config:
        cli.write(name + "/config.json", dict(cli.load(path + "/config.json"), **config))
    for file in without:
        os.remove(os.path.join(path, file))
    for file, content in files.items():
        cli.write("%s/%s" % (name, file), content)
    return path


def refused(path, *words, silent=()):
    """Refused by check and by run, with the same words; the first error is the one meant."""
    job = Job("job-" + os.path.basename(path), "model.path=" + path)
    ends = [job.command(which) for which in ("check", "run")]
    for ended in ends:
        ended.must(2)
        first = [line for line in ended.err.splitlines() if line.startswith("error: ")][0]
        for word in words:
            assert word in first, "%r is not in %r" % (word, first)
        for word in silent:
            assert word not in ended.err, ended.err
    assert not os.path.exists(job.output)


def accepted(path):
    Job("job-" + os.path.basename(path), "model.path=" + path).command("check").must(0)


def shards(n=2):
    """needle-tiny in so many files, and their index."""
    tensors, files, index = unpack(), {}, {}
    names = sorted(tensors)
    for i in range(n):
        file = "model-%05d-of-%05d.safetensors" % (i + 1, n)
        part = names[i * len(names) // n : (i + 1) * len(names) // n]
        files[file] = cli.safetensors({k: tensors[k] for k in part})
        index.update({k: file for k in part})
    return files, {"metadata": {}, "weight_map": index}


# Two sources of weights.


@test
def a_single_file_beside_an_index_of_other_files_is_refused_by_both_names():
    files, index = shards()
    # HF takes model.safetensors and says nothing of the index.
    refused(folder("both", **files, **{INDEX: index}), INDEX, SINGLE, "two sources")
    # The same without the shards, as somebody left it who made one file of them.
    refused(folder("left-over", **{INDEX: index}), INDEX, SINGLE, "two sources")
    one = {"weight_map": {k: SINGLE for k in index["weight_map"]}}
    accepted(folder("index-of-one", **{INDEX: one}))


@test
def shards_that_the_index_does_not_name_are_refused():
    files, index = shards()
    others, _ = shards(3)
    path = folder("two-sets", SINGLE, **files, **others, **{INDEX: index})
    refused(path, INDEX, "model-00001-of-00003.safetensors", "two sources")
    path = folder("set-and-file", SINGLE, **files, **{INDEX: index, "merged.safetensors": read()})
    refused(path, INDEX, "merged.safetensors", "two sources")


@test
def two_single_files_are_refused_by_both_names():
    # HF takes model.safetensors.
    refused(folder("two", **{"model-best.safetensors": read()}), SINGLE, "model-best.safetensors", "two sources")
    refused(folder("shard-beside", **{"model-00001-of-00002.safetensors": read()}), SINGLE, "model-00001-of-00002")


@test
def files_of_other_programs_beside_the_weights_are_nobody_s_mistake():
    files, index = shards()
    others = {
        "consolidated.safetensors": b"Mistral's own",
        "consolidated-00001-of-00002.safetensors": b"too",
        "consolidated.safetensors.index.json": {},
        "params.json": {},
        "pytorch_model.bin": b"the same again",
        "model.Q4_K_M.gguf": b"GGUF",
        "._model.safetensors": b"macOS's",
        "tf_model.h5": b"",
    }
    accepted(folder("others", **others))
    accepted(folder("others-sharded", SINGLE, **files, **others, **{INDEX: index}))


@test
def an_adapter_beside_the_weights_is_refused():
    # HF applies it, where peft is installed.
    adapter = {"base_model_name_or_path": "x", "peft_type": "LORA"}
    refused(folder("adapter-too", **{"adapter_config.json": adapter}), "adapter_config.json", SINGLE)


# Weights that are not there.


@test
def shards_without_an_index_are_named_and_so_is_a_missing_one():
    files, index = shards(3)
    path = folder("no-index", SINGLE, **files)
    refused(path, "model-00001-of-00003.safetensors", INDEX, "missing", silent=["and so is"])
    del files["model-00002-of-00003.safetensors"]
    refused(folder("gap", SINGLE, **files), "model-00001-of-00003", INDEX, "and so is model-00002-of-00003")
    path = folder("indexed-gap", SINGLE, **files, **{INDEX: index})
    refused(path, "model-00002-of-00003.safetensors", "No such file")
    # HF does not take the only shard of one either.
    one, _ = shards(1)
    refused(folder("one-shard", SINGLE, **one), "model-00001-of-00001.safetensors", INDEX, silent=["and so is"])


@test
def weights_of_another_form_are_refused_with_what_to_do():
    convert = "M.from_pretrained(d, dtype=\"auto\").save_pretrained(to)"
    refused(folder("bin", SINGLE, **{"pytorch_model.bin": b"PK"}), "pytorch_model.bin", convert, "model-bin\"")
    many = {"pytorch_model-%05d-of-00002.bin" % i: b"PK" for i in (1, 2)}
    many["pytorch_model.bin.index.json"] = {}
    refused(folder("bins", SINGLE, **many), "pytorch_model-00001-of-00002.bin", convert)
    refused(folder("gguf", SINGLE, **{"x.Q8_0.gguf": b"GGUF"}), "x.Q8_0.gguf", "is GGUF", "gguf_file=\"x.Q8_0.gguf\"")
    native = {"consolidated.safetensors": b"", "params.json": {}}
    refused(folder("native", SINGLE, **native), "consolidated.safetensors", "Mistral's own format")
    refused(folder("meta", SINGLE, **{"consolidated.00.pth": b"PK", "params.json": {}}), ".pth", "Meta's own format")
    refused(folder("renamed", SINGLE, **{"weights.safetensors": read()}), "weights.safetensors", INDEX)
    refused(folder("flax", SINGLE, **{"flax_model.msgpack": b""}), "flax_model.msgpack", "Flax")
    refused(folder("none", SINGLE), SINGLE, "No such file")


@test
def a_folder_of_another_layout_says_what_it_is_alone():
    """Not that config.json, weights and tokenizer are missing."""
    ours = ("config.json", "generation_config.json", "tokenizer.json", SINGLE)
    adapter = {"adapter_config.json": {"peft_type": "LORA"}, "adapter_model.safetensors": b""}
    for name, files, words in (
        ("gguf-alone", {"model.gguf": b"GGUF"}, ["is GGUF", "model.gguf"]),
        ("adapter-alone", adapter, ["adapter_config.json", "LoRA", "merge_and_unload"]),
        ("native-alone", {"consolidated.safetensors": b"", "params.json": {}, "tekken.json": {}}, ["Mistral's own"]),
        ("meta-alone", {"consolidated.00.pth": b"", "params.json": {}, "tokenizer.model": b""}, ["Meta's own"]),
    ):
        refused(folder(name, *ours, **files), *words, silent=["No such file", "/config.json"])
    # An adapter's folder may well hold its model's tokenizer.
    refused(folder("adapter-and-tokenizer", *ours[:2], SINGLE, **adapter), "LoRA", silent=["No such file"])
    file = cli.write("model.gguf", b"GGUF")
    refused(file, "model.gguf", "is GGUF", silent=["No such file", "Not a directory"])
    cache = os.path.join(cli.WORK, "models--org--name")
    os.makedirs(cache + "/snapshots")
    os.makedirs(cache + "/refs")
    refused(cache, "snapshots/", silent=["No such file"])


@test
def dummy_weights_need_no_files():
    path = folder("dummy", SINGLE, **{"pytorch_model.bin": b"PK"})
    Job("dummy", "model.path=" + path, "model.weights=dummy").command("check").must(0)


@test
def a_tokenizer_of_another_form_is_refused_with_what_to_do():
    for name, words in (
        ("tokenizer.model", ["SentencePiece", "AutoTokenizer as T", "save_pretrained"]),
        ("vocab.json", ["AutoTokenizer as T"]),
        ("tekken.json", ["Mistral"]),
    ):
        path = folder("with-" + name, "tokenizer.json", **{name: b"x"})
        refused(path, "tokenizer.json: is missing", name, *words)
        command("tokenize", path).must(2, "tokenizer.json: is missing", name)
    refused(folder("without-any", "tokenizer.json"), "tokenizer.json", "No such file")


@test
def a_limit_of_10_to_the_30_in_tokenizer_config_is_no_error():
    """HF writes model_max_length so, where it knows no limit: in most published folders."""
    text = '{"model_max_length": 1000000000000000019884624838656, "chat_template": "{{ messages[0].content }}"}'
    path = folder("no-limit", **{"tokenizer_config.json": text})
    accepted(path)
    command("tokenize", path, stdin=b"code\n").must(0)
    ended = command("template", path, stdin=b'{"messages": [{"role": "user", "content": "hi"}]}\n')
    ended.must(0)
    assert ended.out == '"hi"\n', ended.out


@test
def quantised_weights_are_named():
    for method in ("gptq", "awq", "bitsandbytes", "mxfp4", "fbgemm_fp8", "modelopt"):
        path = folder(method, config={"quantization_config": {"quant_method": method}})
        refused(path, "config.json: quantization_config", method, "quantised")


# Tied weights.


@test
def an_output_that_differs_from_the_embedding_of_a_tied_model_is_refused():
    """HF 5.24 takes such an output, with a warning; earlier ones took the embedding in silence."""
    tensors, out, embedding = unpack(), "lm_head.weight", "model.embed_tokens.weight"
    tied = {"tie_word_embeddings": True}
    refused(folder("tied", config=tied), SINGLE, out, embedding, "tie_word_embeddings")
    same = dict(tensors, **{out: tensors[embedding]})
    accepted(folder("tied-same", config=tied, **{SINGLE: cli.safetensors(same)}))
    last = bytearray(tensors[embedding][1])
    last[-1] ^= 1
    same[out] = (tensors[out][0], bytes(last))
    refused(folder("tied-but-one", config=tied, **{SINGLE: cli.safetensors(same)}), SINGLE, out, embedding)
    without = {k: v for k, v in tensors.items() if k != out}
    accepted(folder("tied-without", config=tied, **{SINGLE: cli.safetensors(without)}))
    refused(folder("untied-without", **{SINGLE: cli.safetensors(without)}), SINGLE, out, "is missing")


# Ids beyond the model's.


def tokenizer(change):
    whole = cli.load(os.path.join(cli.TINY, "tokenizer.json"))
    change(whole)
    return {"tokenizer.json": whole}


def pad(whole):
    whole["added_tokens"].append(dict(whole["added_tokens"][2], id=1024, content="[PAD]"))


@test
def added_tokens_beyond_the_model_cost_the_records_that_hold_them():
    path = folder("pad", **tokenizer(pad))
    records = [{"id": i, "prompt": p, "max_tokens": 2} for i, p in enumerate(("code", "a [PAD] b", "[PA D]", "[PAD]"))]
    job = PromptJob("pad", records, "model.path=" + path)
    said = ["1025 ids (0 to 1024)", "the model 1024 (0 to 1023)"]
    for which in ("check", "plan"):
        ended = job.command(which)
        ended.must(0, *said)
        assert "error:" not in ended.err, ended.err
    rows = job.run(1)
    assert codes_of(rows) == [None, "tokenizer", None, "tokenizer"], rows
    for word in ("id 1024", "its 1024 ids are 0 to 1023"):
        assert word in rows[1]["error"]["message"], rows[1]
    assert rows[0]["text"] == PromptJob("no-pad", records[:1]).run()[0]["text"]
    # A token that another file beside tokenizer.json adds is one of them.
    beside = {"tokenizer_config.json": {"pad_token": "[PAD]"}}
    PromptJob("pad-beside", records, "model.path=" + folder("pad-beside", **beside)).command("check").must(0, *said)


@test
def a_vocabulary_beyond_the_model_is_refused_in_counts_and_ids():
    def larger(whole):
        whole["model"]["vocab"]["beyond"] = 1024

    def bos(whole):
        pad(whole)
        whole["post_processor"]["single"][0]["SpecialToken"]["id"] = "[PAD]"
        whole["post_processor"]["special_tokens"] = {"[PAD]": {"id": "[PAD]", "ids": [1024], "tokens": ["[PAD]"]}}
        whole["post_processor"]["pair"] = []

    for name, change in (("larger", larger), ("bos", bos)):
        path = folder(name, **tokenizer(change))
        refused(path, "tokenizer.json: needs 1025 ids (0 to 1024), the model has 1024 (0 to 1023)")


cli.main()
