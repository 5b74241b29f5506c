"""What is refused: exit code and message, before anything heavy starts."""

import json
import os
import shutil
import struct
import subprocess

import cli
from cli import Job, PromptJob, codes_of, command, test

SUBCOMMANDS = ("run", "check", "plan", "init", "export", "tokenize", "template")


def refused(name, words, *settings, code=2):
    """run and check both refuse the job with this code and these words, and make no output."""
    job = Job(name, *settings)
    for which in ("run", "check"):
        job.command(which).must(code, "error: ", *words)
    assert not os.path.exists(job.output), "an output folder was made"


# The command line.


@test
def help_and_version_work_everywhere():
    assert command("--version").must(0, "fairkv-batch ", "backends:", "cpu").err == ""
    for option in ("--help", "-h"):
        ended = command(option).must(0, "exit codes:", *SUBCOMMANDS)
        assert ended.err == ""
    for name in SUBCOMMANDS:
        for option in ("--help", "-h"):
            ended = command(name, option).must(0, "fairkv-batch " + name)
            assert ended.err == "" and "sage:" in ended.out
        assert command(name, "--version").must(0).out == command("--version").out


@test
def a_wrong_command_line_exits_2_and_shows_the_usage():
    command().must(2, "usage:", "fairkv-batch run")
    command("nosuch").must(2, "no subcommand 'nosuch'", "usage:")
    command("--nosuch").must(2, "usage:")
    for name in ("run", "check", "plan"):
        for args in ([], ["a.ini", "b.ini"], ["a.ini", "-s"], ["a.ini", "--what"]):
            ended = command(name, *args).must(2, "usage: fairkv-batch " + name)
            assert ended.out == ""
    command("export").must(2, "--format")
    command("export", "out", "--format", "jsonl").must(2, "OUTPUT_DIR and DEST are needed")
    command("export", "a", "b", "c", "--format", "jsonl").must(2, "too many arguments: c")
    command("export", "a", "b", "--format").must(2, "--format needs a value")
    command("export", "a", "b", "--format", "csv").must(2, "unknown format: csv")
    command("export", "a", "b", "--what").must(2, "unknown option --what")
    command("tokenize").must(2, "one MODEL_DIR")
    command("tokenize", "a", "b").must(2, "one MODEL_DIR")
    command("tokenize", cli.TINY, "--what").must(2, "unknown option --what")
    command("tokenize", cli.TINY, "--decode", "--bos").must(2, "exclude each other")


@test
def a_missing_job_file_is_named():
    for name in ("run", "check", "plan"):
        command(name, "nowhere.ini").must(2, "nowhere.ini", "No such file")


# The job file.


@test
def a_missing_archive_is_named():
    refused(
        "no-archive",
        ["no-archive.ini:", "input.archives", "nowhere.zip", "matches no file"],
        "input.archives=nowhere.zip",
    )
    os.makedirs(os.path.join(cli.WORK, "nothing", "in"))
    nothing = os.path.join(cli.WORK, "nothing")
    refused("folder", ["input.archives", "matches no file, only folders without one"], "input.archives=" + nothing)
    refused("no-name", ["input.archives", "names no file"], "input.archives=")
    # One that matches doesn't hide one that does not.
    refused("one-of-two", ["nowhere*.zip"], "input.archives=" + cli.NEEDLES + " nowhere*.zip")


@test
def a_missing_model_is_named():
    refused(
        "no-model",
        ["nowhere-model/config.json", "nowhere-model/model.safetensors", "nowhere-model/tokenizer.json"],
        "model.path=nowhere-model",
    )


@test
def an_unknown_key_is_named_with_the_one_that_was_meant():
    refused("slotz", ["engine.slotz: unknown key; did you mean slots?"], "engine.slotz=4")
    refused("elsewhere", ["input.slots: unknown key; it belongs to [engine]"], "input.slots=4")
    refused("nonsense", ["engine.quux_frobnicate: unknown key"], "engine.quux_frobnicate=4")
    refused("section", ["unknown section [engin]; did you mean [engine]?"], "engin.slots=4")


