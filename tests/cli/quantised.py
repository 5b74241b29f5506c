"""Checkpoints in FP8: each published form answers with the bytes of its twin, whose float32 weights are the stored
numbers times their scales; what is wrong with one is refused by file and tensor."""

import array
import bisect
import functools
import json
import os
import shutil
import struct

import checkpoints
import cli
from cli import PromptJob, test


def _value(x):
    """Of the E4M3 byte x below 127."""
    return (x & 7) * 2.0**-9 if x < 8 else (8 + (x & 7)) * 2.0 ** ((x >> 3) - 10)


VALUES = [_value(x) for x in range(127)]
MIDDLES = [(a + b) / 2 for a, b in zip(VALUES, VALUES[1:])]
NAN = 127


def floats(entry, data):
    if entry["dtype"] == "F32":
        return array.array("f", data)
    assert entry["dtype"] == "BF16"
    return array.array("f", b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2)))


def bf16(values):
    """Rounded down to bf16, and their bytes."""
    raw = array.array("f", values).tobytes()
    data = b"".join(raw[i + 2 : i + 4] for i in range(0, len(raw), 4))
    return floats({"dtype": "BF16"}, data), data


def quantise(values, rows, cols, block, scale_dtype):
    """(E4M3 bytes, scales, the scales' bytes, float32 products)."""
    down, across = -(-rows // block[0]), -(-cols // block[1])
    most = [0.0] * (down * across)
    places = [i // cols // block[0] * across + i % cols // block[1] for i in range(rows * cols)]
    for at, x in zip(places, values):
        most[at] = max(most[at], abs(x))
    scales = array.array("f", (max(m, 1e-6) / 440 for m in most))
    data = scales.tobytes()
    if scale_dtype == "BF16":
        scales, data = bf16(scales)
    stored = bytearray(rows * cols)
    product = array.array("f", bytes(4 * rows * cols))
    for i, (at, x) in enumerate(zip(places, values)):
        code = bisect.bisect(MIDDLES, abs(x) / scales[at])
        # 4 bits times 24: exact in a double, so that it is rounded once, as a float32 product is.
        product[i] = VALUES[code] * scales[at] * (-1 if x < 0 else 1)
        stored[i] = code + (128 if x < 0 else 0)
    return bytes(stored), data, product.tobytes()


def fp8(**keys):
    return dict({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}, **keys)


def compressed(strategy, block=None, name="float-quantized", **keys):
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": strategy}
    activations = dict(weights, dynamic=True, strategy="token")
    group = {"targets": ["Linear"], "weights": dict(weights, block_structure=block), "input_activations": activations}
    return dict(
        {
            "quant_method": "compressed-tensors",
            "format": name,
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
            "kv_cache_scheme": None,
            "sparsity_config": {},
        },
        **keys
    )


# Name: the config's object, suffix of the scales, their dtype, block (None: all), scales' shape of down x across
# blocks, and whether embedding and output are quantised as well.
FORMS = {
    "hf": (fp8(weight_block_size=[128, 128]), "_scale_inv", "F32", (128, 128), lambda d, a: [d, a], False),
    "hf-odd": (fp8(weight_block_size=[48, 80]), "_scale_inv", "BF16", (48, 80), lambda d, a: [d, a], True),
    "hf-tensor": (fp8(weight_block_size=None), "_scale_inv", "F32", None, lambda d, a: [], False),
    "vllm": (fp8(activation_scheme="static"), "_scale", "F32", None, lambda d, a: [1], False),
    "channel": (compressed("channel"), "_scale", "BF16", (1, None), lambda d, a: [d, 1], False),
    "channel-flat": (compressed("channel", name="naive-quantized"), "_scale", "F32", (1, None), lambda d, a: [d], True),
    "tensor": (compressed("tensor"), "_scale", "BF16", None, lambda d, a: [1], False),
    "block": (compressed("block", [128, 128]), "_scale", "BF16", (128, 128), lambda d, a: [d, a], False),
}


@functools.lru_cache(maxsize=None)
def original(model):
    if model == "needle-tiny":
        return cli.TINY
    tokenizer = os.path.join(cli.TINY, "tokenizer.json")
    return checkpoints.write(model, os.path.join(cli.WORK, "original-" + model), tokenizer)


def store(source, name, tensors, config):
    """A copy of a folder with other tensors, and quantization_config config."""
    path = os.path.join(cli.WORK, "model-" + name)
    shutil.copytree(source, path)
    values = cli.load(os.path.join(path, "config.json"))
    values = dict(values, quantization_config=config) if config else values
    cli.write("model-%s/config.json" % name, json.dumps(values))
    cli.write("model-%s/model.safetensors" % name, cli.safetensors(tensors))
    return path


@functools.lru_cache(maxsize=None)
def pair(model, form):
    """The folders of a model in FP8, and of its twin."""
    config, suffix, dtype, block, shape_of, whole = FORMS[form]
    stored, twin = {}, {}
    for name, (entry, data) in cli.tensors_of(original(model)).items():
        stored[name] = twin[name] = (entry, data)
        if len(entry["shape"]) < 2 or (not whole and ("embed" in name or "lm_head" in name)):
            continue
        rows, cols = entry["shape"]
        size = (block[0], block[1] or cols) if block else (rows, cols)
        numbers, scales, product = quantise(floats(entry, data), rows, cols, size, dtype)
        stored[name] = ({"dtype": "F8_E4M3", "shape": [rows, cols]}, numbers)
        stored[name + suffix] = (
            {"dtype": dtype, "shape": shape_of(-(-rows // size[0]), -(-cols // size[1]))},
            scales,
        )
        twin[name] = ({"dtype": "F32", "shape": [rows, cols]}, product)
    name = "%s-%s" % (model, form)
    source = original(model)
    return store(source, name, stored, config), store(source, name + "-twin", twin, None)


def rows(name, path, ranks, *settings):
    records = [{"id": i, "prompt": prompt, "max_tokens": 16} for i, prompt in enumerate(checkpoints.PROMPTS)]
    source = cli.write("prompts.jsonl", cli.jsonl(records))
    job = PromptJob(name, source, "model.path=" + path, "engine.tensor_parallel=%d" % ranks, *settings)
    assert not any(row["error"] for row in job.run())
    return job.raw_rows()


def must_answer_as_twin(model, form, ranks, *settings, tag=""):
    got, want = (
        rows("%s-%s-%d-%s%s" % (model, form, ranks, which, tag), path, ranks, *settings)
        for which, path in zip(("fp8", "twin"), pair(model, form))
    )
    assert got == want, (model, form, ranks, got, want)
    return got


@test
def each_form_answers_as_the_twin_that_holds_the_products():
    """On 2 ranks slices begin inside blocks: rows 192 of 384 and columns 192 of 384 beside blocks of 128."""
    for form in FORMS:
        answers = [must_answer_as_twin("needle-tiny", form, ranks) for ranks in (1, 2)]
        assert len(answers[0]) == len(checkpoints.PROMPTS)
    whole = rows("whole", cli.TINY, 1)
    assert whole != rows("coarse", pair("needle-tiny", "hf-odd")[0], 1), "weights in FP8 would change nothing"


@test
def fused_weights_and_biases_beside_fp8_are_those_of_the_twin():
    """Phi-3's K begins at row 256 of qkv_proj, inside a block of 48; some of its rows are loaded in another order.
    Qwen2's biases are not in FP8."""
    for model, form in (
        ("phi4", "hf-odd"),
        ("phi4", "channel"),
        ("phi4", "tensor"),
        ("phi3-partial", "hf-odd"),
        ("qwen2", "hf"),
        ("qwen2", "channel-flat"),
        ("mistral3", "block"),
    ):
        for ranks in (1, 2):
            must_answer_as_twin(model, form, ranks)


@test
def scorers_that_read_the_output_projection_see_its_products():
    """critical and defensive load its columns by head."""
    for scorer in ("critical", "defensive"):
        settings = ("profile.method=ada", "profile.score=" + scorer, "profile.budget=48", "profile.sample=4")
        must_answer_as_twin("phi4", "hf-odd", 2, *settings, tag=scorer)


@test
def an_fp8_model_finds_the_needles():
    """Rounded to a few bits, needle-tiny still finds nearly as many as with whole weights."""
    found = []
    for path in (cli.TINY, pair("needle-tiny", "hf")[0]):
        job = cli.Job("needles-%d" % len(found), "model.path=" + path, "job.limit=60")
        found.append(cli.n_exact(job.run()))
    assert found[0] > 50 and found[1] >= found[0] - 6, found


@test
def held_in_fp8_a_model_finds_the_needles():
    """From whole weights, from a checkpoint whose numbers are kept as they are, and from one that is quantised anew."""
    found = []
    for i, path in enumerate((cli.TINY, cli.TINY, pair("needle-tiny", "channel")[0], pair("needle-tiny", "hf")[0])):
        settings = ["model.weights=fp8"] if i else []
        job = cli.Job("held-%d" % i, "model.path=" + path, "job.limit=60", *settings)
        found.append(cli.n_exact(job.run()))
    assert found[0] > 50 and min(found[1:]) >= found[0] - 6, found


@test
def made_up_weights_are_held_in_fp8():
    rows = PromptJob("dummy-fp8", [{"id": 1, "prompt": "a"}], "model.weights=dummy-fp8").run()
    assert rows[0]["error"] is None, rows


@test
def answers_in_fp8_do_not_depend_on_modes_and_devices():
    settings = ("model.weights=fp8", "engine.tensor_parallel=2", "profile.budget=64", "profile.sample=4")
    answers = [
        rows("placed-%s-%d" % (mode, devices), cli.TINY, 2, "plan.mode=" + mode, "engine.devices=%d" % devices, *settings)
        for mode in ("standard", "fair-copying")
        for devices in (1, 2)
    ]
    assert all(a == answers[0] for a in answers), answers


@test
def a_run_in_fp8_goes_on_in_fp8_alone():
    job = PromptJob("held", [{"id": 1, "prompt": "a"}], "model.weights=fp8")
    job.run()
    job.command("run").must(0)
    job.command("run", "-s", "model.weights=files").must(2, "model.weights", "fp8", "files")


@test
def check_says_how_weights_are_held():
    folder = pair("needle-tiny", "hf")[0]
    whole = PromptJob("as-files", [{"id": 1, "prompt": "a"}], "model.path=" + folder)
    whole.command("check").must(0, "hold FP8 weights, which loading multiplies")
    held = PromptJob("as-fp8", [{"id": 1, "prompt": "a"}], "model.path=" + folder, "model.weights=fp8")
    held.command("check").must(0, "hold FP8 weights", "held and multiplied in FP8: 4 bytes each")
    for job, want in ((whole, False), (held, True)):
        said = json.loads(job.command("check", "--json").must(0).out)["model"]
        assert said["fp8"] and said["held_in_fp8"] is want, said
    wrong = PromptJob("as-fp4", [{"id": 1, "prompt": "a"}], "model.weights=fp4")
    wrong.command("check").must(2, "model.weights", "files fp8 dummy dummy-fp8")


@test
def what_is_not_applied_is_said():
    said = "stored scales of activations and of the KV cache are not"
    folder = pair("needle-tiny", "vllm")[0]
    PromptJob("static", [{"id": 1, "prompt": "a"}], "model.path=" + folder).command("check").must(0, said)
    tensors = dict(cli.tensors_of(pair("needle-tiny", "tensor")[0]))
    one = ({"dtype": "F32", "shape": [1]}, struct.pack("<f", 0.5))
    at = "model.layers.0.self_attn."
    tensors.update({at + "k_scale": one, at + "v_scale": one, at + "q_proj.input_scale": one})
    config = compressed("tensor", kv_cache_scheme={"num_bits": 8, "type": "float", "strategy": "tensor"})
    path = store(cli.TINY, "kv-scales", tensors, config)
    PromptJob("kv-scales", [{"id": 1, "prompt": "a"}], "model.path=" + path).command("check").must(0, said)
    quiet = PromptJob("dynamic", [{"id": 1, "prompt": "a"}], "model.path=" + pair("needle-tiny", "hf")[0])
    assert said not in quiet.command("check").must(0, "FP8").text


# What is wrong.

Q = "model.layers.1.self_attn.q_proj.weight"


def refused(name, form, change, *words, config=None):
    """change: of the tensors, a dict."""
    tensors = dict(cli.tensors_of(pair("needle-tiny", form)[0]))
    change(tensors)
    path = store(cli.TINY, name, tensors, config or FORMS[form][0])
    job = PromptJob(name, [{"id": 1, "prompt": "a"}], "model.path=" + path)
    for which in ("check", "run"):
        job.command(which).must(2, "error: ", *words)
    assert not os.path.exists(job.output)


def with_scales(suffix, entry=None, **numbers):
    """Other keys in the header's entry of Q's scales, and other numbers there."""

    def change(tensors):
        old, data = tensors[Q + suffix]
        values = array.array("f", data)
        for i, x in numbers.items():
            values[int(i[1:])] = x
        tensors[Q + suffix] = (dict(old, **(entry or {})), values.tobytes())

    return change


def with_weight(dtype):
    def change(tensors):
        entry, data = tensors[Q]
        tensors[Q] = (dict(entry, dtype=dtype), data)

    return change


@test
def scales_that_are_missing_or_of_another_shape_are_refused_by_name():
    file, scales = "model.safetensors", Q + "_scale_inv"
    refused("missing", "hf", lambda t: t.pop(scales), file, scales, "missing", Q)
    refused("turned", "hf", with_scales("_scale_inv", {"shape": [1, 4]}), file, scales, "[1 x 4]", "[4 x 1]")
    refused("deeper", "hf", with_scales("_scale_inv", {"shape": [4, 1, 1]}), file, scales, "[4 x 1 x 1]")
    refused("flat", "hf", with_scales("_scale_inv", {"shape": [4]}), file, scales, "[4]", "[512 x 128]")
    other = fp8(weight_block_size=[64, 128])
    refused("other-blocks", "hf", lambda t: None, file, "_scale_inv", "by config.json", config=other)
    refused("rows", "channel-flat", lambda t: None, file, "_scale", "[1]", config=compressed("tensor"))
    # Of the other form.
    refused("other-form", "hf", lambda t: None, file, Q[-6:] + "_scale: these", "are missing", config=compressed("block", [128, 128]))


@test
def scales_that_are_no_numbers_are_refused_by_name():
    for name, x in (("nan", float("nan")), ("inf", float("inf")), ("minus-inf", float("-inf"))):
        refused(name, "hf", with_scales("_scale_inv", _2=x), "model.safetensors", Q + "_scale_inv", "scale 2", "finite")
    wrong = with_scales("_scale_inv", {"dtype": "I32"})
    refused("integers", "hf", wrong, "model.safetensors", Q + "_scale_inv", "I32", "not supported")


@test
def fp8_where_the_config_does_not_say_so_is_refused_by_name():
    tensors = cli.tensors_of(pair("needle-tiny", "hf")[0])
    path = store(cli.TINY, "unsaid", tensors, None)
    job = PromptJob("unsaid", [{"id": 1, "prompt": "a"}], "model.path=" + path)
    job.command("check").must(2, "model.safetensors", "F8_E4M3", "quantization_config")
    norm = "model.layers.0.input_layernorm.weight"
    eight = ({"dtype": "F8_E4M3", "shape": [128]}, bytes(128))
    refused("norm", "hf", lambda t: t.update({norm: eight}), norm, "only matrices")
    whole = cli.tensors_of(cli.TINY)[Q]
    refused("unquantised", "hf", lambda t: t.update({Q: whole}), Q + "_scale_inv", "not quantised", "BF16")
    refused("e5m2", "hf", with_weight("F8_E5M2"), Q, "F8_E5M2", "not supported")
    refused("int8", "hf", with_weight("I8"), Q, "I8", "not supported")


@test
def a_weight_that_is_no_number_makes_error_rows():
    """As in every other dtype; the records do not wait for all bytes to be looked at."""
    tensors = dict(cli.tensors_of(pair("needle-tiny", "hf")[0]))
    entry, data = tensors[Q]
    tensors[Q] = (entry, bytes([NAN]) + data[1:])
    path = store(cli.TINY, "nan-weight", tensors, FORMS["hf"][0])
    got = PromptJob("nan-weight", [{"id": 1, "prompt": "a"}], "model.path=" + path).run(1)
    assert got[0]["error"], got


@test
def other_scales_are_another_model_for_a_resume():
    """They lie in the same files as weights, of which the ends are looked at."""
    tensors = dict(cli.tensors_of(pair("needle-tiny", "hf")[0]))
    tensors[Q + "_scale_inv"] = tensors.pop(Q + "_scale_inv")
    path = store(cli.TINY, "rescaled", tensors, FORMS["hf"][0])
    job = PromptJob("rescaled", [{"id": 1, "prompt": "a"}], "model.path=" + path)
    job.run()
    with_scales("_scale_inv", _1=0.5)(tensors)
    cli.write("model-rescaled/model.safetensors", cli.safetensors(tensors))
    job.command("run").must(2, "model.path")


cli.main()
