"""What a run does when the system fails it: calls, disk, memory, standard streams. It ends with
exit code 3 and one error that names the cause, and a resume ends with the same bytes."""

import os
import random
import resource
import subprocess

import cli
import failing
import killing
import outputs
import strace
from cli import Job, command, test

outputs.in_memory()

_whole = {}


def small(name):
    """A small job, and what an uninterrupted run of it writes."""
    job = killing.small_job(name)
    if not _whole:
        job.run()
        _whole["whole"] = outputs.Whole(job)
        killing.remove(job)
    return job, _whole["whole"]


def fails(ended, *words):
    """Exit code 3 and one error, with these words."""
    ended.must(3)
    told = outputs.errors_in(ended.err)
    assert len(told) == 1 and all(word in told[0] for word in words), ended.text
    return told[0]


# Calls.


@test
def a_call_that_fails_is_named_and_resumed():
    """One of every kind of call; all of them in faults_whole.py."""
    strace.needed()
    rng = random.Random(3)
    job, whole = small("calls")
    for before, share in ((None, 1), (killing.half_done(job, whole), 0.4)):
        place = failing.Place(job, whole, before)
        points = place.points(failing.FAULTS)
        kinds = sorted({point[:2] for point in points})
        # A sanitizer makes a run ten times as long.
        kinds = rng.sample(kinds, int(len(kinds) * share / (3 if cli.sanitized() else 1)))
        chosen = [rng.choice([point for point in points if point[:2] == kind]) for kind in kinds]
        codes = [place.strike(point) for point in chosen]
        print("%d of %d calls: %s" % (len(chosen), len(points), list(zip(chosen, codes))))
        assert 3 in codes, codes


@test
def an_archive_that_can_t_be_read_on_keeps_what_came_before():
    strace.needed()
    lines = outputs.with_ballast("needle_1k", 160, 30000)
    path = cli.write("lines/needle_1k.jsonl.zst", cli.zstd(lines.encode(), "-1"))
    job = killing.small_job(
        "read", "input.archives=" + path, "input.members=*", "job.limit=160", "profile.method=none"
    )
    job.run()
    whole = outputs.Whole(job)
    # With its profile there a run reads the archive once, in a thread of its own.
    half = killing.half_done(job, whole)
    half()
    ended, calls = strace.run(job, "read", paths=[path])
    ended.must(0)
    n = sum(call.thread != calls[0].thread for call in calls)
    assert n > sum(call.thread == calls[0].thread for call in calls), calls
    half()
    done = outputs.check(job, whole)
    ended, calls = strace.run(job, "read", "error=EIO", n - 1, paths=[path])
    assert [c.path for c in calls if c.injected] == [path]
    fails(ended, path, "read: Input/output error")
    # The reader is at most 72 records ahead (stream.c: n_items); those before them must have ended.
    kept = outputs.check(job, whole)
    assert kept > done and len(kept) >= 60, (len(done), len(kept))
    job.command("run").must(0, "resuming: %d records are done" % len(kept))
    outputs.must_be_whole(job, whole)


# Disks.


def grow(job, whole, disk, option, sizes):
    """Runs job on a disk that grows until it has room. The files that had none, in order."""
    named, done = [], set()
    for size in sizes:
        disk.change("%s=%d" % (option, size))
        ended = job.command("run")
        kept = outputs.check(job, whole)
        assert kept >= done, (size, done, kept)
        done = kept
        if ended.code == 0:
            outputs.must_be_whole(job, whole)
            return named
        told = fails(ended, job.output, "No space left on device")
        name = told[len("error: " + job.output) :].lstrip("/").split(":")[0].replace(".tmp", "")
        named.append(name.split(".")[0] if name.startswith("lock") else name)
    raise AssertionError("no room for the job in %d" % size)


def stages(named):
    return {"shard" if name.startswith("shards/") else name for name in named}


