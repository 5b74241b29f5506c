"""Processes that share an output's shards out among themselves (input.part = auto)."""

import glob
import json
import os
import random
import re
import signal

import cli
import killing
import outputs
import strace
from cli import Job, Running, command, test

outputs.in_memory()

PER_SHARD, N_RECORDS = 40, 230  # more a shard than a process reads ahead; the last one is short
LAST = N_RECORDS // PER_SHARD


def small(name, *settings, output=None):
    return Job(
        name,
        "input.members=data/needle_1k.jsonl",
        "job.limit=%d" % N_RECORDS,
        "model.max_prompt_tokens=64",
        "model.truncate=left",
        "engine.slots=2",
        "output.records_per_shard=%d" % PER_SHARD,
        *settings,
        output=output
    )


def auto(name, *settings, output=None):
    return small(name, "input.part=auto", *settings, output=output)


_whole = []


def whole():
    """What one run wrote that does the same alone."""
    if not _whole:
        job = small("whole")
        job.run()
        _whole.append(outputs.Whole(job))
    return _whole[0]


def running(job, i, n):
    """Process i on the job, that waits when it has answered n records."""
    return Running(job, log=".log-%d" % i, hold="records %d" % n)


def claims(job):
    """{shard: the process that holds its lease}"""
    found = {}
    for path in glob.glob(job.file("lock-shard-*")):
        if re.fullmatch(r"lock-shard-\d{6}", os.path.basename(path)):
            with open(path, "rb") as f:
                found[int(path[-6:])] = json.loads(f.read().decode())["pid"]
    return found


def kill(run):
    assert run.stop(signal.SIGKILL) == -signal.SIGKILL


def must_be_whole(job):
    assert job.content() == whole().content
    assert len(outputs.shards_done(job, whole())) == N_RECORDS
    manifest = cli.load(job.file("manifest.json"))
    assert manifest["complete"] is True and manifest["records"] == N_RECORDS, manifest
    assert outputs.leavings(job) == [], outputs.leavings(job)
    assert glob.glob(job.file("journal*")) == []


@test
def one_process_does_all_of_it_and_one_more_does_nothing():
    job = auto("alone")
    job.command("run").must(0, "have work for up to 6 processes", "done: 230 records, 0 of them by earlier runs")
    must_be_whole(job)
    logs = sorted(glob.glob(job.file("log*")))
    job.command("run").must(0, "nothing to do: all 230 records are done (0 errors)")
    assert sorted(glob.glob(job.file("log*"))) == logs == [job.file("log-auto0")]
    stats = job.stats("stats-auto0.json")
    assert stats["complete"] is True and stats["records"] == 230 and stats["resumed"] == 0, stats
    with open(job.file("metrics-auto0.prom")) as f:
        assert 'fairkv_records{name="alone",part="auto0"} 230' in f.read()


@test
def processes_side_by_side_never_do_the_same_and_the_last_one_finishes():
    job = auto("beside")
    runs = [running(job, i, 1).until_held() for i in range(3)]
    held = claims(job)
    assert set(held.values()) == {r.pid for r in runs} and len(held) >= 3, held
    for run in runs:
        run.go_on()
    codes = [run.wait() for run in runs]
    assert sorted(codes) in ([0, 75, 75], [0, 0, 75], [0, 0, 0]), codes
    must_be_whole(job)
    done = 0
    for i, run in enumerate(runs):
        text = run.text()
        assert not outputs.errors_in(text), text
        if codes[i] == 75:
            assert "other runs are at work on the shards that are left" in text, text
        stats = job.stats("stats-auto%d.json" % i)
        assert stats["complete"] is (codes[i] == 0), stats
        done += stats["prompt_tokens"]
    assert done == sum(r["usage"]["prompt_tokens"] for r in job.rows())  # nothing twice


