"""jobs/examples/*.sbatch under a real Slurm, whose daemons run on loopback: tasks that are warned, killed, requeued
and preempted, and other numbers of tasks from one submission to the next.

Needs Debian's slurm-wlm and munge, and root: each daemon belongs to the test and has its files in its folder."""

import glob
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import cli
import outputs
from cli import Job, test

EXAMPLES = os.path.join(os.path.dirname(cli.TESTS), "jobs", "examples")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue")
PER_SHARD, N_RECORDS = 40, 230

CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
SlurmdPort={slurmd_port}
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes={host} MaxTime=INFINITE PriorityTier=10 State=UP
"""


class Slurm:
    """A cluster of this machine alone."""

    def __init__(self):
        self.processes = []
        self.dir = tempfile.mkdtemp(prefix="fairkv-slurm-", dir="/tmp")

    def start(self, name, *args, user=None):
        log = open(os.path.join(self.dir, name + ".out"), "wb")
        demote = {"user": user, "group": pwd.getpwnam(user).pw_gid} if user else {}
        self.processes.append(
            subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env(), **demote)
        )

    def env(self, **more):
        known = dict(os.environ, SLURM_CONF=os.path.join(self.dir, "slurm.conf"), FAIRKV_BATCH=cli.BINARY)
        return dict({k: v for k, v in known.items() if not k.startswith(("SLURM_JOB", "SBATCH"))}, **more)

    def up(self):
        """False: the daemons don't start here."""
        os.chmod(self.dir, 0o755)
        munge = pwd.getpwnam("munge")
        private = os.path.join(self.dir, "munge")
        os.mkdir(private, 0o700)
        with open(os.path.join(private, "key"), "wb") as f:
            f.write(os.urandom(1024))
        os.chmod(f.name, 0o400)
        for path in (private, f.name):
            os.chown(path, munge.pw_uid, munge.pw_gid)
        os.chown(self.dir, munge.pw_uid, munge.pw_gid)
        ports = []
        for _ in range(2):
            s = socket.socket()
            s.bind(("127.0.0.1", 0))
            ports.append(s)
        numbers = [s.getsockname()[1] for s in ports]
        for s in ports:
            s.close()
        with open(os.path.join(self.dir, "slurm.conf"), "w") as f:
            f.write(
                CONF.format(host=socket.gethostname(), dir=self.dir, port=numbers[0], slurmd_port=numbers[1])
            )
        self.start(
            "munged",
            "munged",
            "--foreground",
            "--key-file=%s/key" % private,
            "--socket=%s/munge.socket" % self.dir,
            "--pid-file=%s/munged.pid" % private,
            "--log-file=%s/munged.log" % private,
            "--seed-file=%s/munged.seed" % private,
            user="munge",
        )
        if not self.soon(lambda: os.path.exists(os.path.join(self.dir, "munge.socket"))):
            return False
        self.start("slurmctld", "slurmctld", "-D")
        self.start("slurmd", "slurmd", "-D")
        return self.soon(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"))

    def soon(self, condition):
        end = time.time() + 30
        while time.time() < end:
            if condition():
                return True
            if any(p.poll() is not None for p in self.processes):
                return False
            time.sleep(0.1)
        return False

    def ask(self, *args):
        done = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.env())
        return done.stdout.decode("utf-8", "replace")

    def down(self):
        # Else what a failed test left would outlive the daemons.
        for job in self.ask("squeue", "-h", "-o", "%A").split():
            self.ask("scancel", "--full", "--signal=KILL", job)
            self.ask("scancel", job)
        self.soon(lambda: not self.ask("squeue", "-h", "-o", "%A").strip())
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


_slurm = []


def cluster():
    missing = [p for p in PROGRAMS if not shutil.which(p)]
    if missing:
        raise cli.Skip("%s: not there (apt-get install slurm-wlm munge)" % ", ".join(missing))
    if os.geteuid() != 0:
        raise cli.Skip("the daemons need root")
    if not _slurm:
        slurm = Slurm()
        _slurm.append(slurm if slurm.up() else None)
        if not _slurm[0]:
            for path in sorted(glob.glob(slurm.dir + "/*.out") + glob.glob(slurm.dir + "/*.log")):
                with open(path, errors="replace") as f:
                    print("%s: %s" % (os.path.basename(path), f.read()[-500:]))
            slurm.down()
    if not _slurm[0]:
        raise cli.Skip("Slurm's daemons don't start here")
    return _slurm[0]


ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


