"""What records ask for beside their prompt, and what the model folder says of choosing tokens: chat
templates, sampling by request, generation_config.json."""

import json
import os
import shutil

import checkpoints
import cli
from cli import Job, PromptJob, codes_of, test

IS_CPU = os.environ.get("FKV_TEST_BACKEND", "cpu") == "cpu"
GOLDEN = cli.load(os.path.join(cli.TESTS, "golden", "generation.json"))
BACKEND = "engine.backend=" + os.environ.get("FKV_TEST_BACKEND", "cpu")
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}answer: "
ONE = "The hidden number of Anna is 4821."


def tiny(name, **files):
    """needle-tiny's folder with other files; None: without it. "-" stands for "." in names."""
    folder = os.path.join(cli.WORK, "model-" + name)
    shutil.copytree(cli.TINY, folder)
    for file, content in files.items():
        path = os.path.join(folder, file.replace("-", "."))
        if content is None:
            os.unlink(path)
        else:
            cli.write(os.path.relpath(path, cli.WORK), content)
    return folder


def llama(name, generation):
    tokenizer = os.path.join(cli.TINY, "tokenizer.json")
    folder = checkpoints.write("llama", os.path.join(cli.WORK, "model-" + name), tokenizer)
    cli.write("model-%s/generation_config.json" % name, generation)
    return folder


def tokens(text):
    """Ids without the post-processor."""
    out = cli.command("tokenize", cli.TINY, "--json", stdin=json.dumps(text).encode()).must(0).out
    return len(out.split())


def job(name, records, *settings):
    return PromptJob(name, records, BACKEND, *settings)


def chat_job(name, records, *settings):
    template = cli.write(name + ".jinja", CHAT)
    return job(name, records, "model.chat_template=" + template, *settings)


def needs_float32():
    if not IS_CPU:
        raise cli.Skip("HF's ids are of float32")


@test
def a_generation_config_is_applied_as_hf_does():
    needs_float32()
    records = [
        {"id": i, "prompt": prompt, "max_tokens": checkpoints.NEW_TOKENS}
        for i, prompt in enumerate(checkpoints.PROMPTS)
    ]
    for k, case in enumerate(GOLDEN["cases"]):
        name = "generation-%d" % k
        settings = ("model.path=" + llama(name, case["settings"]), "engine.tensor_parallel=2")
        rows = sorted(job(name, records, *settings).run(), key=lambda row: row["id"])
        assert [row["ids"] for row in rows] == case["ids"], case["settings"]
        if "eos_token_id" in case["settings"]:
            continue
        ignored = job(name + "-ignored", records, *settings, "sampling.generation_config=ignore")
        rows = sorted(ignored.run(), key=lambda row: row["id"])
        assert [row["ids"] for row in rows] == GOLDEN["plain"]


@test
def a_request_overrides_the_generation_config():
    needs_float32()
    case = GOLDEN["cases"][0]
    records = [
        {"id": i, "prompt": prompt, "max_tokens": checkpoints.NEW_TOKENS, "repetition_penalty": p}
        for p in (1, 1.05, 1.5)
        for i, prompt in enumerate(checkpoints.PROMPTS)
    ]
    rows = job("penalties", records, "model.path=" + llama("penalties", case["settings"])).run()
    ids = [row["ids"] for row in rows]
    n = len(checkpoints.PROMPTS)
    assert ids[:n] == GOLDEN["plain"] and ids[n : 2 * n] == case["ids"] and ids[2 * n :] == GOLDEN["cases"][1]["ids"]


@test
def a_generation_config_that_can_not_be_followed_is_refused_by_name():
    for settings, word in (
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size"),
        ({"bad_words_ids": [[5]]}, "bad_words_ids"),
        ({"num_beams": 4}, "num_beams"),
        ({"suppress_tokens": [5000]}, "item 1 is no id of the vocabulary of 1024"),
        ({"repetition_penalty": "x"}, "repetition_penalty"),
    ):
        bad = job("refused", [ONE], "model.path=" + llama("refused", settings))
        bad.command("check").must(2, "generation_config.json", word)
        bad.command("check", "-s", "sampling.generation_config=ignore").must(0)


