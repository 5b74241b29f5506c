"""plan.json: what it says about every head, and the order of its predictions."""

import json
import os
import subprocess
import xml.dom.minidom

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
def the_cost_model_is_calibrated_as_the_job_says():
    cache = os.path.join(cli.WORK, "cache")
    env = {"XDG_CACHE_HOME": cache}
    settings = ["job.limit=20", "profile.budgets_file=" + budgets_file("calibrated.json", BUDGETS["heavy"]),
                "engine.tensor_parallel=4", "engine.slots=16"]

    def cost(name, *more):
        job = Job("calibrated-" + name, *settings, *more)
        cli.command("plan", job.path, env=env).must(0)
        return job.plan()["cost"]

    assert cost("stated", "plan.calibration=stated")["origin"] == "stated"
    assert cost("standard", "plan.calibration=auto", "plan.mode=standard")["origin"] == "stated"
    assert not os.path.exists(cache), "something was measured that no plan depends on"

    def time_of(name, *more):
        job = Job("timed-" + name, *settings, *more)
        ended = cli.command("check", job.path, "--json", env=env).must(0)
        return json.loads(ended.out)["seconds"], json.loads(ended.out)["seconds_by"]

    assert time_of("unknown", "plan.calibration=auto") == (None, None)
    assert not os.path.exists(cache), "check measured something"
    seconds, by = time_of("stated")
    assert seconds > 0 and by == "stated"
    for i in range(20):  # other programs may disturb: then nothing is kept, and the log says so
        first = cost("first-%d" % i, "plan.calibration=auto")
        if os.path.exists(os.path.join(cache, "fairkv-batch")):
            break
    else:
        raise cli.Skip("the machine is too busy to measure anything")
    files = os.listdir(os.path.join(cache, "fairkv-batch"))
    assert first["origin"] == "measured" and len(files) == 1, (first, files)
    assert cost("again", "plan.calibration=auto") == first, "the cache was not used"
    kept = os.path.join(cache, "fairkv-batch", files[0])
    pinned = cost("pinned", "plan.calibration=" + kept)
    assert pinned["origin"] == "file" and pinned["token_us"] == first["token_us"]
    for name, setting, origin in (("auto", "auto", "measured"), ("pinned", kept, "file")):
        seconds, by = time_of(name, "plan.calibration=" + setting)
        assert seconds > 0 and by == origin, (name, seconds, by)

    damaged = cli.load(kept)
    damaged["token_us"] = -1
    path = cli.write("damaged-calibration.json", damaged)
    job = Job("calibrated-damaged", *settings, "plan.calibration=" + path)
    cli.command("plan", job.path, env=env).must(2, "damaged-calibration.json", "token_us")
    job = Job("calibrated-foreign", *settings, "engine.slots=17", "plan.calibration=" + kept)
    cli.command("plan", job.path, env=env).must(2, "slots")
    # A plan that is there is loaded with its constants, whatever the cache holds now.
    os.remove(kept)
    job = Job("calibrated-first-%d" % i, *settings, "plan.calibration=auto")
    before = job.plan()
    cli.command("plan", job.path, env=env).must(0)
    assert job.plan() == before and not os.listdir(os.path.join(cache, "fairkv-batch"))


@test
def a_calibration_that_can_not_be_kept_is_not_said_to_be():
    settings = ["job.limit=5", "profile.budgets_file=" + budgets_file("kept.json", BUDGETS["heavy"]),
                "engine.tensor_parallel=2", "engine.slots=4", "plan.calibration=auto"]
    nowhere = cli.write("a-file", "")
    for name, env in (("home", {"HOME": nowhere, "XDG_CACHE_HOME": ""}), ("xdg", {"XDG_CACHE_HOME": nowhere + "/x"})):
        job = Job("kept-" + name, *settings)
        done = cli.command("plan", job.path, env=env).must(0)
        assert "kept in" not in done.text, done.text
        # Told once: why it is not kept, or that nothing came of measuring.
        assert done.text.count("calibration: not kept") + done.text.count("calibration: not measured") == 1, done.text


@test
def ranks_that_share_a_device_are_told_so():
    settings = ["job.limit=5", "profile.method=uniform", "profile.budget=64"]
    told = Job("shared-told", *settings, "engine.tensor_parallel=4").command("plan")
    told.must(0, "4 ranks share 1 device", "engine.tensor_parallel = 1", "each rank on a device of its own")
    assert told.text.count("gains nothing and costs speed") == 1
    two = Job("shared-two", *settings, "engine.tensor_parallel=4", "engine.devices=2").command("plan")
    two.must(0, "4 ranks share 2 devices", "engine.tensor_parallel = 2")


