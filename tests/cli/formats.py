"""jobs/FORMATS.md against what runs write: every field of one is a field of the other."""

import json
import os
import re
import shutil

import cli
from cli import Job, PromptJob, test

DOCUMENT = os.path.join(os.path.dirname(cli.TESTS), "jobs", "FORMATS.md")


def documented(section):
    """The fields of a section's tables: {name: its second column}. Their tables begin with "| field |"."""
    fields, here, in_table = {}, False, False
    with open(DOCUMENT, encoding="utf-8") as f:
        for line in f:
            if line.startswith("## "):
                here = line[3:].strip() == section
            cells = [c.strip() for c in line.split("|")[1:-1]] if line.startswith("|") else []
            in_table = bool(cells) and (in_table or cells[0] == "field")
            name = re.fullmatch("`(.+)`", cells[0]) if here and in_table else None
            if name:
                assert name.group(1) not in fields, "%s: %s is there twice" % (section, name.group(1))
                fields[name.group(1)] = cells[1]
    assert fields, "%s has no section %s" % (DOCUMENT, section)
    return fields


def fields_of(value, fields, name=""):
    """The names of all that value holds, as the document writes them. fields: where "a.*" may be one."""
    if name + ".*" in fields:
        return {name + ".*"}
    if isinstance(value, dict):
        inside = [fields_of(v, fields, name + "." + k if name else k) for k, v in value.items()]
    elif isinstance(value, list):
        inside = [fields_of(v, fields, name + "[]") for v in value]
    elif value is None and any(f.startswith((name + ".", name + "[]")) for f in fields):
        return set()  # an object or array that may be null
    else:
        return {name}
    return set().union(*inside)


def must_agree(section, *values):
    """All documented fields are in one of the values, and theirs are all documented."""
    fields = documented(section)
    found = set().union(*(fields_of(v, fields) for v in values))
    assert found == set(fields), "%s: only in the files: %s; only in the document: %s" % (
        section,
        sorted(found - set(fields)),
        sorted(set(fields) - found),
    )


