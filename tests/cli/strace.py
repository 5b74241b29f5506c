"""Runs under strace, which kills them or lets system calls fail at chosen ones.

strace counts calls per thread, so "the third" happens in every thread that gets
there. Tests that need it are skipped where it is missing or may not trace."""

import os
import re
import shutil
import subprocess

import cli

_works = []


def needed():
    """Raises cli.Skip where runs can't be traced."""
    if not shutil.which("strace"):
        raise cli.Skip("the strace program is missing")
    if not _works:
        tried = subprocess.run(
            ["strace", "-f", "-o", os.devnull, "-e", "inject=fsync:error=EIO:when=1", "true"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        _works.append(tried.returncode == 0)
    if not _works[0]:
        raise cli.Skip("strace may not trace here")


def there():
    try:
        needed()
    except cli.Skip:
        return False
    return True


def environment():
    """A leak checker traces too, which can't be done twice."""
    old = os.environ.get("ASAN_OPTIONS", "")
    return dict(os.environ, ASAN_OPTIONS=(old + ":" if old else "") + "detect_leaks=0")


class Call:
    """A traced call: name, arguments, the path that it is about ("" for none), and whether it was
    made to fail."""

    def __init__(self, line):
        found = re.match(r"(\d+) +(\w+)\((.*)", line)
        self.thread, self.name, self.args = found.groups()
        path = re.match(r"\d+<([^>]*)>", self.args) or re.search(r'"((?:[^"\\]|\\.)*)"', self.args)
        self.path = path.group(1) if path else ""
        self.injected = line.endswith("(INJECTED)")


def _calls(log):
    with open(log, "r", errors="replace") as f:
        lines = [line.rstrip("\n") for line in f]
    # A call that another thread's interrupts is on two lines; the second says how it ended.
    begun, calls = {}, []
    for line in lines:
        if " <unfinished ...>" in line:
            begun[line.split()[0]] = line.split(" <unfinished ...>")[0]
        elif " resumed>" in line:
            line = begun.pop(line.split()[0], "") + line.split(" resumed>", 1)[1]
            if line[:1].isdigit() and "(" in line:
                calls.append(Call(line))
        elif re.match(r"\d+ +\w+\(", line):
            calls.append(Call(line))
    return calls


def argv(job, syscalls, inject=None, when=None, log=os.devnull, paths=()):
    """The command line that runs job. inject: "error=EIO", or "signal=KILL"."""
    args = ["strace", "-f", "-y", "-o", log, "-e", "trace=" + syscalls]
    if inject:
        args += ["-e", "inject=%s:%s:when=%s" % (syscalls, inject, when)]
        # Calls that are not asked for run at full speed; strace 6.1 loses signals that way.
        if not inject.startswith("signal"):
            args.insert(2, "--seccomp-bpf")
    for path in paths:
        args += ["-P", path]
    return args + [cli.BINARY, "run", job.path]


def run(job, syscalls, inject=None, when=None, paths=()):
    """Runs job to its end; what ended, and the calls that were traced."""
    log = os.path.join(cli.WORK, "strace.log")
    done = subprocess.run(
        argv(job, syscalls, inject, when, log, paths),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=cli.TIMEOUT_S,
        env=environment(),
    )
    return cli.Ended(done.returncode, done.stdout, done.stderr), _calls(log)
