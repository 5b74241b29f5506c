"""Signals: what a run still does, how soon it ends, with which code and message."""

import fcntl
import os
import signal
import time

import cli
import outputs
from cli import PromptJob, Running, test

outputs.in_memory()

SLOW = cli.sanitized()
AT_ONCE_S = 30 if SLOW else 5  # on a busy machine
LONGEST = 600
RESUME = "interrupted by signal %d; run it again to resume"

# Greedy decoding of the first goes on for as long as it may; the others answer in seven tokens.
LONG = {"prompt": "The access code of record is", "max_tokens": LONGEST}
SHORT = {"prompt": cli.needle_prompt(cli.one_record()), "max_tokens": 12}


def long_job(name, *settings):
    """A record that takes long in one slot, and many short ones that pass through the other."""
    records = [dict(LONG, id=0)] + [dict(SHORT, id=i) for i in range(1, 80)]
    return PromptJob(
        name,
        cli.write("long.jsonl", cli.jsonl(records)),
        "model.max_prompt_tokens=96",
        "model.truncate=left",
        "engine.slots=2",
        "engine.max_new_tokens=%d" % LONGEST,
        "output.records_per_shard=100",
        *settings
    )


_whole = {}


def whole():
    if not _whole:
        job = long_job("whole")
        job.run()
        _whole["whole"] = outputs.Whole(job)
    return _whole["whole"]


def at_work(job, rows=3):
    """A run of job that has written some rows."""
    run = Running(job)
    run.until(lambda: outputs.rows_written(job) >= rows, "%d rows" % rows)
    return run


def ends(run, within=AT_ONCE_S):
    """The exit code, which must come soon."""
    start = time.time()
    code = run.wait()
    assert time.time() - start < within, "it took %.1f s to end" % (time.time() - start)
    return code


def resumes(job, kept):
    """The next run finds what was kept, and ends with the uninterrupted run's bytes."""
    job.command("run").must(0, "resuming: %d records are done" % len(kept))
    outputs.must_be_whole(job, whole())


@test
def what_is_in_flight_is_finished_and_nothing_begun():
    signals = (("usr1", signal.SIGUSR1), ("term", signal.SIGTERM), ("int", signal.SIGINT))
    for name, sig in signals:
        job = long_job(name, "job.grace=600")
        whole()
        run = at_work(job)
        before = outputs.check(job, whole())
        run.process.send_signal(sig)
        assert run.wait() == 75
        assert RESUME % sig in run.text() and outputs.errors_in(run.text()) == [], run.text()
        kept = outputs.check(job, whole())
        assert 0 in kept and len(kept) < len(whole().rows), kept
        # A short one was in the other slot; rows may have come before the signal did.
        assert len(kept - before) <= 10, (before, kept)
        stats = job.stats()
        assert stats["complete"] is False and stats["records"] == len(kept), stats
        resumes(job, kept)


@test
def a_second_interrupt_leaves_at_once():
    for first in (signal.SIGINT, signal.SIGTERM):
        job = long_job("twice-%d" % first, "job.grace=600")
        whole()
        run = at_work(job)
        before = outputs.check(job, whole())
        run.process.send_signal(first)
        time.sleep(0.05)
        run.process.send_signal(signal.SIGINT)
        assert ends(run) == 75
        kept = outputs.check(job, whole())
        assert kept >= before and 0 not in kept, (before, kept)
        resumes(job, kept)


@test
def a_second_of_another_kind_changes_nothing():
    job = long_job("patient", "job.grace=600")
    whole()
    run = at_work(job)
    for sig in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
        run.process.send_signal(sig)
        time.sleep(0.02)
    assert run.wait() == 75
    kept = outputs.check(job, whole())
    assert 0 in kept, kept
    resumes(job, kept)


@test
def no_grace_drops_what_is_in_flight():
    job = long_job("no-grace", "job.grace=0")
    whole()
    run = at_work(job)
    before = outputs.check(job, whole())
    run.process.send_signal(signal.SIGTERM)
    assert ends(run) == 75
    assert RESUME % signal.SIGTERM in run.text(), run.text()
    kept = outputs.check(job, whole())
    assert kept >= before and 0 not in kept, (before, kept)
    assert job.stats()["records"] == len(kept) and job.stats()["complete"] is False, job.stats()
    resumes(job, kept)


@test
def grace_runs_out():
    many = [dict(LONG, id=i, prompt=LONG["prompt"] + " %d" % i, max_tokens=1800) for i in range(30)]
    job = PromptJob("grace", many, "engine.slots=8", "engine.max_new_tokens=1800", "job.grace=1")
    run = Running(job)
    run.until(lambda: "model: " in run.text(), "the stream")
    time.sleep(0.3)
    start = time.time()
    run.process.send_signal(signal.SIGTERM)
    assert ends(run, 1 + AT_ONCE_S) == 75
    assert RESUME % signal.SIGTERM in run.text(), run.text()
    stats = job.stats()
    assert time.time() - start > 0.9 or stats["records"] > 0, stats
    assert stats["records"] < 8 and stats["complete"] is False, stats


def catches(pid, sig):
    """Whether the process has a handler for the signal."""
    try:
        with open("/proc/%d/status" % pid) as f:
            (mask,) = [line.split()[1] for line in f if line.startswith("SigCgt:")]
    except (FileNotFoundError, ValueError):
        return False
    return bool(int(mask, 16) >> (sig - 1) & 1)


@test
def a_signal_at_start_up_is_heeded():
    for which in ("run", "plan"):
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            job = long_job("start-%s-%d" % (which, sig))
            run = Running(job, which=which)
            run.until(lambda r=run, s=sig: catches(r.pid, s), "a handler")
            run.process.send_signal(sig)
            assert ends(run) == 75, run.text()
            assert "interrupted by signal %d; run it again" % sig in run.text(), run.text()
            assert outputs.rows_written(job) == 0
            job.command("check").must(0)


@test
def a_signal_during_the_profile_is_heeded():
    sample = ["profile.method=ada-snapkv", "profile.budget=40"]
    job = cli.Job("profile", "job.limit=60", *sample)
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        run = Running(job)
        run.until(lambda: os.path.exists(job.file("lock-profile")), "the profile")
        time.sleep(0.05)
        run.process.send_signal(sig)
        assert ends(run) == 75, run.text()
        assert RESUME % sig in run.text() and outputs.errors_in(run.text()) == [], run.text()
        assert not os.path.exists(job.file("profile.json"))
    job.command("run", "-s", "job.limit=2", "-s", "model.max_prompt_tokens=96").must(0)


@test
def a_signal_ends_the_wait_for_another_part_s_profile():
    for which in ("run", "plan"):
        job = long_job("wait-" + which, "input.part=0/2")
        os.makedirs(job.output)
        with open(job.file("lock-profile"), "w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            run = Running(job, which=which)
            run.until(lambda: os.path.exists(job.file("manifest-0of2.json")), "the manifest")
            time.sleep(0.2)
            assert run.process.poll() is None
            run.process.send_signal(signal.SIGTERM)
            assert ends(run) == 75, run.text()
        assert "interrupted by signal 15; run it again" in run.text(), run.text()
        job.command(which).must(0)


cli.main()
