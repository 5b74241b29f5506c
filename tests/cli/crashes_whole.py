"""200 kills in one chain of resumes of the demo's job, and a kill at every call that changes its output."""

import os
import signal

import cli
import killing
import outputs
import strace
from cli import test

outputs.in_memory()


@test
def the_demo_killed_200_times_ends_with_the_same_bytes():
    os.environ["XDG_CACHE_HOME"] = os.path.join(cli.WORK, "cache")
    settings = ["plan.calibration=auto"]
    whole, seconds = killing.uninterrupted(killing.demo_job("demo-whole", 60, *settings))
    os.environ["XDG_CACHE_HOME"] = os.path.join(cli.WORK, "other-cache")
    tally = killing.chain(killing.demo_job("demo", 60, *settings), whole, seconds, 200, seed=2)
    assert sum(tally.values()) == 200, tally
    for what in ("before the profile", "before the plan", "at start-up", "before the first row"):
        assert tally[what] >= 5, tally
    assert tally["between rows"] + tally["in a row"] + tally["in a commit"] >= 10, tally
    assert not strace.there() or tally["in a commit"] >= 1, tally


@test
def a_kill_at_any_change_of_a_new_output_is_resumed():
    strace.needed()
    job = killing.small_job("new")
    job.run()
    whole = outputs.Whole(job)
    killing.remove(job)
    points = killing.call_points(job)
    assert len(points) > 80, points
    for point in points:
        killing.kill_at(job, whole, point)
    print("%d kills: %s" % (len(points), points))


@test
def a_kill_at_any_change_of_a_resumed_output_is_resumed():
    strace.needed()
    job = killing.small_job("resumed")
    job.run()
    whole = outputs.Whole(job)
    half = killing.half_done(job, whole)
    half()
    points = killing.call_points(job)
    assert len(points) > 30, points
    for point in points:
        killing.kill_at(job, whole, point, half)
    print("%d kills: %s" % (len(points), points))


@test
def a_run_that_was_stopped_for_a_minute_loses_its_output_and_says_so():
    job = killing.demo_job("stopped", 24)
    job.run()
    whole = outputs.Whole(job)
    killing.remove(job)
    run = outputs.held_at(job, 5)
    run.send(signal.SIGSTOP)
    next_one = cli.Running(job, log=".next", hold="records 3")
    next_one.until(lambda: "it is taken over unless it shows a sign of life" in next_one.text(), "word of it")
    next_one.until_held()
    assert "taken over from a process that shows no sign of life" in next_one.text(), next_one.text()
    run.go_on()
    run.send(signal.SIGCONT)
    assert run.wait() == 75, run.text()
    told = "another run has taken it over while this one showed no sign of life: process %d" % next_one.pid
    assert told in run.text(), run.text()
    next_one.go_on()
    assert next_one.wait() == 0, next_one.text()
    outputs.must_be_whole(job, whole)


cli.main()
