"""Models of other families against HF transformers' answers (tests/golden/families.json), on every
number of ranks."""

import functools
import json
import os

import checkpoints
import cli
from cli import PromptJob, test


@functools.lru_cache(maxsize=None)
def folder(name, other=False):
    tokenizer = os.path.join(cli.TINY, "tokenizer.json")
    model = checkpoints.write(name, os.path.join(cli.WORK, "model-" + name), tokenizer)
    # Without a model_type the architecture names the family, and no family's tokenizer class
    # replaces the steps of tokenizer.json, by which the prompts' ids were made.
    config = os.path.join(model, "config.json")
    values = checkpoints.other_layout(cli.load(config)) if other else cli.load(config)
    del values["model_type"]
    if name == "mistral-window":  # HF's Mistral does not look at this flag: the same ids
        values["use_sliding_window"] = False
    with open(config, "w") as f:
        json.dump(values, f)
    return model


def job(name, ranks, *settings, tag="", other=False):
    records = [
        {"id": i, "prompt": prompt, "max_tokens": checkpoints.NEW_TOKENS}
        for i, prompt in enumerate(checkpoints.PROMPTS)
    ]
    return PromptJob(
        "%s-%d%s" % (name, ranks, tag),
        records,
        "model.path=" + folder(name, other),
        "engine.tensor_parallel=%d" % ranks,
        "engine.backend=" + os.environ.get("FKV_TEST_BACKEND", "cpu"),
        *settings
    )


@test
def layers_with_a_window_are_not_in_what_a_row_says_was_kept():
    """But where every layer has one."""
    for name, window in (("gemma2", 0), ("mistral-window", 24)):
        rows = job(name, 1, "profile.method=uniform", "profile.budget=40", tag="-kept").run()
        for row in rows:
            want = min(window or 40, row["usage"]["prompt_tokens"])
            assert row["usage"]["kept_tokens"] == want, (name, row["usage"])
        assert max(row["usage"]["prompt_tokens"] for row in rows) > 40


@test
def every_family_gives_the_ids_of_hf():
    """The second time on other ranks, from a config as the other generation of HF transformers writes it."""
    golden = cli.load(os.path.join(cli.TESTS, "golden", "families.json"))["families"]
    assert sorted(golden) == sorted(checkpoints.CONFIGS), "tests/golden/make_families.py makes it anew"
    for name, want in golden.items():
        for ranks, other in ((1, False), (checkpoints.KV_HEADS, True)):
            tag = "-other" if other else ""
            rows = sorted(job(name, ranks, tag=tag, other=other).run(), key=lambda row: row["id"])
            for row, ids in zip(rows, want):
                assert row["ids"] == ids, "%s, %d ranks, prompt %d: %s, HF: %s" % (
                    name,
                    ranks,
                    row["id"],
                    row["ids"],
                    ids,
                )


@test
def a_compressed_cache_is_of_use_to_every_family():
    """Budgets are measured and kept; answers are the same on any number of slots."""
    for name in checkpoints.CONFIGS:
        settings = ("profile.method=ada-snapkv", "profile.budget=48", "profile.sample=4")
        one = job(name, 2, "engine.slots=1", *settings, tag="-one").run()
        assert len(one) == len(checkpoints.PROMPTS) and not any(row.get("error") for row in one), one
        many = job(name, 2, "engine.slots=4", *settings, tag="-many").run()
        assert [row["ids"] for row in one] == [row["ids"] for row in many], name


cli.main()
