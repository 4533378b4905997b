"""Verdicts arm by arm, pooled over arms, and as a page of text."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from attrobust.claims import rule
from attrobust.claims.rule import sentence

COLUMNS = ("change", "low", "high", "seeds", "first", "last", "runs", "left_out", "verdict")


def judge(
    rows: pd.DataFrame, metrics: Mapping[str, str], *, by: str, arm: Sequence[str] = ("dataset", "protocol")
) -> pd.DataFrame:
    """One row per arm and metric: change over the range of `by`, interval, seeds, ends, verdict.

    Runs that are not comparable leave their arm. `metrics` goes from metric to claimed direction, "up" or "down".
    """
    for metric in metrics:
        if metric not in set(rows["metric"]):
            raise ValueError(f"rows hold no metric {metric!r}; they hold {', '.join(rows['metric'].unique())}")
    table = []
    for names, inside in rows.groupby(list(arm), sort=False):
        for metric, claimed in metrics.items():
            runs = inside[inside["metric"] == metric]
            kept = rule.comparable(runs)
            if len(kept) and (kept["value"] == 0).all():
                continue  # nothing to judge: between its kinks the logit of a ReLU network has no curvature at all
            t = rule.trend(kept, metric="value", by=by)
            judged = rule.verdict(t.low, t.high, claimed=claimed) if t.seeds else rule.UNDECIDED
            counts = {"runs": len(kept), "left_out": len(runs) - len(kept)}
            table.append(dict(zip(arm, names, strict=True)) | {"metric": metric, "claimed": claimed})
            table[-1] |= vars(t) | counts | {"verdict": judged}
    return pd.DataFrame(table, columns=[*arm, "metric", "claimed", *COLUMNS])


def pooled(rows: pd.DataFrame, *, metric: str, by: str, cluster: Sequence[str], arm: Sequence[str]) -> rule.Trend:
    """Random-effects estimate (Paule and Mandel) with the Hartung-Knapp interval of a metric's change over clusters.

    Within a cluster (say architecture and data set) each seed's change is averaged over the arms first.
    """
    means, errors, seeds, extremes = [], [], 0, []
    for _, inside in rule.comparable(rows[rows["metric"] == metric]).groupby(list(cluster), sort=False):
        arms = [runs for _, runs in inside.groupby(list(arm), sort=False)]
        changes = [rule.change_per_seed(runs, "value", by) for runs in arms]
        shared = [seed for seed in changes[0] if all(seed in c for c in changes)]
        if len(shared) < 2:
            continue
        by_seed = np.mean([[c[seed] for seed in shared] for c in changes], axis=0)
        means.append(by_seed.mean())
        errors.append(stats.sem(by_seed))
        seeds += len(shared)
        extremes.append(pd.DataFrame([rule.ends(runs, "value", by) for runs in arms]).mean())
    if not means:
        return rule.Trend(np.nan, -np.inf, np.inf, 0, np.nan, np.nan, ())
    center, error, free = means[0], errors[0], seeds - 1
    if len(means) > 1:
        result = combine_effects(np.array(means), np.array(errors) ** 2, method_re="iterated")
        center, error, free = result.mean_effect_re, np.sqrt(result.var_hksj_re), len(means) - 1
    half = stats.t.ppf(0.5 + rule.CONFIDENCE / 2, free) * error
    first, last = pd.DataFrame(extremes).mean()
    return rule.Trend(float(center), float(center - half), float(center + half), seeds, first, last, tuple(means))


def assess(
    rows: pd.DataFrame, directions: Mapping[str, Mapping[str, str]], *, step: pd.Series | Sequence[str],
    batch: pd.Series | Sequence[str],
) -> pd.DataFrame:  # fmt: skip
    """Verdicts of every claim, metric and arm (named in one string), over step size and over batch size.

    `directions` goes from claim to metric to claimed direction as the *step size* grows; over batch size it turns
    round. `step` and `batch` hold the keys of the runs in which the one or the other varies.
    """
    parts = []
    for claim, metrics in directions.items():
        opposed = {metric: {"up": "down", "down": "up"}[direction] for metric, direction in metrics.items()}
        for by, keys, claimed in (("step_size", step, metrics), ("batch_size", batch, opposed)):
            judged = judge(rows[rows["key"].isin(keys)], claimed, by=by, arm=("dataset", "activation", "protocol"))
            parts.append(judged.assign(claim=claim, by=by))
    table = pd.concat(parts, ignore_index=True)
    names = ["metric", "by", "dataset", "activation", "protocol"]
    table["arm"] = table[names].agg(" | ".join, axis=1)
    return table[["claim", "arm", *names, "claimed", *COLUMNS]]


def overview(table: pd.DataFrame) -> str:
    """The verdicts of `assess` as a page of text: one line per metric and axis, one column per arm."""
    marks = {rule.SUPPORTED: "+", rule.OPPOSITE: "-", rule.UNDECIDED: "."}
    lines = ["change over the whole range; [+] supported  [-] opposite  [.] undecided", ""]
    for claim, inside in table.groupby("claim", sort=False):
        cells = inside.assign(
            cell=[
                f"{rule.signed(c, '.3g')} [{marks[v]}]"
                for c, v in zip(inside["change"], inside["verdict"], strict=True)
            ],
            line=inside["metric"] + " / " + inside["by"].str.replace("_size", ""),
        )
        arm = ["dataset", "protocol"] if cells["activation"].nunique() == 1 else ["dataset", "activation", "protocol"]
        for name in ("line", *arm):  # in the order of the table
            cells[name] = pd.Categorical(cells[name], cells[name].unique())
        wide = cells.pivot(index="line", columns=arm, values="cell").sort_index(axis=1)
        lines += [wide.rename_axis(index=None, columns=[None] * len(arm)).to_string(), ""]
        for by, part in inside.groupby("by", sort=False):
            lines.append(sentence(f"{claim}, by {by.replace('_', ' ')}", part))
        lines.append("")
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()).rstrip()


def conditions(rows: pd.DataFrame, *, metric: str, by: str, cluster: Sequence[str]) -> str:
    """Pooled change of one metric under each protocol: the condition under which a claim holds."""
    lines = [f"pooled change of {metric} over the range of {by}, random effects over {' x '.join(cluster)}"]
    for protocol, inside in rows.groupby("protocol", sort=False):
        t = pooled(inside, metric=metric, by=by, cluster=cluster, arm=["protocol"])
        lines.append(
            f"  {protocol:<10}{rule.signed(t.change)}  95 % interval [{rule.signed(t.low)}, {rule.signed(t.high)}]"
            f"  from {len(t.per_seed)} clusters: {', '.join(map(rule.signed, t.per_seed))}"
        )
    return "\n".join(lines)