def calibration(**others):
    """A calibration of needle-tiny on 4 ranks and 2 slots, made of the documented fields alone."""
    model = cli.load(os.path.join(cli.TINY, "config.json"))
    known = {
        "format": "fairkv-calibration/1",
        "backend": "cpu",
        "device": "any",
        "version": "0",
        "hidden": model["hidden_size"],
        "intermediate": model["intermediate_size"],
        "head_dim": model.get("head_dim", model["hidden_size"] // model["num_attention_heads"]),
        "group": model["num_attention_heads"] // model["num_key_value_heads"],
        "n_kv_heads": model["num_key_value_heads"],
        "n_layers": model["num_hidden_layers"],
        "vocab": model["vocab_size"],
        "act_bytes": 4,
        "kv_bytes": 4,
        "weight_bytes": 4,
        "ranks": 4,
        "devices": 1,
        "slots": 2,
        "tokens": 128,
    }
    return {field: known.get(field, 1) for field in documented("calibration")}


def calibrated(name):
    """A job that reads calibration-NAME.json, and the file's path."""
    path = cli.write("calibration-%s.json" % name, calibration())
    job = Job(
        name,
        "job.limit=6",
        "input.members=data/needle_500.jsonl",
        "engine.tensor_parallel=4",
        "engine.slots=2",
        "profile.method=uniform",
        "profile.budget=2048",
        "output.records_per_shard=3",
        "plan.calibration=" + path,
        "model.chat_template=" + cli.write("dated.jinja", "{{ strftime_now('%Y') }}{{ messages[0].content }}"),
    )
    return job, path


@test
def files_hold_the_documented_fields():
    job, _ = calibrated("whole")
    job.run()
    shared, _ = calibrated("shared")
    shared.run(0, "-s", "input.part=auto")
    must_agree("manifest.json", cli.load(job.file("manifest.json")), cli.load(shared.file("manifest.json")))
    for file in ("profile.json", "plan.json", "stats.json"):
        must_agree(file, cli.load(job.file(file)))
    must_agree("stats.json", cli.load(shared.file("stats-auto0.json")))


@test
def check_prints_the_documented_fields():
    job, _ = calibrated("check")
    with_errors = PromptJob("check-errors", [b"no JSON", {"id": 1, "prompt": "one"}])
    must_agree("check --json", *(json.loads(j.command("check", "--json").must(0).out) for j in (job, with_errors)))


@test
def status_prints_the_documented_fields():
    job = PromptJob("status-fields", [b"no JSON"] + [{"id": i, "prompt": "one"} for i in range(8)], "engine.slots=1")
    run = cli.Running(job, hold="records 3").until_held()
    at_work = json.loads(cli.command("status", job.output, "--json").must(75).out)
    run.go_on()
    assert run.wait() == 1
    must_agree("status --json", at_work, json.loads(cli.command("status", job.output, "--json").must(1).out))


@test
def leases_hold_the_documented_fields():
    job, _ = calibrated("leases")
    run = cli.Running(job, hold="plan 0").until_held()
    for file in ("lock", "lock-plan"):
        must_agree("Leases", cli.load(job.file(file)))
    assert cli.load(job.file("lock"))["pid"] == run.pid
    run.go_on()
    assert run.wait() == 0
    assert [n for n in os.listdir(job.output) if n.startswith("lock")] == []


@test
def rows_hold_the_documented_fields():
    rows = PromptJob(
        "rows",
        [{"id": 1, "prompt": "one two three four five six seven", "more": [1]}, b"no JSON"],
        "model.max_prompt_tokens=3",
    ).run(1)
    assert cli.codes_of(rows) == [None, "bad_json"], rows
    must_agree("Rows", *rows)


@test
def metrics_are_the_documented_ones():
    job, _ = calibrated("metrics")
    job.run()
    bad = PromptJob("metrics-of-errors", [{"id": 1, "prompt": "a"}, b"no JSON"])
    bad.run(1)
    found = set()
    for one in (job, bad):
        with open(one.file("metrics.prom"), encoding="utf-8") as f:
            found |= {line.split("{")[0] for line in f if not line.startswith("#")}
    found.add("fairkv_energy_joules_total")  # of GPUs
    assert found == set(documented("metrics.prom")), found ^ set(documented("metrics.prom"))


@test
def a_comparison_holds_the_documented_fields():
    prompts = [{"id": i, "prompt": "The grey robin sleeps. " * 40 + "\a" * (i == 5)} for i in range(9)]
    plain = PromptJob("compared-plain", prompts, "profile.sample=1", "model.path=" + cli.model_without_a_number("\a"))
    plain.command("compare", "--budgets", "40").must(1)
    job = Job("compared", "job.limit=9", "profile.sample=3")
    job.command("compare", "--budgets", "40").must(0)
    must_agree("compare.json", *(cli.load(os.path.join(j.output + "-compare", "compare.json")) for j in (plain, job)))


@test
def a_calibration_needs_the_documented_fields_and_no_other():
    job, path = calibrated("calibration")
    job.command("check").must(0)
    whole = cli.load(path)
    for field in whole:
        cli.write(os.path.basename(path), {k: v for k, v in whole.items() if k != field})
        job.command("check").must(2, field)


@test
def optional_fields_may_go_unknown_ones_come_and_no_other_format():
    job, _ = calibrated("optional")
    job.run()
    old = Job("old")
    here = ["-s", "job.output=" + old.output]
    shutil.copytree(job.output, old.output)
    os.unlink(old.shards()[1])
    files = {name: cli.load(job.file(name)) for name in ("manifest.json", "profile.json", "plan.json")}
    for gone in ("archives", "complete", "records", "errors"):
        del files["manifest.json"][gone]
    del files["manifest.json"]["shards"][1]
    del files["profile.json"]["input"], files["profile.json"]["sample"]["new_tokens"]
    del files["profile.json"]["score"], files["profile.json"]["sinks"]
    del files["plan.json"]["cost"]
    for name, content in files.items():
        cli.write("old/" + name, dict(content, more=1))
    for name, content in files.items():
        cli.write("old/" + name, dict(content, format=content["format"][:-1] + "9"))
        cli.command("check", job.path, *here).must(2, name, "format", "/9")
        cli.write("old/" + name, dict(content, more=1))
    cli.command("run", job.path, *here).must(0, "resuming: 3 records")
    assert old.content() == job.content()


cli.main()