@test
def a_killed_process_leaves_its_rows_to_who_takes_its_shard():
    job = auto("heir")
    first = running(job, 0, 30).until_held()
    first.until(lambda: len(outputs.rows_written(job)) >= 30, "30 rows")
    second = running(job, 1, 1).until_held()
    mine = claims(job)
    assert mine[0] == first.pid and second.pid in mine.values(), mine
    kill(first)
    second.go_on()
    assert second.wait() == 0, second.text()
    must_be_whole(job)
    stats = job.stats("stats-auto1.json")
    assert stats["resumed"] >= 30 and stats["records"] == N_RECORDS, stats
    rest = sorted(r["usage"]["prompt_tokens"] for r in job.rows())[: N_RECORDS - 30]
    assert stats["prompt_tokens"] <= N_RECORDS * max(rest) - 30 * min(rest), stats


@test
def whatever_is_killed_and_whoever_joins_the_bytes_are_one_runs():
    rng = random.Random(7)
    for round_ in range(2):
        job = auto("killed-%d" % round_)
        runs, n = [], 0
        for _ in range(7):
            while len(runs) < 3:
                runs.append(running(job, n, rng.randint(0, 25)))
                n += 1
            # Each gets to its hold, or ends because there is nothing that it could begin.
            for run in runs:
                cli.wait_until(lambda: run.ended() or run.hold.reached(), "hold or end")
            victim = runs.pop(rng.randrange(len(runs)))
            if not victim.ended():
                kill(victim)
            elif victim.process.returncode == 0:
                break
            done = outputs.shards_done(job, whole())
            for path in glob.glob(job.file("journal-shard-??????")):
                done |= outputs.journal_done(job, whole(), path)
            if rng.random() < 0.3 and runs and not runs[0].ended():
                runs[0].go_on()
                runs.pop(0).wait()
        for run in runs:
            if not run.ended():
                kill(run)
        text = job.command("run").must(0).text
        assert "done: " in text or "nothing to do" in text, text
        must_be_whole(job)


@test
def where_nothing_is_free_a_process_says_so_before_it_loads_the_model():
    job = auto("busy", "job.limit=80")
    first, second = running(job, 0, 1).until_held(), None
    cli.wait_until(lambda: len(claims(job)) >= 1, "a claim")
    second = running(job, 1, 1)
    cli.wait_until(lambda: second.ended() or second.hold.reached(), "a claim or an end")
    if not second.ended():
        assert len(claims(job)) == 2
    third = job.command("run").must(75, "other runs are at work on the shards that are left")
    assert "model:" not in third.text and not outputs.errors_in(third.text), third.text
    for run in (first, second):
        if not run.ended():
            run.go_on()
            run.wait()
    job.command("run").must(0, "nothing to do")


@test
def the_last_shards_rows_wait_for_the_others():
    """The short last shard is made last, by whoever ends last, although its rows are long there."""
    job = auto("last")
    slow = running(job, 0, 1).until_held()
    quick = running(job, 1, 0).until_held()
    quick.go_on()
    assert quick.wait() == 75, quick.text()
    theirs, manifest = set(claims(job)), cli.load(job.file("manifest.json"))
    assert 0 in theirs and LAST not in theirs, theirs
    assert manifest["complete"] is False and {s["first"] // PER_SHARD for s in manifest["shards"]} == set(
        range(LAST)
    ) - theirs, manifest
    assert len(outputs.entries_of(job.file("journal-shard-%06d" % LAST))) == N_RECORDS % PER_SHARD
    command("export", job.output, "--format", "jsonl", "-").must(1, "missing")
    slow.go_on()
    assert slow.wait() == 0, slow.text()
    must_be_whole(job)
    command("export", job.output, "--format", "jsonl", "-").must(0)


@test
def a_process_that_is_asked_to_end_leaves_its_shards_to_others():
    job = auto("asked")
    first = running(job, 0, 5).until_held()
    first.interrupt(signal.SIGTERM)
    first.go_on()
    assert first.wait() == 75 and "run it again to resume" in first.text(), first.text()
    assert claims(job) == {}
    kept = len(outputs.rows_written(job))
    assert kept >= 5
    job.command("run").must(0)
    must_be_whole(job)
    assert job.stats("stats-auto0.json")["resumed"] == kept


