"""Claims as a file and as a sentence, and the runs that left their arm."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from attrobust.claims.rule import OPPOSITE, SUPPORTED, UNDECIDED


def save(table: pd.DataFrame, folder: str | Path, *, name: str = "claims") -> None:
    """Write claims.csv, or rows that a claim was judged by, into `folder`, numbers rounded to six digits."""
    path = Path(folder) / f"{name}.csv"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    partial.replace(path)


def named(attacked: pd.DataFrame) -> pd.DataFrame:
    """Long attacked rows whose `metric` says attack and radius too: the names by which verdicts call what they judge.

    Example:
        >>> named(pd.DataFrame({"attack": ["worst"], "metric": ["top_k"], "radius": [8.0]}))["metric"].item()
        'worst_top_k_8'
    """
    radius = attacked["radius"].map("_{:g}".format)
    return attacked.assign(metric=attacked["attack"] + "_" + attacked["metric"] + radius)


def left_out(rows: pd.DataFrame, *, arm: Sequence[str] = ("dataset", "protocol")) -> pd.DataFrame:
    """Runs that left their arm, counted by arm, step size and reason."""
    gone = rows[~rows["comparable"].astype(bool)]
    return gone.groupby([*arm, "step_size", "reason"], sort=False).size().rename("runs").reset_index()


def sentence(name: str, table: pd.DataFrame) -> str:
    """One line that says in how many arms a claim holds.

    Example:
        >>> sentence("C2", pd.DataFrame({"verdict": ["supported", "opposite"]}))
        'C2: supported in 1, opposite in 1, undecided in 0 of 2 arms'
    """
    counts = table["verdict"].value_counts()
    parts = ", ".join(f"{word} in {counts.get(word, 0)}" for word in (SUPPORTED, OPPOSITE, UNDECIDED))
    return f"{name}: {parts} of {len(table)} arms"
