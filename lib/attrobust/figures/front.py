"""What is paid against what it buys: numbered points, and the front of those that no other beats."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from attrobust.figures.style import COLORS, drawing, label, legend, panels


@drawing
def front(
    table: pd.DataFrame, *, price: str, worth: str, name: str, hue: str, by: str, hollow: Mapping[str, str],
    labels: tuple[str, str], log: bool = False,
) -> Figure:  # fmt: skip
    """One numbered point per row, a panel per value of `by`; a dashed line joins the rows of the column `front`.

    `worth` has an interval in the columns `low` and `high`. The numbers are those of the names in their order in the
    table, told by the legend. `hollow` names a column of booleans and says what it means: such points are not filled.
    `labels` are those of both axes; the price is logarithmic if `log`.
    """
    names = list(dict.fromkeys(table[name]))
    ((column, meaning),) = hollow.items()
    figure, parts = panels(table, by, (3.4, 0.3, 3.1))
    for axis, value, inside in parts:
        for row in inside.to_dict("records"):
            color = COLORS[row[hue]]
            axis.plot([row[price]] * 2, [row["low"], row["high"]], color=color, linewidth=0.8, alpha=0.6)
            face = "white" if row[column] else color
            axis.plot(row[price], row[worth], "o", color=color, markerfacecolor=face, markersize=5)
            at = {"xytext": (4, 3), "textcoords": "offset points", "fontsize": 7, "color": "#333333"}
            axis.annotate(str(names.index(row[name]) + 1), (row[price], row[worth]), **at)
        best = inside[inside["front"]].sort_values(price)
        axis.plot(best[price], best[worth], linestyle="--", linewidth=0.8, color=COLORS["theory"], zorder=0)
        axis.set(
            xlabel=labels[0], title=label(value), ylabel=labels[1] if axis.get_subplotspec().is_first_col() else ""
        )
        if log:
            axis.set_xscale("log")
    kinds = table.drop_duplicates(name).set_index(name)[hue]
    dot = {"marker": "o", "linestyle": "none"}
    looks = {f"{i} {label(each)}": dot | {"color": COLORS[kinds[each]]} for i, each in enumerate(names, start=1)}
    looks |= {meaning: dot | {"color": "#333333", "markerfacecolor": "white"}}
    looks |= {"front": {"color": COLORS["theory"], "linestyle": "--", "linewidth": 0.8}}
    legend(figure, looks)
    return figure
