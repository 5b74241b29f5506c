"""What a run may use of the machine: processors by affinity, memory by cgroup; ranks that share a device."""

import os
import re
import shutil
import subprocess
import time

import cli
from cli import Job, PromptJob, test

RECORDS = [{"id": i, "prompt": "code %d" % i, "max_tokens": 2} for i in range(6)]


def threads_of(text):
    return int(re.search(r" on CPU, (\d+) thread", text).group(1))


def limited(job, which, before, *args):
    """A command of the job in a process that has called before."""
    done = subprocess.run(
        [cli.BINARY, which, job.path, *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=cli.TIMEOUT_S,
        preexec_fn=before,
    )
    return cli.Ended(done.returncode, done.stdout, done.stderr)


@test
def a_run_has_as_many_threads_as_processors_that_it_may_use():
    allowed = os.sched_getaffinity(0)
    one = PromptJob("one-cpu", RECORDS)
    ended = limited(one, "run", lambda: os.sched_setaffinity(0, {min(allowed)})).must(0)
    assert threads_of(ended.text) == 1, ended.text
    if len(allowed) < 2:
        return
    two = PromptJob("two-cpus", RECORDS)
    ended = limited(two, "run", lambda: os.sched_setaffinity(0, set(sorted(allowed)[:2]))).must(0)
    assert threads_of(ended.text) in (1, 2), ended.text  # a quota may leave one
    assert [r["text"] for r in two.rows()] == [r["text"] for r in one.rows()]


@test
def threads_are_shared_among_the_devices_and_change_no_answer():
    rows = []
    for name, threads, devices, each in (("t1", 1, 1, 1), ("t3", 3, 1, 3), ("t5", 5, 2, 2), ("t2", 1, 2, 1)):
        job = PromptJob(
            name,
            RECORDS,
            "engine.threads=%d" % threads,
            "engine.devices=%d" % devices,
            "engine.tensor_parallel=2",
        )
        assert threads_of(job.command("run").must(0).text) == each
        rows.append(job.rows())
    assert all([r["ids"] for r in other] == [r["ids"] for r in rows[0]] for other in rows)
    # More of them, or fewer, go on with what is begun.
    job.command("run", "-s", "engine.threads=3").must(0, "nothing to do")
    PromptJob("t0", RECORDS, "engine.threads=0").command("check").must(2, "engine.threads: 0 is outside 1 to")
    PromptJob("auto", RECORDS).command("check").must(0, "threads = auto")


class Cgroup:
    """A memory cgroup of so many bytes, where this machine lets us make one."""

    def __init__(self, n_bytes):
        v1 = os.path.isdir("/sys/fs/cgroup/memory")
        top = "/sys/fs/cgroup/memory" if v1 else "/sys/fs/cgroup"
        limit = "memory.limit_in_bytes" if v1 else "memory.max"
        self.path = "%s/fairkv-test-%d" % (top, os.getpid())
        try:
            os.mkdir(self.path)
            with open(os.path.join(self.path, limit), "w") as f:
                f.write(str(n_bytes))
        except OSError as why:
            self.remove()
            raise cli.Skip("no memory cgroup can be made here: %s" % why)

    def enter(self):
        with open(os.path.join(self.path, "cgroup.procs"), "w") as f:
            f.write(str(os.getpid()))

    def remove(self):
        end = time.time() + 10
        while os.path.isdir(self.path):
            try:
                os.rmdir(self.path)
            except OSError:  # its last process is on its way out
                if time.time() > end:
                    return
                time.sleep(0.05)


@test
def a_run_in_a_memory_cgroup_plans_for_its_limit():
    """It was planned for the machine, and killed."""
    if cli.sanitized():
        raise cli.Skip("a sanitizer build, which takes more")

    def fit(text):
        return int(re.search(r"^slots: .*; (\d+) would fit", text, re.M).group(1))

    job = Job("cgroup", "job.limit=8", "engine.slots=4")
    whole = fit(job.command("plan").must(0).text)
    group = Cgroup(250 << 20)
    try:
        held = Job("held", "job.limit=8", "engine.slots=4")
        assert fit(limited(held, "plan", group.enter).must(0).text) < whole / 2
        assert limited(held, "run", group.enter).must(0)
        large = Job("large", "job.limit=8", "engine.slots=3000")
        assert limited(large, "run", group.enter).code in (0, 2)
        # More weights than the cgroup holds, though the machine would.
        folder = os.path.join(cli.WORK, "larger")
        shutil.copytree(cli.TINY, folder)
        config = cli.load(os.path.join(folder, "config.json"))
        config.update(intermediate_size=8192, num_hidden_layers=64)
        cli.write("larger/config.json", config)
        job = Job("larger-job", "model.path=" + folder, "model.weights=dummy")
        for which in ("check", "run"):
            limited(job, which, group.enter).must(2, "MiB of weights", "and has ")
    finally:
        group.remove()


@test
def ranks_that_share_a_device_are_told_that_they_gain_nothing():
    line = "engine.tensor_parallel: 4 ranks share 1 device and take turns"
    shared = PromptJob("shared", RECORDS, "engine.tensor_parallel=4")
    text = shared.command("plan").must(0, line, "each rank on a device of its own").text
    assert text.count(line) == 1, text
    text = shared.command("run").must(0, line).text
    assert text.count(line) == 1, text
    with open(shared.file("log")) as f:
        assert line in f.read()
    for name, ranks in (("own", "2"), ("alone", "1"), ("chosen", "auto")):
        devices = "2" if ranks == "2" else "1"
        job = PromptJob(name, RECORDS, "engine.tensor_parallel=" + ranks, "engine.devices=" + devices)
        assert "take turns" not in job.command("run").must(0).text


cli.main()
