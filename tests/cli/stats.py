"""What a run says it measured: stats.json, metrics.prom, the log and the summary."""

import os
import re
import signal

import cli
import outputs
from cli import Job, test

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
    assert {"load", "profile", "plan", "stream"} <= set(stats["seconds"])
    assert all(s >= 0 for s in stats["seconds"].values()) and stats["seconds"]["stream"] > 0
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
                assert rest in ("gauge", "counter") and name not in types
                types[name] = rest
            continue
        m = sample.match(line)
        assert m, line
        assert m.group(1) in types and m.group(1).startswith("fairkv_"), line
        labels = dict(re.findall(r'([a-z]+)="((?:[^"\\]|\\.)*)"', m.group(2)))
        assert labels["name"] == 'a \\"quoted\\" \\\\ name' and labels["part"] == "0/1", line
        key = (m.group(1), labels.get("phase") or labels.get("rank"))
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
    assert ("fairkv_phase_seconds", "stream") in samples and ("fairkv_rank_attention_seconds", "1") in samples


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
    for line in text.splitlines():
        if line.startswith(("done:", "tokens:", "balance:")):
            assert line in log, line


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
