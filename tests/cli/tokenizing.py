"""tokenize: text to ids and back."""

import json

import cli
from cli import command, test

TEXTS = [
    "Hello world",
    "",
    " leading and  double ",
    "The access code for fierce-pine is 6527598.",
    "na\u00efve caf\u00e9 \u4e2d\u6587 \U0001f600",
    "tab\tand\u00a0nbsp",
    "e\u0301 \ufb01",
    "a" * 300,
]
MORE = ["two\nlines\r\n", "nul\0inside", '"quotes" \\ and \u2028', "\n\n\n"]


def tokenize(*options, lines=(), code=0):
    data = "".join(x + "\n" for x in lines).encode("utf-8", "surrogatepass")
    return command("tokenize", cli.TINY, *options, stdin=data).must(code)


@test
def text_lines_become_lines_of_ids_and_come_back():
    ids = tokenize(lines=TEXTS).out.split("\n")
    assert len(ids) == len(TEXTS) + 1 and ids[-1] == "" and ids[1] == ""
    assert all(x.isdigit() and int(x) < 1024 for line in ids for x in line.split())
    back = tokenize("--decode", lines=ids[:-1]).out
    assert back == "".join(t + "\n" for t in TEXTS)


@test
def json_lines_may_hold_anything():
    texts = TEXTS + MORE
    ids = tokenize("--json", lines=[json.dumps(t) for t in texts]).out.split("\n")[:-1]
    assert len(ids) == len(texts)
    assert ids[: len(TEXTS)] == tokenize(lines=TEXTS).out.split("\n")[:-1]
    back = tokenize("--decode", "--json", lines=ids).out.split("\n")[:-1]
    assert [json.loads(x) for x in back] == texts


@test
def bos_is_added_when_asked_for():
    plain = tokenize(lines=TEXTS).out.split("\n")[:-1]
    bos = tokenize("--bos", lines=TEXTS).out.split("\n")[:-1]
    assert [x.split()[0] for x in bos] == ["0"] * len(TEXTS)
    assert [x.split()[1:] for x in bos] == [x.split() for x in plain]


@test
def ids_agree_with_the_reference_prompts():
    """The prompt lengths that the reference implementation counted."""
    lines = cli.unzstd(cli.NEEDLES)
    at = lines.index(b'{"input"')
    records = [json.loads(x.decode()) for x in lines[at:].split(b"\n")[:20]]
    ids = tokenize("--bos", "--json", lines=[json.dumps(cli.needle_prompt(r)) for r in records]).out.split(
        "\n"
    )[:-1]
    assert [len(x.split()) for x in ids] == [g["prompt_tokens"] for g in cli.golden()["full"]["first"]]


@test
def special_tokens_in_the_text_are_recognised_and_shown():
    token = cli.load(cli.TINY + "/tokenizer.json")["added_tokens"][1]
    ids = tokenize(lines=["a" + token["content"] + "b"]).out.split()
    assert str(token["id"]) in ids
    assert tokenize("--decode", lines=[" ".join(ids)]).out == "a" + token["content"] + "b\n"


@test
def a_missing_last_newline_is_no_difference():
    assert command("tokenize", cli.TINY, stdin=b"one\ntwo").must(0).out == tokenize(lines=["one", "two"]).out
    assert command("tokenize", cli.TINY).must(0).out == ""


@test
def bad_input_is_refused_with_its_line_after_the_good_ones():
    for options, bad, word in (
        (["--json"], "not json", "not a JSON string"),
        (["--json"], "[1]", "not a JSON string"),
        (["--json"], '"open', "not a JSON string"),
        (["--decode"], "1 x", "'x' is not an id"),
        (["--decode"], "99999", "99999"),
        (["--decode"], "-1", "'-1' is not an id"),
        (["--decode"], "99999999999", "'99999999999' is not an id"),
    ):
        good = "5 6" if options == ["--decode"] else '"good"'
        ended = command(
            "tokenize", cli.TINY, *options, stdin=(good + "\n" + bad + "\n" + good + "\n").encode()
        ).must(2, word)
        assert "standard input:2" in ended.err and len(ended.out.splitlines()) == 1, (
            options,
            bad,
            ended.text,
        )


@test
def bytes_that_are_not_utf_8_are_refused():
    ended = command("tokenize", cli.TINY, stdin=b"ok\nab\xff\xfe\n").must(
        2, "standard input:2", "not valid UTF-8 at byte 2"
    )
    assert len(ended.out.splitlines()) == 1


@test
def a_missing_tokenizer_is_named():
    command("tokenize", "nowhere").must(2, "nowhere/tokenizer.json", "No such file")
    broken = cli.write("broken/tokenizer.json", "{")
    command("tokenize", broken[: -len("/tokenizer.json")]).must(2, "tokenizer.json", "not valid JSON")


cli.main()