@test
def a_full_disk_is_named_and_with_more_room_a_resume_ends_the_same():
    # Rows of several pages, so that a disk ends within them too.
    archive = cli.write("lines/needle_1k.jsonl", outputs.with_ballast("needle_1k", 7, 8000))
    page = resource.getpagesize()
    with failing.Disk("disk", "size=%d" % page) as disk:
        settings = ["input.archives=" + archive, "input.members=*"]
        job = killing.small_job("full", *settings)
        job.run()
        whole = outputs.Whole(job)
        job = killing.small_job("full", *settings, output=os.path.join(disk.path, "out"))
        named = grow(job, whole, disk, "size", range(page, 400 * page, page))
    print(", ".join(named))
    # profile.json takes a page as a new manifest did just before: it lacks room only where the log grew between.
    want = {"manifest.json", "job.ini", "journal", "plan.json", "shard"}
    assert stages(named) >= want, named
    assert named.count("journal") >= 3, named


@test
def a_disk_without_room_for_names_is_named_too():
    job, whole = small("names")
    with failing.Disk("names", "nr_inodes=1") as disk:
        job = killing.small_job("names", output=os.path.join(disk.path, "out"))
        named = grow(job, whole, disk, "nr_inodes", range(2, 60))
    print(", ".join(named))
    # A lease takes two names for a moment: what is made under one finds room then.
    want = {"shards", "lock", "lock-job", "lock-profile", "lock-plan", "log", "manifest.json", "job.ini"}
    assert stages(named) >= want, named


