"""A small run with all its threads, two devices and two replicas: what a thread sanitizer should watch."""

import os
import signal

import cli
import outputs
from cli import Job, test


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
def the_demo_s_job_runs_on_one_device_and_on_two():
    """jobs/examples/demo.ini with fewer and shorter prompts; calibrating, profile and plan are its own."""
    demo = os.path.join(os.path.dirname(cli.TESTS), "jobs", "examples", "demo.ini")
    cache = {"XDG_CACHE_HOME": os.path.join(cli.WORK, "cache")}
    answers = []
    for devices in (1, 2):
        output = os.path.join(cli.WORK, "demo-%d" % devices)
        settings = (
            "job.output=" + output,
            "job.limit=20",
            "model.max_prompt_tokens=96",
            "model.truncate=left",
            "profile.sample=6",
            "profile.budget=48",
            "engine.devices=%d" % devices,
            "output.records_per_shard=5",
        )
        args = [word for setting in settings for word in ("-s", setting)]
        cli.command("run", demo, *args, env=cache).must(0, "done: 20 records")
        answers.append([r["text"] for r in Job("of-demo", output=output).rows()])
    assert answers[0] == answers[1] and len(answers[0]) == 20


@test
def two_devices_profile_plan_and_answer():
    job = small(
        "two", "profile.method=ada-snapkv", "profile.budget=48", "profile.sample=4", 'sampling.stop=["55"]'
    )
    rows = job.run()
    assert [r["source"]["line"] for r in rows] == list(range(1, 61))
    assert all(r["usage"]["prompt_tokens"] == 160 for r in rows)


@test
def two_replicas_profile_plan_and_answer():
    settings = ("profile.method=ada-snapkv", "profile.budget=48", "profile.sample=4", "job.limit=24")
    one = small("one-replica", *settings)
    one.run()
    two = small("two-replicas", *settings, "engine.data_parallel=2", "engine.devices=4")
    two.run()
    assert two.content() == one.content()


@test
def two_devices_stop_and_resume():
    whole = small("whole")
    whole.run()
    job = small("stopped")
    run = outputs.held_at(job, 5)
    run.interrupt(signal.SIGTERM)
    run.go_on()
    assert run.wait() == 75, run.text()
    job.run()
    assert job.content() == whole.content() and 5 <= job.stats()["resumed"] < 60


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
