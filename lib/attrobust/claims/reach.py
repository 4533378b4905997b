"""Several explanations of the same networks: whom does a gain reach, and under which attention is it restored?"""

import itertools
from collections.abc import Iterable, Sequence

import pandas as pd

from attrobust.claims import rule
from attrobust.claims.tables import sentence

#: Seeds of a headline arm.
HEADLINE_SEEDS = 5

_FOUND = ("explanation", "says", "change", "low", "high", "seeds")


def reach(
    rows: pd.DataFrame, metrics: Sequence[str], *, claim: str, gaining: str, others: Sequence[str], by: str
) -> pd.DataFrame:
    """Does a gain of one explanation reach the others of the same networks?

    Three verdicts per data set and metric (larger is more robust): that `gaining` gains (its trend lies above zero),
    that another gains less (the paired difference of the two trends, seed by seed, lies above zero), and that the other
    does not gain at all (the interval of its trend lies inside the margin of `no_gain`). The long rows have columns
    `map`, `metric` and `value`.
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
            lines.append(f"  {name:<46}{row.change:+.3f}  [{row.low:+.3f}, {row.high:+.3f}]  {row.verdict}")
    return "\n".join([*lines, "", *[sentence(claim, part) for claim, part in table.groupby("claim", sort=False)]])


def restored(
    rows: pd.DataFrame, metrics: Sequence[str], *, claim: str, explanations: Sequence[str], by: str, reference: str
) -> pd.DataFrame:
    """Does an explanation gain under another attention, where it did not under the reference?

    Two verdicts per data set, attention, metric (larger is more robust) and explanation: that it *gains* (its trend
    lies above zero), and that it *gains more* than under the reference (the trend of the paired differences, run by run
    at the same seed and the same value of `by`, lies above zero). The long rows have columns `attention`, `map`,
    `metric` and `value`.
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
            trends = "  ".join(f"{r.change:+.3f} [{r.low:+.3f}, {r.high:+.3f}]" for r in pair.itertuples())
            back = "restored" if (pair["verdict"] == rule.SUPPORTED).all() else "not shown"
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
    found = rule.estimate([*changes])
    low, high = found["low"], found["high"]
    judged = rule.verdict(low, high, claimed="up") if margin is None else rule.no_gain(low, high, margin=margin)
    return {"claim": claim, "arm": " | ".join(arm.values())} | arm | found | {"verdict": judged}
