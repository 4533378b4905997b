"""Which measured property of a network goes with its robustness, over runs of many kinds? Association, not cause.

Runs of one arm (all choices but step, batch and seed) are near copies of each other, so whole arms are drawn:

    rho_b = rank correlation over the runs of arms drawn with replacement,   interval = 2.5 to 97.5 % of all rho_b

A property that carries over also orders, and gives the level of, runs of a kind on which nothing was fitted:

    predicted = a + b F(property),   F its rank among the runs fitted on, in [0, 1];   R^2 = 1 - SSE / SST
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from attrobust.claims.by_seed import listed, named_cells, need
from attrobust.claims.rule import CONFIDENCE, random_draws

#: Fewest clusters over which anything is pooled.
FEWEST_CLUSTERS = 5


def associations(
    rows: pd.DataFrame, *, properties: Sequence[str], cluster: Sequence[str], generator: np.random.Generator,
    draws: int = 1000,
) -> pd.DataFrame:  # fmt: skip
    """Rank correlation of each property with `value` over runs, with a cluster-bootstrap interval.

    Args:
        rows: a row per run: `value` (its robustness), the properties, the columns of `cluster`.
        properties: columns; runs in which one is not finite do not enter its line.
        cluster: columns that name what is drawn as a whole.
        generator: draws the clusters.
        draws: how many times.

    Returns one row per property, in their order: `runs`, `clusters`, `correlation` (NaN where all are alike), `low`,
    `high`. These are NaN with fewer than five clusters, and where more than one draw in forty has no correlation, since
    the property varies in too few of them. With few clusters the interval is too narrow: with five it holds a true zero
    about nine times in ten. Reference: Field and Welsh 2007, "Bootstrapping clustered data", randomized cluster
    bootstrap.

    Example:
        >>> rows = pd.DataFrame({"arm": np.repeat(range(6), 4), "sharpness": range(24), "value": range(24, 0, -1)})
        >>> draw = np.random.default_rng(0)
        >>> associations(rows, properties=["sharpness"], cluster=["arm"], generator=draw).to_numpy().tolist()[0]
        ['sharpness', 24, 6, -1.0, -1.0, -1.0]
    """
    _measured(rows, properties, cluster)
    random_draws(draws, generator)
    named, found = pd.Series(list(map(tuple, named_cells(rows[[*cluster]]).to_numpy())), rows.index, object), []
    for name in properties:
        told = np.isfinite(rows[[name, "value"]].astype(float)).all(axis=1)
        x, y = (rows.loc[told, column].to_numpy(float) for column in (name, "value"))
        codes, kinds = pd.factorize(named[told])
        low, high, rho = np.nan, np.nan, _rank_correlations(x, y, np.ones((1, len(x))))[0]
        if len(kinds) >= FEWEST_CLUSTERS and np.isfinite(rho):
            drawn = generator.integers(len(kinds), size=(draws, len(kinds)))
            times = (drawn[:, :, None] == np.arange(len(kinds))).sum(1)  # how often every arm was drawn
            tail, found_there = (1 - CONFIDENCE) / 2, _rank_correlations(x, y, times[:, codes])
            if np.isnan(found_there).mean() <= tail:
                low, high = np.nanquantile(found_there, [tail, 1 - tail])
        line = {"property": name, "runs": len(x), "clusters": len(kinds), "correlation": rho}
        found.append(line | {"low": float(low), "high": float(high)})
    return pd.DataFrame(found)


def carried_over(rows: pd.DataFrame, *, properties: Sequence[str], by: str) -> pd.DataFrame:
    """How well does each property predict `value` on one kind of run, fitted on all the others?

    `by` is the column that names the kinds, such as "architecture". One row per property and kind: `runs` predicted,
    `r2` (1 is exact; at 0 or below the kind's own mean does as well), `correlation` of property and value in ranks,
    times the sign found on the others (1, where the order is right). NaN where a kind, or every other, lacks it.

    Example:
        >>> rows = pd.DataFrame({"kind": ["a"] * 9 + ["b"] * 9, "norm": [*range(9), *range(9)]})
        >>> rows["value"] = rows["norm"] / 10
        >>> carried_over(rows, properties=["norm"], by="kind").round(3).to_numpy().tolist()[0]
        ['norm', 'a', 9, 1.0, 1.0]
    """
    _measured(rows, properties, [by])
    rows, found = rows.assign(**{by: named_cells(rows[[by]])[by]}), []
    for name in properties:
        told = rows[np.isfinite(rows[[name, "value"]].astype(float)).all(axis=1)]
        for kind in dict.fromkeys(rows[by]):
            fitted, left = told[told[by] != kind], told[told[by] == kind]
            line = {"property": name, "left_out": kind, "runs": len(left), "r2": np.nan, "correlation": np.nan}
            if len(left) > 1 and len(fitted) > 1:
                ranks = [stats.percentileofscore(fitted[name], part[name], kind="mean") for part in (fitted, left)]
                varies = np.ptp(ranks[0]) > 0
                slope, start = stats.linregress(ranks[0], fitted["value"])[:2] if varies else (0.0, fitted.value.mean())
                predicted, value = start + slope * ranks[1], left["value"].to_numpy(float)
                if np.ptp(value) > 0:
                    total = np.square(value - value.mean()).sum()
                    line["r2"] = float(1 - np.square(value - predicted).sum() / total)
                if slope:
                    there = _rank_correlations(left[name].to_numpy(float), value, np.ones((1, len(value))))[0]
                    line["correlation"] = np.sign(slope) * there
            found.append(line)
    return pd.DataFrame(found, columns=["property", "left_out", "runs", "r2", "correlation"])


def _measured(rows: pd.DataFrame, properties: Sequence[str], names: Sequence[str]) -> None:
    """Refuse rows without these columns, names that name nothing, and properties that are no numbers."""
    listed("cluster", names)
    need(rows, [*names, *properties, "value"])
    for name in (*properties, "value"):
        if not pd.api.types.is_numeric_dtype(rows[name]):
            raise ValueError(f"column {name!r} holds {rows[name].dtype}; it must hold numbers")


def _rank_correlations(x: np.ndarray, y: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Spearman's over runs that enter so often [draws, runs], ties at their mean rank; NaN where one side is constant.

    The mean of n such ranks is (n + 1) / 2 whatever the ties, so ranks about their mean are halves of whole numbers and
    the sums below are exact.
    """
    times, half = times.astype(float), times.sum(1, keepdims=True) / 2
    ranks = []
    for values in (x, y):
        kinds, codes = np.unique(values, return_inverse=True)
        tied = times @ (codes[:, None] == np.arange(len(kinds)))
        ranks.append((np.cumsum(tied, 1) - tied / 2 - half)[:, codes])
    across, *along = ((times * one * other).sum(1) for one, other in (ranks, ranks[:1] * 2, ranks[1:] * 2))
    size = np.sqrt(along[0]) * np.sqrt(along[1])
    return np.divide(across, size, out=np.full(len(times), np.nan), where=size > 0).round(12)
