"""What every judgement shares: which runs are comparable, means with intervals, and the verdict on an interval.

``supported`` if a 95 % Student-t interval lies on the claimed side of zero, ``opposite`` if on the other, else
``undecided``: for the paired comparisons of notebook 01. What trained networks show is judged by `claims.cells`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from attrobust.paths import write_bytes

SUPPORTED, OPPOSITE, UNDECIDED = "supported", "opposite", "undecided"
CONFIDENCE = 0.95


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs that stay in their arm."""
    return rows[rows["comparable"].astype(bool)]


def estimate(values: Sequence[float] | pd.Series, center: str = "change", number: str = "seeds") -> dict[str, float]:
    """Mean of the values with its interval, `low` to `high`, and their number."""
    low, high = interval(values)
    return {center: float(np.mean(values)) if len(values) else np.nan, "low": low, "high": high, number: len(values)}


def signed(value: float, digits: str = ".3f") -> str:
    """A change or an end of its interval as text: "none" where there are too few values for one."""
    return f"{value:+{digits}}" if np.isfinite(value) else "none"


def interval(values: Sequence[float] | np.ndarray | pd.Series) -> tuple[float, float]:
    """95 % Student-t interval of a mean; infinite with fewer than two values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return -np.inf, np.inf
    spread = stats.sem(values)
    if spread == 0:
        return float(values.mean()), float(values.mean())
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=values.mean(), scale=spread)
    return float(low), float(high)


def verdict(low: float, high: float, *, claimed: str) -> str:
    """Judge an interval against the claimed direction, "up" or "down"."""
    if claimed not in ("up", "down"):
        raise ValueError(f"claimed is {claimed!r}; it must be 'up' or 'down'")
    if low > 0:
        return SUPPORTED if claimed == "up" else OPPOSITE
    if high < 0:
        return SUPPORTED if claimed == "down" else OPPOSITE
    return UNDECIDED


def save(table: pd.DataFrame, folder: str | Path, *, name: str = "claims") -> None:
    """Write claims.csv, or rows that a claim was judged by, into `folder`, numbers rounded to six digits."""
    content = table.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode()
    write_bytes(Path(folder) / f"{name}.csv", content)


def left_out(rows: pd.DataFrame, *, arm: Sequence[str] = ("dataset", "protocol")) -> pd.DataFrame:
    """Runs that left their arm, counted by arm, step size and reason."""
    gone = rows[~rows["comparable"].astype(bool)]
    return gone.groupby([*arm, "step_size", "reason"], sort=False).size().rename("runs").reset_index()


def sentence(name: str, table: pd.DataFrame) -> str:
    """One line that says in how many arms a claim holds."""
    counts = table["verdict"].value_counts()
    parts = ", ".join(f"{word} in {counts.get(word, 0)}" for word in (SUPPORTED, OPPOSITE, UNDECIDED))
    return f"{name}: {parts} of {len(table)} arms"
