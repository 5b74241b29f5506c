"""What a run says it measured: stats.json, metrics.prom, the log and the summary."""

import math
import os
import re
import shutil
import signal
import subprocess
import time

import cli
import outputs
from cli import Job, PromptJob, test

STAGES = set("start wait sample profile load calibrate plan prefill decode other finish".split())

HEAVY = [[800, 40, 32, 32], [32, 48, 800, 32]] * 2


@test
def compression_really_saves_memory():
    kv = {}
    for name, settings in (("none", []), ("64", ["profile.method=uniform", "profile.budget=64"])):
        job = Job("kv-" + name, "job.limit=12", *settings)
        job.run()
        kv[name] = job.stats()["kv_bytes"]
    assert 0 < kv["64"] < 0.35 * kv["none"], kv


@test
def the_cache_grows_with_the_slots():
    kv = []
    for slots in (2, 8):
        job = Job("slots-%d" % slots, "job.limit=12", "engine.slots=%d" % slots)
        job.run()
        kv.append(job.stats()["kv_bytes"])
    assert 3 * kv[0] < kv[1] <= 4.5 * kv[0], kv


@test
def records_are_decoded_together():
    for slots in (1, 16):
        job = Job(
            "batched-%d" % slots,
            "job.limit=64",
            "input.members=data/needle_500.jsonl",
            "engine.slots=%d" % slots,
            "model.max_prompt_tokens=100",
            "model.truncate=left",
        )
        rows = job.run()
        stats = job.stats()
        # The first token of an answer comes from prefill.
        later = stats["completion_tokens"] - len(rows)
        if slots == 1:
            assert later <= stats["decode_steps"] <= stats["completion_tokens"], stats
        else:
            assert 0 < stats["decode_steps"] < stats["completion_tokens"] / 8, stats


@test
def stats_hold_what_is_documented():
    job = Job(
        "fields",
        "job.limit=12",
        "input.members=data/needle_500.jsonl",
        "engine.tensor_parallel=4",
        "profile.budgets_file=" + cli.budgets_file("heavy.json", HEAVY),
    )
    rows = job.run()
    stats = job.stats()
    assert (stats["records"], stats["resumed"], stats["errors"], stats["complete"]) == (12, 0, 0, True)
    assert stats["prompt_tokens"] == sum(r["usage"]["prompt_tokens"] for r in rows)
    assert stats["completion_tokens"] == sum(r["usage"]["completion_tokens"] for r in rows)
    assert stats["decode_steps"] > 0 and stats["kv_bytes"] > 0
    assert 5 << 20 < stats["peak_rss_bytes"] < 4 << 30
    assert set(stats["seconds"]) == STAGES, stats["seconds"]
    assert all(s >= 0 for s in stats["seconds"].values()) and stats["seconds"]["prefill"] > 0
    assert len(stats["rank_attention_seconds"]) == 4 and all(s > 0 for s in stats["rank_attention_seconds"])
    assert stats["versions"]["fairkv-batch"] and stats["backend"] == "cpu"


@test
def peak_memory_is_the_program_s_own():
    """Linux's ru_maxrss outlives exec: the starter's memory must not be in it."""
    job = Job("memory", "job.limit=2", "input.members=data/needle_500.jsonl")
    job.run()
    alone = job.stats()["peak_rss_bytes"]
    ballast = b"x" * (600 << 20)
    job.command("run", "-s", "job.restart=yes").must(0)
    assert len(ballast) > 0 and job.stats()["peak_rss_bytes"] < alone + (100 << 20), job.stats()


@test
def a_resumed_run_counts_its_own_work_only():
    job = Job("resumed", "job.limit=40", "input.members=data/needle_500.jsonl", "output.records_per_shard=4")
    outputs.held_at(job, 13).stop(signal.SIGKILL)
    outputs.wait_for_the_lock(job)
    rows = job.run()
    stats = job.stats()
    assert stats["records"] == 40 and stats["resumed"] == 13
    assert 0 < stats["completion_tokens"] < sum(r["usage"]["completion_tokens"] for r in rows)


@test
def stages_are_95_percent_of_the_wall_time_and_no_more():
    job = Job(
        "stages",
        "job.limit=60",
        "profile.method=ada-snapkv",
        "profile.budget=64",
        "plan.calibration=measure",
        "engine.slots=auto",
        "engine.tensor_parallel=2",
    )
    begin = time.monotonic()
    job.run()
    wall = time.monotonic() - begin
    stats = job.stats()
    spent = sum(stats["seconds"].values())
    assert abs(spent - stats["wall_seconds"]) < 1e-3, stats
    assert 0.95 * wall <= spent <= 1.001 * wall, (wall, stats["seconds"])
    for stage in ("sample", "profile", "calibrate", "prefill", "decode"):
        assert stats["seconds"][stage] > 0, stats["seconds"]


