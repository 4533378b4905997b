"""Statements and their cases: every inequality of notebooks 02 and 06 as a table of left and right sides.

A *bound* says left <= right; it is violated where left exceeds right by more than the rounding of float64. An
*identity* is stored as its residual and the tolerance it must stay under. One row per case:

    statement, arm, case, left, right, kind ("bound" or "identity")

The verdict on a statement is computed from such a table alone, so it can be recomputed wherever rows can be read.
"""

import textwrap
from collections.abc import Iterable

import numpy as np
import pandas as pd

from attrobust.claims import OPPOSITE, SUPPORTED, UNDECIDED

TALLY = ("statement", "arm", "kind", "cases", "violations", "ratio", "residual", "verdict")

#: Largest residual an identity may leave in float64, relative to the size of its sides (our choice; seen: 1e-13).
RESIDUAL = 1e-10

#: Relative excess of left over right that still counts as rounding (our choice).
ROUNDING = 1e-9


def bound(statement: str, arm: str, left: object, right: object, **columns: object) -> pd.DataFrame:
    """Cases of left <= right.

    Args:
        statement: its name, such as "P2".
        arm: what it was tried on, such as "logit".
        left: smaller side, one number per case.
        right: larger side, one number per case; may be infinite.
        **columns: further columns of the table, such as the radius.

    Raises:
        ValueError: if a side is NaN: a case that cannot be computed must not pass as one that holds.

    Example:
        >>> bound("P2", "logit", [1.0, 2.0], [2.0, 2.0])["left"].tolist()
        [1.0, 2.0]
    """
    left, right = np.broadcast_arrays(_numbers(left), _numbers(right))
    if np.isnan(left).any() or np.isnan(right).any():
        raise ValueError(f"{statement} ({arm}) has NaN on one side; both sides must be numbers")
    sides = {"left": left.ravel(), "right": right.ravel()}
    table = pd.DataFrame({"statement": statement, "arm": arm, "case": range(left.size), **sides, "kind": "bound"})
    return table.assign(**columns)


def identity(statement: str, arm: str, left: object, right: object, **columns: object) -> pd.DataFrame:
    """One case of left = right: the largest difference over the larger of 1 and the largest entry.

    Example:
        >>> float(identity("P1", "logit", [1.0, 2.0], [1.0, 2.0])["left"].iloc[0])
        0.0
    """
    left, right = _numbers(left), _numbers(right)
    residual = np.abs(left - right).max() / max(1.0, np.abs(right).max())
    return bound(statement, arm, residual, RESIDUAL, **columns).assign(kind="identity")


def residuals(statement: str, arm: str, values: object, **columns: object) -> pd.DataFrame:
    """Cases of an identity whose residuals are known already, one number per case."""
    return bound(statement, arm, np.abs(_numbers(values)), RESIDUAL, **columns).assign(kind="identity")