@test
def values_out_of_range_are_refused_with_the_range():
    for setting, words in (
        ("sampling.top_p=7", ["sampling.top_p: 7 is outside 0 to 1"]),
        ("sampling.top_p=0", ["sampling.top_p: 0", "must not be 0"]),
        ("sampling.temperature=-1", ["sampling.temperature: -1 is outside"]),
        ("engine.slots=0", ["engine.slots: 0 is outside 1 to 4096"]),
        ("engine.slots=99999999999999999999", ["engine.slots", "outside"]),
        ("profile.floor=1.5", ["profile.floor: 1.5 is outside 0 to 1"]),
        ("profile.kernel=4", ["profile.kernel: must be odd"]),
        ("profile.budget=0%", ["profile.budget: 0% is not more than 0%"]),
        ("profile.budget=101%", ["profile.budget: 101%", "at most 100%"]),
        ("output.compression_level=40", ["output.compression_level: 40 is outside 1 to 19"]),
        ("output.records_per_shard=0", ["output.records_per_shard: 0 is outside"]),
        ("output.progress=0", ["output.progress: 0 is outside 1 to 86400"]),
        ("output.progress=1.5", ["output.progress", "or auto"]),
        ("input.part=3/3", ["input.part: 3/3", "0 <= i < n"]),
        ("input.max_record_bytes=5G", ["input.max_record_bytes", "outside"]),
        ("job.limit=-4", ["job.limit: -4 is less than 0"]),
        ("engine.max_new_tokens=2048", ["engine.max_new_tokens: 2048 leaves no room", "2048 positions"]),
    ):
        refused("range", words, setting)
    refused(
        "small-budget",
        ["profile.budget: 31 is less than profile.window, 32"],
        "profile.method=uniform",
        "profile.budget=31",
    )


@test
def values_of_another_kind_are_refused():
    for setting, words in (
        ("engine.slots=eleven", ['engine.slots: "eleven" is not a whole number or auto']),
        ("engine.slots=4.5", ["engine.slots"]),
        ("job.limit=", ["job.limit: has no value"]),
        ("job.seed=-1", ["job.seed"]),
        ("sampling.temperature=nan", ["sampling.temperature"]),
        ("sampling.temperature=0x1", ["sampling.temperature"]),
        ("model.truncate=up", ['model.truncate: "up" is none of: middle left right error']),
        ("output.token_ids=maybe", ["output.token_ids", "none of: no yes"]),
        ("sampling.stop=[1]", ["sampling.stop: item 1 is not a string"]),
        ('sampling.stop=["a"', ["sampling.stop: is not a JSON array"]),
        ('sampling.stop=[""]', ["sampling.stop: item 1"]),
        ("input.max_record_bytes=3X", ["input.max_record_bytes", "64M"]),
        ("input.part=half", ["input.part", "0/4"]),
        ("job.name=", ["job.name: has no value"]),
    ):
        refused("kind", words, setting)


@test
def required_keys_are_asked_for():
    empty = cli.write("nothing.ini", "")
    command("run", empty).must(
        2,
        "job.name: is missing",
        "job.output: is missing",
        "input.archives: is missing",
        "model.path: is missing",
    )


@test
def all_errors_are_reported_at_once():
    job = Job(
        "many",
        "input.archives=nowhere.zip",
        "engine.slots=eleven",
        "engine.slotz=1",
        "sampling.top_p=7",
        "input.format=open",
        "job.limit=-1",
    )
    ended = job.command("run").must(
        2, "nowhere.zip", "eleven", "slotz", "top_p", "\"open\" is none of", "job.limit", "many.ini:4: job.limit"
    )
    assert ended.text.count("error: ") == 6, ended.text
    job = Job(
        "many-files",
        "model.path=nowhere-model",
        "input.prompts=nowhere-prompts.json",
        "input.max_new_tokens_by=nowhere-limits.json",
    )
    job.command("run").must(2, "nowhere-model", "nowhere-prompts.json", "nowhere-limits.json")


