"""Curves with intervals: a tidy table in, one figure out."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy import stats

from attrobust.figures.style import COLORS, label, style, unless_empty, write_note

#: Up to so many rows of a category, `dots` draws them large.
FEW = 10


def student_interval(values: pd.Series) -> tuple[float, float]:
    """95 % Student-t interval of the mean, for seaborn's `errorbar`."""
    values = np.asarray(values, dtype=float)
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1) if len(values) > 1 else np.nan
    return values.mean() - half, values.mean() + half


@unless_empty
def trends(
    table: pd.DataFrame,
    *,
    x: str,
    metrics: Mapping[str, str],
    hue: str,
    column: str | None = None,
    log_y: Sequence[str] = (),
    note: str = "",
    shared_y: bool = False,
    decorate: Callable[[Axes, str, str], None] | None = None,
) -> Figure:
    """One panel per metric and value of `column`: mean over seeds with a 95 % interval, one line per `hue`.

    Args:
        table: one row per run; needs `x`, `hue`, `column` and every metric.
        x: column of the horizontal axis, drawn on a log scale with its values as ticks.
        metrics: column -> axis label.
        hue: column that colours the lines; its values must have a colour in the palette.
        column: column whose values become panel columns; None for one column.
        log_y: metrics drawn on a log axis.
        note: what stands below the figure (n, what the interval is).
        shared_y: whether the panels of one metric share their axis.
        decorate: called as decorate(axes, metric, value of `column`) on each panel.
    """
    values = list(dict.fromkeys(table[column])) if column else [""]
    hues = list(dict.fromkeys(table[hue]))
    with style():
        figure, axes = plt.subplots(
            len(metrics),
            len(values),
            figsize=(3.6 * len(values) + 0.4, 2.1 * len(metrics) + 0.6),
            squeeze=False,
            sharex=True,
            sharey="row" if shared_y else False,
        )
        for index, (row, (metric, name)) in enumerate(zip(axes, metrics.items(), strict=True)):
            for axis, value in zip(row, values, strict=True):
                inside = table[table[column] == value] if column else table
                sns.lineplot(
                    inside, x=x, y=metric, hue=hue, hue_order=hues, palette={h: COLORS[h] for h in hues},
                    style=hue, style_order=hues, markers=True, dashes=False, errorbar=student_interval, ax=axis,
                    legend=False,
                )  # fmt: skip
                if metric in log_y:
                    axis.set_yscale("log")
                _log_ticks(axis, sorted(table[x].unique().tolist()))
                axis.set(xlabel=label(x), ylabel=name if axis is row[0] else "")
                if index == 0 and column:
                    axis.set_title(label(value))
                if decorate:
                    decorate(axis, metric, value)
        _legend(figure, hues)
        write_note(figure, note)
    return figure


@unless_empty
def curves(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    hue: str,
    panels: str | None = None,
    low: str = "low",
    high: str = "high",
    x_label: str = "",
    y_label: str = "",
    log_x: bool = False,
    note: str = "",
    decorate: Callable[[Axes, str], None] | None = None,
) -> Figure:
    """Curves whose values and intervals are already in the table, one line per `hue`, one panel per `panels`."""
    values = list(dict.fromkeys(table[panels])) if panels else [""]
    hues = list(dict.fromkeys(table[hue]))
    palette = dict(zip(hues, sns.color_palette("viridis", len(hues)), strict=True))
    with style():
        figure, axes = plt.subplots(1, len(values), figsize=(3.4 * len(values) + 0.6, 2.9), squeeze=False, sharey=True)
        for axis, value in zip(axes[0], values, strict=True):
            inside = table[table[panels] == value] if panels else table
            for name in hues:
                line = inside[inside[hue] == name].sort_values(x)
                color = COLORS.get(name, palette[name])
                axis.plot(line[x], line[y], marker="o", color=color, label=label(name))
                if low in line and high in line:
                    axis.fill_between(line[x], line[low], line[high], color=color, alpha=0.2, linewidth=0)
            if log_x:
                _log_ticks(axis, sorted(inside[x].unique().tolist()))
            axis.set(xlabel=x_label or label(x), ylabel=(y_label or label(y)) if axis is axes[0][0] else "")
            if panels:
                axis.set_title(label(value))
            if decorate:
                decorate(axis, value)
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center")
        write_note(figure, note)
    return figure