@test
def killed_just_before_the_end_the_next_one_only_finishes():
    job = auto("nearly")
    # All rows are there; the manifest does not say so yet.
    run = running(job, 0, N_RECORDS).until_held()
    run.until(lambda: len(outputs.rows_written(job)) == N_RECORDS, "all rows")
    kill(run)
    assert cli.load(job.file("manifest.json"))["complete"] is False
    job.command("run").must(0, "done: 230 records, 230 of them by earlier runs")
    must_be_whole(job)


@test
def a_kill_at_any_call_is_made_up_for_by_the_next_process():
    strace.needed()
    job = killing.small_job("calls", "input.part=auto")
    job.run()
    content = job.content()
    killing.remove(job)
    points = killing.call_points(job, ("rename", "link", "unlink", "mkdir"))
    assert len(points) > 40, points
    for point in points[:: 9 if cli.sanitized() else 3]:
        killing.remove(job)
        victim = killing.Victim(job, point)
        victim.process.wait(cli.TIMEOUT_S)
        victim.kill()
        job.command("run").must(0)
        assert job.content() == content, point
        # A page that was not renamed goes when it is ten minutes old.
        left = [n for n in outputs.leavings(job) if not n.startswith("report.html.")]
        assert left == [] and glob.glob(job.file("journal*")) == [], (point, os.listdir(job.output))


@test
def other_ranks_and_other_ways_to_share_are_refused():
    job = auto("mixed")
    kill(running(job, 0, 1).until_held())
    job.command("run", "-s", "engine.tensor_parallel=2").must(2, "engine.tensor_parallel was", "is now")
    for part in ("0/1", "1/3"):
        job.command("run", "-s", "input.part=" + part).must(2, "input.part", "the output was begun")
    job.command("check", "-s", "input.part=0/1").must(2, "was begun with input.part = auto")
    job.command("run", "-s", "job.restart=yes").must(2, "job.restart")
    job.command("run").must(0)
    must_be_whole(job)
    single = small("single", "job.limit=8")
    single.run()
    single.command("run", "-s", "input.part=auto").must(2, "was begun without input.part = auto")


@test
def bad_records_of_every_process_count_in_the_end():
    good = {"prompt": cli.needle_prompt(cli.one_record())[-400:]}
    job = cli.PromptJob(
        "bad", [good] * 50 + [b"[]"] + [good] * 50, "input.part=auto", "output.records_per_shard=45"
    )
    first = running(job, 0, 1).until_held()
    second = running(job, 1, 1)
    cli.wait_until(lambda: second.ended() or second.hold.reached(), "hold or end")
    first.go_on()
    codes = [first.wait()]
    if not second.ended():
        second.go_on()
    codes.append(second.wait())
    assert set(codes) <= {1, 75} and 1 in codes, (codes, first.text(), second.text())
    job.command("run").must(1, "nothing to do: all 101 records are done (1 errors)")


@test
def error_rows_of_a_finished_job_are_done_again_once():
    good = {"prompt": cli.needle_prompt(cli.one_record())[-400:]}
    job = cli.PromptJob(
        "retry",
        [good] * 30 + [b"[]"] + [good] * 19 + [b"[]"] + [good] * 10,
        "input.part=auto",
        "output.records_per_shard=20",
    )
    job.run(1)
    content = job.content()
    again = ["-s", "job.retry_errors=yes"]
    kill(Running(job, *again, hold="output 0").until_held())
    manifest = cli.load(job.file("manifest.json"))
    assert manifest["complete"] is False and manifest["errors"] == 0, manifest
    assert [s["first"] for s in manifest["shards"]] == [0], manifest
    # What goes on with it begins nothing anew.
    job.command("run", *again).must(1, "resuming: 20 records", "done: 61 records, 59 of them by earlier runs, 2 errors")
    assert job.content() == content and outputs.leavings(job) == [] and glob.glob(job.file("journal*")) == []
    stats = job.stats("stats-auto0.json")
    assert stats["records"] == 61 and stats["errors"] == 2 and stats["resumed"] == 59, stats
    job.command("check", *again).must(0)
    job.command("run").must(1, "nothing to do")


cli.main()