@test
def overrides_win_and_their_errors_say_so():
    job = Job("overrides", "engine.slots=eleven")
    job.command("check", "-s", "engine.slots=4").must(0, "slots = 4")
    job.command("check", "-sengine.slots=4", "-s", "engine.slots=5").must(0, "slots = 5")
    job.command("run", "-s", "engine.slots=twelve").must(2, '-s: engine.slots: "twelve"')
    job.command("run", "-s", "engine.slotz=1").must(2, "-s: engine.slotz: unknown key; did you mean slots?")
    job.command("run", "-s", "nosuch.key=1").must(2, "-s: nosuch.key: unknown section")
    job.command("run", "-s", "slots=1").must(2, '"slots=1" is not of the form section.key=value')


@test
def an_overlong_line_is_refused_naming_the_remedy():
    refused(
        "overlong",
        ["overlong.ini:", "longer than 199 bytes", "continue the value on the next line, indented"],
        "input.members=" + "x" * 300,
    )
    # The remedy works.
    job = Job(
        "continued",
        "job.limit=1",
        "input.members=data/nothing.jsonl\n  data/also-nothing.jsonl\n" "  data/needle_1k.jsonl",
    )
    assert len(job.run()) == 1


@test
def lines_that_mean_nothing_are_refused():
    text = open(Job("lines").path).read()
    for name, extra, words in (
        ("twice.ini", "[job]\nname = again\n", ["job.name: is given twice, first in line 2"]),
        ("words.ini", "not a line\n", ["neither a [section] nor a key = value"]),
        ("open.ini", "[job\nlimit = 1\n", ["a [section] without its closing bracket"]),
        ("nul.ini", "[engine]\ndevices = 1\0\n", ["holds a NUL byte"]),
        ("latin.ini", b"[job]\nlimit = 1\n[output]\ncompression_level = \xe9\n", ["UTF-8"]),
    ):
        extra = extra.encode() if isinstance(extra, str) else extra
        command("check", cli.write(name, text.encode() + extra)).must(2, name + ":", *words)
    command("check", cli.write("stray.ini", "stray = 1\n" + text)).must(
        2, "stray.ini:1: stray: stands before any [section]"
    )


@test
def variables_of_the_environment_are_taken_and_unset_ones_refused():
    job = Job("variable", "job.limit=${FKV_TEST_LIMIT}", "job.output=" + cli.WORK + "/${FKV_TEST_NAME}-out")
    job.command("check", env={"FKV_TEST_LIMIT": "3", "FKV_TEST_NAME": "x"}).must(
        0, "limit = 3", cli.WORK + "/x-out"
    )
    job.command("run", env={"FKV_TEST_NAME": "x"}).must(
        2, "job.limit: the environment has no variable FKV_TEST_LIMIT"
    )
    refused("half-variable", ["without a variable's name"], "job.name=${")


# What does not go together.


@test
def a_backend_that_is_not_built_in_is_refused():
    if "cuda" in command("--version").must(0).out:
        raise cli.Skip("this build has the CUDA backend")
    refused("cuda", ["engine.backend: cuda is not in this build, which has: cpu"], "engine.backend=cuda")


@test
def more_ranks_than_kv_heads_or_devices_than_ranks_are_refused():
    refused(
        "ranks",
        ["engine.tensor_parallel: more ranks (5) than the model's KV heads (4) is not supported"],
        "engine.tensor_parallel=5",
    )
    refused(
        "devices", ["engine.devices: 3 devices for 2 ranks"], "engine.tensor_parallel=2", "engine.devices=3"
    )
    refused(
        "replicas",
        ["engine.devices: 3 devices for 2 replicas (engine.data_parallel): each needs as many"],
        "engine.data_parallel=2",
        "engine.devices=3",
    )


