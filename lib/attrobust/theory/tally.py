"""Statements and their cases: every inequality of notebooks 02, 06 and 07 as a table of left and right sides.

A *bound* says left <= right and is violated beyond the rounding of float64; an *identity* is stored as its residual and
the tolerance it must stay under. One row per case: statement, arm, case, left, right, kind ("bound" or "identity") and
`holds`, which is False for a *wrong variant*: the statement slightly off, which the same trial must refute. What is
said of a statement is computed from such a table alone, wherever rows can be read.
"""

import functools
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import pandas as pd

from attrobust import checks
from attrobust.versions import versioned

Cases = Iterator[pd.DataFrame]  # what a trial yields
NamedValues = Iterator[tuple[dict[str, object], Mapping[str, object]]]  # columns, and numbers by name

CASES = ("statement", "arm", "left", "right", "kind", "holds")  # columns that every table of cases has
RESIDUAL = 1e-10  # largest residual of an identity in float64, relative to its sides (our choice; seen: 1e-13)
ROUNDING = 1e-9  # relative excess of left over right that still counts as rounding (our choice)


def trial(*, version: int) -> Callable[[Callable[[int], Cases]], Callable[[int, int], pd.DataFrame]]:
    """Turn a function of one random case into a versioned one of (number of cases, first case), tables joined.

    Raises:
        ValueError: `cases` below 1, when the trial is run.

    Example:
        >>> from attrobust.versions import VERSIONED
        >>> @trial(version=1)
        ... def squares(case):
        ...     yield bound("S", "square", case**2, 10)
        >>> squares(3, 0)["left"].tolist()
        [0.0, 1.0, 4.0]
        >>> del VERSIONED["squares"]
    """

    def over_cases(one: Callable[[int], Cases], cases: int, seed: int) -> pd.DataFrame:
        checks.count("cases", cases)
        return join(part for case in range(seed, seed + cases) for part in one(case))

    return _collected(version, over_cases)


def named_values(*, version: int) -> Callable[[Callable[..., NamedValues]], Callable[..., pd.DataFrame]]:
    """Turn a generator of (columns, {name: number}) into a versioned function of a table with one row per number.

    Example:
        >>> from attrobust.versions import VERSIONED
        >>> @named_values(version=1)
        ... def halves(numbers):
        ...     for n in numbers:
        ...         yield {"n": n}, {"half": n / 2}
        >>> halves([1, 3]).to_numpy().tolist()
        [[1, 'half', 0.5], [3, 'half', 1.5]]
        >>> del VERSIONED["halves"]
    """

    def tabled(of: Callable[..., NamedValues], *given: object, **options: object) -> pd.DataFrame:
        rows = of(*given, **options)
        return pd.DataFrame([{**row, "name": n, "value": float(v)} for row, named in rows for n, v in named.items()])

    return _collected(version, tabled)


def bound(statement: str, arm: str, left: object, right: object, *, holds: bool = True, **more: object) -> pd.DataFrame:
    """Cases of left <= right, one number per case; the right side may be infinite.

    `more` are further columns of the table, such as the radius. Raises ValueError if a side is NaN: a case that cannot
    be computed must not pass as one that holds.

    Example:
        >>> violated(bound("S", "two cases", [1.0, 3.0], 2.0)).tolist()
        [False, True]
    """
    left, right = np.broadcast_arrays(_numbers(left), _numbers(right))
    if np.isnan(left).any() or np.isnan(right).any():
        raise ValueError(f"{statement} ({arm}) has NaN on one side; both sides must be numbers")
    sides = {"case": range(left.size), "left": left.ravel(), "right": right.ravel()}
    return pd.DataFrame({"statement": statement, "arm": arm, **sides, "kind": "bound", "holds": holds, **more})


def identity(statement: str, arm: str, left: object, right: object) -> pd.DataFrame:
    """One case of left = right: the largest difference over the larger of 1 and the largest entry.

    Example:
        >>> violated(identity("S", "sum", [1.0 + 2.0], [3.0])).tolist()
        [False]
    """
    left, right = _numbers(left), _numbers(right)
    return residual(statement, arm, (left - right) / max(1.0, np.abs(right).max()))


def residual(statement: str, arm: str, differences: object, *, holds: bool = True) -> pd.DataFrame:
    """One case of an identity: the largest of the differences it leaves.

    Example:
        >>> violated(residual("S", "differences", [0.0, -0.5])).tolist()
        [True]
    """
    return residuals(statement, arm, np.abs(_numbers(differences)).max(), holds=holds)


