"""What check says that a run would do: records, lengths, layout, memory, disk, time, and every mistake at once."""

import json
import os

import cli
from cli import Job, PromptJob, command, test

WORDS = "one two three four five six seven eight nine ten "


def checked(job, *args):
    """check's JSON."""
    return json.loads(job.command("check", "--json", *args).must(0).out)


def tokens(text):
    return len(command("tokenize", cli.TINY, "--json", "--bos", stdin=json.dumps(text).encode()).must(0).out.split())


@test
def check_counts_records_and_lengths():
    job = Job("needles", "input.members=*.jsonl")
    said = checked(job)
    assert said["format"] == "fairkv-check/1"
    assert said["input"]["records"] == 360 and said["input"]["exact"] and said["input"]["members"] == 2
    (archive,) = said["input"]["archives"]
    assert archive == {"name": cli.NEEDLES, "records": 360, "records_read": 360, "members": 2, "share_read": 1.0}
    prompts = said["prompts"]
    assert prompts["sampled"] == 256 == sum(b["records"] for b in prompts["histogram"])
    ends = [b["up_to"] for b in prompts["histogram"]]
    assert ends == [512, 1024, 2048] and prompts["mean_new_tokens"] == 12 and prompts["errors"] == {}
    assert 1024 < prompts["longest"] <= 2048 and prompts["cut"] == prompts["too_large"] == 0
    layout = said["layout"]
    assert (layout["backend"], layout["replicas"], layout["ranks"], layout["slots"]) == ("cpu", 1, 1, 8)
    assert said["memory"]["rank_weight_bytes"] > 6e6 and said["memory"]["warning"] is None
    assert 0 < said["memory"]["device_bytes"] < said["memory"]["device_free_bytes"]
    assert said["disk"]["rows_bytes"] > 360 * 100 and said["disk"]["free_bytes"] > 0
    assert said["seconds"] > 0 and said["seconds_by"] == "stated"
    assert said["output"] == {"records": 0, "errors": 0, "complete": False}
    text = job.command("check").must(
        0,
        said["job_ini"],
        "; input: 360 records in 2 members of 1 file\n",
        "; shards: 6 of up to 64 records",
        "; prompts of up to 1920 tokens fit; 256 records looked at",
        "1 replica of 1 rank on 1 device; 8 slots",
        "by stated rates",
    ).out
    assert text.startswith(said["job_ini"]) and not os.path.exists(job.output)
    assert checked(job)["prompts"] == prompts, "another sample"


