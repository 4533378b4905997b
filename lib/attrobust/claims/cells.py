"""How a claim is tested: cell by cell, each with one deciding metric. The rule was fixed before the runs it judges.

*Cell*: one choice of everything but seed and axis (`arm` names it), a run of each seed at each value of the axis.
*Effect*: metric at the largest minus at the smallest value of the axis, seed by seed (batch sizes: reversed, so that
"up" points to more noise of SGD); its mean, 95 % Student-t interval and exact two-sided sign-flip p over seeds.
*Words*, the first that applies: `no pair`, `too few seeds` (below 5), `unclear (counted)` (under 90 % of the images
counted at both ends), `no room` (both ends beyond one limit of `room`), `no change` (interval inside the margin), then,
for an interval on one side of zero, `unclear (control)` (the corrected effect has another sign), `up` / `down` (p < .05
after Holm over the family, 10 seeds or more), `leans up` / `leans down`; and `unclear`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from attrobust.claims import rule
from attrobust.claims.by_seed import FOUND, Ends, by_seed, named_cells, need

NO_PAIR, TOO_FEW, COUNTED, CONTROL = "no pair", "too few seeds", "unclear (counted)", "unclear (control)"
NO_ROOM, NO_CHANGE, UNCLEAR = "no room", "no change", "unclear"
FEWEST_SEEDS, HEADLINE_SEEDS, MOST_SEEDS = 5, 10, 20  # for a word, for `up` and `down`, for all sign patterns
COUNTED_SHARE = 0.9
ALPHA = round(1 - rule.CONFIDENCE, 9)
#: Margin of `no change`: of a difference, and of a log ratio.
MARGIN, RATIO_MARGIN = 0.05, float(np.log(1.1))
ROOM = (0.2, 0.9)

#: Columns of a table beyond those that name its cells and ends.
TOLD = ["seeds", "first", "last", "effect", "low", "high", "half", "p", "p_holm", "slope", "monotone", "counted"]
TOLD += ["corrected", "corrected_low", "corrected_high", "word", "censored", "left_out", "without_pair", "margin"]
TOLD += ["effect_all", "low_all", "high_all", "per_seed", "of_seeds"]


def cells(
    rows: pd.DataFrame, *, by: str, arm: Sequence[str], family: Sequence[Hashable] | str, margin: float | None = None,
    room: tuple[float, float] | None = ROOM, log: bool = False, ends: Ends | None = None,
) -> pd.DataFrame:  # fmt: skip
    """One row per cell, ready for CSV: ends, effect, interval, p, word; seeds and runs that did not enter are counted.

    Args:
        rows, by, arm, ends, log: as in `effects`. Log ratios have no limits of room; their ends are geometric means.
        family: the cells over which Holm goes, tuples in the order of `arm`, or the name of a column of booleans. A
            cell of it without runs is a row, too. Cells outside say at most `leans`.
        margin: of `no change`; 0.05, or log 1.1 for log ratios.
        room: lower and upper limit beyond which a metric cannot move.

    `half` is the half-width of the interval; `effect_all`, `low_all`, `high_all` are the effect and its interval with
    the `left_out` runs; `corrected`, `corrected_low`, `corrected_high` those of the corrected metric; `without_pair`
    counts seeds that lack an end; `per_seed` holds the effects in order of seed, `of_seeds` their seeds.

    Raises:
        ValueError: a column `family` that is not True or False, and the same in all rows of a cell; a margin below 0,
            or limits of room that do not rise.

    Example:
        >>> rows = pd.DataFrame([(s, h, 0.4 + 2 * h + 0.01 * s * h) for s in range(10) for h in (0.1, 0.2)])
        >>> rows = rows.set_axis(["seed", "step_size", "value"], axis=1).assign(comparable=True, map="saliency")
        >>> table = cells(rows, by="step_size", arm=["map"], family=["saliency"])
        >>> table[["seeds", "p_holm", "word"]].to_numpy().tolist()
        [[10, 0.001953125, 'up']]
    """
    if isinstance(family, str):
        need(rows, [family, *arm])
        member = rule.marks(rows, family).groupby([named_cells(rows)[c] for c in arm], sort=False).agg(["min", "max"])
        if (member["min"] != member["max"]).any():
            raise ValueError(f"column {family!r} says of one cell that it is in the family and that it is not")
        family = member.index[member["min"]].tolist()
    return _tabled(rows, lambda r: by_seed(r, by, arm, ends, log), arm, family, margin, room, log)


def contrast(
    rows: pd.DataFrame, *, by: str, arm: Sequence[str], of: Mapping[str, object], minus: Mapping[str, object],
    family: Sequence[Hashable], margin: float | None = None, room: tuple[float, float] | None = ROOM,
    log: bool = False, ends: Ends | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Effect of one cell minus effect of another, seed by seed; columns and words are those of `cells`.

    `of` and `minus` give the same columns of `arm`, in which the two cells differ; they are paired in the others. Here
    `first` is the effect of `minus` and `last` that of `of` (ratios, if `log`). Without room in one of the two cells
    there is none; the smaller share of counted images counts. In `family` the columns of `of` read "one - other".

    Raises:
        ValueError: `of` and `minus` that do not give the same columns of `arm`.

    Example:
        >>> grid = [(s, h, m) for s in range(5) for h in (0.1, 0.2) for m in ("raw", "saliency")]
        >>> rows = pd.DataFrame(grid, columns=["seed", "step_size", "map"]).assign(comparable=True)
        >>> rows["value"] = 0.4 + rows["step_size"] * (rows["map"] == "saliency")
        >>> found = contrast(rows, by="step_size", arm=["map"], of={"map": "saliency"}, minus={"map": "raw"}, family=[])
        >>> found[["map", "effect", "word"]].round(3).to_numpy().tolist()
        [['saliency - raw', 0.1, 'leans up']]
    """
    if not of or set(of) != set(minus) or not set(of) <= set(arm):
        raise ValueError(f"of has {[*of]} and minus has {[*minus]}; both must give the same columns of {[*arm]}")
    rest = [name for name in arm if name not in of]
    joint = {c: of[c] if of[c] == minus[c] else f"{of[c] or 'none'} - {minus[c] or 'none'}" for c in of}

    def gaps(runs: pd.DataFrame) -> pd.DataFrame:
        need(runs, arm)
        named = named_cells(runs)
        sides = [runs[np.all([named[c] == value for c, value in side.items()], axis=0)] for side in (of, minus)]
        parts = [by_seed(side, by, arm, ends, log).drop(columns=[*of]) for side in sides]
        both = parts[0].merge(parts[1], on=[*rest, "by", "seed"], how="outer", suffixes=("", "_minus"))
        records = []
        for seed in both.to_dict("records"):
            one, other = ({name: seed[f"{name}{side}"] for name in FOUND} for side in ("", "_minus"))
            records.append({name: seed[name] for name in (*rest, "by", "seed")} | joint | _gap(one, other))
        return pd.DataFrame(records, columns=[*arm, "by", "seed", *FOUND])

    return _tabled(rows, gaps, arm, family, margin, room, log)


