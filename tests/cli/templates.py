"""template: messages to the text that a model expects."""

import json
import os

import cli
from cli import command, test

FOLDER = os.path.join(cli.DATA, "templates")
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "add_generation_prompt": True}


def render(where, *requests, options=(), code=0):
    lines = b"".join(json.dumps(r).encode() + b"\n" for r in requests)
    return [json.loads(x) for x in command("template", where, *options, stdin=lines).must(code).out.splitlines()]


def template(text, *requests, options=()):
    return render(cli.write("t.jinja", text), *(requests or [HELLO]), options=options)


def error_of(text, request=HELLO):
    (row,) = template(text, request)
    assert list(row) == ["error"], row
    return row["error"]


def model(name, config=None, jinja=None, tokens=None):
    """A model folder with these files. Returns its path."""
    for file, content in (
        ("tokenizer_config.json", config),
        ("chat_template.jinja", jinja),
        ("special_tokens_map.json", tokens),
        ("config.json", {}),
    ):
        if content is not None:
            cli.write(os.path.join(name, file), content)
    return os.path.join(cli.WORK, name)


@test
def published_templates_render_as_hf_renders_them():
    records = cli.load(os.path.join(FOLDER, "renderings.json"))["records"]
    assert len(records) == 156
    for name in sorted({r["template"] for r in records}):
        mine = [r for r in records if r["template"] == name]
        wanted = ("messages", "add_generation_prompt", "variables")
        requests = [{k: r[k] for k in wanted} for r in mine]
        rows = render(os.path.join(FOLDER, name), *requests, options=("--date", "2024-07-26"))
        for row, r in zip(rows, mine):
            if "text" in r:
                assert row == r["text"], (name, r["case"], row, r["text"])
                continue
            kind, message = r["error"].split(": ", 1)
            if kind == "TemplateError":
                assert row == {"error": message}, (name, r["case"], row)
            else:
                assert row["error"].endswith(message), (name, r["case"], row, message)
        assert len(rows) == len(mine)


@test
def a_folder_gives_its_template_and_tokens():
    config = {
        "chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ image_token }}{{ pad_token }}",
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "image_token": "<i>",
        "pad_token": None,
        "add_bos_token": True,
    }
    assert render(model("string", config), HELLO) == ["<s>Hello</s><i>"]
    assert render(model("none", dict(config, bos_token=None)), HELLO) == ["Hello</s><i>"]
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d{{ bos_token }}"}]
    assert render(model("list", dict(config, chat_template=named)), HELLO) == ["d<s>"]
    assert render(model("file", config, "jinja{{ eos_token }}"), HELLO) == ["jinja</s>"]
    assert render(model("alone", None, "{{ bos_token is defined }}"), HELLO) == ["False"]


@test
def special_tokens_map_is_read_as_hf_reads_it():
    text = {"chat_template": "{{ bos_token }}|{{ eos_token }}", "bos_token": "<s>"}
    other = {"bos_token": {"content": "<b>"}, "eos_token": "<e>"}
    assert render(model("map", text, tokens=other), HELLO) == ["<b>|<e>"]
    listed = dict(text, added_tokens_decoder={})
    assert render(model("listed", listed, tokens=other), HELLO) == ["<s>|"]


@test
def variables_come_before_the_folders_tokens():
    folder = model("over", {"chat_template": "{{ bos_token }}{{ x }}{{ tools }}", "bos_token": "<s>"})
    rows = render(folder, HELLO, dict(HELLO, variables={"bos_token": "B", "x": 1.5, "tools": []}), dict(HELLO, variables=None))
    assert rows == ["<s>None", "B1.5[]", "<s>None"]


@test
def a_folder_without_a_template_is_refused():
    command("template", model("empty", {})).must(2, "has no chat template")
    command("template", model("bare")).must(2, "has no chat template")
    command("template", model("wrong", {"chat_template": 5})).must(2, "tokenizer_config.json", "chat_template")
    no_default = {"chat_template": [{"name": "rag", "template": "x"}]}
    command("template", model("names", no_default)).must(2, "no template named 'default'")
    command("template", "nowhere").must(2, "nowhere", "No such file")


@test
def a_template_that_can_not_be_parsed_is_refused_with_its_line():
    for text, words in (
        ("a\n{% if %}", "2: "),
        ("{{ 1 +", "1: "),
        ("\n\n{% nosuch %}", "3: the tag 'nosuch' is not supported"),
        ("{% for x in y recursive %}{% endfor %}", "recursive"),
        ("(" * 5 + "{{" + "(" * 200 + "1" + ")" * 200 + "}}", "nested more than 100 deep"),
        ("{% if 1 %}" * 200, "nested more than 100 deep"),
        ("{{ 99999999999999999999 }}", "64 bits"),
        ("x" * (1 << 20) + "y", "1048576"),
    ):
        command("template", cli.write("bad.jinja", text), stdin=b"").must(2, "bad.jinja", words)
    command("template", cli.write("bad.jinja", b"a\xff"), stdin=b"").must(2, "not valid UTF-8 at byte 1")