def residuals(statement: str, arm: str, values: object, *, holds: bool = True) -> pd.DataFrame:
    """Cases of an identity whose residuals are known already, one number per case.

    Example:
        >>> violated(residuals("S", "differences", [0.0, -0.5])).tolist()
        [False, True]
    """
    return bound(statement, arm, np.abs(_numbers(values)), RESIDUAL, holds=holds).assign(kind="identity")


def equalities(cases: Mapping[tuple[str, str], tuple[object, object]]) -> pd.DataFrame:
    """Examples that attain a bound: {(statement, what the example is): (left, right)}.

    Example:
        >>> ratio(equalities({("S", "a square"): (4.0, 4.0)})).tolist()
        [1.0]
    """
    return join(bound(statement, f"equality: {name}", *sides) for (statement, name), sides in cases.items())


def join(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Tables of cases as one, cases numbered through within each statement and arm.

    Example:
        >>> join([bound("S", "one", 1.0, 2.0), bound("S", "one", 1.0, 2.0)])["case"].tolist()
        [0, 1]
    """
    table = pd.concat(list(parts), ignore_index=True)
    cases = table.groupby(["statement", "arm"], sort=False).cumcount()
    return table.assign(case=cases, holds=table["holds"].astype(bool))  # empty parts have no type of their own


def variants(cases: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Wrong variants in a table, by statement and arm, such as "P6 with 1/4 for 1/2".

    Example:
        >>> list(variants(join([bound("S", "true", 1, 2), bound("S", "with 1/4", 1, 2, holds=False)])))
        ['S with 1/4']
    """
    groups = cases[~cases["holds"]].groupby(["statement", "arm"], sort=False)
    return {" ".join(names): table for names, table in groups}


def violated(cases: pd.DataFrame) -> pd.Series:
    """Whether each case breaks its statement beyond rounding.

    Example:
        >>> violated(bound("S", "two cases", [1.0, 3.0], 2.0)).tolist()
        [False, True]
    """
    slack = np.where(cases["kind"] == "identity", 0.0, ROUNDING * cases["right"].abs().clip(lower=1e-3))
    return cases["left"] > cases["right"] + slack


def ratio(cases: pd.DataFrame) -> pd.Series:
    """Left over right; 0 where both vanish up to rounding, infinite where only the right side does.

    Example:
        >>> ratio(bound("S", "two cases", [1.0, 0.0], [2.0, 0.0])).tolist()
        [0.5, 0.0]
    """
    left, right = cases["left"].astype(float), cases["right"].astype(float)
    nothing = (left.abs() <= ROUNDING * 1e-3) & (right.abs() <= ROUNDING * 1e-3) & (cases["kind"] == "bound")
    return (left / right).mask(nothing, 0.0)


def tally(cases: pd.DataFrame) -> pd.DataFrame:
    """Cases, violations, word, largest left over right and residual (NaN for a bound) by statement and arm.

    Example:
        >>> tally(bound("S", "two cases", [1.0, 3.0], 2.0))[["cases", "violations", "ratio"]].to_numpy().tolist()
        [[2.0, 1.0, 1.5]]
    """
    residual = cases["left"].where(cases["kind"] == "identity")
    marked = cases.assign(violated=violated(cases), ratio=ratio(cases), residual=residual)
    table = marked.groupby(["statement", "arm"], sort=False, as_index=False).agg(
        kind=("kind", "first"), holds=("holds", "first"), cases=("left", "size"), violations=("violated", "sum"),
        ratio=("ratio", "max"), residual=("residual", "max"),
    )  # fmt: skip
    return table.assign(word=list(map(word, table["cases"], table["violations"])))


def word(cases: int, violations: int) -> str:
    """What is said of a statement: that it holds or fails, in how many cases.

    Example:
        >>> word(1500, 0), word(0, 0)
        ('holds (1500 cases, 0 violations)', 'not tried')
    """
    return f"{'fails' if violations else 'holds'} ({cases} cases, {violations} violations)" if cases else "not tried"


def statements(cases: pd.DataFrame, *, sides: Mapping[str, str] | None = None) -> pd.DataFrame:
    """One line per true statement and arm (here `trial`), with the columns that `claims.record` wants, and a word.

    `sides`, if given, says of each statement what it speaks about ("gradient", "curvature", ...) and sorts the lines.
    Raises ValueError if a statement has none.

    Example:
        >>> statements(bound("S", "two cases", [1.0, 2.0], 2.0))[["statement", "trial", "word"]].to_numpy().tolist()
        [['S', 'two cases', 'holds (2 cases, 0 violations)']]
    """
    table = tally(cases[cases["holds"]]).rename(columns={"arm": "trial"})
    table = table.assign(by="cases", start=np.nan, end=np.nan, effect=np.nan, half=np.nan)
    names = ["statement", "trial", "by", "start", "end", "effect", "half", "word", "cases", "violations", "ratio"]
    if sides is not None:
        lost = sorted(set(table["statement"]) - set(sides))
        if lost:
            raise ValueError(f"sides says nothing about {', '.join(lost)}; it must name a side for every statement")
        order = list(dict.fromkeys(sides.values()))
        table = table.assign(side=table["statement"].map(sides))
        table = table.sort_values("side", key=lambda side: side.map(order.index), kind="stable", ignore_index=True)
        names = ["side", *names]
    return table[[*names, "residual"]]


def sentence(table: pd.DataFrame) -> str:
    """The lines of `statements` in one sentence.

    Example:
        >>> sentence(statements(bound("P0", "less", [1, 2], 3)))
        '1 of 1 statements hold (2 cases, 0 violations)'
    """
    held, cases, violations = table["word"].str.startswith("holds"), table["cases"], table["violations"]
    many = f"{int(cases.sum())} cases, {int(violations.sum())} violations"
    return f"{held.sum()} of {len(table)} statements hold ({many})"


def summary(cases: pd.DataFrame) -> str:
    """One line per true statement and arm: cases, violations, tightest ratio or largest residual.

    Example:
        >>> print(summary(bound("S", "two cases", [1.0, 2.0], 2.0)))
        S two cases  cases     2, violations    0, tightest ratio 1.0000
    """
    table = tally(cases[cases["holds"]])
    names = table["statement"] + " " + table["arm"]
    lines, width = [], max(map(len, names), default=0)
    for name, row in zip(names, table.itertuples(), strict=True):
        tight = f"tightest ratio {row.ratio:.4f}"
        if row.kind == "identity":
            tight = f"largest residual {row.residual:.1e}" if row.violations else f"residual below {RESIDUAL:g}"
        lines.append(f"{name:<{width}}  cases {row.cases:>5}, violations {row.violations:>4}, {tight}")
    return "\n".join(lines)


def page(table: pd.DataFrame) -> str:
    """Lines of `statements` as text: one block per side, no digit that rounding could change.

    Example:
        >>> print(page(statements(bound("S", "two cases", [1.0, 2.0], 2.0), sides={"S": "gradient"})).splitlines()[0])
        gradient: 1 of 1 statements hold (2 cases, 0 violations)
    """
    lines = []
    for side, inside in table.groupby("side", sort=False):
        lines.append(f"{side}: {sentence(inside)}")
        for row in inside.to_dict("records"):
            tight = f"ratio {row['ratio']:.2f}" if np.isnan(row["residual"]) else "identity"
            name = f"{row['statement']} | {row['trial']}"
            lines.append(f"  {name:<54}{tight:<11}{row['word']}")
    return "\n".join(lines)


def box(title: str, items: Iterable[str], *, width: int = 100) -> str:
    """A titled box of numbered items, wrapped to `width` columns.

    Example:
        >>> print(box("Statements", ["a square is at least 0"], width=40))
        ┌─ Statements ─────────────────────────┐
        │ 1  a square is at least 0            │
        └──────────────────────────────────────┘
    """
    inner = width - 7
    lines = [f"┌─ {title} {'─' * (width - len(title) - 5)}┐"]
    for number, item in enumerate(items, start=1):
        for index, text in enumerate(textwrap.wrap(item, inner)):
            lines.append(f"│ {'' if index else number:<3}{text:<{inner}} │")
    return "\n".join([*lines, f"└{'─' * (width - 2)}┘"])


def _collected(version: int, collect: Callable[..., pd.DataFrame]) -> Callable[[Callable], Callable[..., pd.DataFrame]]:
    """Decorator: versioned, under the function's own name, what `collect` makes of its results."""
    return lambda one: versioned(version)(functools.wraps(one)(functools.partial(collect, one)))


def _numbers(value: object) -> np.ndarray:
    return np.atleast_1d(np.asarray(value.detach() if hasattr(value, "detach") else value, dtype=np.float64))
