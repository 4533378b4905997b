"""Figures of statements: a left side against its bound, how tight every statement is, measured lines and clouds."""

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from attrobust.figures.style import COLORS, direct, drawing, fitting, label, legend, outer, written_out
from attrobust.figures.style import panels as panelled

MARKERS = "osD^vP*X"


@drawing
def against(
    table: pd.DataFrame, *, panels: str = "statement", hue: str = "arm", x_label: str = "bound (right side)",
    y_label: str = "left side", titles: Mapping[str, str] | None = None, inches: float = 0,
) -> Figure:  # fmt: skip
    """Left side of each case against its right side, both logarithmic; on or under the diagonal the statement holds.

    The table has a row per case with columns `left`, `right`, `panels` and `hue`; cases with a side of 0 are left out.
    The figure is `inches` wide, or wider where its panels need it.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> table = pd.DataFrame({"statement": "P1", "arm": "random", "left": [0.5, 0.9], "right": [1.0, 1.0]})
        >>> figure = against(table)
        >>> figure.axes[0].get_xscale()
        'log'
        >>> plt.close(figure)
    """
    looks = _looks(table[hue].unique(), lines=False)
    figure, parts = panelled(table, panels, (3.3, 0.5, 3.5), least=inches)
    for axis, value, inside in parts:
        inside = inside[np.isfinite(inside["right"]) & (inside["left"] > 0) & (inside["right"] > 0)]
        for name, look in looks.items():
            points = inside.loc[inside[hue] == name, ["right", "left"]].to_numpy().T
            axis.scatter(*points, s=9, alpha=0.5, linewidth=0, color=look["color"], marker=look["marker"])
        both = pd.concat([inside["left"], inside["right"]])
        low, high = both.min() / 2, both.max() * 2
        axis.set(xscale="log", yscale="log")
        line = np.geomspace(low, high, 50)
        axis.plot(line, line, color=COLORS["theory"], linewidth=1)
        axis.fill_between(line, line, high, color=COLORS["attack"], alpha=0.08, linewidth=0)
        axis.set(xlim=(low, high), ylim=(low, high), title=(titles or {}).get(value, label(value)))
        _log_ticks(axis, "x", "y")
        axis.set(xlabel=x_label, ylabel=outer(axis, y_label))
    legend(figure, looks)
    return figure


@drawing
def tightness(
    table: pd.DataFrame, *, value: str = "ratio", limit: float = 1.0, low: float | None = None,
    x_label: str = "left side / right side", height: float = 0.22, pad: float = 0,
) -> Figure:  # fmt: skip
    """One line of dots per statement (`row`) on a logarithmic axis, with the limit no dot may pass.

    The column `side` colours the dots; those below `low` (a thousandth of the limit if None) are drawn there. `pad`:
    inches left free beside names that would touch the edge.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> table = pd.DataFrame({"row": ["P1", "P2"], "side": "gradient", "ratio": [0.5, 0.9]})
        >>> figure = tightness(table)
        >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
        ['P1', 'P2']
        >>> plt.close(figure)
    """
    rows, looks = list(table["row"].unique()), _looks(table["side"].unique(), marks="|", lines=False)
    figure, axis = plt.subplots(figsize=(7.0, 1.3 + height * len(rows)))
    places = table["row"].map({name: i for i, name in enumerate(rows)})
    finite = table[value].clip(lower=limit / 1000 if low is None else low, upper=100 * limit)
    for name, look in looks.items():
        mine = table["side"] == name
        axis.plot(finite[mine], places[mine], markersize=7, alpha=0.6, zorder=3, **look)
    axis.axvline(limit, color=COLORS["theory"], linewidth=1, zorder=2)
    axis.set(xscale="log", xlabel=x_label, yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.4, -0.6))
    axis.tick_params(axis="y", labelsize=7)
    _log_ticks(axis, "x")
    legend(figure, looks)
    if pad:
        figure.get_layout_engine().set(w_pad=pad)
    return figure


