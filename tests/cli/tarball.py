"""The tarballs for systems without our libraries, each made by the one command that the guide names. The CPU's is used
where nothing but libc is, and in Debian's smallest system: both need root, for chroot, and the second debootstrap and a
mirror. What it does there is, byte for byte, what the build does here. CUDA's is only looked at."""

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import subprocess
import sys
import zipfile

import cli
from cli import Skip, test

ROOT = os.path.dirname(cli.TESTS)
RECORD = cli.jsonl([dict(cli.one_record(), _id="é")])


def tried(*command, **options):
    """A command's exit code, and what it printed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def said(*command, **options):
    """What a command printed, which must succeed."""
    code, text = tried(*command, **options)
    assert code == 0, "%s: exit %d\n%s" % (" ".join(command), code, text[-3000:])
    return text


_made = {}


def tarball(preset="tarball"):
    """The folder that it unpacks to, in WORK."""
    for tool in ("cmake", "ninja", "readelf"):
        if not shutil.which(tool):
            raise Skip(tool + " is missing")
    if preset not in _made:
        code, text = tried("cmake", "--workflow", "--preset", preset, cwd=ROOT)
        if "FKV_STATIC:" in text:  # it says what is missing
            raise Skip(" ".join(text[text.index("FKV_STATIC:") :].split("\n\n")[0].split()))
        assert code == 0, text[-3000:]
        (path,) = re.findall(r"package: (\S+) generated", text)
        assert os.path.dirname(path) == os.path.join(ROOT, "build-" + preset), path
        said("tar", "-C", cli.WORK, "-xf", path)
        _made[preset] = os.path.join(cli.WORK, os.path.basename(path)[: -len(".tar.gz")])
    return _made[preset]


def program(*preset):
    return os.path.join(tarball(*preset), "bin", "fairkv-batch")


def dynamic(path):
    """What it needs, and where that is looked for."""
    text = said("readelf", "-d", path)
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", text)), re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", text)


def check_program(path):
    """It runs with the glibc that the guide names, and does not say where it was built."""
    versions = re.findall(r"GLIBC_(\d+)\.(\d+)", said("readelf", "--version-info", "--wide", path))
    needed = "%d.%d" % max((int(major), int(minor)) for major, minor in versions)
    with open(os.path.join(ROOT, "jobs", "GUIDE.md"), encoding="utf-8") as f:
        assert "glibc %s or later" % needed in f.read(), needed
    with open(path, "rb") as f:
        assert ROOT.encode() not in f.read()


@test
def the_program_needs_libc_and_libm_alone():
    version = re.match(r"fairkv-batch (\S+),", cli.command("--version").out)[1]
    assert os.path.basename(tarball()) == "fairkv-batch-%s-linux-x86_64" % version
    assert dynamic(program()) == ({"libc.so.6", "libm.so.6"}, [])
    check_program(program())


@test
def cuda_s_program_needs_the_toolkit_beside_it():
    if not shutil.which("nvcc"):
        raise Skip("nvcc is missing")
    path = program("tarball-cuda")
    assert re.search(r"-linux-x86_64-cuda\d+$", tarball("tarball-cuda"))
    needed, places = dynamic(path)
    system = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
    toolkit = sorted(n for n in needed - system if not n.startswith("libnccl.so."))
    assert len(toolkit) == 1 and toolkit[0].startswith("libcublasLt.so."), needed
    assert places == ["$ORIGIN/../lib"]
    check_program(path)


@test
def every_library_s_licence_is_there():
    pages = os.path.join(tarball(), "share", "doc", "fairkv-batch")
    assert os.path.exists(os.path.join(pages, "LICENSE"))
    with open(os.path.join(pages, "licences", "README.md"), encoding="utf-8") as f:
        text = f.read()
    built_with = said(program(), "--version").split("built with ")[1].split(";")[0].split(", ")[1:]
    listed = re.findall(r"^- ([^:\n]+): \S", text, re.M)
    assert len(listed) == len(built_with) == 11, (listed, built_with)
    for name in listed:
        assert os.path.getsize(os.path.join(pages, "licences", name + ".txt")) > 1000, name


@test
def it_reads_every_form_of_archive():
    said(sys.executable, "-B", os.path.join(cli.TESTS, "cli", "archives.py"), program(), "every")


# In another root.


def fill(folder):
    """A model, and a record in each kind of archive, under a name that is not ASCII."""
    shutil.copytree(cli.TINY, os.path.join(folder, "model"))
    tar = cli.tar_of(("größe/ä.jsonl", RECORD))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("größe/ä.jsonl", RECORD)
    data = os.path.join(folder, "data")
    os.mkdir(data)
    for name, content in {
        "a.tar.gz": gzip.compress(tar),
        "b.tar.bz2": bz2.compress(tar),
        "c.tar.xz": lzma.compress(tar),
        "d.tar.zst": cli.zstd(tar),
        "e.zip": zipped.getvalue(),
    }.items():
        with open(os.path.join(data, name), "wb") as f:
            f.write(content)
    for path in (cli.TEMPLATES, cli.LIMITS):
        shutil.copy(path, os.path.join(data, os.path.basename(path)[len("needle-") :]))


def use(root, *argv):
    """init, check and run in the folder /try of a root (None: here, in WORK/here); the job file and the shards."""
    home = os.path.join(root, "try") if root else os.path.join(cli.WORK, "here")
    inside = "/try" if root else home
    os.mkdir(home)
    fill(home)
    options, job = [], inside + "/job.ini"
    for setting in (
        "engine.backend=cpu",
        "engine.slots=2",
        "engine.tensor_parallel=2",
        "plan.calibration=stated",
        "profile.budget=64",
    ):
        options += ["-s", setting]
    assert said(*argv, "--version").startswith("fairkv-batch ")
    said(*argv, "init", inside + "/model", inside + "/data", "-o", job)
    text = said(*argv, "check", job, *options)
    assert "; input: 5 records in 5 members of " in text, text
    said(*argv, "run", job, *options)
    with open(os.path.join(home, "job.ini"), encoding="utf-8") as f:
        text = f.read()
    (name,) = os.listdir(os.path.join(home, "out"))
    content = cli.content_of(os.path.join(home, "out", name))
    assert content
    return text, content


_here = []


def works_in(root):
    shutil.copytree(tarball(), os.path.join(root, "opt", "fairkv-batch"))
    there = use(root, "chroot", root, "/opt/fairkv-batch/bin/fairkv-batch")
    if not _here:
        _here.append(use(None, cli.BINARY))
    assert there == _here[0]


def new_root(name):
    if os.geteuid() != 0:
        raise Skip("chroot needs root")
    root = os.path.join(cli.WORK, name)
    os.mkdir(root)
    return root


def bare_root(name):
    """A root with the program's libraries and nothing else."""
    root = new_root(name)
    for path in re.findall(r"(/\S+) \(0x", said("ldd", program())):
        os.makedirs(root + os.path.dirname(path), exist_ok=True)
        shutil.copy(path, root + path)  # follows links
    return root


@test
def it_works_where_nothing_but_libc_is():
    root = bare_root("bare")
    shutil.copytree("/usr/lib/locale/C.utf8", root + "/usr/lib/locale/C.utf8")
    works_in(root)


@test
def without_a_utf_8_locale_names_are_not_lost_without_a_word():
    root = bare_root("no-locale")
    shutil.copy(program(), root)
    shutil.copytree(cli.TINY, os.path.join(root, "model"))
    with zipfile.ZipFile(os.path.join(root, "names.zip"), "w") as z:
        z.writestr("größe.jsonl", RECORD)
    code, text = tried("chroot", root, "/fairkv-batch", "init", "/model", "/names.zip")
    assert code == 3 and "the locale C.UTF-8" in text, text


@test
def it_works_in_debian_s_smallest_system():
    root = new_root("minbase")
    if not shutil.which("debootstrap"):
        raise Skip("debootstrap is missing")
    # It mounts /proc and /sys there: in a name space of its own, so that nothing stays mounted when it is killed.
    code, text = tried(
        "unshare", "--mount", "--propagation", "private", "debootstrap", "--variant=minbase", "bookworm", root
    )
    if code:
        raise Skip("debootstrap: " + text.strip()[-200:])
    works_in(root)


cli.main()