@test
def what_a_template_raises_is_the_error():
    assert error_of("{{ raise_exception('Only user \u00e9 \"roles\"!') }}") == 'Only user \u00e9 "roles"!'
    rows = template("{% if messages|length > 1 %}{{ raise_exception('no') }}{% endif %}ok", HELLO, {"messages": [{}, {}]}, HELLO)
    assert rows == ["ok", {"error": "no"}, "ok"]


@test
def other_errors_have_the_templates_line():
    assert error_of("a\n{{ x.y }}") == "line 2 of the chat template: 'x' is undefined"
    assert error_of("\n\n{{ 'a' + 1 }}").startswith("line 3 of the chat template: can only concatenate")


@test
def what_is_not_supported_is_an_error_only_when_it_is_reached():
    text = "{% if messages|length > 1 %}{{ 1|nosuch }}{{ 1 is nosuch }}{{ nosuch() }}{{ 'a'.zfill(3) }}{% endif %}ok"
    assert template(text) == ["ok"]
    assert "nosuch" in error_of("{{ 1|nosuch }}")
    assert "nosuch" in error_of("{{ 1 is nosuch }}")
    assert "nosuch" in error_of("{{ nosuch() }}")
    assert "zfill" in error_of("{{ 'a'.zfill(3) }}")


@test
def hostile_templates_meet_limits():
    assert "steps" in error_of("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    assert "bytes" in error_of("{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}")
    assert "bytes" in error_of("{{ 'a' * 99999999999 }}")
    assert "bytes" in error_of("{{ [1] * 99999999999 }}")
    assert "deep" in error_of("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")
    assert "holds itself" in error_of("{% set n = namespace() %}{% set n.n = n %}{{ n }}")
    assert "holds itself" in error_of("{% set n = namespace(x=1) %}{% for i in range(500) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x|tojson }}")
    assert "64 bits" in error_of("{{ 9223372036854775807 + 1 }}")
    assert "64 bits" in error_of("{{ (-9223372036854775807 - 1) // -1 }}")
    assert "64 bits" in error_of("{{ 2 ** 63 }}")
    assert "format" in error_of("{{ '%999999999d' % 1 }}")
    assert "100000" in error_of("{{ range(100001)|length }}")
    assert "not be empty" in error_of("x", {"messages": []})
    deep = HELLO["messages"][0]
    for _ in range(150):
        deep = {"a": deep}
    assert "nested" in error_of("{{ messages }}", {"messages": [deep]})


@test
def long_messages_have_room():
    long = "word \u00e9 " * (8 << 20 >> 3)
    assert template("{{ '<' + messages[0].content + '>' + '.' }}", {"messages": [{"role": "user", "content": long}]}) == [
        "<" + long + ">."
    ]


@test
def messages_are_given_as_hf_gives_them():
    messages = [{"role": "user", "content": "x", "tool_calls": None, "name": None}, {"reasoning": "hm", "content": ""}]
    rows = template("{{ messages }}", {"messages": messages})
    assert rows == [
        "[{'role': 'user', 'content': 'x'}, {'thinking': 'hm', 'reasoning': 'hm', 'content': '', 'reasoning_content': 'hm'}]"
    ]
    assert "must be an object" in error_of("{{ messages }}", {"messages": ["x"]})
    assert "must be a list" in error_of("{{ messages }}", {"messages": "x"})
    assert "no variables" in error_of("x", dict(HELLO, variables={"messages": []}))


@test
def the_date_is_the_one_that_was_given():
    text = "{{ strftime_now('%d %b %Y, %A %H:%M') }}"
    assert template(text, options=("--date", "2024-02-29")) == ["29 Feb 2024, Thursday 12:00"]
    assert len(template(text)[0]) > 20
    for date in ("2023-02-29", "2024-13-01", "2024-1-1", "today", "2024-07-26x", "", "0000-01-01"):
        command("template", os.path.join(FOLDER, "google-gemma-2-2b-it.jinja"), "--date", date).must(2, "is not a date")


@test
def a_line_that_is_no_request_ends_the_run_after_the_good_ones():
    path = cli.write("t.jinja", "ok")
    good = json.dumps(HELLO).encode() + b"\n"
    for bad, word in (
        (b"not json", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"{}", "has no messages"),
        (b'{"messages":[{}],"add_generation_prompt":1}', "add_generation_prompt"),
        (b'{"messages":[{"content":"\xff"}]}', "not a JSON object"),
    ):
        ended = command("template", path, stdin=good + bad + b"\n" + good).must(2, word, "standard input:2")
        assert ended.out == '"ok"\n', ended.text
    assert command("template", path, stdin=good[:-1]).must(0).out == '"ok"\n'


@test
def the_command_line_is_checked():
    command("template", "--help").must(0, "Usage: fairkv-batch template")
    command("template").must(2, "give one MODEL_DIR or FILE")
    command("template", "a", "b").must(2, "give one MODEL_DIR or FILE")
    command("template", "a", "--nosuch").must(2, "--nosuch")


cli.main()
