"""What a job's KV cache holds decides how long it takes, never what it answers."""

import os
import signal

import cli
from cli import PromptJob, Running, budgets_file, codes_of, needle_prompt, one_record, test

UNIFORM = [[100] * 4] * 4


def prompts(n, n_chars=1000):
    """Prompts of about 340 tokens, no two alike."""
    text = needle_prompt(one_record())
    return [{"id": i, "prompt": text[7 * i : 7 * i + n_chars]} for i in range(n)]


def steps(job):
    return job.stats()["decode_steps"]


@test
def long_limits_are_refused_at_no_number_of_slots():
    """The arenas once held a prompt and one token, as the longest prompt that could come left no more."""
    path = budgets_file("uniform.json", UNIFORM)
    n = 8 if cli.sanitized() else 32
    for slots in (1, 16):
        job = PromptJob(
            "limits-%d" % slots,
            prompts(n),
            "engine.max_new_tokens=600",
            "profile.budgets_file=" + path,
            "engine.slots=%d" % slots,
        )
        rows = job.run()
        assert len(rows) == n and codes_of(rows) == [None] * len(rows)
        tokens = sum(r["usage"]["completion_tokens"] for r in rows)
        assert job.stats()["restarted_tokens"] == 0
        longest = max(r["usage"]["completion_tokens"] for r in rows)
        assert steps(job) <= tokens / slots + longest, (slots, steps(job), tokens)


@test
def a_plan_refuses_no_record_that_another_answers():
    path, runs = budgets_file("heavy.json", [[1500, 40, 40, 40]] + [[40] * 4] * 3), []
    same = prompts(1)[0]
    records = [dict(same, id=i, max_tokens=1500) for i in range(8 if cli.sanitized() else 24)]
    for mode in ("standard", "fair-copying"):
        job = PromptJob(
            "heavy-" + mode,
            records,
            "profile.budgets_file=" + path,
            "engine.slots=5",
            "engine.tensor_parallel=2",
            "plan.mode=" + mode,
        )
        rows = job.run()
        assert codes_of(rows) == [None] * len(rows), (mode, codes_of(rows))
        runs.append([r["ids"] for r in rows])
    assert runs[0] == runs[1]


def tight(name, *settings):
    """16 slots, and room for a record of the most tokens that the model has positions for: two of
    them at a time, or more short ones. Answers are of unlike lengths."""
    n = 10 if cli.sanitized() else 40
    records = [dict(r, max_tokens=700 if i % 4 == 0 else 60) for i, r in enumerate(prompts(n))]
    return PromptJob(
        name,
        cli.write("tight.jsonl", cli.jsonl(records)),
        "model.max_prompt_tokens=400",
        "profile.budgets_file=" + budgets_file("uniform.json", [[300] * 4] * 4),
        "engine.slots=16",
        "sampling.temperature=1.5",
        "output.records_per_shard=8",
        *settings
    )


@test
def a_cache_for_one_record_gives_the_same_rows():
    large = tight("large")
    large.run()
    small = tight("small", "engine.kv_memory=1")
    small.run()
    assert small.content() == large.content()
    assert small.stats()["kv_bytes"] <= large.stats()["kv_bytes"]
    assert steps(small) > steps(large), "the small cache was no bound"


@test
def killed_again_and_again_with_a_cache_for_one_record_it_ends_the_same():
    want = tight("undisturbed")
    want.run()
    job = tight("killed", "engine.kv_memory=1")
    for answered in (1, 3, 5):
        run = Running(job, hold="records %d" % answered).until_held()
        run.stop(signal.SIGKILL)
    job.run()
    assert job.content() == want.content()


@test
def a_token_whose_embedding_is_no_number_makes_error_rows_of_its_prompts_alone():
    """Records with it are bad_logits; others, in the same passes and steps, are answered as ever."""
    model = cli.model_without_a_number("\u0007")
    records = [dict(p, prompt=("\u0007 " if i % 3 == 1 else "") + p["prompt"]) for i, p in enumerate(prompts(12))]
    kept = ["profile.method=uniform", "profile.budget=64"]  # so that there are scores, of no numbers too
    plain = PromptJob("numbers", records, *kept)
    good = plain.run()
    bad = PromptJob("no-numbers", records, "model.path=" + model, *kept)
    rows = bad.run(1)
    assert codes_of(rows) == ["bad_logits" if i % 3 == 1 else None for i in range(12)], codes_of(rows)
    for got, want in zip(rows, good):
        if not got.get("error"):
            assert got["ids"] == want["ids"]
        else:
            assert "not numbers" in got["error"]["message"]


if __name__ == "__main__":
    cli.main()
