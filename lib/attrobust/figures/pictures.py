"""Pictures and maps side by side, drawn from a tidy table of pixels, so that even a picture has its numbers."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from attrobust.figures.style import style, unless_empty, write_note


def pixels(panels: dict[tuple[str, str], tuple[str, np.ndarray, str]]) -> pd.DataFrame:
    """Tidy table of a picture grid.

    Args:
        panels: (row, column) -> (kind, values of shape (height, width), caption); kind is "image" (grey, 0 to 1),
            "signed" (blue negative, red positive, scaled per panel) or "importance" (dark = large, per panel).

    Returns:
        One row per pixel: row, column, kind, caption, i, j, value.
    """
    parts = [pd.DataFrame(columns=["row", "column", "kind", "caption", "i", "j", "value"])] if not panels else []
    for (row, column), (kind, values, caption) in panels.items():
        i, j = np.indices(values.shape)
        parts.append(
            pd.DataFrame({"i": i.ravel(), "j": j.ravel(), "value": values.ravel().astype(float)}).assign(
                row=row, column=column, kind=kind, caption=caption
            )
        )
    return pd.concat(parts, ignore_index=True)[["row", "column", "kind", "caption", "i", "j", "value"]]


@unless_empty
def pictures(table: pd.DataFrame, *, note: str = "", size: float = 1.35) -> Figure:
    """Draw the grid of a `pixels` table: column names on top, row names on the left, captions below."""
    rows, columns = list(dict.fromkeys(table["row"])), list(dict.fromkeys(table["column"]))
    captions = table["caption"].fillna("").astype(str)
    with style():
        figure, axes = plt.subplots(
            len(rows),
            len(columns),
            figsize=(size * len(columns) + 0.9, (size + 0.3) * len(rows) + 0.5),
            squeeze=False,
        )
        for r, row in enumerate(rows):
            for c, column in enumerate(columns):
                axis = axes[r][c]
                chosen = (table["row"] == row) & (table["column"] == column)
                axis.set(xticks=[], yticks=[])
                axis.grid(visible=False)
                for spine in axis.spines.values():
                    spine.set_visible(False)
                if r == 0:
                    axis.set_title(column, fontsize=8)
                if c == 0:
                    axis.set_ylabel(row, fontsize=8)
                if chosen.any():
                    panel = table[chosen]
                    axis.set_xlabel(captions[chosen].iloc[0], fontsize=7)
                    _draw(axis, panel.pivot(index="i", columns="j", values="value").to_numpy(), panel["kind"].iloc[0])
        write_note(figure, note)
    return figure


def _draw(axis: plt.Axes, values: np.ndarray, kind: str) -> None:
    largest = np.abs(values).max() or 1.0
    scales = {
        "image": {"cmap": "gray", "vmin": 0, "vmax": 1},
        "signed": {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest},
        "importance": {"cmap": "Greys", "vmin": 0, "vmax": largest},
    }
    axis.imshow(values, interpolation="nearest", **scales[kind])
