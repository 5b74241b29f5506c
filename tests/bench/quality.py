#!/usr/bin/env python3
"""What a budget costs in answers, by scorer: exact answers of needle-tiny and needle-small.

usage: quality.py BUILD [SHARED] [--records N] [--only WORDS]
  BUILD        a folder that the program was built in, with its tests
  SHARED       has models/needle-small and prompts/needle.tar.zst; without it needle-tiny alone is asked
  --records N  of each set the first N prompts (100 of needle-tiny's and 40 of needle-small's otherwise)
  --only       only what has these words in its heading, such as "tiny later"

Prints the table that stands in LOG.md: about 15 minutes on two idle cores. Needs no other package.

Texts. A prompt is a text, then a question ("Question: ...\\nAnswer:") about one of the sentences in it that have a
number, its needles.
  plain      as in the set: a filler of sentences without a digit
  numbers    every sentence of the filler ends with a number
  meaning    every sentence of the filler has a needle's form, a name and a number, but says something else: "The
             quiet day for red-lake is 4821." beside "The access code for old-mill is 7312."
  first      the question stands before the text, and again where it is asked
Questions.
  seen       it is the prompt's end, as in LongBench: the last 32 tokens, by which snapkv, defensive and critical score,
             have it
  later      the text alone is the prompt; when it is compressed, the question's tokens are fed one by one, and the
             answer follows (asked_later.c)
  front      it stands before the text, and "Answer:" alone behind: these models were never taught that, and can't
Where a model answers less than half with its whole cache nothing else is asked.

Columns. Scorers are profile.score's, those that the build has. `control` is none: every head keeps the tokens nearest
to a digit (of equally near ones some, by a hash of their place), beside the last 32 as with all. It never looks at the
model: a set that it answers says little about scorers. All have the same budgets, a share of the mean prompt, with
method = uniform, kernel = 7, sinks = 0 but where a row says otherwise. A cell: exact answers; then points of difference
on the same prompts with their 95% interval (paired; Bonett and Price 2012), from snapkv in the same row, or, of a row
with another setting, from the same scorer without it.
"""

import argparse
import concurrent.futures
import io
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCORERS = ["snapkv", "defensive", "critical", "keydiff", "expected"]
WINDOW = 32
NEW_TOKENS = 12
Z = 1.959964


# --- texts ---------------------------------------------------------------------


def filler(context):
    """Its lines, and which of them are filler: the first one tells what to do."""
    lines = context.splitlines()
    return lines, [i for i, line in enumerate(lines) if i and not re.search(r"\d", line)]


def plain(record, rng):
    return record["context"]


def first(record, rng):
    return "Question: %s\n%s" % (record["input"], record["context"])


def numbers(record, rng):
    lines, where = filler(record["context"])
    for i in where:
        lines[i] = "%s %d." % (lines[i][:-1], rng.randint(10**5, 10**7))
    return "\n".join(lines) + "\n"


NAME = r"([a-z]+)-([a-z]+)"
OTHER = [
    "Remember that %s-%s has the old price %d.",
    "One of the simple market boats for %s-%s is: %d.",
    "The quiet day for %s-%s is %d.",
]


def meaning(record, rng):
    lines, where = filler(record["context"])
    taken = set(re.findall(NAME, record["context"]))
    for i in where:
        name = next(iter(taken))
        while name in taken:
            name = (rng.choice(NAMES)[0], rng.choice(NAMES)[1])
        taken.add(name)
        lines[i] = rng.choice(OTHER) % (*name, rng.randint(10**5, 10**7))
    return "\n".join(lines) + "\n"


NAMES = []  # pairs of all sets


def sets(archive):
    """Its records by set."""
    raw = subprocess.run(["zstd", "-dcq", archive], stdout=subprocess.PIPE, check=True).stdout
    found = {}
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(".jsonl"):
                lines = tar.extractfile(member).read().splitlines()
                found[os.path.basename(member.name)[: -len(".jsonl")]] = [json.loads(line) for line in lines]
    return found


# --- statistics ----------------------------------------------------------------


def difference(ours, theirs):
    """Of the shares that are right, in points, with its 95% interval."""
    n = len(ours)
    gained = sum(a and not b for a, b in zip(ours, theirs))
    lost = sum(b and not a for a, b in zip(ours, theirs))
    p, q = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z * math.sqrt(max(0, p + q - (p - q) ** 2) / (n + 2))
    return tuple(100 * x for x in ((gained - lost) / n, max(-1, p - q - half), min(1, p - q + half)))


# --- asking --------------------------------------------------------------------