@test
def auto_makes_no_ranks_that_share_a_device():
    for devices in ("auto", "1", "2", "4"):
        job = Job("shared-auto-" + devices, "job.limit=5", "profile.method=uniform", "profile.budget=64",
                  "engine.tensor_parallel=auto", "engine.devices=" + devices)
        done = job.command("plan").must(0)
        layout = job.plan()["layout"]
        assert layout["ranks"] == layout["devices"], layout
        assert "take turns" not in done.text, done.text


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
        "1 replica of 2 ranks on 1 device; 8 slots",
        "300 records in 1 member of 1 file",
        "prompts of up to ",
    )
    assert done.err == "", done.err
    assert not os.path.exists(job.output)


@test
def check_prints_a_job_file_that_means_the_same():

    job = Job("first", "job.limit=3")
    printed = job.command("check").must(0).out
    again = cli.write("again.ini", printed)
    said = cli.command("check", again).must(0).out
    assert said.split("\n;")[:4] == printed.split("\n;")[:4], said  # what is free changes
    job.run()
    cli.command("run", again).must(0, "nothing to do")  # the same job


# What the plan chooses, explains and refuses.

@test
def slots_auto_take_what_the_records_need_and_what_pays():
    path = budgets_file("auto.json", BUDGETS["heavy"])
    small = Job("auto-few", "job.limit=3", "profile.budgets_file=" + path, "engine.slots=auto", "engine.tensor_parallel=4")
    small.command("plan").must(0, "(auto)", "would fit, with standard")
    assert small.plan()["slots"] in (1, 2, 3), small.plan()["slots"]
    long = Job("auto-long", "job.limit=200", "profile.budgets_file=" + path, "engine.slots=auto", "engine.tensor_parallel=4",
               "input.max_new_tokens_by", "engine.max_new_tokens=900")
    long.command("plan").must(0)
    slots = long.plan()["slots"]
    assert 8 <= slots <= 64 and slots % 8 == 0, slots
    assert slots > small.plan()["slots"]


@test
def slots_auto_are_measured_on_the_engine_that_answers():
    """Whatever the machine's speed: a number that the records can fill, said with its reasons."""
    job = Job("auto-measured", "job.limit=12", "profile.method=uniform", "profile.budget=64", "engine.slots=auto",
              "plan.calibration=auto", "model.max_prompt_tokens=96", "model.truncate=left")
    done = job.command("run").must(0, "slots: ", " of 12 that fit and can be filled", "s for the job", "steps measured")
    assert done.text.count("steps measured") == 1
    slots = job.plan()["slots"]
    assert 1 <= slots <= 12 and job.plan()["layout"]["slots"] == slots
    assert job.stats()["decode_steps"] <= 12 * 12  # those that were measured are not counted
    # By the model the choice is the same on every machine.
    first, second = (Job("auto-stated-%d" % i, "job.limit=12", "engine.slots=auto") for i in range(2))
    first.command("plan").must(0, "steps by the cost model")
    second.command("plan").must(0)
    assert first.plan()["slots"] == second.plan()["slots"]


@test
def auto_is_chosen_once_and_a_rerun_keeps_it():
    job = Job("auto-once", "job.limit=12", "input.members=data/needle_500.jsonl", "profile.method=ada-snapkv",
              "profile.budget=64", "profile.sample=6", "engine.slots=auto", "engine.tensor_parallel=auto")
    job.command("plan").must(0, "ranks: 1 (auto)")
    slots, before = job.plan()["slots"], job.plan()
    rows = job.run()
    assert job.plan() == before and len(rows) == 12
    job.command("run", "-s", "engine.slots=%d" % (slots + 1)).must(2, "engine.slots")
    # The same answers as with these numbers written down.
    told = Job("auto-told", "job.limit=12", "input.members=data/needle_500.jsonl", "profile.method=ada-snapkv",
               "profile.budget=64", "profile.sample=6", "engine.slots=%d" % slots, "engine.tensor_parallel=1")
    assert cli.ids_of(told.run()) == cli.ids_of(rows)


@test
def devices_without_ranks_are_split_by_the_model():
    job = Job("split", "job.limit=20", "profile.method=uniform", "profile.budget=64", "engine.devices=4",
              "engine.tensor_parallel=auto", "engine.slots=8")
    job.command("plan").must(0, "each on a device: ", "s for the job by the cost model, ",
                             "split of the devices", "tensor_parallel  1", "tensor_parallel  2", "tensor_parallel  4",
                             "data_parallel", "(auto) on")
    assert job.plan()["ranks"] in (1, 2, 4)
    assert len(job.run()) == 20


@test
def a_small_gain_is_explained():
    one = Job("gain-one", "job.limit=5", "engine.tensor_parallel=1").command("plan")
    one.must(0, "whole step 1.00x", "one rank has nobody to share with")
    even = plan_command("gain-even", BUDGETS["even"], "engine.tensor_parallel=4")
    even.must(0, "little to gain: the budgets are even over the ranks")
    # Prompts far shorter than the largest budgets.
    short = plan_command("gain-short", [[100000, 2000, 2000, 2000]] * 4, "engine.tensor_parallel=4")
    short.must(0, "little to gain: by budgets the fullest rank has 3.77x the mean, but prompts of")
    heavy = plan_command("gain-heavy", BUDGETS["heavy"], "engine.tensor_parallel=4", "engine.slots=64")
    assert "little to gain" not in heavy.text, heavy.text


