"""The verdict rule: rows in, estimate, interval and verdict out. It was fixed before the runs.

*Trend.* For each seed, the least-squares slope of a metric against log(step size) (or log batch size) over the
comparable runs; over seeds, the mean slope with a Student-t 95 % interval. ``supported`` if the interval lies on the
claimed side of zero, ``opposite`` if it lies on the other side, else ``undecided``. Slopes are printed times the log
of the whole range: the change from the smallest to the largest step.

*No gain* is a claim of its own: the interval of the change must lie inside a margin fixed beforehand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

SUPPORTED, OPPOSITE, UNDECIDED = "supported", "opposite", "undecided"
CONFIDENCE = 0.95
NO_GAIN_MARGIN = 0.05
#: Seeds of a headline arm.
HEADLINE_SEEDS = 5


@dataclass(frozen=True)
class Trend:
    """Change of a metric from the smallest to the largest value of `by`, over seeds.

    Attributes:
        change: mean change over the range, by the fitted slopes.
        low: lower end of its 95 % interval.
        high: upper end.
        seeds: number of seeds with a slope.
        first: mean of the metric at the smallest value of `by`.
        last: mean at the largest.
        per_seed: the change of each seed.
    """

    change: float
    low: float
    high: float
    seeds: int
    first: float
    last: float
    per_seed: tuple[float, ...]


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs that stay in their arm."""
    return rows[rows["comparable"].astype(bool)]


def trend(rows: pd.DataFrame, *, metric: str, by: str) -> Trend:
    """Fit the metric against log(`by`) for each seed and average the slopes.

    Args:
        rows: comparable runs of one arm, with columns `seed`, `by` and `metric`.
        metric: column that is explained.
        by: column that explains; positive.

    Returns:
        Trend; its interval is infinite with fewer than two seeds, and NaN-valued where no slope can be fitted.

    Raises:
        ValueError: if a column is missing.
    """
    for column in ("seed", by, metric):
        if column not in rows:
            raise ValueError(f"rows have no column {column!r}; a trend needs 'seed', {by!r} and {metric!r}")
    changes = list(change_per_seed(rows, metric, by).values())
    means = rows.groupby(by)[metric].mean()
    low, high = interval(changes)
    return Trend(
        change=float(np.mean(changes)) if changes else np.nan,
        low=low,
        high=high,
        seeds=len(changes),
        first=float(means.iloc[0]) if len(means) else np.nan,
        last=float(means.iloc[-1]) if len(means) else np.nan,
        per_seed=tuple(float(c) for c in changes),
    )


def interval(values: Sequence[float] | np.ndarray | pd.Series, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student-t interval of a mean; infinite with fewer than two values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return -np.inf, np.inf
    spread = stats.sem(values)
    if spread == 0:
        return float(values.mean()), float(values.mean())
    low, high = stats.t.interval(confidence, len(values) - 1, loc=values.mean(), scale=spread)
    return float(low), float(high)


def verdict(low: float, high: float, *, claimed: str) -> str:
    """Judge an interval against the claimed direction, "up" or "down".

    Raises:
        ValueError: for another direction.

    Example:
        >>> verdict(0.1, 0.3, claimed="up"), verdict(0.1, 0.3, claimed="down"), verdict(-0.1, 0.3, claimed="up")
        ('supported', 'opposite', 'undecided')
    """
    if claimed not in ("up", "down"):
        raise ValueError(f"claimed is {claimed!r}; it must be 'up' or 'down'")
    if low > 0:
        return SUPPORTED if claimed == "up" else OPPOSITE
    if high < 0:
        return SUPPORTED if claimed == "down" else OPPOSITE
    return UNDECIDED


def no_gain(low: float, high: float, *, margin: float = NO_GAIN_MARGIN) -> str:
    """Judge the claim that nothing changes: the whole interval must lie inside the margin.

    Example:
        >>> no_gain(-0.01, 0.02), no_gain(-0.2, 0.3)
        ('supported', 'undecided')
    """
    if -margin < low and high < margin:
        return SUPPORTED
    return OPPOSITE if low > margin or high < -margin else UNDECIDED


def change_per_seed(rows: pd.DataFrame, metric: str, by: str) -> dict[int, float]:
    """Change over the whole range of the arm, by the fitted slope of each seed with two values of `by` or more."""
    changes = {}
    for seed, run in rows[rows[metric].notna()].groupby("seed"):
        x = np.log(run[by].to_numpy(dtype=float))
        if len(np.unique(x)) >= 2:
            changes[seed] = stats.linregress(x, run[metric].to_numpy(dtype=float)).slope * _log_range(rows[by])
    return changes


def _log_range(values: pd.Series) -> float:
    return float(np.log(values.max() / values.min()))
