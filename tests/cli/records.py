"""What a record may say, and what of it comes out in its row."""

import json
import os

import cli
from cli import Job, PromptJob, codes_of, jsonl, one_record, test

GOOD = one_record()
ANSWER = GOOD["answers"][0]
PROMPT = cli.needle_prompt(GOOD)


def n_tokens(text):
    return len(
        cli.command("tokenize", cli.TINY, "--json", "--bos", stdin=json.dumps(text).encode())
        .must(0)
        .out.split()
    )


# With output.token_ids = no.
KEYS = ["id", "source", "dataset", "fields", "text", "finish_reason", "usage", "error"]


@test
def a_plain_prompt_is_answered():
    (row,) = PromptJob("plain", [{"id": "one", "prompt": PROMPT, "note": {"n": 1, "s": "\u00e9"}}]).run()
    assert row["id"] == "one" and row["text"].strip() == ANSWER and row["finish_reason"] == "stop"
    assert row["dataset"] is None and row["fields"] == {"note": {"n": 1, "s": "\u00e9"}}
    assert row["usage"] == {
        "prompt_tokens": n_tokens(PROMPT),
        "completion_tokens": len(row["ids"]),
        "truncated_tokens": 0,
        "kept_tokens": n_tokens(PROMPT),  # fewer than the budget
    }
    assert row["ids"][-1] == 1 and row["error"] is None
    # The stop token counts but is not in the text.
    text = (
        cli.command(
            "tokenize", cli.TINY, "--decode", "--json", stdin=" ".join(map(str, row["ids"][:-1])).encode()
        )
        .must(0)
        .out
    )
    assert json.loads(text) == row["text"]


@test
def a_row_s_members_stand_in_the_documented_order():
    job = Job("members", "job.limit=1", "output.token_ids=no")
    (row,) = job.run()
    assert list(row) == KEYS
    assert list(row["usage"]) == ["prompt_tokens", "completion_tokens", "truncated_tokens", "kept_tokens"]
    assert row["source"] == {"archive": cli.NEEDLES, "member": "data/needle_1k.jsonl", "line": 1}
    assert row["dataset"] == "needle_1k"
    assert list(row["fields"]) == ["answers", "length", "dataset", "language", "all_classes"]
    assert row["fields"]["answers"] == [ANSWER]


@test
def a_row_says_how_many_tokens_of_its_prompt_a_head_kept_on_average():
    """The mean of min(budget, prompt), halves up."""
    budgets = [[40, 5000, 64, 64], [100, 100, 100, 101], [7, 8, 9, 10], [64, 64, 64, 64]]
    job = Job("kept", "profile.budgets_file=" + cli.budgets_file("kept.json", budgets), "job.limit=3")
    for row in job.run():
        n = row["usage"]["prompt_tokens"]
        mean = sum(min(b, n) for heads in budgets for b in heads) / 16
        assert 600 < n < 5000 and row["usage"]["kept_tokens"] == int(mean + 0.5), row["usage"]
    for method in ("none", "uniform"):
        job = Job("kept-" + method, "profile.method=" + method, "profile.budget=64", "job.limit=1")
        usage = job.run()[0]["usage"]
        assert usage["kept_tokens"] == (64 if method == "uniform" else usage["prompt_tokens"]), usage


@test
def rows_with_and_without_an_error_have_the_same_keys():
    lines = [{"id": 1, "prompt": PROMPT, "max_tokens": 1}, b"[]", {"id": 3, "prompt": "", "max_tokens": 1}]
    for setting, keys in (("no", KEYS), ("yes", KEYS[:-1] + ["ids", "error"])):
        job = PromptJob("same-keys-" + setting, lines, "output.token_ids=" + setting)
        rows = job.run(1)
        assert [list(r) for r in rows] == [keys] * 3, rows
        assert codes_of(rows) == [None, "not_object", "empty_prompt"]
        for row in rows[1:]:
            assert all(row.get(k) is None for k in ("text", "finish_reason", "usage", "ids")), row


