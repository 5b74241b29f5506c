"""Runs that stop halfway and go on, several processes on one output, and refused resumes."""

import os
import signal

import cli
import outputs
from cli import Job, Running, command, test

SHARD = "output.records_per_shard=4"


# Sanitizers slow a run down as much as short prompts speed it up.
CUT = ["model.max_prompt_tokens=128", "model.truncate=left"] if cli.sanitized() else []


def short(name, *settings, **options):
    return Job(name, "input.members=data/needle_500.jsonl", "job.limit=48", SHARD, *CUT, *settings, **options)


_whole = {}


def whole():
    """The shards of short() by a run that nothing interrupted."""
    if not _whole:
        job = short("whole")
        job.run()
        _whole.update(job.content())
        assert len(_whole) == 12
    return _whole


def killed_at(job, n):
    """Kills a run of job that has answered n records more than were there."""
    assert outputs.held_at(job, n).stop(signal.SIGKILL) == -signal.SIGKILL
    outputs.wait_for_the_lock(job)


def size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


@test
def killed_at_several_places_it_still_ends_with_the_same_bytes():
    want = whole()
    job = short("killed")
    for n in (9, 13, 10):
        killed_at(job, n)
    job.command("run").must(0, "resuming: 32 records")
    stats = job.stats()
    assert job.content() == want
    assert stats["resumed"] == 32 and stats["records"] == 48 and stats["complete"] is True, stats
    # Only the rest was done again.
    rest = sum(sorted(r["usage"]["prompt_tokens"] for r in job.rows())[stats["resumed"] :])
    assert 0 < stats["prompt_tokens"] <= rest, stats


@test
def rows_in_no_shard_yet_survive_a_kill():
    job = short("journal", "output.records_per_shard=1000")
    killed_at(job, 7)
    assert job.shards() == []
    job.run()
    assert job.stats()["resumed"] == 7, job.stats()
    whole_job = short("journal-whole", "output.records_per_shard=1000")
    whole_job.run()
    assert job.content() == whole_job.content() and len(job.shards()) == 1


def without_kept_tokens(job, manifest="manifest.json"):
    """Makes the manifest what a build wrote whose rows had no usage.kept_tokens. Error rows are as they were."""
    values = cli.load(job.file(manifest))
    assert values["run"].pop("rows") == "2"
    cli.write(job.file(manifest), values)


@test
def an_output_begun_before_rows_had_kept_tokens_goes_on_without():
    """Else its rows would differ in their keys."""
    lines = [b"no JSON"] * 3 + [{"id": i, "prompt": "The number"} for i in range(5)]
    for name, settings in (("older", []), ("older-auto", ["input.part=auto"])):
        job = cli.PromptJob(name, lines, "output.records_per_shard=3", "engine.slots=1", *settings)
        run = Running(job, hold="records 0").until_held()
        run.until(lambda: len(outputs.rows_written(job)) == 3, "the error rows")
        assert run.stop(signal.SIGKILL) == -signal.SIGKILL
        outputs.wait_for_the_lock(job)
        without_kept_tokens(job)
        rows = job.run(1)
        assert len(rows) == 8 and not any("kept_tokens" in (row["usage"] or {}) for row in rows), rows
        assert settings or job.stats()["resumed"] == 3, job.stats()
        assert "rows" not in cli.load(job.file("manifest.json"))["run"]


@test
def a_part_s_rows_have_the_keys_of_the_parts_before():
    lines = [{"id": i, "prompt": "The number"} for i in range(4)]
    job = cli.PromptJob("older-parts", lines, "output.records_per_shard=2")
    command("run", job.path, "-s", "input.part=0/2").must(0)
    without_kept_tokens(job, "manifest-0of2.json")
    command("run", job.path, "-s", "input.part=1/2").must(0)
    kept = ["kept_tokens" in row["usage"] for row in job.rows()]
    assert kept == [True, True, False, False], kept  # the first two are of this build