def holm(table: pd.DataFrame, *, arm: Sequence[str], family: Sequence[Hashable]) -> pd.DataFrame:
    """The table with p after Holm over the family, and `up` or `down` where `leans` has become more, or the reverse.

    Tables of several axes have one family if they are concatenated first: "by" is a column that `arm` can name. A cell
    of the family that the table lacks becomes a row of the word `no pair`, and counts in Holm as p = 1, as does one
    without p. Cells outside the family have no `p_holm`.

    Raises:
        ValueError: a family that names a cell twice, or cells that `arm` does not tell apart.

    Example:
        >>> table = pd.DataFrame({"map": ["raw", "rollout"], "p": [0.01, 0.04], "seeds": 10, "word": "leans up"})
        >>> found = holm(table.assign(by="step_size", start=1, end=2), arm=["map"], family=["raw", "rollout"])
        >>> found[["p_holm", "word"]].to_numpy().tolist()
        [[0.02, 'up'], [0.04, 'up']]
    """
    keys, arm = [name if isinstance(name, tuple) else (name,) for name in family], list(arm)
    if len(set(keys)) != len(keys) or any(len(key) != len(arm) for key in keys):
        raise ValueError(f"family is {[*family]}; it must name each cell once, by {', '.join(arm)}")
    present = set(named_cells(table[arm]).itertuples(index=False, name=None))
    empty = {"seeds": 0, "monotone": False, "word": NO_PAIR, "censored": False, "left_out": 0, "without_pair": 0}
    empty |= {"per_seed": "", "of_seeds": ""}
    empty |= {c: table[c].iloc[0] for c in ("by", "start", "end") if c not in arm and table[c].nunique() == 1}
    lacking = [dict(zip(arm, key, strict=True)) | empty for key in keys if key not in present]
    table = pd.DataFrame([*table.to_dict("records"), *lacking], columns=table.columns)
    told = named_cells(table[arm]).itertuples(index=False, name=None)
    inside = np.array([key in set(keys) for key in told], dtype=bool)
    if inside.sum() != len(keys):
        raise ValueError(f"{', '.join(arm)} do not name the cells of the family apart")
    p = np.full(len(table), np.nan)
    p[inside] = rule.after_holm(table["p"].astype(float).fillna(1)[inside])
    firm = (p < ALPHA) & (table["seeds"].to_numpy(int) >= HEADLINE_SEEDS)
    sides = table["word"].astype(str).str.removeprefix("leans ")
    words = sides.where(firm | ~sides.isin(["up", "down"]), "leans " + sides)
    return table.assign(p_holm=p, word=words)


