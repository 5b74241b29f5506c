"""export: rows as LongBench's eval.py or as one JSONL file."""

import os

import cli
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


@test
def longbench_has_a_file_by_dataset_with_what_eval_reads():
    job, dest = finished(), os.path.join(cli.WORK, "pred")
    command("export", job.output, "--format", "longbench", dest).must(0, "12 rows (0 errors) in 1 files")
    assert os.listdir(dest) == ["needle_1k.jsonl"]
    lines = [cli.json.loads(x) for x in lines_of(os.path.join(dest, "needle_1k.jsonl"))]
    rows = job.rows()
    assert [x["pred"] for x in lines] == [r["text"] for r in rows]
    for line, row in zip(lines, rows):
        assert {k: line[k] for k in ("answers", "all_classes", "length")} == {
            k: row["fields"][k] for k in ("answers", "all_classes", "length")
        }
        assert line["pred"].strip() == line["answers"][0] and line["_id"] == row["id"]


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
    dest = os.path.join(cli.WORK, "sets-pred")
    command("export", job.output, "--format=longbench", dest).must(0, "303 rows (0 errors) in 2 files")
    assert sorted(os.listdir(dest)) == ["needle_1k.jsonl", "needle_500.jsonl"]
    rows = job.rows()
    for name in ("needle_1k", "needle_500"):
        lines = [cli.json.loads(x) for x in lines_of(os.path.join(dest, name + ".jsonl"))]
        assert [x["_id"] for x in lines] == [r["id"] for r in rows if r["dataset"] == name]


@test
def ruler_has_a_file_by_task():
    job, dest = finished(), os.path.join(cli.WORK, "ruler-pred")
    command("export", job.output, "--format", "ruler", dest).must(0, "12 rows (0 errors) in 1 files")
    lines = [cli.json.loads(x) for x in lines_of(os.path.join(dest, "needle_1k.jsonl"))]
    assert [(x["pred"], x["index"]) for x in lines] == [(r["text"], r["id"]) for r in job.rows()]
    assert all(x["input"] == "" and x["others"] == {} for x in lines)


@test
def openai_has_a_line_a_record_in_one_of_two_files():
    job = PromptJob("mixed-prompts", [{"id": "a", "prompt": "x", "max_tokens": 1}, b"[]", {"id": 3, "prompt": "y"}])
    rows, dest = job.run(1), os.path.join(cli.WORK, "batch.jsonl")
    command("export", job.output, "--format", "openai", dest).must(0, "3 rows (1 errors) in 2 files")
    good, bad = ([cli.json.loads(x) for x in lines_of(dest + end)] for end in ("", ".errors"))
    assert [x["custom_id"] for x in good] == ["a", "3"] and [x["custom_id"] for x in bad] == [None]
    choices = [x["response"]["body"]["choices"][0] for x in good]
    assert [(c["text"], c["finish_reason"]) for c in choices] == [
        (r["text"], r["finish_reason"]) for r in rows if not r.get("error")
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
def error_rows_count_as_empty_answers():
    good = cli.one_record()
    source = cli.write(
        "mixed.jsonl", cli.jsonl([good, dict(good, _id="long", context="word " * 20000), b"[]"])
    )
    job = Job(
        "mixed",
        "input.archives=" + source,
        "input.members=*",
        "model.truncate=error",
        "input.prompts=" + cli.write("mixed-t.json", {"mixed": "{context}Question: {input}\nAnswer:"}),
    )
    rows = job.run(1)
    dest = os.path.join(cli.WORK, "mixed-pred")
    ended = command("export", job.output, "--format", "longbench", dest).must(0)
    lines = [cli.json.loads(x) for f in sorted(os.listdir(dest)) for x in lines_of(os.path.join(dest, f))]
    by_id = {x["_id"]: x for x in lines}
    assert by_id["long"]["pred"] == "" and by_id["long"]["answers"] == good["answers"]
    n_named = sum(r["dataset"] is not None for r in rows)
    assert len(lines) == n_named and ("left out" in ended.err) == (n_named < 3)


@test
def plain_prompts_have_no_dataset_to_export():
    job = PromptJob("plain", [{"id": 1, "prompt": "x", "max_tokens": 1}])
    job.run()
    dest = os.path.join(cli.WORK, "plain-pred")
    command("export", job.output, "--format", "longbench", dest).must(
        2, "dataset", "only records of datasets"
    )
    assert not os.path.isdir(dest) or os.listdir(dest) == []


@test
def what_is_not_a_whole_output_is_refused_or_said():
    dest = os.path.join(cli.WORK, "none.jsonl")
    command("export", "nowhere", "--format", "jsonl", dest).must(2, "nowhere", "No such file")
    command("export", cli.DATA, "--format", "jsonl", dest).must(2, "has no manifest.json")
    job = Job("half", "job.limit=8", "output.records_per_shard=2", "input.part=0/2")
    job.run()
    command("export", job.output, "--format", "jsonl", dest).must(0, "4 rows", "is not finished yet")
    os.remove(dest)
    shard = job.shards()[0]
    with open(shard, "r+b") as f:
        f.seek(20)
        f.write(b"\xff\xff\xff")
    command("export", job.output, "--format", "jsonl", dest).must(2, os.path.basename(shard))
    assert not os.path.exists(dest) and not os.path.exists(dest + ".tmp")


cli.main()
