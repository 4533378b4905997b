"""Means with intervals, and verdicts on paired differences."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from attrobust.claims.rule import OPPOSITE, SUPPORTED, estimate, no_gain, verdict
from attrobust.claims.tables import sentence

#: Mean similarity that a far stronger attack may take off beyond the default one; fixed before the runs.
STRENGTH_MARGIN = 0.02


def means(table: pd.DataFrame, metrics: Sequence[str], *, by: Sequence[str]) -> pd.DataFrame:
    """Mean, 95 % Student-t interval and n of each metric for every combination of `by`, one row each."""
    long = table.melt(id_vars=list(by), value_vars=list(metrics), var_name="metric")
    records = []
    for names, group in long.groupby([*by, "metric"], sort=False):
        records.append(dict(zip([*by, "metric"], names, strict=True)) | estimate(group["value"], "mean", "n"))
    return pd.DataFrame(records)


def paired(
    table: pd.DataFrame, *, claim: str, larger: Sequence[str], smaller: str, arm: str, metric: str
) -> pd.DataFrame:
    """Verdict on "`smaller` lies below `larger`", by paired differences, for each arm.

    The table has one row per pair, indexed by `arm` and the unit; `metric` says what the numbers are.
    """
    records = []
    for name, pairs in table.groupby(level=arm, sort=False):
        for column in larger:
            found = estimate((pairs[column] - pairs[smaller]).dropna(), number="n")
            ends = {"first": pairs[column].mean(), "last": pairs[smaller].mean()}
            judged = {"verdict": verdict(found["low"], found["high"], claimed="up")}
            names = {"claim": claim, "arm": f"{metric} | {name} | {column} above {smaller}"}
            records.append(names | found | ends | judged)
    return pd.DataFrame(records)


def differences(table: pd.DataFrame) -> str:
    """The verdicts of `paired` as a page of text."""
    lines = [
        f"{row.claim}: {row.arm}: {row.first:.2f} - {row.last:.2f} = {row.change:+.2f}"
        f"  [{row.low:+.2f}, {row.high:+.2f}]  n = {row.n}  {row.verdict}"
        for row in table.itertuples()
    ]
    return "\n".join([*lines, *[sentence(claim, part) for claim, part in table.groupby("claim", sort=False)]])


def parity(rows: pd.DataFrame, *, metric: str, reference: str, margin: float) -> pd.DataFrame:
    """Is a metric the same under every attention, up to a margin? One row of paired differences per attention.

    The rows are comparable runs; one data set, step size and seed make a pair. The margin is fixed beforehand.
    """
    wide = rows.pivot_table(index=["dataset", "step_size", "seed"], columns="attention", values=metric, sort=False)
    records, compared = [], wide.get(reference, pd.Series(np.nan, wide.index))
    for name in wide.columns.drop(reference, errors="ignore"):
        found = estimate((wide[name] - compared).dropna(), "difference", "pairs")
        same = no_gain(found["low"], found["high"], margin=margin)
        records.append({"attention": name} | found | {f"within {margin:g}": same})
    return pd.DataFrame(records, columns=["attention", "difference", "low", "high", "pairs", f"within {margin:g}"])


def strong_enough(
    efforts: pd.DataFrame, *, claim: str, by: Sequence[str], metrics: Sequence[str], default: int
) -> pd.DataFrame:
    """Was the attack strong enough? One arm per attacked map and metric; too weak an attack looks like robustness.

    `efforts` has a row of mean similarities per attacked map (`by`) and effort: `steps` is `default` or, in the other
    row, the stronger attack's. `change` is the default attack's similarity minus the stronger one's, supported up to
    `STRENGTH_MARGIN`. Maps that could not be attacked (NaN: no image has a gradient) are left out.

    Raises:
        ValueError: if a map lacks one of two efforts.

    Example:
        >>> rows = pd.DataFrame({"map": ["a", "a"], "steps": [20, 200], "spearman": [0.5, 0.4]})
        >>> strong_enough(rows, claim="strong", by=["map"], metrics=["spearman"], default=20).verdict.item()
        'opposite'
    """
    columns = ["claim", "arm", *by, "metric", "change", "verdict"]
    if efforts.empty:
        return pd.DataFrame(columns=columns)
    usual = efforts["steps"] == default
    first, second = (efforts[part].set_index([*by])[[*metrics]] for part in (usual, ~usual))
    if not first.index.is_unique or set(first.index) != set(second.index) or len(first) != len(second):
        raise ValueError(f"efforts must hold every {', '.join(by)} once with steps {default} and once with other steps")
    gaps = (first - second).rename_axis(columns="metric").stack().rename("change").dropna().reset_index()
    arms = gaps[[*by, "metric"]].astype(str).agg(" | ".join, axis=1)
    judged = gaps["change"].le(STRENGTH_MARGIN).map({True: SUPPORTED, False: OPPOSITE})
    return gaps.assign(claim=claim, arm=arms, verdict=judged)[columns]
