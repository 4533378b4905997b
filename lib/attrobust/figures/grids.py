"""Panels and cells side by side: pictures and maps, from tidy pixels so that even they have numbers, and matrices."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from attrobust.figures.style import COLORS, WIDTH, bare, drawing, label

#: Maps of so many pixels have full colour at this quantile of their sizes; smaller ones at the largest.
LARGE, MOST = 10_000, 0.99


def pixels(panels: dict[tuple[str, str], tuple[str, np.ndarray, str]]) -> pd.DataFrame:
    """Tidy table of a picture grid, one row per pixel: row, column, kind, caption, i, j, value.

    `panels` goes from (row, column) to (kind, values of shape (height, width), caption); kind is "image" (grey, 0 to
    1), "signed" (blue negative, red positive, scaled per panel) or "importance" (dark = large, per panel). A
    "photograph" has values of shape (3, height, width), and a row for each of its channels, which the column `channel`
    counts.

    Example:
        >>> import numpy as np
        >>> table = pixels({("digit", "picture"): ("image", np.array([[0.0, 1.0]]), "a one")})
        >>> table[["row", "i", "j", "value"]].values.tolist()
        [['digit', 0, 0, 0.0], ['digit', 0, 1, 1.0]]
    """
    parts = []
    for (row, column), (kind, values, caption) in panels.items():
        *channel, i, j = (index.ravel() for index in np.indices(values.shape))
        numbers = {"i": i, "j": j, "value": values.ravel().astype(float)}
        if channel:
            numbers["channel"] = channel[0]
        parts.append(pd.DataFrame({"row": row, "column": column, "kind": kind, "caption": caption} | numbers))
    names = ["row", "column", "kind", "caption", "i", "j", "value"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=names)


@drawing
def pictures(table: pd.DataFrame) -> Figure:
    """Draw the grid of a `pixels` table: column names on top, row names on the left, captions below.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> table = pixels({("digit", "picture"): ("image", np.array([[0.0, 1.0]]), "a one")})
        >>> figure = pictures(table, note="One picture.")
        >>> figure.axes[0].get_title()
        'picture'
        >>> plt.close(figure)
    """
    rows, columns = list(table["row"].unique()), list(table["column"].unique())
    side = min(1.35, (WIDTH - 0.85) / len(columns))
    shape = (side * len(columns) + 0.9, (side + 0.3) * len(rows) + 0.5)
    figure, axes = plt.subplots(len(rows), len(columns), figsize=shape, squeeze=False)
    for (r, c), axis in np.ndenumerate(axes):
        axis.set(xticks=[], yticks=[])
        bare(axis)
        if r == 0:
            axis.set_title(columns[c], fontsize=8)
        if c == 0:
            axis.set_ylabel(rows[r], fontsize=8)
        panel = table[(table["row"] == rows[r]) & (table["column"] == columns[c])]
        if panel.empty:
            continue
        axis.set_xlabel(panel["caption"].fillna("").astype(str).iloc[0], fontsize=7)
        kind = panel["kind"].iloc[0]
        across = ["j", "channel"] if kind == "photograph" else "j"
        values = panel.pivot(index="i", columns=across, values="value").sort_index(axis=1).to_numpy()
        if kind == "photograph":
            axis.imshow(values.reshape(len(values), -1, 3).clip(0, 1), interpolation="nearest")
            continue
        largest = np.quantile(np.abs(values), 1 if values.size < LARGE else MOST) or 1.0
        looks = {"image": ("gray", 0, 1), "signed": ("RdBu_r", -largest, largest), "importance": ("Greys", 0, largest)}
        colors, low, high = looks[kind]
        axis.imshow(values, interpolation="nearest", cmap=colors, vmin=low, vmax=high)
    return figure


@drawing
def matrix(
    table: pd.DataFrame, *, rows: str, columns: str, digits: int = 2, x_label: str = "", y_label: str = "",
    color: str = "attack",
) -> Figure:  # fmt: skip
    """One cell per pair: `mean`, `low` and `high`; the deeper its colour (`shade`, 0 to 1), the more damage.

    With `color` "change" a `shade` between -1 and 1 has the colour of losses below zero and that of gains above.

    Example:
        >>> table = pd.DataFrame({"map": ["raw"], "metric": "cosine", "mean": 0.5, "low": 0.4, "high": 0.6})
        >>> figure = matrix(table.assign(shade=0.5), rows="map", columns="metric")
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0.50', '[0.40, 0.60]']
        >>> plt.close(figure)
    """
    lines, names = list(table[rows].unique()), list(table[columns].unique())
    figure, axis = plt.subplots(figsize=(min(1.15 * len(names) + 1.9, WIDTH), 0.36 * len(lines) + 1.3))
    shades = table.pivot(index=rows, columns=columns, values="shade").loc[lines, names]
    if color == "change":
        palette, least = LinearSegmentedColormap.from_list(color, [COLORS["down"], "white", COLORS["up"]]), -1.4
    else:
        palette, least = sns.light_palette(COLORS[color], as_cmap=True), 0
    axis.imshow(shades.to_numpy(dtype=float), cmap=palette, vmin=least, vmax=1.4, aspect="auto")
    for cell in table.to_dict("records"):
        place = names.index(cell[columns]), lines.index(cell[rows])
        mean, low, high = (f"{cell[name]:.{digits}f}" for name in ("mean", "low", "high"))
        for text, height, size in ((mean, 4, 8), (f"[{low}, {high}]", -6, 6.5)):
            text = "" if "nan" in text else text  # one seed has no interval
            axis.annotate(text, place, (0, height), textcoords="offset points", ha="center", va="center", fontsize=size)
    axis.set_xticks(range(len(names)), [label(name).replace(" ", "\n", 1) for name in names], fontsize=7)
    axis.set_yticks(range(len(lines)), [label(line) for line in lines], fontsize=7)
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axis.xaxis.set_label_position("top")
    bare(axis)
    return figure
