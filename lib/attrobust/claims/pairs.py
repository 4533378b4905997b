"""Means with intervals, and verdicts on paired differences: of attacks, of kernels, of explanations of one network."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from attrobust.claims import rule
from attrobust.claims.rule import OPPOSITE, SUPPORTED, estimate, no_gain, sentence, verdict

#: Mean similarity that a far stronger attack may take off beyond the default one; fixed before the runs.
STRENGTH_MARGIN = 0.02

#: Seeds of a headline arm.
HEADLINE_SEEDS = 5

_FOUND = ("explanation", "says", "change", "low", "high", "seeds")


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
        f"{row.claim}: {row.arm}: {row.first:.2f} - {row.last:.2f} = {rule.signed(row.change, '.2f')}"
        f"  [{rule.signed(row.low, '.2f')}, {rule.signed(row.high, '.2f')}]  n = {row.n}  {row.verdict}"
        for row in table.itertuples()
    ]
    return "\n".join([*lines, *[sentence(claim, part) for claim, part in table.groupby("claim", sort=False)]])


def parity(rows: pd.DataFrame, *, metric: str, reference: str, margin: float) -> pd.DataFrame:
    """Is a metric of comparable runs the same under every attention, up to a margin? One row per attention."""
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


def reach(
    rows: pd.DataFrame, metrics: Sequence[str], *, claim: str, gaining: str, others: Sequence[str], by: str
) -> pd.DataFrame:
    """Does a gain of one explanation reach the others of the same networks?

    Verdicts per data set and metric (larger is more robust), from long rows: that `gaining` gains (its trend lies above
    zero), that another gains less (so does the paired difference of the two trends, seed by seed), and that the other
    does not gain at all (the interval of its trend lies inside the margin of `no_gain`).
    """
    records = []
    for (dataset, runs), metric in itertools.product(rows.groupby("dataset", sort=False), metrics):
        kept = rule.comparable(runs[runs["metric"] == metric])
        of = {name: kept[kept["map"] == name] for name in (gaining, *others)}
        changes = {name: rule.change_per_seed(part, "value", by) for name, part in of.items()}
        tests = [(gaining, "gains", changes[gaining].values(), None)]
        for other in others:
            gaps = [change - changes[other][s] for s, change in changes[gaining].items() if s in changes[other]]
            tests.append((other, f"gains less than {gaining}", gaps, None))
            tests.append((other, "does not gain", changes[other].values(), rule.NO_GAIN_MARGIN))
        for name, says, found, margin in tests:
            arm = {"dataset": dataset, "metric": metric, "explanation": name, "says": says}
            records.append(_judged(claim, arm, found, margin) | rule.ends(of[name], "value", by))
    return pd.DataFrame(records, columns=["claim", "arm", "dataset", "metric", *_FOUND, "first", "last", "verdict"])


def reached(table: pd.DataFrame) -> str:
    """The verdicts of `reach` as a page of text, one line each."""
    lines = ["change over the whole range with its 95 % interval", ""]
    for metric, part in table.groupby(["dataset", "metric"], sort=False):
        lines.append(", ".join(metric))
        for row in part.itertuples():
            name = f"{row.explanation} {row.says}"
            change, low, high = map(rule.signed, (row.change, row.low, row.high))
            lines.append(f"  {name:<46}{change}  [{low}, {high}]  {row.verdict}")
    return "\n".join([*lines, "", *[sentence(claim, part) for claim, part in table.groupby("claim", sort=False)]])


def restored(
    rows: pd.DataFrame, metrics: Sequence[str], *, claim: str, explanations: Sequence[str], by: str, reference: str
) -> pd.DataFrame:
    """Does an explanation gain under another attention, where it did not under the reference?

    Verdicts per data set, attention, metric (larger is more robust) and explanation, from long rows: that it *gains*
    (its trend lies above zero), and that it *gains more* than under the reference (so does the trend of the paired
    differences, run by run at the same seed and the same value of `by`).
    """
    records = []
    for dataset, runs in rows.groupby("dataset", sort=False):
        kept = rule.comparable(runs)
        others = kept.loc[kept["attention"] != reference, "attention"].unique()
        for name, metric, explanation in itertools.product(others, metrics, explanations):
            same = kept[(kept["metric"] == metric) & (kept["map"] == explanation)]
            mine, theirs = same[same["attention"] == name], same[same["attention"] == reference]
            pairs = mine.merge(theirs, on=[by, "seed"], suffixes=("", " of reference"))
            gap = pairs[[by, "seed"]].assign(value=pairs["value"] - pairs["value of reference"])
            for says, of in (("gains", mine), (f"gains more than {reference}", gap)):
                arm = {"dataset": dataset, "attention": name, "metric": metric, "explanation": explanation}
                records.append(_judged(claim, arm | {"says": says}, rule.change_per_seed(of, "value", by).values()))
    return pd.DataFrame(records, columns=["claim", "arm", "dataset", "attention", "metric", *_FOUND, "verdict"])


def kernel_by_kernel(table: pd.DataFrame) -> str:
    """The verdicts of one claim of `restored` as a page of text, a line per attention and map."""
    if table.empty:
        return "no run is left to judge"
    says = list(dict.fromkeys(table["says"]))
    lines = ["change over the whole range with its 95 % interval; restored: all supported"]
    lines.append(f"{'':<37}{' | '.join(says)}")
    for metric, part in table.groupby(["dataset", "metric"], sort=False):
        lines.append(", ".join(metric))
        for (name, explanation), pair in part.groupby(["attention", "explanation"], sort=False):
            found = [map(rule.signed, (r.change, r.low, r.high)) for r in pair.itertuples()]
            trends = "  ".join("{} [{}, {}]".format(*numbers) for numbers in found)
            back = "restored" if (pair["verdict"] == SUPPORTED).all() else "not shown"
            if len(says) == 1:
                back = pair["verdict"].iloc[0]
            lines.append(f"  {name:<20}{explanation:<15}{trends}  {back}, n = {pair['seeds'].min()}")
        lines.append("")
    claim, few = table["claim"].iloc[0], table["seeds"] < HEADLINE_SEEDS
    parts = [table, table[~few], table[few]] if few.any() else [table]
    names = [claim, f"  arms of {HEADLINE_SEEDS} seeds or more", "  arms of fewer seeds"]
    return "\n".join([*lines, *(sentence(name, part) for name, part in zip(names, parts, strict=False))])


def _judged(claim: str, arm: dict[str, str], changes: Iterable[float], margin: float | None = None) -> dict:
    """A row that says whether the changes lie above zero, or inside the margin where there is one."""
    found = estimate([*changes])
    low, high = found["low"], found["high"]
    judged = verdict(low, high, claimed="up") if margin is None else no_gain(low, high, margin=margin)
    return {"claim": claim, "arm": " | ".join(arm.values())} | arm | found | {"verdict": judged}
