"""jobs/GUIDE.md's ways to read a folder of shards: its snippets, as they stand there, on two shards of
which one has no errors. Those of a library that this Python lacks are skipped; oracle/reading runs
with one that has them."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import cli
from cli import Job, Skip, test

GUIDE = os.path.join(os.path.dirname(cli.TESTS), "jobs", "GUIDE.md")

GOOD = cli.one_record()
BAD = b"{"
# Two shards of two records each. Answers are digits that no reader should make a number of.
OUTPUTS = {
    "last": [GOOD, GOOD, GOOD, BAD],
    "first": [BAD, GOOD, GOOD, GOOD],
    "nothing-else-last": [GOOD, GOOD, BAD, BAD],
    "nothing-else-first": [BAD, BAD, GOOD, GOOD],
    "none": [GOOD, GOOD, GOOD, GOOD],
}


def snippet(heading):
    """The Python of the guide's section."""
    with open(GUIDE, encoding="utf-8") as f:
        section = f.read().split("\n### %s\n" % heading)[1].split("\n### ")[0].split("\n## ")[0]
    (code,) = re.findall("```python\n(.*?)```", section, re.S)
    return code


_outputs = {}


def outputs():
    """A folder for each of OUTPUTS that has the output as OUT, and its rows."""
    for name, records in OUTPUTS.items():
        if name in _outputs:
            continue
        lines = [r if isinstance(r, bytes) else dict(r, _id="id-%d" % i) for i, r in enumerate(records)]
        job = Job(
            "reading-" + name,
            "input.archives=" + cli.write("reading-%s.jsonl" % name, cli.jsonl(lines)),
            "input.members=*",
            "output.token_ids=no",
            "output.records_per_shard=2",
            output=os.path.join(cli.WORK, name, "OUT"),
        )
        rows = job.run(1 if BAD in records else 0)
        assert len(job.shards()) == 2
        _outputs[name] = (os.path.join(cli.WORK, name), rows)
    return _outputs.values()


def reads(heading, to_rows):
    """The section's snippet leaves in rows what to_rows makes the output's rows of, but for what a record
    lacks, which some readers know as null."""
    for module in re.findall(r"^(?:import|from) (\w+)", snippet(heading), re.M):
        if module not in sys.builtin_module_names and not importlib.util.find_spec(module):
            raise Skip("the Python package %s is missing" % module)
    for folder, want in outputs():
        tail = "import json\nprint('rows:' + json.dumps(%s))\n" % to_rows
        done = subprocess.run(
            [sys.executable, "-B", "-W", "ignore", "-c", snippet(heading) + tail],
            cwd=folder,
            env=dict(os.environ, HF_HOME=os.path.join(cli.WORK, "hf"), HF_HUB_OFFLINE="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=cli.TIMEOUT_S,
        )
        assert done.returncode == 0, "%s: %s" % (folder, done.stderr.decode("utf-8", "replace")[-2000:])
        line = [x for x in done.stdout.decode("utf-8").splitlines() if x.startswith("rows:")][-1]
        got = json.loads(line[len("rows:") :])
        assert len(got) == len(want) == 4
        for g, w in zip(got, want):
            assert list(g) == list(w), (folder, list(g))
            fields = g.pop("fields") or {}
            fields = json.loads(fields) if isinstance(fields, str) else fields
            assert {k: v for k, v in fields.items() if v is not None} == {
                k: v for k, v in w["fields"].items() if v is not None
            }, (folder, fields)
            assert g == {k: v for k, v in w.items() if k != "fields"}, (folder, g, w)


@test
def the_guide_s_commands_read_rows():
    with open(GUIDE, encoding="utf-8") as f:
        (script,) = re.findall("```sh\n(zstdcat.*?)```", f.read(), re.S)
    answers, errors, whole = script.splitlines()
    if not shutil.which("jq"):
        answers = errors = ""
    bin_folder = os.path.join(cli.WORK, "bin")
    os.makedirs(bin_folder, exist_ok=True)
    os.symlink(cli.BINARY, os.path.join(bin_folder, "fairkv-batch"))
    env = dict(os.environ, PATH=bin_folder + ":" + os.environ["PATH"])
    for folder, rows in outputs():

        def lines(command):
            done = subprocess.run(["sh", "-c", command], cwd=folder, env=env, stdout=subprocess.PIPE, check=True)
            return done.stdout.decode("utf-8").splitlines()

        assert lines(whole) == ["4"]
        texts = [r["text"] for r in rows if not r["error"]]
        assert not answers or lines(answers) == "\n".join(texts).splitlines()
        bad = [(r["source"]["member"], r["source"]["line"], r["error"]["code"]) for r in rows if r["error"]]
        assert not errors or lines(errors) == ["%s\t%d\t%s" % x for x in bad]


@test
def rows_are_read_by_python_alone():
    reads("Python alone", "rows")


@test
def datasets_reads_shards_with_and_without_errors():
    if not importlib.util.find_spec("zstandard"):
        raise Skip("the Python package zstandard is missing")
    reads("datasets", "rows.to_list()")


@test
def polars_reads_shards_with_and_without_errors():
    reads("polars", "rows.to_dicts()")


@test
def duckdb_reads_shards_with_and_without_errors():
    reads("DuckDB", "[dict(zip(rows.columns, r)) for r in rows.fetchall()]")


@test
def pandas_reads_shards_with_and_without_errors():
    if not importlib.util.find_spec("zstandard"):
        raise Skip("the Python package zstandard is missing")
    reads("pandas", "rows.astype(object).where(rows.notna(), None).to_dict('records')")


cli.main()