@test
def rows_of_a_later_build_are_refused():
    job = short("later-rows", "job.limit=8")
    killed_at(job, 5)
    manifest = cli.load(job.file("manifest.json"))
    manifest["run"]["rows"] = "3"
    cli.write(job.file("manifest.json"), manifest)
    for which in ("run", "check"):
        job.command(which).must(2, 'run.rows was "3", is now "2"')


@test
def killed_before_the_first_record_it_starts_anew():
    job = short("early", "job.limit=8")
    for where, there in (("output 0", "manifest.json"), ("plan 0", "profile.json"), ("records 0", "plan.json")):
        run = Running(job, hold=where).until_held()
        assert os.path.exists(job.file(there)) and not outputs.rows_written(job), where
        assert run.stop(signal.SIGKILL) == -signal.SIGKILL
        outputs.wait_for_the_lock(job)
    assert [r["source"]["line"] for r in job.run()] == list(range(1, 9))


@test
def a_torn_journal_costs_only_its_torn_row():
    job = short("torn", "output.records_per_shard=1000")
    killed_at(job, 7)
    with open(job.file("journal"), "r+b") as f:
        f.truncate(size(job.file("journal")) - 20)
    rows = job.run()
    assert len(rows) == 48 and job.stats()["resumed"] == 6, job.stats()


@test
def asked_to_stop_it_exits_75_and_goes_on_later():
    want = whole()
    for name, sig in (
        ("terminated", signal.SIGTERM),
        ("interrupted", signal.SIGINT),
        ("warned", signal.SIGUSR1),
    ):
        job = short(name)
        run = outputs.held_at(job, 13)
        run.interrupt(sig)
        run.go_on()
        assert run.wait() == 75
        assert "run it again to resume" in run.text(), run.text()
        kept = job.stats()["records"]
        assert job.stats()["complete"] is False and 13 <= kept < 48, job.stats()
        job.run()
        assert job.content() == want and job.stats()["resumed"] == kept, job.stats()


@test
def no_grace_stops_at_once_and_loses_nothing_finished():
    want = whole()
    job = short("no-grace", "job.grace=0")
    assert outputs.held_at(job, 13).stop(signal.SIGTERM) == 75
    job.run()
    # The others of eight slots may have ended in the same step.
    assert job.content() == want and 13 <= job.stats()["resumed"] <= 20, job.stats()


@test
def a_finished_job_does_nothing_says_so_and_repeats_its_code():
    good = {"id": "good", "prompt": cli.needle_prompt(cli.one_record())}
    for code, records in ((0, [good]), (1, [good, b"[]"])):
        job = cli.PromptJob("finished-%d" % code, records)
        job.run(code)
        before = {
            name: (size(job.file(name)), os.stat(job.file(name)).st_mtime_ns)
            for name in ("manifest.json", "stats.json", "plan.json", "profile.json")
        }
        content = job.content()
        again = job.command("run").must(code, "nothing to do", "%d records" % len(records))
        assert "progress" not in again.text
        assert job.content() == content
        assert before == {n: (size(job.file(n)), os.stat(job.file(n)).st_mtime_ns) for n in before}


@test
def a_second_run_on_the_same_output_is_refused():
    job = short("owner")
    run = outputs.held_at(job, 5)
    job.command("run").must(75, job.output, "another run holds it", "process %d" % run.pid, "kill %d" % run.pid)
    job.command("plan").must(75, "process %d" % run.pid)
    run.go_on()
    assert run.wait() == 0
    assert job.content() == whole()


@test
def a_killed_owner_leaves_no_lock_behind():
    job = short("dead-owner", "job.limit=12")
    killed_at(job, 5)
    assert os.path.exists(job.file("lock"))
    assert len(job.run()) == 12
    assert outputs.leavings(job) == []


