"""A forest of effects: one choice at a time, each beside the base from which it differs in that choice alone."""

import textwrap
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from attrobust.figures.specification import WORDS, look
from attrobust.figures.style import COLORS, WIDTH, drawing, label, legend

#: How the effect in the base is drawn.
BASE = {"color": "#333333", "marker": "|", "markersize": 9, "markeredgewidth": 1.2}
#: How an effect is drawn, by its word; without one, as "effect". Runs that are not comparable have one, and no word.
LOOKS = WORDS | {"not comparable": {"color": COLORS["noise"], "marker": "D", "markerfacecolor": "white"}}
LOOKS |= {"effect": {"color": COLORS["theory"], "marker": "o"}}


@drawing
def forest(table: pd.DataFrame, *, row: str, group: str, panels: str, x_label: str, margin: float = 0.05) -> Figure:
    """One line per value of `row` within its `group`, one panel per value of `panels`, on a shared axis of effects.

    Each line has `effect`, `low`, `high` and, if the table has them, `word`, by which it is coloured, and `base`, the
    effect that it is compared with, as an upright tick; a line without an effect shows its tick alone. The grey band is
    the margin of "no change". Groups are named where there are several.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> table = pd.DataFrame({"map": ["saliency"], "dataset": "digits", "readout": "logit", "effect": 0.1})
        >>> names = {"row": "map", "group": "readout", "panels": "dataset"}
        >>> figure = forest(table.assign(low=0.0, high=0.2), x_label="gain", **names)
        >>> figure.axes[0].get_title()
        'digits'
        >>> plt.close(figure)
    """
    lines = list(dict.fromkeys(zip(table[group], table[row], strict=True)))
    groups, names = list(dict.fromkeys(g for g, _ in lines)), list(table[panels].unique())
    lines.sort(key=lambda line: groups.index(line[0]))
    places = {line: -i - 0.5 * groups.index(line[0]) for i, line in enumerate(lines)}
    size = WIDTH, 1.7 + 0.21 * len(lines) + 0.1 * len(groups)
    figure, axes = plt.subplots(1, len(names), figsize=size, sharex=True, sharey=True, squeeze=False)
    seen: dict[str, dict[str, object]] = {}
    for axis, name in zip(axes.flat, names, strict=True):
        axis.axvspan(-margin, margin, color="#eeeeee", zorder=0)
        axis.axvline(0, color=COLORS["theory"], linewidth=0.8)
        for line in table[table[panels] == name].to_dict("records"):
            place, word = places[line[group], line[row]], _named(line.get("word", "effect"))
            if "base" in line:
                axis.plot(line["base"], place, **BASE, linestyle="none")
            if np.isfinite(line["effect"]):
                seen[word] = _mark(axis, line, word, place, width=1.2, size=4.5)
        width = max(21, 72 // len(names))
        titles = [textwrap.fill(part, width, break_on_hyphens=False) for part in label(name).split("\n")]
        axis.set_title("\n".join(titles), fontsize=8)
        axis.set_xlabel(x_label, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(min(8, 12 // len(names))))
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_ylim(min(places.values()) - 0.8, 0.8)
    told = [f"{label(g)}: {label(r)}" if len(groups) > 1 else label(r) for g, r in places]
    axes[0, 0].set_yticks(list(places.values()), told, fontsize=7)
    ordered = {word: seen[word] for word in LOOKS if word in seen}
    legend(figure, ordered | ({"base": BASE | {"linestyle": "none"}} if "base" in table else {}))
    return figure


@drawing
def ladder(table: pd.DataFrame, *, group: str, x_label: str, margin: float = 0.05) -> Figure:
    """All effects of a group in ascending order, one thin line each, group under group: the whole work in one look.

    The columns are those of `forest`; a line without an effect is left out. Each group is named at its left.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> table = pd.DataFrame({"claim": ["C2", "C2"], "effect": [0.1, 0.0], "word": ["up", "no change"]})
        >>> figure = ladder(table.assign(low=0.0, high=0.2), group="claim", x_label="gain")
        >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
        ['C2']
        >>> plt.close(figure)
    """
    shown = table[np.isfinite(table["effect"].astype(float))]
    names = list(dict.fromkeys(table[group]))
    figure, axis = plt.subplots(figsize=(7.2, 1.4 + 0.075 * len(shown) + 0.3 * len(names)))
    axis.axvspan(-margin, margin, color="#eeeeee", zorder=0)
    axis.axvline(0, color=COLORS["theory"], linewidth=0.8)
    height, ticks, seen = 0.0, [], {}
    for name in names:
        lines = shown[shown[group] == name].sort_values("effect")
        for place, line in enumerate(lines.to_dict("records")):
            word = _named(line["word"])
            seen[word] = _mark(axis, line, word, height - place, width=0.9, size=3.6)
        ticks.append(height - (len(lines) - 1) / 2)
        height -= len(lines) + 4
        axis.axhline(height + 2.5, color="#dddddd", linewidth=0.6)
    axis.set_yticks(ticks, names, fontsize=8)
    axis.set_ylim(height + 2.5, 2.5)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(x_label, fontsize=8)
    legend(figure, {word: seen[word] for word in LOOKS if word in seen})
    return figure


def _named(word: str) -> str:
    """The name under which a word is drawn."""
    return word if word in LOOKS else look(word)


def _mark(
    axis: Axes, line: Mapping[str, object], word: str, place: float, *, width: float, size: float
) -> dict[str, object]:
    """Draw an effect with its interval at a height, as its word looks; how it was drawn."""
    mark = LOOKS[word] | {"linestyle": "none"}
    axis.plot([line["low"], line["high"]], [place, place], color=mark["color"], linewidth=width)
    axis.plot(line["effect"], place, **mark, markersize=size)
    return mark
