"""Outputs whose last archive was repaired or has grown at its end: only what is missing is done."""

import bz2
import gzip
import os
import signal

import cli
import outputs
from cli import PromptJob, jsonl, test

SHARD = "output.records_per_shard=4"


def records(first, end, **more):
    return [
        dict({"id": "r%d" % i, "prompt": "The access code for oak %d is" % i, "max_tokens": 1 + i % 3}, **more)
        for i in range(first, end)
    ]


def tar_of(data):
    return cli.tar_of(("x.jsonl", data))


def joined(compress):
    """Compresses ten lines at a time: what is cut gives what its whole pieces hold."""

    def pack(data):
        lines = data.splitlines(True)
        return b"".join(compress(b"".join(lines[i : i + 10])) for i in range(0, len(lines), 10))

    return pack


FORMS = {
    "jsonl": bytes,
    "jsonl.gz": lambda data: gzip.compress(data, mtime=0),
    "jsonl.zst": joined(cli.zstd),
    "jsonl.bz2": joined(bz2.compress),
    "tar": tar_of,
    "tar.gz": lambda data: gzip.compress(tar_of(data), mtime=0),
    "tar.zst": lambda data: joined(cli.zstd)(tar_of(data)),
}


class Output:
    """An output over the file NAME/in.FORM, which is written and then written again."""

    def __init__(self, name, form="jsonl", *settings, before=""):
        self.archive = os.path.join(name, "in." + form)
        self.path = os.path.join(cli.WORK, self.archive)
        self.job = PromptJob(name + "-job", before + self.path, SHARD, *settings)
        self.name, self.before, self.settings = name, before, settings

    def write(self, data):
        cli.write(self.archive, data)

    def run(self, code, *settings):
        args = [a for s in settings for a in ("-s", s)]
        return self.job.command("run", *args).must(code)

    def must_be_whole(self):
        """The shards are those of a run over the file as it is now."""
        fresh = PromptJob(self.name + "-fresh", self.before + self.path, SHARD, *self.settings)
        fresh.command("run")
        assert self.job.content() == fresh.content(), (self.job.rows(), fresh.rows())
        manifest = cli.load(self.job.file("manifest.json"))
        assert manifest["complete"] is True and manifest["records"] == len(self.job.rows()), manifest


@test
def lines_added_to_the_last_archive_are_done_and_nothing_else():
    for name, n, end in (("inside", 7, 12), ("boundary", 8, 9), ("one", 1, 30)):
        out = Output("lines-" + name)
        out.write(jsonl(records(0, n)))
        out.run(0)
        before = {f: open(out.job.file(f), "rb").read() for f in ("profile.json", "plan.json")}
        out.write(jsonl(records(0, end)))
        out.job.command("check").must(0, "%d records are done" % n)
        said = out.run(0, "job.max_errors=0").text
        assert "the last archive has grown: record %d " % n in said and "resuming: %d records" % n in said, said
        assert out.job.stats()["resumed"] == n and out.job.stats()["records"] == end
        assert before == {f: open(out.job.file(f), "rb").read() for f in before}
        out.must_be_whole()
        out.run(0).must(0, "nothing to do")


@test
def a_line_without_an_end_is_done_again():
    whole = jsonl(records(0, 9))
    lines = whole.splitlines(True)
    for name, cut, code in (
        ("in-a-line", len(b"".join(lines[:6])) - 20, 1),
        ("at-its-end", len(b"".join(lines[:6])) - 1, 0),
        ("in-a-full-shard", len(b"".join(lines[:8])) - 20, 1),
    ):
        out = Output("open-" + name)
        out.write(whole[:cut])
        out.run(code)
        n = len(out.job.rows())
        out.write(whole)
        out.run(0)
        assert out.job.stats()["resumed"] == n - 1, out.job.stats()
        out.must_be_whole()