@test
def chance_is_never_the_model_s_to_say_and_the_log_says_so_once():
    model = llama("chance", {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20})
    said = "do_sample true, temperature 0.6, top_p 0.9, top_k 20"
    run = job("chance", [{"prompt": p} for p in checkpoints.PROMPTS], "model.path=" + model)
    text = run.command("run").must(0, said).text
    assert text.count(said) == 1
    if IS_CPU:
        assert [row["ids"] for row in run.rows()] == [ids[:12] for ids in GOLDEN["plain"]]


@test
def messages_go_through_the_chat_template():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ONE}]
    rendered = "system: Be brief.\nuser: %s\nanswer: " % ONE
    records = [{"id": 1, "messages": messages}, {"id": 2, "prompt": rendered}, {"id": 3, "prompt": ONE}]
    chat, plain, bare = chat_job("messages", records).run()
    assert chat["usage"]["prompt_tokens"] == tokens(rendered)  # no BOS but the template's
    assert plain["usage"]["prompt_tokens"] == tokens(rendered) + 1  # a plain prompt is never wrapped
    assert bare["usage"]["prompt_tokens"] == tokens(ONE) + 1


@test
def a_number_beyond_64_bits_in_a_message_is_that_record_s_error():
    records = [{"id": i, "messages": [{"role": "user", "content": ONE, "n": 10**30 if i == 1 else i}]} for i in range(3)]
    rows = chat_job("bignum", records).run(1)
    assert codes_of(rows) == [None, "chat_template", None], rows


@test
def what_is_never_cut_and_leaves_no_room_is_told():
    many = [{"role": "user", "content": "two words"}] * 700
    (row,) = chat_job("many", [{"id": 1, "messages": many}]).run(1)
    assert row["error"]["code"] == "too_long" and "that are never cut" in row["error"]["message"], row


@test
def the_model_folder_s_template_is_taken_unless_the_job_says_none():
    model = tiny("templated", **{"chat_template-jinja": "{{ messages[0].content }}!"})
    record = [{"id": 1, "messages": [{"role": "user", "content": ONE}]}]
    (row,) = job("auto", record, "model.path=" + model).run()
    assert row["usage"]["prompt_tokens"] == tokens(ONE + "!")
    (row,) = job("none", record, "model.path=" + model, "model.chat_template=none").run(1)
    assert row["error"]["code"] == "chat_template" and "model.chat_template" in row["error"]["message"]


@test
def a_template_s_variables_and_errors_reach_the_records():
    text = "{% if messages|length > 1 %}{{ raise_exception('one message') }}{% endif %}{{ who }}{{ bos_token }}"
    settings = ("model.chat_template=" + cli.write("vars.jinja", text), 'model.template_vars={"who": "%s"}' % ONE)
    one = {"role": "user", "content": "x"}
    rows = job("vars", [{"id": 1, "messages": [one]}, {"id": 2, "messages": [one, one]}], *settings).run(1)
    assert codes_of(rows) == [None, "chat_template"] and "one message" in rows[1]["error"]["message"]
    assert rows[0]["usage"]["prompt_tokens"] == tokens(ONE)
    broken = job("broken", [one], "model.chat_template=" + cli.write("broken.jinja", "a\n{% if %}"))
    broken.command("check").must(2, "broken.jinja", "2: ")


@test
def the_template_s_today_is_the_first_run_s():
    text = "{%% set d = strftime_now('%%d %%B %%Y') %%}{{ d }} {%% if '%s' in d %%}{{ d }} {%% endif %%}{{ messages[0].content }}"
    text %= "December 1999"  # twice, so that the day shows in the number of tokens
    template = "model.chat_template=" + cli.write("dated.jinja", text)
    record = {"id": 1, "messages": [{"role": "user", "content": ONE}]}
    given = job("given", [record], template, "model.date=2024-07-26")
    (row,) = given.run()
    assert row["usage"]["prompt_tokens"] == tokens("26 July 2024 " + ONE)
    assert given.plan()["layout"]["date"] == "2024-07-26"
    # A resume, maybe on another day, goes on with the day of the plan.
    begun = job("begun", [record] * 4, template, "output.records_per_shard=1")
    begun.run()
    plan = begun.plan()
    today, old = plan["layout"]["date"], "1999-12-31"
    with open(begun.file("plan.json")) as f:
        content = f.read()
    cli.write("begun/plan.json", content.replace(today, old))
    manifest = cli.load(begun.file("manifest.json"))
    for gone in ("complete", "records", "errors"):
        del manifest[gone]
    del manifest["shards"][2:]
    cli.write("begun/manifest.json", manifest)
    rows = begun.run()
    assert rows[3]["usage"]["prompt_tokens"] == tokens(2 * "31 December 1999 " + ONE) != rows[0]["usage"]["prompt_tokens"]
    undated = chat_job("undated", [record])
    undated.run()
    assert "date" not in undated.plan()["layout"]


