"""What to do, from what was measured: each piece of advice has its number, and where nothing is shown none is given.

A map is chosen on half of the pictures, its gain is told of the other half: the best of several would else look better
than it is. What counts is how much of a map stays under attack *beyond* what the maps of two different pictures share:
a map that is the same everywhere keeps everything and tells nothing. Of leading pixels, surely more must stay beyond
it; rank correlation must surely rise under attack, and not be shown to fall beyond what two pictures share.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from attrobust import checks
from attrobust.audit.measured import ATTACK, NOISE, OTHER
from attrobust.claims.rule import estimate
from attrobust.faithfulness import RANDOM

#: The share of leading pixels that must stay for a map to be called readable at a radius.
READABLE = 0.5


class Advice(NamedTuple):
    """One sentence, and the number that it rests on: a mean over pictures with its 95 % interval.

    Example:
        >>> Advice("map", "Use rollout.", 0.2, 0.1, 0.3, pictures=20, use="rollout").use
        'rollout'
    """

    about: str
    says: str
    value: float = np.nan  # NaN where pictures are too few to tell
    low: float = np.nan
    high: float = np.nan
    pictures: int = 0
    use: str = ""  # the map, or the way of training, that is to take the place of the one in use; empty for none


def stays(table: pd.DataFrame, name: str, *, measure: str = "top_k", beyond: bool = True) -> pd.Series:
    """By picture, how much of a map stays under attack; `beyond` what it has in common with another picture's map.

    Zero maps and pictures that no attack reached are left out.
    """
    wide = _wide(table[(table["map"] == name) & (table["zero"] == 0)], measure)
    return (wide[ATTACK] - wide[OTHER] * beyond).dropna()


def _wide(table: pd.DataFrame, measure: str = "top_k") -> pd.DataFrame:
    """A row per picture, a column per comparison."""
    wide = table.pivot(index="image", columns="compared", values=measure)
    return wide.reindex(columns=[ATTACK, NOISE, OTHER]).astype(float)


def advise(
    table: pd.DataFrame, *, curve: pd.DataFrame | None = None, worth: pd.DataFrame | None = None,
    retrained: pd.DataFrame | None = None,
) -> list[Advice]:  # fmt: skip
    """Which maps not to use, which to use in place of the first, up to which radius, and whether to train on.

    Args:
        table: of `audited`, of one radius; the first map in it is the one in use.
        curve: the same at several radii, of the first map alone; None for no advice on radii.
        worth: of `faithfulness.insertion_deletion`, of the same maps; None if that was not measured.
        retrained: of `retrained`, of the first map; None if no copy was trained on.

    Raises:
        ValueError: for a table without rows.

    Example:
        >>> from attrobust.audit.measured import ATTACK, NOISE, OTHER
        >>> rows = [(i, to, value) for i in range(4) for to, value in ((ATTACK, 0.2), (NOISE, 0.8), (OTHER, 0.1))]
        >>> table = pd.DataFrame(rows, columns=["image", "compared", "top_k"]).assign(map="saliency", radius=0.1)
        >>> advise(table.assign(zero=0, spearman=0.5, cosine=0.5))[0].says.split(",")[0]
        'Under attack 20% of the leading pixels of saliency stay'
    """
    checks.kind("table", table, pd.DataFrame)
    if not len(table):
        raise ValueError("table has no row; it must hold what an audit measured")
    names = list(table["map"].unique())
    found = [_fragile(table, names[0])]
    blank = [] if worth is None else list(_worthless(worth, names))
    useless = {name for name, _ in blank}
    found += [advice for _, advice in blank]
    found.append(_other(table, [name for name in names if name == names[0] or name not in useless]))
    found += [_radius(curve)] if curve is not None and len(curve) else []
    found += [_training(retrained)] if retrained is not None and len(retrained) else []
    numbers = ("value", "low", "high")  # never -0, which rounding may leave
    return [piece._replace(**{n: round(getattr(piece, n), 9) + 0.0 for n in numbers}) for piece in found]


def _fragile(table: pd.DataFrame, name: str) -> Advice:
    """How much more an attack moves than noise of the same size."""
    wide = _wide(table[(table["map"] == name) & (table["zero"] == 0)]).dropna(subset=[ATTACK, NOISE])
    if len(wide) < 2:
        return Advice("fragility", f"Too few maps of {name} were attacked to say anything.", pictures=len(wide))
    told = estimate(wide[NOISE] - wide[ATTACK], "value", "pictures")
    left, noisy = wide[ATTACK].mean(), wide[NOISE].mean()
    says = f"Under attack {left:.0%} of the leading pixels of {name} stay, under noise of the same size {noisy:.0%}"
    finds = "finds more than chance does" if told["low"] > 0 else "is not shown to find more than chance"
    return Advice("fragility", f"{says}: an attack {finds}.", **told)


def _worthless(worth: pd.DataFrame, names: Iterable[str]) -> Iterable[tuple[str, Advice]]:
    """Maps whose leading pixels are not shown to say more of what the network uses than pixels in random order."""
    gaps = worth.assign(gap=worth["insertion"] - worth["deletion"])
    gain = gaps.pivot(index="image", columns="attribution", values="gap")
    for name in (name for name in names if name in gain):
        told = estimate((gain[name] - gain[RANDOM]).dropna(), "value", "pictures")
        if told["low"] <= 0:
            says = f"Do not use {name}: insertion and deletion do not show it to be better than pixels in random order."
            yield name, Advice("worth", says, **told)


def _other(table: pd.DataFrame, names: list[str]) -> Advice:
    first, found = names[0], _best(table, names)
    if found is None:
        return Advice("map", "No other map was audited on enough pictures to be advised.")
    best, word, told = found
    use = best if word == "better" else ""
    if use:
        says = f"Use {best} in place of {first}: {told['value']:.0%} more of its leading pixels stay {_BEYOND}."
    elif word == "worse":
        says = f"Keep {first}: of {best}, the best of the others, fewer leading pixels stay {_BEYOND}."
    else:
        says = f"Keep {first}: no map is shown to be safer both by leading pixels and by rank correlation."
    return Advice("map", says, **told, use=use)


_BEYOND = "under attack, beyond what two pictures share"


def _training(table: pd.DataFrame) -> Advice:
    """Whether a map of a copy that was trained on is safer than that of the network as it is."""
    told = table.dropna(subset=["compared"])
    name, ways = told["map"].iloc[0], list(told["way"].unique())
    found = _best(told.assign(map=told["way"]), ways)
    if found is None:
        return Advice("training", "No copy was audited on enough pictures to be advised.")
    best, word, change = found
    before, after = (told.loc[told["way"] == way, "accuracy"].iloc[0] for way in (ways[0], best))
    use = best if word == "better" else ""
    if use:
        says = f"Train it on with {best}: {change['value']:.0%} more of the leading pixels of {name} stay {_BEYOND}"
        says += "." if np.isnan(before) else f"; accuracy {before:.3f} before, {after:.3f} after."
    else:
        says = f"No further training that was tried is shown to help {name}; the best was {best}."
    return Advice("training", says, **change, use=use)


def _best(table: pd.DataFrame, names: list[str]) -> tuple[str, str, dict[str, float]] | None:
    """The best rival of the first on one half of the pictures, and how they differ on the other half.

    The word is "better" by the rule above, "worse" where both measures surely keep less beyond what two pictures share,
    else "". None without a rival.
    """
    first, *rivals = names
    leading, ranks, under = (
        {name: stays(table, name, measure=measure, beyond=beyond) for name in names}
        for measure, beyond in (("top_k", True), ("spearman", True), ("spearman", False))
    )
    many = {n for n in names if min(_half(kept[n], half).size for kept in (leading, ranks) for half in (0, 1)) >= 2}
    rivals = [name for name in rivals if name in many]
    if not rivals or first not in many:
        return None
    best = max(rivals, key=lambda other: _half(leading[other], 0).mean())
    told, beyond, plain = (
        estimate(_half((kept[best] - kept[first]).dropna(), 1), "value", "pictures") for kept in (leading, ranks, under)
    )
    if told["low"] > 0 and plain["low"] > 0 and beyond["high"] >= 0:
        return best, "better", told
    return best, "worse" if max(told["high"], beyond["high"]) < 0 else "", told


def _half(values: pd.Series, half: int) -> pd.Series:
    """Every other picture: those that choose a map, 0, and those that its gain is told of, 1."""
    return values[values.index % 2 == half]


def _radius(curve: pd.DataFrame) -> Advice:
    """The largest radius at which, surely, half of the leading pixels stay, at it and at every smaller one."""
    name, rows = curve["map"].iloc[0], []
    for radius, part in curve[curve["compared"] == ATTACK].groupby("radius"):
        rows.append({"radius": radius} | estimate(part["top_k"].dropna(), "value", "pictures"))
    table = pd.DataFrame(rows).sort_values("radius").query("pictures >= 2")
    if table.empty:
        return Advice("radius", f"Too few maps of {name} were attacked to name a radius.")
    readable = table[(table["low"] > READABLE).cummin()]
    line = table.iloc[0] if readable.empty else readable.iloc[-1]
    size = f"{255 * line['radius']:.3g}/255"
    says = f"At no radius that was tried, from {size}, half of the leading pixels surely stay."
    if len(readable):
        size += ", the largest tried," if len(readable) == len(table) else ""
        says = f"Up to a change of {size} at least half of the leading pixels of {name} stay."
    return Advice("radius", says, line["value"], line["low"], line["high"], int(line["pictures"]))
