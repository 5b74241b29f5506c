"""A newcomer's way: from LongBench's zip to its eval.py's scores by README.md's recipe alone, as it stands there, and
from the other job files of jobs/GUIDE.md to answers.

The recipe is README.md's section "## LongBench in ten lines": one ```ini block, which is jobs/examples/longbench.ini,
and one ```sh block. jobs/GUIDE.md has the same two, and they are run from there. What is replaced in them, and no more,
stands in recipe_replaced()."""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile

import cli
from cli import command, test

ROOT = os.path.dirname(cli.TESTS)
README, GUIDE = os.path.join(ROOT, "README.md"), os.path.join(ROOT, "jobs", "GUIDE.md")
EXAMPLE = os.path.join(ROOT, "jobs", "examples", "longbench.ini")
RECIPES = {README: "## LongBench in ten lines", GUIDE: "### LongBench"}
RECORDS = {"needle_1k": 20, "needle_500": 24}  # of each dataset
MODEL = "Llama-3.1-8B-Instruct"  # the recipe's, and so its job's name


def text_of(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def block(path, heading, language):
    """The one block of a language below a heading, to the next heading of its depth or above."""
    _, section = ("\n" + text_of(path)).split("\n%s\n" % heading)
    section = re.split(r"\n#{2,%d} " % heading.index(" "), section)[0]
    (text,) = re.findall("^```%s\n(.*?)^```" % language, section, re.S | re.M)
    return text


def model_folder():
    """The larger needle model, where it is."""
    for folder in (cli.DATA, os.path.join(ROOT, os.pardir, "shared", "models")):
        path = os.path.join(folder, "needle-small")
        if os.path.isdir(path):
            return os.path.abspath(path)
    return cli.TINY


def replace(text, *pairs):
    for pattern, new in pairs:
        text, n = re.subn(pattern, lambda _: new, text, flags=re.M)
        assert n, "%r is not in\n%s" % (pattern, text)
    return text


def recipe_replaced(job, commands):
    """The recipe for this machine. Replaced are: the model's folder; the budget, as the prompts are shorter than
    LongBench's; the commands that fetch something (git clone, curl or wget, pip install), by nothing; python,
    by the one that runs this test."""
    job = replace(job, (r"^path = /models/\S+", "path = " + model_folder()), (r"^budget = \d+", "budget = 128"))
    commands = replace(
        commands,
        (r"^git clone https://github.com/THUDM/LongBench$", ":"),
        (r"^(curl|wget) .*https://huggingface.co/datasets/THUDM/LongBench/resolve/main/data.zip$", ":"),
        (r"^(python3? -m )?pip install .*$", ":"),
        (r"\bpython3? eval.py", shlex.quote(sys.executable) + " -B eval.py"),
    )
    return job, commands


def needle_lines(name):
    """The set's records; in another order of keys than LongBench's, which is no matter."""
    tar = cli.unzstd(cli.NEEDLES)
    found = subprocess.run(
        ["tar", "xO", "data/%s.jsonl" % name], input=tar, stdout=subprocess.PIPE, check=True
    )
    return found.stdout.splitlines(True)


def lay_out(here):
    """What the commands that fetch would fetch: LongBench's repository, as far as it is used, and its data.zip with
    a file of LongBench-E, which the job must leave out."""
    repository = os.path.join(here, "LongBench", "LongBench")
    os.makedirs(os.path.join(repository, "config"))
    shutil.copy(cli.TEMPLATES, os.path.join(repository, "config", "dataset2prompt.json"))
    shutil.copy(cli.LIMITS, os.path.join(repository, "config", "dataset2maxlen.json"))
    shutil.copy(os.path.join(cli.TESTS, "cli", "longbench_eval.py"), os.path.join(repository, "eval.py"))
    with zipfile.ZipFile(os.path.join(here, "data.zip"), "w", zipfile.ZIP_DEFLATED) as z:
        for name, n in RECORDS.items():
            z.writestr("data/%s.jsonl" % name, b"".join(needle_lines(name)[:n]))
        z.writestr("data/needle_500_e.jsonl", b"".join(needle_lines("needle_500")[:3]))
    return repository


def environment(here):
    """A home of its own, and the program on the path."""
    bin_folder = os.path.join(here, "bin")
    os.makedirs(bin_folder, exist_ok=True)
    os.symlink(cli.BINARY, os.path.join(bin_folder, "fairkv-batch"))
    return dict(
        os.environ,
        PATH=bin_folder + ":" + os.environ["PATH"],
        HOME=here,
        XDG_CACHE_HOME=os.path.join(here, "cache"),
    )


def said_by(commands, here):
    """What each line said, run in one shell that ends with the first that fails."""
    lines = commands.splitlines()
    script = "set -e\n" + "".join("printf '== %%d\\n' %d\n%s\n" % x for x in enumerate(lines))
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=here,
        env=environment(here),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=cli.TIMEOUT_S,
    )
    ended = cli.Ended(done.returncode, done.stdout, b"").must(0)
    parts = re.split(r"^== \d+\n", cli.unstamped(ended.out), flags=re.M)[1:]
    assert len(parts) == len(lines)
    return parts