@test
def throughput_and_lengths_add_up():
    job = Job("series", "job.limit=30")
    rows = job.run()
    stats = job.stats()
    for key, field in (("prompt_lengths", "prompt_tokens"), ("answer_lengths", "completion_tokens")):
        want = {}
        for row in rows:
            k = int(math.log2(row["usage"][field]))
            want[k] = want.get(k, 0) + 1
        assert {k: n for k, n in enumerate(stats[key]) if n} == want, (key, stats[key], want)
    points = stats["throughput"]
    assert 2 <= len(points) <= 512 and all(len(p) == 6 for p in points)
    assert all(a <= b for p, q in zip(points, points[1:]) for a, b in zip(p[:4], q[:4])), points
    assert points[0][1] == 0 and points[-1][1:4] == [30, stats["prompt_tokens"], stats["completion_tokens"]]
    assert 0 <= max(p[4] for p in points) <= 8 and points[-1][0] <= stats["wall_seconds"] + 0.001


@test
def the_run_says_when_and_where_it_was():
    job = Job("machine", "job.limit=2", "input.members=data/needle_500.jsonl")
    job.run()
    stats = job.stats()
    assert stats["start"] <= stats["end"] and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", stats["end"])
    assert stats["exit_code"] == 0 and stats["host"] == os.uname().nodename and os.uname().release in stats["system"]
    assert stats["processors"] >= 1 and stats["device"].startswith("CPU") and stats["devices"] == 1
    assert stats["energy_joules"] is None and stats["gpu_seconds"] == 0  # there is no GPU


def broken(n, n_bad):
    """Prompts, of which some are no JSON and some have no prompt."""
    records = [{"id": i, "prompt": "The %d. robin carries a flame" % i} for i in range(n)]
    for i in range(n_bad):
        records[3 * i] = b"no JSON"
        records[3 * i + 1] = {"id": i, "prompt": 7}
    return records


def codes_in(job):
    found = {}
    for code in cli.codes_of(job.rows()):
        if code:
            found[code] = found.get(code, 0) + 1
    return found


@test
def errors_are_counted_by_code_over_resumes_also_behind_a_kill():
    job = PromptJob("codes", broken(40, 6), "output.records_per_shard=4")
    for n in (9, 8):
        outputs.held_at(job, n).stop(signal.SIGKILL)
        outputs.wait_for_the_lock(job)
    job.run(1)
    sums = job.sums()
    assert len(codes_in(job)) == 2 and sums["errors"] == codes_in(job), (sums, codes_in(job))
    assert sums["done"] == sums["records"] == 40 and sums["estimated"] is False and sums["runs"] == 3, sums
    with open(job.file("metrics.prom"), encoding="utf-8") as f:
        text = f.read()
    for code, n in sums["errors"].items():
        assert 'fairkv_error_rows{name="codes",part="0/1",code="%s"} %d\n' % (code, n) in text, text


@test
def errors_that_are_tried_again_are_counted_once():
    records = broken(12, 2)
    job = PromptJob("retried", records)
    job.run(1)
    before = job.sums()
    job.run(1, "-s", "job.retry_errors=yes")
    again = job.sums()
    assert again["errors"] == before["errors"] == codes_in(job) and again["done"] == 12
    assert again["runs"] == 2 and again["prompt_tokens"] == before["prompt_tokens"]


