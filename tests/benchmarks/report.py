"""Tables and figures from the stored rows; every sentence about a ratio is computed here."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks import draw

OURS = "attrobust"

#: What is measured, each in rows of its own.
PARTS = ("speed", "warm", "memory", "growth", "attacks", "stability", "sweeps")

#: Largest relative error of a peer that counts as an answer (our choice).
ANSWER = 0.1

#: Relative error in single precision below which routes count as equally exact (our choice).
EXACT = 1e-5

#: Least seconds of a loop over images over those of the attack suite on the batch.
BATCHED = 2.4

#: Least seconds of Quantus for five measures of stability over ours (our choice).
TOGETHER = 8

#: question, our route, peer, least ratio of its seconds over ours. Peer "fastest" is the fastest with an answer, and
#: our route "as exact" the fastest of ours whose error is no larger than that peer's (or `EXACT`).
TARGETS = (
    ("top eigenvalue", "as exact", "fastest", 1.3),
    ("top eigenvalue", OURS, "curvlinops + eigsh, as shipped", 4.0),
    ("trace", OURS, "curvlinops, as shipped", 2.0),
    ("trace", OURS, "curvlinops, unchecked", 2.0),
    ("trace", OURS, "PyHessian", 1.5),
    ("both ends in the pixels", OURS, "loop, recomputed", 4.0),
    ("both ends in the pixels", OURS, "loop, graph kept", 2.5),
    ("both ends in the pixels", OURS, "vmap of jvp(grad)", 1.5),
)


def medians(speed: pd.DataFrame) -> pd.DataFrame:
    """One row per network, question and route: median seconds, their range, products, error."""
    by = speed.groupby(["network", "question", "route"], sort=False)
    table = by.agg(
        seconds=("seconds", "median"),
        least=("seconds", "min"),
        most=("seconds", "max"),
        products=("products", "first"),
        error=("error", "median"),
    ).reset_index()
    ours = table[table["route"].str.startswith(OURS)].groupby(["network", "question"])["seconds"].first()
    first = ours.loc[list(zip(table["network"], table["question"], strict=True))].to_numpy()
    return table.assign(ratio=table["seconds"] / first)


def targets(speed: pd.DataFrame) -> pd.DataFrame:
    """Each aim on each network: the ratio of median seconds, its range over the repetitions, and whether it is met."""
    table, found = medians(speed), []
    for network, inside in speed.groupby("network", sort=False):
        for question, mine, peer, aim in TARGETS:
            times = inside[inside["question"] == question].pivot(index="repetition", columns="route", values="seconds")
            routes = table[(table["network"] == network) & (table["question"] == question)].set_index("route")
            own = routes.index.str.startswith(OURS)
            if peer == "fastest":
                peer = routes[~own & (routes["error"] < ANSWER)]["seconds"].idxmin()
            if mine == "as exact":
                mine = routes[own & (routes["error"] <= max(routes["error"][peer], EXACT))]["seconds"].idxmin()
            each = times[peer] / times[mine]
            ratio = times[peer].median() / times[mine].median()
            found.append(
                {"network": network, "question": question, "ours": mine, "peer": peer, "aim": aim, "ratio": ratio,
                 "least": each.min(), "most": each.max(), "met": "yes" if ratio >= aim else "no"}
            )  # fmt: skip
    return pd.DataFrame(found)


def lean(memory: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """Peak memory beside the leanest peer that is as fast (within a tenth), or the fastest where none is."""
    table = medians(speed)
    table = table[table["question"] == "top eigenvalue"].merge(memory, on=["network", "route"])
    found = []
    for network, inside in table.groupby("network", sort=False):
        peers = inside[~inside["route"].str.startswith(OURS) & (inside["error"] < ANSWER)]
        for mine in (OURS, f"{OURS}, graph built again"):
            me = inside[inside["route"] == mine].iloc[0]
            equal = peers[peers["seconds"] <= 1.1 * me["seconds"]]
            rival = equal.loc[equal["mebibytes"].idxmin()] if len(equal) else peers.loc[peers["seconds"].idxmin()]
            found.append(
                {"network": network, "ours": mine, "MiB": me["mebibytes"], "peer": rival["route"],
                 "peer's MiB": rival["mebibytes"], "peer's seconds over ours": rival["seconds"] / me["seconds"],
                 "memory ratio": me["mebibytes"] / rival["mebibytes"]}
            )  # fmt: skip
    return pd.DataFrame(found)


def slopes(growth: pd.DataFrame) -> pd.DataFrame:
    """Exponent of the cost in each axis (log-log least squares with its 95 % interval), and gradients beside paper."""
    found = []
    for (axis, quantity), inside in growth.groupby(["axis", "quantity"], sort=False):
        least = inside.groupby("value")["seconds"].min()
        fit = stats.linregress(np.log(least.index), np.log(least))
        half = stats.t.ppf(0.975, len(least) - 2) * fit.stderr
        last = inside[inside["value"] == inside["value"].max()]
        found.append(
            {"axis": axis, "quantity": quantity, "slope": fit.slope, "±": half,
             "gradients at the end": last["gradients"].median(), "on paper": last["predicted"].iloc[0]}
        )  # fmt: skip
    return pd.DataFrame(found)


def page(rows: dict[str, pd.DataFrame]) -> str:
    """Everything measured as one page."""
    speed, warm = rows["speed"], rows["warm"]
    parts = [
        "# Curvature, how fast",
        "Seconds are CPU seconds of one thread; medians over interleaved repetitions in one process, "
        f"{speed['repetition'].max() + 1} of them. Errors are relative to float64 references.",
        "## Aims", aims(speed),
        "## Every route", markdown(medians(speed)),
        "## Peak memory of the top eigenvalue", markdown(lean(rows["memory"], speed)), markdown(rows["memory"]),
        "## Warm start", warm_start(warm),
        "## Growth", markdown(slopes(rows["growth"])),
        "## Attack suite", suite(rows["attacks"]),
        "## Stability of maps, beside Quantus", stability(rows["stability"]),
        "## Sweeps", sweeps(rows["sweeps"]),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def aims(speed: pd.DataFrame) -> str:
    """The aims as a table: seconds of a peer over ours."""
    return markdown(targets(speed))


def warm_start(warm: pd.DataFrame) -> str:
    """What a warm start saves, as a table; the first checkpoint has nothing to start from."""
    found = []
    for (tolerance, every), saved in warm[warm["checkpoint"] > 0].groupby(["tolerance", "every"]):
        cold, few = saved["cold"].sum(), saved["warm"].sum()
        found.append(
            {"tolerance": tolerance, "SGD steps apart": every, "checkpoints": len(saved),
             "products, random start": cold, "products, last eigenvector": few, "aim": 2, "ratio": cold / few,
             "largest difference": saved["difference"].max(), "met": "yes" if cold / few >= 2 else "no"}
        )  # fmt: skip
    return markdown(pd.DataFrame(found))


def suite(rows: pd.DataFrame) -> str:
    """The attack suite on a batch: seconds of a loop over its images over the batch's, and passes beside paper."""
    found = []
    for network, inside in rows.groupby("network", sort=False):
        times = inside.pivot(index="repetition", columns="way", values="seconds")
        each = times["one by one"] / times["batch"]
        ratio, batch = times["one by one"].median() / times["batch"].median(), inside[inside["way"] == "batch"].iloc[0]
        found.append(
            {"network": network, "images": batch["images"], "seconds": times["batch"].median(), "aim": BATCHED,
             "ratio": ratio, "least": each.min(), "most": each.max(), "met": "yes" if ratio >= BATCHED else "no",
             **{name: batch[name] for name in ("forward", "forward on paper", "backward", "backward on paper")}}
        )  # fmt: skip
    return markdown(pd.DataFrame(found))


