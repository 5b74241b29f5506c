"""Every call of a small run fails once, on a new output and on a half-done one, and hundreds of allocations
do, for once and for good."""

import collections
import random

import cli
import failing
import killing
import outputs
import strace
from cli import test

outputs.in_memory()


def strike_all(job, whole, before):
    place = failing.Place(job, whole, before)
    points = place.points(failing.FAULTS)
    points = [p for i, p in enumerate(points) if p[1] in failing.FIRST or i % 3 == 0]
    ended = collections.Counter()
    for point in points:
        ended[point[:2] + (place.strike(point),)] += 1
    for (name, error, code), n in sorted(ended.items()):
        print("%-10s %-6s %3d calls: exit %d" % (name, error, n, code))
    assert sum(ended.values()) > 300, ended


@test
def every_call_of_a_new_run_fails_once():
    strace.needed()
    job = killing.small_job("new")
    job.run()
    strike_all(job, outputs.Whole(job), None)


@test
def every_call_of_a_resumed_run_fails_once():
    strace.needed()
    job = killing.small_job("resumed")
    job.run()
    whole = outputs.Whole(job)
    strike_all(job, whole, killing.half_done(job, whole))


@test
def calls_that_fail_from_then_on():
    strace.needed()
    job = killing.small_job("for-ever")
    job.run()
    place = failing.Place(job, outputs.Whole(job))
    faults = (("fsync", "EIO"), ("rename", "EROFS"), ("openat", "EMFILE"), ("pread64", "EIO"))
    codes = collections.Counter()
    for name, error, n in place.points(faults)[::3]:
        codes[place.strike((name, error, "%d+" % n))] += 1
    print(codes)
    assert codes[3] > 40, codes


@test
def allocations_fail():
    job = killing.small_job("memory")
    job.run()
    whole = outputs.Whole(job)
    memory = failing.Memory(job)
    rng, (n, _) = random.Random(6), memory.count()
    for before in (None, killing.half_done(job, whole)):
        place = failing.Place(job, whole, before)
        codes = collections.Counter()
        for times in (0, 1):
            # The first four fifths are the job's, the model's and the tokenizer's.
            for first in [1] * 30 + [n * 8 // 10] * 70:
                at = rng.randint(first, n)
                codes[times, memory.strike(place, at, times)] += 1
        print("of %d allocations: %s" % (n, codes))
        assert codes[0, 3] > 80 and codes[1, 3] > 80, codes


cli.main()