@test
def an_error_row_has_the_dataset_that_its_member_or_record_names():
    """Else whoever counts by dataset counts too few."""
    broken = [b'{"broken', json.dumps({"_id": 2, "dataset": "needle_1k"}).encode(), b"[]"]
    for name, datasets in (
        ("needle_500.jsonl", ["needle_500"] * 3),
        ("needle_2k_e.jsonl", ["needle_2k"] * 3),
        ("mixed.jsonl", [None, "needle_1k", None]),
    ):
        for form in ("longbench", "auto"):
            source = cli.write("named-%s/%s" % (form, name), jsonl(broken + [GOOD]))
            job = Job(
                "named-%s-%s" % (form, name),
                "input.archives=" + source,
                "input.members=*",
                "input.format=" + form,
                "job.limit=3",
            )
            job.command("run").must(1)
            assert [r["dataset"] for r in job.rows()] == datasets, job.rows()


@test
def the_format_is_found_out():
    source = cli.write("auto.jsonl", cli.jsonl([dict(GOOD, _id="lb"), {"id": "p", "prompt": PROMPT}]))
    rows = Job("auto", "input.archives=" + source, "input.members=*", "input.format=auto").run()
    assert [r["id"] for r in rows] == ["lb", "p"] and rows[0]["ids"] == rows[1]["ids"]
    assert [r["dataset"] for r in rows] == ["needle_1k", None]


@test
def the_member_s_name_decides_the_dataset_then_the_record():
    templates = cli.write(
        "t.json", {"one": "A {context} {input}", "two": "B {context}", "two_e": "C {context}"}
    )
    limits = cli.write("l.json", {"one": 1, "two": 2, "two_e": 3})
    record = {
        "_id": "x",
        "context": "c",
        "input": "i",
        "answers": [],
        "length": 1,
        "dataset": "one",
        "language": "en",
        "all_classes": None,
    }
    for name, line, want, limit in (
        ("two.jsonl", record, "two", 2),
        ("one_e.jsonl", record, "one", 1),
        ("two_e.jsonl", record, "two_e", 3),
        ("other.jsonl", record, "one", 1),
    ):
        source = cli.write("sets/" + name, cli.jsonl([line]))
        (row,) = Job(
            "set-" + name,
            "input.archives=" + source,
            "input.members=*",
            "input.prompts=" + templates,
            "input.max_new_tokens_by=" + limits,
        ).run()
        assert row["dataset"] == want and row["usage"]["completion_tokens"] <= limit, (name, row)
        assert row["fields"]["dataset"] == "one"


@test
def templates_are_filled_in_one_pass():
    context, question = "see {input} and {context}", "what {x}"
    templates = cli.write("braces.json", {"needle_1k": "{q}{context}|{input}|{{context}}|{input"})
    source = cli.write("braces.jsonl", cli.jsonl([dict(GOOD, context=context, input=question)]))
    (row,) = Job("braces", "input.archives=" + source, "input.members=*", "input.prompts=" + templates).run()
    prompt = "{q}%s|%s|{%s}|{input" % (context, question, context)
    assert row["usage"]["prompt_tokens"] == n_tokens(prompt)
    (same,) = PromptJob("braces-plain", [{"id": 1, "prompt": prompt}]).run()
    assert row["ids"] == same["ids"]


@test
def the_record_s_limit_wins_then_the_dataset_s_then_the_job_s():
    records = [
        dict(GOOD, _id="own", max_tokens=2),
        dict(GOOD, _id="set"),
        dict(GOOD, _id="job", dataset="needle_2k"),
        dict(GOOD, _id="null", max_tokens=None),
    ]
    limits = cli.write("limits.json", {"needle_1k": 3})
    source = cli.write("limited.jsonl", cli.jsonl(records))
    rows = Job(
        "limited",
        "input.archives=" + source,
        "input.members=*",
        "input.max_new_tokens_by=" + limits,
        "engine.max_new_tokens=4",
    ).run()
    assert [r["usage"]["completion_tokens"] for r in rows] == [2, 3, 4, 3]
    assert all(
        r["finish_reason"] == "length" and len(r["ids"]) == r["usage"]["completion_tokens"] for r in rows
    )
    (whole,) = PromptJob("unlimited", [{"id": 1, "prompt": PROMPT}]).run()
    assert all(r["ids"] == whole["ids"][: len(r["ids"])] for r in rows)
    assert "max_tokens" not in rows[0]["fields"]


