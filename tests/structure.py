#!/usr/bin/env python3
"""The laws of the tree: every breach is printed with its file and line, and the exit code is 1.

    structure.py [BUILD]       checks the tree; BUILD (default: build) has the objects
    structure.py --self-test   checks this script

- A folder includes what README.md's table "Reading order" lets it use, and no more; a file belongs to
  the deepest folder of the table that holds it. A library's headers are included in few files.
- No circle among the .c files of a folder: a file that uses a symbol of another one is an edge.
- No file over 800 lines; outside tests no function over 80, and no 12 lines that stand twice.
- Names of tensors and the rows of a head's Q, K and V stand where the model's shape is described.
- The tables of error codes in jobs/GUIDE.md and jobs/FORMATS.md have the codes that the source gives records.

No law has an exception: what breaks one is mended, or the law is changed here or in README.md.
"""

import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["engine", "jobs", "kernels", "runner", "tests", "tokenizer"]
CODE, SCRIPTS = (".c", ".h", ".cu", ".cuh"), (".py", ".sh")
MAX_FILE, MAX_FUNCTION, MIN_TWICE = 800, 80, 12

# Who may include a library's headers; tests may all.
LIBRARIES = [
    ("CUDA and NCCL", r"(cuda|cublas|cub/|cooperative_groups|nccl|mma\.h)", ["kernels/*.cu", "kernels/cuda_*.h"]),
    ("libarchive", r"archive(_entry)?\.h", ["jobs/walk.c", "jobs/unpack.c"]),
    ("zstd", r"(zstd|zdict)", ["jobs/shard.c", "jobs/unzstd.c"]),
    ("zlib", r"zlib\.h", ["jobs/unpack.c"]),
    ("inih", r"ini\.h", ["jobs/job.c"]),
    ("xxHash", r"xx(hash|h3)\.h", ["jobs/shard.c", "runner/base/hash.c"]),
    ("PCRE2", r"pcre2", ["tokenizer/regex.c"]),
    ("utf8proc", r"utf8proc\.h", ["tokenizer/characters.c", "tokenizer/nfc.c", "tokenizer/template_unicode.c"]),
]

# What says the shape of a model, and where it may; tests may too.
SHAPES = [
    ("a tensor's name", r"\b([qkvo]_proj|(gate|up|down)_proj|embed_tokens|lm_head|(input|post_attention)_layernorm)\b",
     ["engine/model/*"]),
    ("the rows of a head's Q, K and V", r"\bgroup\s*\+\s*2(\.0*)?f?\b", ["engine/model/*", "runner/base/layer_spec.h"]),
]


def blank(match):
    """What was found with its length and lines, but spaces for characters."""
    return re.sub(r"[^\n]", " ", match[0])


class Source:
    """A file of C or CUDA: its text, without comments (code), and without what is in strings too (bare)."""

    TOKEN = re.compile(r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.S)

    def __init__(self, path, text):
        self.path, self.text = path, text
        self.code = self.TOKEN.sub(lambda m: blank(m) if m[0][0] == "/" else m[0], text)
        self.bare = self.TOKEN.sub(blank, text)

    def line(self, position):
        return self.text.count("\n", 0, position) + 1

    def at(self, position):
        return f"{self.path}:{self.line(position)}"


def read_tree():
    """Every file of C and CUDA, and every script."""
    paths = sorted(p for top in FOLDERS for p in (ROOT / top).rglob("*") if p.suffix in CODE + SCRIPTS)
    tree = [Source(str(p.relative_to(ROOT)), p.read_text(encoding="utf-8")) for p in paths]
    return [s for s in tree if s.path.endswith(CODE)], [s for s in tree if s.path.endswith(SCRIPTS)]


def of_tests(path):
    return path.startswith("tests/")


