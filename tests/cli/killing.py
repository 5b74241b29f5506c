"""Kills a job's run over and over, for the tests crashes.py and crashes_whole.py."""

import collections
import os
import random
import shutil
import signal
import subprocess
import time

import cli
import outputs
import strace
from cli import Job, Running
from outputs import Whole

KILLED = -signal.SIGKILL

# State on disk changes at these calls and at no others.
CHANGES = ("openat", "write", "rename", "mkdir", "unlink", "ftruncate")


def demo_job(name, n_records, *settings):
    """The job of jobs/examples/demo.ini, with fewer slots and shorter shards: a kill costs less
    and more of them hit a commit. Its records carry ballast, so that the journal is rewritten."""
    archive = cli.write("data/needle_1k.jsonl", outputs.with_ballast("needle_1k", n_records, 60000))
    return Job(
        name,
        "input.archives=" + archive,
        "input.members=needle_1k.jsonl",
        "profile.method=ada-snapkv",
        "profile.budget=15%",
        "engine.tensor_parallel=4",
        "engine.slots=4",
        "output.token_ids=no",
        "output.records_per_shard=4",
        *settings
    )


def small_job(name, *settings, output=None):
    """Seven records in shards of three, two at a time: every file is written, and soon."""
    return Job(
        name,
        "input.members=data/needle_500.jsonl",
        "job.limit=7",
        "model.max_prompt_tokens=96",
        "model.truncate=left",
        "profile.method=ada-snapkv",
        "profile.budget=40",
        "profile.sample=2",
        "engine.tensor_parallel=2",
        "engine.slots=2",
        "output.records_per_shard=3",
        *settings,
        output=output
    )


def remove(job):
    shutil.rmtree(job.output, ignore_errors=True)


def uninterrupted(job):
    """What a run of job writes that nothing stops; and how many seconds it takes to begin with records."""
    start = time.time()
    run = Running(job, hold="records 0").until_held()
    seconds = time.time() - start
    run.go_on()
    assert run.wait() == 0, run.text()
    whole = Whole(job)
    outputs.must_be_whole(job, whole)
    return whole, seconds


