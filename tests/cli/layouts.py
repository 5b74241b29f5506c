"""Where work is done never changes an answer: plan modes, ranks, slots, devices."""

import os

import cli
from cli import Job, budgets_file, golden, ids_of, test

HEAVY = [[800, 40, 32, 32], [32, 48, 800, 32]] * 2


N = 8 if cli.sanitized() else 20


def short(name, *settings):
    """A job over N prompts of about 450 tokens."""
    return Job(name, "input.members=data/needle_500.jsonl", "job.limit=%d" % N, *settings)


@test
def plan_modes_ranks_and_slots_give_the_same_ids():
    path = budgets_file("golden.json", golden()["ada-snapkv-64"]["budgets"])
    first, worst = None, 0
    for ranks in (1, 2, 4):
        for slots in (1, 3, 16):
            here = None
            for mode in ("standard", "best-effort", "fair-copying"):
                if mode == "best-effort" and slots == 1:
                    continue
                job = short(
                    "layout-%d-%d-%s" % (ranks, slots, mode),
                    "profile.budgets_file=" + path,
                    "engine.tensor_parallel=%d" % ranks,
                    "engine.slots=%d" % slots,
                    "plan.mode=" + mode,
                )
                ids = ids_of(job.run())
                first, here = first or ids, here or ids
                assert len(ids) == N and all(i for _, i in ids)
                assert ids == here, "%s changes answers at %d ranks, %d slots" % (mode, ranks, slots)
                worst = max(worst, sum(a != b for a, b in zip(ids, first)))
    # Other ranks or slots may round otherwise, which only near-ties show.
    assert worst <= 1, "%d of %d answers differ between layouts" % (worst, N)


@test
def copied_heavy_heads_give_the_same_ids():
    path, runs = budgets_file("heavy.json", HEAVY), []
    for mode in ("standard", "best-effort", "fair-copying"):
        job = Job(
            "heavy-" + mode,
            "job.limit=%d" % N,
            "profile.budgets_file=" + path,
            "engine.tensor_parallel=4",
            "engine.slots=16",
            "plan.mode=" + mode,
        )
        runs.append(ids_of(job.run()))
        away = sum(
            p["rank"] != h["home"]
            for layer in job.plan()["layers"]
            for h in layer["heads"]
            for p in h["placements"]
        )
        assert away == 0 if mode == "standard" else away > 0 or mode == "best-effort", (mode, away)
    assert runs[0] == runs[1] == runs[2]


@test
def two_devices_give_one_device_s_output():
    path = budgets_file("heavy.json", HEAVY)
    for ranks in (2, 4):
        runs = []
        for devices in (1, 2):
            job = short(
                "devices-%d-%d" % (ranks, devices),
                "profile.budgets_file=" + path,
                "engine.tensor_parallel=%d" % ranks,
                "engine.devices=%d" % devices,
            )
            job.run()
            runs.append(job.content())
        assert runs[0] == runs[1], "%d ranks" % ranks


@test
def two_devices_measure_one_device_s_profile():
    runs = []
    for devices in (1, 2):
        job = short(
            "profile-devices-%d" % devices,
            "job.limit=8",
            "profile.method=ada-snapkv",
            "profile.budget=64",
            "profile.sample=8",
            "engine.tensor_parallel=4",
            "engine.devices=%d" % devices,
        )
        job.command("plan").must(0)
        runs.append(job.profile()["budgets"])
    assert runs[0] == runs[1]


@test
def a_budget_of_the_whole_prompt_gives_the_uncompressed_ids():
    path = budgets_file("whole.json", [[2048] * cli.KV_HEADS] * cli.LAYERS)
    for ranks in (1, 4):
        here = ["engine.tensor_parallel=%d" % ranks]
        plain = ids_of(Job("plain-%d" % ranks, "job.limit=6", *here).run())
        kept = ids_of(Job("kept-%d" % ranks, "job.limit=6", "profile.budgets_file=" + path, *here).run())
        ada = ids_of(
            Job(
                "ada-%d" % ranks, "job.limit=6", "profile.method=ada-snapkv", "profile.budget=2047", *here
            ).run()
        )
        assert plain == kept == ada, "%d ranks" % ranks


@test
def a_record_s_answer_does_not_depend_on_its_neighbours():
    """The same records alone, in another order, and beside long prompts."""
    records = [
        {"id": "r%d" % i, "prompt": cli.needle_prompt(cli.one_record())[: 600 + 350 * i]} for i in range(8)
    ]
    path = budgets_file("small.json", [[64, 40, 90, 36]] * cli.LAYERS)
    settings = ["profile.budgets_file=" + path, "engine.tensor_parallel=2", "engine.slots=4"]
    forward = dict(ids_of(cli.PromptJob("forward", records, *settings).run()))
    backward = dict(ids_of(cli.PromptJob("backward", records[::-1], *settings).run()))
    alone = dict(ids_of(cli.PromptJob("alone", records[5:6], *settings).run()))
    assert forward == backward and alone["r5"] == forward["r5"]


@test
def records_longer_than_the_sample_lets_expect_are_answered_all_the_same():
    """Prefill's buffers and the page table follow the sample; what is longer makes them anew."""
    text = cli.needle_prompt(cli.one_record())
    short = [{"id": "s%d" % i, "prompt": text[: 300 + 40 * i], "max_tokens": 6} for i in range(9)]
    # More tokens for its bytes than any other, and more new ones.
    dense = {"id": "dense", "prompt": "#%~^|" * 300, "max_tokens": 6}
    wordy = {"id": "wordy", "prompt": text[:300], "max_tokens": 1600}
    settings = ["engine.slots=3", "engine.tensor_parallel=2", "profile.sample=1", "profile.method=uniform",
                "profile.budget=64"]
    for name, longer, expected in (("dense", dense, 1), ("wordy", wordy, 1), ("none", short[0], 0)):
        records = short[:5] + [dict(longer, id="longer")] + short[5:]
        job = cli.PromptJob("longer-" + name, records, *settings)
        done = job.command("run").must(0)
        assert done.text.count("longer than the sample let expect") == expected, done.text
        layout = job.plan()["layout"]
        assert layout["max_prompt"] == 1024 and layout["max_tokens"] < 1400, layout
        # With a sample of all records nothing has to grow.
        whole = cli.PromptJob("whole-" + name, records, *settings, "profile.sample=64")
        done = whole.command("run").must(0)
        assert "longer than" not in done.text, done.text
        assert ids_of(job.rows()) == ids_of(whole.rows())
    assert whole.plan()["layout"]["max_prompt"] == 1024


@test
def the_number_of_processors_changes_nothing():
    """The same bytes when the process may use one processor only."""

    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        raise cli.Skip("one processor")
    job = short("all-processors", "job.limit=8")
    job.run()
    one = short("one-processor", "job.limit=8")
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        one.run()
    finally:
        os.sched_setaffinity(0, allowed)
    assert job.content() == one.content()


cli.main()
