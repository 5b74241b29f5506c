"""Job files that init writes: what it finds out, paths that are right, and that check takes them."""

import json
import os
import shutil

import cli
from cli import command, test

CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def folder(name):
    path = os.path.join(cli.WORK, name)
    os.makedirs(path)
    return path


def init(*args, code=0, cwd=None):
    return command("init", *args, cwd=cwd).must(code)


def has(text, *lines):
    for line in lines:
        assert line + "\n" in text, "%r is not in\n%s" % (line, text)


@test
def a_job_for_the_needles_passes_check_and_runs():
    here = folder("needles")
    path = os.path.join(here, "job.ini")
    assert init(cli.TINY, cli.NEEDLES, "-o", path).text == ""
    with open(path) as f:
        text = f.read()
    has(text, "name = needle", "output = out/needle", "members = *.jsonl", "format = longbench")
    has(text, "prompts = " + cli.TEMPLATES, "max_new_tokens_by = " + cli.LIMITS, "method = ada", "budget = 256")
    assert "; The model folder has none: prompts are asked as they are." in text
    command("check", path).must(0, "; input: 360 records in 2 members")
    command("run", path, "-s", "job.limit=2", "-s", "plan.calibration=stated").must(0)
    assert os.path.isdir(os.path.join(here, "out", "needle", "shards"))


@test
def a_job_from_a_pipe_passes_check():
    text = init(cli.TINY, cli.NEEDLES).out
    has(text, "path = " + cli.TINY, "archives = " + cli.NEEDLES)
    here = folder("pipe")
    command("check", "/dev/stdin", stdin=text.encode(), cwd=here).must(0, "; input: 360 records")
    assert os.listdir(here) == []


@test
def paths_below_the_job_file_are_relative_to_it():
    here = folder("relative")
    shutil.copytree(cli.TINY, os.path.join(here, "model"))
    shutil.copy(cli.NEEDLES, here)
    shutil.copy(cli.TEMPLATES, here)
    shutil.copy(cli.LIMITS, here)
    for cwd, job, args in (
        (here, "a.ini", ["model", "needle.tar.zst"]),
        (cli.WORK, "relative/b.ini", ["relative/model/", "relative/needle.tar.zst"]),
    ):
        init(*args, "-o", job, cwd=cwd)
        with open(os.path.join(cwd, job)) as f:
            text = f.read()
        has(text, "path = model", "archives = needle.tar.zst", "prompts = needle-dataset2prompt.json")
    moved = os.path.join(cli.WORK, "moved")
    os.rename(here, moved)
    for name in ("a.ini", "b.ini"):
        command("check", os.path.join(moved, name)).must(0, "; input: 360 records")


@test
def an_openai_file_and_its_chat_template_are_told():
    body = {"model": "x", "messages": [{"role": "user", "content": "one two three"}]}
    record = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    archive = cli.write("requests.jsonl", cli.jsonl([record] * 3))
    model = os.path.join(cli.WORK, "chat")
    shutil.copytree(cli.TINY, model)
    ended = init(cli.TINY, archive)
    assert "the model has no chat template: name one in model.chat_template" in ended.err
    has(ended.out, "format = openai", "; MISSING: the records have messages, and the model folder has no chat template: name a")
    with open(os.path.join(model, "chat_template.jinja"), "w") as f:
        f.write(CHAT)
    ended = init(model, archive)
    assert ended.err == ""
    has(ended.out, "; auto: the model folder's, which is there; none, or a Jinja file.", "chat_template = auto")
    has(ended.out, "; So short ones are kept whole.", "method = none")
    command("check", "/dev/stdin", stdin=ended.out.encode(), cwd=cli.WORK).must(0, "; input: 3 records in 1 member")


@test
def every_format_is_told_by_its_records():
    for name, record in (
        ("prompt", {"id": 1, "prompt": "one"}),
        ("qa", {"context": "one", "question": "two", "answer_prefix": "", "answer": "x", "max_new_tokens": 4}),
        ("ruler", {"index": 1, "input": "one", "outputs": ["x"], "answer_prefix": "", "length": 3}),
    ):
        data = cli.jsonl([record])
        archive = cli.write(name + ".tar", cli.tar_of(("README.md", b"# Data\n{}\n"), ("niah/validation.jsonl", data)))
        text = init(cli.TINY, archive).out
        has(text, "format = " + name, "members = *.jsonl", "name = " + name)
        command("check", "/dev/stdin", stdin=text.encode(), cwd=cli.WORK).must(0, "; input: 1 record in 1 member")