@test
def stop_strings_end_answers_and_are_cut_off():
    # The answer's digits are several tokens: a stop string may lie across them.
    for stop in ([ANSWER[2:4]], ["nowhere", ANSWER[1:5]], [ANSWER[3:4], ANSWER[1:3]], [ANSWER[-1]]):
        (row,) = PromptJob(
            "stop-%s" % "-".join(stop), [{"id": 1, "prompt": PROMPT}], "sampling.stop=" + json.dumps(stop)
        ).run()
        cut = min(ANSWER.find(s) for s in stop if s in ANSWER)
        assert row["text"].strip() == ANSWER[:cut], (stop, row["text"])
        assert row["finish_reason"] == "stop" and row["usage"]["completion_tokens"] == len(row["ids"])
        assert row["ids"][-1] != 1 and len(row["ids"]) <= len(ANSWER) + 1, row
    (row,) = PromptJob(
        "stop-none", [{"id": 1, "prompt": PROMPT}], 'sampling.stop=["nowhere", "\\n\\n\\n"]'
    ).run()
    assert row["text"].strip() == ANSWER and row["ids"][-1] == 1


def sampled(name, *settings):
    records = [{"id": "r%d" % i, "prompt": GOOD["context"][:600]} for i in range(12)]
    return [
        r["ids"]
        for r in PromptJob(name, records, "sampling.temperature=1", "sampling.top_p=0.98", *settings).run()
    ]


@test
def sampling_follows_the_seed():
    one, again, other = sampled("s1", "job.seed=1"), sampled("s1b", "job.seed=1"), sampled("s2", "job.seed=2")
    assert one == again and one != other
    assert len(set(map(tuple, one))) > 6, "twelve records share random streams"


@test
def sampling_does_not_depend_on_slots():
    want = sampled("slots8")
    for slots in (1, 3, 16):
        got = sampled("slots%d" % slots, "engine.slots=%d" % slots)
        # Rounding may differ between numbers of slots; a draw rarely falls so near an edge.
        assert sum(a != b for a, b in zip(got, want)) <= 1, slots


@test
def sampling_does_not_depend_on_plan_or_devices():
    settings = (
        "engine.tensor_parallel=4",
        "profile.budgets_file=" + cli.budgets_file("b.json", [[96, 33, 33, 33]] * 4),
    )
    want = sampled("plain4", "plan.mode=standard", *settings)
    assert want == sampled("fair4", "plan.mode=fair-copying", *settings)
    assert want == sampled("two4", "engine.devices=2", *settings)


@test
def narrow_sampling_is_greedy():
    greedy = sampled("greedy", "sampling.temperature=0")
    assert len(set(map(tuple, greedy))) == 1
    assert greedy == sampled("top-k-1", "sampling.top_k=1")
    assert greedy == sampled("top-p-0", "sampling.top_p=0.000001")
    assert greedy == sampled("cold", "sampling.temperature=0.0001")
    assert greedy != sampled("hot", "sampling.temperature=3", "sampling.top_p=1")


def ids_of_text(text):
    out = cli.command("tokenize", cli.TINY, "--json", "--bos", stdin=json.dumps(text).encode()).must(0).out
    return [int(i) for i in out.split()]


def text_of_ids(ids):
    out = (
        cli.command("tokenize", cli.TINY, "--decode", "--json", stdin=" ".join(map(str, ids)).encode())
        .must(0)
        .out
    )
    return json.loads(out)


