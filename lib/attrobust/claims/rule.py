"""The verdict rule: rows in, estimate, interval and verdict out. It was fixed before the runs.

*Trend.* For each seed, the least-squares slope of a metric against log(step size) (or log batch size) over comparable
runs, times the log of the whole range; over seeds, its mean with a Student-t 95 % interval. ``supported`` if that lies
on the claimed side of zero, ``opposite`` if on the other, else ``undecided``. *No gain* is a claim of its own: the
interval of the change must lie inside a margin fixed beforehand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from attrobust.paths import write_bytes

SUPPORTED, OPPOSITE, UNDECIDED = "supported", "opposite", "undecided"
CONFIDENCE = 0.95
NO_GAIN_MARGIN = 0.05


@dataclass(frozen=True)
class Trend:
    """Change of a metric from the smallest to the largest value of `by`, over seeds, by the fitted slopes."""

    change: float  # mean over the seeds
    low: float  # ends of its 95 % interval
    high: float
    seeds: int  # with a slope
    first: float  # mean of the metric at the smallest value of `by`
    last: float  # and at the largest
    per_seed: tuple[float, ...]


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs that stay in their arm."""
    return rows[rows["comparable"].astype(bool)]


def trend(rows: pd.DataFrame, *, metric: str, by: str) -> Trend:
    """Average slope of the metric against log(`by`) over the seeds of an arm; NaN where none can be fitted."""
    for column in ("seed", by, metric):
        if column not in rows:
            raise ValueError(f"rows have no column {column!r}; a trend needs 'seed', {by!r} and {metric!r}")
    changes = list(change_per_seed(rows, metric, by).values())
    return Trend(**estimate(changes), **ends(rows, metric, by), per_seed=tuple(float(c) for c in changes))


def estimate(values: Sequence[float] | pd.Series, center: str = "change", number: str = "seeds") -> dict[str, float]:
    """Mean of the values with its interval, `low` to `high`, and their number."""
    low, high = interval(values)
    return {center: float(np.mean(values)) if len(values) else np.nan, "low": low, "high": high, number: len(values)}


def ends(rows: pd.DataFrame, metric: str, by: str) -> dict[str, float]:
    """Mean of the metric at the smallest and at the largest value of `by`."""
    means = rows.groupby(by)[metric].mean()
    first, last = (float(means.iloc[end]) if len(means) else np.nan for end in (0, -1))
    return {"first": first, "last": last}


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


def no_gain(low: float, high: float, *, margin: float = NO_GAIN_MARGIN) -> str:
    """Judge the claim that nothing changes: the whole interval must lie inside the margin."""
    if -margin < low and high < margin:
        return SUPPORTED
    return OPPOSITE if low > margin or high < -margin else UNDECIDED


def change_per_seed(rows: pd.DataFrame, metric: str, by: str) -> dict[int, float]:
    """Change over the whole range by the fitted slope of each seed with two values of `by` or more (finite runs)."""
    rows, changes = rows[np.isfinite(rows[metric].to_numpy(dtype=float))], {}
    for seed, run in rows.groupby("seed"):
        x = np.log(run[by].to_numpy(dtype=float))
        if len(np.unique(x)) >= 2:
            slope = stats.linregress(x, run[metric].to_numpy(dtype=float)).slope
            changes[seed] = slope * float(np.log(rows[by].max() / rows[by].min()))
    return changes


def save(table: pd.DataFrame, folder: str | Path, *, name: str = "claims") -> None:
    """Write claims.csv, or rows that a claim was judged by, into `folder`, numbers rounded to six digits."""
    content = table.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode()
    write_bytes(Path(folder) / f"{name}.csv", content)


def named(attacked: pd.DataFrame) -> pd.DataFrame:
    """Long attacked rows whose `metric` says attack and radius too, as verdicts call what they judge: worst_top_k_8."""
    radius = attacked["radius"].map("_{:g}".format)
    return attacked.assign(metric=attacked["attack"] + "_" + attacked["metric"] + radius)


def left_out(rows: pd.DataFrame, *, arm: Sequence[str] = ("dataset", "protocol")) -> pd.DataFrame:
    """Runs that left their arm, counted by arm, step size and reason."""
    gone = rows[~rows["comparable"].astype(bool)]
    return gone.groupby([*arm, "step_size", "reason"], sort=False).size().rename("runs").reset_index()


def sentence(name: str, table: pd.DataFrame) -> str:
    """One line that says in how many arms a claim holds."""
    counts = table["verdict"].value_counts()
    parts = ", ".join(f"{word} in {counts.get(word, 0)}" for word in (SUPPORTED, OPPOSITE, UNDECIDED))
    return f"{name}: {parts} of {len(table)} arms"
