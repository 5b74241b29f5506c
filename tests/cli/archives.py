"""Forms of input: archives, compressions, member patterns, damaged and hostile files."""

import bz2
import glob
import gzip
import io
import lzma
import os
import random
import signal
import struct
import tarfile
import zipfile
import zlib

import cli
from cli import PromptJob, Running, codes_of, jsonl, test

SHORT = [{"id": "r%d" % i, "prompt": "The access code for oak-%d is" % i, "max_tokens": 2} for i in range(4)]
LINES = jsonl(SHORT)


def tar_of(members, **options):
    return cli.tar_of(*members, **options)


def zip_of(members, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, data in members:
            z.writestr(name, data)
    return out.getvalue()


def seven_zip_of(name, data):
    """A 7z archive of one file that is stored without compression."""

    def number(n):
        return bytes([n]) if n < 0x80 else b"\xff" + struct.pack("<Q", n)

    text = name.encode("utf-16le") + b"\0\0"
    header = (
        b"\x01\x04"
        + b"\x06\x00\x01\x09"
        + number(len(data))
        + b"\x00"
        + b"\x07\x0b\x01\x00"
        + b"\x01\x01\x00"
        + b"\x0c"
        + number(len(data))
        + b"\x00"
        + b"\x08\x0a\x01"
        + struct.pack("<I", zlib.crc32(data))
        + b"\x00"
        + b"\x00"
        + b"\x05\x01\x11"
        + number(len(text) + 1)
        + b"\x00"
        + text
        + b"\x00"
        + b"\x00"
    )
    start = struct.pack("<QQI", len(data), len(header), zlib.crc32(header))
    return b"7z\xbc\xaf\x27\x1c\x00\x04" + struct.pack("<I", zlib.crc32(start)) + start + data + header


_expected = []


def expected():
    """(id, ids) of SHORT."""
    if not _expected:
        _expected.extend(cli.ids_of(PromptJob("expected", SHORT).run()))
    return _expected


def rows_of(name, content, *settings):
    path = cli.write(name, content)
    rows = PromptJob("job-" + name, path, *settings).run()
    assert cli.ids_of(rows) == expected(), rows
    assert all(r["source"]["archive"] == path for r in rows), rows[0]["source"]
    assert [r["source"]["line"] for r in rows] == [1, 2, 3, 4]
    return rows


@test
def plain_files_are_read_in_every_compression():
    forms = {
        "plain.jsonl": LINES,
        "plain.jsonl.gz": gzip.compress(LINES),
        "plain.jsonl.bz2": bz2.compress(LINES),
        "plain.jsonl.xz": lzma.compress(LINES),
        "plain.jsonl.zst": cli.zstd(LINES),
        "many-frames.jsonl.zst": b"".join(cli.zstd(line + b"\n") for line in LINES.splitlines()),
        "many-members.jsonl.gz": b"".join(gzip.compress(line + b"\n") for line in LINES.splitlines()),
    }
    for name, content in forms.items():
        member = name[: name.index(".jsonl") + 6]
        assert all(r["source"]["member"] == member for r in rows_of(name, content)), name


@test
def a_file_s_content_counts_not_its_suffix():
    rows_of("gz-named-jsonl.jsonl", gzip.compress(LINES))
    rows_of("zip-named-tar.tar", zip_of([("a.jsonl", LINES)]), "input.members=*.jsonl")


@test
def archives_are_read_in_every_form():
    tar = tar_of([("data/a.jsonl", LINES), ("data/notes.txt", b"not read\n")])
    forms = {
        "a.tar": tar,
        "a.tar.gz": gzip.compress(tar),
        "a.tar.bz2": bz2.compress(tar),
        "a.tar.xz": lzma.compress(tar),
        "a.tar.zst": cli.zstd(tar),
        "gnu.tar": tar_of([("data/a.jsonl", LINES)], format=tarfile.GNU_FORMAT),
        "pax.tar": tar_of([("data/a.jsonl", LINES)], format=tarfile.PAX_FORMAT),
        "deflated.zip": zip_of([("data/a.jsonl", LINES), ("data/notes.txt", b"not read\n")]),
        "stored.zip": zip_of([("data/a.jsonl", LINES)], zipfile.ZIP_STORED),
        "bz2.zip": zip_of([("data/a.jsonl", LINES)], zipfile.ZIP_BZIP2),
        "xz.zip": zip_of([("data/a.jsonl", LINES)], zipfile.ZIP_LZMA),
        "stored.7z": seven_zip_of("data/a.jsonl", LINES),
    }
    for name, content in forms.items():
        rows = rows_of(name, content, "input.members=*.jsonl")
        assert all(r["source"]["member"] == "data/a.jsonl" for r in rows), name


@test
def member_patterns_choose_what_is_read():
    lines = LINES.splitlines(True)
    path = cli.write(
        "members.tar",
        tar_of(
            [
                ("x/a.jsonl", lines[0]),
                ("./x/deep/b.jsonl", lines[1]),
                ("c.jsonl", lines[2]),
                ("d.txt", lines[3]),
            ]
        ),
    )
    for pattern, want in (
        ("*.jsonl", ["r0", "r1", "r2"]),
        ("x/*.jsonl", ["r0", "r1"]),
        ("c.jsonl d.txt", ["r2", "r3"]),
        ("*", ["r0", "r1", "r2", "r3"]),
        ("?.jsonl", ["r2"]),
        ("[cd].*", ["r2", "r3"]),
    ):
        name = "members-%d" % len(os.listdir(cli.WORK))
        rows = PromptJob(name, path, "input.members=" + pattern).run()
        assert [r["id"] for r in rows] == want, (pattern, rows)


@test
def archives_are_taken_in_byte_order_whatever_the_pattern_s():
    for i, name in enumerate(("order/b.jsonl", "order/B.jsonl", "order/a.jsonl", "order/c.jsonl.gz")):
        line = jsonl([dict(SHORT[0], id=name)])
        cli.write(name, gzip.compress(line) if name.endswith(".gz") else line)
    folder = os.path.join(cli.WORK, "order")
    rows = PromptJob("order-1", folder + "/c.* " + folder + "/*.jsonl " + folder + "/a.jsonl").run()
    assert [r["id"] for r in rows] == ["order/B.jsonl", "order/a.jsonl", "order/b.jsonl", "order/c.jsonl.gz"]


@test
def paths_are_relative_to_the_job_file():
    cli.write("place/in/a.jsonl", LINES)
    job = PromptJob("place/job", "in/*.jsonl", "job.output=out")
    cli.command("run", job.path, cwd="/").must(0)
    job.output = os.path.join(cli.WORK, "place", "out")
    assert all(r["source"]["archive"] == "in/a.jsonl" for r in job.rows()) and len(job.rows()) == 4
    cli.command(
        "run", job.path, "-s", "job.output=over", "-s", "input.archives=place/in/a.jsonl", cwd=cli.WORK
    ).must(0)
    job.output = os.path.join(cli.WORK, "over")
    assert all(r["source"]["archive"] == "place/in/a.jsonl" for r in job.rows()) and len(job.rows()) == 4


@test
def blank_lines_carriage_returns_and_byte_order_marks_are_no_part_of_a_record():
    lines = LINES.splitlines()
    text = b"\xef\xbb\xbf" + lines[0] + b"\r\n\n  \t\r\n" + lines[1] + b"\n\n" + lines[2] + b"\r\n" + lines[3]
    rows = PromptJob("blank", cli.write("blank-lines.jsonl", text)).run()
    assert cli.ids_of(rows) == expected()
    assert [r["source"]["line"] for r in rows] == [1, 4, 6, 7]


def incompressible(n):
    """n records of some 12 KB: decoders work in blocks, some must come before the damage. Always the same:
    what damage is to a decoder depends on the bits that it meets."""
    rng = random.Random(7)
    notes = ["%012000x" % rng.getrandbits(4 * 12000) for _ in range(n)]
    return jsonl([dict(SHORT[0], id="r%d" % i, max_tokens=1, note=note) for i, note in enumerate(notes)])


def rows_around_damage(name, content, *may_follow):
    """Runs content and a good archive behind it; returns the number of whole records before the damage."""
    bad = cli.write(name, content)
    good = cli.write("z-good.jsonl", LINES)
    job = PromptJob("job-" + name, bad + " " + good)
    rows = job.run(1)
    codes = codes_of(rows)
    assert codes.count("damaged_archive") == 1, (name, codes)
    at = codes.index("damaged_archive")
    place = rows[at]["source"]
    assert place["archive"] == bad and place["line"] >= 1 and rows[at]["error"]["message"], rows[at]
    assert rows[at]["id"] is None and rows[at]["text"] is None, rows[at]
    assert [r["id"] for r in rows[-4:]] == ["r0", "r1", "r2", "r3"] and codes[-4:] == [None] * 4, name
    assert len(rows) - at - 5 == len(may_follow) and [r["id"] for r in rows[at + 1 : -4]] == list(may_follow)
    whole = next(i for i, c in enumerate(codes) if c)
    assert [r["id"] for r in rows[:whole]] == ["r%d" % i for i in range(whole)], name
    # Between the damage and where it shows there may be what was decoded wrong.
    assert not {None, "unknown_dataset", "too_large"} & set(codes[whole:at]), (name, codes)
    assert job.stats()["errors"] == len([c for c in codes if c]) and job.stats()["complete"] is True
    return whole


@test
def a_cut_archive_keeps_what_came_before_and_the_next_archive():
    many = incompressible(80)
    tar = tar_of([("a.jsonl", many)])
    for name, content, least in (
        ("cut-1.tar.zst", cli.zstd(tar), 10),
        ("cut-2.jsonl.gz", gzip.compress(many), 10),
        ("cut-3.tar", tar, 10),
        ("cut-4.jsonl.xz", lzma.compress(many), 0),  # xz and zip may hold back what a cut block began
        ("cut-5.zip", zip_of([("a.jsonl", many)]), 0),
        ("cut-6.jsonl.bz2", bz2.compress(many, 1), 10),
        ("cut-7.tar.bz2", bz2.compress(tar, 1), 10),
        ("cut-8.tar.xz", lzma.compress(tar), 0),
    ):
        assert rows_around_damage(name, content[: len(content) * 2 // 3]) >= least, name


@test
def damage_in_the_middle_of_an_archive_is_never_passed_over():
    many = incompressible(80)
    tar = tar_of([("a.jsonl", many)])
    after = [("b.jsonl", jsonl([dict(SHORT[0], id="after")]))]
    for name, content, least, may_follow in (
        ("hit-1.tar.zst", cli.zstd(tar), 10, []),
        ("hit-2.jsonl.gz", gzip.compress(many), 10, []),
        ("hit-3.tar.gz", gzip.compress(tar), 10, []),
        ("hit-4.jsonl.xz", lzma.compress(many), 10, []),
        ("hit-5.jsonl.bz2", bz2.compress(many, 1), 10, []),
        # The checksum and what is behind it are a member's own.
        ("hit-6.zip", zip_of([("a.jsonl", many)] + after), 10, ["after"]),
    ):
        content = bytearray(content)
        at = len(content) * 2 // 3
        content[at : at + 64] = bytes(b ^ 0x55 for b in content[at : at + 64])
        assert rows_around_damage(name, bytes(content), *may_follow) >= least, name


@test
def a_changed_text_is_seen_by_its_checksum():
    """Letters that are others, in a form that is otherwise whole."""
    other = LINES.replace(b"oak-2", b"elm-2")
    for name, form in (
        ("sum.jsonl.gz", lambda lines: gzip.compress(lines, 0)),
        ("sum.tar.gz", lambda lines: gzip.compress(tar_of([("a.jsonl", lines)]), 0)),
        ("sum.jsonl.zst", lambda lines: cli.zstd(lines, "--check")),
        ("sum.7z", lambda lines: seven_zip_of("a.jsonl", lines)),
    ):
        content = form(LINES + b" " * 70000)
        path = cli.write(name, content.replace(b"oak-2", b"elm-2"))
        if name.endswith(".zst"):  # its letters are compressed: give it the other text's checksum
            path = cli.write(name, form(other + b" " * 70000)[:-4] + content[-4:])
        job = PromptJob("job-" + name, path)
        if name.endswith(".zst"):  # the only block is not handed out
            job.command("run").must(2, path, "checksum")
            continue
        codes = codes_of(job.run(1))
        assert codes == [None] * 4 + ["damaged_archive"], (name, codes)


@test
def a_wrong_checksum_is_an_error_row():
    content = bytearray(zip_of([("a.jsonl", LINES), ("b.jsonl", LINES)], zipfile.ZIP_STORED))
    at = content.index(b"oak-2")
    content[at : at + 5] = b"elm-2"
    rows = PromptJob("crc", cli.write("crc.zip", bytes(content))).run(1)
    codes = codes_of(rows)
    assert codes.count("damaged_archive") == 1 and codes[-4:] == [None] * 4, codes
    assert rows[codes.index("damaged_archive")]["source"]["member"] == "a.jsonl"


@test
def an_archive_that_can_t_be_opened_is_refused_before_the_start():
    good = cli.write("good.jsonl", LINES)
    seven_zip = seven_zip_of("a.jsonl", LINES)
    for name, content in (
        ("magic.7z", b"7z\xbc\xaf\x27\x1c\0\4" + b"\xff" * 60),
        ("cut.7z", seven_zip[: len(seven_zip) * 2 // 3]),  # its directory stands at the end
        ("noise.zip", b"PK\3\4" + b"\xff" * 256),
        ("noise.tar", b"\xff" * 2048),
        ("noise.jsonl.gz", b"\x1f\x8b\x08\0" + b"\xff" * 256),
        ("noise.jsonl.xz", b"\xfd7zXZ\0" + b"\xff" * 256),
        ("noise.jsonl.bz2", b"BZh9" + b"\xff" * 256),
        ("cut-at-once.jsonl.zst", cli.zstd(LINES)[:20]),
        ("plain.jsonl.gz", LINES),
    ):
        bad = cli.write(name, content)
        job = PromptJob("garbage-" + name, good + " " + bad)
        for which in ("run", "check"):
            job.command(which).must(2, "error: " + bad + ": ")
        assert not os.path.exists(job.output)


@test
def members_names_are_only_names():
    """Nothing is extracted, whatever a member is called or links to; what it links to is not read from disk."""
    outside = os.path.join(cli.WORK, "outside.jsonl")
    names = ["../up.jsonl", "a/../../../up.jsonl", outside, "C:/up.jsonl", "up\x01\n.jsonl"]
    lines = [jsonl([dict(SHORT[0], id=name)]) for name in names]
    links = io.BytesIO()
    with tarfile.open(fileobj=links, mode="w") as t:
        for kind, name in ((tarfile.SYMTYPE, "way"), (tarfile.LNKTYPE, "hard.jsonl")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, cli.WORK if name == "way" else outside
            t.addfile(info)
        info = tarfile.TarInfo("way/outside.jsonl")
        info.size = len(lines[0])
        t.addfile(info, io.BytesIO(lines[0]))
    with open(outside, "wb") as f:
        f.write(lines[0])
    for name, content, members, n_links in (
        ("names.zip", zip_of(list(zip(names, lines))), names, 0),
        ("names.tar", tar_of(list(zip(names, lines))), names, 0),
        ("links.tar", links.getvalue(), ["way", "hard.jsonl", "way/outside.jsonl"], 2),
    ):
        path = cli.write(name, content)
        job = PromptJob("job-" + name, path)
        before = set(os.listdir(cli.WORK))
        cli.command("run", job.path, cwd=cli.WORK).must(1 if n_links else 0)
        rows = job.rows()
        assert [r["source"]["member"] for r in rows] == members, rows
        assert codes_of(rows) == ["unreadable_member"] * n_links + [None] * (len(rows) - n_links), rows
        assert [r["id"] for r in rows[n_links:]] == names[: len(rows) - n_links], rows
        assert set(os.listdir(cli.WORK)) - before == {"job-" + name}
        written = [n for _, _, files in os.walk(job.output) for n in files if "up" in n or "outside" in n]
        assert not written and not os.path.exists(os.path.join(cli.WORK, "..", "up.jsonl")), written


@test
def an_archive_without_members_adds_nothing():
    empty = cli.write("empty.zip", b"PK\x05\x06" + b"\0" * 18)
    other = cli.write("other.tar", tar_of([("notes.txt", LINES)]))
    source = " ".join([empty, other, cli.write("beside.jsonl", LINES)])
    job = PromptJob("empty", source, "input.members=*.jsonl")
    ended = job.command("run").must(0, "no member matches input.members")
    assert empty in ended.text and other in ended.text
    assert cli.ids_of(job.rows()) == expected()


@test
def one_enormous_line_costs_no_memory():
    """A line of 100 MB, a few KB compressed, between two good ones."""
    lines = LINES.splitlines(True)
    text = lines[0] + b'{"id": "bomb", "prompt": "' + b"a" * (100 << 20) + b'"}\n' + lines[1]
    plain = PromptJob("no-bomb", cli.write("no-bomb.jsonl", lines[0] + lines[1]))
    plain.run()
    for name, form in (
        ("bomb.jsonl.zst", cli.zstd),
        ("bomb.jsonl.gz", gzip.compress),
        ("bomb.jsonl.bz2", bz2.compress),
        ("bomb.jsonl.xz", lambda data: lzma.compress(data, preset=1)),
        ("bomb.zip", lambda data: zip_of([("bomb.jsonl", data)])),
    ):
        path = cli.write(name, form(text))
        assert os.path.getsize(path) < 1 << 20
        job = PromptJob("job-" + name, path, "input.max_record_bytes=1M")
        rows = job.run(1)
        assert codes_of(rows) == [None, "too_large", None], name
        assert [r["id"] for r in rows] == ["r0", None, "r1"], name
        assert [r["source"]["line"] for r in rows] == [1, 2, 3], name
        assert "longer than input.max_record_bytes, 1048576" in rows[1]["error"]["message"]
        grown = job.stats()["peak_rss_bytes"] - plain.stats()["peak_rss_bytes"]
        assert cli.sanitized() or grown < 48 << 20, "%s: %d bytes more than without it" % (name, grown)


def skipped(n_bytes):
    """A zstd frame of that size which says nothing."""
    return struct.pack("<II", 0x184D2A50, n_bytes - 8) + bytes(n_bytes - 8)


def endless(n_bytes):
    """A zstd frame of that size (4 k + 2) which is 128 KiB of one letter for every four of its bytes."""
    block = struct.pack("<I", 131072 << 3 | 1 << 1)[:3] + b"a"
    last = struct.pack("<I", 1 << 3 | 1 << 1 | 1)[:3] + b"a"
    return b"\x28\xb5\x2f\xfd\x00\x38" + block * (n_bytes // 4 - 2) + last


def bytes_read(run, path):
    """How far a run has read a file that it has open; 0: it has not."""
    most = 0
    for name in glob.glob("/proc/%d/fd/*" % run.pid):
        try:
            if os.readlink(name) == path:
                with open(name.replace("/fd/", "/fdinfo/")) as f:
                    most = max(most, int(f.readline().split()[1]))
        except OSError:
            continue  # closed meanwhile
    return most


def bytes_read_at_the_end(run):
    """What a run that ends has read in all."""
    os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOWAIT)
    with open("/proc/%d/io" % run.pid) as f:
        return int(f.readline().split()[1])


@test
def a_signal_is_heeded_within_a_line_of_gigabytes():
    """A line of a terabyte: a run that does not stop within it reads its file to the end."""
    n = (32 << 20) + 2
    head, tail = cli.zstd(LINES) + skipped(1 << 16), skipped(1 << 16)
    path = cli.write("endless.jsonl.zst", head + skipped(n) + tail)
    job = PromptJob("endless", path, "input.max_record_bytes=1M", "job.grace=0")
    # The file's ends stay, so that the second run has its profile and meets the line as it answers.
    job.command("plan").must(0)
    cli.write("endless.jsonl.zst", head + endless(n) + tail)
    sampling = PromptJob("sampling", path, "input.max_record_bytes=1M", "job.grace=0")
    for job, hold in ((sampling, "nowhere 0"), (job, "records %d" % len(SHORT))):
        run = Running(job, hold=hold)
        run.until(lambda r=run: bytes_read(r, path) > len(head) + (1 << 16), "the long line")
        if job is not sampling:
            run.until_held()
        run.send(signal.SIGTERM)
        assert bytes_read_at_the_end(run) < n // 2
        assert run.wait() == 75, run.text()
        # It may be stopped before the output is open.
        if job is not sampling or os.path.exists(job.file("stats.json")):
            assert job.stats()["complete"] is False and job.stats()["exit_code"] == 75


@test
def memory_does_not_grow_with_the_archive():
    """Six times the input, the same peak. Bad records: reading and writing alone, so it is quick."""
    if cli.sanitized():
        raise cli.Skip("a sanitizer build")
    line = jsonl([{"id": "x", "note": "word " * 700, "prompt": 7}])

    def members(n):
        long_name = "folder/" * 500
        return cli.zstd(tar_of([("%s%d.jsonl" % (long_name, i), b"7\n") for i in range(n)]))

    for form, content_of in (
        ("plain.jsonl", lambda n: line * n),
        ("packed.jsonl.zst", lambda n: cli.zstd(line * n)),
        ("members.tar.zst", members),
    ):
        peaks = []
        for n in (1500, 9000):
            path = cli.write("grow-%d/%s" % (n, form), content_of(n))
            job = PromptJob("grow-%d-%s" % (n, form), path, "output.records_per_shard=1000")
            job.run(1)
            assert job.stats()["errors"] == n
            peaks.append(job.stats()["peak_rss_bytes"])
        assert peaks[1] < 1.05 * peaks[0], (form, peaks)


cli.main()
