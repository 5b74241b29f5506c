"""The whole set of 300 records: exact answers and the measured profile, against the reference."""

import cli
from cli import Job, golden, must_match, n_exact, test


@test
def the_whole_cache_answers_all_300_exactly():
    rows = Job("full").run()
    assert len(rows) == 300 and [r["source"]["line"] for r in rows] == list(range(1, 301))
    assert n_exact(rows) == golden()["full"]["exact"] == 300
    must_match(rows, golden()["full"]["first"])


@test
def a_uniform_budget_answers_as_many_as_the_reference():
    want = golden()["uniform-64"]
    rows = Job("uniform", "profile.method=uniform", "profile.budget=64").run()
    assert abs(n_exact(rows) - want["exact"]) <= 3, n_exact(rows)
    must_match(rows, want["first"], may_differ=1)


@test
def a_profile_of_the_whole_set_is_the_reference_s():
    want = golden()["ada-snapkv-64"]
    job = Job("profiled", "profile.method=ada-snapkv", "profile.budget=64", "profile.sample=300")
    rows = job.run()
    got = job.profile()["budgets"]
    worst = max(abs(a - b) for x, y in zip(got, want["budgets"]) for a, b in zip(x, y))
    assert worst <= 1, (got, want["budgets"])
    assert all(sum(row) == 64 * len(row) for row in got), got
    assert abs(n_exact(rows) - want["exact"]) <= 3, n_exact(rows)
    must_match(rows, want["first"], may_differ=1)


cli.main()
