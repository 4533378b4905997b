"""What is paid against what it buys: numbered points, and the front of those that no other beats."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attrobust.figures.style import COLORS, WIDTH, drawing, fitting, label, legend, outer, panels


@drawing
def front(
    table: pd.DataFrame, *, price: str, worth: str, name: str, hue: str, by: str, hollow: Mapping[str, str],
    labels: tuple[str, str], log: bool = False,
) -> Figure:  # fmt: skip
    """One numbered point per row, a panel per value of `by`; a dashed line joins the rows of the column `front`.

    `worth` has an interval in the columns `low` and `high`. The numbers are those of the names in their order in the
    table, told by the legend. `hollow` names a column of booleans and says what it means: such points are not filled.
    `labels` are those of both axes; the price is logarithmic if `log`, and points of one price then stand side by side.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> table = pd.DataFrame({"price": [1.0, 3.0], "gain": [0.1, 0.2], "penalty": ["none", "ssr"]})
        >>> table = table.assign(low=0.0, high=0.3)
        >>> table = table.assign(group=["saliency", "rollout"], dataset="digits", front=True, diverged=False)
        >>> how = {"hollow": {"diverged": "some runs diverged"}, "labels": ("passes", "gain")}
        >>> figure = front(table, price="price", worth="gain", name="penalty", hue="group", by="dataset", **how)
        >>> figure.axes[0].get_title()
        'digits'
        >>> plt.close(figure)
    """
    names = list(dict.fromkeys(table[name]))
    ((column, meaning),) = hollow.items()
    kinds = table.drop_duplicates(name).set_index(name)[hue]
    dot = {"marker": "o", "linestyle": "none"}
    looks = {f"{i} {label(each)}": dot | {"color": COLORS[kinds[each]]} for i, each in enumerate(names, start=1)}
    looks |= {meaning: dot | {"color": "#333333", "markerfacecolor": "white"}}
    looks |= {"front": {"color": COLORS["theory"], "linestyle": "--", "linewidth": 0.8}}
    figure, parts = panels(table, by, ((WIDTH - 0.3) / 2, 0.3, 3.0), least=WIDTH)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.2 * -(-len(looks) // fitting(width, looks)))
    for axis, value, inside in parts:
        inside = inside.assign(place=_beside(inside[price]) if log else inside[price])
        for row in inside.to_dict("records"):
            color = COLORS[row[hue]]
            axis.plot([row["place"]] * 2, [row["low"], row["high"]], color=color, linewidth=0.8, alpha=0.6)
            face = "white" if row[column] else color
            axis.plot(row["place"], row[worth], "o", color=color, markerfacecolor=face, markersize=5)
        best = inside[inside["front"]].sort_values(price)
        axis.plot(best["place"], best[worth], linestyle="--", linewidth=0.8, color=COLORS["theory"], zorder=0)
        axis.set(xlabel=labels[0], title=label(value), ylabel=outer(axis, labels[1]))
        if log:
            axis.set_xscale("log")
            ticks = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
            low, high = axis.get_xlim()
            axis.set_xticks([t for t in ticks if low <= t <= high], [f"{t:g}" for t in ticks if low <= t <= high])
            axis.minorticks_off()
        offsets = _offsets(axis, inside[["place", worth]].to_numpy(), best[["place", worth]].to_numpy())
        for row, offset in zip(inside.to_dict("records"), offsets, strict=True):
            at = {"xytext": offset, "textcoords": "offset points", "fontsize": 7, "color": "#333333"}
            at |= {"ha": "center", "va": "center"}
            axis.annotate(str(names.index(row[name]) + 1), (row["place"], row[worth]), **at)
    legend(figure, looks)
    return figure


def _offsets(axis: Axes, points: np.ndarray, line: np.ndarray) -> list[tuple[float, float]]:
    """Where the number of each point stands, in points from it: the place about it farthest from points and line."""
    to_points = 72 / axis.figure.dpi  # before the layout, near enough to tell what would overlap
    dots, corners = (axis.transData.transform(part) * to_points for part in (points, line))
    taken = [dot + np.array([0, up]) for dot in dots for up in (-9, 0, 9)]
    taken += [start + part * (end - start) for start, end in pairwise(corners) for part in np.linspace(0, 1, 30)]
    turns = np.pi * np.array([1, 3, 7, 5, 0, 4, 2, 6]) / 4
    ways = [far * np.array([9 * np.cos(turn), 8 * np.sin(turn)]) for far in (1, 1.6) for turn in turns]
    offsets = []
    for number, dot in enumerate(dots):
        others = [*np.delete(dots, number, axis=0)]
        room = [min(_nearest(dot + w, taken), 7) - max(0, np.hypot(*w) - _nearest(dot + w, others)) for w in ways]
        best = ways[int(np.argmax(room))]
        taken.append(dot + best)
        offsets.append((float(best[0]), float(best[1])))
    return offsets


def _nearest(place: np.ndarray, others: list[np.ndarray]) -> float:
    return min((float(np.hypot(*(other - place))) for other in others), default=np.inf)


def _beside(prices: pd.Series) -> pd.Series:
    """Places of points on a logarithmic axis: those of one price stand side by side about it."""
    among = prices.groupby(prices)
    return prices * 1.12 ** (among.cumcount() - (among.transform("size") - 1) / 2)