@drawing
def profiles(
    table: pd.DataFrame, *, x: str, y: str, hue: str, panels: str, log_x: Sequence[str] = (), log_y: Sequence[str] = (),
    theory: Sequence[str] = (), x_labels: Mapping[str, str] | None = None, y_labels: Mapping[str, str] | None = None,
    markers: bool = True, spread: bool = False, inches: float = 0, named: bool = False, ordered: bool = False,
) -> Figure:  # fmt: skip
    """Lines of `y` over `x`, one panel with axes of its own per value of `panels`; bounds are dashed and black.

    Several rows with one `x`, `hue` and panel are averaged, their range shaded if `spread`. `log_x` and `log_y` name
    the panels with a logarithmic axis, `x_labels` and `y_labels` label the axes of a panel, and `theory` names the
    values of `hue` that are bounds. The figure is `inches` wide however many panels stand in it (0: as wide as they
    like). With `named` lines have their names at their right ends in place of a legend, and `ordered` colours the names
    from light to dark in the table's order, for values of one quantity.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> table = pd.DataFrame({"x": [1.0, 2.0], "y": [0.5, 0.9], "panel": "softmax", "name": "measured"})
        >>> figure = profiles(table, x="x", y="y", hue="name", panels="panel")
        >>> len(figure.axes)
        1
        >>> plt.close(figure)
    """
    looks = _looks(table[hue].unique(), theory=theory, marks=MARKERS if markers else "", ordered=ordered)
    across = min(table[panels].nunique(), 3)
    width = inches or max(5.2, 3.1 * table[panels].nunique() + 0.5)
    height = 3.1 + 0.2 * (0 if named else -(-len(looks) // fitting(width, looks)))
    each = (inches - 0.5) / across if inches and table[panels].nunique() <= 3 else 3.1
    figure, parts = panelled(table, panels, (each, 0.5, height), least=inches or 5.2)
    for axis, value, inside in parts:
        last = {}
        for name, look in looks.items():
            line = inside[inside[hue] == name].groupby(x)[y].agg(["mean", "min", "max"])
            if len(line):
                last[name] = float(line.index[-1]), float(line["mean"].iloc[-1]), look["color"]
            axis.plot(line.index, line["mean"], **look)
            if spread and name not in theory:
                axis.fill_between(line.index, line["min"], line["max"], color=look["color"], alpha=0.2, linewidth=0)
        names = {"xlabel": (x_labels or {}).get(value, label(x)), "ylabel": (y_labels or {}).get(value, "")}
        _frame(axis, value, log_x, log_y, **names)
        if named:
            direct(axis, last)
    if not named:
        legend(figure, looks)
    return figure


@drawing
def clouds(
    points: pd.DataFrame, limits: pd.DataFrame, *, log_x: Sequence[str] = (), log_y: Sequence[str] = (),
    x_labels: Mapping[str, str] | None = None, y_labels: Mapping[str, str] | None = None,
) -> Figure:  # fmt: skip
    """One point per case, and the curves no point may cross, dashed and black.

    Points and limits have columns `x`, `y`, `panel` and `name`; `log_x` and `log_y` name panels with logarithmic axes.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> points = pd.DataFrame({"x": [1.0, 2.0], "y": [0.5, 0.9], "panel": "softmax", "name": "random rows"})
        >>> figure = clouds(points, points.assign(y=1.0, name="limit"))
        >>> figure.axes[0].get_title()
        'softmax'
        >>> plt.close(figure)
    """
    bounds = list(limits["name"].unique())
    looks = _looks([*points["name"].unique(), *bounds], theory=bounds, lines=False)
    figure, parts = panelled(points, "panel", (3.6, 0.4, 3.6), least=5.6)
    for axis, value, inside in parts:
        over = limits[limits["panel"] == value]
        for name, look in looks.items():
            if name in bounds:
                line = over[over["name"] == name]
                axis.plot(line["x"], line["y"], **look)
            else:
                mine = inside.loc[inside["name"] == name, ["x", "y"]].to_numpy().T
                axis.scatter(*mine, s=8, alpha=0.45, linewidth=0, color=look["color"], marker=look["marker"])
        names = {"xlabel": (x_labels or {}).get(value, ""), "ylabel": (y_labels or {}).get(value, "")}
        _frame(axis, value, log_x, log_y, top=inside["y"].max() * (2 if value in log_y else 1.08), **names)
    legend(figure, looks)
    return figure


def _frame(
    axis: Axes, value: str, log_x: Sequence[str], log_y: Sequence[str], *, top: float | None = None, **names: str
) -> None:
    """Scales, names of the axes and title of a panel, and how far up it goes."""
    logarithmic = [name for name, panels in (("x", log_x), ("y", log_y)) if value in panels]
    axis.set(**{f"{name}scale": "log" if name in logarithmic else "linear" for name in "xy"})
    axis.set_ylim(top=top)
    _log_ticks(axis, *logarithmic)
    axis.set(**names, title=label(value))


def _log_ticks(axis: Axes, *which: str) -> None:
    """Readable ticks on logarithmic axes: powers of ten, or 1, 2, 5 where the axis spans less than two decades."""
    for name in which:
        low, high = axis.get_xlim() if name == "x" else axis.get_ylim()
        ticks = axis.xaxis if name == "x" else axis.yaxis
        if high < 100 * low:
            written_out(ticks)
        ticks.set_minor_formatter(NullFormatter())


def _looks(
    names: Collection[str], *, theory: Sequence[str] = (), marks: str = MARKERS, lines: bool = True,
    ordered: bool = False,
) -> dict[str, dict]:  # fmt: skip
    """How each name is drawn: bounds dashed in the theory's colour, others in the palette's colour or the cycle's."""
    # Names without a colour take the cycle in the table's order; red is kept for what attacks and breaks.
    cycle = [color for i, color in enumerate(sns.color_palette("colorblind", 10)) if i not in (3, 7)]
    if ordered:
        cycle = sns.color_palette("viridis_r", as_cmap=True)(np.linspace(0.2, 0.9, len(names) - len(theory)))
    dashes = {bound: ("--", ":", "-.")[i % 3] for i, bound in enumerate(theory)}
    looks = {name: {"color": COLORS["theory"], "linestyle": dash} for name, dash in dashes.items()}
    for i, name in enumerate(name for name in names if name not in theory):
        color, mark = COLORS.get(name, cycle[i % len(cycle)]), marks[i % len(marks)] if marks else ""
        looks[name] = {"color": color, "linestyle": "-" if lines else "", "marker": mark}
    return {name: looks[name] for name in names}
