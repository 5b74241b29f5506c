"""Jobs that run refuses: check refuses each with the same code and the same words, and neither
writes anything."""

import gzip
import json
import os
import re
import shutil
import signal

import cli
from cli import Job, PromptJob, command, test

LINES = cli.jsonl([{"id": "r%d" % i, "prompt": "code %d" % i, "max_tokens": 2} for i in range(4)])


def model(name, config=None, drop=(), **files):
    """A copy of needle-tiny with other config keys and files (bytes or JSON; __ stands for the dot)."""
    folder = os.path.join(cli.WORK, "model-" + name)
    shutil.copytree(cli.TINY, folder)
    if config:
        cli.write("model-%s/config.json" % name, dict(cli.load(os.path.join(folder, "config.json")), **config))
    for file in drop:
        os.remove(os.path.join(folder, file))
    for file, content in files.items():
        cli.write("model-%s/%s" % (name, file.replace("__", ".")), content)
    return "model.path=" + folder


def begun(name, *settings):
    """A job with 8 of its 12 records done: a shard, and rows in the journal."""
    job = Job(name, "job.limit=12", "output.records_per_shard=4", *settings)
    job.command("run", "-s", "job.limit=12").must(0)
    whole = cli.load(job.file("manifest.json"))
    whole.update(complete=False, records=None, shards=whole["shards"][:2])
    cli.write(job.file("manifest.json"), whole)
    os.remove(job.shards()[2])
    return job


def tree(path):
    """Everything below a path: names, kinds, times and contents."""
    found = {}
    if not os.path.lexists(path):
        return found
    for at, folders, files in os.walk(path):
        for name in folders + files:
            full = os.path.join(at, name)
            content = b""
            if os.path.isfile(full):
                with open(full, "rb") as f:
                    content = f.read()
            found[full] = (os.lstat(full).st_mtime_ns, content)
    found[path] = os.lstat(path).st_mtime_ns
    return found


def errors_of(ended):
    """What memory is left changes from one second to the next."""
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    return [re.sub(r"and has [\d.]+ MiB", "and has so many MiB", line) for line in lines]


def refused(name, job, words, *args, code=2):
    before = tree(job.output)
    ends = [job.command(which, *args) for which in ("check", "run", "plan", "check")]
    for ended in ends:
        ended.must(code, *words)
    lines = [errors_of(ended) for ended in ends]
    assert lines[0] and all(other == lines[0] for other in lines), (name, lines)
    assert tree(job.output) == before, "%s: the output has changed" % name
    return lines[0]


# The table: a name, what makes the job, words of the message.
BROKEN = []


def broken(*words):
    def keep(function):
        BROKEN.append((function.__name__, function, words))
        return function

    return keep


def simple(name, words, *settings):
    BROKEN.append((name, lambda: Job(name, *settings), words))


# The job file.
simple("unknown_key", ["engine.slotz: unknown key"], "engine.slotz=4")
simple("out_of_range", ["sampling.top_p: 7 is outside"], "sampling.top_p=7")
simple("no_threads", ["engine.threads: 0 is outside"], "engine.threads=0")
simple("even_kernel", ["profile.kernel: must be odd"], "profile.kernel=4")

# The model.
simple("no_model", ["config.json", "tokenizer.json", "No such file"], "model.path=nowhere")
simple("more_ranks_than_heads", ["more ranks (5)"], "engine.tensor_parallel=5")
simple("more_devices_than_ranks", ["3 devices for 2 ranks"], "engine.tensor_parallel=2", "engine.devices=3")
simple("replicas_of_unlike_size", ["5 devices for 2 replicas"], "engine.data_parallel=2", "engine.devices=5")
simple("no_room_for_a_prompt", ["leaves no room"], "engine.max_new_tokens=2048")


@broken("config.json: architectures: MadeUp is not supported")
def unsupported_architecture():
    return Job("arch", model("arch", {"architectures": ["MadeUp"], "model_type": "madeup"}))


@broken("engine.tensor_parallel: 128 ranks on 1 devices are too many")
def more_ranks_than_a_device_holds():
    many = {"num_attention_heads": 128, "num_key_value_heads": 128, "num_hidden_layers": 1}
    return Job("many-ranks", model("many", many), "model.weights=dummy", "engine.tensor_parallel=128")


@broken("engine.backend", "head_dim", "24")
def heads_that_the_backend_can_t_do():
    return Job("head-dim", model("head-dim", {"head_dim": 24}), "model.weights=dummy")


