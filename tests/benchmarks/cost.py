"""`python -m benchmarks.cost`: what the committed grids cost, on how many workers, from the seconds stored with rows.

A run's seconds are those of its training, its measuring and its attacks in one process of one thread; networks that
train side by side share theirs. What notebooks compute beside their grids (tables, figures) is not in them.
"""

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from attrobust import paths
from attrobust.experiments import Experiment
from attrobust.experiments.store import READ, committed_as, read_csv
from attrobust.paths import write_bytes

from benchmarks import report

#: Workers of one thread each, on cores as those that the rows were computed on.
WORKERS = (1, 8, 64)

#: How many times as long as the median run is one that the machine stood still in (our choice).
STALLED = 20

PAGE = paths.figures / "benchmarks" / "cost.md"


def makespan(tasks: Sequence[float], workers: int) -> float:
    """Seconds until all tasks have ended, if each worker that is free takes the longest one left.

    Example:
        >>> makespan([3, 2, 2, 1], 2)
        4
    """
    free = [0.0] * workers
    for task in sorted(tasks, reverse=True):
        heapq.heapreplace(free, free[0] + task)
    return max(free)


def tasks_of(runs: pd.DataFrame) -> list[float]:
    """Seconds of each task of a sweep on processors: plain dense networks that differ in the seed alone are one."""
    names = [name for name in Experiment.__dataclass_fields__ if name in runs and name != "seed"]
    plain = runs["architecture"] == "mlp"
    for name, value in {"penalty": "none", "trainer": "sgd"}.items():  # tables of before do not name them
        plain &= runs[name].fillna(value) == value if name in runs else True
    apart = plain.where(plain, runs["key"]).astype(str)
    return runs.groupby([apart, *(runs[name] for name in names)], dropna=False, sort=False)["seconds"].sum().tolist()


def unstalled(runs: pd.DataFrame) -> pd.Series:
    """Seconds of runs; one that took over `STALLED` times the median of its data set's stood still, and counts as that.

    Seconds are those of a clock on the wall, which goes on while a machine is suspended.
    """
    usual = runs.groupby("dataset")["seconds"].transform("median")
    return runs["seconds"].where(runs["seconds"] <= STALLED * usual, usual)


def rows() -> Iterator[dict[str, object]]:
    """A row per committed grid and processor, then one for all, one after the other."""
    found = []
    for profile in READ:
        for folder in sorted(paths.figures.glob("[0-9][0-9]_*")):
            files = [folder / committed_as(stem, profile) for stem in ("runs", "provenance")]
            if all(map(Path.is_file, files)):
                runs, made = map(read_csv, files)
                joined = runs.merge(made, on="key", validate="one_to_one").assign(usual=unstalled)
                for processor, part in joined.groupby("processor", sort=True):
                    found.append({"notebook": folder.name, "profile": profile, "processor": processor, **_row(part)})
    yield from found
    sums = ("stalled", *(f"minutes_{n}" for n in WORKERS))
    yield {"notebook": "all", "profile": "", "processor": "", **{n: sum(row[n] for row in found) for n in sums}}


def _row(runs: pd.DataFrame) -> dict[str, object]:
    stalled = int((runs["usual"] != runs["seconds"]).sum())
    told = {"runs": len(runs), "median_s": runs["usual"].median(), "stalled": stalled}
    tasks = tasks_of(runs.assign(seconds=runs["usual"]))
    return told | {f"minutes_{n}": makespan(tasks, n) / 60 for n in WORKERS}


def page(table: pd.DataFrame) -> str:
    """The page of a table of `rows`."""
    table, digits = table.copy(), {"runs": 0, "median_s": 1} | {f"minutes_{n}": 1 for n in WORKERS}
    for name, kept in digits.items():
        table[name] = table[name].map(f"{{:.{kept}f}}".format).replace("nan", "")
    named = {"median_s": "seconds of a run (median)"}
    named |= {f"minutes_{n}": f"minutes on {n} worker{'s' * (n > 1)}" for n in WORKERS}
    about = " ".join(ABOUT.split()).format(stalled=table["stalled"].iloc[-1], times=STALLED)
    shown = table[["notebook", "profile", "processor", *digits]].rename(columns=named)
    return f"# What the grids cost\n\n{about}\n\n{report.markdown(shown)}\n"


#: What stands above the table.
ABOUT = """
Seconds stand beside each committed row (`provenance.csv`, `provenance_full.csv`): training, measuring and attacking
one network in a process of one thread, by a clock on the wall. {stalled} runs took over {times} times as long as the
median run on their data set, because the machine stood still; they count as the median. Minutes on several workers are
computed: each worker that is free takes the longest task left, and dense networks that differ in their seed alone are
one task; notebooks run one after the other. Rows stay when the code that makes them becomes faster without changing a
number, so that some would take less today. What the sweep engine adds is measured in [the table of
benchmarks](table.md). Not counted: tables and figures that notebooks compute beside their grids. No row of a graphics
card is committed; `make gpu-check` times one, in milliseconds per update, networks one after the other and in an
ensemble.
"""


def main() -> None:
    """Write the page."""
    write_bytes(PAGE, page(pd.DataFrame(rows())).encode())


if __name__ == "__main__":
    main()