@test
def the_recipe_leads_from_the_zip_to_scores():
    here = os.path.join(cli.WORK, "recipe")
    os.makedirs(here)
    repository = lay_out(here)
    job, commands = recipe_replaced(block(GUIDE, RECIPES[GUIDE], "ini"), block(GUIDE, RECIPES[GUIDE], "sh"))
    cli.write(os.path.join(here, "longbench.ini"), job)
    words = [line.split() for line in commands.splitlines()]
    said = {w[1]: text for w, text in zip(words, said_by(commands, here)) if w[0] == "fairkv-batch"}

    n = sum(RECORDS.values())
    assert "; input: %d records in 2 members of 1 file\n" % n in said["check"], said["check"]
    assert "WARNING" not in said["check"] and "\nname = %s\n" % MODEL in said["check"], said["check"]
    assert "done: %d records, 0 of them by earlier runs, 0 errors" % n in said["run"], said["run"]
    assert "%d of %d records done, 0 error rows; complete" % (n, n) in said["status"], said["status"]
    assert "%d rows (0 errors) in 2 files" % n in said["export"], said["export"]
    kept = re.search(r"KV cache: ([\d.]+)% of the prompts' K and V kept", said["run"])
    assert float(kept[1]) < 60, said["run"]  # the scores are those of a compressed cache

    folder = os.path.join(repository, "pred", MODEL)
    assert set(os.listdir(folder)) == {name + ".jsonl" for name in RECORDS} | {"result.json"}, os.listdir(folder)
    assert not os.path.exists(os.path.join(repository, "pred_e"))
    rows = [json.loads(x) for shard in cli.shards_of(os.path.join(here, "out")) for x in cli.unzstd(shard).splitlines()]
    right = {}
    for name, n in RECORDS.items():
        predictions = [json.loads(x)["pred"] for x in text_of(os.path.join(folder, name + ".jsonl")).splitlines()]
        own = [r for r in rows if r["dataset"] == name]
        assert predictions == [r["text"] for r in own] and len(own) == n
        right[name] = round(100 * cli.n_exact(own) / n, 2)
    assert cli.load(os.path.join(folder, "result.json")) == right and min(right.values()) >= 90, right


@test
def the_recipe_is_the_same_wherever_it_stands():
    assert block(GUIDE, RECIPES[GUIDE], "ini") == text_of(EXAMPLE)
    assert block(README, RECIPES[README], "ini") == text_of(EXAMPLE)
    assert block(README, RECIPES[README], "sh") == block(GUIDE, RECIPES[GUIDE], "sh")


# The guide's other job files, with inputs as it describes them.


def chat_model():
    """A model folder with a chat template."""
    path = os.path.join(cli.WORK, "chat")
    if not os.path.isdir(path):
        shutil.copytree(cli.TINY, path)
        template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        cli.write(os.path.join(path, "chat_template.jinja"), template)
    return path


def guide_s(heading, name):
    """A folder with the section's job file, for a model that is there."""
    here = os.path.join(cli.WORK, "guide-" + name)
    job = replace(block(GUIDE, "### " + heading, "ini"), (r"^path = /models/\S+", "path = " + chat_model()))
    cli.write(os.path.join(here, name), job)
    return here