def join(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Tables of cases as one, cases numbered through within each statement and arm."""
    table = pd.concat(list(parts), ignore_index=True)
    return table.assign(case=table.groupby(["statement", "arm"], sort=False).cumcount())


def violated(cases: pd.DataFrame) -> pd.Series:
    """Whether each case breaks its statement beyond rounding."""
    slack = np.where(cases["kind"] == "identity", 0.0, ROUNDING * cases["right"].abs().clip(lower=1e-3))
    return cases["left"] > cases["right"] + slack


def ratio(cases: pd.DataFrame) -> pd.Series:
    """Left over right; 0 where both vanish up to rounding, infinite where only the right side does."""
    left, right = cases["left"].to_numpy(dtype=float), cases["right"].to_numpy(dtype=float)
    nothing = (np.abs(left) <= ROUNDING * 1e-3) & (np.abs(right) <= ROUNDING * 1e-3)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(nothing & (cases["kind"] == "bound"), 0.0, left / right)
    return pd.Series(value, index=cases.index)


def tally(cases: pd.DataFrame) -> pd.DataFrame:
    """Cases tried, violations, and how close each statement came to its limit.

    Returns:
        One row per statement and arm: kind, cases, violations, ratio (largest left over right), residual (largest
        left side of an identity, NaN for a bound) and verdict: "supported" if there are cases and none is
        violated, "opposite" if one is, "undecided" without cases.
    """
    marked = cases.assign(violated=violated(cases), ratio=ratio(cases))
    records = []
    for (statement, arm), inside in marked.groupby(["statement", "arm"], sort=False):
        kind = inside["kind"].iloc[0]
        records.append(
            {
                "statement": statement,
                "arm": arm,
                "kind": kind,
                "cases": len(inside),
                "violations": int(inside["violated"].sum()),
                "ratio": inside["ratio"].max(),
                "residual": inside["left"].max() if kind == "identity" else np.nan,
                "verdict": verdict(len(inside), int(inside["violated"].sum())),
            }
        )
    return pd.DataFrame(records, columns=list(TALLY))


def verdict(cases: int, violations: int) -> str:
    """Judge a statement by its cases.

    Example:
        >>> verdict(200, 0), verdict(200, 1), verdict(0, 0)
        ('supported', 'opposite', 'undecided')
    """
    if cases == 0:
        return UNDECIDED
    return OPPOSITE if violations else SUPPORTED


def summary(cases: pd.DataFrame) -> str:
    """One line per statement and arm: cases, violations, tightest ratio or largest residual."""
    table = tally(cases)
    names = [f"{row.statement} {row.arm}" for row in table.itertuples()]
    width = max((len(name) for name in names), default=0)
    lines = []
    for name, row in zip(names, table.itertuples(), strict=True):
        tight = f"residual below {RESIDUAL:g}" if row.kind == "identity" else f"tightest ratio {row.ratio:.4f}"
        if row.kind == "identity" and row.violations:
            tight = f"largest residual {row.residual:.1e}"
        lines.append(f"{name:<{width}}  cases {row.cases:>5}, violations {row.violations:>4}, {tight}")
    return "\n".join(lines)


def claim(cases: pd.DataFrame, *, name: str, sides: dict[str, str]) -> pd.DataFrame:
    """Rows of a claims table, one per statement and arm.

    Args:
        cases: tables of cases, joined.
        name: id of the claim, such as "C1".
        sides: statement -> what it speaks about ("gradient", "curvature", ...), which sorts the rows.

    Raises:
        ValueError: if a statement has no side.
    """
    table = tally(cases)
    lost = sorted(set(table["statement"]) - set(sides))
    if lost:
        raise ValueError(f"sides says nothing about {', '.join(lost)}; it must name a side for every statement")
    table = table.assign(claim=name, side=table["statement"].map(sides))
    table["arm"] = table["side"] + " | " + table["statement"] + " | " + table["arm"]
    order = table["side"].map({side: i for i, side in enumerate(dict.fromkeys(sides.values()))})
    table = table.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)
    return table[["claim", "arm", "side", "statement", "kind", "cases", "violations", "ratio", "residual", "verdict"]]


def page(table: pd.DataFrame) -> str:
    """A claims table as text: one block per side, no digit that rounding could change."""
    lines = []
    for side, inside in table.groupby("side", sort=False):
        held = (inside["verdict"] == SUPPORTED).sum()
        lines.append(f"{side}: {held} of {len(inside)} statements supported")
        for row in inside.itertuples():
            tight = "identity" if row.kind == "identity" else f"ratio {row.ratio:.2f}"
            name = row.arm.split(" | ", 1)[1]
            lines.append(f"  {name:<54}{row.cases:>6} cases {row.violations:>5} violations  {tight:<11}{row.verdict}")
    return "\n".join(lines)


def box(title: str, items: Iterable[str], *, width: int = 100) -> str:
    """A titled box of numbered items, wrapped to `width` columns.

    Example:
        >>> print(box("Two things", ["one", "two"], width=20))
        ┌─ Two things ─────┐
        │ 1  one           │
        │ 2  two           │
        └──────────────────┘
    """
    inner = width - 4
    lines = [f"┌─ {title} {'─' * (width - len(title) - 5)}┐"]
    for number, item in enumerate(items, start=1):
        for index, text in enumerate(textwrap.wrap(item, inner - 3)):
            lines.append(f"│ {(str(number) if index == 0 else ''):<3}{text:<{inner - 3}} │")
    return "\n".join([*lines, f"└{'─' * (width - 2)}┘"])


def _numbers(value: object) -> np.ndarray:
    return np.atleast_1d(np.asarray(value.detach() if hasattr(value, "detach") else value, dtype=np.float64))
