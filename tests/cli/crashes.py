"""Runs killed at any moment, and several that want one output: nothing is lost, nothing is there twice."""

import re
import signal
import socket

import cli
import killing
import outputs
import strace
from cli import Running, test

outputs.in_memory()

SHORT = ["model.max_prompt_tokens=160", "model.truncate=left", "profile.sample=8"]


@test
def a_chain_of_kills_ends_with_the_same_bytes():
    job = killing.demo_job("chain", 24, *SHORT)
    whole, seconds = killing.uninterrupted(job)
    killing.remove(job)
    killing.chain(job, whole, seconds, 15, seed=1)


@test
def a_kill_at_any_rename_is_resumed():
    strace.needed()
    job = killing.small_job("renames")
    job.run()
    whole = outputs.Whole(job)
    killing.remove(job)
    points = killing.call_points(job, ("rename",))
    assert len(points) >= 14, points
    # The last ones finish the job; of those before them some.
    for point in points[: -6 : 5 if cli.sanitized() else 2] + points[-6:]:
        killing.kill_at(job, whole, point)


@test
def of_eight_runs_at_once_one_gets_the_output():
    job = killing.demo_job("eight", 24, *SHORT)
    job.run()
    whole = outputs.Whole(job)
    for last in (False, True) if cli.sanitized() else (False, False, True):
        killing.remove(job)
        runs = [Running(job, log=".log-%d" % i, hold="records 1") for i in range(8)]
        cli.wait_until(lambda: sum(run.ended() for run in runs) >= 7, "end of all but one")
        (owner,) = [run for run in runs if not run.ended()]
        told = "another run holds it: process %d on host %s; " % (owner.pid, re.escape(socket.gethostname()))
        for run in runs:
            if run is owner:
                continue
            text = run.text()
            assert run.process.returncode == 75, text
            errors = outputs.errors_in(text)
            assert len(errors) == 1 and re.search(told, errors[0]) and job.output in errors[0], text
        if last:
            owner.until_held().go_on()
            assert owner.wait() == 0, owner.text()
            outputs.must_be_whole(job, whole)
        else:
            owner.stop(signal.SIGKILL)


cli.main()
