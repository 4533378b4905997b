"""Matrices with their numbers written in: what stands in the rows done to what stands in the columns."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from attrobust.figures.style import COLORS, label, style, write_note


def matrix(
    table: pd.DataFrame, *, rows: str, columns: str, value: str = "mean", low: str = "low", high: str = "high",
    shade: str = "shade", digits: int = 2, x_label: str = "", y_label: str = "", note: str = "",
) -> Figure:  # fmt: skip
    """One cell per pair, with its value and interval; the deeper its colour, the more damage.

    Args:
        table: one row per cell.
        rows: column that names the line.
        columns: column that names the column.
        value: column written large.
        low: lower end of its interval.
        high: upper end of its interval.
        shade: how dark a cell is, from 0 to 1.
        digits: behind the point.
        x_label: of the columns.
        y_label: of the rows.
        note: what stands below the figure.
    """
    lines, names = list(dict.fromkeys(table[rows])), list(dict.fromkeys(table[columns]))
    with style():
        figure, axis = plt.subplots(figsize=(1.15 * len(names) + 1.9, 0.36 * len(lines) + 1.3))
        shades = table.pivot(index=rows, columns=columns, values=shade).loc[lines, names]
        palette = sns.light_palette(COLORS["attack"], as_cmap=True)
        axis.imshow(shades.to_numpy(dtype=float), cmap=palette, vmin=0, vmax=1.4, aspect="auto")
        for cell in table.to_dict("records"):
            place = names.index(cell[columns]), lines.index(cell[rows])
            text = f"{cell[value]:.{digits}f}"
            axis.annotate(text, place, (0, 3), textcoords="offset points", ha="center", va="center", fontsize=8)
            span = f"[{cell[low]:.{digits}f}, {cell[high]:.{digits}f}]"
            axis.annotate(span, place, (0, -6), textcoords="offset points", ha="center", va="center", fontsize=6)
        axis.set_xticks(range(len(names)), [label(name).replace(" ", "\n", 1) for name in names], fontsize=7)
        axis.set_yticks(range(len(lines)), [label(line) for line in lines], fontsize=8)
        axis.set(xlabel=x_label, ylabel=y_label)
        axis.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        axis.xaxis.set_label_position("top")
        axis.grid(visible=False)
        for spine in axis.spines.values():
            spine.set_visible(False)
        write_note(figure, note)
    return figure