def read_table(text):
    """{folder: folders that it may use} of the table under "Reading order". A cell of "may use" has folders
    in backticks, "all", "all below" (the rows below), "all that `folder` may use", or "nothing"."""
    section = text.split("## Reading order", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    column = rows[0].index("may use")
    cells = {row[0].strip("`").rstrip("/"): row[column] for row in rows[2:]}
    folders = list(cells)

    def may_use(folder):
        left, allowed = cells[folder], set()
        for pattern, found in [(r"all that `?([\w/]+?)/?`? may use", lambda m: may_use(m[1])),
                               (r"all below", lambda m: folders[folders.index(folder) + 1 :]),
                               (r"\ball\b", lambda m: folders),
                               (r"`([\w/]+?)/?`", lambda m: [m[1]])]:
            allowed.update(*(found(m) for m in re.finditer(pattern, left)))
            left = re.sub(pattern, " ", left)
        unknown = re.sub(r"\b(and|alone|nothing)\b|[\s,.]", "", left) or " ".join(allowed - set(folders))
        if unknown:
            raise SystemExit(f'README.md, Reading order: what {folder}/ may use holds "{unknown}"')
        return allowed if folder == "tests" else allowed - {"tests"}

    return {folder: may_use(folder) | {folder} for folder in folders}


def folder_of(path, table):
    """The deepest folder of the table that holds the file; None: there is none."""
    return max((f for f in table if path.startswith(f + "/")), key=len, default=None)


def check_includes(sources, table):
    known = {s.path for s in sources}
    for s in sources:
        home = folder_of(s.path, table)
        if not home:
            yield f"{s.path}:1: is in no folder of README.md's Reading order"
            continue
        for m in re.finditer(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"\n]+)', s.code, re.M):
            name = m[2]
            for library, headers, places in LIBRARIES:
                if m[1] == "<" and re.match(headers, name) and not of_tests(s.path):
                    if not any(fnmatch(s.path, p) for p in places):
                        yield f"{s.at(m.start(1))}: <{name}>: {library} is for {' '.join(places)} alone"
            path = name if name in known else os.path.normpath(os.path.join(os.path.dirname(s.path), name))
            if m[1] == '"' and path not in known:
                yield f'{s.at(m.start(1))}: "{name}" is not in the tree'
            elif m[1] == '"' and folder_of(path, table) not in table[home]:
                yield f"{s.at(m.start(1))}: {home}/ may not use {folder_of(path, table)}/ ({name})"


def components(edges):
    """The sets of several nodes that all reach each other."""
    reach = {a: set(to) for a, to in edges.items()}
    for over in edges:
        for a in edges:
            if over in reach[a]:
                reach[a] |= reach[over]
    found = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in edges}
    return sorted(sorted(c) for c in found if len(c) > 1)


def read_symbols(build):
    """({path: symbols that it defines}, {path: that it uses}) of the build folder's objects, and complaints.
    Of C alone, so that the answer is the same where there is no CUDA."""
    commands, objects, defines, uses = build / "compile_commands.json", {}, {}, {}
    if not commands.exists():
        return {}, {}, [f"{commands}: is not there, and nothing says what circles there are: build first"]
    for entry in json.loads(commands.read_text(encoding="utf-8")):
        path = os.path.relpath(entry["file"], ROOT)
        if path.startswith(tuple(FOLDERS)) and path.endswith(".c") and not of_tests(path) and (ROOT / path).exists():
            objects[os.path.join(entry["directory"], re.search(r" -o (\S+)", entry["command"])[1])] = path
    wrong = [f"{path}:1: has no object in {build}: build first" for o, path in objects.items() if not os.path.exists(o)]
    if wrong or not objects:
        return {}, {}, wrong or [f"{commands}: names no file of this tree"]
    nm = subprocess.run(["nm", "-A", "-P", *objects], check=True, capture_output=True, text=True)
    for line in nm.stdout.splitlines():
        path, (name, kind) = objects[line.split(": ")[0]], line.split(": ")[1].split()[:2]
        if kind in "Uwv":
            uses.setdefault(path, set()).add(name)
        elif kind.isupper():
            defines.setdefault(path, set()).add(name)
    return defines, uses, []


def check_circles(sources, build):
    defines, uses, wrong = read_symbols(build)
    text = {s.path: s for s in sources}
    yield from wrong
    edges = {a: {b for b in defines if b != a and os.path.dirname(a) == os.path.dirname(b) and used & defines[b]}
             for a, used in uses.items()}
    for circle in components(edges):
        yield f"{circle[0]}:1: a circle of {len(circle)} files: {' '.join(os.path.basename(a) for a in circle)}"
        for a in circle:
            for symbol, b in sorted((name, b) for b in edges[a] & set(circle) for name in uses[a] & defines[b]):
                where = re.search(rf"\b{re.escape(symbol)}\b", text[a].bare)
                yield f"{text[a].at(where.start() if where else 0)}: in that circle uses {symbol} of {b}"


def functions(source):
    """(name, first line, lines) of every function's definition."""
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, source.bare, flags=re.M)
    inside, head, start = [], 0, 0  # kinds of the open braces: "scope" (what is in it is looked at), "function", "other"
    for m in re.finditer(r"[{};]", text):
        declared = text[head : m.start()]
        outer = all(kind == "scope" for kind in inside)
        if m[0] == "{":
            kind = "other"
            if outer and re.search(r"\)\s*(const|noexcept)?\s*$", declared):
                kind, start = "function", head + len(declared) - len(declared.lstrip())
                name = next((n for n in re.findall(r"(\w+)\s*\(", declared) if n[:2] != "__"), "?")
            elif outer and re.match(r"\s*(template\b.*)?(typedef\s+)?(struct|class|union|namespace|extern)\b[^=]*$",
                                    declared, re.S):
                kind = "scope"
            inside.append(kind)
        elif m[0] == "}":
            if not inside:
                raise SystemExit(f"{source.at(m.start())}: a brace closes nothing: the scan of functions fails")
            if inside.pop() == "function":
                yield name, source.line(start), source.line(m.start()) - source.line(start) + 1
        if all(kind == "scope" for kind in inside):
            head = m.end()
    if inside:
        raise SystemExit(f"{source.path}: {len(inside)} braces stay open: the scan of functions fails")


