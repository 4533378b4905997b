"""Effects seed by seed: what changes from one end of an axis to the other in the runs of one seed in one cell."""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd

from attrobust.claims.rule import stays

PARTS = ("first", "last", "effect", "corrected", "counted", "slope")
#: What is found per seed and cell; beside `PARTS` the values along the axis and the (first, last) that need room.
FOUND = ("start", "end", *PARTS, "curve", "levels", "controlled", "left_out")

Ends = Sequence[float] | Sequence[str]


def effects(
    rows: pd.DataFrame, *, by: str, arm: Sequence[str], ends: Ends | None = None, log: bool = False
) -> pd.DataFrame:
    """One row per cell and seed: ends, effect, corrected effect, share of images counted at both ends, fitted change.

    Args:
        rows: a row per run: `arm`, `by`, `seed`, `value` (mean of the deciding metric), `comparable`; where known
            `images` (the metric image by image, as text, "nan" for one that did not count), `between` (similarity of
            maps of different images), `n` and `n_attacked` (images counted and attacked).
        by: the axis, numbers or (with `ends`) text.
        arm: columns that name a cell. A missing name reads as "".
        ends: first and last value of the axis; runs outside do not enter. Each cell's own extremes without it.
        log: log ratios of the ends instead of differences.

    Raises ValueError where columns lack, a cell has two runs of one seed at one place, or images and value disagree.

    Example:
        >>> rows = pd.DataFrame({"map": "saliency", "seed": [0, 0], "step_size": [0.1, 0.2], "value": [0.25, 0.75]})
        >>> effects(rows.assign(comparable=True), by="step_size", arm=["map"])["effect"].tolist()
        [0.5]
    """
    found = by_seed(rows, by, arm, ends, log)
    if log:
        found = found.assign(first=np.exp(found["first"]), last=np.exp(found["last"]))
    return found[[*arm, "by", "start", "end", "seed", *PARTS, "left_out"]]


def need(rows: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse rows that lack a column."""
    for column in columns:
        if column not in rows:
            raise ValueError(f"rows have no column {column!r}; they have {', '.join(map(str, rows.columns))}")


def listed(name: str, columns: Sequence[str]) -> None:
    """Refuse a text, or nothing, where columns are asked for by the argument of this name."""
    if isinstance(columns, str) or not len(columns):
        raise ValueError(f"{name} is {columns!r}; it must be a list of columns")


def named_cells(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with "" for what is missing: attention maps have no readout, and no group may lose them."""
    return rows.astype(object).where(rows.notna(), "")


def by_seed(rows: pd.DataFrame, by: str, arm: Sequence[str], ends: Ends | None, log: bool) -> pd.DataFrame:
    """What `effects` tells (first and last as logs, if `log`), and per seed the curve over the axis and its levels."""
    arm = list(arm)
    need(rows, [*arm, by, "seed", "value", "comparable"])
    number = pd.api.types.is_numeric_dtype(rows[by]) or not len(rows)
    if ends is None and not (number and (rows[by] > 0).all()):
        raise ValueError(f"{by!r} is no axis of numbers above 0; its two ends must be named")
    stays(rows)
    rows = rows.assign(**{name: named_cells(rows[[name]])[name] for name in arm})
    if rows.duplicated([*arm, by, "seed"]).any():
        raise ValueError(f"{', '.join(arm)} do not name a cell: it has two runs of one seed at one {by}")
    records = []
    told = [c for c in ("seed", by, "value", "comparable", "images", "between", "n", "n_attacked") if c in rows]
    for names, cell in rows.groupby(arm, sort=False):
        start, end = sorted((cell[by].min(), cell[by].max()), reverse=by == "batch_size") if ends is None else ends
        inside = cell[by].between(min(start, end), max(start, end)) if number else cell[by].isin(ends)
        seeds: dict[Hashable, list[dict[str, object]]] = {seed: [] for seed in sorted(cell["seed"].unique().tolist())}
        for run in cell.loc[inside, told].sort_values(by).to_dict("records"):
            seeds[run["seed"]].append(run)
        for seed, runs in seeds.items():
            kept = [run for run in runs if run["comparable"] and _measured(run)]
            record = dict(zip(arm, names, strict=True)) | {"by": by, "start": start, "end": end, "seed": seed}
            record |= _pair({run[by]: run for run in kept}, start, end, log, number)
            records.append(record | {"left_out": len(runs) - len(kept)})
    return pd.DataFrame(records, columns=[*arm, "by", "seed", *FOUND])


def _measured(run: dict) -> bool:
    """Whether a run has a number at all: one that collapsed has neither a value nor images."""
    return isinstance(run.get("images", ""), str) or run["value"] == run["value"]


def _pair(runs: dict[Hashable, dict], start: Hashable, end: Hashable, log: bool, number: bool) -> dict[str, object]:
    """One seed of one cell, its runs by their place on the axis; NaN where an end is lacking."""
    paired = start != end and start in runs and end in runs
    values, counted = {at: float(run["value"]) for at, run in runs.items()}, np.nan
    if paired and any(isinstance(run.get("images"), str) for run in runs.values()):
        values, counted = _of_images(runs, start, end)
    elif paired and {"n", "n_attacked"} <= {*runs[start]}:  # as few as there can be at both ends
        counted = max(0.0, sum(runs[at]["n"] / runs[at]["n_attacked"] for at in (start, end)) - 1)
    between = {at: float(run["between"]) for at, run in runs.items() if "between" in run and not log}
    corrected = np.nan
    if paired and between and max(between[start], between[end]) < 1:
        corrected = np.subtract(*((values[at] - between[at]) / (1 - between[at]) for at in (end, start)))
    if log:
        values = {at: np.log(value) if value > 0 else np.nan for at, value in values.items()}
    first, last = (values[start], values[end]) if paired else (np.nan, np.nan)
    slope, seen = np.nan, {at: value for at, value in values.items() if np.isfinite(value)}
    if number and len(seen) > 1:
        x = np.log(np.array([*seen], dtype=float))
        x -= x.mean()
        slope = x @ [*seen.values()] / (x @ x) * np.log(end / start)
    return {
        "first": first, "last": last, "effect": last - first, "counted": counted, "slope": float(slope),
        "corrected": float(corrected), "curve": values, "levels": [(first, last)],
        "controlled": not np.isnan([*between.values()]).all(),
    }  # fmt: skip


def _of_images(runs: dict[Hashable, dict], start: Hashable, end: Hashable) -> tuple[dict[Hashable, float], float]:
    """Every run's mean over the images that counted at both ends (and there), and their share."""
    images = {at: by_image(run["images"]) for at, run in runs.items()}
    if len({len(values) for values in images.values()}) > 1:
        raise ValueError(f"seed {runs[start]['seed']}: its runs must tell of the same images, each of all of them")
    both = np.isfinite(images[start]) & np.isfinite(images[end])
    values = {}
    for at, run in runs.items():
        seen = np.isfinite(images[at])
        if not np.isclose(_mean(images[at][seen]), run["value"], rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(f"seed {run['seed']}: 'value' is not the mean of 'images'")
        values[at] = _mean(images[at][seen & both])
    return values, float(both.mean())


def by_image(text: object) -> np.ndarray:
    """The deciding metric image by image, as a row tells it; none where it does not."""
    return np.array(text.split() if isinstance(text, str) else [], dtype=float)


def _mean(values: np.ndarray) -> float:
    """NaN of none."""
    return float(values.mean()) if len(values) else np.nan