@test
def sums_are_of_all_runs():
    job = Job("sums", "job.limit=40", "input.members=data/needle_500.jsonl", "output.records_per_shard=8")
    assert outputs.held_at(job, 13, "-s", "job.grace=0").stop(signal.SIGTERM) == 75
    first, run = job.sums(), job.stats()
    assert run["exit_code"] == 75 and run["complete"] is False and first["last_success"] is None, run
    assert first["runs"] == 1 and first["done"] == run["records"] and first["records"] == 40
    before = time.time()
    rows = job.run()
    sums, run = job.sums(), job.stats()
    assert sums["runs"] == 2 and sums["done"] == 40
    for field in ("prompt_tokens", "completion_tokens"):
        assert sums[field] == sum(r["usage"][field] for r in rows) == first[field] + run[field]
    assert set(sums["seconds"]) == STAGES
    for stage, seconds in sums["seconds"].items():
        assert abs(seconds - first["seconds"][stage] - run["seconds"][stage]) < 1e-4, stage
    assert before - 1 <= sums["last_success"] <= time.time()
    assert abs(sums["records_per_second"] - 40 / sums["wall_seconds"]) < 0.01 * sums["records_per_second"]
    with open(job.file("metrics.prom"), encoding="utf-8") as f:
        text = f.read()
    for name, value in (
        ("runs_total", 2),
        ("prompt_tokens_total", sums["prompt_tokens"]),
        ("completion_tokens_total", sums["completion_tokens"]),
        ("records", 40),
        ("input_records", 40),
        ("exit_code", 0),
        ("running", 0),
        ("last_success_timestamp_seconds", sums["last_success"]),
    ):
        assert 'fairkv_%s{name="sums",part="0/1"} %d\n' % (name, value) in text, (name, text)


@test
def a_damaged_stats_file_costs_the_history_and_a_line():
    job = Job("damaged", "job.limit=20", "input.members=data/needle_500.jsonl", "output.records_per_shard=4")
    whole = Job("undamaged", "job.limit=20", "input.members=data/needle_500.jsonl", "output.records_per_shard=4")
    whole.run()
    outputs.held_at(job, 7).stop(signal.SIGKILL)
    outputs.wait_for_the_lock(job)
    for damage in (b"", b"{", b"[1]", b'{"format":"fairkv-stats/1"}', b'{"format":"fairkv-stats/2","job":{"done":-1}}',
                   b'{"format":"fairkv-stats/2","job":{"done":1e999}}', b"\0" * 1000, b"[" * 100000):
        copy = Job("copy", "job.limit=20", "input.members=data/needle_500.jsonl", "output.records_per_shard=4")
        shutil.rmtree(copy.output, ignore_errors=True)
        shutil.copytree(job.output, copy.output)
        cli.write("copy/stats.json", damage)
        ended = cli.command("run", job.path, "-s", "job.output=" + copy.output)
        ended.must(0, "stats.json", "what earlier runs measured is not counted any more")
        assert copy.content() == whole.content() and copy.sums()["runs"] == 1, damage
        assert "WARNING" not in ended.err and "error: " not in ended.err, ended.err


@test
def a_killed_run_loses_only_what_came_since_the_files_were_written():
    job = Job("killed", "job.limit=40", "input.members=data/needle_500.jsonl", "output.progress=1")
    run = outputs.held_at(job, 13)

    def metrics():
        with open(job.file("metrics.prom"), encoding="utf-8") as f:
            return f.read()

    run.until(lambda: 'fairkv_records{name="killed",part="0/1"} 13\n' in metrics(), "13 records in metrics.prom")
    stats = job.stats()
    assert stats["records"] == 13 and stats["end"] is None and stats["exit_code"] is None, stats
    assert stats["complete"] is False and 'fairkv_running{name="killed",part="0/1"} 1\n' in metrics()
    assert "exit_code" not in metrics()
    run.stop(signal.SIGKILL)
    outputs.wait_for_the_lock(job)
    rows = job.run()
    assert job.sums()["completion_tokens"] == sum(r["usage"]["completion_tokens"] for r in rows)


@test
def metrics_go_to_a_second_place_too():
    folder = os.path.join(cli.WORK, "textfiles")
    os.makedirs(folder)
    settings = ["job.limit=3", "input.members=data/needle_500.jsonl", 'job.name=a "b"/c']
    job = Job("placed", *settings)
    job.run(0, "-s", "output.metrics=" + folder)
    assert os.listdir(folder) == ["fairkv-batch-a%20%22b%22%2Fc.prom"]
    with open(os.path.join(folder, os.listdir(folder)[0]), "rb") as f, open(job.file("metrics.prom"), "rb") as g:
        assert f.read() == g.read()
    job = Job("parted", *settings, "output.records_per_shard=1", "output.metrics=" + os.path.join(folder, "x.prom"))
    for part in ("0/2", "1/2"):
        job.run(0, "-s", "input.part=" + part)
    assert sorted(os.listdir(folder))[1:] == ["x-0of2.prom", "x-1of2.prom"]
    # What can't be written there is said, and costs nothing else.
    job = Job("nowhere", *settings, "output.metrics=" + os.path.join(folder, "no", "x.prom"))
    ended = job.command("run").must(0, "WARNING: output.metrics: ", "no/x.prom")
    assert ended.err.count("output.metrics") == 1 and len(job.rows()) == 3
    assert "metrics = " + os.path.join(folder, "no", "x.prom") in open(job.file("job.ini")).read()


