"""export: rows as LongBench's eval.py or as one JSONL file."""

import os
import signal
import tarfile

import cli
import outputs
from cli import Job, PromptJob, command, test

_job = []


def finished():
    if not _job:
        _job.append(Job("finished", "job.limit=12", "output.records_per_shard=5"))
        _job[0].run()
    return _job[0]


def lines_of(path):
    with open(path, "rb") as f:
        return f.read().decode("utf-8").splitlines()


def files_below(folder):
    """{path below the folder: its lines, parsed}"""
    files = {}
    for path, _, names in os.walk(folder):
        for name in names:
            full = os.path.join(path, name)
            files[os.path.relpath(full, folder)] = [cli.json.loads(x) for x in lines_of(full)]
    return files


def exported(job, form, name, *options, code=0, words=()):
    """The files of an export to a new folder."""
    dest = os.path.join(cli.WORK, name)
    command("export", job.output, "--format", form, *options, dest).must(code, *words)
    return files_below(dest)


@test
def longbench_has_a_file_by_dataset_with_what_eval_reads():
    job = finished()
    files = exported(job, "longbench", "pred", words=["12 rows (0 errors) in 1 files"])
    assert list(files) == ["pred/finished/needle_1k.jsonl"]
    (lines,) = files.values()
    rows = job.rows()
    assert [x["pred"] for x in lines] == [r["text"] for r in rows]
    for line, row in zip(lines, rows):
        assert {k: line[k] for k in ("answers", "all_classes", "length")} == {
            k: row["fields"][k] for k in ("answers", "all_classes", "length")
        }
        assert line["pred"].strip() == line["answers"][0] and line["_id"] == row["id"]


def score(folder, model, e=False):
    """What LongBench's eval.py makes of a folder that it is started in: {dataset: (share of right
    answers, classes)}, where an answer is right if it begins with one of its answers. It reads all
    of a file, and takes the classes of the last line for all."""
    path = os.path.join(folder, "pred_e" if e else "pred", model)
    scores = {}
    for name in os.listdir(path):
        lines = [cli.json.loads(x) for x in lines_of(os.path.join(path, name))]
        right = [any(x["pred"].strip().startswith(a) for a in x["answers"]) for x in lines]
        assert all(x["length"] < 4000 or x["length"] >= 4000 for x in lines)
        scores[name.split(".")[0]] = (sum(right) / len(right), lines[-1]["all_classes"])
    return scores


# LongBench's records: two good ones, and what may be between them.
def _set(classes, *between):
    good = dict(cli.one_record(), all_classes=classes)
    return cli.jsonl([dict(good, _id="first")] + list(between) + [dict(good, _id="last")])


def longbench_job(name, members, *settings):
    """A job over an archive of members; the prompts know trec, lsht and needle_1k alone."""
    folder = os.path.join(cli.WORK, name + ".d")
    for member, text in members.items():
        cli.write(name + ".d/" + member, text)
    archive = os.path.join(cli.WORK, name + ".tar")
    with tarfile.open(archive, "w") as tar:
        for member in members:
            tar.add(os.path.join(folder, member), member)
    template = "{context}Question: {input}\nAnswer:"
    return Job(
        name,
        "input.archives=" + archive,
        "input.members=*",
        "model.truncate=error",
        "input.prompts=" + cli.write(name + "-t.json", dict.fromkeys(["trec", "lsht", "needle_1k"], template)),
        "input.max_new_tokens_by",
        "engine.max_new_tokens=12",
        *settings
    )


@test
def longbench_and_longbench_e_do_not_mix():
    """One file of both was scored as one dataset of twice the size, or as trec_e, which eval.py doesn't know."""
    job = longbench_job(
        "Both-3.1",
        {
            "data/trec.jsonl": _set(["A", "B"]),
            "data/trec_e.jsonl": _set(["C"], b"no JSON"),
            "data/lsht_e.jsonl": _set(None),
        },
    )
    job.run(1)
    files = exported(job, "longbench", "both", words=["7 rows (1 errors) in 3 files"])
    assert {k: [x["_id"] for x in v] for k, v in files.items()} == {
        "pred/Both-3.1/trec.jsonl": ["first", "last"],
        "pred_e/Both-3.1/trec.jsonl": ["first", None, "last"],
        "pred_e/Both-3.1/lsht.jsonl": ["first", "last"],
    }
    folder = os.path.join(cli.WORK, "both")
    assert score(folder, "Both-3.1") == {"trec": (1, ["A", "B"])}
    assert score(folder, "Both-3.1", e=True) == {"trec": (2 / 3, ["C"]), "lsht": (1, None)}