@test
def parts_in_any_order_make_the_whole():
    want, parts = whole(), None
    for i in (2, 0, 1):
        parts = short("parts", "input.part=%d/3" % i)
        parts.run()
        stats = parts.stats("stats-%dof3.json" % i)
        assert stats["complete"] is True and stats["records"] == 16, stats
        with open(parts.file("metrics-%dof3.prom" % i)) as f:
            assert 'part="%d/3"' % i in f.read()
        assert cli.load(parts.file("manifest-%dof3.json" % i))["complete"] is True
    assert parts.content() == want
    parts.command("run").must(0, "nothing to do")
    dest = os.path.join(cli.WORK, "parts.jsonl")
    command("export", parts.output, "--format", "jsonl", dest).must(0, "48 rows")


@test
def two_parts_at_the_same_time_make_the_whole():
    settings = ("profile.method=ada-snapkv", "profile.budget=64", "profile.sample=8")
    alone = short("pair-whole", *settings)
    alone.run()
    jobs = [
        short(
            "pair-%d" % i,
            "job.name=pair",
            "input.part=%d/2" % i,
            *settings,
            output=os.path.join(cli.WORK, "pair")
        )
        for i in (0, 1)
    ]
    runs = [Running(job) for job in jobs]
    for run in runs:
        code = run.wait()
        assert code == 0, "exit %d: %s" % (code, run.text())
    assert jobs[0].content() == alone.content()
    assert jobs[0].profile()["budgets"] == alone.profile()["budgets"]


@test
def a_killed_part_is_resumed_alone():
    jobs = [
        short("pick-%d" % i, "job.name=pick", "input.part=%d/2" % i, output=os.path.join(cli.WORK, "pick"))
        for i in (0, 1)
    ]
    killed_at(jobs[1], 9)
    jobs[0].run()
    jobs[1].run()
    assert jobs[0].stats("stats-0of2.json")["resumed"] == 0
    assert jobs[1].stats("stats-1of2.json")["resumed"] == 9
    assert jobs[0].content() == whole()


@test
def other_numbers_of_parts_do_not_mix():
    short("mixed", "job.limit=8", "input.part=0/2").run()
    short("mixed", "job.limit=8", "input.part=1/3").command("run").must(2, "input.part", "manifest-0of2.json")
    short("mixed", "job.limit=8").command("run").must(2, "input.part", "manifest-0of2.json")


@test
def what_would_change_answers_is_refused_on_a_resume_by_its_name():
    job = short("changed", "job.limit=8", "profile.method=uniform", "profile.budget=64")
    job.run()
    before = job.content()
    other = cli.write("other.tar.zst", cli.zstd(cli.unzstd(cli.NEEDLES) + b"\0" * 512))
    for setting in (
        "job.seed=5",
        "job.limit=9",
        "profile.budget=65",
        "profile.method=ada-snapkv",
        "model.max_prompt_tokens=301",
        "model.truncate=right",
        "engine.slots=4",
        "engine.tensor_parallel=2",
        "engine.max_new_tokens=5",
        "engine.kv_cache=fp8",
        "sampling.temperature=0.5",
        'sampling.stop=["x"]',
        "output.records_per_shard=5",
        "output.token_ids=no",
        "input.members=data/needle_1k.jsonl",
        "input.archives=" + other,
        "input.max_new_tokens_by=" + cli.write("limits.json", {"needle_500": 5}),
    ):
        key = setting.split("=")[0]
        job.command("run", "-s", setting).must(
            2, job.output, "made by a different job", key, "job.restart = yes"
        )
    assert job.content() == before
    job.command("run").must(0, "nothing to do")


