"""What helps to find one's way: help, help keys, and words that are like no known one, or nearly like one."""

import re

import cli
from cli import Job, PromptJob, command, test

COMMANDS = ("run", "check", "plan", "init", "export", "status", "tokenize", "template")


def resolved(text):
    """{"section.key": value} of an INI file, as check writes it; continued lines joined by a blank."""
    values, section, key = {}, "", ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line[1:-1]
        elif line[:1] == " ":
            values[key] += " " + line.strip()
        elif " = " in line and line[0] not in ";#":
            name, value = line.split(" = ", 1)
            key = section + "." + name
            values[key] = value
    return values


def documented():
    """{"section.key": (default or None, type, help)} of help keys."""
    keys, section = {}, ""
    lines = command("help", "keys").must(0).out.splitlines()
    for line, below in zip(lines, lines[1:] + [""]):
        if line.startswith("["):
            section = line[1:-1]
        found = re.match(r"(\w+) = (.*?) {2,}(required; )?(\S.*)$", line)
        if found:
            name, default, required, kind = found.groups()
            assert below.startswith("    ") and below.strip(), line
            keys[section + "." + name] = (None if required else default.strip(), kind, below.strip())
    return keys


@test
def help_keys_has_every_key():
    keys = documented()
    assert set(keys) == set(resolved(Job("all").command("check").must(0).out))
    assert {k for k, (default, _, _) in keys.items() if default is None} == {
        "job.name", "job.output", "input.archives", "model.path"
    }


@test
def the_defaults_that_help_keys_prints_are_those_of_a_job_without_the_keys():
    needed = {"job.name", "job.output", "input.archives", "model.path"}
    line = cli.write("one.jsonl", cli.jsonl([{"id": 1, "prompt": "one two"}]))
    head = "[job]\nname = d\noutput = d-out\n[input]\narchives = %s\n[model]\npath = %s\n" % (line, cli.TINY)
    bare = resolved(command("check", cli.write("bare.ini", head)).must(0).out)
    overrides = []
    for key, (default, _, _) in documented().items():
        if key not in needed:
            overrides += ["-s", key + "=" + default]
    said = resolved(command("check", cli.write("bare.ini", head), *overrides).must(0).out)
    assert bare == said


@test
def the_ranges_that_help_keys_prints_are_those_that_are_checked():
    keys = documented()
    n = 0
    for key, (_, kind, _) in keys.items():
        found = re.search(r"whole number from (\d+) to (\d+)$", kind)
        if not found or key == "job.seed":
            continue
        n += 1
        low, high = map(int, found.groups())
        for value in (low - 1, high + 1):
            Job("range", "%s=%d" % (key, value)).command("check").must(2, key, "outside %d to %d" % (low, high))
    assert n > 15
    for key, (_, kind, _) in keys.items():
        if kind.startswith("one of: "):
            words = kind[8:].replace(", or a path", "").split()
            if ", or a path" not in kind:
                Job("choice", key + "=nonesuch").command("check").must(2, key, "is none of: " + " ".join(words))


@test
def help_of_a_command_is_its_usage():
    for name in COMMANDS:
        ended = command("help", name).must(0, "fairkv-batch " + name)
        assert ended.err == "" and ended.out == command(name, "--help").must(0).out
    for args in (["help"], ["help", "help"], ["help", "--help"]):
        assert command(*args).must(0, *COMMANDS).out == command("--help").out
    for name in COMMANDS + ("help",):
        assert command(name, "--version").must(0).out == command("--version").out


@test
def an_unknown_word_is_named_with_the_nearest_known_one():
    command("chekc", "a.ini").must(2, "no subcommand 'chekc'; did you mean check?", "usage:")
    command("hlep").must(2, "did you mean help?")
    command("help", "kyes").must(2, "no subcommand or topic 'kyes'; did you mean keys?")
    command("something-else").must(2, "no subcommand 'something-else'\n")
    job = Job("near")
    for which, option, near in (
        ("check", "--jsn", "--json"),
        ("plan", "--svgg", "--svg"),
        ("tokenize", "--jsno", "--json"),
        ("template", "--daet", "--date"),
        ("export", "--partail", "--partial"),
        ("status", "--jsno", "--json"),
        ("init", "--hlep", "--help"),
    ):
        words = "%s: unknown option %s; did you mean %s?" % (which, option, near)
        command(which, job.path, option).must(2, words, "help " + which)
    command("tokenize", cli.TINY, "-x").must(2, "tokenize: unknown option -x; see")
    command("run", job.path, "--dry-run").must(2, "run: unknown option --dry-run")
    command("check", job.path, "-s").must(2, "check: -s: its value is missing")
    command("template", cli.TINY, "--date").must(2, "template: --date: its value is missing")


@test
def an_unknown_key_is_named_with_the_nearest_known_one():
    job = PromptJob("keys", [{"id": 1, "prompt": "one"}], "engine.slot=4", "output.mode=standard", "job.xyzzyx=1")
    job.command("check").must(
        2,
        "engine.slot: unknown key; did you mean slots?",
        "output.mode: unknown key; it belongs to [plan]",
        "job.xyzzyx: unknown key\n",
    )
    job = Job("keys-s")
    job.command("check", "-s", "engine.slot=4").must(2, "-s: engine.slot: unknown key; did you mean slots?")
    job.command("check", "-s", "engine.path=x").must(2, "-s: engine.path: unknown key; it belongs to [model]")
    job.command("check", "-s", "engin.slots=4").must(2, "unknown section; did you mean engine?")


cli.main()
