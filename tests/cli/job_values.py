"""What values of a job file mean that people write as they are used to, where the job file may come from,
and that what the input says can do nothing to a terminal."""

import io
import os
import subprocess
import tarfile

import cli
from cli import Job, PromptJob, command, test

ONE = [{"id": 1, "prompt": "one two three"}]


@test
def quotes_are_refused_with_a_hint():
    for setting in ('job.name="x y"', "job.name='x'", 'model.path="%s"' % cli.TINY, "input.members='*'"):
        Job("quotes", setting).command("check").must(2, setting.split("=")[0], "begins with a quote")
    archive = cli.write("two words.jsonl", cli.jsonl(ONE))
    quoted = PromptJob("quoted", '"%s"' % archive)
    quoted.command("check").must(2, "input.archives", "a backslash makes the next character plain")
    (row,) = PromptJob("escaped", archive.replace(" ", "\\ ")).run()
    assert row["source"]["archive"] == archive


@test
def a_quote_inside_a_value_is_plain():
    job = Job("inside", "job.name=it's 5\" long", "job.limit=1")
    job.command("check").must(0, "name = it's 5\" long")
    PromptJob("stops", ONE, 'sampling.stop=["\\"", "\' #", "$HOME"]').command("check").must(0)


@test
def a_tilde_is_refused_with_a_hint():
    for setting in ("model.path=~/model", "job.output=~/out", "input.prompts=~me/x.json", "input.archives=a.zip ~/b.zip"):
        Job("tilde", setting).command("check").must(2, setting.split("=")[0], "write ${HOME}")
    Job("tildes", "job.name=~x~", "job.limit=1").command("check").must(0, "name = ~x~")


@test
def a_hash_behind_white_space_is_refused_with_a_hint():
    Job("hash", "engine.slots=8 # eight").command("check").must(2, "engine.slots", "is no comment: write ';'")
    Job("hashes", "job.name=x\t# y").command("check").must(2, "job.name", "is no comment")
    Job("plain", "job.name=x#1", "job.limit=1").command("check").must(0, "name = x#1")
    archive = cli.write("a #1.jsonl", cli.jsonl(ONE))
    (row,) = PromptJob("number", archive.replace(" ", "\\ ")).run()
    assert row["source"]["archive"] == archive


@test
def a_variable_without_braces_is_refused_with_a_hint():
    Job("bare", "job.name=$HOME").command("check").must(2, "job.name", "write ${NAME} for a variable")
    Job("tail", "job.output=%s/$USER-out" % cli.WORK).command("check").must(2, '"$USER-out"')
    job = Job("dollars", "job.name=a$5 $$HOME $${x} $$", "job.limit=1")
    job.command("check").must(0, "name = a$5 $$HOME $${x} $$")  # as it is written back, to mean the same
    job.run()
    again = command("run", job.file("job.ini"))
    again.must(0, "nothing to do")


@test
def a_job_file_may_be_a_descriptor():
    job = PromptJob("descriptor", ONE)
    with open(job.path, "rb") as f:
        f.read()  # it is read from its beginning all the same
        path = "/dev/fd/%d" % f.fileno()
        done = subprocess.run(
            [cli.BINARY, "run", path], pass_fds=[f.fileno()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    assert done.returncode == 0, done.stdout
    assert job.rows()[0]["id"] == 1
    command("check", path).must(2, "error: " + path + ": can't be opened")


@test
def a_job_file_may_come_from_a_pipe():
    job = PromptJob("piped", ONE)
    with open(job.path, "rb") as f:
        text = f.read()
    command("run", "/dev/stdin", stdin=text).must(0)
    assert job.rows()[0]["id"] == 1
    pipe = os.path.join(cli.WORK, "pipe")
    os.mkfifo(pipe)
    # Paths in it are relative to the working directory, not to the pipe's folder.
    relative = text.replace((cli.WORK + "/piped.jsonl").encode(), b"piped.jsonl").replace(b"name = piped", b"name = fifo")
    relative = relative.replace((cli.WORK + "/piped\n").encode(), b"fifo-out\n")
    running = subprocess.Popen([cli.BINARY, "run", pipe], cwd=cli.WORK, stderr=subprocess.PIPE)
    with open(pipe, "wb") as f:
        f.write(relative)
    assert running.wait(cli.TIMEOUT_S) == 0, running.stderr.read()
    running.stderr.close()
    assert os.path.isdir(os.path.join(cli.WORK, "fifo-out", "shards"))
    with open(pipe + "-text", "wb") as f:
        f.write(relative.replace(b"fifo-out", b"stdin-out"))
    with open(pipe + "-text", "rb") as f:  # a file as standard input
        done = subprocess.run([cli.BINARY, "run", "/dev/stdin"], cwd=cli.WORK, stdin=f, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    big = command("check", "/dev/stdin", stdin=b"[job]\n" + b"; x\n" * (1 << 19))
    big.must(2, "more than the 1048576 bytes allowed")


def tar_with(name, content):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        t.addfile(info, io.BytesIO(content))
    return out.getvalue()


@test
def names_of_members_can_do_nothing_to_a_terminal():
    evil = "data/\x1b]0;owned\x07\x1b[2J\u202egnol.jsonl"
    record = cli.jsonl([dict(cli.one_record(), dataset="\x1b[31mred")])
    source = cli.write("evil.tar", tar_with(evil, record))
    job = Job("evil", "input.archives=" + source, "input.members=*")
    for which in ("check", "run"):
        text = job.command(which).must(2, "names no dataset of the input", "\\x1b").text
        assert not any(c in text for c in "\x1b\x07\u202e"), text
    fine = PromptJob("shown", source.replace("evil.tar", "fine.tar"), "job.limit=1")
    cli.write("fine.tar", tar_with(evil, cli.jsonl(ONE)))
    text = fine.command("check").must(0).text
    assert not any(c in text for c in "\x1b\x07\u202e") and "gnol.jsonl" in text
    (row,) = fine.run()
    assert row["source"]["member"] == evil


cli.main()