@test
def promtool_finds_nothing_wrong():
    if not shutil.which("promtool"):
        raise cli.Skip("promtool is missing (Debian: prometheus)")
    job = PromptJob("promtool", broken(20, 3), "job.name=a\\b")
    outputs.held_at(job, 9, "-s", "job.grace=0").stop(signal.SIGTERM)
    texts = [open(job.file("metrics.prom"), "rb").read()]
    job.run(1)
    texts.append(open(job.file("metrics.prom"), "rb").read())
    for text in texts:
        done = subprocess.run(["promtool", "check", "metrics"], input=text, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        assert done.returncode == 0 and done.stdout == b"", done.stdout.decode()


@test
def metrics_are_prometheus_text_and_agree_with_the_stats():
    job = Job(
        "metrics",
        "job.limit=6",
        'job.name=a "quoted" \\ name',
        "engine.tensor_parallel=2",
        "input.members=data/needle_500.jsonl",
    )
    job.run()
    stats, samples, types = job.stats(), {}, {}
    with open(job.file("metrics.prom"), encoding="utf-8") as f:
        text = f.read()
    assert text.endswith("\n")
    sample = re.compile(r'([a-z_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (-?[0-9.e+]+)$')
    for line in text.splitlines():
        if line.startswith("# "):
            _, kind, name, rest = line.split(" ", 3)
            assert kind in ("HELP", "TYPE")
            if kind == "TYPE":
                assert rest == ("counter" if name.endswith("_total") else "gauge") and name not in types
                types[name] = rest
            continue
        m = sample.match(line)
        assert m, line
        assert m.group(1) in types and m.group(1).startswith("fairkv_"), line
        labels = dict(re.findall(r'([a-z]+)="((?:[^"\\]|\\.)*)"', m.group(2)))
        assert labels["name"] == 'a \\"quoted\\" \\\\ name' and labels["part"] == "0/1", line
        key = (m.group(1), labels.get("stage") or labels.get("rank"))
        assert key not in samples
        samples[key] = float(m.group(3))
    for name, field in (
        ("records", "records"),
        ("resumed_records", "resumed"),
        ("error_records", "errors"),
        ("prompt_tokens", "prompt_tokens"),
        ("completion_tokens", "completion_tokens"),
        ("decode_steps", "decode_steps"),
        ("kv_bytes", "kv_bytes"),
    ):
        assert samples["fairkv_" + name, None] == stats[field], name
    assert samples["fairkv_complete", None] == 1
    assert ("fairkv_stage_seconds_total", "prefill") in samples and ("fairkv_rank_attention_seconds", "1") in samples


@test
def the_summary_is_printed_and_logged():
    job = Job(
        "summary",
        "job.limit=6",
        "input.members=data/needle_500.jsonl",
        "engine.tensor_parallel=4",
        "profile.budgets_file=" + cli.budgets_file("heavy.json", HEAVY),
    )
    text = (
        job.command("run")
        .must(0, "done: 6 records", "0 errors", "tokens:", "KV cache:", "balance:", "4 ranks")
        .text
    )
    kept = float(re.search(r"KV cache: ([0-9.]+)% ", text).group(1))
    lengths = [r["usage"]["prompt_tokens"] for r in job.rows()]
    want = 100 * sum(min(b, n) for n in lengths for row in HEAVY for b in row) / (16 * sum(lengths))
    assert abs(kept - want) < 0.1, (kept, want)
    with open(job.file("log"), encoding="utf-8") as f:
        log = f.read()
    n_lines = 0
    for line in text.splitlines():
        if line.startswith(("done:", "tokens:", "balance:")):
            assert line in log, line
            n_lines += 1
    assert n_lines == 3


@test
def the_output_folder_holds_what_is_documented():
    job = Job("folder", "job.limit=3", "input.members=data/needle_500.jsonl")
    job.run()
    names = set(os.listdir(job.output))
    assert {
        "shards",
        "manifest.json",
        "profile.json",
        "plan.json",
        "job.ini",
        "metrics.prom",
        "log",
        "journal",
        "stats.json",
    } <= names, names
    assert outputs.leavings(job) == []
    # job.ini is the job as resolved: checked again it means the same.
    cli.command("run", job.file("job.ini")).must(0, "nothing to do")


cli.main()