class Submitted:
    """A job of ours in the queue; of an array, all of its tasks."""

    def __init__(self, script, *args, options=(), env=None):
        self.slurm = cluster()
        self.log = os.path.join(cli.WORK, "slurm-%j.log")
        done = subprocess.run(
            ["sbatch", "--parsable", "-o", self.log, *options, os.path.join(EXAMPLES, script), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.slurm.env(**(env or {})),
        )
        assert done.returncode == 0, done.stdout
        self.id = done.stdout.decode().strip()

    def tasks(self):
        """{task: its lines of scontrol}, by the name that scontrol takes."""
        found = {}
        for text in self.slurm.ask("scontrol", "-o", "show", "job", self.id).splitlines():
            values = dict(re.findall(r"(\w+)=(\S+)", text))
            name = values["JobId"]
            if "ArrayTaskId" in values:
                name = "%s_%s" % (values["ArrayJobId"], values["ArrayTaskId"])
            found[name] = values
        return found

    def until(self, condition, what):
        def true():
            ended = self.ended()
            time.sleep(0.1)
            met = condition()
            assert met or not ended, "the job ended before its " + what
            return met

        try:
            cli.wait_until(true, what)
        except AssertionError:
            print(self.text(), self.tasks())
            raise

    def ended(self):
        return all(task["JobState"] in ENDED for task in self.tasks().values())

    def wait(self):
        """{task: (state, exit code)} when all have ended."""
        self.until(self.ended, "end of job " + self.id)
        return {n: (t["JobState"], int(t["ExitCode"].split(":")[0])) for n, t in self.tasks().items()}

    def must_end(self, *codes):
        ended = self.wait()
        assert sorted(code for _, code in ended.values()) == sorted(codes), (ended, self.text())

    def text(self):
        text = ""
        for path in glob.glob(os.path.join(cli.WORK, "slurm-*.log")):
            with open(path, errors="replace") as f:
                text += f.read()
        return text


def job(name, *settings):
    return Job(
        name,
        "input.members=data/needle_1k.jsonl",
        "job.limit=%d" % N_RECORDS,
        "model.max_prompt_tokens=64",
        "model.truncate=left",
        "engine.slots=2",
        "output.records_per_shard=%d" % PER_SHARD,
        *settings
    )


_whole = {}


def whole():
    if not _whole:
        one = job("whole")
        one.run()
        _whole.update(one.content())
    return _whole


class Held:
    """Makes the runs of a submission wait when each has answered n records: the environment, and the others."""

    def __init__(self, name, n):
        self.path = os.path.join(cli.WORK, name + ".held")
        self.env = {"FAIRKV_TEST_HOLD": "records %d %s" % (n, self.path)}

    def reached(self):
        return os.path.exists(self.path)

    def go_on(self):
        os.unlink(self.path)


def holders(j):
    """The processes that hold a lease of the job's output."""
    found = set()
    for path in glob.glob(j.file("lock*")):
        try:
            pid = cli.load(path)["pid"]
        except (OSError, ValueError, KeyError):
            continue
        if os.path.exists("/proc/%d" % pid):
            found.add(pid)
    return found


@test
def one_node_warned_before_its_limit_is_requeued_and_ends():
    j, held = job("node"), Held("node", 20)
    sub = Submitted("one_node.sbatch", j.path, env=held.env)
    sub.until(held.reached, "20 records")
    # What --signal=B:USR1@120 does two minutes before the end.
    sub.slurm.ask("scancel", "--batch", "--signal=USR1", sub.id)
    sub.until(lambda: "signal 10: no more records are begun" in sub.text(), "word of the signal")
    held.go_on()
    sub.until(lambda: int(sub.tasks()[sub.id]["Restarts"]) == 1, "requeue")
    # The second start is held as well, at its own 20th record.
    sub.until(held.reached, "20 more records")
    held.go_on()
    sub.must_end(0)
    assert "resuming: " in sub.text() and j.content() == whole()


@test
def a_run_that_fails_is_not_requeued():
    j = job("wrong", "engine.slots=0")
    sub = Submitted("one_node.sbatch", j.path)
    sub.must_end(2)
    assert sub.tasks()[sub.id]["Restarts"] == "0"


@test
def an_array_numbers_its_parts_from_its_first_task_and_refuses_gaps():
    j = job("array")
    Submitted("array.sbatch", j.path, options=["--array=5-7"]).must_end(0, 0, 0)
    assert j.content() == whole()
    assert sorted(os.path.basename(p) for p in glob.glob(j.file("manifest*"))) == [
        "manifest-%dof3.json" % i for i in range(3)
    ]
    gaps = Submitted("array.sbatch", job("gaps").path, options=["--array=1,3"])
    gaps.must_end(2, 2)
    assert "have gaps" in gaps.text() and not os.path.exists(job("gaps").output)


@test
def an_array_task_that_is_requeued_leaves_the_others_alone():
    j = job("tasks")
    held = Held("tasks", 10)
    sub = Submitted("array.sbatch", j.path, options=["--array=0-1"], env=held.env)
    sub.until(held.reached, "10 records")
    sub.slurm.ask("scontrol", "requeue", sub.id + "_0")
    sub.until(lambda: sub.tasks()[sub.id + "_0"]["Restarts"] == "1", "requeue")
    while not all(t["JobState"] == "COMPLETED" for t in sub.tasks().values()):
        sub.until(lambda: held.reached() or "RUNNING" not in str(sub.tasks()), "hold")
        if held.reached():
            held.go_on()
        sub.until(lambda: True, "a moment")
    assert sub.tasks()[sub.id + "_1"]["Restarts"] == "0"
    assert j.content() == whole()


@test
def tasks_that_share_are_killed_preempted_and_joined_by_others():
    j = job("shared")
    held = Held("shared", 15)
    first = Submitted("auto.sbatch", j.path, options=["--array=0-1"], env=held.env)
    first.until(lambda: held.reached() and len(holders(j)) == 2, "two tasks at work")
    # One is killed from outside, one preempted by a job that needs the whole node.
    victim = sorted(holders(j))[0]
    os.kill(victim, signal.SIGKILL)
    first.until(lambda: victim not in holders(j), "end of a killed task")
    urgent = subprocess.run(
        ["sbatch", "--parsable", "-p", "urgent", "-n", "4", "-o", "/dev/null", "--wrap", "sleep 2"],
        stdout=subprocess.PIPE,
        check=True,
        env=first.slurm.env(),
    ).stdout.decode().strip()
    first.until(lambda: any(t["Restarts"] == "1" for t in first.tasks().values()), "preemption")
    if held.reached():
        held.go_on()
    # More join, another number than before; held ones go on.
    more = Submitted("auto.sbatch", j.path, options=["--array=0-2"])

    def ended():
        if held.reached():
            held.go_on()
        return "RUNNING" not in str(first.tasks()) and "PENDING" not in str(first.tasks())

    first.until(ended, "end of the first tasks")
    codes = [code for _, code in more.wait().values()]
    assert set(codes) == {0}, (codes, more.text())
    assert urgent
    assert j.content() == whole()
    assert cli.load(j.file("manifest.json"))["complete"] is True
    assert outputs.leavings(j) == [], outputs.leavings(j)


@test
def the_last_job_exports_what_is_there():
    j = job("report")
    Submitted("auto.sbatch", j.path, options=["--array=0-1"]).must_end(0, 0)
    dest = os.path.join(cli.WORK, "answers.jsonl")
    last = Submitted("report.sbatch", j.output, dest)
    last.must_end(0)
    with open(dest, "rb") as f:
        assert f.read().splitlines() == j.raw_rows()
    assert "230 rows" in last.text(), last.text()


try:
    cli.main()
finally:
    for slurm in _slurm:
        if slurm:
            slurm.down()
