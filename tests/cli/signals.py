"""Signals: what a run still does, with which code and message it ends. The runs are held (runner/hold.h)
where a signal is to meet them, so that no machine is too fast or too slow."""

import os
import signal
import time

import cli
import outputs
from cli import PromptJob, Running, test

outputs.in_memory()

LONGEST = 600
STOPS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGUSR1,  # what batch systems send before a time limit, by choice
    signal.SIGUSR2,
    signal.SIGXCPU,  # at a limit of processor time
    signal.SIGHUP,  # a terminal that goes away
)
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


def at_work(job):
    """A run of job that waits at its third answer, with record 0 in flight."""
    whole()
    run = outputs.held_at(job, 3)
    assert outputs.check(job, whole()) == {1, 2, 3}
    return run


def resumes(job, kept):
    """The next run finds what was kept, and ends with the uninterrupted run's bytes."""
    job.command("run").must(0, "resuming: %d records are done" % len(kept))
    outputs.must_be_whole(job, whole())


@test
def what_is_in_flight_is_finished_and_nothing_begun():
    for sig in STOPS:
        job = long_job("stop-%d" % sig, "job.grace=600")
        run = at_work(job)
        run.interrupt(sig)
        run.go_on()
        assert run.wait() == 75
        assert RESUME % sig in run.text() and outputs.errors_in(run.text()) == [], run.text()
        kept = outputs.check(job, whole())
        # A next short one may have been begun before the third ended.
        assert {0, 1, 2, 3} <= kept and len(kept) <= 6, kept
        stats = job.stats()
        assert stats["complete"] is False and stats["records"] == len(kept), stats
        resumes(job, kept)


@test
def a_second_interrupt_leaves_at_once():
    for first in (signal.SIGINT, signal.SIGTERM):
        job = long_job("twice-%d" % first, "job.grace=600")
        run = at_work(job)
        run.interrupt(first)
        # It is held still: a run that wants to finish anything stays for ever.
        assert run.stop(signal.SIGINT) == 75
        kept = outputs.check(job, whole())
        assert kept == {1, 2, 3}, kept
        resumes(job, kept)


@test
def a_second_of_another_kind_changes_nothing():
    job = long_job("patient", "job.grace=600")
    run = at_work(job)
    run.interrupt(signal.SIGTERM)
    for sig in (signal.SIGTERM, signal.SIGUSR1):
        run.send(sig)
        run.until(lambda s=sig: not pends(run.pid, s), "end of the signal")
    run.go_on()
    assert run.wait() == 75
    assert RESUME % signal.SIGTERM in run.text(), run.text()
    kept = outputs.check(job, whole())
    assert 0 in kept, kept
    resumes(job, kept)


@test
def no_grace_drops_what_is_in_flight():
    job = long_job("no-grace", "job.grace=0")
    run = at_work(job)
    assert run.stop(signal.SIGTERM) == 75
    assert RESUME % signal.SIGTERM in run.text(), run.text()
    kept = outputs.check(job, whole())
    assert kept == {1, 2, 3}, kept
    assert job.stats()["records"] == len(kept) and job.stats()["complete"] is False, job.stats()
    resumes(job, kept)


@test
def grace_runs_out():
    """Failed where a machine was done with everything before: now no answer comes while grace lasts."""
    job = long_job("grace", "job.grace=1")
    run = at_work(job)
    start = time.monotonic()
    assert run.stop(signal.SIGTERM) == 75
    assert time.monotonic() - start > 0.99, "grace was not given"
    assert "have 1 s to end" in run.text() and RESUME % signal.SIGTERM in run.text(), run.text()
    kept = outputs.check(job, whole())
    assert kept == {1, 2, 3}, kept
    assert job.stats()["records"] == len(kept) and job.stats()["complete"] is False, job.stats()
    resumes(job, kept)


def pends(pid, sig):
    """Whether the signal has been sent to the process and reached no handler yet."""
    try:
        with open("/proc/%d/status" % pid) as f:
            masks = [line.split()[1] for line in f if line.startswith(("SigPnd:", "ShdPnd:"))]
    except FileNotFoundError:
        return False
    return any(int(mask, 16) >> (sig - 1) & 1 for mask in masks)


@test
def a_signal_at_start_up_is_heeded():
    for which, stages in (("run", ("start", "output", "plan", "records")), ("plan", ("start",))):
        for i, stage in enumerate(stages):
            for sig in STOPS[:3] if i % 2 else STOPS[3:]:
                job = long_job("start-%s-%s-%d" % (which, stage, sig), "job.grace=0")
                run = Running(job, which=which, hold=stage + " 0").until_held()
                assert run.stop(sig) == 75, run.text()
                assert "interrupted by signal %d; run it again" % sig in run.text(), run.text()
                assert not outputs.rows_written(job)
                job.command("check").must(0)


@test
def under_nohup_a_run_outlives_its_terminal():
    job = long_job("nohup", "job.grace=0")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which a child inherits, as nohup has it
    try:
        run = outputs.held_at(job, 3)
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    run.send(signal.SIGHUP)
    run.go_on()
    assert run.wait() == 0, run.text()
    outputs.must_be_whole(job, whole())


@test
def a_signal_during_the_profile_is_heeded():
    sample = ["profile.method=ada-snapkv", "profile.budget=40", "model.max_prompt_tokens=96"]
    job = cli.Job("profile", "job.limit=6", "model.truncate=left", *sample)
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        run = Running(job, hold="profile 2").until_held()
        assert run.stop(sig) == 75, run.text()
        assert RESUME % sig in run.text() and outputs.errors_in(run.text()) == [], run.text()
        assert not os.path.exists(job.file("profile.json"))
    assert len(job.run()) == 6


@test
def a_signal_ends_the_wait_for_another_part_s_profile():
    other = long_job("wait-other", "input.part=1/2", "job.name=wait")
    maker = Running(other, hold="plan 0").until_held()
    for which in ("run", "plan"):
        job = long_job("wait-" + which, "input.part=0/2", "job.name=wait", "job.output=" + other.output)
        run = Running(job, which=which)
        told = "waiting: another process holds %s: process %d on host " % (other.file("lock-plan"), maker.pid)
        run.until(lambda r=run, t=told: t in r.text(), "word of the wait")
        assert run.stop(signal.SIGTERM) == 75, run.text()
        assert "interrupted by signal 15; run it again" in run.text(), run.text()
    maker.go_on()
    assert maker.wait() == 0
    job.command("run").must(0)


@test
def before_slurms_time_limit_nothing_is_begun_that_can_not_end():
    job = long_job("limit", "output.records_per_shard=8")
    env = {"SLURM_JOB_END_TIME": str(int(time.time()) + 5)}
    ended = job.command("run", env=env).must(75, "the job's time ends soon (SLURM_JOB_END_TIME)")
    assert "stopped before the job's time limit; run it again to resume" in ended.text, ended.text
    assert outputs.rows_written(job) == set()
    # In time for some of them; those that were begun end.
    limit = int(time.time()) + 17
    os.environ["SLURM_JOB_END_TIME"] = str(limit)
    try:
        run = Running(job, hold="records 3").until_held()
    finally:
        del os.environ["SLURM_JOB_END_TIME"]
    cli.wait_until(lambda: time.time() > limit - 15, "end of the time")
    run.go_on()
    assert run.wait() == 75, run.text()
    assert 3 <= len(outputs.rows_written(job)) < 80
    for harmless in ("", "soon", "0", str(int(time.time()) + 9999)):
        job.command("run", env={"SLURM_JOB_END_TIME": harmless}).must(0)
    assert len(job.rows()) == 80


cli.main()
