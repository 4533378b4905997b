"""Would the tests notice? Small faults are planted at random, one at a time, and the tests that concern them are run.

    PYTHONPATH=tests python -m mutants --seed 0 --count 60
    PYTHONPATH=tests python -m mutants --seed 0 --count 60 --list         says which faults these are, runs nothing

A fault is one of: a comparison moved or turned round, + for - (and * for /), a number off by one (a tenth, if it is
not whole), a `not` taken out, `and` for `or`, a named argument dropped. `zip(strict=True)`, which only watches over the
programmer, is left alone. The area is drawn first and the place in it after, so that a long file does not draw all of
them. Tests run in a copy of the tree, one process at a time: those whose file imports the room in which the fault
stands, and the doctests of the faulty file, until the first one fails; without the fault that one must pass. What the
seed draws depends on the sources: after an edit it draws other faults.
"""

import argparse
import ast
import copy
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import selection
from attrobust import paths

#: Area -> its sources, below the package.
AREAS = {
    "attacks": ["attacks/*.py"],
    "attributions": ["attributions/*.py"],
    "curvature": ["curvature/*.py"],
    "similarity": ["similarity.py"],
    "claims": ["claims/*.py"],
    "evidence": ["rows.py", "experiments/*.py"],
    "training": ["training/*.py"],
}
#: What the copy needs; tests read all of these.
COPIED = (
    "lib", "tests", "notebooks", "figures", "pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md",
    "docs", "Makefile", "environment.yml", "constraints.txt", "CITATION.cff", "LICENSE",
)  # fmt: skip

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


def drawn(tree: Path, seed: int, count: int) -> list[Mutant]:
    """Faults in a tree at random, none twice: the area first, then the place."""
    package, draw = tree / "lib" / "attrobust", random.Random(seed)
    pools = {
        area: [f for glob in globs for path in sorted(package.glob(glob)) for f in faults(path, path.relative_to(tree))]
        for area, globs in AREAS.items()
    }
    chosen = []
    while len(chosen) < count and any(pools.values()):
        pool = pools[draw.choice([area for area, left in pools.items() if left])]
        chosen.append(pool.pop(draw.randrange(len(pool))))
    return chosen


def concerned(path: Path) -> list[str]:
    """Test files that import the room of a source, those named after it first, and the source for its doctests.

    Files that run notebooks at smoke size are left out: they take minutes, and would see any fault at all.
    """
    (room,) = selection.rooms_of_file(paths.root / path)
    files = [f for f in sorted(Path(__file__).parent.glob("test_*.py")) if room in seen_by(f)]
    files = [f for f in files if f.name not in ("test_notebooks.py", "test_reproduce.py")]
    own = (f"test_{room}", f"test_{path.stem}", f"test_{room}_{path.stem}")
    files.sort(key=lambda f: (f.stem not in own, not f.stem.startswith(f"test_{room}"), f.name))
    return [str(path), *(str(f.relative_to(paths.root)) for f in files)]


def seen_by(file: Path) -> set[str]:
    """Rooms that a test file imports, itself or by a file beside it."""
    beside = [
        file.parent / f"{name}.py" for name in re.findall(r"^(?:import|from) (\w+)", file.read_text(), re.MULTILINE)
    ]
    return set().union(*(selection.rooms_of_file(f) for f in (file, *beside) if f.is_file()))


def tried(tree: Path, tests: list[str], limit: float) -> tuple[str, str]:
    """Run tests in the tree; "passed", "failed" or "too long", and the first test that failed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"PYTHONPATH": f"{tree / 'lib'}{os.pathsep}{tree / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:xdist", *tests]
    running = subprocess.Popen(
        command, cwd=tree, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = running.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        return "too long", ""
    first = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", said, re.MULTILINE)
    return ("failed" if running.returncode else "passed"), (first[1] if first else "")


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
    parser.add_argument("--limit", type=float, default=600, help="seconds for the tests of one fault")
    parser.add_argument("--list", action="store_true", help="say which faults were drawn and plant none")
    chosen = parser.parse_args(arguments)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder))  # first, so that whoever works in the tree meanwhile moves no fault
        mutants = drawn(tree, chosen.seed, chosen.first + chosen.count)[chosen.first :]
        if chosen.list:
            print(*mutants, sep="\n")
            return 0
        for number, mutant in enumerate(mutants, start=1 + chosen.first):
            there, began = tree / mutant.path, time.monotonic()
            whole = there.read_text()
            there.write_text(mutant.planted(whole))
            ended, test = tried(tree, concerned(mutant.path), chosen.limit)
            there.write_text(whole)
            outcomes.append("SURVIVED" if ended == "passed" else "caught")
            if test and tried(tree, [test], chosen.limit)[0] != "passed":
                outcomes[-1] = "UNSURE"  # the test fails without the fault too
            by = f"by {test}" if test else "after the time limit" if ended == "too long" else "by an import"
            seconds = time.monotonic() - began
            print(f"{number:>3}  {outcomes[-1]:<8}  {mutant}", flush=True)
            print(f"               {by if ended != 'passed' else 'by no test'}, {seconds:.0f} s", flush=True)
    survivors = len(outcomes) - outcomes.count("caught")
    print(f"{len(outcomes) - survivors} of {len(outcomes)} caught, {survivors} survived")
    return min(survivors, 100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
