"""Curves with intervals: a tidy table in, one figure out."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy import stats

from attrobust.figures.style import COLORS, drawing, ends, label, legend
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
    decorate(axes, metric, value of `column`) is called on each panel.

    Example:
        >>> table = pd.DataFrame({"step_size": [0.1, 0.2] * 2, "cosine": [0.5, 0.9, 0.6, 0.8], "map": "saliency"})
        >>> figure = trends(table, x="step_size", metrics={"cosine": "cosine"}, hue="map")
        >>> figure.axes[0].get_ylabel()
        'cosine'
        >>> plt.close(figure)
    """
    values, hues = list(table[column].unique()) if column else [""], list(table[hue].unique())
    how = {"figsize": (3.6 * len(values) + 0.4, 2.1 * len(metrics) + 0.6), "sharey": "row" if shared_y else False}
    figure, axes = plt.subplots(len(metrics), len(values), squeeze=False, sharex=True, **how)
    for (r, c), axis in np.ndenumerate(axes):
        metric, value = list(metrics)[r], values[c]
        sns.lineplot(
            table[table[column] == value] if column else table, x=x, y=metric, hue=hue, hue_order=hues,
            palette={h: COLORS[h] for h in hues}, style=hue, style_order=hues, markers=True, dashes=False,
            errorbar=partial(_interval, within=ends(metric, metrics[metric], str(value))), ax=axis, legend=False,
        )  # fmt: skip
        if metric in log_y:
            axis.set_yscale("log")
        _ticks(axis, table[x])
        axis.set(xlabel=label(x), ylabel="" if c else metrics[metric])
        if r == 0 and column:
            axis.set_title(label(value))
        if decorate:
            decorate(axis, metric, value)
    _legend(figure, hues)
    return figure


@drawing
def curves(
    table: pd.DataFrame, *, x: str, y: str, hue: str, panels: str | None = None, x_label: str = "", y_label: str = "",
    log_x: bool = False, decorate: Callable[[Axes, str], None] | None = None,
) -> Figure:  # fmt: skip
    """Curves whose values and intervals (`low`, `high`) are in the table, one per `hue`, one panel per `panels`.

    Example:
        >>> table = pd.DataFrame({"k": [1, 2], "stays": [0.5, 0.9], "map": "saliency"})
        >>> figure = curves(table, x="k", y="stays", hue="map")
        >>> figure.axes[0].get_xlabel()
        'k'
        >>> plt.close(figure)
    """
    hues = list(table[hue].unique())
    palette = dict(zip(hues, sns.color_palette("viridis", len(hues)), strict=True)) | COLORS
    figure, parts = panelled(table, panels, (3.4, 0.6, 2.9), sharey=True)
    for axis, value, inside in parts:
        for name in hues:
            line, color = inside[inside[hue] == name].sort_values(x), palette[name]
            axis.plot(line[x], line[y], marker="o", color=color, label=label(name))
            if "low" in line and "high" in line:
                low, high = (line[end].clip(*ends(y, y_label, str(value))) for end in ("low", "high"))
                axis.fill_between(line[x], low, high, color=color, alpha=0.2, linewidth=0)
        if log_x:
            _ticks(axis, inside[x])
        axis.set(
            xlabel=x_label or label(x), ylabel=(y_label or label(y)) if axis.get_subplotspec().is_first_col() else ""
        )
        if panels:
            axis.set_title(label(value))
        if decorate:
            decorate(axis, value)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


@drawing
def dots(table: pd.DataFrame, *, x: str, y: str, hue: str | None = None, least: int = 2, zero: bool = False) -> Figure:
    """A dot per row, the mean and its 95 % interval (of `least` rows or more), for each `y` (and `hue`).

    Example:
        >>> table = pd.DataFrame({"gain": [0.1, 0.2], "map": "saliency"})
        >>> figure = dots(table, x="gain", y="map")
        >>> figure.axes[0].get_xlabel()
        'gain'
        >>> plt.close(figure)
    """
    rows, hues = list(table[y].unique()), list(table[hue].unique()) if hue else []
    dodge = 0.8 - 0.8 / len(hues) if len(hues) > 1 else False
    colors = {"palette": {h: COLORS[h] for h in hues}} if hue else {"color": COLORS["matched"]}
    shared = {"data": table, "x": x, "y": y, "hue": hue, "order": rows, "hue_order": hues or None, **colors}
    figure, axis = plt.subplots(figsize=(6.0, 0.9 + 0.42 * len(rows) * max(1, 0.7 * len(hues))))
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
        axis.set(
            xlabel=label(x),
            ylabel=(y_label or label(y)) if axis.get_subplotspec().is_first_col() else "",
            title=label(value),
        )
    _legend(figure, hues)
    return figure


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
