"""A specification curve: every way of asking one question, beside the answer that it gives."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from attrobust.figures.style import COLORS, WIDTH, drawing, label, legend

#: Colour and marker of a cell by how its word begins.
WORDS: dict[str, dict[str, object]] = {
    "up": {"color": COLORS["up"], "marker": "^"},
    "leans up": {"color": COLORS["up"], "marker": "^", "markerfacecolor": "white"},
    "down": {"color": COLORS["down"], "marker": "v"},
    "leans down": {"color": COLORS["down"], "marker": "v", "markerfacecolor": "white"},
    "no change": {"color": COLORS["no change"], "marker": "s"},
    "unclear": {"color": COLORS["no change"], "marker": "o", "markerfacecolor": "white"},
    "no room": {"color": COLORS["no change"], "marker": "x"},
}
#: Those of a correlation look as the leanings do.
WORDS |= {"positive": WORDS["leans up"], "negative": WORDS["leans down"]}

#: Inches from column to column, and of the widest row of them: more columns stand closer.
PITCH, WIDEST = 0.16, WIDTH - 1.9


@drawing
def specification(
    table: pd.DataFrame, *, choices: Sequence[str], effect: str, first: Sequence[str] = (), margin: float = 0.05,
    chance: pd.DataFrame | None = None,
) -> Figure:  # fmt: skip
    """Effects of cells in ascending order with their intervals, over a matrix of the choices that each stands for.

    The table is that of `claims.cells`: `effect`, `low`, `high`, `word` and the columns of `choices`, each value of
    which is a line of the matrix; values named in `first` come first. `effect` labels the upper axis; the grey band is
    the margin of "no change", a larger marker a cell of the family (one with a `p_holm`). `chance` is the table of
    `claims.chance_curve` of the same cells; dotted lines bound its band.

    Raises:
        ValueError: `chance` that is of other cells.

    Example:
        >>> table = pd.DataFrame({"map": ["raw", "rollout"], "effect": [0.1, -0.1], "low": -0.2, "high": 0.2})
        >>> figure = specification(table.assign(word="unclear", p_holm=np.nan), choices=["map"], effect="gain")
        >>> figure.axes[0].get_ylabel()
        'gain'
        >>> plt.close(figure)

    Reference: Simonsohn, Simmons and Nelson 2020, "Specification curve analysis".
    """
    table = table.dropna(subset="effect").sort_values("effect", kind="stable", ignore_index=True)
    lines = [(name, value) for name in choices for value in _ordered(table[name], first)]
    pitch = min(PITCH, WIDEST / max(1, len(table)))
    shrunk = (pitch / PITCH) ** 0.5  # markers stay apart longer than they would at the scale of the columns
    size = max(6.0, 1.9 + pitch * len(table)), 2.7 + 0.19 * len(lines)
    how = {"sharex": True, "gridspec_kw": {"height_ratios": [2.3, 0.19 * len(lines)]}}
    figure, (above, below) = plt.subplots(2, 1, figsize=size, **how)
    above.axhspan(-margin, margin, color="#eeeeee", zorder=0)
    above.axhline(0, color=COLORS["theory"], linewidth=0.8)
    looks = {}
    if chance is not None:
        own = chance["effect"].to_numpy(float)
        if len(own) != len(table) or not np.allclose(own, table["effect"].astype(float), atol=1e-6):
            raise ValueError("chance is of other cells; it must have the effects of the table, of five seeds or more")
        looks["step labels exchanged (95 %)"] = {"color": COLORS["noise"], "linestyle": ":", "linewidth": 1.2}
        for edge in ("low", "high"):
            above.plot(chance["place"], chance[edge], **looks["step labels exchanged (95 %)"])
    seen = [look(word) for word in table["word"]]
    for place, (row, name) in enumerate(zip(table.itertuples(), seen, strict=True)):
        size = (7 if np.isfinite(row.p_holm) else 4) * shrunk
        above.plot([place, place], [row.low, row.high], color=WORDS[name]["color"], linewidth=1.2)
        above.plot(place, row.effect, **WORDS[name], markersize=size, linestyle="none")
    heights = {line: -i - list(choices).index(line[0]) * 0.6 for i, line in enumerate(lines)}
    for (name, value), height in heights.items():
        places = np.flatnonzero(table[name] == value)
        colors = [WORDS[seen[place]]["color"] for place in places]
        below.scatter(places, np.full(len(places), height), c=colors, s=9 * shrunk, linewidths=0)
    below.set_yticks(list(heights.values()), [label(value) for _, value in lines], fontsize=7)
    above.set_ylabel(effect)
    below.set_xticks([])
    below.set_xlabel("cells, in the order of their effects")
    below.grid(axis="x", visible=False)
    below.set_xlim(-1, len(table))
    above.grid(axis="x", visible=False)
    looks = {name: WORDS[name] | {"linestyle": "none"} for name in WORDS if name in seen} | looks
    legend(figure, looks)
    return figure


def _ordered(values: pd.Series, first: Sequence[str]) -> list:
    found = list(dict.fromkeys(values))
    return sorted(found, key=lambda value: (list(first).index(value) if value in first else len(first), str(value)))


def look(word: str) -> str:
    """The look of a word: of "unclear (control)" that of "unclear"."""
    return next((name for name in WORDS if word == name), "unclear")