def check_sizes(sources, scripts):
    for s in sources + scripts:
        if (n := s.text.count("\n")) > MAX_FILE:
            yield f"{s.path}:{n}: a file of {n} lines, over {MAX_FILE}"
    for s in sources:
        for name, line, n in functions(s) if not of_tests(s.path) else ():
            if n > MAX_FUNCTION:
                yield f"{s.path}:{line}: {name} has {n} lines, over {MAX_FUNCTION}"


def check_twice(sources):
    """Lines count that are not blank, not an include and more than brackets; white space is as good as any other."""
    files, seen = [], {}  # lines of every file, and where a run of MIN_TWICE of them was first
    for s in sources:
        lines = [(" ".join(line.split()), n) for n, line in enumerate(s.code.split("\n"), 1)]
        files.append([(text, n) for text, n in lines if not re.fullmatch(r"#\s*include.*|[{}();,\s]*", text)])
    for f, lines in enumerate(files):
        told = 0
        for i in range(len(lines) - MIN_TWICE + 1):
            run = tuple(text for text, _ in lines[i : i + MIN_TWICE])
            g, j = seen.setdefault(run, (f, i))
            if i < told or (g == f and j + MIN_TWICE > i):
                continue
            n = MIN_TWICE
            while i + n < len(lines) and j + n < len(files[g]) and lines[i + n][0] == files[g][j + n][0]:
                n += 1
            told = i + n
            yield (f"{sources[f].path}:{lines[i][1]}: the {n} lines to {lines[i + n - 1][1]} stand in "
                   f"{sources[g].path}:{files[g][j][1]} too")


def check_shapes(sources):
    for s in sources:
        for what, pattern, places in SHAPES:
            if not of_tests(s.path) and not any(fnmatch(s.path, p) for p in places):
                for m in re.finditer(pattern, s.code):
                    yield f'{s.at(m.start())}: "{m[0]}": {what} is for {" ".join(places)} alone'


CODE_TABLES = ["jobs/GUIDE.md", "jobs/FORMATS.md"]


def error_codes(sources):
    """{code: where a record's error first gets it}: words that are assigned to an error_code, or given to a function
    that takes a code and what is wrong in words."""
    takers, found = {}, {}  # takers: {function: which of its parameters that is}
    for s in sources:
        for m in re.finditer(r"\b(\w+)\(([^()]*)\bchar \*code,[^,()]*\*(?:fmt|what|why)\b", s.code):
            takers.setdefault(m[1], set()).add(m[2].count(","))
    called = re.compile(r"\b(%s)\(" % "|".join(sorted(takers)) if takers else r"(?!)")
    for s in sources:
        places = [(m.start(1), m[1]) for m in re.finditer(r"\berror_code = ([^;,}]*)", s.code)]
        for m in called.finditer(s.code):
            arguments = s.code[m.end() : m.end() + 300].split(";")[0].split(",")
            places += [(m.start(), arguments[i]) for i in takers[m[1]] if i < len(arguments)]
        for at, text in places:
            for word in re.findall(r'"(\w+)"', text):
                found.setdefault(word, s.at(at))
    return found


def check_codes(sources, pages):
    """pages: {path: text}; in each is one table whose first column is headed "code" and has words in backticks."""
    known = error_codes(sources)
    for path, text in pages.items():
        table = re.search(r"^\| code \|[^\n]*\n\|[-|]+\n((?:\| `[^\n]*\n)+)", text, re.M)
        rows = "".join(row.split("|")[1] for row in table[1].splitlines()) if table else ""
        told = re.findall(r"`(\w+)`", rows)
        yield from (f"{at}: the error code {code} has no row in {path}" for code, at in known.items() if code not in told)
        for code in told:
            if code not in known or told.count(code) > 1:
                yield f"{path}:1: the error code {code} is {'there twice' if code in known else 'given to no record'}"


