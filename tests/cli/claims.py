"""Processes that share an output's shards out among themselves (input.part = auto)."""

import cli
from cli import Job, Running, test


def small(name, *settings):
    return Job(
        name,
        "input.members=data/needle_500.jsonl",
        "job.limit=22",
        "model.max_prompt_tokens=96",
        "model.truncate=left",
        "engine.slots=2",
        "output.records_per_shard=4",
        *settings
    )


def auto(name, *settings):
    return small(name, "input.part=auto", *settings)


@test
def one_process_alone_does_it_all():
    whole = small("whole")
    whole.run()
    job = auto("alone")
    r = job.command("run"); print(r.text); r.must(0)
    import subprocess; print(subprocess.run(["ls","-lR",job.output],capture_output=True,text=True).stdout)
    assert job.content() == whole.content()
    r = job.command("run"); print(r.text); r.must(0)

cli.main()
