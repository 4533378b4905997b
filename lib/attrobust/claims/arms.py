"""Verdicts arm by arm, pooled over arms, and as a page of text.

*Pooled.* Arms of one architecture and data set are averaged first; the clusters are then pooled with random effects
(Paule and Mandel) and the Hartung-Knapp interval.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from attrobust.claims.rule import (
    CONFIDENCE,
    OPPOSITE,
    SUPPORTED,
    UNDECIDED,
    Trend,
    change_per_seed,
    comparable,
    trend,
    verdict,
)
from attrobust.claims.tables import sentence

COLUMNS = ("change", "low", "high", "seeds", "first", "last", "runs", "left_out", "verdict")


def judge(
    rows: pd.DataFrame, metrics: Mapping[str, str], *, by: str, arm: Sequence[str] = ("dataset", "protocol")
) -> pd.DataFrame:
    """Verdict of every arm and metric.

    Args:
        rows: long rows with columns `metric` and `value`, of runs comparable or not; who is not leaves its arm.
        metrics: metric -> claimed direction, "up" or "down".
        by: "step_size" or "batch_size".
        arm: columns that tell arms apart.

    Raises:
        ValueError: if rows hold no line of a metric.

    Returns:
        One row per arm and metric: change over the range, interval, seeds, ends, verdict, and which values of
        `by` were left.
    """
    table = []
    for metric in metrics:
        if metric not in set(rows["metric"]):
            raise ValueError(f"rows hold no metric {metric!r}; they hold {', '.join(rows['metric'].unique())}")
    for names, inside in rows.groupby(list(arm), sort=False):
        for metric, claimed in metrics.items():
            runs = inside[inside["metric"] == metric]
            kept = comparable(runs)
            if len(kept) and (kept["value"] == 0).all():
                continue  # nothing to judge: between its kinks the logit of a ReLU network has no curvature at all
            t = trend(kept, metric="value", by=by)
            table.append(
                {
                    **dict(zip(arm, names, strict=True)),
                    "metric": metric,
                    "claimed": claimed,
                    "change": t.change,
                    "low": t.low,
                    "high": t.high,
                    "seeds": t.seeds,
                    "first": t.first,
                    "last": t.last,
                    "runs": len(kept),
                    "left_out": len(runs) - len(kept),
                    "verdict": verdict(t.low, t.high, claimed=claimed) if t.seeds else UNDECIDED,
                }
            )
    return pd.DataFrame(table)


def pooled(rows: pd.DataFrame, *, metric: str, by: str, cluster: Sequence[str], arm: Sequence[str]) -> Trend:
    """Random-effects estimate of the change over clusters of arms.

    Within a cluster each seed's change is averaged over the arms (they share data and initial weights and are not
    independent); the clusters' means and standard errors are pooled.

    Args:
        rows: long rows, of runs comparable or not.
        metric: which of their lines are explained.
        by: column that explains.
        cluster: columns that name a cluster, such as architecture and data set.
        arm: further columns that tell arms of a cluster apart.
    """
    means, errors, seeds, first, last = [], [], 0, [], []
    for _, inside in comparable(rows[rows["metric"] == metric]).groupby(list(cluster), sort=False):
        arms = [runs for _, runs in inside.groupby(list(arm), sort=False)]
        fits = [trend(runs, metric="value", by=by) for runs in arms]
        changes = [change_per_seed(runs, "value", by) for runs in arms]
        shared = [seed for seed in changes[0] if all(seed in c for c in changes)]
        if len(shared) < 2:
            continue
        by_seed = np.mean([[c[seed] for seed in shared] for c in changes], axis=0)
        means.append(by_seed.mean())
        errors.append(stats.sem(by_seed))
        seeds += len(shared)
        first.append(np.mean([f.first for f in fits]))
        last.append(np.mean([f.last for f in fits]))
    if not means:
        return Trend(np.nan, -np.inf, np.inf, 0, np.nan, np.nan, ())
    if len(means) == 1:
        half = stats.t.ppf(0.5 + CONFIDENCE / 2, seeds - 1) * errors[0]
        low, high = means[0] - half, means[0] + half
        center = means[0]
    else:
        result = combine_effects(np.array(means), np.array(errors) ** 2, method_re="iterated")
        center = result.mean_effect_re
        half = stats.t.ppf(0.5 + CONFIDENCE / 2, len(means) - 1) * np.sqrt(result.var_hksj_re)
        low, high = center - half, center + half
    return Trend(
        float(center),
        float(low),
        float(high),
        seeds,
        float(np.mean(first)),
        float(np.mean(last)),
        tuple(means),
    )


def assess(
    rows: pd.DataFrame,
    directions: Mapping[str, Mapping[str, str]],
    *,
    step: pd.Series | Sequence[str],
    batch: pd.Series | Sequence[str],
) -> pd.DataFrame:
    """Verdicts of every claim, metric and arm, over step size and over batch size.

    Args:
        rows: long rows of all runs.
        directions: claim -> metric -> claimed direction as the *step size* grows; over batch size it turns round.
        step: keys of the runs in which the step size varies.
        batch: keys of the runs in which the batch size varies.

    Returns:
        One row per claim, metric, axis and arm; `arm` names it in one string.
    """
    turned = {"up": "down", "down": "up"}
    parts = []
    for claim, metrics in directions.items():
        for by, keys in (("step_size", step), ("batch_size", batch)):
            claimed = {m: d if by == "step_size" else turned[d] for m, d in metrics.items()}
            judged = judge(rows[rows["key"].isin(keys)], claimed, by=by, arm=("dataset", "activation", "protocol"))
            parts.append(judged.assign(claim=claim, by=by))
    table = pd.concat(parts, ignore_index=True)
    names = ["metric", "by", "dataset", "activation", "protocol"]
    table["arm"] = table[names].agg(" | ".join, axis=1)
    return table[["claim", "arm", *names, "claimed", *COLUMNS]]


def overview(table: pd.DataFrame) -> str:
    """The verdicts of `assess` as a page of text: one line per metric and axis, one column per arm."""
    marks = {SUPPORTED: "+", OPPOSITE: "-", UNDECIDED: "."}
    lines = ["change over the whole range; [+] supported  [-] opposite  [.] undecided", ""]
    for claim, inside in table.groupby("claim", sort=False):
        cells = inside.assign(
            cell=[f"{c:+.3g} [{marks[v]}]" for c, v in zip(inside["change"], inside["verdict"], strict=True)],
            line=inside["metric"] + " / " + inside["by"].str.replace("_size", ""),
        )
        arm = ["dataset", "protocol"] if cells["activation"].nunique() == 1 else ["dataset", "activation", "protocol"]
        wide = cells.pivot(index="line", columns=arm, values="cell")
        wide = wide.reindex(index=list(dict.fromkeys(cells["line"])))
        seen = dict.fromkeys(cells[arm].itertuples(index=False, name=None))
        wide = wide[
            sorted(
                seen,
                key=lambda names: [list(dict.fromkeys(cells[a])).index(n) for a, n in zip(arm, names, strict=True)],
            )
        ]
        lines += [wide.rename_axis(index=None, columns=[None] * len(arm)).to_string(), ""]
        lines += [
            sentence(f"{claim}, by {by.replace('_', ' ')}", part) for by, part in inside.groupby("by", sort=False)
        ]
        lines += [""]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()).rstrip()


def conditions(rows: pd.DataFrame, *, metric: str, by: str, cluster: Sequence[str]) -> str:
    """Pooled change of one metric under each protocol: the condition under which a claim holds."""
    lines = [f"pooled change of {metric} over the range of {by}, random effects over {' x '.join(cluster)}"]
    for protocol, inside in rows.groupby("protocol", sort=False):
        t = pooled(inside, metric=metric, by=by, cluster=cluster, arm=["protocol"])
        clusters = len(t.per_seed)
        lines.append(
            f"  {protocol:<10}{t.change:+.3f}  95 % interval [{t.low:+.3f}, {t.high:+.3f}]"
            f"  from {clusters} clusters: {', '.join(f'{c:+.3f}' for c in t.per_seed)}"
        )
    return "\n".join(lines)