def sign_flip(per_seed: Sequence[float] | np.ndarray) -> float:
    """Two-sided exact p of the mean: the share of all sign patterns with a mean as far from zero (up to rounding).

    Raises:
        ValueError: more than 20 effects, or one that is NaN, infinite or of 1e300 and more.

    Example:
        >>> sign_flip([0.1, 0.2, 0.3, 0.4, 0.5])
        0.0625
    """
    if not len(per_seed):
        return np.nan
    if not np.abs(per_seed).max() < 1e300:  # NaN too
        raise ValueError(f"per_seed is {[*per_seed]}; it must hold finite numbers, below 1e300 in size")
    sums = np.abs(pattern_sums(per_seed))
    return float((sums >= abs(np.sum(per_seed)) - 1e-12 * np.abs(per_seed).sum()).mean())


def pattern_sums(per_seed: Sequence[float] | np.ndarray) -> np.ndarray:
    """Sum of the effects under each of the 2^n patterns of signs."""
    if len(per_seed) > MOST_SEEDS:
        raise ValueError(f"{len(per_seed)} seeds; all patterns of signs are counted for at most {MOST_SEEDS}")
    sums = np.zeros(1)
    for effect in per_seed:
        sums = np.concatenate([sums + effect, sums - effect])
    return sums


def _gap(one: Mapping[str, object], other: Mapping[str, object]) -> dict[str, object]:
    """What is found of `one` minus what is found of `other`; a side that lacks is NaN throughout."""
    lone = [side for side in (one, other) if not isinstance(side["curve"], dict)]
    if lone:
        return (other if lone[0] is one else one) | {"first": np.nan, "last": np.nan, "effect": np.nan}
    if (one["start"], one["end"]) != (other["start"], other["end"]):
        ranges = " and ".join(f"{side['start']} -> {side['end']}" for side in (one, other))
        raise ValueError(f"cells that are compared must have the same ends; they have {ranges}")
    gap = {name: one[name] - other[name] for name in ("effect", "corrected", "slope")}
    curve = {at: value - other["curve"][at] for at, value in one["curve"].items() if at in other["curve"]}
    return one | gap | {
        "first": other["effect"], "last": one["effect"], "counted": float(np.fmin(one["counted"], other["counted"])),
        "curve": curve, "levels": one["levels"] + other["levels"], "left_out": one["left_out"] + other["left_out"],
        "controlled": one["controlled"] or other["controlled"],
    }  # fmt: skip


