"""Would the tests notice? Small faults are planted at random, one at a time, and the tests that concern them are run.

    PYTHONPATH=tests python -m mutants --seed 0 --count 60
    PYTHONPATH=tests python -m mutants --seed 0 --count 60 --list         says which faults these are, runs nothing
    PYTHONPATH=tests python -m mutants --file similarity.py --near        every fault of a file, the likeliest tests

A fault is one of: a comparison moved or turned round, + for - (and * for /), a number off by one (a tenth, if it is
not whole), a `not` taken out, `and` for `or`, a named argument dropped. `zip(strict=True)`, which only watches over the
programmer, is left alone. The area is drawn first and the place in it after, so that a long file does not draw all of
them. Tests run in a copy of the tree, one process at a time: the doctests of the faulty file and the test files that
import the room in which the fault stands, until the first test fails; without the fault that one must pass. Files named
after the faulty one and files that name its function come first, since they are the likeliest to fail, and tests marked
`long` come last. What the seed draws depends on the sources and on the areas: after an edit it draws other faults.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import selection
from attrobust import paths

#: Area -> its sources, below the package.
AREAS = {
    "attacks": ["attacks/*.py"],
    "attributions": ["attributions/*.py"],
    "curvature": ["curvature/*.py"],
    "similarity": ["similarity.py"],
    "entropy": ["theory/entropy.py", "attention.py"],
    "regularizers": ["regularizers/*.py"],
    "claims": ["claims/*.py"],
    "evidence": ["rows.py", "experiments/*.py"],
    "training": ["training/*.py"],
}
#: What the copy needs; tests read all of these.
COPIED = (
    "lib", "tests", "notebooks", "figures", "pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md",
    "docs", ".github", "Makefile", "environment.yml", "constraints.txt", "CITATION.cff", "LICENSE",
)  # fmt: skip

#: Imported before the first fork; no plugin of pytest, whose assertions it would have to see first.
PRELOADED = (
    "torch", "pandas", "scipy.stats", "statsmodels.stats.multitest", "sklearn.datasets", "matplotlib.pyplot", "joblib",
    "captum.attr", "papermill", "nbformat",
)  # fmt: skip

#: Test files that look at every room.
OF_ALL = ("test_defaults", "test_devices")

TURNED = {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
TURNED |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
MOVED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


@dataclass(frozen=True)
class Mutant:
    """A fault: some characters of a file replaced by others."""

    path: Path
    line: int
    column: int
    start: int
    old: str
    new: str

    def planted(self, source: str) -> str:
        """The file's source with the fault in it."""
        whole, end = source.encode(), self.start + len(self.old.encode())
        return (whole[: self.start] + self.new.encode() + whole[end:]).decode()

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {' '.join(self.old.split())}  ->  {self.new}"


def faults(path: Path, name: Path) -> list[Mutant]:
    """Every fault that can be planted in a file, which is called by a name within its tree."""
    source = path.read_text()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    found = []
    for node in executed(ast.parse(source)):
        for new in changes(node):
            start = starts[node.lineno - 1] + node.col_offset
            old = source.encode()[start : starts[node.end_lineno - 1] + node.end_col_offset].decode()
            # In brackets, since the tree binds as it did before whatever stands around it.
            text = f"({ast.unparse(new)})" if not isinstance(new, ast.Constant | ast.Call) else ast.unparse(new)
            mutant = Mutant(name, node.lineno, node.col_offset + 1, start, old, text)
            if compiles(mutant.planted(source)):
                found.append(mutant)
    return found