@test
def a_file_that_reaches_its_limit_is_named_and_resumed():
    """Batch systems limit how large a file may be (ulimit -f); the signal for it would end the run."""
    archive = cli.write("limited/needle_1k.jsonl", outputs.with_ballast("needle_1k", 7, 8000))
    settings = ["input.archives=" + archive, "input.members=*"]
    job = killing.small_job("limit", *settings)
    job.run()
    whole = outputs.Whole(job)
    killing.remove(job)
    named, done = [], set()
    for size in [*range(512, 8192, 512), *range(8192, 100 * 1024, 4096)]:
        run = subprocess.run(
            [cli.BINARY, "run", job.path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        )
        ended = cli.Ended(run.returncode, run.stdout, run.stderr)
        kept = outputs.check(job, whole)
        assert kept >= done, (size, done, kept)
        done = kept
        if ended.code == 0:
            break
        told = fails(ended, job.output, "File too large")
        named.append(told[len("error: " + job.output) :].lstrip("/").split(":")[0].replace(".tmp", ""))
    print(", ".join(named))
    assert ended.code == 0 and stages(named) >= {"manifest.json", "plan.json", "journal"}, named
    outputs.must_be_whole(job, whole)


@test
def a_folder_that_can_t_be_written_is_named():
    job, whole = small("read-only")
    with failing.Disk("read-only", "size=4m") as disk:
        job = killing.small_job("read-only", output=os.path.join(disk.path, "out"))
        disk.change("ro")
        fails(job.command("run"), job.output, "Read-only file system")
        assert not os.path.exists(job.output)
        disk.change("rw")
        half = killing.half_done(job, whole)
        half()
        done = outputs.check(job, whole)
        disk.change("ro")
        fails(job.command("run"), job.output, "Read-only file system")
        assert outputs.check(job, whole) == done
        disk.change("rw")
        job.command("run").must(0, "resuming: %d records are done" % len(done))
        outputs.must_be_whole(job, whole)


@test
def a_folder_that_is_not_permitted_is_named():
    if os.geteuid() == 0:
        raise cli.Skip("root may do everything")
    job, whole = small("denied")
    parent = os.path.join(cli.WORK, "denied-parent")
    os.makedirs(parent, 0o555)
    job = Job("denied-job", output=os.path.join(parent, "out"))
    fails(job.command("run"), job.output, "Permission denied")


# Memory.


@test
def memory_that_runs_out_is_named_and_resumed():
    """Some allocations; more of them in faults_whole.py."""
    job, whole = small("memory")
    memory = failing.Memory(job)
    rng = random.Random(4)
    n, page = memory.count()
    place = failing.Place(job, whole)
    chosen = [rng.randint(1, n) for _ in range(8)] + [rng.randint(n * 8 // 10, n) for _ in range(16)]
    codes = [memory.strike(place, at, 0) for at in chosen]
    print("of %d allocations: %s" % (n, list(zip(chosen, codes))))
    assert codes.count(3) >= 15, codes
    # The page is of no weight: without it all is done.
    codes = [memory.strike(place, n + page * i // 8, 0) for i in range(1, 8)]
    print("of %d for the page: %s" % (page, codes))
    assert codes.count("page") >= 4 and 3 not in codes[2:], codes


@test
def an_address_space_that_is_too_small_is_named_and_resumed():
    cli.needs_little_space()
    job, whole = small("space")
    codes = []
    for mib in range(20, 400, 4):
        run = subprocess.run(
            [cli.BINARY, "run", job.path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20)),
        )
        ended = cli.Ended(run.returncode, run.stdout, run.stderr)
        if ended.code == 127 and "shared libraries" in ended.err:
            continue  # not even the program fits
        codes.append(ended.code)
        outputs.check(job, whole)
        if ended.code == 0:
            break
        told = outputs.errors_in(ended.err)
        assert ended.code in (2, 3) and len(told) == 1, ended.text
        assert "memory" in told[0] or "MiB" in told[0] or "thread" in told[0], ended.text
    print(codes)
    assert codes.count(3) >= 3 and codes[-1] == 0, codes
    outputs.must_be_whole(job, whole)


# Standard streams.


def with_streams(redirections, *args):
    """The program's exit code and standard error, run by a shell with these redirections."""
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" ' + redirections, "sh", cli.BINARY, *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    return cli.Ended(done.returncode, done.stdout, done.stderr)


@test
def a_run_needs_no_standard_streams():
    for how in (
        ">/dev/full",
        "2>/dev/full",
        ">/dev/full 2>&1",
        ">&-",
        "2>&-",
        "<&- 2>&-",
        "<&- >&- 2>&-",
    ):
        job, whole = small("streams")
        killing.remove(job)
        with_streams(how, "run", job.path).must(0)
        outputs.must_be_whole(job, whole)
        with open(job.file("log")) as f:
            assert "done: 7 records" in f.read()


@test
def a_reader_that_goes_away_does_not_stop_a_run():
    job, whole = small("pipe")
    read, write = os.pipe()
    argv = [cli.BINARY, "run", job.path]
    run = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=write, stderr=write)
    os.close(read)
    os.close(write)
    assert run.wait(cli.TIMEOUT_S) == 0
    outputs.must_be_whole(job, whole)


@test
def what_can_t_be_printed_is_an_error():
    job, _ = small("printed")
    job.run()
    rows = os.path.join(cli.WORK, "rows.jsonl")
    for args in (
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["check", job.path],
        ["plan", job.path],
        ["export", job.output, "--format", "jsonl", rows],
    ):
        with_streams(">/dev/full", *args).must(3, "writing standard output: No space left on device")
        with_streams(">/dev/null", *args).must(0)
    # One way or the other the rows are there.
    with open(rows) as f:
        assert len(f.readlines()) == 7
    text = cli.write("text", "The access code\n")
    with_streams("<%s >/dev/full" % text, "tokenize", cli.TINY).must(3, "No space left on device")


@test
def closed_streams_are_no_files_of_the_output():
    """What is opened first must not become descriptor 2, or errors end up in it."""
    job = Job("closed", "model.path=nowhere")
    with_streams("<&- >&- 2>&-", "run", job.path).must(2)
    job, whole = small("closed-lock")
    killing.remove(job)
    with_streams("<&- >&- 2>&-", "run", job.path, "-s", "job.max_errors=1").must(0)
    outputs.must_be_whole(job, whole)
    rows = os.path.join(cli.WORK, "closed.jsonl")
    command("export", job.output, "--format", "jsonl", rows).must(0, "7 rows")


cli.main()