@test
def a_refused_resume_names_every_changed_key():
    job = short("every-key", "job.limit=8")
    job.run()
    whole = cli.load(job.file("manifest.json"))
    whole.update(complete=False, records=None, shards=whole["shards"][:1])
    cli.write(job.file("manifest.json"), whole)
    changes = {
        "job.seed": ('"0"', '"5"', "5"),
        "job.limit": ('"8"', '"9"', "9"),
        "sampling.stop": ('""', '"["x"]"', '["x"]'),
        "output.records_per_shard": ('"4"', '"5"', "5"),
        # These are pinned by the first run.
        "plan.mode": ('"fair-copying"', '"standard"', "standard"),
        "plan.max_copies": ('"auto"', '"3"', "3"),
    }
    settings = [word for key, (_, _, value) in changes.items() for word in ("-s", "%s=%s" % (key, value))]
    for which in ("run", "check", "plan"):
        told = outputs.errors_in(job.command(which, *settings).must(2).err)
        assert len(told) == len(changes), told
        for key, (old, new, _) in changes.items():
            assert any("%s was %s, is now %s" % (key, old, new) in line for line in told), (key, told)
    other = cli.write("other-needles.tar.zst", cli.zstd(cli.unzstd(cli.NEEDLES) + b"\0" * 512))
    told = job.command("run", "-s", "input.archives=" + other, "-s", "job.seed=7").must(2, "job.seed").text
    assert "input.archives was \"%s:" % cli.NEEDLES in told and ", is now \"%s:" % other in told, told
    job.run()


def elsewhere(name, source):
    """A copy of a file under another path."""
    with open(source, "rb") as f:
        return cli.write(name, f.read())


@test
def an_archive_that_was_moved_resumes_and_its_rows_keep_their_names():
    want = whole()
    job = short("moved")
    killed_at(job, 9)
    moved = elsewhere("scratch/node7/input.tzst.tar.zst", cli.NEEDLES)
    job.command("check", "-s", "input.archives=" + moved).must(0, "9 records are done")
    job.command("run", "-s", "input.archives=" + moved).must(0, "resuming: 9 records")
    assert job.content() == want
    # It is done, wherever its input lies and whatever that is called.
    job.command("run", "-s", "input.archives=" + moved).must(0, "nothing to do")
    # Templates and limits are known by what is in them, too.
    job.command("run", "-s", "input.prompts=" + elsewhere("p.json", cli.TEMPLATES)).must(0, "nothing to do")


@test
def moved_archives_are_read_in_the_first_run_s_order():
    """Plain files give their members' names: rows say the first run's, and stand in its order."""
    prompt = cli.needle_prompt(cli.one_record())
    for name in ("a", "b", "c"):
        lines = [{"id": "%s%d" % (name, i), "prompt": prompt, "max_tokens": i + 1} for i in range(4)]
        cli.write("first/%s.jsonl" % name, cli.jsonl(lines))
    settings = ["input.archives=%s/first/*.jsonl" % cli.WORK, "input.format=prompt", "input.prompts"]
    settings += ["input.max_new_tokens_by", "input.members=*", SHARD]
    first = Job("order-whole", *settings)
    first.run()
    job = Job("order", *settings)
    killed_at(job, 5)
    for old, new in (("a", "z"), ("b", "y"), ("c", "x")):
        elsewhere("then/%s.jsonl" % new, os.path.join(cli.WORK, "first", old + ".jsonl"))
    job.command("run", "-s", "input.archives=%s/then/*.jsonl" % cli.WORK).must(0, "resuming: 5 records")
    assert job.content() == first.content()
    assert [r["source"]["member"] for r in job.rows()][::4] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert all(r["source"]["archive"].startswith(os.path.join(cli.WORK, "first")) for r in job.rows())


@test
def the_resolved_job_in_the_output_resumes():
    want = whole()
    for settings in ([], ["job.restart=yes"]):
        # The path of the archive as the user wrote it stands in the rows.
        job = short("resolved-%d" % len(settings), *settings)
        killed_at(job, 9)
        before = sorted(os.listdir(cli.WORK))
        command("run", job.file("job.ini")).must(0, "resuming: 9 records")
        assert job.content() == want
        assert sorted(os.listdir(cli.WORK)) == before, "it moved the output aside"


@test
def a_relative_archive_keeps_its_name_in_rows_when_the_resolved_job_resumes():
    elsewhere("here/needles.tar.zst", cli.NEEDLES)
    job = short("relative", "input.archives=here/*.zst")
    killed_at(job, 9)
    command("run", job.file("job.ini")).must(0, "resuming: 9 records")
    assert {r["source"]["archive"] for r in job.rows()} == {"here/needles.tar.zst"}, job.rows()[0]
    assert len(job.rows()) == 48


