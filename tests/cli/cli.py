"""Shared by the command-line tests: jobs to run, what they wrote, and the list of tests.

A test script is called as  TOPIC.py BINARY [WORD]  and runs its functions marked
@test, only those whose name holds WORD if there is one. It prints a line for each,
removes what it made, and exits 0 when all passed, 1 when one failed, 77 when what the
tests need is missing. Needs Python 3.8 and the zstd program.

A job's settings are strings as -s takes them, "section.key=value". "section.key"
alone takes the key out of the job.
"""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(TESTS, "data")
TINY = os.path.join(DATA, "needle-tiny")
NEEDLES = os.path.join(DATA, "needle.tar.zst")
TEMPLATES = os.path.join(DATA, "needle-dataset2prompt.json")
LIMITS = os.path.join(DATA, "needle-dataset2maxlen.json")
LAYERS, KV_HEADS = 4, 4  # of needle-tiny

# Of one command, which only one that hangs meets; sanitizers and busy machines are slow.
TIMEOUT_S = 1200 * int(os.environ.get("FKV_TEST_PATIENCE", "1"))
SKIPPED = 77

BINARY = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else ""
WORK = ""  # the folder of this script's files, made by main()

_tests = []
_running = []  # processes that a failed test may leave behind


class Skip(Exception):
    """Raised by a test that can't run here; the text says why."""


def test(function):
    _tests.append(function)
    return function


def load(path):
    with open(path, "rb") as f:
        return json.loads(f.read().decode("utf-8"))


