"""A forest of effects: one choice at a time, each beside the base from which it differs in that choice alone."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from attrobust.figures.specification import WORDS, look
from attrobust.figures.style import COLORS, drawing, label, legend

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
    the margin of "no change".

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
    size = 2.6 + 1.9 * len(names), 1.7 + 0.21 * len(lines) + 0.1 * len(groups)
    figure, axes = plt.subplots(1, len(names), figsize=size, sharex=True, sharey=True, squeeze=False)
    seen: dict[str, dict[str, object]] = {}
    for axis, name in zip(axes.flat, names, strict=True):
        axis.axvspan(-margin, margin, color="#eeeeee", zorder=0)
        axis.axvline(0, color=COLORS["theory"], linewidth=0.8)
        for line in table[table[panels] == name].to_dict("records"):
            place, word = places[line[group], line[row]], line.get("word", "effect")
            word = word if word in LOOKS else look(word)
            if "base" in line:
                axis.plot(line["base"], place, **BASE, linestyle="none")
            if np.isfinite(line["effect"]):
                seen[word] = mark = LOOKS[word] | {"linestyle": "none"}
                axis.plot([line["low"], line["high"]], [place, place], color=mark["color"], linewidth=1.2)
                axis.plot(line["effect"], place, **mark, markersize=4.5)
        axis.set_title(label(name), fontsize=8)
        axis.set_xlabel(x_label, fontsize=8)
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_ylim(min(places.values()) - 0.8, 0.8)
    axes[0, 0].set_yticks(list(places.values()), [f"{label(g)}: {label(r)}" for g, r in places], fontsize=7)
    ordered = {word: seen[word] for word in LOOKS if word in seen}
    legend(figure, ordered | ({"base": BASE | {"linestyle": "none"}} if "base" in table else {}))
    return figure
