"""report.html: what it says after a run, what it makes of what is missing or hostile, and how it looks.

    report.py BINARY --pictures   makes the pictures of tests/golden/report anew, to be looked at
"""

import html
import json
import os
import re
import shutil
import signal
import sys

import cli
import outputs
import pages
from cli import Job, PromptJob, command, test
from pages import Page

GOLDEN = os.path.join(cli.TESTS, "golden", "report")
HEAVY = [[800, 40, 32, 32], [32, 48, 800, 32]] * 2
SECTIONS = ["where", "throughput", "errors", "loads", "budgets", "lengths", "summary", "machine", "job"]


def page_of(job):
    with open(job.file("report.html"), encoding="utf-8") as f:
        return Page(f.read())


def number(text):
    return float(text.replace(",", ""))


def bad_and_good(n, words=6):
    """Records of that many words, and three that can't be read."""
    text = " ".join(("The robin carries a small flame " * (words // 6)).split())
    records = [{"id": i, "prompt": "%d. %s" % (i, text)} for i in range(n)]
    return records + [b"no JSON", b"{", {"id": 1, "prompt": 7}]


@test
def the_page_says_what_the_run_measured():
    job = PromptJob("whole", bad_and_good(30, 240), "engine.tensor_parallel=4",
                    "profile.budgets_file=" + cli.budgets_file("heavy.json", HEAVY))
    said = job.command("run").must(1).err
    page, stats, plan = page_of(job), job.stats(), job.plan()
    for name in SECTIONS:
        page.section(name)
    assert "<title>whole - fairkv-batch report</title>" in page.source and "Complete" in page.text()
    policy = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]
    # The bar's parts are named, are those of stats.json, and add up to the wall time.
    (bar,) = page.bars()
    assert dict(bar) == {k: v for k, v in stats["seconds"].items() if v > 0}, bar
    assert abs(sum(s for _, s in bar) - stats["wall_seconds"]) < 0.05 * stats["wall_seconds"]
    assert [r[0] for r in page.rows("time")[1:-1]] == [stage for stage, _ in bar]
    # The errors, with the first row of each code.
    rows = [r for r in job.rows() if r["error"]]
    found = {r[0]: r[1:] for r in page.rows("errors")[1:]}
    assert set(found) == {r["error"]["code"] for r in rows} == {"bad_json", "bad_field"}
    for code, (n, text) in found.items():
        of_code = [r for r in rows if r["error"]["code"] == code]
        assert int(n) == len(of_code) and of_code[0]["error"]["message"] in text, (code, text)
        assert "line %d" % of_code[0]["source"]["line"] in text
    # The terminal had the same words, and they are of the same numbers.
    facts = page.facts("summary")
    assert set(facts) == {"done", "tokens", "time", "KV cache", "balance"}, facts
    assert "report: %s\n" % job.file("report.html") in said, said
    for name, text in facts.items():
        assert "%s: %s\n" % (name, text) in said, (name, text, said)
    assert facts["done"].startswith("33 records, 0 of them by earlier runs, 3 errors, in %.1f s" % stats["wall_seconds"])
    assert facts["tokens"].startswith("%d in prompts, %d new" % (stats["prompt_tokens"], stats["completion_tokens"]))
    machine = page.facts("machine")
    assert machine["Exit code"].startswith("1, ") and machine["Host"] == stats["host"]
    assert machine["Device"] == stats["device"] and machine["Slots"] == "8" and machine["Ranks"] == "4"
    # Loads before and after; what is moved is not lost.
    ranks = [[number(c) for c in (r[1], r[3])] for r in page.rows("ranks")[1:]]
    assert len(ranks) == 4 and abs(sum(r[0] for r in ranks) - sum(r[1] for r in ranks)) < 8, ranks
    assert max(r[1] for r in ranks) < max(r[0] for r in ranks), ranks
    modes = {r[0].split(",")[0]: number(r[1]) for r in page.rows("modes")[1:]}
    assert abs(modes["standard"] - plan["predicted"]["standard_us"]) < 0.1, modes
    assert abs(modes["fair-copying"] - plan["predicted"]["fair_copying_us"]) < 0.1, modes
    # Budgets and lengths.
    assert [[int(c) for c in r[1:]] for r in page.rows("budgets-table")[1:]] == HEAVY
    for key, table in (("prompt_lengths", "prompt-lengths"), ("answer_lengths", "answer-lengths")):
        counts = [int(r[2]) for r in page.rows(table)[1:]]
        assert counts == [n for i, n in enumerate(stats[key]) if any(stats[key][: i + 1])] and sum(counts) == 30
    with open(job.file("job.ini"), encoding="utf-8") as f:
        for line in f.read().splitlines():
            assert html.escape(line).replace("&#x27;", "&#39;") in page.section("job"), line
    # Every picture has a name and says what it shows, or stands beside its number.
    for picture in re.findall(r"<svg.*?</svg>", page.source, re.S):
        assert 'aria-hidden="true"' in picture or ("<title>" in picture and "<desc>" in picture), picture[:200]


@test
def the_series_is_that_of_the_stats():
    job = Job("series", "job.limit=24", "input.members=data/needle_500.jsonl", "output.progress=1")
    job.run()
    points = job.stats()["throughput"]
    rows = page_of(job).rows("series")[1:]
    assert sum(int(number(r[2])) for r in rows) == points[-1][1] - points[0][1], (rows, points)
    assert abs(number(rows[-1][1]) - points[-1][0]) < 0.1 and abs(number(rows[0][0]) - points[0][0]) < 0.1


@test
def an_interrupted_run_leaves_a_page_and_the_next_one_replaces_it():
    job = PromptJob("stopped", bad_and_good(20))
    outputs.held_at(job, 7, "-s", "job.grace=0").stop(signal.SIGTERM)
    page = page_of(job)
    assert "Not finished" in page.text() and "exit code 75" in page.text(), page.text()[:300]
    assert len(page.bars()) == 1 and "7" in page.text()
    job.run(1)
    page = page_of(job)
    assert "Complete" in page.text() and "exit code 1:" in page.text()
    # The last run and both together.
    last, both = page.bars()
    for bar, sums in ((last, job.stats()), (both, job.sums())):
        assert dict(bar) == {k: v for k, v in sums["seconds"].items() if v > 0}
        assert abs(sum(s for _, s in bar) - sums["wall_seconds"]) < 0.05 * sums["wall_seconds"]
    assert outputs.leavings(job) == []


@test
def a_killed_run_is_told_of_by_hand():
    job = PromptJob("killed", bad_and_good(20), "output.progress=1")
    run = outputs.held_at(job, 5)
    command("report", job.output).must(0)
    assert "At work" in page_of(job).text()
    run.stop(signal.SIGKILL)
    outputs.wait_for_the_lock(job)
    for name in os.listdir(job.output):
        if name.startswith("lock"):
            os.unlink(job.file(name))
    command("report", job.output).must(0)
    text = page_of(job).text()
    assert "Not finished" in text and "it was killed" in text, text[:400]


@test
def parts_share_a_page():
    job = PromptJob("parts", bad_and_good(20), "output.records_per_shard=2")
    first = cli.Running(job, "-s", "input.part=0/2", log=".0")
    second = cli.Running(job, "-s", "input.part=1/2", log=".1")
    codes = {first.wait(), second.wait()}
    assert codes <= {0, 1} and 1 in codes and outputs.leavings(job) == [], codes
    page = page_of(job)  # of whoever came last, who knows of both
    stats = [job.stats("stats-%dof2.json" % i) for i in (0, 1)]
    rows = page.rows("parts")[1:]
    assert [number(r[1]) for r in rows] == [s["records"] for s in stats] and sum(int(r[1]) for r in rows) == 23
    assert sum(int(r[1]) for r in page.rows("errors")[1:]) == 3 and "Complete" in page.text()
    assert abs(sum(s for _, s in page.bars()[1]) - sum(s["wall_seconds"] for s in stats)) < 0.001
    assert sum(int(r[2]) for r in page.rows("prompt-lengths")[1:]) == 20


@test
def processes_that_share_an_output_share_a_page():
    job = PromptJob("shared", bad_and_good(100), "engine.slots=1", "output.records_per_shard=40", "input.part=auto")
    runs = [cli.Running(job, hold="records 2", log=".log-%d" % i).until_held() for i in range(2)]
    for run in runs:
        run.go_on()
    assert {run.wait() for run in runs} <= {1, 75}
    rows = page_of(job).rows("parts")[1:]
    assert [r[0] for r in rows] == ["0", "1"], rows
    done = [cli.load(job.file("stats-auto%d.json" % i))["run"]["exit_code"] for i in (0, 1)]
    assert [int(r[5]) for r in rows] == done, (rows, done)
    assert page_of(job).text().count("processes (input.part = auto)") == 1


@test
def what_is_hostile_is_shown_as_it_is():
    bad = '<script>alert("1")</script> & \'x\' \u202e\x07'
    source = cli.write("hostile.jsonl", cli.jsonl([
        {"_id": 1, "input": "a", "context": "b", "dataset": bad},
        {"_id": 2, "input": "a", "context": "b", "dataset": "needle_1k"}]))
    job = Job("hostile", "input.archives=" + source, "input.members=*", "job.name=<b onload=x>&amp;")
    job.run(1)
    stats = cli.load(job.file("stats.json"))
    stats["run"]["host"] = "</style><img src=http://x>" * 40
    stats["run"]["device"] = "]]>--><script>"
    cli.write(os.path.relpath(job.file("stats.json"), cli.WORK), stats)
    with open(job.file("job.ini"), "a", encoding="utf-8") as f:
        f.write("; </pre><script src=http://x></script>\n; " + "long " * 1000 + "\n")
    command("report", job.output).must(0)
    page = page_of(job)  # which refuses tags that are none of ours
    assert "<h1>&lt;b onload=x&gt;&amp;amp;</h1>" in page.source
    assert "&lt;script&gt;alert(" in page.section("errors") and "\u202e" not in page.source and "\x07" not in page.source
    assert "&lt;/pre&gt;" in page.section("job") and len(page.source) < 200000
    assert re.search(r"<dt>Host</dt><dd>&lt;/style.{100,900}\.\.\.</dd>", page.source)


@test
def what_is_missing_or_damaged_is_a_sentence():
    job = PromptJob("poor", bad_and_good(8), "engine.tensor_parallel=2",
                    "profile.budgets_file=" + cli.budgets_file("heavy.json", HEAVY))
    job.run(1)
    good = {}
    for name in ("stats.json", "plan.json", "profile.json", "job.ini", "report.html"):
        with open(job.file(name), "rb") as f:
            good[name] = f.read()
    later = json.dumps(dict(json.loads(good["stats.json"].decode()), format="fairkv-stats/1")).encode()
    negative = good["stats.json"].replace(b'"decode":', b'"decode":-', 1)
    falling = re.sub(rb'"throughput":\[.*?\]\]', b'"throughput":[[1,5,5,5,1,0],[2,4,5,5,1,0]]', good["stats.json"])
    for name, content, words in (
        ("stats.json", None, "There is no stats.json yet"),
        ("stats.json", b"{", "can't be read"),
        ("stats.json", later, "fairkv-stats/1"),
        ("stats.json", negative, "decode"),
        ("stats.json", falling, "falls at its point 1"),
        ("plan.json", None, "There is no plan.json"),
        ("plan.json", b"[]", "plan.json"),
        ("profile.json", None, "There is no profile.json"),
        ("profile.json", b"\0\1", "profile.json"),
        ("job.ini", None, "job.ini can't be read"),
    ):
        os.unlink(job.file(name))
        if content is not None:
            cli.write(os.path.relpath(job.file(name), cli.WORK), content)
        command("report", job.output).must(0)
        page = page_of(job)
        assert words in page.text(), (name, words, page.text()[:600])
        assert "11" in page.text() and sum(int(r[1]) for r in page.rows("errors")[1:]) == 3
        cli.write(os.path.relpath(job.file(name), cli.WORK), good[name])
    # Of a model that is larger than any page.
    huge = {"format": "fairkv-profile/1", "model": "m", "fingerprint": "x", "n_layers": 1000, "n_kv_heads": 64,
            "budget": 9, "budgets": [[9] * 64] * 1000, "sample": {"prompt_tokens": [9], "mean_output": 1}}
    cli.write(os.path.relpath(job.file("profile.json"), cli.WORK), huge)
    command("report", job.output).must(0)
    page = page_of(job)
    assert "too many to be drawn" in page.text() and "not of one model" in page.text() and len(page.source) < 100000
    cli.write(os.path.relpath(job.file("profile.json"), cli.WORK), good["profile.json"])
    command("report", job.output).must(0)
    with open(job.file("report.html"), "rb") as f:
        assert f.read() == good["report.html"], "with all files there again the page is the run's own"


@test
def the_page_goes_where_it_is_sent():
    job = PromptJob("sent", bad_and_good(3))
    job.run(1)
    with open(job.file("report.html"), "rb") as f:
        page = f.read()
    os.unlink(job.file("report.html"))
    assert command("report", job.output, "-o", "-").must(0).raw_out == page
    place = os.path.join(cli.WORK, "page.html")
    command("report", "-o", place, job.output).must(0)
    with open(place, "rb") as f:
        assert f.read() == page
    assert not os.path.exists(job.file("report.html"))
    command("report", job.output, "-o", "/dev/null").must(0)
    assert not os.path.isfile("/dev/null")
    command("report", job.output).must(0)
    command("report", cli.DATA).must(2, "not an output folder")
    command("report").must(2, "OUTPUT_DIR")
    command("report", job.output, "--json").must(2, "unknown option --json")
    command("report", "--help").must(0, "usage: fairkv-batch report")
    command("report", job.output, "-o", os.path.join(cli.WORK, "no", "page.html")).must(3, "no/page.html")


@test
def a_page_that_cannot_be_written_costs_a_warning():
    job = PromptJob("full", bad_and_good(3))
    os.makedirs(job.file("report.html"))
    # A folder of that name, in an output that is begun.
    assert job.command("run").code == 2
    os.rmdir(job.file("report.html"))
    run = outputs.held_at(job, 2)
    os.makedirs(job.file("report.html", "in the way"))
    run.go_on()
    assert run.wait() == 1
    assert "WARNING: report.html: " in run.text() and "done: 6 records" in run.text(), run.text()
    assert outputs.leavings(job) == []


@test
def what_killed_writers_left_is_ours_and_goes():
    job = PromptJob("swept", bad_and_good(3))
    job.run(1)
    old, young = job.file("report.html.0123456789abcdef.tmp"), job.file("report.html.fedcba9876543210.tmp")
    for path in (old, young):
        with open(path, "w", encoding="utf-8"):
            pass
    os.utime(old, (1e9, 1e9))
    command("report", job.output).must(0)
    assert not os.path.exists(old) and os.path.exists(young)
    job.command("run", "-s", "job.restart=yes").must(1)
    assert os.path.exists(job.file("report.html")) and not os.path.exists(young)


# How it looks.


def picture_folder():
    """An output folder whose page is the same on every machine and day."""
    source = cli.write("seen.jsonl", cli.jsonl(bad_and_good(12, 240)))
    job = PromptJob("picture", source, "input.archives=" + os.path.basename(source), "engine.tensor_parallel=4",
                    "job.name=longbench-qa", "profile.budgets_file=" + cli.budgets_file("heavy.json", HEAVY))
    if not os.path.exists(job.file("manifest.json")):
        job.run(1)
    shutil.copy(os.path.join(GOLDEN, "stats.json"), job.file("stats.json"))
    command("report", job.output).must(0)
    return job


@test
def the_page_looks_as_in_the_pictures():
    with pages.browse() as b:
        pages.must_look_like(b, picture_folder().file("report.html"), GOLDEN)


@test
def nothing_is_cut_off_or_lies_over_something_else():
    with pages.browse() as b:
        pages.must_fit(b, picture_folder().file("report.html"))


@test
def words_can_be_read_on_what_is_behind_them():
    with pages.browse() as b:
        pages.must_be_legible(b, picture_folder().file("report.html"))


if "--pictures" in sys.argv:
    sys.argv.remove("--pictures")

    def make_pictures():
        pages.make_pictures(picture_folder().file("report.html"), GOLDEN)

    cli._tests[:] = [make_pictures]

cli.main()