@test
def what_check_forecasts_is_what_the_run_does():
    job = Job("forecast", "job.limit=40", "output.records_per_shard=16")
    said = checked(job)
    assert said["input"]["records"] == 40 and said["input"]["exact"] and said["input"]["shards"] == 3
    rows = job.run()
    lengths = sorted(r["usage"]["prompt_tokens"] for r in rows)
    assert said["prompts"]["sampled"] == 40 and said["prompts"]["longest"] == lengths[-1]
    for b in said["prompts"]["histogram"]:
        assert b["records"] == sum(b["up_to"] // 2 < n <= b["up_to"] for n in lengths), (b, lengths)
    assert sum(len(line) for line in job.raw_rows()) <= 2 * said["disk"]["rows_bytes"]
    on_disk = sum(os.path.getsize(p) for p in job.shards())
    assert on_disk <= said["disk"]["rows_bytes"] + said["disk"]["journal_bytes"]
    finished = checked(job)
    assert finished["output"] == {"records": 40, "errors": 0, "complete": True} and "input" not in finished


@test
def cut_and_too_long_prompts_and_error_rows_are_counted():
    long, short = WORDS * 20, "one two"
    bad = [b"not json", json.dumps({"id": 9}).encode()]
    records = [{"id": i, "prompt": long if i < 3 else short} for i in range(8)] + bad
    job = PromptJob("lengths", records, "model.max_prompt_tokens=50")
    cut = checked(job)["prompts"]
    assert cut["cut"] == 3 and cut["errors"] == {"bad_json": 1, "missing_field": 1}, cut
    assert cut["longest"] == tokens(long) and cut["most_tokens"] == 50 and cut["sampled"] == 10
    job.command("check").must(0, "3 of 8 are cut", "1 of 10 are error rows: bad_json")
    refused = checked(job, "-s", "model.truncate=error")["prompts"]
    assert refused["errors"] == {"too_long": 3, "bad_json": 1, "missing_field": 1} and refused["cut"] == 0
    codes = [c for c in cli.codes_of(job.run(1, "-s", "model.truncate=error")) if c]
    assert sorted(codes) == ["bad_json", "missing_field", "too_long", "too_long", "too_long"]


@test
def beyond_512_mib_records_are_estimated():
    line = json.dumps({"id": 1, "prompt": "one two", "pad": "x" * (1 << 20)}).encode() + b"\n"
    frame = cli.zstd(line * 32, "-1")
    path = cli.write("huge.jsonl.zst", frame * 24)
    job = PromptJob("huge", path)
    said = checked(job)["input"]
    assert not said["exact"] and abs(said["records"] - 768) < 40, said
    assert 500 <= said["archives"][0]["records_read"] <= 513 and 0.6 < said["archives"][0]["share_read"] < 0.7
    job.command("check").must(0, "; input: ~7", ": ~7", "down to line 51", "; time: ~")
    limited = checked(job, "-s", "job.limit=20")["input"]
    assert limited["records"] == 20 and limited["exact"]


@test
def a_part_is_told_its_own_records():
    job = Job("parts", "input.members=*.jsonl", "output.records_per_shard=100")  # 100, 100, 100, 60
    parts = [checked(job, "-s", "input.part=%d/3" % i)["input"] for i in range(3)]
    assert [(p["part_records"], p["part_shards"]) for p in parts] == [(160, 2), (100, 1), (100, 1)]
    assert all(p["records"] == 360 and p["shards"] == 4 for p in parts)
    beyond = checked(job, "-s", "input.part=5/6")
    assert beyond["input"]["part_records"] == 0 and beyond["seconds"] is None
    job.command("check", "-s", "input.part=0/3").must(0, "; part 0/3: 160 records in 2 shards")


@test
def what_a_plan_says_check_says():
    job = Job("planned", "engine.slots=auto", "engine.tensor_parallel=2", "job.limit=20")
    open_ = checked(job)["layout"]
    assert open_["slots"] is None and open_["slots_most"] > 1 and not open_["planned"]
    job.command("plan").must(0)
    layout = checked(job)["layout"]
    assert layout["planned"] and layout["slots"] == job.plan()["slots"] and layout["ranks"] == 2


@test
def a_time_that_nobody_measured_is_not_known():
    job = Job("timeless", "job.limit=20")
    job.command("check", "-s", "plan.calibration=auto").must(0, "; time: not known until a run has measured")
    assert checked(job, "-s", "plan.calibration=auto")["seconds"] is None


@test
def all_mistakes_come_at_once_though_an_archive_is_missing():
    damaged = cli.write("damaged.tar.gz", b"\x1f\x8b\x08\0 no gzip")
    job = Job(
        "mistakes",
        "input.archives=gone.zip %s gone-too.tar" % damaged,
        "input.prompts=" + cli.write("templates.json", "[1]"),
        "model.path=nowhere",
        "engine.slots=0",
        "engine.slotz=4",
        "sampling.top_p=2",
    )
    for which in ("check", "run", "plan"):
        text = job.command(which).must(
            2,
            '"gone.zip" matches no file',
            '"gone-too.tar" matches no file',
            damaged,
            "templates.json",
            "nowhere/config.json",
            "engine.slots: 0 is outside",
            "engine.slotz: unknown key; did you mean slots?",
            "sampling.top_p: 2 is outside",
        ).text
        assert text.count("error: ") >= 8 and not os.path.exists(job.output), text
    assert job.command("check", "--json").must(2).out == ""


@test
def a_mistake_elsewhere_does_not_hide_a_folder_that_is_not_ours():
    other = cli.write("others/file.txt", "theirs")
    job = Job("strange", "job.seed=x", output=os.path.dirname(other))
    job.command("check").must(2, "job.seed", "file.txt")


@test
def a_semicolon_that_cuts_json_is_explained():
    one = [{"id": 1, "prompt": "one two"}]
    hint = "a ';' behind a blank begins a comment: in a string write \\u003b for it"
    PromptJob("cut", one, 'sampling.stop=["a ;b"]').command("check").must(2, "sampling.stop", hint)
    PromptJob("cut2", one, 'model.template_vars={"x": "a ; b"}').command("check").must(2, "template_vars", hint)
    PromptJob("cut3", one, 'sampling.stop=["a",\n  "c ;d"]').command("check").must(2, hint)
    fine = PromptJob("uncut", one, 'sampling.stop=["a \\u003bb", "c;d"] ; two')
    fine.command("check").must(0, 'stop = ["a\\u0020\\u003bb","c\\u003bd"]')
    fine.command("check", "-s", 'sampling.stop=["a ;b"]').must(0, 'stop = ["a\\u0020\\u003bb"]')
    plain = PromptJob("wrong", one, "sampling.stop=[1").command("check").must(2, "sampling.stop")
    assert "begins a comment" not in plain.text


@test
def records_that_the_chat_template_can_not_take_are_told():
    messages = [{"id": i, "messages": [{"role": "user", "content": "one"}]} for i in range(3)]
    words = ["WARNING: of ", "line 1 of none.jsonl", "will be an error row: the record has messages"]
    job = PromptJob("none", messages)
    job.command("check").must(0, *words, "3 of 3 are error rows: chat_template")
    job.command("run").must(1, *words)
    raising = cli.write("raising.jinja", "{{ raise_exception('roles must alternate') }}")
    job = PromptJob("raises", messages, "model.chat_template=" + raising)
    for which, code in (("check", 0), ("run", 1)):
        job.command(which).must(code, "WARNING: of ", "roles must alternate")
    quiet = PromptJob("quiet", messages, "model.chat_template=" + cli.write("fine.jinja", "{{ messages[0].content }}"))
    assert "WARNING" not in quiet.command("check").must(0).text


cli.main()
