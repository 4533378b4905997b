"""Means with intervals, and what is said of paired differences, such as one attack beside another."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from attrobust.claims.cells import UNCLEAR
from attrobust.claims.rule import CONFIDENCE, after_holm, estimate, signed


def means(table: pd.DataFrame, metrics: Sequence[str], *, by: Sequence[str]) -> pd.DataFrame:
    """Mean, 95 % Student-t interval and n of each metric for every combination of `by`; NaN is no value.

    Example:
        >>> table = pd.DataFrame({"map": "raw", "cosine": [0.5, 0.5, None]})
        >>> means(table, ["cosine"], by=["map"]).to_numpy().tolist()
        [['raw', 'cosine', 0.5, 0.5, 0.5, 2]]
    """
    long = table.melt(id_vars=list(by), value_vars=list(metrics), var_name="metric", value_name="_")
    records = []
    for names, group in long.groupby([*by, "metric"], sort=False, dropna=False):
        records.append(dict(zip([*by, "metric"], names, strict=True)) | estimate(group["_"].dropna(), "mean", "n"))
    return pd.DataFrame(records, columns=[*by, "metric", "mean", "low", "high", "n"])


def paired(table: pd.DataFrame, *, of: str, minus: Sequence[str], arm: str, metric: str) -> pd.DataFrame:
    """What one column is below or above others, unit by unit: a line per arm and column, with a word.

    Args:
        table: a row per unit, such as an image, indexed by arm and unit; units that lack a side do not count.
        of, minus: the column that is compared, and those it is compared with.
        arm: level of the index that names what is judged.
        metric: what the columns hold.

    `up` or `down`: the 95 % Student-t interval lies on one side of zero and p, after Holm over all lines, below .05;
    `leans` if only the interval does, else `unclear`. Raises ValueError for a column or level that is not there, and
    for a unit that is there twice.

    Example:
        >>> index = pd.MultiIndex.from_product([["saliency"], range(4)], names=["map", "image"])
        >>> table = pd.DataFrame({"noise": [0.9, 0.8, 0.9, 0.8], "attack": [0.5, 0.3, 0.4, 0.4]}, index=index)
        >>> found = paired(table, of="attack", minus=["noise"], arm="map", metric="cosine")
        >>> found[["map", "by", "effect", "units", "word"]].round(2).to_numpy().tolist()
        [['saliency', 'noise to attack', -0.45, 4, 'down']]
    """
    lacking = [name for name in (of, *minus) if name not in table] + ([] if arm in table.index.names else [arm])
    if lacking:
        there = ", ".join(map(str, [*table.index.names, *table.columns]))
        raise ValueError(f"the table has no {lacking[0]!r}; it has {there}")
    if table.index.nlevels > 1 and (twice := table.index[table.index.duplicated()]).size:
        raise ValueError(f"the table has {', '.join(map(str, twice[0]))} twice; each unit of {arm!r} must be one row")
    records = []
    for name, pairs in table.groupby(level=arm, sort=False):
        for column in minus:
            both = pairs[[column, of]].dropna()
            found = estimate(both[of] - both[column], "effect", "units")
            record = {"measured": metric, arm: name, "by": f"{column} to {of}", "start": column, "end": of} | found
            record |= {"first": both[column].mean(), "last": both[of].mean()}
            record |= {"half": (found["high"] - found["low"]) / 2}
            records.append(record | {"p": stats.ttest_rel(both[of], both[column]).pvalue if len(both) > 1 else np.nan})
    lines = pd.DataFrame(records)
    lines["p_holm"] = after_holm(lines["p"].fillna(1))
    side = np.select([lines["low"] > 0, lines["high"] < 0], ["up", "down"], default="")
    words = np.where(lines["p_holm"] < 1 - CONFIDENCE, side, np.char.add("leans ", side))
    return lines.assign(word=np.where(side == "", UNCLEAR, words))


def differences(table: pd.DataFrame) -> str:
    """A record of lines of `paired` as a page of text; beneath it what was found of each claim.

    Example:
        >>> from attrobust.claims.record import record
        >>> index = pd.MultiIndex.from_product([["saliency"], range(4)], names=["map", "image"])
        >>> table = pd.DataFrame({"noise": [0.9, 0.8, 0.9, 0.8], "attack": [0.5, 0.3, 0.4, 0.4]}, index=index)
        >>> found = paired(table, of="attack", minus=["noise"], arm="map", metric="cosine")
        >>> print(differences(record({"F1": found})))
        F1: cosine, saliency, noise to attack: 0.85 -> 0.40  -0.45  [-0.54, -0.36]  n = 4  down
        F1: down in 1 of 1 comparisons
    """
    lines = [
        f"{row.claim}: {row.arm}, {row.by}: {row.first:.2f} -> {row.last:.2f}  {signed(row.effect, '.2f')}"
        f"  [{signed(row.low, '.2f')}, {signed(row.high, '.2f')}]  n = {row.units:.0f}  {row.word}"
        for row in table.itertuples()
    ]
    for claim, part in table.groupby("claim", sort=False):
        said = ", ".join(f"{word} in {n}" for word, n in part["word"].value_counts().items())
        lines.append(f"{claim}: {said} of {len(part)} comparisons")
    return "\n".join(lines)