def plan_command(name, budgets, *settings):
    return Job(name, "job.limit=20", "profile.budgets_file=" + budgets_file(name + ".json", budgets), *settings).command("plan")


@test
def memory_that_can_not_be_had_is_refused_with_numbers():
    cli.needs_little_space()

    def limited(mib, name, *settings):
        job = Job(name, "job.limit=5", *settings)
        done = subprocess.run(["sh", "-c", "ulimit -v %d && exec \"$0\" run \"$1\"" % (mib << 10), cli.BINARY, job.path],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=cli.TIMEOUT_S)
        return cli.Ended(done.returncode, done.stdout, done.stderr), job

    done, job = limited(4096, "memory-enough")
    done.must(0)
    done, job = limited(64, "memory-slots", "engine.slots=4096")
    done.must(2, "MiB of weights and", "MiB of buffers and has", "lower engine.slots")
    assert job.rows() == []


@test
def budgets_at_the_window_and_one_slot_make_right_plans():
    plan = plan_of("window", [[32] * 4] * 4, "engine.tensor_parallel=4", "engine.slots=16")
    must_cover(plan, 4, 16)
    must_be_ordered(plan)
    assert copies_in(plan) == 0
    plan = plan_of("one-slot", BUDGETS["two-heavy"], "engine.tensor_parallel=4", "engine.slots=1")
    must_cover(plan, 4, 1)
    must_be_ordered(plan)
    job = Job("window-run", "job.limit=6", "input.members=data/needle_500.jsonl", "engine.tensor_parallel=4", "engine.slots=1",
              "profile.budgets_file=" + budgets_file("window-run.json", [[32] * 4] * 4))
    assert len(job.run()) == 6


@test
def scores_come_per_kv_head_or_per_query_head():
    """8 query heads are reduced to their 4 KV heads by the mean."""
    kv = [[4.0, 1, 1, 2], [1, 1, 6, 0], [1, 1, 1, 1], [0, 3, 0, 5]]
    query = [[x for v in row for x in (v / 2, v * 3 / 2)] for row in kv]
    budgets = []
    for name, scores in (("kv", kv), ("query", query)):
        job = Job("scores-" + name, "job.limit=8", "input.members=data/needle_500.jsonl", "profile.method=scores",
                  "profile.budget=64", "profile.floor=0.2", "engine.tensor_parallel=4",
                  "profile.scores_file=" + cli.write("scores-%s.json" % name, {"scores": scores}))
        job.command("plan").must(0)
        budgets.append(job.profile()["budgets"])
        assert len(job.run()) == 8
        must_cover(job.plan(), 4, 8)
    assert budgets[0] == budgets[1]
    total, weights = sum(sum(r) for r in budgets[0]), sum(map(sum, kv))
    assert total == 16 * 64, total
    for l in range(4):
        for h in range(4):
            exact = 32 + 0.2 * 32 + 0.8 * 32 * 16 * kv[l][h] / weights
            assert abs(budgets[0][l][h] - exact) <= 1, (l, h, budgets[0][l][h], exact)


@test
def the_picture_is_xml_with_both_panels_and_every_budget():
    for name, settings in (("few", ["engine.tensor_parallel=4"]), ("one", ["engine.tensor_parallel=1", "plan.mode=standard"])):
        svg = os.path.join(cli.WORK, name + ".svg")
        job = Job("svg-" + name, "job.limit=8", 'job.name=<b> & "quotes"',
                  "profile.budgets_file=" + budgets_file("svg.json", BUDGETS["heavy"]), *settings)
        job.command("plan", "--svg", svg).must(0)
        root = xml.dom.minidom.parse(svg).documentElement
        titles = [t.firstChild.data for t in root.getElementsByTagName("title")]
        assert titles[0] == 'Fair-Copying plan of <b> & "quotes"', titles[0]
        ranks = int(settings[0][-1])
        assert sum("rank" in t for t in titles) == 2 * 4 * ranks
        assert "layer 1, head 2: 800 tokens" in titles and sum(", head " in t for t in titles) == 16
        texts = " ".join(t.firstChild.data for t in root.getElementsByTagName("text"))
        for word in ("Before (standard)", "After (", "KV head", "layer", "thousand tokens a step", "slowest rank"):
            assert word in texts, word
        style = root.getElementsByTagName("style")[0].firstChild.data
        assert "prefers-color-scheme:dark" in style and "currentColor" in style
    job.command("plan", "--svg").must(2, "--svg: its value is missing", "usage:")
    job.command("plan", "--svg", "a.svg", "--svg=b.svg").must(2, "--svg is there twice")
    job.command("plan", "--svg", os.path.join(cli.WORK, "no", "such.svg")).must(3, "such.svg")


cli.main()