@test
def max_errors_counts_over_all_resumes_and_a_stopped_job_stays_stopped():
    good = {"prompt": "The access code is", "max_tokens": 2}
    lines = [good, b"[]"] * 12
    job = cli.PromptJob("stopped", lines, "engine.slots=1", "job.max_errors=3", "output.records_per_shard=4")
    job.command("run").must(2, "stopped after 3 bad records (job.max_errors)")
    for most in (3, 2, 1):
        before = os.stat(job.file("stats.json")).st_mtime_ns, job.content()
        for which in ("run", "check"):
            told = job.command(which, "-s", "job.max_errors=%d" % most)
            told.must(2, "an earlier run stopped after 3 bad records", "the limit is %d" % most, "retry_errors")
            assert "model:" not in told.text
        assert (os.stat(job.file("stats.json")).st_mtime_ns, job.content()) == before
    # Three of the five are an earlier run's.
    job.command("run", "-s", "job.max_errors=5").must(2, "stopped after 5 bad records")
    job.command("run", "-s", "job.max_errors=0").must(1, "resuming")
    assert len(job.rows()) == 24
    job.command("run").must(1, "nothing to do")
    # Done again they are no errors any more, and no reason to stop.
    again = cli.PromptJob("not-stopped", [b"[]"] * 3 + [good] * 3, "job.max_errors=3")
    again.command("run").must(2, "stopped after 3")
    again.command("run", "-s", "job.retry_errors=yes", "-s", "job.max_errors=4").must(1, "done: 6 records")


@test
def a_share_of_errors_stops_at_the_end_or_from_a_thousand_records_on():
    good = {"prompt": "The access code is", "max_tokens": 1}
    lines = [b"[]"] + [good] * 9
    cli.PromptJob("below", lines, "job.max_errors=10.5%").run(1)
    for share in ("10%", "1%"):
        job = cli.PromptJob("share-" + share[:-1], lines, "job.max_errors=" + share)
        job.command("run").must(2, "stopped after 1 bad records (job.max_errors): 10 are finished, the limit is " + share)
        told = job.command("run").must(2, "an earlier run stopped after 1 bad records")
        assert "model:" not in told.text
        job.command("check").must(2, "an earlier run stopped")
        stats = job.stats()
        assert stats["complete"] is False and stats["records"] == 10, stats
        job.command("run", "-s", "job.max_errors=20%").must(1, "resuming: 10 records", "done: 10 records")
    # Nobody waits for the end of a hundred thousand bad records.
    many = cli.PromptJob("many-bad", [b"[]"] * 3000 + [good], "job.max_errors=50%")
    many.command("run").must(2, "stopped after 1000 bad records (job.max_errors): 1000 are finished")
    late = cli.PromptJob("late-bad", [b"[]"] * 1500 + [good], "job.max_errors=1%")
    late.command("run").must(2, "stopped after 1000 bad records")


@test
def a_resume_on_another_kind_of_device_is_refused():
    """Its libraries would compute with other algorithms: answers of two kinds in one output."""
    job = short("elsewhere", "output.records_per_shard=1000")
    killed_at(job, 7)
    manifest = cli.load(job.file("manifest.json"))
    here = manifest["run"]["numerics"]
    assert here and cli.load(job.file("plan.json"))["numerics"]
    manifest["run"]["numerics"] = "bf16 on a GPU, cuBLASLt 1"
    cli.write(job.file("manifest.json"), manifest)
    job.command("run").must(2, "numerics", "bf16 on a GPU", here)
    manifest["run"]["numerics"] = here
    cli.write(job.file("manifest.json"), manifest)
    assert len(job.run()) == 48 and job.stats()["resumed"] == 7