@test
def settings_that_need_each_other_are_checked():
    refused("no-templates", ["input.format: longbench needs input.prompts"], "input.prompts=")
    refused("no-scores", ["profile.method: scores needs profile.scores_file"], "profile.method=scores")
    refused("restart-part", ["job.restart"], "job.restart=yes", "input.part=0/2")


# Files that the job names.


@test
def broken_side_files_are_refused_before_the_start():
    broken = cli.write("broken.json", '{"a":')
    for key in ("input.prompts", "input.max_new_tokens_by", "profile.budgets_file"):
        refused("broken", ["broken.json", "not valid JSON"], key + "=" + broken)
        refused("missing", ["nowhere.json", "No such file"], key + "=nowhere.json")
    scores = ["profile.method=scores", "profile.budget=64"]
    refused("broken-scores", ["broken.json", "not valid JSON"], "profile.scores_file=" + broken, *scores)
    refused(
        "few-scores",
        ["scores.json", "scores[0]", "has 3 scores for 4 KV heads or 8 query heads"],
        "profile.scores_file=" + cli.write("scores.json", {"scores": [[1, 2, 3]] * 4}),
        *scores
    )
    refused(
        "templates", ["needle_1k: must be a string"], "input.prompts=" + cli.write("t.json", {"needle_1k": 7})
    )
    for bad in (0, -1, "12", 1.5):
        refused(
            "limits",
            ["needle_1k: must be a whole number"],
            "input.max_new_tokens_by=" + cli.write("l.json", {"needle_1k": bad}),
        )


@test
def budgets_that_do_not_fit_the_model_are_refused():
    good = {"format": "fairkv-profile/1", "n_layers": 4, "n_kv_heads": 4, "budgets": [[64] * 4] * 4}
    for name, change, words in (
        ("format", {"format": "other/1"}, ["format: is other/1"]),
        ("layers", {"n_layers": 3}, ["n_layers: is 3, the model's is 4"]),
        ("heads", {"n_kv_heads": 8}, ["n_kv_heads: is 8, the model's is 4"]),
        ("rows", {"budgets": [[64] * 4] * 3}, ["budgets: has 3 rows for 4 layers"]),
        ("row", {"budgets": [[64] * 4] * 3 + [[64] * 3]}, ["budgets[3]: has 3 budgets for 4 KV heads"]),
        ("zero", {"budgets": [[64] * 4] * 3 + [[64, 64, 0, 64]]}, ["budgets[3][2]: 0 is outside"]),
        ("text", {"budgets": [["a"] * 4] * 4}, ["budgets[0][0]: must be an integer"]),
    ):
        path = cli.write("budgets-%s.json" % name, dict(good, **change))
        refused("budgets-" + name, ["budgets-%s.json: " % name] + words, "profile.budgets_file=" + path)


@test
def an_input_without_records_is_refused():
    empty = cli.write("empty.jsonl", "\n\n")
    for name, settings in (
        ("no-member", ["input.members=nothing*.jsonl"]),
        ("no-line", ["input.archives=" + empty, "input.members=*"]),
    ):
        Job(name, *settings).command("run").must(2, "input.members: no record in the input")


@test
def an_output_that_can_t_be_made_is_a_system_error():
    file = cli.write("a-file", "x")
    for name, output in (("under-a-file", file + "/out"), ("a-file", file)):
        for which in ("run", "check"):
            Job("output-" + name, output=output).command(which).must(3, "error: " + output)
    assert open(file).read() == "x"


# Damaged models.


def model(name, weights=None, config=None, **files):
    """A copy of needle-tiny with other weights (bytes), config keys, or files (bytes; None: gone)."""
    folder = os.path.join(cli.WORK, "model-" + name)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(cli.TINY, folder)
    if weights is not None:
        cli.write("model-%s/model.safetensors" % name, weights)
    if config:
        old = cli.load(os.path.join(folder, "config.json"))
        old.update(config)
        cli.write("model-%s/config.json" % name, {k: v for k, v in old.items() if v != "gone"})
    for file, content in files.items():
        file = file.replace("__", ".")
        if content is None:
            os.remove(os.path.join(folder, file))
        else:
            cli.write("model-%s/%s" % (name, file), content)
    return "model.path=" + folder


