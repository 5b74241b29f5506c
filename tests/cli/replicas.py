"""Replicas answer side by side, and nothing in the output says how many there were."""

import signal

import cli
import outputs
from cli import Job, test

N = 16 if cli.sanitized() else 40


def small(name, replicas, *settings):
    """A job with a measured profile whose prompts and records several replicas share."""
    return Job(
        name,
        "input.members=data/needle_500.jsonl",
        "job.limit=%d" % N,
        "model.max_prompt_tokens=200",
        "model.truncate=left",
        "profile.method=ada-snapkv",
        "profile.budget=48",
        "profile.sample=7",
        "engine.data_parallel=%d" % replicas,
        "engine.tensor_parallel=2",
        "engine.slots=3",
        "output.records_per_shard=7",
        *settings
    )


def bytes_of(job, name):
    with open(job.file(name), "rb") as f:
        return f.read()


def must_be_alike(job, other):
    assert job.content() == other.content()
    for name in ("profile.json", "plan.json"):
        assert bytes_of(job, name) == bytes_of(other, name), name


@test
def one_two_and_three_replicas_write_the_same_bytes():
    one = small("one", 1)
    one.command("run").must(0, "2 ranks, 3 slots")
    for n in (2, 3):
        job = small("of-%d" % n, n)
        job.command("run").must(0, "%d replicas of 2 ranks, 3 slots" % n, "done: %d records" % N)
        must_be_alike(job, one)
        # Counts are of all replicas together, ranks those of one.
        stats, alone = job.stats(), one.stats()
        for key in ("records", "prompt_tokens", "completion_tokens", "prefill_tokens", "slots"):
            assert stats[key] == alone[key], key
        assert len(stats["rank_attention_seconds"]) == 2
        assert stats["decode_steps"] >= alone["decode_steps"]


@test
def replicas_on_two_devices_each_write_what_one_does():
    one = small("devices-one", 1, "engine.devices=2")
    one.run()
    two = small("devices-two", 2, "engine.devices=4")
    two.command("run").must(0, "2 replicas of 2 ranks")
    must_be_alike(two, one)
    assert two.plan()["devices"] == two.plan()["layout"]["devices"] == 2
    assert "replicas" not in two.plan()["layout"]


@test
def devices_beyond_the_ranks_become_replicas():
    job = Job("beyond", "job.limit=8", "engine.devices=4", "engine.tensor_parallel=2", "engine.slots=2")
    job.command("run").must(0, "2 replicas of 2 ranks")
    told = Job("beyond-told", "job.limit=8", "engine.devices=4", "engine.tensor_parallel=2",
               "engine.data_parallel=1", "engine.slots=2")
    told.command("run").must(2, "engine.devices: 4 devices for 2 ranks")


@test
def a_killed_run_goes_on_with_another_number():
    whole = small("kill-whole", 1)
    whole.run()
    for first, then in ((2, 3), (3, 1), (1, 2)):
        job = small("kill-%d-%d" % (first, then), first)
        run = outputs.held_at(job, 5)
        run.stop(signal.SIGKILL)
        job.command("run", "-s", "engine.data_parallel=%d" % then).must(0, "resuming: ")
        must_be_alike(job, whole)
        assert job.stats()["resumed"] >= 5


@test
def a_signal_lets_every_replica_end_what_it_has_begun():
    whole = small("signal-whole", 1)
    whole.run()
    job = small("signal", 3, "job.grace=100")
    run = outputs.held_at(job, 3)
    run.interrupt(signal.SIGTERM)
    run.go_on()
    assert run.wait() == 75, run.text()
    assert run.text().count("no more records are begun") == 1, run.text()
    assert 3 <= len(outputs.rows_written(job)) < N
    job.command("run", "-s", "engine.data_parallel=2").must(0)
    must_be_alike(job, whole)


@test
def parts_may_have_unlike_numbers():
    whole = small("part-whole", 1)
    whole.run()
    job = small("part", 2)
    job.command("run", "-s", "input.part=0/2").must(0)
    job.command("run", "-s", "input.part=1/2", "-s", "engine.data_parallel=3").must(0)
    must_be_alike(job, whole)


@test
def long_records_make_a_replica_s_buffers_anew():
    text = cli.needle_prompt(cli.one_record())
    records = [{"id": "r%d" % i, "prompt": text[: 300 + 20 * i], "max_tokens": 6} for i in range(20)]
    for i in (4, 5, 11, 17):
        records[i] = {"id": "long%d" % i, "prompt": "#%~^|" * (300 + i), "max_tokens": 6}
    jobs = []
    for n in (1, 3):
        job = cli.PromptJob("grow-%d" % n, records, "engine.slots=2", "profile.sample=1", "profile.method=uniform",
                            "profile.budget=64", "engine.data_parallel=%d" % n)
        job.command("run").must(0, "longer than the sample let expect")
        jobs.append(job)
    assert cli.ids_of(jobs[0].rows()) == cli.ids_of(jobs[1].rows())
    assert bytes_of(jobs[0], "plan.json") == bytes_of(jobs[1], "plan.json")


@test
def few_records_keep_no_replica_from_ending():
    """Fewer than there are replicas, and none at all for this part."""
    one = small("few-one", 1, "job.limit=2")
    one.run()
    four = small("few-four", 4, "job.limit=2")
    four.run()
    must_be_alike(four, one)
    part = small("few-part", 2, "job.limit=2", "input.part=1/2")
    part.command("run").must(0, "done: 0 records")


@test
def an_error_limit_ends_all_replicas():
    job = small("limit", 3, "job.max_errors=1", "input.archives=" + cli.write("bad.jsonl", b"[]\n" * 40),
                "input.members=*", "profile.method=uniform")
    job.command("run").must(2, "job.max_errors")


@test
def a_profile_does_not_depend_on_the_devices_that_auto_has():
    """The sample is measured on as few ranks as can hold it, whatever the plan chooses then."""
    profiles = []
    for devices in (1, 2, 4):
        job = small("auto-%d" % devices, 1, "engine.data_parallel=auto", "engine.tensor_parallel=auto",
                    "engine.devices=%d" % devices)
        done = job.command("plan").must(0, "split of the devices", "data_parallel", "job s", "(auto) on")
        layout = job.plan()["layout"]
        assert "in %d replicas (auto)" % (devices // layout["ranks"]) in done.out, done.out
        profiles.append(bytes_of(job, "profile.json"))
    assert profiles[0] == profiles[1] == profiles[2]
    # The plan's ranks stay, on fewer devices and on more.
    job.command("run", "-s", "engine.devices=2").must(0)
    again = small("auto-again", 1, "engine.data_parallel=auto", "engine.tensor_parallel=auto", "engine.devices=4")
    again.run()
    must_be_alike(again, job)


cli.main()