class Victim:
    """A run that is about to be killed: by one of its calls, under strace, or where it waits."""

    def __init__(self, job, call=None, hold="nowhere 0"):
        self.job, self.log = job, open(job.path + ".log", "w+b")
        self.hold = cli.Hold(hold, job.path + ".held")
        argv = [cli.BINARY, "run", job.path]
        if call:
            argv = strace.argv(job, call[0], "signal=KILL", call[1])
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            env=dict(self.hold.environment(), **(strace.environment() if call else {})),
        )
        cli._running.append(self.process)

    def kill(self):
        """Kills it, or finds it killed; its own end is a failure."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        assert code == KILLED, "exit %d before it was killed:\n%s" % (code, self.text())
        outputs.wait_for_the_lock(self.job)

    def text(self):
        with open(self.log.name, "rb") as f:
            return f.read().decode("utf-8", "replace")


BEGINNING = ("start 0", "output 0")


def choose(rng, job, share, may, left):
    """How to kill the next run: a name, where it waits at the latest, and a call that is to kill it before
    that (or None). share: of the kills that are done; may: rows that it may finish; left: rows that the job
    lacks."""
    if share < 0.1 and not os.path.exists(job.file("profile.json")):
        return "begin", rng.choice(BEGINNING + tuple("profile %d" % i for i in range(8))), None
    if share < 0.15 and not os.path.exists(job.file("plan.json")):
        return "plan", "plan 0", None
    if rng.random() < 0.1:
        return "begin", rng.choice(BEGINNING), None
    by_call = strace.there() and rng.random() < (0.7 if may > 0 else 0.3)
    if may <= 0:  # before the first row
        if by_call:
            return "call", "records 1", rng.choice((("write", rng.randint(1, 6)), ("rename", 1)))
        return rng.choice(("moment", "begin")), "records 0", None
    rows = rng.randint(1, may)
    if by_call:
        # A resume renames job.ini; then come a shard and the manifest, by turns.
        call = rng.choice((("write", rng.randint(1, 24)), ("rename", rng.randint(1, 3))))
        return "call", "records %d" % (rows + 3 if left > 16 else rows), call
    return "rows", "records %d" % rows, None


def what_was_cut(job, whole, text, new):
    """What the killed run was doing, by what it left."""
    if not os.path.exists(job.file("profile.json")):
        return "before the profile"
    if not os.path.exists(job.file("plan.json")):
        return "before the plan"
    if "\nmodel: " not in "\n" + text:
        return "at start-up"
    names = [n for _, _, found in os.walk(job.output) for n in found if not n.startswith("lock")]
    listed = {os.path.basename(s["file"]) for s in cli.load(job.file("manifest.json"))["shards"]}
    if any(n.endswith(".tmp") for n in names) or any(n not in listed for n in names if n in whole.content):
        return "in a commit"
    entries = outputs.entries_of(job.file("journal"))
    end = entries[-1][1] + entries[-1][2] if entries else outputs.FILE_HEADER
    if os.path.getsize(job.file("journal")) > end:
        return "in a row"
    return "between rows" if new else "before the first row"


def chain(job, whole, seconds, n_kills, seed):
    """Kills n_kills runs of job, each the resume of the one before, then lets it end. How often
    which part of a run was cut, by name. seconds: what a run takes to begin with records."""
    rng, tally = random.Random(seed), collections.Counter()
    n_records, spare = len(whole.rows), 10  # rows that no kill waits for
    assert n_records > spare
    print("%s: %d kills, seed %d" % (job.name, n_kills, seed))
    done = outputs.check(job, whole)
    for i in range(n_kills):
        may = (n_records - spare) * (i + 1) // n_kills - len(done)
        kind, hold, call = choose(rng, job, i / n_kills, may, n_records - len(done))
        # No run ends before it is killed: it waits at the hold. These seconds only make the kills meet
        # it at other points too: before it waits, or while its last rows are written.
        moment = time.time() + rng.uniform(0, seconds) if kind == "moment" else float("inf")
        victim = Victim(job, call, hold)
        cli.wait_until(
            lambda: victim.process.poll() is not None or victim.hold.reached() or time.time() > moment,
            "kill of a run",
        )
        if kind == "rows":
            time.sleep(rng.uniform(0, 0.002))
        victim.kill()
        text = victim.text()
        resumed = outputs.resumed_in(text)
        assert resumed is None or resumed == len(done), (resumed, len(done), text)
        kept = outputs.check(job, whole)
        assert kept >= done, "finished records are gone: %s" % sorted(done - kept)
        cut = what_was_cut(job, whole, text, len(kept) > len(done))
        tally[cut] += 1
        print(
            "%3d %s, %s%s: %d + %d records, %s"
            % (i + 1, kind, hold, " or %s %d" % call if call else "", len(done), len(kept - done), cut)
        )
        done = kept
    assert len(done) < n_records
    end = job.command("run").must(0, "done: %d records, %d of them by earlier runs" % (n_records, len(done)))
    assert outputs.resumed_in(end.text) == len(done), end.text
    outputs.must_be_whole(job, whole)
    print("%s: %s" % (job.name, ", ".join("%d %s" % (n, what) for what, n in tally.most_common())))
    return tally


def call_points(job, names=CHANGES):
    """(call, number) of every call of these that job makes on its output, counted as strace does."""
    ended, calls = strace.run(job, ",".join(names))
    ended.must(0)
    counts, points = collections.Counter(), []
    for call in calls:
        counts[call.thread, call.name] += 1
        if call.path.startswith(job.output) and (call.name, counts[call.thread, call.name]) not in points:
            points.append((call.name, counts[call.thread, call.name]))
    return points


def half_done(job, whole):
    """A function that puts the same half-done output in place: a shard, rows in the journal with a
    torn one behind them, and files that the killed run was writing."""
    saved = job.output + ".half"
    for _ in range(20):  # which records end first hangs on how soon they were read: the first shard's, or not
        remove(job)
        run = outputs.held_at(job, 5)
        assert run.stop(signal.SIGKILL) == KILLED
        outputs.wait_for_the_lock(job)
        kept = outputs.check(job, whole)
        if len(job.shards()) == 1:
            break
    assert len(kept) == 5 and len(job.shards()) == 1, kept
    with open(job.file("journal"), "ab") as f:
        f.write(outputs.ENTRY_MAGIC + b"torn")
    for name in ("manifest.json.tmp", "shards/shard-000001.jsonl.zst.tmp"):
        with open(job.file(name), "wb") as f:
            f.write(b"half")
    shutil.rmtree(saved, ignore_errors=True)
    shutil.copytree(job.output, saved)

    def restore():
        remove(job)
        shutil.copytree(saved, job.output)

    return restore


def kill_at(job, whole, point, before=None):
    """Kills a run of job at one call and lets the next one end. before: makes what it starts from."""
    remove(job)
    if before:
        before()
    done = outputs.check(job, whole)
    victim = Victim(job, point)
    victim.process.wait(cli.TIMEOUT_S)
    victim.kill()
    kept = outputs.check(job, whole)
    assert kept >= done, "%s: finished records are gone" % (point,)
    job.command("run").must(0)
    outputs.must_be_whole(job, whole)