class Model:
    def __init__(self, name, folder, ask):
        self.name, self.folder, self.ask = name, folder, ask
        with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
            vocab = json.load(f)["model"]["vocab"]
        self.has_digit = {i for piece, i in vocab.items() if re.search(r"\d", piece)}

    def ids(self, texts):
        lines = "".join(json.dumps(text) + "\n" for text in texts)
        out = subprocess.run(
            [self.ask.program, "tokenize", self.folder, "--json", "--bos"],
            input=lines.encode(),
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        return [[int(i) for i in re.findall(rb"\d+", line)] for line in out.splitlines()]


class Case:
    """A set in one of the texts, asked of a model in one of the ways."""

    def __init__(self, model, name, records, text, asked):
        rng = random.Random(name + text.__name__)
        self.model, self.later = model, asked == "later"
        self.answers = [r["answers"][0] for r in records]
        texts = [text(r, rng) for r in records]
        seen = ["%sQuestion: %s\nAnswer:" % (t, r["input"]) for t, r in zip(texts, records)]
        front = ["%sAnswer:" % first(r, rng) for r in records]
        self.prompts = {"seen": seen, "later": texts, "front": front}[asked]
        self.ids = model.ids(self.prompts)
        self.questions = [[]] * len(records)  # ids to be fed
        if self.later:
            wholes = model.ids(seen)
            assert all(w[: len(i)] == i for i, w in zip(self.ids, wholes)), "a question begins within a token"
            self.questions = [whole[len(ids) :] for ids, whole in zip(self.ids, wholes)]
        self.mean_tokens = sum(map(len, self.ids)) / len(self.ids)
        self.heading = "%s, %s, text %s, question %s" % (model.name, name, text.__name__, asked)

    def near_digits(self, ids):
        """What the control has for scores."""
        n, far = len(ids), len(ids)
        distance = [far] * n
        for order in (range(n), range(n - 1, -1, -1)):
            d = far
            for i in order:
                d = 0 if ids[i] in self.model.has_digit else d + 1
                distance[i] = min(distance[i], d)
        return [-d + (i * 2654435761 % 2**32) / 2**33 for i, d in enumerate(distance)]

    def told(self, control):
        """A line for each record, as asked_later.c reads them."""
        for ids, question in zip(self.ids, self.questions):
            scores = self.near_digits(ids) if control else []
            yield " ".join(map(str, [len(question), *question, len(scores), *scores])) + "\n"


class Ask:
    """Runs jobs, side by side on the cores there are, each with one thread."""

    def __init__(self, build, work):
        self.program = os.path.join(build, "runner", "fairkv-batch")
        self.asked_later = os.path.join(build, "tests", "asked_later")
        self.work = work
        self.n = 0
        keys = subprocess.run([self.program, "help", "keys"], stdout=subprocess.PIPE, check=True, text=True).stdout
        found = re.search(r"^score = .*one of: (.*)$", keys, re.M)
        self.scorers = [s for s in SCORERS if s in (found.group(1).split() if found else SCORERS[:1])]
        self.names_scorers = bool(found)
        self.has_sinks = bool(re.search(r"^sinks = ", keys, re.M))
        self.ada = "ada" if re.search(r"^method = .*one of:.* ada ", keys, re.M) else "ada-snapkv"
        self.pool = concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def start(self, case, scorer, **settings):
        """settings: of section profile. Gives a future of a list of bools, right or wrong."""
        self.n += 1
        return self.pool.submit(self.run, "%04d" % self.n, case, scorer, settings)

    def run(self, name, case, scorer, settings):
        path = os.path.join(self.work, name)
        with open(path + ".jsonl", "w") as f:
            for i, (prompt, question) in enumerate(zip(case.prompts, case.questions)):
                f.write(json.dumps({"id": i, "prompt": prompt, "max_tokens": len(question) + NEW_TOKENS}) + "\n")
        with open(path + ".ini", "w") as f:
            f.write(
                "[job]\nname = quality\noutput = %s\n[input]\narchives = %s\nmembers = *\nformat = prompt\n"
                "[model]\npath = %s\n[engine]\nbackend = cpu\ntensor_parallel = 1\nslots = 16\nthreads = 1\n"
                "[plan]\nmode = standard\ncalibration = stated\n[profile]\nsample = %d\n"
                % (path, path + ".jsonl", case.model.folder, len(case.prompts))
            )
            for key, value in settings.items():
                f.write("%s = %s\n" % (key, value))
            if scorer != "control" and self.names_scorers:
                f.write("score = %s\n" % scorer)
        env, program = dict(os.environ), self.program
        if case.later or scorer == "control":
            program, env["FAIRKV_ASKED_LATER"] = self.asked_later, path + ".told"
            with open(path + ".told", "w") as f:
                f.writelines(case.told(scorer == "control"))
        done = subprocess.run(
            [program, "run", path + ".ini", "--quiet"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            raise RuntimeError(done.stdout.decode("utf-8", "replace"))
        right = [row == answer for row, answer in zip(self.answers(path), case.answers)]
        shutil.rmtree(path)
        return right

    def answers(self, output):
        """What follows the question, where the row has that, too."""
        shards = os.path.join(output, "shards")
        for file in sorted(os.listdir(shards)):
            raw = subprocess.run(
                ["zstd", "-dcq", os.path.join(shards, file)], stdout=subprocess.PIPE, check=True
            ).stdout
            for line in raw.splitlines():
                yield json.loads(line)["text"].split("Answer:")[-1].strip()


# --- the table -----------------------------------------------------------------


def cell(right, other):
    text = str(sum(right))
    return text if other is None else "%s %+d [%+d, %+d]" % (text, *map(round, difference(right, other)))


def row(label, cells):
    print("| %s | %s |" % (label, " | ".join(cells)), flush=True)


def table(ask, case, budgets, others):
    """others: budget -> [(label, settings)] that differ from the main row's."""
    whole = ask.start(case, "snapkv", method="none").result()
    n = len(whole)
    row(
        "**%s: %d prompts of %d tokens, whole cache %d**" % (case.heading, n, round(case.mean_tokens), sum(whole)),
        [""] * (len(ask.scorers) + 1),
    )
    if 2 * sum(whole) < n:
        return
    base = {"method": "uniform", "kernel": 7}
    runs = {}
    for budget in budgets:
        for label, settings in [("", {})] + others.get(budget, []):
            for scorer in ask.scorers + ["control"]:
                if scorer != "control" or not label:
                    set_ = {**base, **settings, "budget": "%d%%" % budget}
                    runs[budget, label, scorer] = ask.start(case, scorer, **set_)
    for budget in budgets:
        main = {s: runs[budget, "", s].result() for s in ask.scorers + ["control"]}
        cells = [cell(main[s], main["snapkv"] if s != "snapkv" else None) for s in main]
        row("%d%%" % budget, cells)
        for label, _ in others.get(budget, []):
            cells = [cell(runs[budget, label, s].result(), main[s]) for s in ask.scorers]
            row("%d%%, %s" % (budget, label), cells + ["-"])


def cases(ask, shared):
    """(model, set, number of prompts, text, how it is asked, budgets, budgets with other settings)"""
    tiny = Model("needle-tiny", os.path.join(TESTS, "data", "needle-tiny"), ask)
    yield tiny, "needle_1k", 100, plain, "seen", (5, 10, 20), (10,)
    yield tiny, "needle_1k", 100, plain, "later", (10, 20, 30), (10, 20, 30)
    yield tiny, "needle_1k", 100, plain, "front", (10, 20), ()
    yield tiny, "needle_1k", 100, first, "later", (10, 20), ()
    for text in (numbers, meaning):
        yield tiny, "needle_500", 100, text, "seen", (10, 20), ()
        yield tiny, "needle_500", 100, text, "later", (10, 20, 30), ()
    if not shared:
        return
    small = Model("needle-small", os.path.join(shared, "models", "needle-small"), ask)
    yield small, "needle_2k", 40, plain, "seen", (5, 10), ()
    yield small, "needle_2k", 40, plain, "later", (10, 20), ()
    yield small, "needle_2k", 40, plain, "front", (10, 20), ()
    yield small, "needle_1k", 40, meaning, "later", (10, 20), ()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("shared", nargs="?")
    parser.add_argument("--records", type=int)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    archive = os.path.join(TESTS, "data", "needle.tar.zst")
    records = sets(os.path.join(args.shared, "prompts", "needle.tar.zst") if args.shared else archive)
    NAMES.extend(sorted({n for rs in records.values() for r in rs for n in re.findall(NAME, r["context"])}))
    with tempfile.TemporaryDirectory(prefix="fairkv-quality-") as work:
        ask = Ask(args.build, work)
        missing = [s for s in SCORERS if s not in ask.scorers]
        if missing:
            print("This build has no scorer %s: left out.\n" % ", ".join(missing))
        others = [("kernel 1", {"kernel": 1}), ("method = ada", {"method": ask.ada})]
        if ask.has_sinks:
            others.insert(1, ("sinks 4", {"sinks": 4}))
        row("right", ask.scorers + ["control"])
        print("|" + "---|" * (len(ask.scorers) + 2))
        for model, name, n, text, asked, budgets, more in cases(ask, args.shared):
            case = Case(model, name, records[name][: args.records or n], text, asked)
            if all(word in case.heading for word in args.only.split()):
                table(ask, case, budgets, {b: others for b in more})


if __name__ == "__main__":
    main()