@test
def a_plan_s_date_that_is_no_day_is_refused():
    text = "{{ strftime_now('%Y') }}"
    dated = job("nodate", [{"prompt": ONE}], "model.chat_template=" + cli.write("nodate.jinja", text))
    dated.run()
    with open(dated.file("plan.json")) as f:
        content = f.read()
    cli.write("nodate/plan.json", content.replace(dated.plan()["layout"]["date"], "1999-13-01"))
    os.unlink(dated.shards()[0])
    manifest = cli.load(dated.file("manifest.json"))
    for gone in ("complete", "records", "errors"):
        del manifest[gone]
    manifest["shards"] = []
    cli.write("nodate/manifest.json", manifest)
    dated.command("run").must(2, "plan.json", "date")


@test
def requests_are_sampled_each_in_its_own_way():
    """Equal requests with a seed of their own get equal answers; the others get the job's sampling."""
    hot = {"prompt": ONE, "temperature": 3, "seed": 7}
    records = [
        {"prompt": ONE},
        hot,
        {"prompt": ONE, "temperature": 3},
        hot,
        {"prompt": ONE, "temperature": 3},
        dict(hot, seed=8),
        dict(hot, top_k=1),
        dict(hot, top_p=1e-9),
    ]
    rows = job("own", records).run()
    ids = [tuple(row["ids"]) for row in rows]
    assert ids[1] == ids[3] and len({ids[k] for k in (0, 1, 2, 4, 5)}) == 5
    assert ids[0] == ids[6] == ids[7]
    alone = job("alone", [records[0]], "engine.slots=8").run()
    assert tuple(alone[0]["ids"]) == ids[0]
    job_wide = job("wide", [{"prompt": ONE}] * 3, "sampling.temperature=3").run()
    assert tuple(job_wide[2]["ids"]) == ids[2]  # of job.seed and the record's place


@test
def a_request_s_stop_strings_and_ends_are_its_own():
    (whole,) = job("whole", [{"prompt": ONE, "max_tokens": 40, "ignore_eos": True}]).run()
    assert whole["finish_reason"] == "length" and whole["usage"]["completion_tokens"] == 40
    cut = whole["text"][3:6]
    records = [
        {"prompt": ONE, "max_tokens": 40, "ignore_eos": True, "stop": cut},
        {"prompt": ONE, "max_tokens": 40, "ignore_eos": True, "stop": []},
        {"prompt": ONE, "max_tokens": 40, "ignore_eos": True},
    ]
    rows = job("stops", records, 'sampling.stop=["%s"]' % whole["text"][1:3]).run()
    assert [row["finish_reason"] for row in rows] == ["stop", "length", "stop"]
    assert rows[0]["text"] == whole["text"][: whole["text"].index(cut)] and rows[1]["text"] == whole["text"]
    assert rows[2]["text"] == whole["text"][: whole["text"].index(whole["text"][1:3])]


@test
def a_minimum_of_new_tokens_is_reached():
    record = cli.one_record()
    prompt = cli.needle_prompt(record)
    rows = job("minimum", [{"prompt": prompt}, {"prompt": prompt, "min_tokens": 11}]).run()
    assert rows[0]["usage"]["completion_tokens"] < 11 <= rows[1]["usage"]["completion_tokens"]
    assert rows[1]["ids"][: len(rows[0]["ids"]) - 1] == rows[0]["ids"][:-1]


@test
def openai_requests_are_answered():
    chat = {"role": "user", "content": ONE}
    records = [
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": [chat], "max_tokens": 3}},
        {"custom_id": "b", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": ONE, "max_tokens": 4}},
        {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"prompt": ONE, "n": 2}},
    ]
    rows = chat_job("openai", records, "input.format=openai").run(1)
    assert codes_of(rows) == [None, None, "bad_field"] and [row["id"] for row in rows] == ["a", "b", "c"]
    assert [row["usage"]["completion_tokens"] for row in rows[:2]] == [3, 4]
    assert rows[0]["usage"]["prompt_tokens"] == tokens("user: %s\nanswer: " % ONE)


