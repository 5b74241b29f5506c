"""Nothing of the input is mislaid or misread: joined and cut archives, links, folders, what is compressed
or an archive inside one, large windows, byte order marks."""

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile

import cli
from cli import PromptJob, jsonl, test

SYMBOLIC, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
WRAPPINGS = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.zst": cli.zstd,
    "tar.xz": lzma.compress,
    "tar.bz2": bz2.compress,
}
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def record(name, **more):
    return jsonl([dict({"id": name, "prompt": "The access code for oak is", "max_tokens": 1}, **more)])


def without_end(tar):
    """The tar without the zeros behind its last member, whose data must not end in 512 zeros."""
    n = len(tar)
    while not any(tar[n - 512 : n]):
        n -= 512
    return tar[:n]


def zip_of(*members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members:
            z.writestr(name, data)
    return out.getvalue()


def read(name, contents, code, *settings):
    """{file: its rows, as ids, or the words of an error} of one run over these files."""
    for file, content in contents.items():
        cli.write("%s/%s" % (name, file), content)
    job = PromptJob("job-" + name, os.path.join(cli.WORK, name, "*"), "input.members=*.jsonl *.json", *settings)
    rows = job.run(code)
    found = {file: [] for file in contents}
    for row in rows:
        error = row.get("error")
        file = os.path.relpath(row["source"]["archive"], os.path.join(cli.WORK, name))
        found[file].append("%s: %s" % (error["code"], error["message"]) if error else row["id"])
    return found


def sources(job):
    return [(r["source"]["member"], r["source"]["line"], r["id"]) for r in job.rows()]


def must_begin(found, want):
    """Ids and beginnings of errors, file by file."""
    for file, rows in want.items():
        assert len(found[file]) == len(rows), (file, found[file])
        for got, words in zip(found[file], rows):
            assert got == words or (":" in words and got.startswith(words)), (file, got, words)


@test
def joined_tars_are_read_to_the_end_in_every_wrapping():
    a, b = cli.tar_of(("a.jsonl", record("a"))), cli.tar_of(("b.jsonl", record("b")))
    contents = {}
    for ending, pack in WRAPPINGS.items():
        contents["inside." + ending] = pack(a + b)
        contents["outside." + ending] = pack(a) + pack(b)
        contents["empty-first." + ending] = pack(bytes(10240) + a + bytes(1536) + b + bytes(700))
    for i, format in enumerate(FORMATS):
        contents["format-%d.tar" % i] = a + cli.tar_of(("d/" * 90 + "b.jsonl", record("b")), format=format)
    for file, rows in read("joined", contents, 0).items():
        assert rows == ["a", "b"], (file, rows)


@test
def what_stands_behind_a_tar_and_is_none_is_damage():
    tar = cli.tar_of(("a.jsonl", record("a")))
    contents = {}
    for ending, pack in WRAPPINGS.items():
        for what, behind in (("noise", b"\7" * 3000), ("little", b"x"), ("text", record("b") * 20)):
            contents["%s.%s" % (what, ending)] = pack(tar + behind)
    found = read("behind", contents, 1)
    for file, rows in found.items():
        assert rows[0] == "a" and len(rows) == 2, (file, rows)
        assert rows[1].startswith("damaged_archive: more stands behind the tar's end mark, at byte 10240"), rows


@test
def a_tar_that_ends_between_two_members_is_damaged():
    contents = {}
    for i, format in enumerate(FORMATS):
        tar = without_end(cli.tar_of(("a.jsonl", record("a")), ("b.jsonl", record("b")), format=format))
        for ending, pack in WRAPPINGS.items():
            contents["cut-%d.%s" % (i, ending)] = pack(tar)
    contents["within-padding.tar"] = without_end(cli.tar_of(("a.jsonl", record("a")), ("b.jsonl", record("b"))))[:-100]
    passed_over = without_end(cli.tar_of(("a.jsonl", record("a")), ("b.bin", b"x" * (1 << 20))))
    contents["within-what-is-not-wanted.tar"] = passed_over[: 1 << 19]
    contents["one-block.tar"] = without_end(cli.tar_of(("a.jsonl", record("a")), ("b.jsonl", record("b")))) + bytes(512)
    found = read("cut", contents, 1)
    assert found.pop("one-block.tar") == ["a", "b"]
    for file, rows in found.items():
        assert rows[0] == "a" and rows[-1].startswith("damaged_archive: "), (file, rows)
        if file.startswith("cut-"):
            assert rows[1] == "b" and "no end mark" in rows[2], (file, rows)


@test
def links_in_a_tar_are_read_as_what_they_lead_to():
    for i, format in enumerate(FORMATS):
        tar = cli.tar_of(
            ("forward.jsonl", SYMBOLIC, "d/a.jsonl"),
            ("./d/a.jsonl", record("a")),
            ("backward.jsonl", HARD, "./d/a.jsonl"),
            ("d/e/up.jsonl", SYMBOLIC, "../a.jsonl"),
            ("d/down.jsonl", SYMBOLIC, "./x/../a.jsonl"),
            ("/abs/b.jsonl", record("b")),
            ("absolute.jsonl", SYMBOLIC, "/abs/b.jsonl"),
            ("hard-absolute.jsonl", HARD, "/abs/b.jsonl"),
            ("not-wanted.txt", SYMBOLIC, "nowhere"),
            ("d/" * 40 + "long.jsonl", record("long")),
            ("to-long.jsonl", HARD, "d/" * 40 + "long.jsonl"),
            ("z.jsonl", record("z")),
            format=format,
        ) + cli.tar_of(("in-the-second.jsonl", HARD, "z.jsonl"), ("last.jsonl", record("last")))
        job = PromptJob("links-%d" % i, cli.write("links-%d.tar" % i, tar), "input.members=*.jsonl")
        job.run()
        assert sources(job) == [
            ("forward.jsonl", 1, "a"),
            ("./d/a.jsonl", 1, "a"),
            ("backward.jsonl", 1, "a"),
            ("d/e/up.jsonl", 1, "a"),
            ("d/down.jsonl", 1, "a"),
            ("/abs/b.jsonl", 1, "b"),
            ("absolute.jsonl", 1, "b"),
            ("hard-absolute.jsonl", 1, "b"),
            ("d/" * 40 + "long.jsonl", 1, "long"),
            ("to-long.jsonl", 1, "long"),
            ("z.jsonl", 1, "z"),
            ("in-the-second.jsonl", 1, "z"),
            ("last.jsonl", 1, "last"),
        ], sources(job)


@test
def a_link_that_can_t_be_followed_is_one_error_row():
    outside = cli.write("outside.jsonl", record("outside"))
    tar = cli.tar_of(
        ("itself.jsonl", SYMBOLIC, "itself.jsonl"),
        ("hard-itself.jsonl", HARD, "./hard-itself.jsonl"),
        ("missing.jsonl", HARD, "gone.jsonl"),
        ("a.jsonl", record("a")),
        ("one.jsonl", SYMBOLIC, "a.jsonl"),
        ("two.jsonl", SYMBOLIC, "one.jsonl"),
        ("ring.jsonl", HARD, "gnir.jsonl"),
        ("gnir.jsonl", HARD, "ring.jsonl"),
        ("disk.jsonl", SYMBOLIC, outside),
        ("up.jsonl", SYMBOLIC, "../outside.jsonl"),
        ("z.jsonl", record("z")),
    )
    a_link = "unreadable_member: a link to "
    want = {
        "links.tar": [
            a_link + '"itself.jsonl", which is itself',
            a_link + '"./hard-itself.jsonl", which is itself',
            a_link + '"gone.jsonl", which is no member',
            "a",
            "a",
            a_link + '"one.jsonl", which is a link, too',
            a_link + '"gnir.jsonl", which is a link, too',
            a_link + '"ring.jsonl", which is a link, too',
            a_link + '"%s' % outside[:20],
            a_link + '"../outside.jsonl", which is no member',
            "z",
        ]
    }
    contents = {"links.tar": tar}
    packed = cli.tar_of(("a.jsonl", record("a")), ("b.jsonl", HARD, "a.jsonl"), ("c.jsonl", record("c")))
    for ending, pack in list(WRAPPINGS.items())[1:]:
        contents["packed." + ending] = pack(packed)
        want["packed." + ending] = ["a", a_link + '"a.jsonl": links are followed in a tar that is not compressed', "c"]
    info = zipfile.ZipInfo("b.jsonl")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    contents["linked.zip"] = zip_of(("a.jsonl", record("a")), (info, b"a.jsonl"), ("c.jsonl", record("c")))
    want["linked.zip"] = ["a", a_link + '"a.jsonl": links are followed', "c"]
    must_begin(read("dead-links", contents, 1), want)


@test
def links_are_read_for_no_more_bytes_than_their_archive_has():
    data = jsonl([{"id": "x%d" % i, "prompt": 7, "note": "n" * 1000} for i in range(100)])
    members = [("a.jsonl", data)] + [("l%d.jsonl" % i, HARD, "a.jsonl") for i in range(5)]
    members.append(("z.jsonl", record("z")))
    rows = read("bounded", {"many.tar": cli.tar_of(*members)}, 1)["many.tar"]
    refused = [r for r in rows if "more bytes than the archive has" in r]
    assert len(refused) == 4 and len(rows) == 200 + 4 + 1 and rows[-1] == "z", rows[-10:]


@test
def a_hard_link_may_have_data_of_its_own_or_only_a_size():
    """pax allows data behind a hard link; some writers put the size there and no data."""

    def pax(*members):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as t:
            for name, data, link, has_data in members:
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(data), 0.5  # so that it has a pax header
                if link:
                    info.type, info.linkname = HARD, link
                t.addfile(info)
                if has_data:
                    out.write(data + bytes(-len(data) % 512))
                    t.offset = out.tell()
        return out.getvalue()

    a, b, c = record("a"), record("b"), record("c")
    own = pax(("a.jsonl", a, None, True), ("b.jsonl", b, "a.jsonl", True), ("c.jsonl", c, None, True))
    bare = pax(("a.jsonl", a, None, True), ("b.jsonl", a, "a.jsonl", False), ("c.jsonl", c, None, True))
    found = read("sizes", {"own.tar": own, "own.tar.gz": gzip.compress(own), "bare.tar": bare}, 0)
    assert found == {"own.tar": ["a", "b", "c"], "own.tar.gz": ["a", "b", "c"], "bare.tar": ["a", "a", "c"]}, found
    found = read("bare", {"bare.tar.gz": gzip.compress(bare)}, 1)["bare.tar.gz"]
    assert found[0] == "a" and found[1].startswith("damaged_archive: a hard link says that it has data"), found


@test
def resource_files_of_macos_are_left_out_and_said_once_an_archive():
    noise = b"\0\5\x16\7\0\2\0\0Mac OS X" + b"\n" * 5 + b"\xff"
    names = ["__MACOSX/d/._a.jsonl", "d/._a.jsonl", "d/.AppleDouble/a.jsonl", "._a.jsonl", "x/__MACOSX/y.jsonl"]
    members = [(name, noise) for name in names] + [("._a/b.jsonl", record("b")), ("d/a.jsonl", record("a"))]
    contents = {"m.zip": zip_of(*members), "m.tar": cli.tar_of(*members), "m.tar.gz": gzip.compress(cli.tar_of(*members))}
    paths = [cli.write("macos/" + name, content) for name, content in contents.items()]
    job = PromptJob("job-macos", " ".join(paths), "input.members=*.jsonl")
    ended = job.command("run").must(0)
    assert [r["id"] for r in job.rows()] == ["b", "a"] * 3, job.rows()
    for path in paths:
        assert ended.text.count("%s: left out 5 resource files of macOS" % path) == 1, ended.text


def frame(window_log, data, mantissa=0):
    """A zstd frame of one block, raw, with a window of its own."""
    header = struct.pack("<IBB", 0xFD2FB528, 0, (window_log - 10) << 3 | mantissa)
    return header + struct.pack("<I", len(data) << 3 | 1)[:3] + data


@test
def windows_of_zst_are_read_up_to_a_bound_that_the_error_names():
    a, b = record("a"), record("b")
    found = read("windows", {"128.jsonl.zst": frame(27, a), "later.jsonl.zst": frame(20, a) + frame(28, b)}, 1)
    assert found["128.jsonl.zst"] == ["a"], found
    told = "zstd: a window of 256 MiB, more than input.max_window, 128 MiB: set input.max_window = 256M"
    assert found["later.jsonl.zst"][0] == "a" and found["later.jsonl.zst"][1].startswith("damaged_archive: " + told)
    for log, mantissa, words, setting in ((28, 0, told, "256M"), (31, 0, "a window of 2 GiB", "2G")):
        path = cli.write("w-%d.jsonl.zst" % log, frame(log, a, mantissa))
        job = PromptJob("w-%d" % log, path)
        for which in ("check", "run"):
            job.command(which).must(2, path, words)
        assert [r["id"] for r in PromptJob("w2-%d" % log, path, "input.max_window=" + setting).run()] == ["a"]
    job = PromptJob("w-odd", cli.write("odd.jsonl.zst", frame(31, a, 1)), "input.max_window=2G")
    job.command("run").must(2, "a window of 2304 MiB", "than the 2 GiB that can be read")
    tar = cli.tar_of(("x.jsonl.zst", frame(28, a)), ("b.jsonl", b))
    found = read("window-inside", {"w.tar": tar, "w.zip": zip_of(("x.jsonl.zst", frame(28, a)), ("b.jsonl", b))}, 1)
    must_begin(found, {"w.tar": ["damaged_archive: " + told, "b"], "w.zip": ["damaged_archive: " + told, "b"]})


@test
def a_member_that_is_compressed_is_read():
    a, b = record("a"), record("b")
    packs = {"gz": gzip.compress, "zst": cli.zstd, "xz": lzma.compress, "bz2": bz2.compress}
    members = [("d/x.jsonl." + ending, pack(a) + pack(b)) for ending, pack in packs.items()]
    members.append(("named-otherwise.jsonl", gzip.compress(a + b)))
    members.append(("empty.jsonl.gz", b""))
    tar = cli.tar_of(*members)
    contents = {"in.tar": tar, "in.tar.zst": cli.zstd(tar), "in.zip": zip_of(*members)}
    for file, rows in read("inside", contents, 0).items():
        assert rows == ["a", "b"] * 5, (file, rows)
    cut = gzip.compress(a + b)[:-9]
    members = [("cut.jsonl.gz", cut), ("plain.jsonl.gz", a), ("twice.jsonl.gz", gzip.compress(gzip.compress(a)))]
    members.append(("z.jsonl", b))
    found = read("inside-cut", {"in.tar": cli.tar_of(*members), "in.zip": zip_of(*members)}, 1)
    for file, rows in found.items():
        at = next(i for i, row in enumerate(rows) if ":" in row)
        assert rows[:at] == ["a", "b"][:at] and rows[-1] == "b" and len(rows) == at + 4, (file, rows)
        assert rows[at].startswith("damaged_archive: gzip: cut short"), rows
        assert rows[at + 1] == "damaged_archive: is not compressed as its name says", rows
        assert rows[at + 2].startswith("unreadable_member: compressed more than once"), rows


@test
def a_compressed_member_s_dataset_is_the_name_s():
    line = jsonl([{"_id": 1, "context": "c", "input": "i"}])
    settings = ("input.format=longbench", "input.prompts=" + cli.write("p.json", {"qa": "{context} {input} oak is"}))
    path = cli.write("dataset.zip", zip_of(("data/qa.jsonl.gz", gzip.compress(line)), ("data/qa_e.jsonl", line)))
    rows = PromptJob("dataset", path, "input.members=*.jsonl", *settings).run()
    assert [r["dataset"] for r in rows] == ["qa", "qa"] and rows[0]["source"]["member"] == "data/qa.jsonl.gz", rows


@test
def an_archive_inside_an_archive_is_one_error_row():
    a = record("a")
    v7 = bytearray(without_end(cli.tar_of(("a.jsonl", a))) + bytes(1024))
    v7[257:265] = bytes(8)
    v7[148:156] = b" " * 8
    v7[148:156] = b"%06o\0 " % sum(v7[:512])
    inner = {
        "x.tar": cli.tar_of(("a.jsonl", a)),
        "x.tar.gz": gzip.compress(cli.tar_of(("a.jsonl", a))),
        "x.zip": zip_of(("a.jsonl", a)),
        "x.7z": b"7z\xbc\xaf\x27\x1c\0\4" + bytes(40),
        "v7.jsonl": bytes(v7),
        "empty.tar": bytes(10240),
    }
    members = list(inner.items()) + [("z.jsonl", a)]
    found = read("nested", {"n.tar": cli.tar_of(*members), "n.zip": zip_of(*members)}, 1, "input.members=*")
    for file, rows in found.items():
        assert len(rows) == 7 and rows[-1] == "a", (file, rows)
        assert all(r.startswith("unreadable_member: an archive inside the archive") for r in rows[:-1]), rows


@test
def two_zips_in_one_file_are_refused_not_halved():
    a, b = zip_of(("a.jsonl", record("a"))), zip_of(("b.jsonl", record("b")))
    for name, content in (("two.zip", a + b), ("and-empty.zip", a + zip_of())):
        path = cli.write(name, content)
        PromptJob("job-" + name, path).command("run").must(2, path, "two zips in one file")
    path = cli.write("self.zip", b"#!/bin/sh\nexit\n" + b)  # one that unpacks itself
    assert [r["id"] for r in PromptJob("self", path, "input.members=*.jsonl").run()] == ["b"]


@test
def a_folder_stands_for_the_files_in_it():
    files = ["B.jsonl", "a.jsonl", "b/c.jsonl", "b.jsonl", "b/a/deep.jsonl", "b/.hidden/x.jsonl", ".x.jsonl", "notes.md"]
    for name in files:
        cli.write("tree/" + name, record(name))
    cli.write("blobs/0123", record("blob"))
    os.symlink("../../blobs/0123", os.path.join(cli.WORK, "tree", "b", "linked.jsonl"))
    os.symlink("..", os.path.join(cli.WORK, "tree", "b", "loop"))
    os.symlink("tree", os.path.join(cli.WORK, "way"))
    os.mkfifo(os.path.join(cli.WORK, "tree", "b", "pipe.jsonl"))
    want = ["B.jsonl", "a.jsonl", "b.jsonl", "b/a/deep.jsonl", "b/c.jsonl", "blob"]
    settings = ("input.members=*.jsonl", "job.output=" + os.path.join(cli.WORK, "tree", "out"))
    for i, (source, ids) in enumerate(
        (("tree", want), ("tree/", want), ("way/", want), ("tree/b tree/*.jsonl", want), ("tr*e", want))
    ):
        job = PromptJob("tree-%d" % i, source, *settings, "job.restart=yes")
        cli.command("run", job.path, cwd=cli.WORK).must(0)
        job.output = os.path.join(cli.WORK, "tree", "out")
        assert [r["id"] for r in job.rows()] == ids, (source, job.rows())
        assert job.rows()[0]["source"]["archive"] == source.split()[-1].split("/")[0].replace("tr*e", "tree") + "/B.jsonl"
    # The output, which lies in the folder, is none of its input: the same command resumes.
    cli.command("run", job.path, "-s", "job.restart=no", cwd=cli.WORK).must(0)
    os.makedirs(os.path.join(cli.WORK, "hollow", "deeper"))
    for source in ("hollow", "tree/out", "w*y"):
        job = PromptJob("no-tree", os.path.join(cli.WORK, source))
        job.command("check").must(2, "matches no file, only folders without one")
    os.symlink("nowhere", os.path.join(cli.WORK, "hollow", "dangling.jsonl"))
    PromptJob("dangling", os.path.join(cli.WORK, "hollow")).command("check").must(2, "dangling.jsonl", "No such file")


@test
def a_template_that_nothing_goes_into_is_refused_by_check():
    line = jsonl([{"_id": 1, "context": "c", "input": "i", "n": 3}])
    for i, (template, words) in enumerate(
        (
            ("The access code for oak is", ["qa", "names neither {context} nor {input}"]),
            ("{} {a b} {", ["qa", "names neither {context} nor {input}"]),
            ("{context} {question}", None),
            ("{n}", None),
            ("{context} {question}", ["qasper", "names {question}, which the first record, line 1 of data/qasper.jsonl"]),
            ("{context} {n} {0} {} {'code'}", None),
        )
    ):
        dataset = "qa" if i < 4 else "qasper"
        prompts = cli.write("templates/%d.json" % i, {dataset: template, "of-nothing": "x"})
        path = cli.write("templates/%d.zip" % i, zip_of(("data/%s.jsonl" % dataset, line)))
        settings = ("input.members=*.jsonl", "input.format=longbench", "input.prompts=" + prompts)
        job = PromptJob("template-%d" % i, path, *settings)
        ended = job.command("check").must(2 if words else 0, *(words or []))
        assert not words or prompts in ended.text, ended.text


MARK = b"\xef\xbb\xbf"


@test
def a_byte_order_mark_begins_a_file_where_files_are_joined():
    a, b, c = (record(name) for name in "abc")
    array = b"[" + a.strip() + b"]"
    inside = jsonl([{"id": "in\ufefftext", "prompt": "\ufeffoak is", "max_tokens": 1}]).replace(b"\\ufeff", MARK)
    contents = {
        "lines.jsonl": MARK + a + MARK + b + c,
        "no-newline.jsonl": MARK + a.strip() + MARK + b.strip() + MARK + MARK + c,
        "in-a-string.jsonl": inside + a,
        "arrays.json": MARK + array + b"\n" + MARK + array + MARK + b"[" + b + b"," + c + b"]",
        "array-and-lines.json": array + MARK + b + c,
        "joined.jsonl.gz": gzip.compress(MARK + a) + gzip.compress(MARK + b),
        "joined.zip": zip_of(("x.jsonl", MARK + a.strip() + MARK + b)),
    }
    assert read("marks", contents, 0) == {
        "lines.jsonl": ["a", "b", "c"],
        "no-newline.jsonl": ["a", "b", "c"],
        "in-a-string.jsonl": ["in\ufefftext", "a"],
        "arrays.json": ["a", "a", "b", "c"],
        "array-and-lines.json": ["a", "b", "c"],
        "joined.jsonl.gz": ["a", "b"],
        "joined.zip": ["a", "b"],
    }


@test
def text_in_utf_16_is_named_not_taken_for_many_bad_lines():
    text = (record("a") + record("b")).decode()
    contents = {
        "%s.jsonl" % name: text.encode(name) for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be")
    }
    contents["packed.jsonl.gz"] = gzip.compress(text.encode("utf-16"))
    contents["in.zip"] = zip_of(("x.jsonl", text.encode("utf-16")), ("y.jsonl", record("y")))
    found = read("utf-16", contents, 1)
    assert found["in.zip"].pop() == "y"
    for file, rows in found.items():
        name = "UTF-32" if "32" in file else "UTF-16"
        assert len(rows) == 1 and rows[0].startswith("bad_utf8: the text is %s (" % name), (file, rows)
        assert "save it as UTF-8" in rows[0], rows


@test
def json_files_with_a_byte_order_mark_are_read_and_utf_16_is_named():
    line = jsonl([{"_id": 1, "context": "c", "input": "i", "dataset": "qa"}])
    template, limit = b'{"qa": "{context} {input} oak is"}', b'{"qa": 2.0}'
    for name, encode, code in (("mark", lambda text: MARK + text, 0), ("16", lambda t: t.decode().encode("utf-16"), 2)):
        settings = [
            "input.format=longbench",
            "input.prompts=" + cli.write("p-%s.json" % name, encode(template)),
            "input.max_new_tokens_by=" + cli.write("l-%s.json" % name, encode(limit)),
        ]
        job = PromptJob("files-" + name, [line.strip()], *settings)
        ended = job.command("run").must(code, *([] if code == 0 else ["p-16.json: the text is UTF-16", "l-16.json"]))
        assert code or job.rows()[0]["usage"]["completion_tokens"] <= 2, ended.text
    config = cli.load(os.path.join(cli.TINY, "config.json"))
    model = os.path.join(cli.WORK, "marked-model")
    os.makedirs(model)
    for name in os.listdir(cli.TINY):
        os.symlink(os.path.join(cli.TINY, name), os.path.join(model, name))
    os.unlink(os.path.join(model, "config.json"))
    cli.write("marked-model/config.json", MARK + cli.json.dumps(config).encode())
    assert len(PromptJob("marked-model-job", [record("a").strip()], "model.path=" + model).run()) == 1
    request = MARK + b'{"messages": [{"role": "user", "content": "hi"}]}\n'
    template = cli.write("t.jinja", "{{ messages[0].content }}")
    cli.command("template", template, stdin=request).must(0, '"hi"')
    cli.command("tokenize", cli.TINY, "--json", stdin=MARK + b'"oak"\n').must(0)


@test
def a_limit_of_2_0_is_2():
    lines = [record(str(i), max_tokens=limit).strip() for i, limit in enumerate((2, 2.0, 20e-1, 2.5, -2.0, 1e300))]
    lines.append(record("6").strip().replace(b": 1}", b": 2.00}"))
    rows = PromptJob("limits", lines).run(1)
    for i in (0, 1, 2, 6):
        assert rows[i]["usage"]["completion_tokens"] <= 2 and rows[i]["text"] == rows[0]["text"], rows[i]
    for i in (3, 4, 5):
        assert rows[i]["error"]["code"] == "bad_field" and "whole number" in rows[i]["error"]["message"], rows[i]


@test
def bytes_of_bad_utf8_are_counted_from_1():
    lines = [b'{"id": "a", "prompt": "\xe9"}', b"\xe9", b'{"id": "\xc3\xa9", "\xc3": 1}', b'{"a": [1, "\xf0\x9f"]}']
    rows = PromptJob("bytes", lines).run(1)
    for row, line in zip(rows, lines):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as e:
            want = "byte %d:" % (e.start + 1)
        assert row["error"]["code"] == "bad_utf8" and row["error"]["message"].startswith(want), (row, want)


@test
def a_damaged_archive_is_said_loudly_once_and_in_the_summary():
    packed = gzip.compress(cli.jsonl({"prompt": "one %d" % i} for i in range(400)), mtime=0)
    cut = cli.write("damaged/cut.jsonl.gz", packed[: len(packed) // 2])
    fine = cli.write("damaged/fine.jsonl", cli.jsonl([{"prompt": "one"}]))
    job = PromptJob("loud", cut + " " + fine, "engine.max_new_tokens=1")
    text = job.command("run").must(1).text
    assert text.count("cut.jsonl.gz is damaged at line") == 1 and "cut short" in text
    assert "WARNING: 1 of 2 archives are damaged, " + cut in text
    quiet = PromptJob("quiet", fine, "engine.max_new_tokens=1").command("run").must(0).text
    assert "WARNING" not in quiet


cli.main()