def executed(tree: ast.AST) -> Iterator[ast.expr]:
    """Expressions that run: neither annotations nor what a message is put together from."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns") or isinstance(tree, ast.Raise | ast.JoinedStr):
            continue
        if isinstance(tree, ast.keyword) and tree.arg == "strict":
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.expr):
                yield node
            if isinstance(node, ast.AST):
                yield from executed(node)


def changes(node: ast.expr) -> Iterator[ast.expr]:
    """The node with one small fault, in every way there is."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            for kinds in (TURNED, MOVED):
                if type(operator) in kinds:
                    yield changed(node, ops=[*node.ops[:i], kinds[type(operator)](), *node.ops[i + 1 :]])
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        yield changed(node, op=SWAPPED[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Call):
        for i, keyword in enumerate(node.keywords):
            if keyword.arg not in (None, "strict"):
                yield changed(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield from (ast.Constant(node.value + 1), ast.Constant(node.value - 1))
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield ast.Constant(node.value * 1.1 if node.value else 0.1)


def changed(node: ast.expr, **fields: object) -> ast.expr:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def compiles(text: str) -> bool:
    try:
        compile(text, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def drawn(tree: Path, seed: int, count: int, areas: list[str]) -> list[Mutant]:
    """Faults in a tree at random, none twice: the area first, then the place."""
    package, draw = tree / "lib" / "attrobust", random.Random(seed)
    pools = {
        area: [f for glob in globs for path in sorted(package.glob(glob)) for f in faults(path, path.relative_to(tree))]
        for area, globs in AREAS.items()
        if area in areas
    }
    chosen = []
    while len(chosen) < count and any(pools.values()):
        pool = pools[draw.choice([area for area, left in pools.items() if left])]
        chosen.append(pool.pop(draw.randrange(len(pool))))
    return chosen


def concerned(mutant: Mutant) -> list[list[str]]:
    """What pytest is asked to run for a fault, in turn: the source for its doctests and the test files named after it;
    golden rows and what else is named after the room or names the function; the other files that see the room; and
    what is marked long in any of them.

    Files that run notebooks at smoke size are left out: they take minutes, and would see any fault at all.
    """
    (room,) = selection.rooms_of_file(paths.root / mutant.path)
    all_files = sorted(Path(__file__).parent.glob("test_*.py"))
    files = {f: f.read_text() for f in all_files if room in seen_by(f) or f.stem in OF_ALL}
    files = {f: text for f, text in files.items() if f.name not in ("test_notebooks.py", "test_reproduce.py")}
    own = (f"test_{mutant.path.stem}", f"test_{room}_{mutant.path.stem}")
    name = re.compile(rf"\b{name_of_place(mutant)}\b")
    ranks = {
        f: 0 if f.stem in own else 1 if name.search(text) or re.match(rf"test_(golden$|{room})", f.stem) else 2
        for f, text in files.items()
    }
    files = dict(sorted(files.items(), key=lambda item: (item[0].stem != "test_golden", item[0])))
    first, near, others = ([str(f.relative_to(paths.root)) for f in files if ranks[f] == n] for n in range(3))
    ordinary = ["-m", "not slow and not browser and not gpu and not long"]
    stages = [[*ordinary, str(mutant.path), *first], *([*ordinary, *part] for part in (near, others) if part)]
    return [*stages, ["-m", "long and not slow and not browser and not gpu", *first, *near, *others]]


def name_of_place(mutant: Mutant) -> str:
    """The function or class at the top of its file in which a fault stands, else the file itself."""
    tree = ast.parse((paths.root / mutant.path).read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.lineno <= mutant.line <= node.end_lineno:
            return node.name
    return mutant.path.stem


def seen_by(file: Path) -> set[str]:
    """Rooms that a test file imports, itself or by a file beside it."""
    beside = [
        file.parent / f"{name}.py" for name in re.findall(r"^(?:import|from) (\w+)", file.read_text(), re.MULTILINE)
    ]
    return set().union(*(selection.rooms_of_file(f) for f in (file, *beside) if f.is_file()))


def tried(tree: Path, tests: list[str], limit: float) -> tuple[str, str]:
    """Run tests in the tree; "passed", "failed" or "too long", and the first test that failed.

    A test that takes a quarter of the limit by itself has failed. The tests run in a fork of this process, in which
    everything but the package is imported already.
    """
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if not child:
            run_and_leave(tree, tests, limit, said.fileno())
        until = time.monotonic() + limit
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > until:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "too long", ""
            time.sleep(0.1)
        said.seek(0)
        first = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", said.read(), re.MULTILINE)
    code = os.waitstatus_to_exitcode(ended[1])
    nothing_failed = code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    return ("passed" if nothing_failed else "failed"), (first[1] if first else "")


def run_and_leave(tree: Path, tests: list[str], limit: float, said: int) -> NoReturn:
    """In a fork: forget this checkout's package and test files, run tests on the tree's own, and leave."""
    code = 1
    try:
        os.setsid()
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(tree)
        for name in [n for n in os.environ if n.startswith("PYTEST")]:
            del os.environ[name]
        here = [tree / "lib", tree / "tests"]
        os.environ |= {"PYTHONPATH": os.pathsep.join(map(str, here)), "OMP_NUM_THREADS": "1"}
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        sys.path[:] = [*map(str, here), *(p for p in sys.path if not Path(p).resolve().is_relative_to(paths.root))]
        for name in [n for n in sys.modules if n.split(".")[0] in ("attrobust", "selection")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        code = pytest.main(["-q", "-x", "--tb=no", "-p", "no:xdist", f"--timeout={limit / 4:.0f}", *tests])
    except BaseException:  # a fork never returns into its parent's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code))


def preload() -> None:
    """Import what the tests import beside the package, once for all of their runs."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


#: Arguments of pytest with which it passed without a fault.
SOUND: set[tuple[str, ...]] = set()


def judged(tree: Path, mutant: Mutant, limit: float, *, near: bool = False) -> tuple[str, str]:
    """Whether the tests (or those near alone, the likeliest) catch a fault planted in the tree, and by what."""
    there, ended, test = tree / mutant.path, "passed", ""
    whole = there.read_text()
    there.write_text(mutant.planted(whole))
    for tests in concerned(mutant)[: 2 if near else None]:
        ended, test = tried(tree, tests, limit)
        if ended != "passed":
            break
    there.write_text(whole)
    if ended == "passed":
        return "SURVIVED", "by no test"
    if ended == "too long":
        return "UNSURE", "after the time limit"  # the tests may take as long without the fault
    again = [test] if test else ["--collect-only", *tests]
    if tuple(again) not in SOUND and tried(tree, again, limit)[0] != "passed":
        return "UNSURE", f"by {test or 'an import'}, which fails without the fault too"
    SOUND.add(tuple(again))
    return "caught", f"by {test or 'an import'}"


def copied(target: Path) -> Path:
    """A copy of the tree in which faults may be planted."""
    for name in COPIED:
        source = paths.root / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target / name)
    return target


def main(arguments: list[str]) -> int:
    """Plant faults and say of each whether it was caught; the exit status counts the survivors."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--count", type=int, default=60, help="faults planted")
    parser.add_argument("--first", type=int, default=0, help="faults of the draw that are passed over")
    parser.add_argument("--file", help="plant every fault of this file of the package in turn, none at random")
    parser.add_argument("--near", action="store_true", help="run only the tests that are likeliest to fail")
    parser.add_argument("--areas", nargs="+", choices=AREAS, default=list(AREAS), help="where faults are planted")
    parser.add_argument("--limit", type=float, default=1200, help="seconds for the tests of one fault")
    parser.add_argument("--list", action="store_true", help="say which faults were drawn and plant none")
    chosen = parser.parse_args(arguments)
    outcomes = []
    if not chosen.list:
        preload()
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder))  # first, so that whoever works in the tree meanwhile moves no fault
        if chosen.file:
            path = tree / "lib" / "attrobust" / chosen.file
            mutants = faults(path, path.relative_to(tree))
        else:
            mutants = drawn(tree, chosen.seed, chosen.first + chosen.count, chosen.areas)
        mutants = mutants[chosen.first :]
        if chosen.list:
            print(*mutants, sep="\n")
            return 0
        for number, mutant in enumerate(mutants, start=1 + chosen.first):
            began = time.monotonic()
            outcome, by = judged(tree, mutant, chosen.limit, near=chosen.near)
            outcomes.append(outcome)
            print(f"{number:>3}  {outcome:<8}  {mutant}", flush=True)
            print(f"               {by}, {time.monotonic() - began:.0f} s", flush=True)
    survivors = len(outcomes) - outcomes.count("caught")
    print(f"{len(outcomes) - survivors} of {len(outcomes)} caught, {survivors} survived")
    return min(survivors, 100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