@test
def what_a_user_says_in_ruler_and_qa_records_is_wrapped():
    ruler = {"index": 3, "input": ONE, "outputs": ["4821"], "answer_prefix": " It is"}
    (row,) = chat_job("ruler", [ruler], "input.format=ruler").run()
    assert row["id"] == 3 and row["usage"]["prompt_tokens"] == tokens("user: %s\nanswer:  It is" % ONE)
    qa = {"context": ONE, "question": " Which?", "answer": "4821", "max_new_tokens": 2}
    (row,) = chat_job("qa", [qa], "input.format=qa").run()
    assert row["usage"] == {
        "prompt_tokens": tokens("user: %s Which?\nanswer: " % ONE),
        "completion_tokens": 2,
        "truncated_tokens": 0,
        "kept_tokens": tokens("user: %s Which?\nanswer: " % ONE),
    }


@test
def longbench_s_plain_datasets_are_not_wrapped():
    record = dict(cli.one_record(), context=ONE)
    templates = cli.write("two.json", {"samsum": "{context}", "qasper": "{context}"})
    rows = {}
    for dataset in ("samsum", "qasper"):
        source = cli.write(dataset + ".jsonl", cli.jsonl([record]))
        wrapped = Job(
            dataset,
            "input.archives=" + source,
            "input.members=*",
            "input.prompts=" + templates,
            "input.max_new_tokens_by",
            "model.chat_template=" + cli.write(dataset + ".jinja", CHAT),
            BACKEND,
        )
        (rows[dataset],) = wrapped.run()
    assert rows["samsum"]["usage"]["prompt_tokens"] == tokens(ONE) + 1
    assert rows["qasper"]["usage"]["prompt_tokens"] == tokens("user: %s\nanswer: " % ONE)


@test
def a_template_longer_than_the_prompt_s_limit_goes_around_what_pred_py_cut():
    """max_prompt_tokens leaves it out of its count; the sample may not show how long prompts get."""
    texts = [ONE] + ["One two three four five. " * 40] * 3
    records = [dict(cli.one_record(), context=text) for text in texts]
    source = cli.write("qasper.jsonl", cli.jsonl(records))
    around = "A long word of advice. " * 60
    rows = Job(
        "advice",
        "input.archives=" + source,
        "input.members=*",
        "input.prompts=" + cli.write("qasper.json", {"qasper": "{context}"}),
        "input.max_new_tokens_by",
        "model.chat_template=" + cli.write("advice.jinja", around + "{{ messages[0].content }}"),
        "model.truncate=longbench",
        "model.max_prompt_tokens=64",
        "profile.sample=1",
        BACKEND,
    ).run()
    for row in rows[1:]:
        cut = row["usage"]["truncated_tokens"]
        assert cut == tokens(texts[1]) + 1 - 64
        assert tokens(around) < row["usage"]["prompt_tokens"] <= tokens(around) + 66


@test
def samsum_ends_at_a_new_line_behind_one_token_at_least():
    """pred.py's eos_token_id and min_length."""
    templates = cli.write("samsum-only.json", {"samsum": "{context}", "other": "{context}"})
    newline = int(cli.command("tokenize", cli.TINY, "--json", stdin=b'"\\n"').must(0).out.split()[-1])
    records = [dict(cli.one_record(), _id=k, context="Line %d." % k) for k in range(60)]
    made = {}
    for dataset in ("samsum", "other"):
        source = cli.write(dataset + "/%s.jsonl" % dataset, cli.jsonl(records))
        drawn = Job(
            dataset + "-drawn",
            "input.archives=" + source,
            "input.members=*",
            "input.prompts=" + templates,
            "input.max_new_tokens_by",
            "model.path=" + llama("drawn-" + dataset, {"eos_token_id": 1}),
            "engine.max_new_tokens=200",
            "engine.slots=16",
            "sampling.temperature=30",  # any id, a new line among them
            BACKEND,
        )
        made[dataset] = [(row["ids"], row["finish_reason"]) for row in drawn.run()]
    for ids, reason in made["samsum"]:
        assert ids[0] != newline and newline not in ids[:-1] and (ids[-1] != newline or reason == "stop")
    assert sum(ids[-1] == newline for ids, _ in made["samsum"]) > 3
    assert sum(newline in ids[:-1] for ids, _ in made["other"]) > 3


cli.main()
