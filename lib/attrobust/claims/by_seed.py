"""Effects seed by seed: what changes from one end of an axis to the other in the runs of one seed in one cell."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

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
    if not rows["comparable"].isin([True, False]).all():
        raise ValueError("column 'comparable' must be True or False in every row")
    rows = rows.assign(**{name: named_cells(rows[[name]])[name] for name in arm})
    if rows.duplicated([*arm, by, "seed"]).any():
        raise ValueError(f"{', '.join(arm)} do not name a cell: it has two runs of one seed at one {by}")
    records = []
    for names, cell in rows.groupby(arm, sort=False):
        start, end = sorted((cell[by].min(), cell[by].max()), reverse=by == "batch_size") if ends is None else ends
        for seed, runs in cell.groupby("seed"):
            inside = runs[runs[by].between(min(start, end), max(start, end)) if number else runs[by].isin(ends)]
            kept = inside[inside["comparable"].astype(bool)].set_index(by).sort_index()
            record = dict(zip(arm, names, strict=True)) | {"by": by, "start": start, "end": end, "seed": seed}
            record |= _pair(kept, start, end, log, number) | {"left_out": len(inside) - len(kept)}
            records.append(record)
    return pd.DataFrame(records, columns=[*arm, "by", "seed", *FOUND])


def _pair(runs: pd.DataFrame, start: float | str, end: float | str, log: bool, number: bool) -> dict[str, object]:
    """One seed of one cell, its runs indexed by the axis; NaN where an end is lacking."""
    paired = start != end and start in runs.index and end in runs.index
    values, counted = runs["value"].astype(float), np.nan
    told = runs["images"].notna() if "images" in runs else pd.Series(False, runs.index)
    if paired and told.any():
        values, counted = _of_images(runs, told, start, end)
    elif paired and {"n", "n_attacked"} <= {*runs}:  # as few as there can be at both ends
        shares = runs["n"] / runs["n_attacked"]
        counted = max(0.0, shares[start] + shares[end] - 1)
    corrected = pd.Series(np.nan, runs.index)
    if "between" in runs and not log:
        between = runs["between"].astype(float)
        corrected = ((values - between) / (1 - between)).where(between < 1)
    values = np.log(values.where(values > 0)) if log else values
    first, last = (values[start], values[end]) if paired else (np.nan, np.nan)
    slope, seen = np.nan, values[np.isfinite(values)]
    if number and len(seen) > 1:
        x = np.log(seen.index.to_numpy(float))
        x -= x.mean()
        slope = float(x @ seen.to_numpy() / (x @ x) * np.log(end / start))
    return {
        "first": first, "last": last, "effect": last - first, "counted": counted, "slope": slope,
        "corrected": corrected[end] - corrected[start] if paired else np.nan, "curve": values.to_dict(),
        "levels": [(first, last)], "controlled": not log and "between" in runs and bool(runs["between"].notna().any()),
    }  # fmt: skip


def _of_images(runs: pd.DataFrame, told: pd.Series, start: object, end: object) -> tuple[pd.Series, float]:
    """Every run's mean over the images that counted at both ends (and there), and their share."""
    if not told.all() or len({len(text.split()) for text in runs["images"]}) > 1:
        raise ValueError(f"seed {runs['seed'].iloc[0]}: its runs must tell of the same images, each of all of them")
    images = np.array([text.split() for text in runs["images"]], dtype=float)
    seen = np.isfinite(images)
    with np.errstate(invalid="ignore"):
        own = np.where(seen, images, 0).sum(1) / seen.sum(1)
        value = runs["value"].to_numpy(float)
        if not np.isclose(own, value, rtol=1e-3, atol=1e-3, equal_nan=True).all():
            raise ValueError(f"seed {runs['seed'].iloc[0]}: 'value' is not the mean of 'images'")
        both = seen[runs.index.get_loc(start)] & seen[runs.index.get_loc(end)]
        values = np.where(seen & both, images, 0).sum(1) / (seen & both).sum(1)
    return pd.Series(values, runs.index), float(both.mean())
