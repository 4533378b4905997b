"""Curves with intervals: a tidy table in, one figure out."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy import stats

from attrobust.figures.style import COLORS, direct, drawing, ends, label, legend, outer, written_out
from attrobust.figures.style import panels as panelled

#: Ticks closer than this part of an axis stand on each other.
CROWDED = 12


def _interval(values: pd.Series, within: tuple[float, float] = (-np.inf, np.inf)) -> tuple[float, float]:
    """95 % Student-t interval of the mean, for seaborn's `errorbar`, as far as it lies within the ends of a scale."""
    values = np.asarray(values, dtype=float)
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1) if len(values) > 1 else np.nan
    low, high = np.clip([values.mean() - half, values.mean() + half], *within)
    return low, high


@drawing
def trends(
    table: pd.DataFrame, *, x: str, metrics: Mapping[str, str], hue: str, column: str | None = None,
    log_y: Sequence[str] = (), shared_y: bool = False, decorate: Callable[[Axes, str, str], None] | None = None,
) -> Figure:  # fmt: skip
    """One panel per metric and value of `column`: mean over seeds with a 95 % interval, one line per `hue`.

    The table has one row per run; its values of `x` are the ticks of a logarithmic axis. `metrics` goes from column to
    axis label, `log_y` names those on a logarithmic axis, `shared_y` gives the panels of one metric one axis, and
    decorate(axes, metric, value of `column`) is called on each panel. Four and more panels of a single metric stand two
    in a row, so that a page need not shrink them.

    Example:
        >>> table = pd.DataFrame({"step_size": [0.1, 0.2] * 2, "cosine": [0.5, 0.9, 0.6, 0.8], "map": "saliency"})
        >>> figure = trends(table, x="step_size", metrics={"cosine": "cosine"}, hue="map")
        >>> figure.axes[0].get_ylabel()
        'cosine'
        >>> plt.close(figure)
    """
    values, hues = list(table[column].unique()) if column else [""], list(table[hue].unique())
    across = 2 if len(metrics) == 1 and len(values) > 3 else len(values)
    down = len(metrics) * -(-len(values) // across)
    how = {"figsize": (3.6 * across + 0.4, 2.1 * down + 0.6), "sharey": "row" if shared_y else False}
    figure, axes = plt.subplots(down, across, squeeze=False, sharex=True, **how)
    for place, axis in enumerate(axes.flat):
        if place == len(metrics) * len(values):
            axis.remove()
            continue
        metric, value = list(metrics)[place // len(values)], values[place % len(values)]
        c = place % across
        sns.lineplot(
            table[table[column] == value] if column else table, x=x, y=metric, hue=hue, hue_order=hues,
            palette={h: COLORS[h] for h in hues}, style=hue, style_order=hues, markers=True, dashes=False,
            errorbar=partial(_interval, within=ends(metric, metrics[metric], str(value))), ax=axis, legend=False,
        )  # fmt: skip
        if metric in log_y:
            axis.set_yscale("log")
            _plain(axis.yaxis)
        _ticks(axis, table[x])
        axis.set(xlabel=label(x), ylabel="" if c else metrics[metric])
        if place < len(values) and column:
            axis.set_title(label(value))
        if decorate:
            decorate(axis, metric, value)
    _legend(figure, hues)
    return figure


@drawing
def curves(
    table: pd.DataFrame, *, x: str, y: str, hue: str, panels: str | None = None, x_label: str = "", y_label: str = "",
    log_x: bool = False, decorate: Callable[[Axes, str], None] | None = None, named: bool = False,
) -> Figure:  # fmt: skip
    """Curves whose values and intervals (`low`, `high`) are in the table, one per `hue`, one panel per `panels`.

    With `named` the lines of each panel have their names at their right ends in place of a legend.

    Example:
        >>> table = pd.DataFrame({"k": [1, 2], "stays": [0.5, 0.9], "map": "saliency"})
        >>> figure = curves(table, x="k", y="stays", hue="map")
        >>> figure.axes[0].get_xlabel()
        'k'
        >>> plt.close(figure)
    """
    hues = list(table[hue].unique())
    palette = dict(zip(hues, sns.color_palette("viridis", len(hues)), strict=True)) | COLORS
    three = bool(panels) and table[panels].nunique() == 3  # narrow enough for a page, their legend above them
    figure, parts = panelled(table, panels, (2.35 if three else 3.4, 0.6, 2.9), sharey=True)
    for axis, value, inside in parts:
        for name in hues:
            line, color = inside[inside[hue] == name].sort_values(x), palette[name]
            axis.plot(line[x], line[y], marker="o", color=color, label=label(name))
            if "low" in line and "high" in line:
                low, high = (line[end].clip(*ends(y, y_label, str(value))) for end in ("low", "high"))
                axis.fill_between(line[x], low, high, color=color, alpha=0.2, linewidth=0)
        if log_x:
            _ticks(axis, inside[x])
        axis.set(xlabel=x_label or label(x), ylabel=outer(axis, y_label or label(y)))
        if panels:
            axis.set_title(label(value))
        if decorate:
            decorate(axis, value)
    for axis, _, inside in parts if named else ():
        last = {name: line.sort_values(x).iloc[-1] for name, line in inside.groupby(hue, sort=False)}
        direct(axis, {name: (row[x], row[y], palette[name]) for name, row in last.items()})
    where = {"loc": "outside upper center", "ncols": len(hues)} if three else {"loc": "outside right center"}
    if not named:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), **where)
    return figure


