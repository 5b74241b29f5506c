"""Runs whose system calls, disk or memory fail, for the tests faults.py and faults_whole.py."""

import collections
import os
import re
import shutil
import subprocess

import cli
import killing
import outputs
import strace

# What strace lets fail, and how. EINTR is no failure: the call is made again.
FAULTS = (
    ("openat", "EIO"),
    ("openat", "EMFILE"),
    ("openat", "EROFS"),
    ("read", "EIO"),
    ("read", "EINTR"),
    ("pread64", "EIO"),
    ("pread64", "EINTR"),
    ("write", "ENOSPC"),
    ("write", "EIO"),
    ("write", "EINTR"),
    ("fsync", "EIO"),
    ("fsync", "ENOSPC"),
    ("fsync", "EINTR"),
    ("fdatasync", "EIO"),
    ("fdatasync", "EINTR"),
    ("rename", "EIO"),
    ("rename", "EROFS"),
    ("mkdir", "ENOSPC"),
    ("ftruncate", "EIO"),
    ("link", "EIO"),
    ("link", "EPERM"),
    ("lseek", "EIO"),
    ("getdents64", "EIO"),
    ("newfstatat", "EIO"),
    ("unlink", "EIO"),
    ("mmap", "ENOMEM"),
    ("clone3", "EAGAIN"),
)
TEXTS = {
    "EIO": "Input/output error",
    "EMFILE": "Too many open files",
    "ENOSPC": "No space left on device",
    "EROFS": "Read-only file system",
    "EPERM": "Operation not permitted",
}


# The others do no more than these: every third of their calls is enough.
FIRST = ("EIO", "ENOMEM", "EAGAIN")


if cli.sanitized():  # which can't do without its shadow
    FAULTS = tuple(fault for fault in FAULTS if fault[0] != "mmap")


def needed(job, call, main):
    """Whether a run can't do without the call: one on its output or its input. The log may be
    cut, a file left over stays, a lease that can't be looked at when it is given up stays, and so does
    what lies beside it. What the thread of the progress can't save while the run is at work, the main one
    saves at its end. How old the files are that report.html is made of, and its own, is no more than a hint."""
    if call.thread != main and os.path.basename(call.path).startswith(("stats.json", "metrics.prom")):
        return False
    if call.name == "newfstatat" and os.path.basename(call.path).startswith(("stats.json", "report.html")):
        return False
    if call.name in ("getdents64", "newfstatat", "openat") and call.path == job.output:
        return False
    if call.name == "unlink" or call.path == job.file("log") and call.name != "openat":
        return False
    if call.path.startswith(job.file("lock")) and call.name != "link":
        return False
    at = re.search(r">, (\d+), SEEK_SET", call.args)
    if call.name == "lseek" and at and call.path.startswith(cli.DATA) and int(at.group(1)) >= os.path.getsize(call.path):
        return False  # nothing is left to be read there
    return call.path.startswith((job.output, job.path, cli.DATA))


def warned_of(text, path):
    name = re.sub(r"(\.[0-9a-f]{16})?\.tmp$", "", path)
    return any("WARNING" in line and name in line for line in text.splitlines())