def _tabled(
    rows: pd.DataFrame, seeds_of: Callable[[pd.DataFrame], pd.DataFrame], arm: Sequence[str],
    family: Sequence[Hashable], margin: float | None, room: tuple[float, float] | None, log: bool,
) -> pd.DataFrame:  # fmt: skip
    """The table of `cells` from what `seeds_of` makes of comparable runs; beside it what it makes of all."""
    need(rows, ["comparable"])
    tables, arm, room = [], list(arm), None if log else room
    margin = (RATIO_MARGIN if log else MARGIN) if margin is None else margin
    if not margin >= 0 or (room and not room[0] < room[1]):
        raise ValueError(f"margin is {margin}, room is {room}; margin must be at least 0, and room must rise")
    found = seeds_of(rows)
    for seeds in (found, seeds_of(rows.assign(comparable=True)) if found["left_out"].any() else found):
        names = [*arm, "by", "start", "end"]
        records = [
            dict(zip(arm, key, strict=True)) | part.iloc[0][names[-3:]].to_dict() | _cell(part, margin, room, log)
            for key, part in seeds.groupby(arm, sort=False)
        ]
        tables.append(pd.DataFrame(records, columns=[*names, *TOLD]))
    for name in ("effect", "low", "high"):
        tables[0][f"{name}_all"] = tables[1][name].where(tables[0]["left_out"] > 0)
    return holm(tables[0], arm=arm, family=family)


def _cell(seeds: pd.DataFrame, margin: float, room: tuple[float, float] | None, log: bool) -> dict[str, object]:
    """One row of the table, before Holm: p_holm is NaN, and `leans` the most that is said."""
    found = seeds[np.isfinite(seeds["effect"].astype(float))]
    told = {name: float(np.mean(found[name])) if len(found) else np.nan for name in ("first", "last", "effect")}
    told["seeds"], per_seed = len(found), found["effect"].to_numpy(float)
    told["low"], told["high"] = rule.interval(per_seed)
    told |= {"half": (told["high"] - told["low"]) / 2, "p": sign_flip(per_seed), "slope": found["slope"].mean()}
    means = pd.DataFrame(found["curve"].tolist()).mean().sort_index().dropna().to_numpy()
    told["monotone"] = len(means) > 1 and bool((np.diff(means) >= 0).all() or (np.diff(means) <= 0).all())
    told["counted"] = seeds["counted"].astype(float).mean()
    corrected = found["corrected"].to_numpy(float)
    told["corrected"] = float(np.mean(corrected)) if len(corrected) else np.nan
    told["corrected_low"], told["corrected_high"] = (
        rule.interval(corrected) if np.isfinite(corrected).all() and len(corrected) else (np.nan, np.nan)
    )
    levels = np.mean(found["levels"].tolist(), axis=0) if len(found) else np.empty((0, 2))
    lower, upper = room or (-np.inf, np.inf)
    below, above = levels < lower, levels > upper
    stuck = bool((below.all(axis=1) | above.all(axis=1)).any())
    told |= {"censored": bool((below | above).any()) and not stuck, "left_out": int(seeds["left_out"].sum())}
    told["word"] = _word(told, margin, stuck, bool(found["controlled"].any()))
    if log:
        told |= {"first": np.exp(told["first"]), "last": np.exp(told["last"])}
    told |= {"without_pair": len(seeds) - len(found), "margin": margin}
    found = found.sort_values("seed")
    told |= {"per_seed": " ".join(f"{v:.6g}" for v in found["effect"]), "of_seeds": " ".join(map(str, found["seed"]))}
    return told | {"p_holm": np.nan}


def _word(told: Mapping[str, float], margin: float, stuck: bool, controlled: bool) -> str:
    """The first word that applies; after Holm, some that lean are `up` or `down`."""
    if told["seeds"] < FEWEST_SEEDS:
        return TOO_FEW if told["seeds"] else NO_PAIR
    if told["counted"] < COUNTED_SHARE - 1e-9:
        return COUNTED
    if stuck:
        return NO_ROOM
    if -margin < told["low"] and told["high"] < margin:
        return NO_CHANGE
    if told["low"] <= 0 <= told["high"]:
        return UNCLEAR
    if controlled and np.sign(told["corrected"]) != np.sign(told["effect"]):
        return CONTROL
    return "leans up" if told["low"] > 0 else "leans down"