@drawing
def dots(
    table: pd.DataFrame, *, x: str, y: str, hue: str | None = None, least: int = 2, zero: bool = False,
    color: str = "saliency", log: bool = False,
) -> Figure:  # fmt: skip
    """A dot per row, the mean and its 95 % interval (of `least` rows or more), for each `y` (and `hue`).

    Without `hue` all have the colour of one name. With `log` the axis is logarithmic, and so is the mean geometric.

    Example:
        >>> table = pd.DataFrame({"gain": [0.1, 0.2], "map": "saliency"})
        >>> figure = dots(table, x="gain", y="map")
        >>> figure.axes[0].get_xlabel()
        'gain'
        >>> plt.close(figure)
    """
    rows, hues = list(table[y].unique()), list(table[hue].unique()) if hue else []
    dodge = 0.8 - 0.8 / len(hues) if len(hues) > 1 else False
    colors = {"palette": {h: COLORS[h] for h in hues}} if hue else {"color": COLORS[color]}
    shared = {"data": table, "x": x, "y": y, "hue": hue, "order": rows, "hue_order": hues or None, **colors}
    shared |= {"log_scale": True} if log else {}
    high = 0.42 if len(rows) <= 12 else 0.28
    figure, axis = plt.subplots(figsize=(6.0, 0.9 + high * len(rows) * max(1, 0.7 * len(hues))))
    few = table.groupby([y, hue] if hue else y).size().max() <= 10
    dot, thin = ({"size": 7, "alpha": 0.5}, {"linewidth": 1.5}) if few else ({"size": 3, "alpha": 0.25}, None)
    sns.stripplot(**shared, jitter=False, dodge=bool(hue), **dot, linewidth=0, ax=axis, legend=False)
    if zero:
        axis.axvline(0, color=COLORS["theory"], linewidth=0.8, zorder=0)
    sns.pointplot(
        **shared, errorbar=lambda values: _interval(values, ends(x)) if len(values) >= least else (np.nan, np.nan),
        dodge=dodge, linestyle="none", marker="|", markersize=12, markeredgewidth=2, err_kws=thin, ax=axis,
        legend=False,
    )  # fmt: skip
    axis.set(xlabel=label(x), ylabel="")
    if log:
        _plain(axis.xaxis)
    _legend(figure, hues)
    return figure


@drawing
def scatter(table: pd.DataFrame, *, x: str, y: str, hue: str, shade: str, panels: str, y_label: str = "") -> Figure:
    """One point per run: two measured quantities against each other, coloured by `hue`, sized by `shade`.

    Example:
        >>> table = pd.DataFrame({"sharpness": [1.0, 2.0], "cosine": [0.5, 0.9], "map": "saliency", "step_size": 0.1})
        >>> axes = {"x": "sharpness", "y": "cosine", "shade": "step_size"}
        >>> figure = scatter(table.assign(dataset="digits"), hue="map", panels="dataset", **axes)
        >>> figure.axes[0].get_title()
        'digits'
        >>> plt.close(figure)
    """
    hues = list(table[hue].unique())
    least, most = table[shade].min(), table[shade].max()
    figure, parts = panelled(table, panels, (3.6, 0.4, 3.0))
    for axis, value, inside in parts:
        # One value left: all points are small.
        sizes = 10 + 40 * (np.log(inside[shade] / least) / (np.log(most / least) or 1.0))
        for name in hues:
            mine = inside[hue] == name
            points = inside.loc[mine, x], inside.loc[mine, y]
            axis.scatter(*points, s=sizes[mine], color=COLORS[name], alpha=0.6, linewidth=0)
        axis.set(xlabel=label(x), ylabel=outer(axis, y_label or label(y)), title=label(value))
    _legend(figure, hues)
    return figure


def _plain(axis: Axis) -> None:
    """Written-out numbers on a logarithmic axis; those between powers of ten, too, where these are few."""
    low, high = np.log10(axis.get_view_interval())
    written_out(axis, (1, 2, 5) if high - low < 2 else (1,))
    axis.set_minor_locator(NullLocator())


def _ticks(axis: Axes, values: pd.Series) -> None:
    """A logarithmic axis whose ticks are the values, about a single one too; powers of ten where these crowd."""
    if values.nunique() == 1:
        axis.set_xlim(values.iloc[0] / 2, values.iloc[0] * 2)
    axis.set_xscale("log")
    places = np.sort(np.log(values.unique()))
    if len(places) > 1 and np.diff(places).min() < (places[-1] - places[0]) / CROWDED:
        return
    axis.xaxis.set_major_locator(FixedLocator(sorted(values.unique().tolist())))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _legend(figure: Figure, hues: Sequence[str]) -> None:
    looks = {name: {"color": COLORS[name], "marker": "o"} for name in hues}
    legend(figure, looks, columns=len(hues) if len(hues) < 7 else 4)