def answers(here, n):
    rows = [json.loads(x) for shard in cli.shards_of(here) for x in cli.unzstd(shard).splitlines()]
    assert cli.codes_of(rows) == [None] * n, rows
    return rows


@test
def the_guide_s_job_for_ruler_is_answered_and_exported():
    here = guide_s("RULER", "ruler.ini")
    record = {"input": "the code is 1234567", "outputs": ["1"], "answer_prefix": "Answer:", "length": 9}
    lines = cli.jsonl([dict(record, index=i) for i in range(2)])
    for task in ("niah_single_1", "vt"):
        cli.write(os.path.join(here, "data", task, "validation.jsonl"), lines)
    scoring = r"^python RULER/\S+ --data_dir pred --benchmark \w+$"
    commands = replace(block(GUIDE, "### RULER", "sh"), (scoring, "ls pred"))
    assert said_by(commands, here)[-1].split() == ["niah_single_1.jsonl", "vt.jsonl"]
    assert {r["dataset"] for r in answers(os.path.join(here, "out"), 4)} == {"niah_single_1", "vt"}


@test
def the_guide_s_job_for_openai_is_answered_and_exported():
    here = guide_s("OpenAI's batch file", "requests.ini")
    cli.write(os.path.join(here, "requests.jsonl"), block(GUIDE, "### OpenAI's batch file", "json"))
    said_by(block(GUIDE, "### OpenAI's batch file", "sh"), here)
    (answer,) = [json.loads(x) for x in text_of(os.path.join(here, "answers.jsonl")).splitlines()]
    assert answer["custom_id"] == "r1" and answer["response"]["body"]["object"] == "chat.completion", answer
    assert text_of(os.path.join(here, "answers.jsonl.errors")) == ""


@test
def the_guide_s_own_records_are_tried():
    here = guide_s("Your own records", "job.ini")
    lines = (block(GUIDE, "### Your own records", "json") * 12).encode("utf-8")
    cli.write(os.path.join(here, "questions", "a.jsonl"), lines)
    cli.write(os.path.join(here, "questions", "b.jsonl.gz"), gzip.compress(lines))
    commands = block(GUIDE, "### A trial run", "sh")
    if not shutil.which("jq"):
        commands = commands.splitlines()[0]
    said = said_by(commands, here)
    rows = answers(os.path.join(here, "out", "trial"), 20)
    assert rows[0]["fields"] == {"topic": "cities"} and rows[0]["usage"]["completion_tokens"] <= 16, rows[0]
    assert said[1:] == [] or len(said[1].splitlines()) == 20, said


@test
def the_guide_s_other_jobs_pass_check():
    here = guide_s("Several GPUs", "gpus.ini")
    lay_out(here)
    command("check", os.path.join(here, "gpus.ini"), "-s", "engine.backend=cpu").must(
        0, "; backend cpu: 2 replicas of 4 ranks on 4 devices"
    )
    here = guide_s("Every key", "every.ini")
    lay_out(here)
    for name, source in (("dataset2prompt.json", cli.TEMPLATES), ("dataset2maxlen.json", cli.LIMITS)):
        shutil.copy(source, os.path.join(here, name))
    os.makedirs(os.path.join(here, "data", "extra"))
    os.rename(os.path.join(here, "data.zip"), os.path.join(here, "data", "longbench.zip"))
    shutil.copy(cli.NEEDLES, os.path.join(here, "data", "extra"))
    checked = command("check", os.path.join(here, "every.ini"), "-s", "output.metrics=")
    checked.must(0, "; input: 407 records in 5 members")


@test
def the_guide_s_job_of_every_key_has_every_key():
    keys, section = set(), ""
    for line in command("help", "keys").must(0).out.splitlines():
        section = line if line.startswith("[") else section
        found = re.match(r"(\w+) =", line)
        keys |= {section + found[1]} if found else set()
    shown = []
    for line in block(GUIDE, "### Every key", "ini").splitlines():
        section = line if line.startswith("[") else section
        found = re.match(r"(?:; )?(\w+) =", line)
        shown += [section + found[1]] if found else []
    assert len(keys) > 50 and sorted(shown) == sorted(keys), set(shown) ^ keys


cli.main()