@test
def error_rows_keep_the_denominators_and_the_classes():
    """A broken line had no dataset and was left out, and the last line's all_classes was null."""
    broken = [b"{", b"[]", {"_id": "no context"}, dict(cli.one_record(), _id="long", context="word " * 9000)]
    for form in ("longbench", "auto"):
        job = longbench_job(
            "denominators-" + form,
            {
                "trec.jsonl": _set(["A", "B"], *broken) + b"{\n",
                "lsht.jsonl": b"{\n" + _set(None),
                "mixed.jsonl": _set(None) + b"{\n",
            },
            "input.format=" + form,
        )
        job.run(1)
        job_name = "denominators-" + form
        # Of mixed.jsonl the records say their dataset, and a line that is no record has none.
        files = exported(job, "longbench", form, words=["12 rows (7 errors) in 3 files", "1 error rows"])
        assert {os.path.basename(k): len(v) for k, v in files.items()} == {
            "trec.jsonl": 7,
            "lsht.jsonl": 3,
            "needle_1k.jsonl": 2,
        }
        lines = files["pred/%s/trec.jsonl" % job_name]
        assert [x["all_classes"] for x in lines] == [["A", "B"]] * 4 + [["A", "B"]] * 3
        assert [x["answers"] for x in lines[1:4]] == [[]] * 3 and lines[6]["length"] == 0
        assert lines[4]["answers"] == cli.one_record()["answers"] and lines[4]["pred"] == ""
        got = score(os.path.join(cli.WORK, form), job_name)
        assert got == {"trec": (2 / 7, ["A", "B"]), "lsht": (2 / 3, None), "needle_1k": (1, None)}, got


@test
def names_that_eval_or_a_file_system_takes_for_others_are_encoded():
    good = cli.one_record()
    names = ["v1.5", "a/b", "..", "x" * 300, "50%"]
    template = "{context}Question: {input}\nAnswer:"
    job = Job(
        "odd.names:here",
        "input.archives=" + cli.write("odd.jsonl", cli.jsonl([dict(good, dataset=n) for n in names])),
        "input.members=*",
        "input.prompts=" + cli.write("odd.json", dict.fromkeys(names, template)),
        "input.max_new_tokens_by",
        "engine.max_new_tokens=12",
        output=os.path.join(cli.WORK, "odd-out"),
    )
    job.run()
    files = exported(job, "longbench", "odd", words=["5 rows (0 errors) in 5 files"])
    found = {os.path.basename(k) for k in files}
    long = [n for n in found if n.startswith("xxx")]
    assert found - set(long) == {"v1%2E5.jsonl", "a%2Fb.jsonl", "%2E%2E.jsonl", "50%25.jsonl"}, found
    assert len(long) == 1 and len(long[0]) < 250
    assert {os.path.dirname(k) for k in files} == {"pred/odd.names%3Ahere"}
    assert len(score(os.path.join(cli.WORK, "odd"), "odd.names%3Ahere")) == 5


@test
def a_dash_is_standard_output():
    job = longbench_job("dash", {"trec.jsonl": _set(["A"], b"{"), "trec_e.jsonl": _set(["B"])})
    job.run(1)
    ended = command("export", job.output, "--format", "jsonl", "-").must(0)
    assert ended.raw_out.splitlines() == job.raw_rows() and "5 rows (1 errors)" in ended.err
    ended = command("export", job.output, "-", "--format", "openai").must(0)
    lines = [cli.json.loads(x) for x in ended.out.splitlines()]
    assert [x["custom_id"] for x in lines] == ["first", None, "last", "first", "last"]
    assert [x["response"]["status_code"] for x in lines] == [200, 400, 200, 200, 200]
    ended = command("export", job.output, "--format", "longbench", "-").must(0)
    files = exported(job, "longbench", "dash-pred")
    lines = [cli.json.loads(x) for x in ended.out.splitlines()]
    for file, there in files.items():
        assert [{k: x[k] for k in there[0]} for x in lines if x["file"] == file] == there
    assert len(lines) == 5 and not os.path.exists("-")
    with open("/dev/full", "wb") as full:
        done = cli.subprocess.run(
            [cli.BINARY, "export", job.output, "--format", "jsonl", "-"], stdout=full, stderr=cli.subprocess.PIPE
        )
    assert done.returncode == 3 and b"No space left" in done.stderr, done


@test
def an_unfinished_output_says_how_many_are_missing():
    stopped = Job("stopped", "job.limit=12", "output.records_per_shard=5", "engine.slots=1")
    outputs.held_at(stopped, 7).stop(signal.SIGKILL)
    part = Job("one-part", "job.limit=12", "output.records_per_shard=2", "input.part=0/2")
    part.run()
    for job, there, missing in ((stopped, 5, 7), (part, 6, 6)):
        words = ["%d rows (0 errors)" % there, "is not finished", "%d of its records are missing" % missing]
        for form, dest in (("jsonl", "unfinished.jsonl"), ("longbench", "unfinished"), ("jsonl", "-")):
            dest = dest if dest == "-" else os.path.join(cli.WORK, dest)
            command("export", job.output, "--format", form, dest).must(1, *words)
            command("export", job.output, "--format", form, dest, "--partial").must(0, *words)
        assert len(lines_of(os.path.join(cli.WORK, "unfinished.jsonl"))) == there
    stopped.run()
    command("export", stopped.output, "--format", "jsonl", "-").must(0, "12 rows")


