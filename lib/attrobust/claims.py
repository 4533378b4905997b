"""The verdict rule: rows in, estimate, interval and verdict out. It was fixed before the runs.

*Trend.* For each seed, the least-squares slope of a metric against log(step size) (or log batch size) over the
comparable runs; over seeds, the mean slope with a Student-t 95 % interval. ``supported`` if the interval lies on the
claimed side of zero, ``opposite`` if it lies on the other side, else ``undecided``. Slopes are printed times the log
of the whole range: the change from the smallest to the largest step.

*No gain* is a claim of its own: the interval of the change must lie inside a margin fixed beforehand.

*Pooled.* Arms of one architecture and data set are averaged first; the clusters are then pooled with random effects
(Paule and Mandel) and the Hartung-Knapp interval.

Never imports torch: a claim can be recomputed wherever the rows can be read.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

SUPPORTED, OPPOSITE, UNDECIDED = "supported", "opposite", "undecided"
CONFIDENCE = 0.95
NO_GAIN_MARGIN = 0.05
COLUMNS = ("change", "low", "high", "seeds", "first", "last", "runs", "left_out", "verdict")


@dataclass(frozen=True)
class Trend:
    """Change of a metric from the smallest to the largest value of `by`, over seeds.

    Attributes:
        change: mean change over the range, by the fitted slopes.
        low: lower end of its 95 % interval.
        high: upper end.
        seeds: number of seeds with a slope.
        first: mean of the metric at the smallest value of `by`.
        last: mean at the largest.
        per_seed: the change of each seed.
    """

    change: float
    low: float
    high: float
    seeds: int
    first: float
    last: float
    per_seed: tuple[float, ...]


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs that stay in their arm."""
    return rows[rows["comparable"].astype(bool)]


def trend(rows: pd.DataFrame, *, metric: str, by: str) -> Trend:
    """Fit the metric against log(`by`) for each seed and average the slopes.

    Args:
        rows: comparable runs of one arm, with columns `seed`, `by` and `metric`.
        metric: column that is explained.
        by: column that explains; positive.

    Returns:
        Trend; its interval is infinite with fewer than two seeds, and NaN-valued where no slope can be fitted.

    Raises:
        ValueError: if a column is missing.
    """
    for column in ("seed", by, metric):
        if column not in rows:
            raise ValueError(f"rows have no column {column!r}; a trend needs 'seed', {by!r} and {metric!r}")
    changes = list(_changes(rows, metric, by).values())
    means = rows.groupby(by)[metric].mean()
    low, high = interval(changes)
    return Trend(
        change=float(np.mean(changes)) if changes else np.nan,
        low=low,
        high=high,
        seeds=len(changes),
        first=float(means.iloc[0]) if len(means) else np.nan,
        last=float(means.iloc[-1]) if len(means) else np.nan,
        per_seed=tuple(float(c) for c in changes),
    )