@test
def a_run_that_failed_before_its_first_record_binds_nobody():
    job = short("corrected", "input.members=nothing.jsonl")
    job.command("run").must(2, "input.members", "no record in the input")
    job.command("run", "-s", "input.members=data/needle_500.jsonl", "-s", "job.limit=2").must(0, "done: 2 records")


@test
def what_changes_no_answer_may_change_on_a_resume():
    want = whole()
    job = short("may-change")
    killed_at(job, 9)
    job.command("run", "-s", "job.max_errors=3", "-s", "job.grace=1").must(0)
    assert job.content() == want


@test
def an_output_has_one_plan():
    """plan.* changes no answer, but neither does a run choose its plan again."""
    job = short(
        "modes",
        "plan.mode=standard",
        "engine.tensor_parallel=4",
        "profile.budgets_file=" + cli.budgets_file("heavy.json", [[300, 40, 32, 32]] * 4),
    )
    killed_at(job, 9)
    with open(job.file("plan.json"), "rb") as f:
        before = f.read()
    for setting in ("plan.mode=fair-copying", "plan.max_copies=1"):
        job.command("run", "-s", setting).must(2, setting.split("=")[0], "job.restart = yes")
    with open(job.file("plan.json"), "rb") as f:
        assert f.read() == before
    job.run()


@test
def error_rows_are_done_again_when_asked_for():
    good = {"prompt": "The access code is", "max_tokens": 2}
    job = cli.PromptJob("retried", [good, b"[]", good, good, good, b"7"], "output.records_per_shard=2")
    job.run(1)
    before = job.content()
    job.command("run", "-s", "job.retry_errors=no").must(1, "nothing to do")
    again = job.command("run", "-s", "job.retry_errors=yes").must(1)
    assert "nothing to do" not in again.text
    assert job.stats()["resumed"] == 4 and job.stats()["errors"] == 2 and job.content() == before


@test
def restart_moves_the_old_output_aside():
    job = short("again", "job.limit=8")
    job.run()
    old = job.content()
    job.command("run", "-s", "job.restart=yes", "-s", "job.limit=4").must(0, "moved the old output")
    assert len(job.rows()) == 4
    aside = [n for n in os.listdir(cli.WORK) if n.startswith("again.old-")]
    assert len(aside) == 1, aside
    kept = short("kept", output=os.path.join(cli.WORK, aside[0]))
    assert kept.content() == old
    assert outputs.leavings(kept) == [] and outputs.leavings(job) == []
    # What a killed run left of its leases goes before.
    killed = Running(job, "-s", "job.restart=yes", hold="plan 0").until_held()
    assert killed.stop(signal.SIGKILL) == -signal.SIGKILL
    assert "lock-plan" in outputs.leavings(job)
    job.command("run", "-s", "job.restart=yes", "-s", "job.limit=3").must(0, "moved the old output")
    for name in os.listdir(cli.WORK):
        if name.startswith("again.old-"):
            assert outputs.leavings(short("kept", output=os.path.join(cli.WORK, name))) == []


@test
def a_damaged_output_is_refused_not_overwritten():
    job = short("damaged", "job.limit=12")
    job.run()
    shard = job.shards()[1]
    with open(shard, "r+b") as f:
        f.truncate(size(shard) // 2)
    job.command("run").must(2, os.path.basename(shard), "bytes, the manifest says")
    os.remove(shard)
    job.command("run").must(2, os.path.basename(shard), "missing")
    os.remove(job.file("manifest.json"))
    job.command("run").must(2, "has shards but no manifest")


@test
def a_killed_retry_of_error_rows_goes_on_where_the_last_shard_is_short():
    good = {"prompt": cli.needle_prompt(cli.one_record())[-400:]}
    job = cli.PromptJob("retry-killed", [good, b"[]"] + [good] * 8, SHARD)
    job.run(1)
    content = job.content()
    run = Running(job, "-s", "job.retry_errors=yes", hold="records 0").until_held()
    assert run.stop(signal.SIGKILL) == -signal.SIGKILL
    outputs.wait_for_the_lock(job)
    job.run(1)
    assert job.content() == content


cli.main()
