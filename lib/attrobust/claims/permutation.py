"""What the rule says where there is nothing: the labels of both ends exchanged, in some seeds or in all patterns.

To exchange the labels of a seed changes the signs of its effects. If step sizes did nothing, any such table would have
been as likely as the one that was seen.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from attrobust.claims.by_seed import Ends, effects, need
from attrobust.claims.cells import ALPHA, FEWEST_SEEDS, pattern_sums
from attrobust.claims.rule import random_draws


def permuted(
    rows: pd.DataFrame, *, by: str, arm: Sequence[str], ends: Ends | None = None, log: bool = False
) -> pd.DataFrame:
    """How often the rule speaks of nothing: per cell, the share of all sign patterns that it would give a word to.

    To exchange the labels of both ends in some seeds changes the signs of their effects. One row per cell: seeds,
    patterns (2^seeds), `share` of those whose interval misses zero (near 5 %: such a cell leans), and `verdicts`, of
    those that would be `up` or `down` before Holm (p below .05 too: at most 5 %); NaN for fewer than two seeds.

    Example:
        >>> rows = pd.DataFrame([(s, h, h * (s + 1)) for s in range(10) for h in (0.1, 0.2)])
        >>> rows = rows.set_axis(["seed", "step_size", "value"], axis=1).assign(comparable=True, map="saliency")
        >>> permuted(rows, by="step_size", arm=["map"])[["share", "verdicts"]].round(3).to_numpy().tolist()
        [[0.049, 0.049]]
    """
    found, records = effects(rows, by=by, arm=arm, ends=ends, log=log), []
    for key, part in found.groupby(list(arm), sort=False):
        changes = part["effect"].dropna().to_numpy(float)
        n, share, verdicts = len(changes), np.nan, np.nan
        if n > 1:
            sums = pattern_sums(changes)
            mean, square = sums / n, np.mean(changes**2)
            error = np.sqrt(np.maximum(square - mean**2, 0) / (n - 1))
            misses, far = np.abs(mean) > stats.t.ppf(1 - ALPHA / 2, n - 1) * error, np.abs(sums)
            nearer = np.searchsorted(np.sort(far), far - 1e-12 * np.abs(changes).sum())
            share, verdicts = float(misses.mean()), float((misses & (1 - nearer / len(sums) < ALPHA)).mean())
        found_here = {"seeds": n, "patterns": 2**n, "share": share, "verdicts": verdicts}
        records.append(dict(zip(arm, key, strict=True)) | found_here)
    return pd.DataFrame(records, columns=[*arm, "seeds", "patterns", "share", "verdicts"])


def chance_curve(table: pd.DataFrame, *, generator: np.random.Generator, draws: int = 1000) -> pd.DataFrame:
    """Where the effects of all cells would lie, in ascending order, if the ends were labels without meaning.

    The table is that of `cells`, or several of them joined; `per_seed` and `of_seeds` are read. In each draw the labels
    of a random set of seeds are exchanged, in all cells alike, since networks of one seed share images and first
    weights. Cells with fewer than five seeds do not enter. One row per place in the order: `effect` as it is, `low` and
    `high`, within which 95 % of the draws lie there, and `p`, twice the share of draws that lie as far out there or
    farther, on the effect's side, itself counted among them. Reference: Simonsohn, Simmons and Nelson 2020, step 3.

    Example:
        >>> table = pd.DataFrame({"per_seed": ["0.1 0.2 0.1 0.3 0.2", "-0.1 0.1 -0.2 0.1 0.1", "0.1"]})
        >>> table["of_seeds"] = ["0 1 2 3 4", "1 2 3 4 5", "0"]
        >>> chance_curve(table, generator=np.random.default_rng(0))["effect"].round(2).tolist()
        [0.0, 0.18]
    """
    random_draws(draws, generator)
    need(table, ["per_seed", "of_seeds"])
    told = [_by_seed(*both) for both in zip(table["per_seed"], table["of_seeds"], strict=True)]
    told = [effects for effects in told if len(effects) >= FEWEST_SEEDS]
    if not told:
        return pd.DataFrame(columns=["place", "effect", "low", "high", "p"])
    wide = pd.DataFrame(told)  # a column for each seed
    changes, there = wide.fillna(0).to_numpy(float), wide.notna().to_numpy()
    signs = generator.choice([-1.0, 1.0], size=(changes.shape[1], draws))
    drawn = np.sort(changes @ signs / there.sum(axis=1, keepdims=True), axis=0)
    seen = np.sort(changes.sum(axis=1) / there.sum(axis=1))
    low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2], axis=1)
    sides = [(side * (drawn - seen[:, None]) >= -1e-12).sum(axis=1) for side in (1, -1)]
    p = np.minimum(1.0, 2 * (1 + np.minimum(*sides)) / (1 + draws))
    return pd.DataFrame({"place": range(len(seen)), "effect": seen, "low": low, "high": high, "p": p})


def _by_seed(effects: object, seeds: object) -> dict[str, float]:
    """Effects by seed, of a line that tells both as texts."""
    values, names = ([] if pd.isna(text) else str(text).split() for text in (effects, seeds))
    try:
        found = dict(zip(names, map(float, values), strict=True))
    except ValueError:
        found = {"": np.nan}
    if not np.isfinite([*found.values()]).all():
        raise ValueError(f"per_seed is {effects!r} and of_seeds {seeds!r}; they must be finite numbers, as many seeds")
    return found