def interval(values: Sequence[float] | np.ndarray | pd.Series, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student-t interval of a mean; infinite with fewer than two values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return -np.inf, np.inf
    spread = stats.sem(values)
    if spread == 0:
        return float(values.mean()), float(values.mean())
    low, high = stats.t.interval(confidence, len(values) - 1, loc=values.mean(), scale=spread)
    return float(low), float(high)


def verdict(low: float, high: float, *, claimed: str) -> str:
    """Judge an interval against the claimed direction, "up" or "down".

    Raises:
        ValueError: for another direction.

    Example:
        >>> verdict(0.1, 0.3, claimed="up"), verdict(0.1, 0.3, claimed="down"), verdict(-0.1, 0.3, claimed="up")
        ('supported', 'opposite', 'undecided')
    """
    if claimed not in ("up", "down"):
        raise ValueError(f"claimed is {claimed!r}; it must be 'up' or 'down'")
    if low > 0:
        return SUPPORTED if claimed == "up" else OPPOSITE
    if high < 0:
        return SUPPORTED if claimed == "down" else OPPOSITE
    return UNDECIDED


def no_gain(low: float, high: float, *, margin: float = NO_GAIN_MARGIN) -> str:
    """Judge the claim that nothing changes: the whole interval must lie inside the margin.

    Example:
        >>> no_gain(-0.01, 0.02), no_gain(-0.2, 0.3)
        ('supported', 'undecided')
    """
    if -margin < low and high < margin:
        return SUPPORTED
    return OPPOSITE if low > margin or high < -margin else UNDECIDED


def judge(
    rows: pd.DataFrame, metrics: Mapping[str, str], *, by: str, arm: Sequence[str] = ("dataset", "protocol")
) -> pd.DataFrame:
    """Verdict of every arm and metric.

    Args:
        rows: runs, comparable or not; those that are not leave their arm.
        metrics: metric -> claimed direction, "up" or "down".
        by: "step_size" or "batch_size".
        arm: columns that tell arms apart.

    Returns:
        One row per arm and metric: change over the range, interval, seeds, ends, verdict, and which values of
        `by` were left.
    """
    table = []
    for names, runs in rows.groupby(list(arm), sort=False):
        kept = comparable(runs)
        for metric, claimed in metrics.items():
            if len(kept) and (kept[metric] == 0).all():
                continue  # nothing to judge: between its kinks the logit of a ReLU network has no curvature at all
            t = trend(kept, metric=metric, by=by)
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
        rows: runs, comparable or not.
        metric: column that is explained.
        by: column that explains.
        cluster: columns that name a cluster, such as architecture and data set.
        arm: further columns that tell arms of a cluster apart.
    """
    means, errors, seeds, first, last = [], [], 0, [], []
    for _, inside in comparable(rows).groupby(list(cluster), sort=False):
        arms = [runs for _, runs in inside.groupby(list(arm), sort=False)]
        fits = [trend(runs, metric=metric, by=by) for runs in arms]
        changes = [_changes(runs, metric, by) for runs in arms]
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
    rows: pd.DataFrame, directions: Mapping[str, Mapping[str, str]], *, step: pd.Index, batch: pd.Index
) -> pd.DataFrame:
    """Verdicts of every claim, metric and arm, over step size and over batch size.

    Args:
        rows: all runs.
        directions: claim -> metric -> claimed direction as the *step size* grows; over batch size it turns round.
        step: index of the runs in which the step size varies.
        batch: index of the runs in which the batch size varies.

    Returns:
        One row per claim, metric, axis and arm; `arm` names it in one string.
    """
    turned = {"up": "down", "down": "up"}
    parts = []
    for claim, metrics in directions.items():
        for by, index in (("step_size", step), ("batch_size", batch)):
            claimed = {m: d if by == "step_size" else turned[d] for m, d in metrics.items()}
            judged = judge(rows.loc[index], claimed, by=by, arm=("dataset", "activation", "protocol"))
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


def reach(
    rows: pd.DataFrame, metrics: Sequence[str], *, claim: str, gaining: str, others: Sequence[str], by: str
) -> pd.DataFrame:
    """Does a gain of one explanation reach the others of the same networks?

    Three verdicts per data set and metric: that `gaining` gains (its trend lies above zero), that another gains less
    (the paired difference of the two trends, seed by seed, lies above zero), and that the other does not gain at all
    (the interval of its trend lies inside the margin of `no_gain`).

    Args:
        rows: runs, comparable or not, with a column for each metric and explanation.
        metrics: column names with "{}" where the explanation's name stands; larger means more robust.
        claim: its id.
        gaining: explanation whose gain is the premise.
        others: explanations it may or may not reach.
        by: column that explains, such as "step_size".

    Returns:
        One row per data set, metric, verdict and explanation, with the change over the range and its interval.
    """
    records = []
    for dataset, runs in rows.groupby("dataset", sort=False):
        kept = comparable(runs)
        for metric in metrics:
            first = _changes(kept, metric.format(gaining), by)
            tests = [(gaining, "gains", list(first.values()), None)]
            for other in others:
                second = _changes(kept, metric.format(other), by)
                gaps = [first[seed] - second[seed] for seed in first if seed in second]
                tests += [(other, f"gains less than {gaining}", gaps, None)]
                tests += [(other, "does not gain", list(second.values()), NO_GAIN_MARGIN)]
            for name, says, changes, margin in tests:
                low, high = interval(changes)
                judged = verdict(low, high, claimed="up") if margin is None else no_gain(low, high, margin=margin)
                values = kept.groupby(by)[metric.format(name)].mean()
                records.append(
                    {
                        "claim": claim,
                        "arm": " | ".join([dataset, metric.replace("_{}", ""), name, says]),
                        "dataset": dataset,
                        "metric": metric.replace("_{}", ""),
                        "explanation": name,
                        "says": says,
                        "change": np.mean(changes) if changes else np.nan,
                        "low": low,
                        "high": high,
                        "seeds": len(changes),
                        "first": values.iloc[0] if len(values) else np.nan,
                        "last": values.iloc[-1] if len(values) else np.nan,
                        "verdict": judged,
                    }
                )
    return pd.DataFrame(records)


def restored(
    rows: pd.DataFrame, metrics: Sequence[str], *, claim: str, explanations: Sequence[str], by: str, reference: str
) -> pd.DataFrame:
    """Does an explanation gain under another attention, where it did not under the reference?

    Two verdicts per data set, attention, metric and explanation: that it *gains* (its trend lies above zero), and that
    it *gains more* than under the reference at the same values of `by` (the paired difference of the two trends, seed
    by seed, lies above zero).

    Args:
        rows: runs, comparable or not, with columns `dataset`, `attention` and one per metric and explanation.
        metrics: column names with "{}" where the explanation's name stands; larger means more robust.
        claim: its id.
        explanations: their names.
        by: column that explains, such as "step_size".
        reference: the attention that the others are compared with.

    Returns:
        One row per data set, attention, metric, explanation and verdict, with the change over the range and its
        interval.
    """
    records = []
    for dataset, runs in rows.groupby("dataset", sort=False):
        kept = comparable(runs)
        for name, mine in kept[kept["attention"] != reference].groupby("attention", sort=False):
            theirs = kept[(kept["attention"] == reference) & kept[by].isin(mine[by]) & kept["seed"].isin(mine["seed"])]
            for metric, explanation in itertools.product(metrics, explanations):
                column = metric.format(explanation)
                changes, before = _changes(mine, column, by), _changes(theirs, column, by)
                gaps = [changes[seed] - before[seed] for seed in changes if seed in before]
                for says, values in (("gains", list(changes.values())), (f"gains more than {reference}", gaps)):
                    low, high = interval(values)
                    records.append(
                        {
                            "claim": claim,
                            "arm": " | ".join([dataset, name, metric.replace("_{}", ""), explanation, says]),
                            "dataset": dataset,
                            "attention": name,
                            "metric": metric.replace("_{}", ""),
                            "explanation": explanation,
                            "says": says,
                            "change": np.mean(values) if values else np.nan,
                            "low": low,
                            "high": high,
                            "seeds": len(values),
                            "verdict": verdict(low, high, claimed="up"),
                        }
                    )
    return pd.DataFrame(records)


def reached(table: pd.DataFrame) -> str:
    """The verdicts of `reach` as a page of text, one line each."""
    lines = ["change over the whole range with its 95 % interval", ""]
    for metric, part in table.groupby(["dataset", "metric"], sort=False):
        lines.append(", ".join(metric))
        for row in part.itertuples():
            name = f"{row.explanation} {row.says}"
            lines.append(f"  {name:<46}{row.change:+.3f}  [{row.low:+.3f}, {row.high:+.3f}]  {row.verdict}")
    return "\n".join([*lines, "", *[sentence(claim, part) for claim, part in table.groupby("claim", sort=False)]])


def kernel_by_kernel(table: pd.DataFrame) -> str:
    """The verdicts of `restored` as a page of text: per attention and map, both trends and whether the gain is back."""
    lines = ["change over the whole range with its 95 % interval; restored: both supported", ""]
    for metric, part in table.groupby(["dataset", "metric"], sort=False):
        lines.append(", ".join(metric))
        for (name, explanation), pair in part.groupby(["attention", "explanation"], sort=False):
            trends = "  ".join(f"{r.change:+.3f} [{r.low:+.3f}, {r.high:+.3f}]" for r in pair.itertuples())
            back = "restored" if (pair["verdict"] == SUPPORTED).all() else "not shown"
            lines.append(f"  {name:<20}{explanation:<15}{trends}  {back}, n = {pair['seeds'].min()}")
        lines.append("")
    says = [f"{'':22}{'':<15}" + " | ".join(dict.fromkeys(table["says"]))]
    return "\n".join([lines[0], *says, *lines[2:], sentence(table["claim"].iloc[0], table)])


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
    records = []
    for name in wide.columns.drop(reference):
        difference = (wide[name] - wide[reference]).dropna()
        low, high = interval(difference)
        judged = no_gain(low, high, margin=margin)
        records.append(
            {"attention": name, "difference": difference.mean(), "low": low, "high": high, "pairs": len(difference),
             f"within {margin:g}": judged}
        )  # fmt: skip
    return pd.DataFrame(records)


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


def save(table: pd.DataFrame, folder: str | Path) -> None:
    """Write claims.csv into `folder`, numbers rounded to six digits."""
    path = Path(folder) / "claims.csv"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    partial.replace(path)


def left_out(
    rows: pd.DataFrame, *, arm: Sequence[str] = ("dataset", "protocol"), by: str = "step_size"
) -> pd.DataFrame:
    """Runs that left their arm, counted by arm, value of `by` and reason."""
    gone = rows[~rows["comparable"].astype(bool)]
    return gone.groupby([*arm, by, "reason"], sort=False).size().rename("runs").reset_index()


def sentence(name: str, table: pd.DataFrame) -> str:
    """One line that says in how many arms a claim holds.

    Example:
        >>> sentence("C2", pd.DataFrame({"verdict": ["supported", "opposite"]}))
        'C2: supported in 1, opposite in 1, undecided in 0 of 2 arms'
    """
    counts = table["verdict"].value_counts()
    parts = ", ".join(f"{word} in {counts.get(word, 0)}" for word in (SUPPORTED, OPPOSITE, UNDECIDED))
    return f"{name}: {parts} of {len(table)} arms"


def _changes(rows: pd.DataFrame, metric: str, by: str) -> dict[int, float]:
    """Change over the whole range, by the fitted slope of each seed that has two values of `by` or more."""
    changes = {}
    for seed, run in rows.groupby("seed"):
        x = np.log(run[by].to_numpy(dtype=float))
        if len(np.unique(x)) >= 2:
            changes[seed] = stats.linregress(x, run[metric].to_numpy(dtype=float)).slope * _log_range(rows[by])
    return changes


def _log_range(values: pd.Series) -> float:
    return float(np.log(values.max() / values.min()))
