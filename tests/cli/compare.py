"""compare: what it counts, that it is the same every time, what it leaves, and how its page looks.

    compare.py BINARY --pictures   makes the pictures of tests/golden/compare anew, to be looked at
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys

import checkpoints
import cli
import pages
from cli import Job, PromptJob, Running, command, test

GOLDEN = os.path.join(cli.TESTS, "golden", "compare")
# 8 records for the profile, and 16 that are left. A KV cache of its own keeps what fits apart from the
# machine's free memory.
FEW = ["job.limit=24", "profile.sample=8", "engine.kv_memory=64"]


def files_of(folder):
    """Every file below a folder, with its bytes."""
    found = {}
    for at, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(at, name), "rb") as f:
                found[os.path.relpath(os.path.join(at, name), folder)] = f.read()
    return found


def compare(job, *args, code=0, out=None):
    """The comparison, and what the command said."""
    folder = out or job.output + "-compare"
    said = job.command("compare", *args, *(["--out", out] if out else [])).must(code)
    return cli.load(os.path.join(folder, "compare.json")), said


def first_difference(a, b):
    """None: they are equal."""
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return None if a == b else same


def must_be_those_of(setting, answers, k, whole, rows):
    """The setting's numbers, recomputed from two runs' rows of its records."""
    pairs = [(whole[a["record"]], rows[a["record"]]) for a in answers]
    differ = [first_difference(w["ids"], r["ids"]) for w, r in pairs]
    assert [a["first_difference"][k] for a in answers] == differ, (setting, differ)
    assert [a["new_tokens"][k] for a in answers] == [len(r["ids"]) for _, r in pairs]
    if setting["scorer"]:
        at = [d for d in differ if d is not None]
        assert setting["equal"] == len(pairs) - len(at), (setting, differ)
        assert abs(setting["equal_share"] - setting["equal"] / len(pairs)) < 1e-6
        low, high = setting["equal_interval"]
        assert 0 <= low <= setting["equal_share"] <= high <= 1
        if at:
            assert abs(setting["first_difference"]["mean"] - statistics.mean(at)) < 1e-5
            assert setting["first_difference"]["median"] == statistics.median(at)
        else:
            assert setting["first_difference"] is None
    tokens = [(len(w["ids"]), len(r["ids"])) for w, r in pairs]
    new = setting["new_tokens"]
    assert abs(new["mean"] - statistics.mean(r for _, r in tokens)) < 1e-5
    assert abs(new["whole_mean"] - statistics.mean(w for w, _ in tokens)) < 1e-5
    assert (new["longer"], new["shorter"]) == (sum(r > w for w, r in tokens), sum(r < w for w, r in tokens))
    assert new["at_limit"] == sum(r["finish_reason"] == "length" for _, r in pairs)
    for which, row in (("", 1), ("whole_", 0)):
        texts = [(p[row]["text"].strip(), p[row]["fields"]["answers"]) for p in pairs]
        assert setting["right"][which + "exact"] == sum(t in right for t, right in texts)
        assert setting["right"][which + "contains"] == sum(any(x in t for x in right) for t, right in texts)
    assert setting["right"]["known"] == setting["compared"] == setting["answered"] == len(pairs)


@test
def the_numbers_are_those_of_runs_at_the_same_budgets():
    job = Job("numbers", *FEW, "profile.method=ada-snapkv")
    found, said = compare(job, "--records", "16", "--budgets", "8%,5%,40")
    runs = [dict(enumerate(Job("numbers-%d" % i, *FEW, *settings).run()))
            for i, settings in enumerate([["profile.method=none"], ["profile.method=ada-snapkv", "profile.budget=8%"],
                                          ["profile.method=ada-snapkv", "profile.budget=5%"],
                                          ["profile.method=ada-snapkv", "profile.budget=40"]])]
    settings, answers = found["settings"], found["answers"]
    assert [s["name"] for s in settings] == ["whole", "snapkv-8pct", "snapkv-5pct", "snapkv-40"]
    assert len(answers) == found["records"] == 16 and found["sample"] == 8 and found["input_records"] == 24
    for k, (setting, rows) in enumerate(zip(settings, runs)):
        must_be_those_of(setting, answers, k, runs[0], rows)
    # Some differ, so that there was something to count.
    assert any(s["first_difference"] for s in settings)
    # The sample is that of the runs, and none of it is compared.
    profile = cli.load(os.path.join(cli.WORK, "numbers-1", "profile.json"))
    assert settings[1]["budget_tokens"] == profile["budget"] == round(0.08 * found["mean_prompt_tokens"])
    tokens = sorted(r["usage"]["prompt_tokens"] for r in runs[0].values())
    assert sorted(profile["sample"]["prompt_tokens"] + [a["prompt_tokens"] for a in answers]) == tokens
    # A head keeps its budget of every prompt here, on the mean.
    assert settings[3]["kept_tokens"] == 40 and abs(settings[1]["kept_tokens"] - profile["budget"]) < 1e-6
    assert abs(settings[0]["kept_tokens"] - statistics.mean(a["prompt_tokens"] for a in answers)) < 1e-5
    # Smaller budgets take less memory, leave room for more slots, and no more time.
    for a, b in zip(settings, settings[1:]):
        assert b["slot_bytes"] <= a["slot_bytes"], (a, b)
        assert b["forecast"]["slots_fit"] >= a["forecast"]["slots_fit"] > 0
        assert 0 < b["forecast"]["seconds"] <= a["forecast"]["seconds"]
    for word in ("8%", "5%", "40", "whole", "snapkv", found["says"]):
        assert word in said.out, (word, said.out)


@test
def the_scorers_numbers_are_those_of_runs_with_them():
    job = Job("scorers", *FEW, "profile.method=ada", "profile.score=keydiff", "profile.sinks=4")
    names = ["keydiff", "defensive", "critical", "expected"]
    found, _ = compare(job, "--records", "16", "--budgets", "6%", "--scorers", ",".join(names))
    assert [s["scorer"] for s in found["settings"]] == [None] + names
    runs = [dict(enumerate(Job("scorers-" + name, *FEW, *settings).run()))
            for name, settings in [("none", ["profile.method=none"])] +
            [(n, ["profile.method=ada", "profile.score=" + n, "profile.sinks=4", "profile.budget=6%"]) for n in names]]
    for k, (setting, rows) in enumerate(zip(found["settings"], runs)):
        must_be_those_of(setting, found["answers"], k, runs[0], rows)
    # They keep other tokens, so that one scorer's answers stand for no other's.
    assert len({str([a["first_difference"][k] for a in found["answers"]]) for k in range(1, 5)}) > 1
    # Without --scorers it is the job's.
    found, _ = compare(job, "--records", "4", "--budgets", "6%")
    assert [s["scorer"] for s in found["settings"]] == [None, "keydiff"]


@test
def the_same_comparison_gives_the_same_bytes():
    job = Job("again", *FEW)
    outs = [os.path.join(cli.WORK, "again-%d" % i) for i in range(2)]
    for out in outs + outs[:1]:  # the last into a folder that has one
        compare(job, "--records", "10", "--budgets", "6%,5%", out=out)
    first, second = map(files_of, outs)
    assert sorted(first) == ["compare.html", "compare.json"] + [
        "longbench/%s/pred/again/needle_1k.jsonl" % s for s in ("snapkv-5pct", "snapkv-6pct", "whole")]
    assert first == second
    # However many slots decode beside each other's records.
    one = compare(job, "--records", "10", "--budgets", "6%", out=os.path.join(cli.WORK, "again-2"))[0]
    assert [a["new_tokens"][:2] for a in one["answers"]] == [
        a["new_tokens"][:2] for a in cli.load(os.path.join(outs[0], "compare.json"))["answers"]]


@test
def a_budget_that_keeps_everything_gives_every_answer():
    job = Job("all", *FEW)
    found, _ = compare(job, "--records", "12", "--budgets", "100%,2000")
    for s in found["settings"][1:]:
        assert s["equal"] == s["compared"] == 12 and s["equal_interval"][1] == 1, s
        assert s["first_difference"] is None and s["new_tokens"]["longer"] == s["new_tokens"]["shorter"] == 0
    # 12 of 12: the lower end is 0.025 ^ (1 / 12); 36 such records would be enough for 90%.
    assert abs(found["settings"][1]["equal_interval"][0] - 0.025 ** (1 / 12)) < 1e-6
    assert found["settings"][1]["verdict"] == "open" and found["settings"][1]["records_to_settle"] == 36
    assert found["choice"] == "snapkv-100pct"
    assert "about 36 records would settle it" in found["says"]


@test
def it_says_which_budget_the_asked_share_takes():
    job = Job("share", *FEW)
    shares = {}
    for equal in ("0.5", "30%", "1"):
        found, _ = compare(job, "--records", "16", "--budgets", "20%,5%,40", "--equal", equal)
        asked = {"0.5": 0.5, "30%": 0.3, "1": 1.0}[equal]
        assert found["asked_equal"] == asked
        fit = [s for s in found["settings"][1:] if s["equal_share"] >= asked]
        best = min(fit, key=lambda s: s["budget_tokens"])["name"] if fit else None
        assert found["choice"] == best, (found["choice"], best)
        for s in found["settings"][1:]:
            low, high = s["equal_interval"]
            want = "enough" if low >= asked else "too little" if high < asked else "open"
            assert s["verdict"] == want, (s, asked)
        shares[equal] = best
    found, said = compare(job, "--records", "16", "--budgets", "40", "--equal", "1")
    assert found["choice"] is None and "No budget gives 100%" in said.out
    assert shares["1"] == "snapkv-20pct", shares


@test
def a_scorer_s_memory_is_that_of_a_run_with_it_alone():
    """Other scorers of the comparison hold the output projection once more: a run does not."""
    job = Job("alone", "job.limit=12", "profile.sample=4", "profile.method=uniform")
    fit = []
    for scorers in ("snapkv", "critical,defensive,expected,snapkv"):
        found, _ = compare(job, "--records", "2", "--budgets", "40", "--scorers", scorers)
        fit.append([s["forecast"]["slots_fit"] for s in found["settings"] if s["scorer"] in (None, "snapkv")])
    assert fit[0] == fit[1] and len(fit[0]) == 2, fit


@test
def layers_with_a_window_are_in_no_budget_and_not_in_what_is_kept():
    """As in usage.kept_tokens of rows."""
    model = checkpoints.write("gemma2", os.path.join(cli.WORK, "gemma2"), os.path.join(cli.TINY, "tokenizer.json"))
    config = os.path.join(model, "config.json")
    values = {k: v for k, v in cli.load(config).items() if k != "model_type"}  # no family's tokenizer in its place
    with open(config, "w", encoding="utf-8") as f:
        json.dump(values, f)
    records = [{"id": i, "prompt": max(checkpoints.PROMPTS, key=len)} for i in range(4)]
    job = PromptJob("windows", records, "model.path=" + model, "profile.sample=2", "profile.method=uniform")
    found, _ = compare(job, "--budgets", "40")
    whole, some = found["settings"]
    assert all(a["prompt_tokens"] > 40 for a in found["answers"])
    assert some["kept_tokens"] == some["budget_tokens"] == 40, some
    assert whole["kept_tokens"] == statistics.mean(a["prompt_tokens"] for a in found["answers"]), whole


@test
def what_eval_reads_is_what_a_run_exports():
    job = Job("eval", *FEW, "job.name=Tiny-1")
    found, _ = compare(job, "--records", "16", "--budgets", "5%")
    run = Job("eval-run", *FEW, "job.name=Tiny-1", "profile.method=ada-snapkv", "profile.budget=5%")
    rows = run.run()
    command("export", run.output, "--format", "longbench", os.path.join(cli.WORK, "exported")).must(0)
    with open(os.path.join(cli.WORK, "exported/pred/Tiny-1/needle_1k.jsonl"), "rb") as f:
        exported = f.read().splitlines()
    folder = os.path.join(job.output + "-compare", found["settings"][1]["folder"])
    with open(os.path.join(folder, "pred/Tiny-1/needle_1k.jsonl"), "rb") as f:
        assert f.read().splitlines() == [exported[a["record"]] for a in found["answers"]]
    assert len(exported) == len(rows)
    script = os.path.join(cli.TESTS, "cli", "longbench_eval.py")
    for setting in found["settings"]:
        folder = os.path.join(job.output + "-compare", setting["folder"])
        subprocess.run([sys.executable, script, "--model", "Tiny-1"], cwd=folder, check=True)
        scores = cli.load(os.path.join(folder, "pred/Tiny-1/result.json"))
        assert scores == {"needle_1k": round(100 * setting["right"]["exact"] / 16, 2)}, (setting, scores)
    # Its scores are in the way of no later comparison.
    compare(job, "--records", "16", "--budgets", "5%")


@test
def a_run_goes_on_beside_a_comparison():
    whole = Job("beside-whole", *FEW, "profile.method=none", "job.name=beside")
    whole.run()
    job = Job("beside", *FEW, "profile.method=none")
    run = Running(job, hold="records 5").until_held()
    compare(job, "--records", "4", "--budgets", "5%")
    run.go_on()
    assert run.wait() == 0
    assert job.content() == whole.content()
    before = files_of(job.output)
    compare(job, "--records", "4", "--budgets", "5%")
    assert files_of(job.output) == before


@test
def records_without_an_answer_are_counted_and_the_rest_is_compared():
    prompt = "The grey robin sleeps under a cold stone. " * 20
    records = [{"id": i, "prompt": "%d %s" % (i, prompt), "answer": "x"} for i in range(12)]
    job = PromptJob("some", records + [b"no JSON", b"{", {"id": 1, "prompt": 7}], "profile.sample=4")
    found, _ = compare(job, "--records", "50", "--budgets", "40")
    assert found["left_out"] == 3 and found["records"] == 8 and found["input_records"] == 15
    assert all(s["compared"] == 8 and s["errors"] == {} for s in found["settings"])
    assert found["settings"][1]["right"]["known"] == 8 and found["settings"][0]["right"]["exact"] == 0
    # No dataset, so nothing for eval.py.
    assert found["settings"][0]["folder"] is None
    assert sorted(os.listdir(job.output + "-compare")) == ["compare.html", "compare.json"]


@test
def a_record_whose_logits_are_no_numbers_is_left_out_of_the_shares():
    prompt = "The grey robin sleeps under a cold stone. " * 20
    records = [{"id": i, "prompt": "%s%d %s" % ("\u0007 " if i % 3 == 1 else "", i, prompt)} for i in range(15)]
    model = cli.model_without_a_number("\u0007")
    job = PromptJob("bad", records, "model.path=" + model, "profile.sample=3", "profile.method=uniform")
    found, said = compare(job, "--budgets", "40", code=1)
    bad = sum(a["record"] % 3 == 1 for a in found["answers"])
    assert 0 < bad < found["records"] == 12
    for s in found["settings"]:
        assert s["errors"] == {"bad_logits": bad} and s["answered"] == s["compared"] == 12 - bad, s
    assert all((a["new_tokens"] == [None, None]) == (a["record"] % 3 == 1) for a in found["answers"])
    assert "%d could not be answered" % bad in said.err


@test
def an_interrupted_comparison_leaves_nothing_and_can_be_begun_again():
    job = Job("cut", *FEW)
    for hold, sig in (("compare 3", signal.SIGTERM), ("compare 14", signal.SIGINT), ("profile 2", signal.SIGTERM)):
        run = Running(job, "--records", "8", "--budgets", "5%", which="compare", hold=hold).until_held()
        assert run.stop(sig) == 75, run.text()
        assert "interrupted by signal" in run.text()
        assert not os.path.exists(job.output + "-compare"), os.listdir(job.output + "-compare")
        assert not os.path.exists(job.output)
    found, _ = compare(job, "--records", "8", "--budgets", "5%")
    assert found["records"] == 8


@test
def what_is_wrong_is_said_at_once():
    job = Job("wrong", *FEW)
    for args, words in [
        (["--budgets", "10%,none"], ["--budgets", '"none"']),
        (["--budgets", "101%"], ["101%"]),
        (["--budgets", "8"], ["8 is less than profile.window, 32, and profile.sinks, 0"]),
        (["--budgets", "5%,5%"], ["twice"]),
        (["--budgets", ","], ["--budgets"]),
        (["--budgets="], ["--budgets"]),
        (["--scorers", "snapvk"], ["no scorer", "snapkv"]),
        (["--records", "0"], ["--records"]),
        (["--records", "many"], ["--records"]),
        (["--equal", "1.5"], ["--equal"]),
        (["--equal"], ["--equal"]),
        (["--equal=1", "--equal", "1"], ["--equal is there twice"]),
        (["--recrods", "4"], ["did you mean --records?"]),
        (["-s", "profile.sample=40"], ["profile.sample", "none is left"]),
        (["-s", "model.path=/no/model"], ["/no/model"]),
        (["--out", job.path], [os.path.basename(job.path)]),
    ]:
        said = job.command("compare", *args).must(2, *words)
        assert said.out == "" and not os.path.exists(job.output + "-compare"), said.text
    cli.write("full/notes.txt", "mine")
    os.makedirs(os.path.join(cli.WORK, "full", "longbench", "mine"))
    job.command("compare", "--out", os.path.join(cli.WORK, "full")).must(2, 'it holds "notes.txt"')
    cli.write("other/compare.json", "{}")
    job.command("compare", "--out", os.path.join(cli.WORK, "other")).must(2, "no comparison of ours")
    assert files_of(os.path.join(cli.WORK, "full")) == {"notes.txt": b"mine"}
    assert os.path.isdir(os.path.join(cli.WORK, "full", "longbench", "mine")), "a refused folder is left alone"
    bad = PromptJob("none-usable", [b"{", b"no JSON"])
    bad.command("compare").must(2, "have no record that can be answered: all 2 would be error rows")
    budgets = cli.budgets_file("heads.json", [[60, 40, 50, 50]] * cli.LAYERS)
    job.command("compare", "--budgets", "5%", "-s", "profile.budgets_file=" + budgets).must(2, "budgets_file")
    command("compare", "--help").must(0, "usage: fairkv-batch compare", "--equal")


@test
def a_budgets_file_is_compared_as_it_is():
    budgets = [[60, 40, 50, 50]] * cli.LAYERS
    job = Job("file", *FEW, "profile.budgets_file=" + cli.budgets_file("heads.json", budgets))
    found, _ = compare(job, "--records", "8")
    whole, file = found["settings"]
    assert file["name"] == "snapkv-file" and file["budget_tokens"] == 50 and file["kept_tokens"] == 50
    whole_rows = dict(enumerate(Job("file-whole", *FEW).run()))
    rows = dict(enumerate(Job("file-run", *FEW, "profile.budgets_file=" + cli.budgets_file("heads.json", budgets)).run()))
    must_be_those_of(file, found["answers"], 1, whole_rows, rows)
    assert whole["equal"] is None


@test
def several_replicas_and_ranks_give_the_same_answers():
    job = Job("replicas", *FEW)
    one, _ = compare(job, "--records", "9", "--budgets", "6%")
    two, _ = compare(job, "--records", "9", "--budgets", "6%", "-s", "engine.data_parallel=2",
                     out=os.path.join(cli.WORK, "replicas-2"))
    assert one["answers"] == two["answers"]
    compare(job, "--records", "9", "--budgets", "6%", "-s", "engine.slots=auto", "-s", "engine.tensor_parallel=auto",
            out=os.path.join(cli.WORK, "replicas-auto"))


@test
def the_machine_keeps_what_the_prediction_needs():
    cache = os.path.join(cli.WORK, "cache")
    job = Job("kept", *FEW, "plan.calibration=auto")
    args = ("--records", "4", "--budgets", "40")
    bytes_of = []
    for i in range(2):
        out = os.path.join(cli.WORK, "kept-%d" % i)
        job.command("compare", *args, "--out", out, env={"XDG_CACHE_HOME": cache}).must(0)
        bytes_of.append(files_of(out))
        settings = cli.load(os.path.join(out, "compare.json"))["settings"]
        if any(s["forecast"]["rates"] != "measured" for s in settings):
            raise cli.Skip("steps are disturbed on this machine")
        assert all(s["forecast"]["seconds"] > 0 for s in settings)
    if len(os.listdir(os.path.join(cache, "fairkv-batch"))) < 2:
        raise cli.Skip("steps are disturbed on this machine")
    assert bytes_of[0] == bytes_of[1]


@test
def the_larger_needle_model_is_compared():
    shared = os.environ.get("SHARED", os.path.join(cli.TESTS, os.pardir, os.pardir, "shared"))
    model = os.path.join(shared, "models", "needle-small")
    if not os.path.isdir(model):
        raise cli.Skip("needle-small is not here")
    job = Job("small", "model.path=" + model, "input.members=data/needle_500.jsonl", "job.limit=12", "profile.sample=4",
              "engine.kv_memory=512", "engine.tensor_parallel=2")
    outs = [os.path.join(cli.WORK, "small-%d" % i) for i in range(2)]
    for out in outs:
        found, _ = compare(job, "--records", "8", "--budgets", "50%,5%", out=out)
    assert files_of(outs[0]) == files_of(outs[1])
    assert found["settings"][0]["right"]["exact"] >= 7, found["settings"][0]
    assert found["settings"][1]["equal"] >= found["settings"][2]["equal"]


# The page.


def page_of(folder):
    with open(os.path.join(folder, "compare.html"), encoding="utf-8") as f:
        return pages.Page(f.read())


@test
def the_page_has_the_numbers():
    job = Job("page", *FEW, "job.name=<b>&\"page\"")
    found, _ = compare(job, "--records", "12", "--budgets", "20%,5%,40")
    page = page_of(job.output + "-compare")
    assert "<title>&lt;b&gt;&amp;&quot;page&quot; - fairkv-batch compare</title>" in page.source
    assert found["says"].replace("'", "&#39;") in page.source
    answers, savings = page.rows("answers")[1:], page.rows("savings")[1:]
    assert [r[0] for r in answers] == [r[0] for r in savings] == [s["budget"] for s in found["settings"]]
    for row, money, s in zip(answers, savings, found["settings"]):
        assert row[5] == "12" and row[10] == "%.1f%%" % (100 * s["right"]["exact"] / 12), row
        assert row[2] == ("%.1f%%" % (100 * s["equal_share"]) if s["scorer"] else "-"), row
        assert float(money[2]) == round(s["slot_bytes"] / 2 ** 20, 2), money
        assert money[3].replace(",", "") == str(s["forecast"]["slots_fit"])
    # A curve's points are the shares, from the smallest budget to the whole cache.
    picture = re.search(r"<svg.*?</svg>", page.section("equal").split("Equal answers", 1)[1], re.S).group(0)
    points = [float(y) for y in re.findall(r'class="dot k0" d="M[\d.]+ ([\d.]+)h0"', picture)]
    shares = [s["equal_share"] for s in sorted(found["settings"][1:], key=lambda s: s["budget_tokens"])] + [1]
    assert len(points) == 4 and all(abs(y - 180 * (1 - v)) < 0.06 for y, v in zip(points, shares)), (points, shares)


def picture():
    """A comparison that is nearly the same on every machine."""
    job = Job("longbench-qa", "job.limit=40", "profile.sample=24", "engine.kv_memory=64")
    folder = job.output + "-compare"
    if not os.path.exists(folder):
        compare(job, "--records", "16", "--budgets", "50%,20%,8%,6%,5%,40")
    return os.path.join(folder, "compare.html")


@test
def the_page_looks_as_in_the_pictures():
    with pages.browse() as b:
        pages.must_look_like(b, picture(), GOLDEN)


@test
def nothing_is_cut_off_or_lies_over_something_else():
    with pages.browse() as b:
        pages.must_fit(b, picture())


@test
def words_can_be_read_on_what_is_behind_them():
    with pages.browse() as b:
        pages.must_be_legible(b, picture())


if "--pictures" in sys.argv:
    sys.argv.remove("--pictures")

    def make_pictures():
        pages.make_pictures(picture(), GOLDEN)

    cli._tests[:] = [make_pictures]

cli.main()