@test
def an_archive_that_was_cut_short_is_finished_once_it_is_repaired():
    data = jsonl(records(0, 400, note="%032x" % (1 << 90)))
    for form, wrap in FORMS.items():
        for retry in ("no", "yes"):
            whole = wrap(data)
            out = Output("cut-%s-%s" % (form, retry), form, "engine.max_new_tokens=1")
            out.write(whole[: len(whole) * 3 // 5])
            out.run(1)
            rows = out.job.rows()
            assert rows[-1]["error"] and len(rows) > 20, (form, rows[-1])
            out.write(whole)
            out.run(0, "job.retry_errors=" + retry)
            assert out.job.stats()["resumed"] == len(rows) - 1, (form, out.job.stats())
            out.must_be_whole()


@test
def an_array_that_was_cut_short_is_finished_once_it_is_repaired():
    whole = b"[" + b",\n".join(line for line in jsonl(records(0, 11)).splitlines()) + b"]\n"
    for at in (len(whole) // 2, whole.index(b",\n", len(whole) // 2) + 1):
        out = Output("array-%d" % at, "json")
        out.write(whole[:at])
        out.run(1)
        out.write(whole)
        out.run(0)
        out.must_be_whole()


@test
def an_archive_is_joined_to_the_last():
    """cat b.tar >> a.tar, cat b.jsonl.gz >> a.jsonl.gz: what people do."""
    a, b = jsonl(records(0, 6)), jsonl(records(6, 13))
    for form in ("tar", "jsonl.gz", "jsonl.zst"):
        out = Output("joined-" + form, form)
        out.write(FORMS[form](a))
        out.run(0)
        out.write(FORMS[form](a) + FORMS[form](b))
        out.run(0, "job.retry_errors=yes")
        assert out.job.stats()["resumed"] == 6
        out.must_be_whole()


@test
def a_killed_run_goes_on_with_an_archive_that_has_grown():
    lines = jsonl(records(0, 13)).splitlines(True)
    for name, text in (
        ("ended", b"".join(lines[:10])),
        ("open", b"".join(lines[:10])[:-5]),
        ("few", b"".join(lines[:3])),
    ):
        for n in (2, text.count(b"}")):
            out = Output("killed-%s-%d" % (name, n), "jsonl", "engine.slots=1")
            out.write(text)
            outputs.held_at(out.job, n).stop(signal.SIGKILL)
            outputs.wait_for_the_lock(out.job)
            out.write(b"".join(lines))
            out.run(0)
            assert n - 1 <= out.job.stats()["resumed"] <= n, (name, out.job.stats())
            out.must_be_whole()


@test
def it_may_grow_again_and_again_also_while_runs_are_killed():
    lines = jsonl(records(0, 40)).splitlines(True)
    out = Output("again", "jsonl", "engine.slots=2")
    for end in (3, 9, 16, 17, 29):
        out.write(b"".join(lines[:end])[:-4])
        outputs.held_at(out.job, 1).stop(signal.SIGKILL)
        outputs.wait_for_the_lock(out.job)
    out.write(b"".join(lines))
    out.run(0)
    out.must_be_whole()


@test
def what_a_killed_run_did_behind_the_old_end_stays_when_it_grows_again():
    out = Output("beyond", "jsonl", "engine.slots=1")
    out.write(jsonl(records(0, 3)))
    out.run(0)
    out.write(jsonl(records(0, 200)))  # more than the reader is ahead by
    outputs.held_at(out.job, 10).stop(signal.SIGKILL)
    outputs.wait_for_the_lock(out.job)
    out.write(jsonl(records(0, 205)))
    out.run(0)
    assert 12 <= out.job.stats()["resumed"] <= 13, out.job.stats()
    out.must_be_whole()


@test
def parts_take_it_up_one_after_the_other():
    lines = jsonl(records(0, 23)).splitlines(True)
    out = Output("parts")
    out.write(b"".join(lines[:10])[:-3])
    out.run(1, "input.part=0/2")
    out.write(b"".join(lines))
    out.run(0, "input.part=1/2")
    told = cli.command("export", out.job.output, "--format", "jsonl", "-").must(1).text
    assert "missing" in told, told
    out.run(0, "input.part=0/2").must(0, "has grown")
    out.run(0, "input.part=1/2").must(0, "nothing to do")
    fresh = PromptJob("parts-fresh", out.path, SHARD)
    fresh.run()
    assert out.job.content() == fresh.content()
    cli.command("export", out.job.output, "--format", "jsonl", "-").must(0)


@test
def it_may_lie_elsewhere_when_it_has_grown():
    out = Output("moved")
    out.write(jsonl(records(0, 6)))
    out.run(0)
    there = cli.write("moved-there/other.jsonl", jsonl(records(0, 11)))
    out.run(0, "input.archives=" + there).must(0, "resuming: 6 records")
    assert {r["source"]["archive"] for r in out.job.rows()} == {out.path}
    out.write(jsonl(records(0, 11)))
    out.must_be_whole()


@test
def any_other_change_is_refused_and_names_restart():
    first = cli.write("a-first/first.jsonl", jsonl(records(50, 56)))
    lines = jsonl(records(0, 9))
    changes = {
        "shorter": lines[:-40],
        "another-beginning": lines.replace(b"oak", b"elm") + jsonl(records(9, 12)),
        "another-end": lines[:-8] + b"9" + lines[-7:],
    }
    for name, data in changes.items():
        out = Output("other-" + name, before=first + " ")
        out.write(lines)
        out.run(0)
        out.write(data)
        before = out.job.content()
        for command in ("run", "check"):
            told = out.job.command(command).must(2, "input.archives was").text
            assert "job.restart = yes" in told, told
        assert out.job.content() == before
    # Not the last of two: what is behind it would move.
    out = Output("other-not-last", before=cli.write("a-first/grows.jsonl", lines) + " ")
    out.write(lines[:-1])
    out.run(0)
    cli.write("a-first/grows.jsonl", jsonl(records(0, 10)))
    assert "job.restart = yes" in out.run(2).text
    # One more file is no end of the last one either.
    out = Output("other-one-more")
    out.write(lines)
    out.run(0)
    more = cli.write("a-first/one-more.jsonl", jsonl(records(9, 12)))
    assert "job.restart = yes" in out.run(2, "input.archives=%s %s" % (out.path, more)).text


@test
def a_record_that_changed_far_from_both_ends_is_noticed_when_it_is_read_past():
    lines = jsonl(records(0, 40, note="x" * 8000)).splitlines(True)
    for name, n, grows in (("killed", 30, False), ("grown", 37, True)):
        out = Output("middle-" + name, "jsonl", "engine.max_new_tokens=1", "job.limit=0")
        out.write(b"".join(lines[:n] if grows else lines))
        if grows:
            out.run(0)
        else:
            outputs.held_at(out.job, n).stop(signal.SIGKILL)
            outputs.wait_for_the_lock(out.job)
        changed = list(lines)
        changed[18] = changed[18].replace(b"oak 18", b"elm 18")
        assert len(changed[18]) == len(lines[18])
        out.write(b"".join(changed))
        told = out.run(2).text
        assert "the input is not what it was: its first 20 records" in told and "job.restart" in told, told


@test
def behind_the_limit_nothing_has_grown():
    out = Output("limit", "jsonl", "job.limit=6")
    out.write(jsonl(records(0, 8)))
    out.run(0)
    out.write(jsonl(records(0, 12)))
    out.run(0)
    assert out.job.stats()["resumed"] == 6
    out.must_be_whole()


cli.main()