@test
def damaged_weights_are_refused():
    with open(os.path.join(cli.TINY, "model.safetensors"), "rb") as f:
        source = f.read()
    n = struct.unpack("<Q", source[:8])[0]
    head, data = json.loads(source[8 : 8 + n].decode()), source[8 + n :]
    name = "lm_head.weight"
    entry = head[name]

    def pack(header):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    def changed(**members):
        return pack(dict(head, **{name: dict(entry, **members)}))

    begin, end = entry["data_offsets"]
    other = next(k for k in head if k not in (name, "__metadata__"))
    for case, weights, words in (
        ("cut", source[: len(source) // 2], ["is it cut short?"]),
        ("cut-header", source[: n // 2], ["cut short"]),
        (
            "huge-header",
            struct.pack("<Q", 1 << 62) + source[8:],
            ["its header would be 4611686018427387904 bytes"],
        ),
        ("empty", b"", ["too short for a safetensors file"]),
        ("not-json", source[:8] + b"x" * n + data, ["its header is not valid JSON"]),
        ("array", pack(b"[]"), ["safetensors"]),
        ("missing", pack({k: v for k, v in head.items() if k != other}), ["belong to no tensor"]),
        (
            "beyond",
            changed(data_offsets=[begin, 1 << 60]),
            [name + ": data_offsets end at 1152921504606846976"],
        ),
        ("backwards", changed(data_offsets=[end, begin]), [name + ": data_offsets run backwards"]),
        ("negative", changed(data_offsets=[-2, end]), [name]),
        (
            "overlap",
            changed(data_offsets=head[other]["data_offsets"], shape=head[other]["shape"]),
            ["model.safetensors: "],
        ),
        ("shape", changed(shape=[1 << 40, 1 << 40]), [name + ": shape is too large"]),
        ("other-shape", changed(shape=entry["shape"][::-1] + [1, 1]), [name]),
        ("dtype", changed(dtype="Q7"), [name + ": unknown dtype Q7"]),
        ("deep", pack(b"[" * 100000), ["not valid JSON"]),
    ):
        job = Job("weights-" + case, model("weights-" + case, weights))
        job.command("run").must(2, "model.safetensors", *words)


@test
def weights_that_do_not_fit_the_config_are_refused():
    for case, config, words in (
        ("layers", {"num_hidden_layers": 5}, ["model.layers.4", "is missing"]),
        ("hidden", {"hidden_size": 256}, ["weight"]),
        ("vocab", {"vocab_size": 2048}, ["weight"]),
        ("mlp", {"intermediate_size": 512}, ["mlp"]),
        ("heads", {"num_attention_heads": 16}, ["q_proj"]),
    ):
        Job("fit-" + case, model("fit-" + case, config=config)).command("run").must(
            2, "model.safetensors", *words
        )


@test
def damaged_or_unsupported_configs_are_refused():
    for case, config, words in (
        ("zero-heads", {"num_attention_heads": 0}, ["num_attention_heads: 0 is outside"]),
        ("negative", {"hidden_size": -128}, ["hidden_size: -128 is outside"]),
        ("huge", {"num_hidden_layers": 1 << 40}, ["num_hidden_layers: 1099511627776 is outside"]),
        (
            "odd",
            {"num_key_value_heads": 3},
            ["num_key_value_heads: num_attention_heads 8 is not a multiple of 3"],
        ),
        (
            "arch",
            {"architectures": ["NoSuchForCausalLM"], "model_type": "nosuch"},
            ["architectures: NoSuchForCausalLM is not supported"],
        ),
        ("text", {"hidden_size": "128"}, ["hidden_size"]),
        ("gone", {"vocab_size": "gone"}, ["vocab_size"]),
        ("quantized", {"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ("bias", {"attention_bias": True}, ["attention_bias"]),
        ("mlp-bias", {"mlp_bias": True}, ["mlp_bias"]),
        ("gelu", {"hidden_act": "gelu"}, ["hidden_act: gelu is not supported"]),
        ("window", {"sliding_window": 128}, ["sliding_window"]),
        ("rope", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0}}, ["longrope"]),
    ):
        refused("config-" + case, ["config.json: "] + words, model("config-" + case, config=config))
    refused("config-broken", ["config.json", "not valid JSON"], model("config-broken", config__json=b"{"))
    whole = cli.load(os.path.join(cli.TINY, "config.json"))
    for case, value, words in (
        ("nan", "NaN", ["not valid JSON"]),
        ("infinite", "1e999", ["real number overflow", "1e999"]),
        ("enormous", "9" * 20, ["too big integer", "9" * 20]),
        ("real", "128.0", ["hidden_size: must be an integer"]),
        ("true", "true", ["hidden_size: must be an integer"]),
        ("list", "[128]", ["hidden_size: must be an integer"]),
        ("null", "null", ["hidden_size: is missing"]),
    ):
        text = json.dumps(dict(whole, hidden_size="HERE"), indent=1).replace('"HERE"', value)
        folder = model("config-" + case, config__json=text.encode())
        refused("config-" + case, ["config.json:", *words], folder)


def split(regex):
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    pieces = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [pieces, byte_level]}


@test
def a_regex_that_runs_away_costs_its_record_and_a_second():
    whole = cli.load(os.path.join(cli.TINY, "tokenizer.json"))
    whole["pre_tokenizer"] = split("(a+)+$")
    records = [{"id": i, "prompt": p} for i, p in enumerate(("code", "a" * 60 + "!b", "code"))]
    rows = PromptJob("runaway", records, model("runaway", tokenizer__json=json.dumps(whole).encode())).run(1)
    assert codes_of(rows) == [None, "tokenizer", None], rows
    assert "regex backtracks too much at byte 0" in rows[1]["error"]["message"], rows[1]


@test
def damaged_tokenizers_are_refused():
    whole = cli.load(os.path.join(cli.TINY, "tokenizer.json"))
    text = json.dumps(whole).encode()
    nested = {"type": "NFC"}
    for _ in range(20):
        nested = {"type": "Sequence", "normalizers": [nested]}
    cases = [
        ("cut", text[: len(text) // 2], ["not valid JSON"]),
        ("empty", b"", ["not valid JSON"]),
        ("list", b"[]", []),
        ("no-model", dict(whole, model=None), ["model"]),
        ("type", dict(whole, model=dict(whole["model"], type="WordPiece")), ["WordPiece"]),
        ("vocab", dict(whole, model=dict(whole["model"], vocab={"a": -1})), ["vocab"]),
        ("merges", dict(whole, model=dict(whole["model"], merges=["only-one-part"])), ["merges"]),
        ("no-part", dict(whole, model=dict(whole["model"], merges=["a nowhere"])), ["merges[0]", "nowhere"]),
        ("no-result", dict(whole, model=dict(whole["model"], merges=["q q"])), ["merges[0]", "qq"]),
        ("same-id", dict(whole, model=dict(whole["model"], vocab={"a": 3, "b": 3})), ["vocab", "twice"]),
        ("far-id", dict(whole, model=dict(whole["model"], vocab={"a": 1 << 24})), ["vocab", "'a'"]),
        ("deep", b'{"normalizer":' + b"[" * 100000, ["not valid JSON"]),
        ("sequences", dict(whole, normalizer=nested), ["normalizer", "too deeply"]),
        ("regex", dict(whole, pre_tokenizer=split("(?:(?:a{900}){900}){900}")), ["regex", "too large"]),
        ("regexes", dict(whole, pre_tokenizer=split("a" * 70000)), ["regex", "70000 bytes"]),
        (
            "large",
            dict(whole, model=dict(whole["model"], vocab=dict(whole["model"]["vocab"], far=5000))),
            ["needs 5001 ids (0 to 5000)"],
        ),
    ]
    for case, content, words in cases:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        refused(
            "tokenizer-" + case,
            ["tokenizer.json"] + words,
            model("tokenizer-" + case, tokenizer__json=content),
        )
    refused(
        "tokenizer-gone", ["tokenizer.json", "No such file"], model("tokenizer-gone", tokenizer__json=None)
    )


@test
def weights_in_several_files_answer_the_same():
    """The same model as model-00001-of-00002 and an index."""
    with open(os.path.join(cli.TINY, "model.safetensors"), "rb") as f:
        source = f.read()
    n = struct.unpack("<Q", source[:8])[0]
    head, data = json.loads(source[8 : 8 + n].decode()), source[8 + n :]
    names = sorted(k for k in head if k != "__metadata__")
    index, files = {}, {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file, at, header, blob = "model-%05d-of-00002.safetensors" % i, 0, {}, b""
        for name in part:
            begin, end = head[name]["data_offsets"]
            header[name] = dict(head[name], data_offsets=[len(blob), len(blob) + end - begin])
            blob += data[begin:end]
            index[name] = file
        text = json.dumps(header).encode()
        files[file.replace(".", "__")] = struct.pack("<Q", len(text)) + text + blob
    whole = {"metadata": {}, "weight_map": index}
    split = model(
        "split", model__safetensors=None, model__safetensors__index__json=json.dumps(whole).encode(), **files
    )
    assert cli.ids_of(Job("split", "job.limit=2", split).run()) == cli.ids_of(
        Job("single", "job.limit=2").run()
    )

    def index_refused(case, words, weight_map, **more):
        text = weight_map
        if not isinstance(text, bytes):
            text = json.dumps({"weight_map": weight_map}).encode()
        folder = model(
            case, model__safetensors=None, model__safetensors__index__json=text, **dict(files, **more)
        )
        refused(case, words, folder)

    second = "model-00002-of-00002.safetensors"
    here = "model.safetensors.index.json: " + names[0]
    index_refused("lost", [here, "is not in " + second], dict(index, **{names[0]: second}))
    up = "../model.safetensors"
    for case, file in (("up", up), ("root", "/etc/passwd"), ("dots", ".."), ("number", 7)):
        index_refused(case, [here, "must map to a plain file name"], dict(index, **{names[0]: file}))
    index_refused("gone", ["model-3.safetensors: ", "No such file"], dict(index, more="model-3.safetensors"))
    one_missing = {k: v for k, v in index.items() if k != names[0]}
    both = files["model-00001-of-00002__safetensors"]
    index_refused("both", ["is in model-0000", "as well"], index, **{second.replace(".", "__"): both})
    cut = {second.replace(".", "__"): files["model-00002-of-00002__safetensors"][:-1]}
    index_refused("cut-shard", [second, "is it cut short?"], index, **cut)
    index_refused("no-map", ["weight_map: must be an object"], b"[]")
    index_refused("empty-map", ["weight_map: names 0 files"], {})
    index_refused("half-json", ["model.safetensors.index.json", "not valid JSON"], b'{"weight_map":')
    # A tensor of a file that the index leaves out is there all the same.
    Job(
        "unlisted",
        "job.limit=1",
        model(
            "unlisted",
            model__safetensors=None,
            model__safetensors__index__json=json.dumps({"weight_map": one_missing}).encode(),
            **files
        ),
    ).run()


# Of the system's memory, what a good model of this size takes several times over.
ADDRESS_SPACE_KIB = 512 << 10


def check_in_little_memory(job, code, *words):
    """check under an address-space limit, which sanitizers and CUDA's libraries can't live with."""
    has_cuda = "cuda" in command("--version").must(0).out
    limit = "" if cli.sanitized() or has_cuda else "ulimit -v %d && " % ADDRESS_SPACE_KIB
    done = subprocess.run(
        ["sh", "-c", limit + 'exec "$0" check "$1"', cli.BINARY, job.path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=cli.TIMEOUT_S,
    )
    cli.Ended(done.returncode, done.stdout, done.stderr).must(code, *words)


@test
def hostile_models_are_refused_before_memory_is_taken():
    check_in_little_memory(Job("good-model"), 0, "4 layers")
    whole = cli.load(os.path.join(cli.TINY, "tokenizer.json"))

    def sparse(name, size, head=b""):
        """A file of so many bytes, nothing behind its head."""
        folder = model(name, head)
        os.truncate(os.path.join(cli.WORK, "model-" + name, "model.safetensors"), size)
        return folder

    def header(text, n=0):
        return struct.pack("<Q", max(n, len(text))) + text

    vocab = dict(whole["model"]["vocab"], far=(1 << 24) - 1)
    far = dict(whole, model=dict(whole["model"], vocab=vocab))
    dims = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings")
    largest = dict(zip(dims, (1 << 10, 1 << 17, 1 << 20, 1 << 24, 1 << 27)))
    many = b"{}," * (5 << 20) + b"{}"
    for name, setting, words in (
        (
            "header-of-all",
            sparse("header-of-all", 1 << 28, struct.pack("<Q", (1 << 28) - 8)),
            ["model.safetensors: not a safetensors file", "its header would be 268435448 bytes"],
        ),
        (
            "header-of-zeros",
            sparse("header-of-zeros", 1 << 28, struct.pack("<Q", 10**8)),
            ["model.safetensors: its header is not valid JSON"],
        ),
        (
            "header-of-brackets",
            model("header-of-brackets", header(b'{"a":[' + many + b"]}")),
            ["model.safetensors: its header lists too many tensors"],
        ),
        (
            "header-of-one-name",
            model("header-of-one-name", header(b'{"' + b"x" * (48 << 20) + b'":7}')),
            ["model.safetensors: xxxx", "has no dtype"],
        ),
        ("largest", model("largest", config=largest), ["config's is [16777216 x 131072]"]),
        (
            "index-of-brackets",
            model("index-of-brackets", model__safetensors__index__json=b'{"weight_map":[' + many + b"]}"),
            ["model.safetensors.index.json: holds more than"],
        ),
        (
            "config-of-brackets",
            model("config-of-brackets", config__json=b'{"a":[' + b"[]," * 300000 + b"[]]}"),
            ["config.json: holds more than 65536 values"],
        ),
        (
            "config-of-spaces",
            model("config-of-spaces", config__json=b" " * (1 << 21)),
            ["config.json: 2097152 bytes, more than the 1048576 allowed"],
        ),
        (
            "far-token",
            model("far-token", tokenizer__json=json.dumps(far)),
            ["tokenizer.json: needs 16777216 ids (0 to 16777215), the model has 1024 (0 to 1023)"],
        ),
        (
            "tokenizer-of-brackets",
            model("tokenizer-of-brackets", tokenizer__json=b'{"added_tokens":[' + many + b"]}"),
            ["tokenizer.json: holds more than 4194304 values"],
        ),
        (
            "tokenizer-of-one-name",
            model("tokenizer-of-one-name", tokenizer__json=b'{"' + b"x" * (48 << 20) + b'":7}'),
            ["tokenizer.json: model: must be an object"],
        ),
    ):
        check_in_little_memory(Job(name, setting), 2, *words)
    for key in ("input.prompts", "input.max_new_tokens_by", "profile.budgets_file"):
        side = cli.write("brackets.json", b'{"budgets":[' + b"[]," * (5 << 20) + b"[]]}")
        job = Job("side", key + "=" + side)
        check_in_little_memory(job, 2, "brackets.json: holds more than 1048576 values")


cli.main()