def stability(rows: pd.DataFrame) -> str:
    """Five measures of how stable maps are: seconds of Quantus over ours, and by how much the values differ at most."""
    found = []
    for network, inside in rows.groupby("network", sort=False):
        by = inside.groupby("repetition")
        theirs, ours = by["Quantus"].sum(), by["attrobust, all five"].first()
        ratio, first = theirs.median() / ours.median(), inside.iloc[0]
        found.append(
            {"network": network, "images": first["images"], "draws": first["draws"], "seconds": ours.median(),
             "aim": TOGETHER, "ratio": ratio, "least": (theirs / ours).min(), "most": (theirs / ours).max(),
             "met": "yes" if ratio >= TOGETHER else "no", "largest difference": inside["difference"].max(),
             "NaN in Quantus alone": inside["left out"].max() - inside["ours left out"].max()}
        )  # fmt: skip
    return markdown(pd.DataFrame(found))


#: way, way that it is held against, and the least or largest ratio of its seconds over that one's.
ENGINE = (
    ("one worker", "bare loop", "at most", 1.05),
    ("one worker", "two workers", "at least", 1.7),
    ("Dask, two workers", "two workers", "at most", 1.1),
)


def sweeps(rows: pd.DataFrame) -> str:
    """Runs by workers, as seconds of the wall clock of one way over another's."""
    times, found = rows.pivot(index="repetition", columns="way", values="seconds"), []
    for way, other, side, aim in ENGINE:
        each, ratio = times[way] / times[other], times[way].median() / times[other].median()
        met = ratio <= aim if side == "at most" else ratio >= aim
        found.append(
            {"way": way, "beside": other, "seconds": times[way].median(), "aim": f"{side} {aim}", "ratio": ratio,
             "least": each.min(), "most": each.max(), "met": "yes" if met else "no"}
        )  # fmt: skip
    return markdown(pd.DataFrame(found))


def write(folder: Path, rows: dict[str, pd.DataFrame]) -> None:
    """table.md and the figures."""
    (folder / "table.md").write_text(page(rows))
    speed = rows["speed"]
    draw.speed(folder, medians(speed), repetitions=speed["repetition"].max() + 1)
    draw.growth(folder, rows["growth"])


def markdown(table: pd.DataFrame) -> str:
    """A table as a page shows it."""
    texts = table.astype(object).map(_text)
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in texts.to_numpy())])


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.0f}" if value.is_integer() else f"{value:.3g}"
    return str(value)