@broken("model.safetensors", "is it cut short?")
def weights_cut():
    with open(os.path.join(cli.TINY, "model.safetensors"), "rb") as f:
        whole = f.read()
    return Job("weights-cut", model("weights-cut", model__safetensors=whole[: len(whole) // 2]))


@broken("model.safetensors", "model.layers.4", "is missing")
def weights_of_fewer_layers():
    return Job("fewer-layers", model("fewer-layers", {"num_hidden_layers": 5}))


@broken("tokenizer.json", "not valid JSON")
def tokenizer_cut():
    return Job("tokenizer-cut", model("tokenizer-cut", tokenizer__json=b'{"model":'))


@broken("MiB of weights", "and has", "engine.devices")
def weights_larger_than_the_memory():
    huge = {"hidden_size": 2048, "intermediate_size": 32768, "num_hidden_layers": 1024}
    return Job("huge", model("huge", huge), "model.weights=dummy")


# Files that the job names.
simple("no_prompts_file", ["nowhere.json", "No such file"], "input.prompts=nowhere.json")
simple("no_calibration", ["nowhere.json", "can't be opened"], "plan.calibration=nowhere.json")


@broken("limits.json", "needle_1k: must be a whole number")
def limit_of_zero():
    return Job("limits", "input.max_new_tokens_by=" + cli.write("limits.json", {"needle_1k": 0}))


@broken("few.json", "n_layers: is 3, the model's is 4")
def budgets_of_another_model():
    return Job("budgets", "profile.budgets_file=" + cli.budgets_file("few.json", [[64] * 4] * 3))


@broken("scores.json", "has 3 scores for 4 KV heads")
def scores_of_another_model():
    path = cli.write("scores.json", {"scores": [[1, 2, 3]] * 4})
    return Job("scores", "profile.method=scores", "profile.budget=64", "profile.scores_file=" + path)


@broken("calibration.json", "is not this job's")
def calibration_of_another_model():
    with open(os.path.join(cli.TESTS, "fuzz", "corpus", "fuzz_calibration", "pretty"), "rb") as f:
        path = cli.write("calibration.json", f.read())
    return Job("calibration", "plan.calibration=" + path, "engine.tensor_parallel=2", "job.limit=4")


# The input.
simple("archive_missing", ["nowhere.zip", "matches no file"], "input.archives=nowhere.zip")
simple("members_match_nothing", ["input.members: no record", "such as data/"], "input.members=nothing*.jsonl")


@broken("input.members: no record in the input", "such as plain.json?")
def plain_file_of_another_name():
    return PromptJob("plain", cli.write("plain.json", LINES), "input.members=*.jsonl")


@broken("input.members: no record in the input")
def empty_file():
    return PromptJob("empty", cli.write("empty.jsonl", b""))


@broken("input.members: no record in the input")
def blank_lines_alone():
    return PromptJob("blank", cli.write("blank.jsonl.gz", gzip.compress(b"\n  \r\n\n")))


@broken("noise.zip: ")
def no_archive():
    return PromptJob("noise", cli.write("noise.zip", b"PK\3\4" + b"\xff" * 256))


@broken("first.jsonl.zst: ", "runcated")
def first_block_of_zstd_cut():
    return PromptJob("zst", cli.write("first.jsonl.zst", cli.zstd(LINES)[:20]))


@broken("first.jsonl.gz: gzip: cut short, before its first record")
def first_block_of_gzip_cut():
    noise = cli.jsonl([{"id": 1, "prompt": os.urandom(2000).hex()}])
    return PromptJob("gz", cli.write("first.jsonl.gz", gzip.compress(noise)[:500]))


@broken("first.tar: ", "before its first record")
def first_member_of_tar_cut():
    noise = cli.jsonl([{"id": 1, "prompt": os.urandom(2000).hex()}])
    return PromptJob("tar", cli.write("first.tar", cli.tar_of(("a.jsonl", noise))[:1500]))


@broken("plain.jsonl.gz: is not compressed as its name says")
def not_compressed():
    return PromptJob("not-gz", cli.write("plain.jsonl.gz", LINES))


@broken('input.prompts: names no dataset of the input: input.prompts has neither "needle_1k"')
def templates_of_other_datasets():
    return Job("others", "input.prompts=" + cli.write("others.json", {"trec": "{context}{input}"}))


@broken("input.prompts: names no dataset of the input: no input.prompts is given")
def no_templates_for_records_that_need_them():
    return Job("none", "input.format=auto", "input.prompts=")


# The output.
def system_error(job):
    job.code = 3
    return job


@broken("can't be made: Not a directory")
def output_below_a_file():
    return system_error(Job("below", output=os.path.join(cli.write("a-file", "x"), "out")))


@broken("can't be made: No such file or directory")
def output_is_a_link_to_nowhere():
    path = os.path.join(cli.WORK, "link")
    os.symlink(os.path.join(cli.WORK, "nowhere", "else"), path)
    return system_error(Job("link-job", output=path))


@broken("can't be made: File name too long")
def output_of_too_long_a_name():
    job = Job("long-name")
    job.output = os.path.join(cli.WORK, "x" * 300)
    job.args = ["-s", "job.output=" + job.output]
    return system_error(job)


@broken("b-file: not a folder")
def output_is_a_file():
    return system_error(Job("is-a-file", output=cli.write("b-file", "x")))


NOT_OURS = "is neither empty nor an output of ours: it holds "


def folder(name, *files, settings=()):
    """A job whose output has these files already."""
    for file in files:
        cli.write("%s/%s" % (name, file), "x")
    return Job(name + "-job", *settings, output=os.path.join(cli.WORK, name))


@broken(NOT_OURS + '"letters"')
def output_is_another_folder():
    return folder("home", "letters/a.txt", "zebra")


@broken(NOT_OURS + '"job.ini"')
def output_is_where_a_job_file_lies():
    """It would be overwritten by the resolved one."""
    return folder("mine", "job.ini", "log")


@broken(NOT_OURS + '".git"')
def output_is_a_folder_of_hidden_files():
    return folder("hidden", ".git/HEAD")


@broken(NOT_OURS + '"lock"')
def output_has_another_program_s_lock():
    return folder("locked", "lock")


@broken(NOT_OURS + '"manifest.json"')
def output_has_another_program_s_manifest():
    cli.write("web/manifest.json", {"name": "a web app", "icons": []})
    return folder("web", "zebra")


@broken(NOT_OURS + '"shards"')
def output_has_another_program_s_shards():
    return folder("index", "shards/0/segment")


def restart_with(name, told, *files):
    """An output of ours in which a user keeps files: a restart would move them away."""

    def make():
        job = begun(name)
        for file in files:
            cli.write("%s/%s" % (name, file), "x")
        job.args = ["-s", "job.restart=yes"]
        return job

    BROKEN.append((name, make, ['holds "%s", which is no file of an output' % told, "job.restart"]))


restart_with("restart_notes", "notes.txt", "notes.txt", "zebra")
restart_with("restart_hidden", ".git", ".git/HEAD")
restart_with("restart_in_shards", "shards/mine.jsonl", "shards/mine.jsonl")
restart_with("restart_exported", "pred", "pred/needle_1k.jsonl")


@broken(NOT_OURS + '"results.csv"')
def restart_of_another_folder():
    job = folder("results", "results.csv")
    job.args = ["-s", "job.restart=yes"]
    return job


def other_job(name, words, setting):
    def make():
        job = begun(name)
        job.args = ["-s", setting]
        return job

    BROKEN.append((name, make, ["made by a different job", *words]))


other_job("other_seed", ["job.seed was", "job.restart = yes"], "job.seed=5")
other_job("other_slots", ["engine.slots"], "engine.slots=4")
other_job("other_shards", ['output.records_per_shard was "4", is now "5"'], "output.records_per_shard=5")
other_job("other_mode", ['run.plan.mode was "fair-copying", is now "standard"'], "plan.mode=standard")
other_job("other_copies", ["run.plan.max_copies"], "plan.max_copies=1")


@broken("input.part", "begun in another number of parts", "manifest.json")
def output_begun_in_other_parts():
    job = begun("parts")
    job.args = ["-s", "input.part=0/2"]
    return job


@broken("run.numerics was", "bf16 on a GPU")
def output_of_another_device():
    job = begun("numerics")
    manifest = cli.load(job.file("manifest.json"))
    manifest["run"]["numerics"] = "bf16 on a GPU"
    cli.write(job.file("manifest.json"), manifest)
    return job


@broken("run.version was")
def output_of_another_version():
    job = begun("version")
    manifest = cli.load(job.file("manifest.json"))
    manifest["run"]["version"] = "0.0.1"
    cli.write(job.file("manifest.json"), manifest)
    return job


@broken("has shards but no manifest")
def output_without_its_manifest():
    job = begun("no-manifest")
    os.remove(job.file("manifest.json"))
    return job


@broken("manifest.json", "not valid JSON")
def manifest_cut():
    job = begun("manifest-cut")
    os.truncate(job.file("manifest.json"), 100)
    return job


@broken("bytes, the manifest says")
def shard_cut():
    job = begun("shard-cut")
    os.truncate(job.shards()[0], 10)
    return job


@broken("journal: its header at offset 0 is damaged")
def journal_damaged():
    job = begun("journal-damaged")
    with open(job.file("journal"), "r+b") as f:
        f.seek(20)
        f.write(b"x")
    return job


@broken("profile.json", "not valid JSON")
def profile_cut():
    job = begun("profile-cut")
    os.truncate(job.file("profile.json"), 40)
    return job


@broken("plan.json", "not valid JSON")
def plan_cut():
    job = begun("plan-cut")
    os.truncate(job.file("plan.json"), 40)
    return job


@broken("plan.json", "layout: is missing")
def plan_without_its_layout():
    job = begun("plan-layout")
    plan = job.plan()
    del plan["layout"]
    cli.write(job.file("plan.json"), plan)
    return job


@broken("shard-000000.jsonl.zst", "not the row that the manifest says")
def shard_to_retry_is_damaged():
    job = begun("retry")
    manifest = cli.load(job.file("manifest.json"))
    rows = b"7\n" * manifest["shards"][0]["count"]
    with open(job.shards()[0], "wb") as f:
        f.write(cli.zstd(rows))
    manifest["shards"][0].update(errors=1, bytes=os.path.getsize(job.shards()[0]))
    cli.write(job.file("manifest.json"), manifest)
    job.args = ["-s", "job.retry_errors=yes"]
    return job


@test
def check_refuses_what_run_refuses_with_the_same_words():
    assert len([job for job in BROKEN if not job[0].startswith("output_")]) >= 25
    for name, make, words in BROKEN:
        try:
            job = make()
            refused(name, job, words, *getattr(job, "args", []), code=getattr(job, "code", 2))
        except AssertionError as why:
            raise AssertionError("%s: %s" % (name, why))


@test
def mistakes_of_all_kinds_are_reported_in_one_go():
    job = Job(
        "many",
        "engine.tensor_parallel=5",
        "input.members=nothing*.jsonl",
        "input.max_new_tokens_by=nowhere.json",
        output=os.path.dirname(cli.write("not-ours/letter", "x")),
    )
    lines = refused("many", job, ["nor an output of ours", "more ranks", "nowhere.json", "no record in the input"])
    assert len(lines) == 4, lines
    bad = " ".join([cli.write("x.zip", b"PK\3\4" + b"\xff" * 99), cli.write("y.jsonl.gz", LINES)])
    lines = refused("two", PromptJob("two", bad), ["x.zip: ", "y.jsonl.gz: is not compressed"])
    assert len(lines) == 2, lines


@test
def an_output_that_another_run_holds_is_refused_by_check_too():
    job = begun("held")
    run = cli.Running(job, hold="output 0").until_held()
    words = ["another run holds it: process %d on host %s; run this again when it has ended" % (run.pid, os.uname().nodename)]
    refused("held", job, words, code=75)
    refused("held", job, words, "-s", "job.restart=yes", code=75)
    run.go_on()
    assert run.wait() == 0
    job.command("check").must(0, "12 records are done")


@test
def what_run_does_check_allows():
    """Outputs that are there already, in every state that a run goes on from."""
    job = begun("goes-on")
    job.command("check").must(0, "; output: 8 records are done, 0 of them errors\n")
    before = tree(job.output)
    job.command("check", "-s", "job.restart=yes", "-s", "job.seed=7").must(0)
    assert tree(job.output) == before
    assert len(job.run(0, "-s", "job.grace=4")) == 12
    finished = "; output: 12 records are done, 0 of them errors; a run would have nothing to do"
    job.command("check").must(0, finished)
    # A calibration file that a plan was made with may be gone by then.
    planned = begun("planned")
    planned.command("check", "-s", "plan.calibration=" + cli.WORK + "/gone.json").must(0)
    planned.command("run", "-s", "plan.calibration=" + cli.WORK + "/gone.json").must(0)
    # A finished job stays finished, whatever its memory or its folder's plan.
    os.truncate(job.file("plan.json"), 40)
    job.command("check").must(0, finished)
    job.command("run").must(0, "nothing to do")
    # What a run that failed before its first record left binds nobody.
    failed = Job("failed", "job.limit=3")
    failed.command("plan").must(0)
    failed.command("check", "-s", "job.seed=3").must(0)
    failed.command("run", "-s", "job.seed=3").must(0)
    # A folder that is there and empty, one of a killed run, and one several levels down.
    os.makedirs(os.path.join(cli.WORK, "there"))
    killed = Job("killed", "job.limit=2")
    assert cli.Running(killed, hold="output 0").until_held().stop(signal.SIGKILL) == -signal.SIGKILL
    shutil.copy(killed.file("lock"), os.path.join(cli.WORK, "there"))
    for output in ("there", "a/b/c"):
        job = Job("in-" + output.replace("/", "-"), "job.limit=2", output=os.path.join(cli.WORK, output))
        before = tree(job.output)
        job.command("check").must(0)
        assert tree(job.output) == before
        job.run()


@test
def a_refused_run_leaves_nothing():
    """What is only found when all is read is found behind the first look."""
    far = cli.tar_of(("big.bin", b"\0" * (300 << 20)), ("notes.txt", LINES))
    path = cli.write("no-records.tar.zst", cli.zstd(far, "-1"))
    for name, output in (("flat", "flat"), ("deep", "x/y/z")):
        job = PromptJob(name, path, "input.members=*.jsonl")
        output = os.path.join(cli.WORK, output)
        for which in ("run", "plan"):
            job.command(which, "-s", "job.output=" + output).must(2, "no record in the input")
            assert not os.path.exists(output) and not os.path.exists(os.path.join(cli.WORK, "x"))
        os.makedirs(output)
        job.command("run", "-s", "job.output=" + output).must(2, "no record in the input")
        assert os.listdir(output) == []


@test
def an_archive_without_the_first_template_is_read_on():
    """LongBench's archives hold more datasets than a job may want."""
    record = cli.one_record()
    line = json.dumps({k: record[k] for k in ("_id", "input", "context", "answers")}).encode() + b"\n"
    path = cli.write("two.tar", cli.tar_of(("a.jsonl", line * 3), ("needle_1k.jsonl", line)))
    job = Job("two-datasets", "input.archives=" + path, "input.members=*.jsonl")
    ended = job.command("check").must(0, path + ": 4 records in 2 members\n", "3 of 4 are error rows: unknown_dataset")
    assert cli.codes_of(job.run(1)) == ["unknown_dataset"] * 3 + [None], ended.text


@test
def check_says_where_it_stopped():
    """It reads 512 MiB of all archives together: what is behind may be wanted."""
    far = cli.tar_of(("big.bin", b"\0" * (300 << 20)), ("a.jsonl", LINES))
    path = cli.write("far.tar.zst", cli.zstd(far, "-1"))
    near = cli.write("near.jsonl", LINES)
    none = cli.write("none.tar", cli.tar_of(("notes.txt", LINES)))
    job = PromptJob("far", " ".join((path, near, none)), "input.members=*.jsonl")
    ended = job.command("check").must(0, "; input: ~4 records in 1 member so far of 3 files\n")
    for words in (
        path + ': no record that is wanted in its first 170 MiB, down to "big.bin"\n',
        near + ": 4 records in 1 member\n",
        none + ": holds no record that is wanted\n",
    ):
        assert ";   " + words in ended.out, ended.out
    assert len(job.run()) == 8
    alone = PromptJob("far-alone", path, "input.members=*.jsonl")
    alone.command("check").must(0, path + ": 4 records in 1 member\n")
    assert len(alone.run()) == 4
    twice = PromptJob("far-twice", path + " " + cli.write("g.tar.zst", cli.zstd(far, "-1")), "input.members=*.jsonl")
    twice.command("check").must(0, "; input: ~0 records in 0 members so far of 2 files\n", "; time: not known")


@test
def blank_lines_without_end_are_not_read_to_their_end():
    frame = cli.zstd((b" " * 1023 + b"\n") * (64 << 10))
    path = cli.write("endless.jsonl.zst", frame * 500)
    PromptJob("endless", path).command("check").must(
        0, path + ': no record that is wanted in its first 512 MiB, down to line 524'
    )


cli.main()
