"""Figures of statements: a left side against its bound, how tight every statement is, measured lines under theirs.

Names without a colour in the palette take the colour-blind cycle in the order of the table.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from attrobust.figures.style import COLORS, label, style, write_note

MARKERS = "osD^vP*X"


def against(
    table: pd.DataFrame, *, panels: str = "statement", hue: str = "arm", x_label: str = "bound (right side)",
    y_label: str = "left side", log: bool = True, titles: dict[str, str] | None = None, note: str = "",
) -> Figure:  # fmt: skip
    """Left side of each case against its right side; on or under the diagonal the statement holds.

    Args:
        table: one row per case with columns `left`, `right`, `panels` and `hue`.
        panels: column whose values become panels.
        hue: column that colours the points.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        log: whether both axes are logarithmic; cases with a side of 0 are then left out of the picture.
        titles: readable titles of panels.
        note: what stands below the figure.
    """
    values, hues = list(dict.fromkeys(table[panels])), list(dict.fromkeys(table[hue]))
    with style():
        figure, axes = plt.subplots(1, len(values), figsize=(3.3 * len(values) + 0.5, 3.5), squeeze=False)
        for axis, value in zip(axes[0], values, strict=True):
            inside = table[(table[panels] == value) & np.isfinite(table["right"])]
            inside = inside[(inside["left"] > 0) & (inside["right"] > 0)] if log else inside
            for name in hues:
                mine = inside[inside[hue] == name]
                axis.scatter(
                    mine["right"], mine["left"], s=9, alpha=0.5, linewidth=0, color=_color(name, hues),
                    marker=MARKERS[hues.index(name) % len(MARKERS)],
                )  # fmt: skip
            _diagonal(axis, inside, log=log)
            if log:
                _log_ticks(axis, "x", "y")
            axis.set(xlabel=x_label, ylabel=y_label if axis is axes[0][0] else "")
            axis.set_title((titles or {}).get(value, label(value)))
        _handles(figure, hues, lines=False)
        write_note(figure, note)
    return figure


def tightness(
    table: pd.DataFrame, *, row: str = "row", value: str = "ratio", hue: str = "side", limit: float = 1.0,
    low: float | None = None, x_label: str = "left side / right side", note: str = "", height: float = 0.22,
) -> Figure:  # fmt: skip
    """One line of dots per statement on a logarithmic axis, with the limit no dot may pass.

    Args:
        table: one row per case.
        row: column that names the line.
        value: what is drawn.
        hue: column that colours the dots.
        limit: where the statement would break.
        low: smaller values are drawn there; None for a thousandth of the limit.
        x_label: of the horizontal axis.
        note: what stands below the figure.
        height: of one line, in inches.
    """
    rows, hues = list(dict.fromkeys(table[row])), list(dict.fromkeys(table[hue]))
    low = limit / 1000 if low is None else low
    with style():
        figure, axis = plt.subplots(figsize=(7.0, 1.3 + height * len(rows)))
        places = table[row].map({name: i for i, name in enumerate(rows)})
        finite = table[value].clip(lower=low, upper=100 * limit)
        for name in hues:
            mine = table[hue] == name
            axis.plot(
                finite[mine], places[mine], linestyle="none", marker="|", markersize=7, alpha=0.6,
                color=_color(name, hues), zorder=3,
            )  # fmt: skip
        axis.axvline(limit, color=COLORS["theory"], linewidth=1, zorder=2)
        axis.set(xscale="log", xlabel=x_label, yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.4, -0.6))
        axis.tick_params(axis="y", labelsize=7)
        _log_ticks(axis, "x")
        _handles(figure, hues, lines=False, mark="|")
        write_note(figure, note)
    return figure


def profiles(
    table: pd.DataFrame, *, x: str, y: str, hue: str, panels: str, log_x: Sequence[str] = (), log_y: Sequence[str] = (),
    theory: Sequence[str] = (), x_labels: dict[str, str] | None = None, y_labels: dict[str, str] | None = None,
    markers: bool = True, spread: bool = False, note: str = "", columns: int = 0,
) -> Figure:  # fmt: skip
    """Lines of `y` over `x`, one panel with axes of its own per value of `panels`; bounds are dashed and black.

    Args:
        table: tidy; several rows with one `x`, `hue` and panel are averaged.
        x: column of the horizontal axis.
        y: column of the vertical axis.
        hue: column that tells lines apart.
        panels: column whose values become panels.
        log_x: panels with a logarithmic horizontal axis.
        log_y: panels with a logarithmic vertical axis.
        theory: values of `hue` that are bounds, drawn dashed in the theory's colour.
        x_labels: panel -> label of its horizontal axis.
        y_labels: panel -> label of its vertical axis.
        markers: whether points are marked.
        spread: whether the range of several rows is shaded.
        note: what stands below the figure.
        columns: panels in one row; 0 for all.
    """
    values, hues = list(dict.fromkeys(table[panels])), list(dict.fromkeys(table[hue]))
    measured = [name for name in hues if name not in theory]
    columns = columns or len(values)
    lines = -(-len(values) // columns)
    with style():
        width = max(5.2, 3.1 * columns + 0.5)
        height = 2.5 * lines + 0.6 + 0.2 * -(-len(hues) // _columns(width, hues))
        figure, axes = plt.subplots(lines, columns, figsize=(width, height), squeeze=False)
        for axis in axes.flat[len(values) :]:
            axis.set_axis_off()
        for axis, value in zip(axes.flat, values, strict=False):
            inside = table[table[panels] == value]
            for name in hues:
                line = inside[inside[hue] == name].groupby(x)[y].agg(["mean", "min", "max"])
                bound = name in theory
                dash = ("--", ":", "-.")[list(theory).index(name) % 3] if bound else "-"
                mark = MARKERS[measured.index(name) % len(MARKERS)] if markers and not bound else ""
                color = COLORS["theory"] if bound else _color(name, measured)
                axis.plot(line.index, line["mean"], linestyle=dash, marker=mark, color=color)
                if spread and not bound:
                    axis.fill_between(line.index, line["min"], line["max"], color=color, alpha=0.2, linewidth=0)
            axis.set(xscale="log" if value in log_x else "linear", yscale="log" if value in log_y else "linear")
            _log_ticks(axis, *("x" if value in log_x else ""), *("y" if value in log_y else ""))
            axis.set(xlabel=(x_labels or {}).get(value, label(x)), ylabel=(y_labels or {}).get(value, ""))
            axis.set_title(label(value))
        _handles(figure, hues, theory=theory, markers=markers, measured=measured)
        write_note(figure, note)
    return figure


def _diagonal(axis: Axes, inside: pd.DataFrame, *, log: bool) -> None:
    """The line left = right, with the side where a statement would be violated shaded."""
    both = pd.concat([inside["left"], inside["right"]])
    low, high = (both.min() / 2, both.max() * 2) if log else (min(0.0, both.min()), both.max() * 1.05)
    if log:
        axis.set(xscale="log", yscale="log")
    line = np.geomspace(low, high, 50) if log else np.linspace(low, high, 50)
    axis.plot(line, line, color=COLORS["theory"], linewidth=1)
    axis.fill_between(line, line, high, color=COLORS["attack"], alpha=0.08, linewidth=0)
    axis.set(xlim=(low, high), ylim=(low, high))


def _log_ticks(axis: Axes, *which: str) -> None:
    """Readable ticks on logarithmic axes: powers of ten, or 1, 2, 5 where the axis spans less than two decades."""
    for name in which:
        low, high = axis.get_xlim() if name == "x" else axis.get_ylim()
        ticks = axis.xaxis if name == "x" else axis.yaxis
        if high < 100 * low:
            ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ticks.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ticks.set_minor_formatter(NullFormatter())


def _color(name: str, names: Sequence[str]) -> object:
    """The palette's colour, or one of the cycle; the palette keeps red for what attacks and breaks."""
    cycle = [color for i, color in enumerate(sns.color_palette("colorblind", 10)) if i not in (3, 7)]
    return COLORS.get(name, cycle[list(names).index(name) % len(cycle)])


def _handles(
    figure: Figure, hues: Sequence[str], *, theory: Sequence[str] = (), markers: bool = True, lines: bool = True,
    mark: str = "", measured: Sequence[str] | None = None,
) -> None:  # fmt: skip
    if len(hues) < 2:
        return
    measured = list(hues) if measured is None else list(measured)
    handles = []
    for name in hues:
        if name in theory:
            look = {"color": COLORS["theory"], "linestyle": ("--", ":", "-.")[list(theory).index(name) % 3]}
        else:
            shape = mark or (MARKERS[measured.index(name) % len(MARKERS)] if markers else "")
            look = {"color": _color(name, measured), "linestyle": "-" if lines else "", "marker": shape}
        handles.append(plt.Line2D([], [], label=label(name), **look))
    figure.legend(handles=handles, loc="outside upper center", ncols=_columns(figure.get_figwidth(), hues))


def _columns(width: float, hues: Sequence[str]) -> int:
    """Columns of a legend that fit into `width` inches."""
    widest = 0.6 + 0.074 * max(len(label(name)) for name in hues)
    return max(1, min(len(hues), int(width / widest)))
