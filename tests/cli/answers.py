"""The answers of needle-tiny against those of an independent float32 reference."""

import os
import shutil

import cli
from cli import Job, golden, must_match, n_exact, test


@test
def the_whole_cache_gives_the_reference_ids():
    rows = Job("full", "job.limit=20").run()
    assert len(rows) == 20
    must_match(rows, golden()["full"]["first"])
    assert n_exact(rows) == 20


@test
def a_uniform_budget_gives_the_reference_ids():
    rows = Job("uniform", "job.limit=20", "profile.method=uniform", "profile.budget=64").run()
    must_match(rows, golden()["uniform-64"]["first"], may_differ=1)


@test
def budgets_from_a_file_give_the_reference_ids():
    want = golden()["ada-snapkv-64"]
    job = Job(
        "budgets", "job.limit=20", "profile.budgets_file=" + cli.budgets_file("golden.json", want["budgets"])
    )
    must_match(job.run(), want["first"], may_differ=1)
    assert job.profile()["budgets"] == want["budgets"]


@test
def a_profile_of_some_records_has_exact_sums():
    """Every layer's budgets sum to its heads times the mean, floors and window kept."""
    for name, budget, floor in (("low", 64, 0.5), ("all-floor", 100, 1), ("no-floor", 77, 0)):
        job = Job(
            "profile-" + name,
            "job.limit=10",
            "profile.method=ada-snapkv",
            "profile.sample=4",
            "profile.budget=%d" % budget,
            "profile.floor=%g" % floor,
        )
        job.command("plan").must(0)
        profile = job.profile()
        assert profile["format"] == "fairkv-profile/1" and profile["budget"] == budget
        assert (profile["n_layers"], profile["n_kv_heads"]) == (cli.LAYERS, cli.KV_HEADS)
        for row in profile["budgets"]:
            assert sum(row) == budget * len(row) and min(row) >= 32, profile["budgets"]
            assert floor < 1 or row == [budget] * len(row), row
        assert len(profile["sample"]["prompt_tokens"]) == 4


@test
def a_budget_in_percent_is_that_share_of_the_mean_prompt():
    job = Job("percent", "job.limit=20", "profile.method=uniform", "profile.sample=20", "profile.budget=10%")
    job.command("plan").must(0)
    lengths = [g["prompt_tokens"] for g in golden()["full"]["first"]]
    assert sorted(job.profile()["sample"]["prompt_tokens"]) == sorted(lengths)
    want = round(sum(lengths) / len(lengths) / 10)
    assert all(b == want for row in job.profile()["budgets"] for b in row), job.profile()


@test
def scores_from_a_file_share_out_the_budget():
    # window 32, mean 64, floor 0.5: every head has 32 + 16, the other 16 * 16 go by score.
    scores = [[1, 0, 0, 0], [0, 3, 0, 0], [0, -5, 0, 0], [2, 2, 0, 0]]
    path = cli.write("scores.json", {"scores": scores})
    job = Job(
        "scores", "job.limit=4", "profile.method=scores", "profile.budget=64", "profile.scores_file=" + path
    )
    job.run()
    assert job.profile()["budgets"] == [
        [48 + 32, 48, 48, 48],
        [48, 48 + 96, 48, 48],
        [48] * 4,
        [48 + 64, 48 + 64, 48, 48],
    ]
    by_query_head = [[x for s in row for x in (s - 0.5, s + 0.5)] for row in [[2, 1, 1, 0]] * 4]
    path = cli.write("scores-query.json", {"scores": by_query_head})
    job = Job(
        "scores-query",
        "job.limit=4",
        "profile.method=scores",
        "profile.budget=64",
        "profile.scores_file=" + path,
    )
    job.command("plan").must(0)
    # Query heads -0.5 and 0.5 give a mean of 0, not of 0.25: they are reduced before negative ones become 0.
    assert job.profile()["budgets"] == [[48 + 32, 48 + 16, 48 + 16, 48]] * 4, job.profile()["budgets"]


@test
def a_profile_of_none_keeps_the_longest_prompt():
    job = Job("none", "job.limit=2", "model.max_prompt_tokens=1500")
    job.command("plan").must(0)
    assert all(b == 1500 for row in job.profile()["budgets"] for b in row), job.profile()


@test
def made_up_weights_need_no_files_and_are_the_same_each_time():
    folder = os.path.join(cli.WORK, "no-weights")
    os.mkdir(folder)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(os.path.join(cli.TINY, name), folder)
    job = Job("no-weights-files", "job.limit=3", "model.path=" + folder)
    job.command("run").must(2, "model.safetensors", "No such file")
    runs = []
    for name, seed in (("dummy", 1), ("dummy-again", 1), ("dummy-other", 2)):
        job = Job(name, "job.limit=3", "model.path=" + folder, "model.weights=dummy", "job.seed=%d" % seed)
        runs.append(cli.ids_of(job.run()))
    assert runs[0] == runs[1] != runs[2]
    assert all(ids for _, ids in runs[0])


@test
def a_stop_token_that_is_not_flagged_special_is_no_text():
    """It counts in completion_tokens and ids."""
    folder = os.path.join(cli.WORK, "plain-stop")
    shutil.copytree(cli.TINY, folder)
    path = os.path.join(folder, "tokenizer.json")
    tokenizer = cli.load(path)
    stop = cli.load(os.path.join(folder, "config.json"))["eos_token_id"]
    for token in tokenizer["added_tokens"]:
        if token["id"] == stop:
            token["special"] = False
    cli.write("plain-stop/tokenizer.json", tokenizer)
    want = Job("special-stop", "job.limit=8").run()
    rows = Job("plain-stop-job", "job.limit=8", "model.path=" + folder).run()
    assert any(r["finish_reason"] == "stop" and r["ids"][-1] == stop for r in rows), rows
    for row, other in zip(rows, want):
        assert row["usage"]["completion_tokens"] == len(row["ids"])
        assert (row["text"], row["ids"], row["usage"]) == (other["text"], other["ids"], other["usage"])


cli.main()
