"""Under valgrind: nothing leaks, nothing is read that was not written, errors included."""

import json
import shutil
import subprocess

import cli
from cli import Job, PromptJob, test

PROMPT = cli.needle_prompt(cli.one_record())
ERROR_EXIT = 99


def clean(code, *args, stdin=b""):
    """The command's end with this exit code; valgrind's own is that of an error or a leak."""
    if not shutil.which("valgrind"):
        raise cli.Skip("valgrind is missing")
    if cli.sanitized():
        raise cli.Skip("a sanitizer build")
    done = subprocess.run(
        [
            "valgrind",
            "--error-exitcode=%d" % ERROR_EXIT,
            "--leak-check=full",
            "--show-leak-kinds=definite,indirect,possible",
            "--errors-for-leak-kinds=definite,indirect,possible",
            cli.BINARY,
            *args,
        ],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=cli.TIMEOUT_S,
    )
    ended = cli.Ended(done.returncode, done.stdout, done.stderr)
    assert ended.code != ERROR_EXIT, ended.err[-4000:]
    return ended.must(code, "ERROR SUMMARY: 0 errors")


def small(name, *settings):
    """Prompts longer than the budget, on two devices, with a bad record and a stop string."""
    records = [{"id": i, "prompt": PROMPT, "max_tokens": 3} for i in range(3)]
    return PromptJob(
        name,
        records[:1] + [b"[]", {"id": "empty", "prompt": ""}] + records[1:],
        "model.max_prompt_tokens=64",
        "model.truncate=left",
        "profile.method=ada-snapkv",
        "profile.budget=48",
        "profile.sample=2",
        "engine.tensor_parallel=2",
        "engine.devices=2",
        "engine.slots=2",
        'sampling.stop=["nowhere"]',
        "sampling.temperature=0.7",
        "output.records_per_shard=2",
        *settings
    )


@test
def check_is_clean():
    clean(0, "check", Job("check").path)


@test
def plan_is_clean():
    clean(0, "plan", small("plan").path)


@test
def a_run_its_resume_and_its_export_are_clean():
    job = small("run")
    clean(2, "run", job.path, "-s", "job.max_errors=1")
    clean(1, "run", job.path)
    assert [r["id"] for r in job.rows()] == [0, None, "empty", 1, 2], job.rows()
    clean(0, "export", job.output, "--format", "jsonl", job.file("rows.jsonl"))


@test
def tokenize_is_clean():
    clean(0, "tokenize", cli.TINY, "--json", stdin=json.dumps(PROMPT).encode())


@test
def refusals_are_clean():
    broken = cli.write("broken.json", '{"a":')
    many = Job(
        "many",
        "input.prompts=" + broken,
        "input.max_new_tokens_by=" + broken,
        "profile.budgets_file=" + broken,
        "model.path=nowhere",
    )
    clean(2, "check", many.path)
    clean(2, "check", Job("wrong", "engine.slotz=1", "input.archives=nowhere.zip").path)
    damaged = PromptJob("damaged", cli.write("damaged.7z", b"7z\xbc\xaf\x27\x1c\0\4" + b"\xff" * 60))
    clean(2, "run", damaged.path)


cli.main()
