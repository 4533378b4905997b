"""Means with intervals, and verdicts on paired differences."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from attrobust.claims.rule import interval, no_gain, verdict
from attrobust.claims.tables import sentence


def means(table: pd.DataFrame, metrics: Sequence[str], *, by: Sequence[str]) -> pd.DataFrame:
    """Mean and 95 % Student-t interval of each metric for every combination of `by`.

    Returns:
        Tidy: the columns of `by`, metric, mean, low, high, n.
    """
    long = table.melt(id_vars=list(by), value_vars=list(metrics), var_name="metric")
    records = []
    for names, group in long.groupby([*by, "metric"], sort=False):
        low, high = interval(group["value"])
        numbers = {"mean": group["value"].mean(), "low": low, "high": high, "n": len(group)}
        records.append(dict(zip([*by, "metric"], names, strict=True)) | numbers)
    return pd.DataFrame(records)


def paired(
    table: pd.DataFrame, *, claim: str, larger: Sequence[str], smaller: str, arm: str, metric: str
) -> pd.DataFrame:
    """Verdict on "`smaller` lies below `larger`", by paired differences, for each arm.

    Args:
        table: one row per pair, indexed by `arm` and the unit, with the compared columns.
        claim: its id.
        larger: columns claimed to lie above.
        smaller: column claimed to lie below.
        arm: index level that tells arms apart.
        metric: what the numbers are; part of the arm's name.
    """
    records = []
    for name, pairs in table.groupby(level=arm, sort=False):
        for column in larger:
            difference = (pairs[column] - pairs[smaller]).dropna()
            low, high = interval(difference)
            records.append(
                {
                    "claim": claim,
                    "arm": f"{metric} | {name} | {column} above {smaller}",
                    "change": difference.mean(),
                    "low": low,
                    "high": high,
                    "n": len(difference),
                    "first": pairs[column].mean(),
                    "last": pairs[smaller].mean(),
                    "verdict": verdict(low, high, claimed="up"),
                }
            )
    return pd.DataFrame(records)


def differences(table: pd.DataFrame) -> str:
    """The verdicts of `paired` as a page of text."""
    lines = [
        f"{row.claim}: {row.arm}: {row.first:.2f} - {row.last:.2f} = {row.change:+.2f}"
        f"  [{row.low:+.2f}, {row.high:+.2f}]  n = {row.n}  {row.verdict}"
        for row in table.itertuples()
    ]
    return "\n".join([*lines, *[sentence(claim, part) for claim, part in table.groupby("claim", sort=False)]])


def parity(
    rows: pd.DataFrame,
    *,
    metric: str,
    reference: str,
    margin: float,
    by: Sequence[str] = ("dataset", "step_size", "seed"),
) -> pd.DataFrame:
    """Is a metric the same under every attention, up to a margin? Paired differences from a reference.

    Args:
        rows: comparable runs with columns `attention`, `by` and the metric.
        metric: what is compared.
        reference: the attention that the others are compared with.
        margin: half width of what counts as the same, fixed beforehand.
        by: columns that name a pair.

    Returns:
        One row per attention: mean difference, its 95 % interval, number of pairs, and the verdict.
    """
    wide = rows.pivot_table(index=list(by), columns="attention", values=metric, sort=False)
    records, compared = [], wide.get(reference, pd.Series(np.nan, wide.index))
    for name in wide.columns.drop(reference, errors="ignore"):
        difference = (wide[name] - compared).dropna()
        low, high = interval(difference)
        judged = no_gain(low, high, margin=margin)
        records.append(
            {"attention": name, "difference": difference.mean(), "low": low, "high": high, "pairs": len(difference),
             f"within {margin:g}": judged}
        )  # fmt: skip
    return pd.DataFrame(records, columns=["attention", "difference", "low", "high", "pairs", f"within {margin:g}"])