@test
def datasets_are_kept_apart_in_input_order():
    job = Job(
        "sets",
        "input.members=data/*.jsonl",
        "job.limit=303",
        "model.max_prompt_tokens=40",
        "model.truncate=right",
        "input.max_new_tokens_by=" + cli.write("one.json", {"needle_1k": 1, "needle_500": 1}),
    )
    job.run()
    files = exported(job, "longbench", "sets-pred", words=["303 rows (0 errors) in 2 files"])
    assert sorted(files) == ["pred/sets/needle_1k.jsonl", "pred/sets/needle_500.jsonl"]
    rows = job.rows()
    for name in ("needle_1k", "needle_500"):
        lines = files["pred/sets/%s.jsonl" % name]
        assert [x["_id"] for x in lines] == [r["id"] for r in rows if r["dataset"] == name]


@test
def ruler_has_a_file_by_task():
    job, dest = finished(), os.path.join(cli.WORK, "ruler-pred")
    command("export", job.output, "--format", "ruler", dest).must(0, "12 rows (0 errors) in 1 files")
    lines = [cli.json.loads(x) for x in lines_of(os.path.join(dest, "needle_1k.jsonl"))]
    assert [(x["pred"], x["index"]) for x in lines] == [(r["text"], r["id"]) for r in job.rows()]
    assert all(x["input"] == "" and x["others"] == {} for x in lines)  # evaluate.py prints it, no more


@test
def ruler_s_error_rows_count_as_wrong_answers():
    """With an empty output looked for in an empty answer they counted as right ones."""
    good = {"index": 1, "input": cli.needle_prompt(cli.one_record()), "outputs": cli.one_record()["answers"]}
    lines = {
        "vt": cli.jsonl([good, b"{", {"index": 3}]),
        "cwe": cli.jsonl([b"{", dict(good, index=4)]),
    }
    for form in ("ruler", "auto"):
        paths = [cli.write("ruler-%s.d/%s/validation.jsonl" % (form, k), v) for k, v in lines.items()]
        job = PromptJob("ruler-" + form, " ".join(paths), "input.format=" + form)
        job.run(1)
        files = exported(job, "ruler", "ruler-%s-pred" % form, words=["5 rows (3 errors) in 2 files"])
        # As RULER's string_match_all.
        right = {
            k: [all(o.lower() in x["pred"].lower() for o in x["outputs"]) for x in v] for k, v in files.items()
        }
        assert right == {"vt.jsonl": [True, False, False], "cwe.jsonl": [False, True]}, files


@test
def openai_has_a_line_a_record_in_one_of_two_files():
    job = PromptJob("mixed-prompts", [{"id": "a", "prompt": "x", "max_tokens": 1}, b"[]", {"id": 3, "prompt": "y"}])
    rows, dest = job.run(1), os.path.join(cli.WORK, "batch.jsonl")
    command("export", job.output, "--format", "openai", dest).must(0, "3 rows (1 errors) in 2 files")
    good, bad = ([cli.json.loads(x) for x in lines_of(dest + end)] for end in ("", ".errors"))
    assert [x["custom_id"] for x in good] == ["a", "3"] and [x["custom_id"] for x in bad] == [None]
    choices = [x["response"]["body"]["choices"][0] for x in good]
    assert [(c["text"], c["finish_reason"]) for c in choices] == [
        (r["text"], r["finish_reason"]) for r in rows if not r["error"]
    ]
    assert bad[0]["response"]["status_code"] == 400
    assert bad[0]["response"]["body"]["error"]["code"] == "not_object"


@test
def jsonl_is_every_row_byte_for_byte():
    job, dest = finished(), os.path.join(cli.WORK, "deep", "folder", "all.jsonl")
    command("export", "--format", "jsonl", job.output, dest).must(0, "12 rows (0 errors) in 1 files")
    with open(dest, "rb") as f:
        assert f.read().splitlines() == job.raw_rows()
    # Again, over what is there.
    command("export", "--format", "jsonl", job.output, dest).must(0, "12 rows")
    assert len(lines_of(dest)) == 12 and os.listdir(os.path.dirname(dest)) == ["all.jsonl"]


@test
def plain_prompts_have_no_dataset_to_export():
    job = PromptJob("plain", [{"id": 1, "prompt": "x", "max_tokens": 1}])
    job.run()
    dest = os.path.join(cli.WORK, "plain-pred")
    command("export", job.output, "--format", "longbench", dest).must(
        2, "dataset", "only records of datasets"
    )
    assert os.listdir(dest) == []


@test
def what_is_not_a_whole_output_is_refused_or_said():
    dest = os.path.join(cli.WORK, "none.jsonl")
    command("export", "nowhere", "--format", "jsonl", dest).must(2, "nowhere", "No such file")
    command("export", cli.DATA, "--format", "jsonl", dest).must(2, "has no manifest.json")
    job = Job("half", "job.limit=8", "output.records_per_shard=2")
    job.run()
    shard = job.shards()[0]
    with open(shard, "r+b") as f:
        f.seek(20)
        f.write(b"\xff\xff\xff")
    command("export", job.output, "--format", "jsonl", dest).must(2, os.path.basename(shard))
    assert not os.path.exists(dest) and not os.path.exists(dest + ".tmp")


cli.main()