@test
def long_prompts_are_cut_where_the_job_says():
    ids = ids_of_text(PROMPT)
    for where in ("left", "right", "middle"):
        for limit in range(200, 260):
            body = limit - 1
            front = {"left": 0, "right": body, "middle": body - body // 2}[where]
            kept = ids[:1] + ids[1 : 1 + front] + (ids[len(ids) - (body - front) :] if body > front else [])
            text = text_of_ids(kept[1:])
            if limit % 2 == (where == "middle") and ids_of_text(text) == kept:
                break  # text that stands for just the kept ids
        else:
            raise AssertionError("no limit has its text")
        hot = ("sampling.temperature=1", "model.max_prompt_tokens=%d" % limit)
        (row,) = PromptJob(
            "cut-" + where, [{"id": 1, "prompt": PROMPT}], "model.truncate=" + where, *hot
        ).run()
        assert row["usage"]["prompt_tokens"] == limit and row["usage"]["truncated_tokens"] == len(ids) - limit, row
        (same,) = PromptJob("kept-" + where, [{"id": 1, "prompt": text}], "model.truncate=error", *hot).run()
        assert row["ids"] == same["ids"] and same["usage"]["truncated_tokens"] == 0, where


@test
def all_prompts_are_cut_and_say_so():
    rows = Job("cut", "job.limit=8", "model.max_prompt_tokens=200", "model.truncate=middle").run()
    golden = cli.golden()["full"]["first"]
    assert [r["usage"]["truncated_tokens"] for r in rows] == [g["prompt_tokens"] - 200 for g in golden[:8]]


@test
def a_limit_beyond_the_model_s_positions_is_lowered_and_said():
    job = PromptJob(
        "lowered", [{"id": 1, "prompt": PROMPT * 3, "max_tokens": 48}], "model.max_prompt_tokens=100000"
    )
    job.command("run").must(0, "model.max_prompt_tokens 100000 is lowered", "2048 positions")
    (row,) = job.rows()
    assert row["usage"]["prompt_tokens"] == 2000
    assert row["usage"]["truncated_tokens"] == n_tokens(PROMPT * 3) - 2000


ERRORS = [
    (b'{"id": "a", "prompt": "broken', "bad_json", "a"),
    (b'{"id": "broken', "bad_json", None),
    (b'{"id": "b", "prompt": "x"} {}', "bad_json", "b"),
    (b'{"id": "c", "prompt": "x", "prompt": "y"}', "bad_json", "c"),
    (b'{"id": "d", "prompt": "x", "n": 01}', "bad_json", "d"),
    (b'{"id": "e", "prompt": "\xff"}', "bad_utf8", "e"),
    (b'\xff\xfe{"id": "f"}', "bad_utf8", None),
    (b'{"id": "g", "prompt": "\\ud800"}', "bad_json", "g"),
    (b"[]", "not_object", None),
    (b"null", "not_object", None),
    (b"7", "not_object", None),
    (b'"text"', "not_object", None),
    (b'{"id": "h"}', "missing_field", "h"),
    (b'{"id": "i", "prompt": 7}', "bad_field", "i"),
    (b'{"id": "j", "prompt": null}', "bad_field", "j"),
    (b'{"id": {"k": 1}, "prompt": "x"}', "bad_field", None),
    (b'{"id": "l", "prompt": "x", "max_tokens": 0}', "bad_field", "l"),
    (b'{"id": "m", "prompt": "x", "max_tokens": 1.5}', "bad_field", "m"),
    (b'{"id": "n", "prompt": "x", "max_tokens": "12"}', "bad_field", "n"),
    (b'{"id": "o", "prompt": "x", "max_tokens": 99999999999999999999}', "bad_field", "o"),
    (b'{"id": "p", "prompt": ""}', "empty_prompt", "p"),
    (b'{"id": "q", "prompt": "x", "max_tokens": 2048}', "too_long", "q"),
    (b'{"id": "r", "prompt": "' + b"word " * 3000 + b'"}', "too_long", "r"),
    (b'{"id": "s", "prompt": "' + b"x" * 70000 + b'"}', "too_large", None),
    (b'{"id": "t", "prompt": "x", "deep": ' + b"[" * 5000 + b"]" * 5000 + b"}", "bad_json", "t"),
    (b'{"id": "u", "prompt": "x", "nul": [1\0, 2]}', "bad_json", "u"),
    (b'{"id": "v", "prompt": "x", "nul": "\0"}', "bad_json", "v"),
]


@test
def each_bad_record_is_a_row_that_says_why():
    good = b'{"id": "good-%d", "prompt": "The access code is", "max_tokens": 2}'
    lines = [good % 1] + [e[0] for e in ERRORS] + [good % 2]
    job = PromptJob("errors", lines, "model.truncate=error", "input.max_record_bytes=64K")
    rows = job.run(1)
    assert len(rows) == len(lines)
    assert [rows[0]["id"], rows[-1]["id"]] == ["good-1", "good-2"]
    assert codes_of(rows) == [None] + [e[1] for e in ERRORS] + [None]
    for line, (row, (text, code, name)) in enumerate(zip(rows[1:-1], ERRORS), 2):
        place = {"archive": cli.WORK + "/errors.jsonl", "member": "errors.jsonl", "line": line}
        assert row["source"] == place, row["source"]
        assert row["error"]["code"] == code, (text[:80], row["error"])
        assert row["id"] == name, (text[:80], row)
        assert row["error"]["message"], row
        assert all(row[k] is None for k in ("text", "usage", "finish_reason", "ids")), row
    stats = job.stats()
    assert stats["errors"] == len(ERRORS) and stats["records"] == len(lines) and stats["complete"] is True


@test
def bad_longbench_records_are_rows_too():
    lines = [
        json.dumps(GOOD).encode(),
        b'{"input": "broken',
        json.dumps(dict(GOOD, _id="long", context="word " * 20000)).encode(),
        json.dumps({"_id": "nofield", "input": "x", "dataset": "needle_1k"}).encode(),
        b"[]",
        json.dumps(dict(GOOD, _id="unknown", dataset="nosuch")).encode(),
        json.dumps({k: v for k, v in dict(GOOD, _id="nodataset").items() if k != "dataset"}).encode(),
        json.dumps(dict(GOOD, _id="number", context=5)).encode(),
        json.dumps(dict(GOOD, _id="last")).encode(),
    ]
    source = cli.write("longbench-errors.jsonl", cli.jsonl(lines))
    rows = Job("longbench-errors", "input.archives=" + source, "input.members=*", "model.truncate=error").run(
        1
    )
    assert codes_of(rows) == [
        None,
        "bad_json",
        "too_long",
        "missing_field",
        "not_object",
        "unknown_dataset",
        "unknown_dataset",
        "bad_field",
        None,
    ]
    assert [r["id"] for r in rows] == [
        GOOD["_id"],
        None,
        "long",
        "nofield",
        None,
        "unknown",
        "nodataset",
        "number",
        "last",
    ]
    for row, word in ((rows[3], "context"), (rows[5], "nosuch"), (rows[6], "names no dataset")):
        assert word in row["error"]["message"], row["error"]
    for i, row in enumerate(rows):
        assert row["source"] == {"archive": source, "member": "longbench-errors.jsonl", "line": i + 1}
    assert rows[2]["fields"]["answers"] == [ANSWER]  # an error row passes its fields through


@test
def a_dataset_without_a_template_or_with_an_empty_one_is_an_error_row():
    templates = cli.write("some.json", {"needle_2k": "", "other": "{context}"})
    source = cli.write("no-template.jsonl", jsonl([GOOD, dict(GOOD, dataset="needle_2k")]))
    job = Job("no-template", "input.archives=" + source, "input.members=*", "input.prompts=" + templates)
    rows = job.run(1)
    assert codes_of(rows) == ["unknown_dataset", "empty_prompt"], rows
    assert 'input.prompts has neither "no-template" nor "needle_1k"' in rows[0]["error"]["message"], rows[0]


@test
def a_record_of_very_many_values_costs_no_memory():
    """63 MB of "{}," would be gigabytes once parsed; as text alone it is what it is."""
    short = b'{"id": "%s", "prompt": "x", "max_tokens": 1}'
    text = b'{"id": "text", "prompt": 7, "note": "' + b"x" * (63 << 20) + b'"}'
    many = b'{"id": "many", "prompt": 7, "note": [' + b"{}," * (21 << 20) + b"{}]}"
    peaks = []
    for name, long_line, code in (("text", text, "bad_field"), ("many", many, "too_large")):
        job = PromptJob("values-" + name, [short % b"a", long_line, short % b"b"])
        rows = job.run(1)
        assert codes_of(rows) == [None, code, None], codes_of(rows)
        peaks.append(job.stats()["peak_rss_bytes"])
    assert "more than 1048576 values" in rows[1]["error"]["message"]
    assert cli.sanitized() or peaks[1] < peaks[0], peaks


@test
def too_many_errors_stop_the_job():
    good = b'{"id": %d, "prompt": "The access code is", "max_tokens": 2}'
    lines = cli.write("some-bad.jsonl", jsonl([b"[]" if i % 5 == 4 else good % i for i in range(400)]))
    whole = PromptJob("any-errors", lines, "output.records_per_shard=4")
    whole.run(1)
    job = PromptJob("max-errors", lines, "job.max_errors=10", "output.records_per_shard=4")
    job.command("run").must(2, "stopped after 10 bad records (job.max_errors)")
    stats, manifest = job.stats(), cli.load(job.file("manifest.json"))
    assert stats["complete"] is False and manifest["complete"] is False and stats["errors"] == 10, stats
    assert 10 <= stats["records"] < 400, stats
    # All of it is kept: a run that bears more errors goes on from there.
    want = whole.content()
    assert all(want[name] == bytes_ for name, bytes_ in job.content().items())
    job.command("run", "-s", "job.max_errors=0").must(1, "resuming: %d records are done" % stats["records"])
    assert job.stats()["resumed"] == stats["records"] and job.content() == want
    PromptJob("enough-errors", lines, "job.max_errors=81").run(1)


@test
def what_a_record_has_beside_its_prompt_comes_out_as_it_went_in():
    fields = (
        b'"big": 123456789012345678901234567890, "neg": -0, "price": 1.10, "exp": 1E+2, "nul": "a\\u0000b", '
        b'"esc": "\\u00e9\\/\\ud83d\\ude00", "raw": "\xc3\xa9\xf0\x9f\x98\x80", '
        b'"z": 1, "a": 2, "m": {"z": [1, {}], "a": null}, '
        b'"": true, "text": "mine", "error": "mine", "ids": [1.0]'
    )
    line = b'{"z0": 0, "prompt": "x", ' + fields + b', "id": 12345678901234567890.50, "max_tokens": 1}'
    job = PromptJob("faithful", [line])
    job.run()
    (raw,) = job.raw_rows()
    want = b'"fields":{"z0":0,' + fields.replace(b'": ', b'":').replace(b', "', b',"')
    got = raw[raw.index(b'"fields":') :]
    squeezed = got.replace(b'": ', b'":').replace(b', "', b',"')
    assert squeezed.startswith(want + b"}"), got
    assert raw.startswith(b'{"id":12345678901234567890.50,'), raw[:80]


@test
def ids_may_be_anything_and_repeat():
    lines = [
        b'{"id": "same", "prompt": "x"}',
        b'{"id": "same", "prompt": "x"}',
        b'{"id": 7, "prompt": "x"}',
        b'{"id": null, "prompt": "x"}',
        b'{"prompt": "x"}',
        b'{"id": "\\u00e9\\n", "prompt": "x"}',
        b'{"id": false, "prompt": "x"}',
    ]
    rows = PromptJob("ids", lines, "engine.max_new_tokens=1").run()
    assert [r["id"] for r in rows] == ["same", "same", 7, None, None, "\u00e9\n", False]


@test
def special_tokens_in_a_prompt_are_recognised():
    with open(os.path.join(cli.TINY, "tokenizer.json"), encoding="utf-8") as f:
        special = [t for t in json.load(f)["added_tokens"] if t["special"]]
    token = special[-1]
    prompt = "a" + token["content"] + "b"
    assert token["id"] in ids_of_text(prompt)
    (row,) = PromptJob("special", [{"id": 1, "prompt": prompt}], "engine.max_new_tokens=1").run()
    assert row["usage"]["prompt_tokens"] == len(ids_of_text(prompt))


@test
def shards_are_plain_zstd_in_input_order():
    job = PromptJob(
        "order",
        [{"id": i, "prompt": "x " * (i % 7 + 1), "max_tokens": i % 3 + 1} for i in range(23)],
        "output.records_per_shard=5",
    )
    assert [r["id"] for r in job.run()] == list(range(23))
    assert [os.path.basename(f) for f in job.shards()] == ["shard-%06d.jsonl.zst" % i for i in range(5)]
    assert [len(cli.unzstd(f).splitlines()) for f in job.shards()] == [5, 5, 5, 5, 3]
    manifest = cli.load(job.file("manifest.json"))
    assert manifest["complete"] is True and manifest["records"] == 23 and manifest["errors"] == 0
    for entry, path in zip(manifest["shards"], job.shards()):
        assert os.path.join(job.output, entry["file"]) == path and entry["bytes"] == os.path.getsize(path)
    assert [e["first"] for e in manifest["shards"]] == [0, 5, 10, 15, 20]
    assert sorted(os.listdir(job.output))  # nothing temporary stays
    assert not [n for _, _, names in os.walk(job.output) for n in names if n.endswith(".tmp")]


cli.main()
