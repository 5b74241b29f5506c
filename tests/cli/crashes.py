"""Runs killed at any moment, and several that want one output: nothing is lost, nothing is there twice."""

import signal
import socket
import time

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
    timed = killing.Timed(job)
    killing.remove(job)
    killing.chain(job, timed, 15, seed=1)


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


def ended(runs):
    return [run for run in runs if run.process.poll() is not None]


@test
def of_eight_runs_at_once_one_gets_the_output():
    job = killing.demo_job("eight", 24, *SHORT)
    job.run()
    whole = outputs.Whole(job)
    for last in (False, True) if cli.sanitized() else (False, False, True):
        killing.remove(job)
        runs = [Running(job, log=".log-%d" % i) for i in range(8)]
        while len(ended(runs)) < 7:
            time.sleep(0.01)
        (owner,) = [run for run in runs if run not in ended(runs)]
        told = "another run holds it: process %d on host %s" % (owner.pid, socket.gethostname())
        for run in ended(runs):
            text = run.text()
            assert run.process.returncode == 2, text
            assert len(outputs.errors_in(text)) == 1 and told in text and job.output in text, text
        if last:
            assert owner.wait() == 0, owner.text()
            outputs.must_be_whole(job, whole)
        else:
            owner.stop(signal.SIGKILL)


cli.main()
