"""Means with intervals, and verdicts on paired differences of two attacks."""

from collections.abc import Sequence

import pandas as pd

from attrobust.claims.rule import estimate, sentence, signed, verdict


def means(table: pd.DataFrame, metrics: Sequence[str], *, by: Sequence[str]) -> pd.DataFrame:
    """Mean, 95 % Student-t interval and n of each metric for every combination of `by`, one row each."""
    long = table.melt(id_vars=list(by), value_vars=list(metrics), var_name="metric", value_name="_")
    records = []
    for names, group in long.groupby([*by, "metric"], sort=False):
        records.append(dict(zip([*by, "metric"], names, strict=True)) | estimate(group["_"], "mean", "n"))
    return pd.DataFrame(records)


def paired(
    table: pd.DataFrame, *, claim: str, larger: Sequence[str], smaller: str, arm: str, metric: str
) -> pd.DataFrame:
    """Verdict on "`smaller` lies below `larger`" by arm; the table has one row per pair, indexed by arm and unit."""
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
        f"{row.claim}: {row.arm}: {row.first:.2f} - {row.last:.2f} = {signed(row.change, '.2f')}"
        f"  [{signed(row.low, '.2f')}, {signed(row.high, '.2f')}]  n = {row.n}  {row.verdict}"
        for row in table.itertuples()
    ]
    return "\n".join([*lines, *[sentence(claim, part) for claim, part in table.groupby("claim", sort=False)]])
