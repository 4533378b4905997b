"""What to do, from what was measured: each piece of advice has its number, and where nothing is shown none is given.

A map is chosen on half of the pictures, its gain is told of the other half: the best of several would else look better
than it is. What counts is how much of a map stays under attack *beyond* what the maps of two different pictures share:
a map that is the same everywhere keeps everything and tells nothing.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from attrobust import checks
from attrobust.audit.measured import ATTACK, NOISE, OTHER
from attrobust.claims.rule import estimate

#: The share of leading pixels that must stay for a map to be called readable at a radius.
READABLE = 0.5


class Advice(NamedTuple):
    """One sentence, and the number that it rests on: a mean over pictures with its 95 % interval."""

    about: str
    says: str
    value: float
    low: float
    high: float
    pictures: int


def stays(table: pd.DataFrame, name: str) -> pd.Series:
    """By picture, the share of a map's leading pixels that stay under attack beyond what another picture's map has.

    Zero maps and pictures that no attack reached are left out.
    """
    own = table[(table["map"] == name) & (table["zero"] == 0)]
    wide = own.pivot(index="image", columns="compared", values="top_k")
    return (wide[ATTACK] - wide[OTHER]).dropna()


def advise(table: pd.DataFrame, *, curve: pd.DataFrame | None = None) -> list[Advice]:
    """Which map to use in place of the first one, and up to which radius the first one can be read.

    Args:
        table: of `audited`, of one radius; the first map in it is the one in use.
        curve: the same at several radii, of the first map alone; None for no advice on radii.

    Raises:
        ValueError: for a table without rows.
    """
    checks.kind("table", table, pd.DataFrame)
    if not len(table):
        raise ValueError("table has no row; it must hold what an audit measured")
    names = list(table["map"].unique())
    kept = {name: stays(table, name) for name in names}
    found = [_fragile(table, names[0]), _other(names[0], kept)]
    return found + ([_radius(curve)] if curve is not None and len(curve) else [])


def _fragile(table: pd.DataFrame, name: str) -> Advice:
    """How much more an attack moves than noise of the same size."""
    wide = table[table["map"] == name].pivot(index="image", columns="compared", values="top_k")
    told = estimate((wide[NOISE] - wide[ATTACK]).dropna(), "value", "pictures")
    left, noisy = wide[ATTACK].mean(), wide[NOISE].mean()
    says = f"Under attack {left:.0%} of the leading pixels of {name} stay, under noise of the same size {noisy:.0%}"
    says += ": its maps can be manipulated." if told["low"] > 0 else ": the attack found no more than noise does."
    return Advice("fragility", says, **told)


def _other(name: str, kept: dict[str, pd.Series]) -> Advice:
    rivals = [other for other in kept if other != name]
    halves = [{n: values[values.index % 2 == half] for n, values in kept.items()} for half in (0, 1)]
    if not rivals or min(len(values) for half in halves for values in half.values()) < 2:
        return Advice("map", "No other map was audited on enough pictures to be advised.", np.nan, np.nan, np.nan, 0)
    best = max(rivals, key=lambda other: halves[0][other].mean())
    told = estimate((halves[1][best] - halves[1][name]).dropna(), "value", "pictures")
    beyond = ", beyond those that two pictures share"
    if told["low"] > 0:
        says = f"Use {best} in place of {name}: {told['value']:.0%} more of its leading pixels stay under attack{beyond}."
    elif told["high"] < 0:
        says = f"Keep {name}: of {best}, the best of the others, fewer leading pixels stay under attack{beyond}."
    else:
        says = f"No map is shown to be safer than {name}: the interval of the best of the others, {best}, holds zero."
    return Advice("map", says, **told)


def _radius(curve: pd.DataFrame) -> Advice:
    """The largest radius at which, surely, half of the leading pixels stay, at it and at every smaller one."""
    name, rows = curve["map"].iloc[0], []
    for radius, part in curve[curve["compared"] == ATTACK].groupby("radius"):
        rows.append({"radius": radius} | estimate(part["top_k"].dropna(), "value", "pictures"))
    table = pd.DataFrame(rows).sort_values("radius")
    readable = table[(table["low"] > READABLE).cummin()]
    if readable.empty:
        line = table.iloc[0]
        says = (
            f"At no radius that was tried, from {255 * line['radius']:.3g}/255, half of the leading pixels surely stay."
        )
    else:
        line = readable.iloc[-1]
        says = f"Up to a change of {255 * line['radius']:.3g}/255 at least half of the leading pixels of {name} stay."
    return Advice("radius", says, line["value"], line["low"], line["high"], int(line["pictures"]))
