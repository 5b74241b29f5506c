"""status OUT: how far an output is, over all parts, while a run works and after."""

import hashlib
import json
import os
import signal

import cli
from cli import PromptJob, Running, command, test

RECORDS = [{"id": i, "prompt": "the code is %d" % i, "max_tokens": 3} for i in range(12)]


def status(folder, code):
    return json.loads(command("status", folder, "--json").must(code).out)


def digest(folder):
    there = {}
    for at, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(at, name), "rb") as f:
                there[os.path.join(at, name)] = hashlib.sha256(f.read()).hexdigest()
    return there


@test
def a_finished_job_is_complete_and_status_changes_nothing():
    job = PromptJob("status-done", RECORDS, "output.records_per_shard=5")
    job.run()
    before = digest(job.output)
    said = status(job.output, 0)
    assert said["complete"] and said["done"] == said["records"] == 12 and said["missing"] == 0, said
    assert said["errors"] == [] and said["locks"] == [] and said["seconds_left"] is None, said
    assert "12 of 12 records done, 0 error rows; complete" in command("status", job.output).must(0).out
    assert digest(job.output) == before


@test
def errors_have_an_example_that_a_terminal_can_show():
    bad = b'{"id":1,"prompt":"x","max_tokens":"\\u001b[31m\xe2\x80\xae"}'
    job = PromptJob("status-errors", RECORDS[:5] + [bad, b"{no json"])
    job.run(1)
    said = status(job.output, 1)
    rows = [r for r in job.rows() if r["error"]]
    codes = {}
    for row in rows:
        codes.setdefault(row["error"]["code"], []).append(row)
    assert said["error_rows"] == len(rows) == 2, said
    assert {e["code"]: e["rows"] for e in said["errors"]} == {c: len(r) for c, r in codes.items()}, said
    for error in said["errors"]:
        first = codes[error["code"]][0]
        assert error["example"] == {"source": first["source"], "message": first["error"]["message"]}, error
    text = command("status", job.output).must(1).out
    assert all(code in text for code in codes) and "\x1b" not in text and "\u202e" not in text, text


@test
def rows_of_processes_that_share_an_output_count():
    records = RECORDS * 10  # more a shard than a process reads ahead
    job = PromptJob("status-shared", records, "engine.slots=1", "output.records_per_shard=40", "input.part=auto")
    runs = [Running(job, hold="records 2", log=".log-%d" % i).until_held() for i in range(2)]
    said = status(job.output, 75)
    assert {l["pid"] for l in said["locks"] if l["file"].startswith("lock-auto")} == {r.pid for r in runs}, said
    assert not said["complete"] and 4 <= said["done"] < 120 and said["parts"] == 1, said
    assert said["records"] in (None, 120) and said["error_rows"] == 0, said
    runs[0].stop(signal.SIGKILL)
    left = status(job.output, 75)
    assert said["done"] <= left["done"] < 120, (said, left)
    runs[1].go_on()
    assert runs[1].wait() == 75  # it had left the dead one's shard alone
    job.run()
    assert status(job.output, 0)["done"] == 120


@test
def a_run_at_work_is_named_and_its_journal_counts():
    job = PromptJob("status-running", RECORDS, "engine.slots=1")
    run = Running(job, hold="records 3").until_held()
    said = status(job.output, 75)
    lock = next(l for l in said["locks"] if l["file"] == "lock")
    assert lock["pid"] == run.pid and lock["host"] == os.uname().nodename and lock["beat"], said
    assert not said["complete"] and 0 < said["done"] < 12, said
    assert said["missing"] in (None, 12 - said["done"]), said
    assert "process %d on" % run.pid in command("status", job.output).must(75).out
    run.go_on()
    assert run.wait() == 0
    assert status(job.output, 0)["done"] == 12


@test
def parts_are_one_job():
    jobs = [
        PromptJob("status-part%d" % i, RECORDS, "input.part=%d/2" % i, "output.records_per_shard=5",
                  "job.output=" + os.path.join(cli.WORK, "status-parts"), "job.name=parts")
        for i in range(2)
    ]
    folder = os.path.join(cli.WORK, "status-parts")
    jobs[0].run()
    said = status(folder, 75)
    assert said["parts"] == 2 and said["done"] == 7 and said["missing"] in (None, 5), said
    jobs[1].run()
    said = status(folder, 0)
    assert said["complete"] and said["done"] == 12, said


@test
def hostile_files_are_refused_by_name():
    job = PromptJob("status-hostile", RECORDS[:3])
    job.run()
    for name in ("lock-plan", "lock-\x1b[31m"):  # a lease that is none, and what is no name of ours
        with open(os.path.join(job.output, name), "wb") as f:
            f.write(b"\xff\x1b" * 50)
    text = command("status", job.output).must(0).out
    assert text.count("can't be read as a lease") == 1 and "lock-plan" in text and "\x1b" not in text, text
    for name in ("stats.json", "manifest.json"):
        with open(os.path.join(job.output, name), "wb") as f:
            f.write(b'{"format":[[[')
        ended = command("status", job.output).must(2)
        assert name in ended.err and not ended.out, ended
    assert "not an output folder" in command("status", cli.WORK).must(2).err


cli.main()