@test
def a_folder_of_files_is_one_archive():
    here = folder("data/set")
    for name in ("a.jsonl", "deep/b.jsonl", "c.json"):
        content = cli.jsonl([{"id": 1, "prompt": "one"}])
        cli.write("data/set/" + name, content if name != "c.json" else b"[" + content.strip() + b"]")
    text = init(cli.TINY, here + "/").out
    has(text, "archives = " + here, "members = *.jsonl *.json", "name = set")
    command("check", "/dev/stdin", stdin=text.encode(), cwd=cli.WORK).must(0, "; input: 3 records in 3 members of 3 files")


@test
def longbench_s_templates_are_found_in_its_folders():
    """The repository keeps them in config/, beside the folder of the data or above it."""
    record = cli.one_record()
    line = json.dumps({k: record[k] for k in ("_id", "input", "context", "answers")}).encode() + b"\n"
    archive = cli.write("LongBench/data/data.tar", cli.tar_of(("data/needle_1k.jsonl", line)))
    ended = init(cli.TINY, archive)
    assert "no dataset2prompt.json beside the archive: name one in input.prompts" in ended.err
    assert "; prompts = dataset2prompt.json\n" in ended.out and "format = longbench\n" in ended.out
    command("check", "/dev/stdin", stdin=ended.out.encode(), cwd=cli.WORK).must(2, "longbench needs input.prompts")
    config = folder("LongBench/config")
    shutil.copy(cli.TEMPLATES, config + "/dataset2prompt.json")
    shutil.copy(cli.LIMITS, config + "/dataset2maxlen.json")
    ended = init(cli.TINY, archive, "-o", os.path.join(cli.WORK, "LongBench", "job.ini"))
    assert ended.err == ""
    command("check", os.path.join(cli.WORK, "LongBench", "job.ini")).must(0, "; input: 1 record in 1 member")


@test
def names_with_odd_characters_are_written_so_that_they_are_read():
    data = cli.jsonl([{"id": 1, "prompt": "one"}])
    for i, name in enumerate(("two words", "a;b ;c", "q[1]*", "$HOME ${x}", "#1 'x' \"y\"", "back\\slash", "käse")):
        here = "odd%d/%s" % (i, name)
        archive = cli.write(here + "/" + name + ".jsonl", data)
        job = os.path.join(cli.WORK, "odd%d.ini" % i)
        init(cli.TINY, archive, "-o", job)
        command("check", job).must(0, "; input: 1 record in 1 member")
    model = os.path.join(cli.WORK, "my $model")
    shutil.copytree(cli.TINY, model)
    archive = cli.write("plain.jsonl", data)
    for name in ("my $model",):
        init(model, archive, "-o", os.path.join(cli.WORK, "odd-model.ini"))
        command("check", os.path.join(cli.WORK, "odd-model.ini")).must(0)
    for name in ("a ;b", "line\nbreak"):
        os.symlink(cli.TINY, os.path.join(cli.WORK, name))
        init(os.path.join(cli.WORK, name), archive, code=2).must(2, "can't stand in a job file", "make a link")


@test
def nothing_is_overwritten_and_what_is_wrong_is_named():
    archive = cli.write("right.jsonl", cli.jsonl([{"id": 1, "prompt": "one"}]))
    there = cli.write("there.ini", "mine")
    init(cli.TINY, archive, "-o", there, code=2).must(2, "there.ini: is there already")
    with open(there) as f:
        assert f.read() == "mine"
    os.symlink("nowhere", os.path.join(cli.WORK, "dangling.ini"))
    init(cli.TINY, archive, "-o", os.path.join(cli.WORK, "dangling.ini"), code=2)
    init(cli.TINY, "nowhere.zip", code=2).must(2, "nowhere.zip: there is no such archive")
    init("nowhere", archive, "-o", cli.WORK + "/x.ini", code=2).must(2, "nowhere/config.json")
    nothing = cli.write("nothing.txt", "no records\n")
    init(cli.TINY, nothing, "-o", cli.WORK + "/x.ini", code=2).must(2, "no record of a known format")
    command("init").must(2, "give MODEL_DIR and ARCHIVE")
    command("init", cli.TINY, archive, "-o").must(2, "init: -o: its value is missing")
    init(cli.TINY, archive, "-o", cli.WORK + "/no/folder.ini", code=2).must(2, "can't be opened")
    assert not os.path.exists(cli.WORK + "/x.ini")


cli.main()