def write(name, content):
    """Writes a file into WORK: text, bytes, or anything else as JSON. Returns its path."""
    path = os.path.join(WORK, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not isinstance(content, (bytes, str)):
        content = json.dumps(content)
    with open(path, "wb") as f:
        f.write(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def tensors_of(folder):
    """Of its model.safetensors: {name: (header's entry, bytes)}."""
    with open(os.path.join(folder, "model.safetensors"), "rb") as f:
        whole = f.read()
    n = struct.unpack("<Q", whole[:8])[0]
    head, data = json.loads(whole[8 : 8 + n].decode()), whole[8 + n :]
    ranges = {k: v.pop("data_offsets") for k, v in head.items() if k != "__metadata__"}
    return {k: (head[k], data[begin:end]) for k, (begin, end) in ranges.items()}


def safetensors(tensors):
    """The file of such tensors, as bytes."""
    header, at = {}, 0
    for name, (entry, data) in tensors.items():
        header[name] = dict(entry, data_offsets=[at, at + len(data)])
        at += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values())


def golden():
    return load(os.path.join(TESTS, "golden", "needle-tiny-1k.json"))


def one_record():
    return load(os.path.join(TESTS, "golden", "one-record.json"))


def needle_prompt(record):
    return record["context"] + "Question: " + record["input"] + "\nAnswer:"


def budgets_file(name, budgets):
    return write(
        name,
        {
            "format": "fairkv-profile/1",
            "n_layers": len(budgets),
            "n_kv_heads": len(budgets[0]),
            "budgets": budgets,
        },
    )


def model_without_a_number(text):
    """A folder of needle-tiny in which the embedding of the text's last token is no number."""
    model = os.path.join(WORK, "nan-model")
    if os.path.exists(model):
        return model
    shutil.copytree(TINY, model)
    token = command("tokenize", TINY, stdin=text.encode("utf-8") + b"\n").must(0).out.split()[-1]
    with open(os.path.join(model, "model.safetensors"), "r+b") as f:
        (n,) = struct.unpack("<Q", f.read(8))
        table = json.loads(f.read(n))["model.embed_tokens.weight"]
        size = {"F32": 4, "BF16": 2, "F16": 2}[table["dtype"]] * table["shape"][1]
        f.seek(8 + n + table["data_offsets"][0] + int(token) * size)
        f.write(b"\xff" * size)
    return model


# Running the program.


STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", re.M)


def unstamped(text):
    """What a run said, without the times in front of its lines."""
    return STAMP.sub("", text)


class Ended:
    """A command that ended: code, and out and err as text; err without times, raw_err with them."""

    def __init__(self, code, out, err):
        self.code, self.raw_out = code, out
        self.out, self.raw_err = out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
        self.err = unstamped(self.raw_err)
        self.text = self.out + self.err
        # Under a sanitizer build its report is a failure, whatever the exit code.
        for sign in ("Sanitizer", "runtime error:", "Assertion"):
            assert sign not in self.text, self.text[-3000:]

    def must(self, code, *words):
        """Checks the exit code, and that the output holds all these words."""
        assert self.code == code, "exit %d, expected %d:\n%s" % (self.code, code, self.text[-2000:])
        for word in words:
            assert word in self.text, "%r is not in the output:\n%s" % (word, self.text[-2000:])
        return self


def command(*args, stdin=b"", env=None, cwd=None):
    done = subprocess.run(
        [BINARY, *args],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=TIMEOUT_S,
        env=dict(os.environ, **env) if env else None,
        cwd=cwd,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def sanitized():
    """Whether the program is a sanitizer build, whose memory and time say nothing."""
    with open(BINARY, "rb") as f:
        program = f.read()
    return b"__asan_init" in program or b"__tsan_init" in program


def needs_little_space():
    """Skips where the program can't be tried in a small address space."""
    if sanitized():
        raise Skip("sanitizers need the whole address space")
    if "cuda" in command("--version").must(0).out:
        raise Skip("CUDA's libraries alone take more address space")


def unzstd(path):
    return subprocess.run(["zstd", "-dcq", path], stdout=subprocess.PIPE, check=True).stdout


def zstd(data, level="-3"):
    return subprocess.run(["zstd", "-cq", level], input=data, stdout=subprocess.PIPE, check=True).stdout


def wait_until(condition, what):
    """Looks until condition() is true. Only a test that fails gets to the end of this time."""
    end = time.time() + TIMEOUT_S
    while not condition():
        assert time.time() < end, "no %s in %d s" % (what, TIMEOUT_S)
        time.sleep(0.002)


class Hold:
    """Where a run waits: a stage and its number, see runner/hold.h. How fast it gets there, and what
    else the machine does meanwhile, is then no matter."""

    def __init__(self, where, path):
        self.where, self.path = where, path
        if self.reached():
            os.unlink(path)  # a killed run left it there

    def environment(self):
        return dict(os.environ, FAIRKV_TEST_HOLD="%s %s" % (self.where, self.path))

    def reached(self):
        return os.path.exists(self.path)

    def go_on(self):
        os.unlink(self.path)


class Running:
    """A run in the background, to be stopped halfway. hold: where it waits, such as "records 3"."""

    def __init__(self, job, *args, which="run", log=".log", hold="nowhere 0"):
        self.hold = Hold(hold, job.path + log + ".held")
        self.log = open(job.path + log, "w+b")
        self.process = subprocess.Popen(
            [BINARY, which, job.path, *args],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env=self.hold.environment(),
        )
        self.pid = self.process.pid
        _running.append(self.process)

    def ended(self):
        return self.process.poll() is not None

    def until(self, condition, what):
        """Waits until condition() is true while the process runs."""

        def true():
            ended = self.ended()
            there = condition()
            assert there or not ended, "the run ended before %s:\n%s" % (what, self.text())
            return there

        wait_until(true, what)

    def until_held(self):
        self.until(self.hold.reached, "where it waits, " + self.hold.where)
        return self

    def go_on(self):
        self.hold.go_on()

    def send(self, sig):
        self.process.send_signal(sig)

    def stop(self, sig):
        """Sends the signal; returns the exit code."""
        self.send(sig)
        return self.wait()

    def interrupt(self, sig):
        """Sends the signal to a run that is answering records, and waits until it says that it has it."""
        self.send(sig)
        self.until(lambda: "signal %d: no more records are begun" % sig in self.text(), "word of the signal")

    def wait(self):
        code = self.process.wait(TIMEOUT_S)
        text = self.text()
        assert "Sanitizer" not in text and "runtime error:" not in text, text[-3000:]
        return code

    def text(self):
        self.log.flush()
        with open(self.log.name, "rb") as f:
            return unstamped(f.read().decode("utf-8", "replace"))


# Jobs.


def _ini(settings):
    sections = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        section, name = key.split(".", 1)
        if equals:
            sections.setdefault(section, {})[name] = value
        else:
            sections.get(section, {}).pop(name, None)
    lines = []
    for section, values in sections.items():
        lines.append("[%s]" % section)
        lines += ["%s = %s" % item for item in values.items()]
    return "\n".join(lines) + "\n"


def shards_of(output):
    """The paths of an output folder's shards."""
    folder = os.path.join(output, "shards")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [os.path.join(folder, n) for n in names if n.endswith(".jsonl.zst")]


def content_of(output):
    """Its shards' names and bytes."""
    content = {}
    for path in shards_of(output):
        with open(path, "rb") as f:
            content[os.path.basename(path)] = f.read()
    return content


class Job:
    """A job file name.ini with the output folder name/, over needle-tiny and the needles."""

    def __init__(self, name, *settings, output=None):
        self.name = name
        self.output = output or os.path.join(WORK, name)
        self.path = write(
            name + ".ini",
            _ini(
                [
                    "job.name=" + name,
                    "job.output=" + self.output,
                    "input.archives=" + NEEDLES,
                    "input.members=data/needle_1k.jsonl",
                    "input.format=longbench",
                    "input.prompts=" + TEMPLATES,
                    "input.max_new_tokens_by=" + LIMITS,
                    "model.path=" + TINY,
                    "profile.method=none",
                    "plan.calibration=stated",
                    "engine.backend=cpu",
                    "engine.slots=8",
                    "engine.tensor_parallel=1",
                    "output.token_ids=yes",
                    "output.records_per_shard=64",
                ]
                + list(settings)
            ),
        )

    def command(self, which, *args, **options):
        return command(which, self.path, *args, **options)

    def run(self, code=0, *args):
        """Runs to the end; returns the rows."""
        self.command("run", *args).must(code)
        return self.rows()

    def file(self, *names):
        return os.path.join(self.output, *names)

    def shards(self):
        return shards_of(self.output)

    def raw_rows(self):
        """The lines of the shards as bytes."""
        return b"".join(unzstd(f) for f in self.shards()).splitlines()

    def rows(self):
        return [json.loads(line.decode("utf-8")) for line in self.raw_rows()]

    def content(self):
        return content_of(self.output)

    def stats(self, file="stats.json"):
        """Of the last run."""
        return load(self.file(file))["run"]

    def sums(self, file="stats.json"):
        """Of all runs."""
        return load(self.file(file))["job"]

    def plan(self):
        return load(self.file("plan.json"))

    def profile(self):
        return load(self.file("profile.json"))


class PromptJob(Job):
    """A job over lines of the plain form {"id", "prompt", "max_tokens"?}.

    source: an archive's path, or records (dicts, or lines as bytes) to write as JSONL.
    """

    def __init__(self, name, source, *settings):
        if not isinstance(source, str):
            source = write(name + ".jsonl", jsonl(source))
        super().__init__(
            name,
            "input.archives=" + source,
            "input.members=*",
            "input.format=prompt",
            "input.prompts",
            "input.max_new_tokens_by",
            "engine.max_new_tokens=12",
            *settings
        )


def jsonl(records):
    return b"".join((r if isinstance(r, bytes) else json.dumps(r).encode("utf-8")) + b"\n" for r in records)


def tar_of(*members, format=tarfile.GNU_FORMAT):
    """Of (name, data) and (name, type, target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as t:
        for name, *what in members:
            info = tarfile.TarInfo(name)
            if len(what) == 2:
                info.type, info.linkname = what
                t.addfile(info)
            else:
                info.size = len(what[0])
                t.addfile(info, io.BytesIO(what[0]))
    return out.getvalue()


# What rows must say.


def ids_of(rows):
    """(id, generated ids) of each row."""
    return [(r["id"], r["ids"]) for r in rows]


def n_exact(rows):
    return sum(r["text"].strip() == r["fields"]["answers"][0] for r in rows)


def must_match(rows, records, may_differ=0):
    """The rows give the golden records' prompt lengths, and their ids but for may_differ."""
    by_id = {r["id"]: r for r in rows}
    for g in records:
        assert by_id[g["_id"]]["usage"]["prompt_tokens"] == g["prompt_tokens"], (g, by_id[g["_id"]]["usage"])
    bad = [
        (g["_id"], g["ids"], by_id[g["_id"]]["ids"]) for g in records if by_id[g["_id"]]["ids"] != g["ids"]
    ]
    assert len(bad) <= may_differ, "%d of %d differ: %s" % (len(bad), len(records), bad[:3])


def codes_of(rows):
    """The error code of each row, None where there is an answer."""
    return [r["error"]["code"] if r["error"] else None for r in rows]


def main():
    global WORK
    if len(sys.argv) < 2:
        sys.exit("usage: %s BINARY [WORD]" % sys.argv[0])
    if not shutil.which("zstd"):
        print("SKIP: the zstd program is missing")
        sys.exit(SKIPPED)
    word = sys.argv[2] if len(sys.argv) > 2 else ""
    failed = skipped = passed = 0
    WORK = os.path.realpath(tempfile.mkdtemp(prefix="fairkv-cli-"))
    try:
        for function in _tests:
            if word not in function.__name__:
                continue
            start = time.time()
            try:
                function()
                passed += 1
                verdict = "PASS"
            except Skip as why:
                skipped += 1
                verdict = "SKIP (%s)" % why
            except Exception:
                failed += 1
                verdict = "FAIL"
                traceback.print_exc(file=sys.stdout)
            print("%s %s (%.1f s)" % (verdict, function.__name__, time.time() - start), flush=True)
    finally:
        for process in _running:
            if process.poll() is None:
                process.kill()
                process.wait()
        if os.environ.get("FKV_KEEP"):
            print("kept: " + WORK)
        else:
            shutil.rmtree(WORK, ignore_errors=True)
    sys.exit(1 if failed else 0 if passed else SKIPPED)
