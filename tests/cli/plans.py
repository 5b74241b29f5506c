"""plan.json: what it says about every head, and the order of its predictions."""

import os

import cli
from cli import Job, budgets_file, golden, test


def plan_of(name, budgets, *settings):
    job = Job(
        name, "job.limit=20", "profile.budgets_file=" + budgets_file(name + ".json", budgets), *settings
    )
    job.command("plan").must(0, "modelled decode step", "standard", "best-effort", "fair-copying", "bound")
    return job.plan()


def copies_in(plan):
    return sum(
        p["rank"] != h["home"] for layer in plan["layers"] for h in layer["heads"] for p in h["placements"]
    )


def must_cover(plan, ranks, slots):
    """Every slot of every head once, by ranks that there are, homes as standard has them."""
    assert (plan["ranks"], plan["slots"]) == (ranks, slots)
    assert len(plan["layers"]) == 4
    for layer in plan["layers"]:
        assert [h["head"] for h in layer["heads"]] == [0, 1, 2, 3]
        for h in layer["heads"]:
            home = next(r for r in range(ranks) if r * 4 // ranks <= h["head"] < (r + 1) * 4 // ranks)
            assert h["home"] == home, h
            served = [s for p in h["placements"] for s in range(*p["slots"])]
            assert sorted(served) == list(range(slots)), h
            assert all(p["slots"][0] < p["slots"][1] and 0 <= p["rank"] < ranks for p in h["placements"]), h


def must_be_ordered(plan):
    p = plan["predicted"]
    bound, fair, best, standard = (
        p[k] for k in ("lower_bound_us", "fair_copying_us", "best_effort_us", "standard_us")
    )
    assert 0 < bound <= fair * 1.000001 and fair <= best * 1.000001 and best <= standard * 1.000001, p


BUDGETS = {
    "golden": golden()["ada-snapkv-64"]["budgets"],
    "even": [[64] * 4] * 4,
    "heavy": [[800, 32, 32, 32], [32, 32, 800, 32]] * 2,
    "two-heavy": [[500, 500, 32, 32]] * 4,
}


@test
def every_slot_is_covered_once_in_every_mode():
    for name, budgets in BUDGETS.items():
        for mode in ("standard", "best-effort", "fair-copying"):
            for ranks, slots in ((1, 1), (2, 3), (3, 16), (4, 16)):
                plan = plan_of(
                    "cover-%s-%s-%d" % (name, mode, ranks),
                    budgets,
                    "plan.mode=" + mode,
                    "engine.tensor_parallel=%d" % ranks,
                    "engine.slots=%d" % slots,
                )
                assert plan["mode"] == mode
                must_cover(plan, ranks, slots)
                must_be_ordered(plan)


@test
def modes_move_heads_as_they_say():
    for name, budgets in BUDGETS.items():
        for mode in ("standard", "best-effort", "fair-copying"):
            plan = plan_of(
                "mode-%s-%s" % (name, mode),
                budgets,
                "plan.mode=" + mode,
                "engine.tensor_parallel=4",
                "engine.slots=16",
            )
            pieces = [len(h["placements"]) for layer in plan["layers"] for h in layer["heads"]]
            if mode == "standard":
                assert copies_in(plan) == 0 and set(pieces) == {1}
            if mode == "best-effort":
                assert set(pieces) == {1}


@test
def heavy_heads_are_copied_and_it_pays():
    plan = plan_of("copies", BUDGETS["heavy"], "engine.tensor_parallel=4", "engine.slots=64")
    assert copies_in(plan) >= 4, plan["predicted"]
    assert plan["predicted"]["fair_copying_us"] < 0.75 * plan["predicted"]["standard_us"], plan["predicted"]


@test
def even_budgets_need_no_copies():
    plan = plan_of("even", BUDGETS["even"], "engine.tensor_parallel=4", "engine.slots=16")
    assert copies_in(plan) == 0
    assert plan["predicted"]["fair_copying_us"] == plan["predicted"]["standard_us"]


@test
def max_copies_limits_the_copies_of_a_layer():
    for most in (0, 1, 2):
        for mode in ("best-effort", "fair-copying"):
            plan = plan_of(
                "max-%s-%d" % (mode, most),
                BUDGETS["two-heavy"],
                "plan.mode=" + mode,
                "plan.max_copies=%d" % most,
                "engine.tensor_parallel=4",
                "engine.slots=32",
            )
            must_be_ordered(plan)
            for layer in plan["layers"]:
                assert copies_in({"layers": [layer]}) <= most, layer


@test
def the_files_have_the_documented_form():
    job = Job(
        "form", "job.limit=20", "profile.method=uniform", "profile.budget=64", "engine.tensor_parallel=2"
    )
    job.command("plan").must(0, "budgets: 64 to 64 tokens a head", "plan: fair-copying, 2 ranks, 8 slots")
    plan, profile = job.plan(), job.profile()
    assert plan["format"] == "fairkv-plan/1" and plan["mode"] == "fair-copying"
    assert set(plan["predicted"]) >= {"standard_us", "best_effort_us", "fair_copying_us", "lower_bound_us"}
    assert set(plan["layers"][0]["heads"][0]) >= {"head", "home", "placements"}
    assert profile["format"] == "fairkv-profile/1" and profile["budgets"] == [[64] * 4] * 4
    assert (profile["n_layers"], profile["n_kv_heads"], profile["budget"]) == (4, 4, 64)
    assert "model" in profile


@test
def a_plan_is_made_once_and_the_run_uses_it():
    job = Job(
        "once",
        "job.limit=8",
        "profile.budgets_file=" + budgets_file("once.json", BUDGETS["heavy"]),
        "engine.tensor_parallel=4",
    )
    job.command("plan").must(0)
    with open(job.file("plan.json"), "rb") as f:
        before = f.read()
    job.command("plan").must(0)
    rows = job.run()
    with open(job.file("plan.json"), "rb") as f:
        assert f.read() == before
    assert len(rows) == 8


@test
def planning_answers_no_record():
    job = Job("no-records", "job.limit=8")
    job.command("plan").must(0)
    assert job.rows() == []


@test
def check_writes_nothing_and_prints_what_would_run():

    job = Job("checked", "engine.tensor_parallel=2", "plan.mode=standard")
    done = job.command("check").must(
        0,
        "tensor_parallel = 2",
        "mode = standard",
        "4 layers, 8 query and 4 KV heads of 64",
        "vocabulary 1024",
        "2 ranks on 1 devices, 8 slots",
        "1 input files",
        "prompts of up to ",
    )
    assert done.err == "", done.err
    assert not os.path.exists(job.output)


@test
def check_prints_a_job_file_that_means_the_same():

    job = Job("first", "job.limit=3")
    printed = job.command("check").must(0).out
    again = cli.write("again.ini", printed)
    assert cli.command("check", again).must(0).out == printed
    job.run()
    cli.command("run", again).must(0, "nothing to do")  # the same job


cli.main()
