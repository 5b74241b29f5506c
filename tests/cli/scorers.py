"""profile.score and profile.sinks: what ranks a head's tokens, from the job to the answers."""

import os
import re

import cli
from cli import Job, n_exact, test

SCORERS = ("snapkv", "defensive", "critical", "keydiff", "expected")
SMALL = os.path.join(os.path.dirname(cli.TESTS), os.pardir, "shared", "models", "needle-small")
SHORT = "input.members=data/needle_500.jsonl"
ADA = ("profile.method=ada", "profile.budget=64", "profile.sample=3")


def must_be_planned(job, heads, budget):
    """Budgets sum to what was asked for, and the plan's predictions are in order, the bound first."""
    job.command("plan").must(0, "modelled decode step", "bound")
    for row in job.profile()["budgets"]:
        assert len(row) == heads and sum(row) == heads * budget, row
    p = job.plan()["predicted"]
    order = [p[k] for k in ("lower_bound_us", "fair_copying_us", "best_effort_us", "standard_us")]
    assert order[0] > 0 and all(a <= b * 1.000001 for a, b in zip(order, order[1:])), p


@test
def budgets_of_every_scorer_go_through_the_plan_and_its_bound():
    seen = set()
    for score in SCORERS:
        job = Job("plan-" + score, "job.limit=6", SHORT, *ADA, "profile.score=" + score, "profile.sinks=4",
                  "engine.tensor_parallel=4")
        must_be_planned(job, cli.KV_HEADS, 64)
        profile = job.profile()
        assert (profile["score"], profile["sinks"]) == (score, 4), profile
        assert all(b >= 36 + 14 for row in profile["budgets"] for b in row), "half of 28 beside sinks and window"
        seen.add(str(profile["budgets"]))
    assert len(seen) == 4, "of other scores, other budgets; critical counts by snapkv's"


@test
def budgets_on_the_larger_needle_model_go_through_the_plan_and_its_bound():
    if not os.path.isdir(SMALL):
        raise cli.Skip("needle-small is not there")
    for score in SCORERS:
        job = Job("small-" + score, "job.limit=6", SHORT, "profile.method=ada", "profile.budget=96", "profile.sample=2",
                  "model.path=" + SMALL, "profile.score=" + score, "engine.tensor_parallel=4")
        must_be_planned(job, 8, 96)


@test
def answers_come_from_what_each_scorer_keeps():
    texts = {}
    for score in SCORERS:
        job = Job("answers-" + score, "job.limit=10", *ADA, "profile.budget=135", "profile.score=" + score)
        rows = job.run()
        texts[score] = [r["text"] for r in rows]
        assert score == "expected" or n_exact(rows) >= 9, "%s: %d of 10" % (score, n_exact(rows))
        again = Job("answers-again-" + score, "job.limit=10", *ADA, "profile.budget=135", "profile.score=" + score,
                    "engine.tensor_parallel=1", "plan.mode=standard", "engine.threads=1")
        again.run()
        assert again.content() == job.content(), score
    assert texts["expected"] != texts["snapkv"]


@test
def the_old_name_of_ada_means_ada_and_an_old_output_goes_on():
    job = Job("old", "job.limit=4", SHORT, *ADA, "profile.method=ada-snapkv")
    job.run()
    before = job.content()
    identity = cli.load(job.file("manifest.json"))["identity"]
    assert identity["profile.method"] == "ada-snapkv", "as outputs have it that were made before"
    assert "profile.score" not in identity and "profile.sinks" not in identity
    with open(job.file("job.ini")) as f:
        assert "\nmethod = ada\n" in f.read()
    for settings in (("profile.method=ada",), ("profile.score=snapkv", "profile.sinks=0")):
        job.command("run", *[a for s in settings for a in ("-s", s)]).must(0)
        assert job.content() == before
    job.command("run", "-s", "profile.score=keydiff").must(
        2, 'profile.score was the default, is now "keydiff"')
    job.command("run", "-s", "profile.sinks=2").must(2, 'profile.sinks was the default, is now "2"')


@test
def check_plan_run_and_the_page_name_the_scorer():
    job = Job("named", "job.limit=4", SHORT, *ADA, "profile.score=keydiff", "profile.sinks=4")
    job.command("check").must(0, "score = keydiff", "the first 4 and the last 32 tokens, and others by keydiff")
    job.command("plan").must(0, "K and V is kept, by keydiff")
    job.command("run").must(0, "kept by keydiff")
    with open(job.file("report.html"), encoding="utf-8") as f:
        assert "keydiff (profile.score) ranks" in f.read()
    whole = Job("whole", "job.limit=2", SHORT)
    assert "tokens, and others by" not in whole.command("check").must(0).text
    whole.run()
    assert "score" not in whole.profile()


@test
def what_is_always_kept_must_be_in_the_budget():
    job = Job("forced", SHORT, *ADA, "profile.sinks=40")
    job.command("check").must(2, "profile.sinks", "40 and profile.window, 32, are more than profile.budget, 64")
    job.command("check", "-s", "profile.budget=72").must(0)
    percent = Job("percent", "job.limit=4", SHORT, *ADA, "profile.sinks=40", "profile.budget=1%")
    percent.command("plan").must(0)
    assert percent.profile()["budget"] == 72
    none = Job("none", "job.limit=4", SHORT, "profile.sinks=400", "profile.budget=64")
    none.command("check").must(0)  # keeps all


@test
def the_memory_of_the_output_projection_by_head_is_counted():
    bytes_of = {}
    for score in SCORERS:
        text = Job("bytes-" + score, "job.limit=2", SHORT, *ADA, "profile.score=" + score).command("check").must(0).text
        bytes_of[score] = float(re.search(r"([\d.]+) of weights", text).group(1))
    assert bytes_of["snapkv"] == bytes_of["keydiff"] == bytes_of["expected"]
    # 4 layers of 8 query heads: 64 columns of 128 rows, or 64 x 64
    hidden = cli.load(os.path.join(cli.TINY, "config.json"))["hidden_size"]
    assert abs(bytes_of["critical"] - bytes_of["snapkv"] - 4 * 8 * 64 * hidden * 4 / 2**20) < 0.11, bytes_of
    assert abs(bytes_of["defensive"] - bytes_of["snapkv"] - 4 * 8 * 64 * 64 * 4 / 2**20) < 0.11, bytes_of


cli.main()
