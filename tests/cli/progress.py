"""What a run tells while it works: lines, a redrawn line on a terminal, --quiet, -v and --log-format."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess

import cli
import outputs
from cli import Job, PromptJob, Running, test

SHORT = "input.members=data/needle_500.jsonl"
LINE = re.compile(
    r"progress: (\d+) of (~?)(\d+) records, \d+ errors, [0-9.]+ records/s, \d+ prompt and \d+ new tokens/s, "
    r"ETA (~?[0-9:]+|unknown), \d+ of 8 slots busy, balance [0-9.]+"
)


class Terminal:
    """A command in tmux, on a screen of its own; held like a Running."""

    def __init__(self, job, *args, hold="nowhere 0", columns=100, term=None):
        if not shutil.which("tmux"):
            raise cli.Skip("tmux is missing")
        self.hold = cli.Hold(hold, job.path + ".held")
        self.name = "fairkv-%d-%s" % (os.getpid(), job.name)
        self.code = job.path + ".code"
        words = ["env", "FAIRKV_TEST_HOLD=%s %s" % (self.hold.where, self.hold.path)]
        words += ["TERM=" + term] if term else []
        words += [cli.BINARY, "run", job.path, *args]
        line = "%s; echo $? >%s; cat" % (" ".join(map(shlex.quote, words)), shlex.quote(self.code))
        self.tmux("new-session", "-d", "-x", str(columns), "-y", "20", line)

    def tmux(self, *args):
        done = subprocess.run(["tmux", "-f", "/dev/null", "-L", self.name, *args], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        assert done.returncode == 0, done.stdout.decode()
        return done.stdout.decode("utf-8")

    def screen(self):
        """The lines that are not empty."""
        return [line.rstrip() for line in self.tmux("capture-pane", "-p").splitlines() if line.strip()]

    def until(self, pattern):
        """Waits until a line is all pattern, and returns its match."""
        found = []

        def there():
            found[:] = [m for m in (re.fullmatch(pattern, line) for line in self.screen()) if m]
            return found

        cli.wait_until(there, pattern)
        return found[-1]

    def go_on(self):
        cli.wait_until(self.hold.reached, "where it waits, " + self.hold.where)
        self.hold.go_on()

    def ended(self):
        cli.wait_until(lambda: os.path.exists(self.code) and os.path.getsize(self.code) > 1, "end")
        with open(self.code) as f:
            return int(f.read())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.tmux("kill-server")


SHOWN = r"(\d+)/(~?)(\d+)  [0-9.]+/s  ETA (~?[0-9:]+|\?)  \d+ errors?  tokens/s \d+ prompt \d+ new  \d/8 slots.*"


@test
def a_terminal_has_one_line_that_is_redrawn():
    job = Job("redrawn", "job.limit=40", SHORT)
    with Terminal(job, hold="records 13") as t:
        m = t.until(SHOWN)
        cli.wait_until(lambda: len(outputs.rows_written(job)) == 13, "13 rows")
        t.until("13/40  .*")
        assert m.group(2) == "" and m.group(3) == "40", m.group()
        # One line, the last, whatever was said above it; lines have no time there.
        screen = t.screen()
        assert [bool(re.fullmatch(SHOWN, line)) for line in screen].count(True) == 1, screen
        assert re.fullmatch(SHOWN, screen[-1]) and any(line.startswith("model: ") for line in screen), screen
        assert not any(cli.STAMP.match(line) for line in screen), screen
        t.go_on()
        assert t.ended() == 0
        screen = t.screen()
        # It is gone at the end, and nothing of it is left in another line.
        assert not any(re.search("/8 slots|ETA", line) for line in screen), screen
        assert any(line.startswith("done: 40 records") for line in screen), screen

@test
def what_is_said_stands_above_the_redrawn_line():
    job = Job("above", "job.limit=40", SHORT, "job.grace=0")
    with Terminal(job, hold="records 13") as t:
        t.until(SHOWN)
        with open(job.file("lock"), "rb") as f:
            os.kill(json.loads(f.read().decode())["pid"], signal.SIGTERM)
        assert t.ended() == 75
        screen = t.screen()
        assert any(re.fullmatch(r"signal 15: no more records are begun.*", line) for line in screen), screen
        assert screen[-1] == "interrupted by signal 15; run it again to resume", screen


@test
def a_narrow_terminal_cuts_the_line():
    job = Job("narrow", "job.limit=40", SHORT)
    with Terminal(job, hold="records 13", columns=30) as t:
        t.until(r"13/40  .*")
        screen = t.screen()
        assert len(screen[-1]) <= 29 and screen[-1].startswith("13/40  "), screen
        t.tmux("resize-window", "-x", "15", "-y", "20")
        t.until(r"13/40  .{1,7}")
        t.go_on()
        assert t.ended() == 0


@test
def a_dumb_terminal_gets_lines():
    job = Job("dumb", "job.limit=40", SHORT, "output.progress=1")
    with Terminal(job, hold="records 13", columns=160, term="dumb") as t:
        t.until(LINE)
        t.go_on()
        assert t.ended() == 0


@test
def silent_stages_say_what_they_do():
    job = Job("silent", "job.limit=20", SHORT, "profile.method=ada-snapkv", "profile.budget=64", "output.progress=1")
    with Terminal(job, hold="profile 3") as t:
        t.until(r"measuring budgets: prompt 3 of 20, for 0:\d\d")
    job = Job("silent-lines", "job.limit=20", SHORT, "profile.method=ada-snapkv", "profile.budget=64",
              "output.progress=1")
    run = Running(job, hold="profile 3").until_held()
    run.until(lambda: "progress: measuring budgets: prompt 3 of 20, for 0:0" in run.text(), "a line")
    run.go_on()
    assert run.wait() == 0


@test
def waiting_for_another_part_is_said():
    settings = ["job.limit=20", SHORT, "output.records_per_shard=5"]
    first, second = Job("parts", *settings), Job("other", *settings, output=os.path.join(cli.WORK, "parts"))
    makes = Running(first, "-s", "input.part=0/2", hold="plan 0").until_held()
    waits = Running(second, "-s", "input.part=1/2", "-s", "output.progress=1", "-s", "job.name=parts")
    waits.until(lambda: "progress: waiting for another process that makes profile or plan" in waits.text(), "a line")
    makes.go_on()
    assert makes.wait() == 0 and waits.wait() == 0, waits.text()
    assert cli.load(second.file("stats-1of2.json"))["run"]["seconds"]["wait"] > 0.5


@test
def elsewhere_there_are_lines_with_the_time():
    job = Job("piped", "job.limit=40", SHORT, "output.progress=1")
    run = outputs.held_at(job, 13)
    run.until(lambda: "progress: 13 of 40 records" in run.text(), "a line")
    run.go_on()
    assert run.wait() == 0
    with open(run.log.name, encoding="utf-8") as f:
        lines = f.read().splitlines()
    assert all(cli.STAMP.match(line) for line in lines), lines
    found = [LINE.fullmatch(cli.unstamped(line)) for line in lines if "progress: 13" in line]
    assert found and all(m and m.group(2) == "" and m.group(3) == "40" for m in found), lines
    assert not any("\r" in line or "\x1b" in line or "of the input" in line for line in lines), lines
    with open(job.file("log"), encoding="utf-8") as f:
        assert [line for line in f.read().splitlines() if "progress: 13" in line] == [
            line for line in lines if "progress: 13" in line
        ]


@test
def resumed_records_count_and_parts_count_their_own():
    job = Job("resumed", "job.limit=40", SHORT, "output.records_per_shard=8", "output.progress=1")
    outputs.held_at(job, 13).stop(signal.SIGKILL)
    outputs.wait_for_the_lock(job)
    run = outputs.held_at(job, 5)
    run.until(lambda: "progress: 18 of 40 records" in run.text(), "a line with earlier runs' records")
    run.go_on()
    assert run.wait() == 0
    job = Job("part", "job.limit=40", SHORT, "output.records_per_shard=8", "output.progress=1", "input.part=1/2")
    run = Running(job, hold="records 4").until_held()
    run.until(lambda: re.search(r"progress: \d of 16 records", run.text()), "a line with the part's records")
    run.go_on()
    assert run.wait() == 0
    assert cli.load(job.file("stats-1of2.json"))["job"]["records"] == 16


@test
def a_total_that_is_not_known_is_estimated_and_marked():
    job = Job("estimated", "model.max_prompt_tokens=100", "model.truncate=left", "output.progress=1")
    job.command("plan").must(0)
    profile = job.profile()
    del profile["input"]
    cli.write("estimated/profile.json", profile)
    with Terminal(job, hold="records 13") as t:
        m = t.until(SHOWN)
        assert m.group(2) == "~" and int(m.group(3)) >= 13, m.group()
        cli.wait_until(lambda: job.sums()["estimated"] is True and job.sums()["records"] >= 13, "an estimate")
        t.go_on()
        assert t.ended() == 0
    assert job.sums()["estimated"] is False and job.sums()["records"] == 300
    limited = Job("limited", "job.limit=150", "model.max_prompt_tokens=100", "model.truncate=left", "output.progress=1")
    limited.command("plan").must(0)
    cli.write("limited/profile.json", dict(profile, fingerprint=limited.profile()["fingerprint"]))
    run = outputs.held_at(limited, 13)
    run.until(lambda: re.search("progress: 13 of ~", run.text()), "an estimate")
    assert int(re.search("progress: 13 of ~([0-9]+)", run.text()).group(1)) <= 150, run.text()
    run.go_on()
    assert run.wait() == 0


@test
def quiet_says_nothing_on_success_and_the_log_has_it_all():
    job = Job("quiet", "job.limit=10", SHORT, "output.progress=1")
    ended = job.command("run", "--quiet").must(0)
    assert ended.raw_err == "" and ended.out == "", ended.text
    with open(job.file("log"), encoding="utf-8") as f:
        log = f.read()
    assert "model: " in log and "done: 10 records" in log, log
    # A job that is complete is quiet, too, and so is one that another run has.
    ended = job.command("run", "--quiet").must(0)
    assert ended.text == "", ended.text
    held = Job("held", "job.limit=10", SHORT)
    run = Running(held, hold="records 3").until_held()
    ended = held.command("run", "--quiet").must(75)
    assert ended.text == "", ended.text
    held.command("run").must(75, "another")
    run.go_on()
    assert run.wait() == 0
    with Terminal(Job("quiet-terminal", "job.limit=10", SHORT), "--quiet") as t:
        assert t.ended() == 0 and t.screen() == []


@test
def quiet_says_what_went_wrong():
    job = PromptJob("bad", [{"id": 1, "prompt": "The robin"}, b"no JSON", {"id": 3}])
    ended = job.command("run", "--quiet").must(1)
    assert ended.err == "WARNING: 2 records are error rows: bad_json 1, missing_field 1\n", ended.err
    assert cli.STAMP.match(ended.raw_err)
    ended = job.command("run", "--quiet", "-s", "engine.slots=nine").must(2)
    assert "error: -s" in ended.err and "engine.slots" in ended.err


@test
def json_lines_are_objects():
    job = PromptJob("objects", [{"id": i, "prompt": 'A "robin" \\ %d' % i} for i in range(12)] + [b'"\\'],
                    'job.name=a"b', "output.progress=1")
    run = outputs.held_at(job, 5, "--log-format", "json")
    run.until(lambda: '"stage":"answer"' in run.text(), "a line")
    run.go_on()
    assert run.wait() == 1
    lines = [json.loads(line) for line in run.text().splitlines()]
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line["time"]), line
        assert line["level"] in ("info", "warning") and line["message"], line
    assert lines[-1]["level"] == "warning" and lines[-1]["message"] == "1 records are error rows: bad_json 1", lines
    progress = [line["progress"] for line in lines if line.get("progress", {}).get("stage") == "answer"]
    assert progress and progress[0]["total"] == 13 and progress[0]["estimated"] is False, progress
    assert {"done", "errors", "records_per_second", "prompt_tokens_per_second", "completion_tokens_per_second",
            "eta_seconds", "busy_slots", "slots", "balance"} <= set(progress[0]), progress
    ended = job.command("run", "--log-format=json", "-s", "job.seed=x").must(2)
    told = [json.loads(line) for line in ended.err.splitlines()]
    assert told and all(t["level"] == "error" for t in told), told
    job.command("run", "--log-format", "xml").must(2, "usage:")
    job.command("run", "--log-format").must(2, "usage:")


@test
def verbose_says_more():
    job = Job("verbose", "job.limit=4", SHORT)
    ended = job.command("run", "-v").must(0)
    assert re.search(r"^stage sample: [0-9.]+ s$", ended.err, re.M), ended.err
    with open(job.file("log"), encoding="utf-8") as f:
        assert "stage sample: " in f.read()
    plain = Job("plain", "job.limit=4", SHORT)
    assert "stage " not in plain.command("run").must(0).err


cli.main()
