"""engine.kv_cache: what the KV cache's numbers are, from the job to the answers."""

import json

import cli
from cli import Job, n_exact, test

PLAIN, FP8 = 2 * 64 * 4, 2 * (64 + 4)  # bytes of a token in a head of needle-tiny on the CPU
ADA = ("profile.method=ada", "profile.budget=135", "profile.sample=3")


def fp8(name, *settings):
    return Job(name, "engine.kv_cache=fp8", *settings)


@test
def fp8_answers_about_as_well_in_its_share_of_the_memory():
    for name, settings in (("full", ()), ("ada", ADA)):
        jobs = [Job(name, "job.limit=30", *settings), fp8(name + "-fp8", "job.limit=30", *settings)]
        right = [n_exact(job.run()) for job in jobs]
        assert right[0] >= 24 and abs(right[0] - right[1]) <= 2, right
        held = [job.stats()["kv_bytes"] for job in jobs]
        assert held[0] % PLAIN == 0 and held[1] % FP8 == 0, held
        assert abs(held[1] / held[0] * PLAIN / FP8 - 1) < 0.1, held  # answers may differ in length
        with open(jobs[1].file("job.ini")) as f:
            assert "\nkv_cache = fp8\n" in f.read()


@test
def fp8_rows_are_the_same_under_any_plan_on_any_number_of_threads():
    rows = []
    for i, settings in enumerate((("plan.mode=standard", "engine.threads=1"), ("plan.mode=fair-copying", "engine.devices=2"))):
        job = fp8("plans-%d" % i, "job.limit=12", "engine.tensor_parallel=4", *ADA, *settings)
        job.run()
        rows.append(job.content())
    assert rows[0] == rows[1]


@test
def a_resume_with_another_form_is_refused_and_an_older_output_goes_on():
    job = Job("older", "job.limit=6", "profile.method=uniform", "profile.budget=64")
    job.run()
    before = job.content()
    assert "engine.kv_cache" not in cli.load(job.file("manifest.json"))["identity"], "as older outputs have none"
    job.command("run", "-s", "engine.kv_cache=bf16").must(0, "nothing to do")
    job.command("run", "-s", "engine.kv_cache=fp8").must(
        2, 'engine.kv_cache was the default, is now "fp8"', "job.restart = yes")
    assert job.content() == before
    other = fp8("younger", "job.limit=6", "profile.method=uniform", "profile.budget=64")
    other.run()
    assert cli.load(other.file("manifest.json"))["identity"]["engine.kv_cache"] == "fp8"
    other.command("run").must(0, "nothing to do")
    other.command("run", "-s", "engine.kv_cache=bf16").must(2, 'engine.kv_cache was "fp8", is now the default')
    other.command("run", "-s", "engine.kv_cache=int4").must(2, "engine.kv_cache", "bf16", "fp8")


@test
def check_counts_the_smaller_pages():
    said = []
    for job in (Job("check", "job.limit=20"), fp8("check-fp8", "job.limit=20")):
        said.append(json.loads(job.command("check", "--json").must(0).out)["memory"])
    assert said[0]["rank_kv_bytes"] * FP8 == said[1]["rank_kv_bytes"] * PLAIN, said
    assert said[0]["device_bytes"] - said[1]["device_bytes"] == said[0]["rank_kv_bytes"] - said[1]["rank_kv_bytes"], said


cli.main()
