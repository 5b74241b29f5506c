"""What an output folder must hold at any moment, whatever stopped the run that wrote it."""

import glob
import io
import json
import os
import random
import re
import struct
import tarfile
import tempfile

import cli

FILE_HEADER, ENTRY_HEADER = 32, 64  # of the journal: see jobs/journal.h
ENTRY_MAGIC = b"\xffFK\xfe"


class Whole:
    """What an uninterrupted run of a job wrote, one row a record in input order."""

    def __init__(self, job):
        self.content = job.content()
        self.rows = [line + b"\n" for line in job.raw_rows()]
        self.per_shard = cli.load(job.file("manifest.json"))["records_per_shard"]


def in_memory():
    """Keeps this script's files in memory: thousands of syncs are no part of what is tested."""
    if not os.environ.get("TMPDIR") and os.access("/dev/shm", os.W_OK):
        tempfile.tempdir = "/dev/shm"


def entries_of(path):
    """(ordinal, offset of the row, its length) of the journal's whole entries, in file order."""
    entries = []
    try:
        f = open(path, "rb")
    except FileNotFoundError:
        return entries
    with f:
        size, at = os.fstat(f.fileno()).st_size, FILE_HEADER
        while at + ENTRY_HEADER <= size:
            f.seek(at)
            header = f.read(ENTRY_HEADER)
            if len(header) < ENTRY_HEADER or header[:4] != ENTRY_MAGIC:
                break
            ordinal, length = struct.unpack("<QQ", header[8:24])
            if at + ENTRY_HEADER + length > size:
                break
            entries.append((ordinal, at + ENTRY_HEADER, length))
            at += ENTRY_HEADER + length
    return entries


def shards_done(job, whole):
    """The records of the manifest's shards, each of which must be there, whole."""
    done = set()
    if not os.path.exists(job.file("manifest.json")):
        return done
    manifest = cli.load(job.file("manifest.json"))
    for shard in manifest["shards"]:
        name = os.path.basename(shard["file"])
        with open(job.file(shard["file"]), "rb") as f:
            data = f.read()
        assert data == whole.content[name], "%s stands in the manifest and is not whole" % name
        assert len(data) == shard["bytes"] and shard["first"] % whole.per_shard == 0, shard
        ordinals = range(shard["first"], shard["first"] + shard["count"])
        assert shard["count"] == min(whole.per_shard, len(whole.rows) - shard["first"]), shard
        assert not done.intersection(ordinals), shard
        done.update(ordinals)
    if manifest["complete"]:
        assert len(done) == manifest["records"] == len(whole.rows), manifest
    return done


def journal_done(job, whole, path=None):
    """The records that stand in the journal, each with the row that it must have."""
    done = set()
    path = path or job.file("journal")
    entries = entries_of(path)
    if entries:
        with open(path, "rb") as f:
            for ordinal, offset, length in entries:
                f.seek(offset)
                assert f.read(length) == whole.rows[ordinal], "record %d has another row" % ordinal
                assert ordinal not in done, "record %d is in the journal twice" % ordinal
                done.add(ordinal)
    return done


def check(job, whole):
    """Checks all that must hold; the set of the records that a resume need not do again."""
    folder = job.file("shards")
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if name.endswith(".tmp"):
            assert name[:-4] in whole.content, name
        else:
            with open(os.path.join(folder, name), "rb") as f:
                assert f.read() == whole.content[name], "%s is not whole" % name
    return shards_done(job, whole) | journal_done(job, whole)


def must_be_whole(job, whole):
    """The finished output is the uninterrupted run's, byte for byte, and holds nothing else."""
    assert job.content() == whole.content
    assert len(check(job, whole)) == len(whole.rows)
    assert [r + b"\n" for r in job.raw_rows()] == whole.rows
    assert leavings(job) == [], leavings(job)
    assert os.path.getsize(job.file("journal")) == FILE_HEADER
    stats = job.stats()
    assert stats["complete"] is True and stats["records"] == len(whole.rows), stats


def resumed_in(text):
    """How many records a run said that it found done; None when it did not get that far."""
    found = re.search(r"^resuming: (\d+) records are done$", text, re.M)
    if found:
        return int(found.group(1))
    return 0 if re.search(r"^(profile|model): ", text, re.M) else None


def errors_in(text):
    return [line for line in text.splitlines() if line.startswith("error: ")]


def wait_for_the_lock(job):
    """A run that was killed with the process that started it ends a moment after that: its parent is not
    ours to wait for. Runs wait for that too, so this only makes what a test counts the same every time."""

    def gone():
        try:
            with open(job.file("lock"), "rb") as f:
                pid = json.loads(f.read().decode())["pid"]
            with open("/proc/%d/stat" % pid) as f:
                return f.read().rsplit(")", 1)[1].split()[0] in "ZX"
        except FileNotFoundError:
            return True

    cli.wait_until(gone, "end of a killed run")


def leavings(job):
    """What is in the folder that only a run at work, or a killed one, has."""
    names = [n for _, _, found in os.walk(job.output) for n in found]
    return [n for n in names if n.startswith("lock") or n.endswith((".tmp", ".old"))]


def rows_written(job):
    """The records whose rows are in shards or journals, of all parts. The journals are looked at first:
    what leaves them is in a shard."""
    found = glob.glob(job.file("journal*"))
    done = {ordinal for path in found for ordinal, _, _ in entries_of(path)}
    for path in glob.glob(job.file("manifest*.json")):
        for shard in cli.load(path)["shards"]:
            done.update(range(shard["first"], shard["first"] + shard["count"]))
    return done


def held_at(job, n, *args, **options):
    """A run of job that has answered n records (more than an earlier run did), whose rows are all
    written, and waits there."""
    before = len(rows_written(job))
    run = cli.Running(job, *args, hold="records %d" % n, **options).until_held()
    run.until(lambda: len(rows_written(job)) >= before + n, "%d rows" % n)
    return run


def with_ballast(member, n, n_bytes):
    """The first n records of the needles' member as JSON lines, each with bytes to pass through
    that don't compress well."""
    with tarfile.open(fileobj=io.BytesIO(cli.unzstd(cli.NEEDLES))) as tar:
        lines = tar.extractfile("data/%s.jsonl" % member).read().splitlines()[:n]
    rng = random.Random(5)
    text = ""
    for line in lines:
        ballast = "%0*x" % (n_bytes, rng.getrandbits(4 * n_bytes))
        text += json.dumps(dict(json.loads(line), ballast=ballast)) + "\n"
    return text
