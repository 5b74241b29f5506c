"""A small run with all its threads and two devices: what a thread sanitizer should watch."""

import signal

import cli
from cli import Job, Running, test


def small(name, *settings):
    return Job(
        name,
        "input.members=data/needle_500.jsonl",
        "job.limit=60",
        "model.max_prompt_tokens=160",
        "model.truncate=left",
        "engine.tensor_parallel=4",
        "engine.devices=2",
        "engine.slots=3",
        "output.records_per_shard=2",
        *settings
    )


@test
def two_devices_profile_plan_and_answer():
    job = small(
        "two", "profile.method=ada-snapkv", "profile.budget=48", "profile.sample=4", 'sampling.stop=["55"]'
    )
    rows = job.run()
    assert [r["source"]["line"] for r in rows] == list(range(1, 61))
    assert all(r["usage"]["prompt_tokens"] == 160 for r in rows)


@test
def two_devices_stop_and_resume():
    whole = small("whole")
    whole.run()
    job = small("stopped")
    run = Running(job)
    run.until(lambda: len(job.shards()) >= 2, "2 shards")
    assert run.stop(signal.SIGTERM) == 75, run.text()
    job.run()
    assert job.content() == whole.content()


@test
def a_failure_ends_every_thread():
    job = small(
        "failing",
        "job.max_errors=1",
        "input.archives=" + cli.write("bad.jsonl", b"[]\n" * 40),
        "input.members=*",
    )
    job.command("run").must(2, "job.max_errors")


cli.main()