class Place:
    """Where calls of a run fail: on a new output, or on one that before() puts in place."""

    def __init__(self, job, whole, before=None):
        self.job, self.whole, self.before = job, whole, before

    def clear(self):
        killing.remove(self.job)
        if self.before:
            self.before()

    def points(self, faults):
        """(call, error, number) for all calls behind the program's loading."""
        self.clear()
        ended, calls = strace.run(self.job, ",".join(sorted({name for name, _ in faults})))
        ended.must(0)
        main, begun = calls[0].thread, False
        counts, numbers, writing = collections.Counter(), collections.defaultdict(set), set()
        loading = collections.Counter()
        for call in calls:
            counts[call.thread, call.name] += 1
            begun = begun or call.path == self.job.path
            if begun or call.thread != main:
                numbers[call.name].add(counts[call.thread, call.name])
            else:
                loading[call.name] += 1
            if "O_WRONLY" in call.args or "O_RDWR" in call.args:
                writing.add(counts[call.thread, call.name])
        return [
            (name, error, n)
            for name, error in faults
            for n in sorted(numbers[name])
            if n > loading[name]
            # Nothing else is refused on a disk that can only be read.
            if (name, error) != ("openat", "EROFS") or n in writing
        ]

    def strike(self, point):
        """Lets one call fail and checks what becomes of the run, of its output, and of a resume."""
        name, error, n = point
        self.clear()
        done = outputs.check(self.job, self.whole)
        ended, calls = strace.run(self.job, name, "error=" + error, n)
        hit = [call for call in calls if call.injected]
        struck = [call.path for call in hit]
        told = outputs.errors_in(ended.err)
        what = "%s %s at call %s, on %s: exit %d, %s" % (name, error, n, struck, ended.code, told)
        kept = outputs.check(self.job, self.whole)
        assert kept >= done, what
        if ended.code == 0:
            assert told == [], what
            # A run that is finished warns of the last words of stats.json and metrics.prom, no more.
            lost = [c for c in hit if needed(self.job, c, calls[0].thread) and not warned_of(ended.err, c.path)]
            assert error == "EINTR" or not lost, what
            if outputs.leavings(self.job):
                assert name == "unlink" or any(path.startswith(self.job.file("lock")) for path in struck), what
                self.job.command("run").must(0, "nothing to do")  # and what was left over goes
            outputs.must_be_whole(self.job, self.whole)
            return ended.code
        assert ended.code == 3 and error != "EINTR", what
        assert len(told) == 1, what
        # newlocale says only that there is no such locale.
        files = [path for path in struck if path and not path.startswith("/usr/lib/locale/")]
        names = [re.sub(r"(\.[-0-9a-f]{36})?\.(tmp|old)$", "", os.path.basename(path)) for path in files]
        assert not names or any(text in told[0] for text in names), what
        if error in TEXTS and names:
            assert TEXTS[error] in told[0], what
        self.job.command("run").must(0)
        outputs.must_be_whole(self.job, self.whole)
        return ended.code


class Disk:
    """A file system in memory, of so many pages or files, under WORK. Needs to be root."""

    def __init__(self, name, options):
        self.path = os.path.join(cli.WORK, name)
        os.makedirs(self.path)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.path],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if done.returncode:
            raise cli.Skip("mount: " + done.stderr.decode("utf-8", "replace").strip())

    def __enter__(self):
        return self

    def __exit__(self, *args):
        subprocess.run(["umount", self.path], check=True)

    def change(self, options):
        subprocess.run(["mount", "-o", "remount," + options, self.path], check=True)


class Memory:
    """Runs whose allocations fail."""

    def __init__(self, job):
        if cli.sanitized():
            raise cli.Skip("a sanitizer has an allocator of its own")
        compiler = shutil.which("cc")
        if not compiler:
            raise cli.Skip("there is no C compiler")
        self.job = job
        self.library = os.path.join(cli.WORK, "failing_malloc.so")
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "failing_malloc.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", self.library, source], check=True)

    def count(self):
        """How many allocations an undisturbed run makes before its page, and for it."""
        n, page = self.count_of("run", self.job.path), self.count_of("report", self.job.output)
        return n - page, page

    def count_of(self, *args):
        path = os.path.join(cli.WORK, "count")
        cli.command(*args, env={"FAIL_COUNT": path, "LD_PRELOAD": self.library}).must(0)
        with open(path) as f:
            return int(f.read())

    def run(self, env):
        return self.job.command("run", env=dict(env, LD_PRELOAD=self.library))

    def strike(self, place, n, times):
        """Lets the n-th allocation of a run and those behind it fail (times; 0: all of them). Returns the exit
        code, or "page": all is done but report.html, and the run says so.

        An archive that libarchive can't open for want of a single one looks damaged to it: then
        the message names the archive, and before the first record the exit code may be 2."""
        place.clear()
        done = outputs.check(self.job, place.whole)
        ended = self.run({"FAIL_AT": str(n), "FAIL_FOR": str(times)})
        told = outputs.errors_in(ended.err)
        what = "allocation %d, %d times: exit %d, %s" % (n, times, ended.code, ended.err[-500:])
        assert outputs.check(self.job, place.whole) >= done, what
        if ended.code == 0:
            assert told == [], what
        else:
            archive = times == 1 and cli.NEEDLES in told[0]
            assert (ended.code == 3 or archive and ended.code == 2) and len(told) == 1, what
            assert archive or re.search("memory|thread", told[0]), what
            self.job.command("run").must(0)
        outputs.must_be_whole(self.job, place.whole)
        return "page" if ended.code == 0 and "WARNING: report.html: " in ended.err else ended.code