@unless_empty
def dots(
    table: pd.DataFrame, *, x: str, y: str, hue: str | None = None, note: str = "", least: int = 2, zero: bool = False
) -> Figure:
    """One dot per row, large where they are few, and the mean with a 95 % interval, for each `y` (and `hue`).

    Args:
        table: tidy.
        x: column that is drawn.
        y: column whose values are the lines.
        hue: column that colours.
        note: what stands below the figure.
        least: rows from which on an interval is drawn.
        zero: whether a line marks zero.
    """
    rows, hues = list(dict.fromkeys(table[y])), list(dict.fromkeys(table[hue])) if hue else []
    dodge = 0.8 - 0.8 / len(hues) if len(hues) > 1 else False
    colors = {"palette": {h: COLORS[h] for h in hues}} if hue else {"color": COLORS["matched"]}
    shared = {"data": table, "x": x, "y": y, "hue": hue, "order": rows, "hue_order": hues or None, **colors}
    with style():
        figure, axis = plt.subplots(figsize=(6.0, 0.9 + 0.42 * len(rows) * max(1, 0.7 * len(hues))))
        few = table.groupby([y, hue] if hue else y).size().max() <= FEW
        dot, thin = ({"size": 7, "alpha": 0.5}, {"linewidth": 1.5}) if few else ({"size": 3, "alpha": 0.25}, None)
        sns.stripplot(**shared, jitter=False, dodge=bool(hue), **dot, linewidth=0, ax=axis, legend=False)
        if zero:
            axis.axvline(0, color=COLORS["theory"], linewidth=0.8, zorder=0)
        sns.pointplot(
            **shared, errorbar=lambda values: student_interval(values) if len(values) >= least else (np.nan, np.nan),
            dodge=dodge, linestyle="none", marker="|", markersize=12, markeredgewidth=2, err_kws=thin,
            ax=axis, legend=False,
        )  # fmt: skip
        axis.set(xlabel=label(x), ylabel="")
        _legend(figure, hues)
        write_note(figure, note)
    return figure


@unless_empty
def scatter(
    table: pd.DataFrame, *, x: str, y: str, hue: str, shade: str, panels: str, y_label: str = "", note: str = ""
) -> Figure:
    """One point per run: two measured quantities against each other, coloured by `hue`, sized by `shade`."""
    values, hues = list(dict.fromkeys(table[panels])), list(dict.fromkeys(table[hue]))
    with style():
        figure, axes = plt.subplots(1, len(values), figsize=(3.6 * len(values) + 0.4, 3.0), squeeze=False)
        for axis, value in zip(axes[0], values, strict=True):
            inside = table[table[panels] == value]
            ranks = np.log(inside[shade] / table[shade].min())
            ranks /= np.log(table[shade].max() / table[shade].min()) or 1.0  # one value left: all points are small
            for name in hues:
                mine = inside[hue] == name
                axis.scatter(
                    inside.loc[mine, x], inside.loc[mine, y], s=10 + 40 * ranks[mine], color=COLORS[name], alpha=0.6,
                    linewidth=0,
                )  # fmt: skip
            axis.set(xlabel=label(x), ylabel=(y_label or label(y)) if axis is axes[0][0] else "", title=label(value))
        _legend(figure, hues)
        write_note(figure, note)
    return figure


def _log_ticks(axis: Axes, ticks: Sequence[float]) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _legend(figure: Figure, hues: Sequence[str]) -> None:
    if len(hues) < 2:
        return
    handles = [plt.Line2D([], [], color=COLORS[h], marker="o", label=label(h)) for h in hues]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(hues) if len(hues) < 7 else 4)
