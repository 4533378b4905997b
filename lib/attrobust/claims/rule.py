"""What every judgement shares: which runs are comparable, means with their intervals, and how a table is saved."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from attrobust.paths import write_bytes

CONFIDENCE = 0.95


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs that stay in their arm.

    Raises:
        ValueError: a column `comparable` that holds anything but True and False.

    Example:
        >>> comparable(pd.DataFrame({"seed": [0, 1], "comparable": [True, False]}))["seed"].tolist()
        [0]
    """
    return rows[stays(rows)]


def estimate(
    values: Sequence[float] | np.ndarray | pd.Series, center: str = "change", number: str = "seeds"
) -> dict[str, float]:
    """Mean of the values with its interval, `low` to `high`, and their number."""
    low, high = interval(values)
    return {center: float(np.mean(values)) if len(values) else np.nan, "low": low, "high": high, number: len(values)}


def signed(value: float, digits: str = ".3f") -> str:
    """A change or an end of its interval as text: "none" where there are too few values for one."""
    return f"{value:+{digits}}" if np.isfinite(value) else "none"


def interval(values: Sequence[float] | np.ndarray | pd.Series) -> tuple[float, float]:
    """95 % Student-t interval of a mean; infinite with fewer than two values.

    Example:
        >>> interval([1.0, 1.0]), interval([1.0]), [round(end, 2) for end in interval([1.0, 2.0, 3.0])]
        ((1.0, 1.0), (-inf, inf), [-0.48, 4.48])
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return -np.inf, np.inf
    spread = stats.sem(values)
    if spread == 0:
        return float(values.mean()), float(values.mean())
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=values.mean(), scale=spread)
    return float(low), float(high)


def after_holm(p: Sequence[float] | np.ndarray | pd.Series) -> np.ndarray:
    """Each p of a family of tests after Holm 1979: the smallest times their number, the next times one less, and so on.

    None is below that of a smaller p, none above 1.

    Example:
        >>> after_holm([0.04, 0.01, 0.03]).tolist()
        [0.06, 0.03, 0.06]
    """
    p = np.asarray(p, dtype=float)
    order = p.argsort()
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def random_draws(draws: int, generator: np.random.Generator) -> None:
    """Refuse a number of draws that is none, and what cannot draw."""
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws is {draws!r}; it must be a whole number of at least 1")
    if not isinstance(generator, np.random.Generator):
        raise ValueError(f"generator is {generator!r}; it must be a numpy random generator")


def save(table: pd.DataFrame, folder: str | Path, *, name: str = "claims") -> None:
    """Write claims.csv, or rows that a claim was judged by, into `folder`, numbers rounded to six digits.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save(pd.DataFrame({"claim": ["C1"], "effect": [1 / 3]}), folder)
        ...     Path(folder, "claims.csv").read_text().split()
        ['claim,effect', 'C1,0.333333']
    """
    content = table.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode()
    write_bytes(Path(folder) / f"{name}.csv", content)


def left_out(rows: pd.DataFrame, *, arm: Sequence[str] = ("dataset", "protocol")) -> pd.DataFrame:
    """Runs that left their arm, counted by arm, step size and reason.

    Raises:
        ValueError: a column `comparable` that holds anything but True and False.

    Example:
        >>> rows = pd.DataFrame({"step_size": [0.1, 0.2, 0.2], "comparable": [True, False, False]})
        >>> rows = rows.assign(dataset="digits", reason="diverged")
        >>> left_out(rows, arm=["dataset"])[["step_size", "runs"]].to_numpy().tolist()
        [[0.2, 2.0]]
    """
    gone = rows[~stays(rows)]
    return gone.groupby([*arm, "step_size", "reason"], sort=False, dropna=False).size().rename("runs").reset_index()


def stays(rows: pd.DataFrame) -> pd.Series:
    """Column `comparable` as marks."""
    return marks(rows, "comparable")


def marks(rows: pd.DataFrame, column: str) -> pd.Series:
    """A column of True and False; whatever else it holds, as a text "False" or NaN, would count as true."""
    if not rows[column].isin([True, False]).all():
        raise ValueError(f"column {column!r} must be True or False in every row")
    return rows[column].astype(bool)