def self_test():
    table = read_table("""## Reading order
| folder | what is there | may use |
|---|---|---|
| `runner/` | `main.c` | all |
| `engine/measure/` | | `engine`, and all that engine may use |
| `engine/` | | `engine/model`, `runner/base` |
| `engine/model/` | | `runner/base` alone |
| `runner/base/` | | nothing |
| `tests/` | | all |

## Next
| a | b |""")
    assert table["runner"] == {"runner", "engine/measure", "engine", "engine/model", "runner/base"}, table
    assert table["engine/measure"] == {"engine/measure", "engine", "engine/model", "runner/base"}, table
    assert table["runner/base"] == {"runner/base"} and "runner" in table["tests"], table
    below = read_table("## Reading order\n| folder | may use |\n|-|-|\n| `a/` | all below |\n| `b/` | nothing |\n")
    assert below == {"a": {"a", "b"}, "b": {"b"}}, below
    assert folder_of("engine/model/config.c", table) == "engine/model" and folder_of("x/y.c", table) is None
    model = Source("engine/model/m.h", '#include "engine/kv.h"\n// #include "engine/kv.h"\n#include <cuda.h>\n')
    found = list(check_includes([model, Source("engine/kv.h", "")], table))
    assert [b.split(":")[1] for b in found] == ["1", "3"], found
    assert components({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    text = 'struct s {\n    int a;\n};\n\nstatic int f(int a) /* { */\n{\n    return "}"[0] + \'{\';\n}\n' \
           "#define BRACE {\nextern \"C\" {\nvoid __launch_bounds__(4) g(void) { }\n}\nint t[] = {1, 2};\n"
    assert list(functions(Source("x.cu", text))) == [("f", 5, 4), ("g", 11, 1)], list(functions(Source("x.cu", text)))
    lines = "".join(f"  x{i} =  {i};\n{{\n" for i in range(MIN_TWICE))
    twice = list(check_twice([Source("a.c", lines + "y;\n"), Source("b.c", "\n/* z */\n" + lines.replace("  ", " "))]))
    assert len(twice) == 1 and twice[0].startswith("b.c:3: the 12 lines to 25 stand in a.c:1 "), twice
    assert not list(check_twice([Source("a.c", lines[7:]), Source("b.c", lines)]))
    shapes = [Source(p, 'get("x.q_proj");\n/* lm_head */ int n = (a.group+2.0) * hd;\n')
              for p in ("engine/model/m.c", "runner/base/layer_spec.h", "engine/m.c", "tests/unit/m.c")]
    assert [b.split(": ")[0] for b in check_shapes(shapes)] == ["runner/base/layer_spec.h:1", "engine/m.c:1", "engine/m.c:2"]
    codes = [Source("a.c", 'void bad(piece *p, const char *code, const char *why);\nbad(p, x ? "one" : "two", f("no"));\n'
                    'line->error_code = s ? "three" : "four";\nif (strcmp(p->error_code, "no")) bad(p, l->code, "no");\n')]
    assert list(error_codes(codes)) == ["three", "four", "one", "two"], error_codes(codes)
    page = "| code | cause |\n|---|---|\n| `one`, `two` | `no` |\n| `three` | |\n| `five` | |\n\n| code |\n|---|\n| 75 |\n"
    found = list(check_codes(codes, {"x.md": page}))
    assert [b.split(": ")[0] for b in found] == ["a.c:3", "x.md:1"] and "four" in found[0] and "five" in found[1], found


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    sources, scripts = read_tree()
    ours = [s for s in sources if not of_tests(s.path)]
    table = read_table((ROOT / "README.md").read_text(encoding="utf-8"))
    build = ROOT / (sys.argv[1] if len(sys.argv) > 1 else "build")
    breaches = [*check_includes(sources, table), *check_circles(ours, build), *check_sizes(sources, scripts),
                *check_twice(ours), *check_shapes(ours),
                *check_codes(ours, {page: (ROOT / page).read_text(encoding="utf-8") for page in CODE_TABLES})]
    print("\n".join(breaches + [f"structure: {len(breaches)} breaches" if breaches else "structure: clean"]))
    return 1 if breaches else 0


sys.exit(main())
