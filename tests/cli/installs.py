"""cmake --install into a folder that is then moved: the program, its pages and examples work from there."""

import os
import re
import shutil
import subprocess

import cli
from cli import Skip, command, test

ROOT = os.path.dirname(cli.TESTS)
BUILD = os.path.dirname(os.path.dirname(cli.BINARY))

_moved = []


def moved():
    """What was installed, in another place than where it was installed to."""
    if not shutil.which("cmake") or not os.path.exists(os.path.join(BUILD, "CMakeCache.txt")):
        raise Skip("no cmake, or the program is in no build folder")
    if not _moved:
        there, here = os.path.join(cli.WORK, "installed"), os.path.join(cli.WORK, "moved", "there")
        done = subprocess.run(
            ["cmake", "--install", BUILD, "--prefix", there], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert done.returncode == 0, done.stdout.decode()
        os.makedirs(os.path.dirname(here))
        os.rename(there, here)
        _moved.append(here)
    return _moved[0]


def pages(folder):
    return os.path.join(folder, "share", "doc", "fairkv-batch")


@test
def what_was_installed_and_moved_answers_the_demo_as_the_build_does():
    there, outputs = moved(), []
    for program, examples in (
        (cli.BINARY, os.path.join(ROOT, "jobs", "examples")),
        (os.path.join(there, "bin", "fairkv-batch"), os.path.join(pages(there), "jobs", "examples")),
    ):
        outputs.append(os.path.join(cli.WORK, "demo-%d" % len(outputs)))
        done = subprocess.run(
            [program, "run", os.path.join(examples, "demo.ini"), "-s", "job.output=" + outputs[-1]]
            + ["-s", "job.limit=3", "-s", "plan.calibration=stated", "-s", "engine.backend=cpu"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout.decode()
    assert cli.content_of(outputs[0]) == cli.content_of(outputs[1]) != {}


@test
def the_installed_program_does_not_say_where_it_was_built():
    if cli.sanitized():
        raise Skip("sanitizers keep the names of sources")
    with open(os.path.join(moved(), "bin", "fairkv-batch"), "rb") as f:
        program = f.read()
    for path in (ROOT, BUILD, os.path.join(cli.WORK, "installed")):
        assert path.encode() not in program, path


@test
def links_between_installed_pages_lead_somewhere():
    n = 0
    for folder, _, files in os.walk(pages(moved())):
        for name in files:
            if not name.endswith(".md"):
                continue
            with open(os.path.join(folder, name), encoding="utf-8") as f:
                for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", f.read()):
                    n += 1
                    assert os.path.exists(os.path.join(folder, link)), "%s: %s is not installed" % (name, link)
    assert n > 1
    assert os.path.exists(os.path.join(pages(moved()), "LICENSE"))


@test
def version_says_what_the_program_was_built_with():
    text = command("--version").must(0, "libarchive ", "libzstd ", "libpcre2-8 ", "; runs with glibc ").out
    assert re.match(r"fairkv-batch \d+\.\d+\.\d+, backends: cpu.*\nbuilt with \w+ C \d+\..*\n$", text), text


cli.main()
