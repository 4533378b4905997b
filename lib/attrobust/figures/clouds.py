"""Clouds of cases under the curves that limit them."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from attrobust.figures.bounds import MARKERS, _color, _handles, _log_ticks
from attrobust.figures.style import COLORS, label, style, unless_empty, write_note


@unless_empty
def clouds(
    points: pd.DataFrame, limits: pd.DataFrame, *, panels: str = "panel", hue: str = "name", log_x: Sequence[str] = (),
    log_y: Sequence[str] = (), x_labels: Mapping[str, str] | None = None, y_labels: Mapping[str, str] | None = None,
    note: str = "",
) -> Figure:  # fmt: skip
    """One point per case, and the curves no point may cross, dashed and black; one panel per value of `panels`.

    Args:
        points: one row per case with columns `x`, `y`, `panels` and `hue`.
        limits: the curves, with the same columns; a curve is drawn in the panel it names.
        panels: column whose values become panels.
        hue: column that tells kinds of cases, and curves, apart.
        log_x: panels with a logarithmic horizontal axis; points at 0 are left out there.
        log_y: panels with a logarithmic vertical axis; likewise.
        x_labels: panel -> label of its horizontal axis.
        y_labels: panel -> label of its vertical axis.
        note: what stands below the figure.
    """
    values, kinds, bounds = (list(dict.fromkeys(t)) for t in (points[panels], points[hue], limits[hue]))
    with style():
        width = max(5.6, 3.6 * len(values) + 0.4)
        figure, axes = plt.subplots(1, len(values), figsize=(width, 3.6), squeeze=False)
        for axis, value in zip(axes[0], values, strict=True):
            inside, over = points[points[panels] == value], limits[limits[panels] == value]
            for name in kinds:
                mine = inside[inside[hue] == name]
                look = {"marker": MARKERS[kinds.index(name) % len(MARKERS)], "color": _color(name, kinds)}
                axis.scatter(mine["x"], mine["y"], s=8, alpha=0.45, linewidth=0, **look)
            high = inside["y"].max()
            for name in bounds:
                line = over[over[hue] == name]
                dash = ("--", ":", "-.")[bounds.index(name) % 3]
                axis.plot(line["x"], line["y"], linestyle=dash, color=COLORS["theory"])
            axis.set(xscale="log" if value in log_x else "linear", yscale="log" if value in log_y else "linear")
            axis.set_ylim(top=high * (2 if value in log_y else 1.08))
            _log_ticks(axis, *("x" if value in log_x else ""), *("y" if value in log_y else ""))
            axis.set(xlabel=(x_labels or {}).get(value, ""), ylabel=(y_labels or {}).get(value, ""))
            axis.set_title(label(value))
        _handles(figure, [*kinds, *bounds], theory=bounds, lines=False, measured=kinds)
        write_note(figure, note)
    return figure
