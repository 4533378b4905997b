"""Save a figure with its numbers: PNG for the page, PDF for print, CSV of what was plotted; byte-stable."""

import os
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import PIL.Image
from IPython.display import Image
from matplotlib.figure import Figure

from attrobust.figures.style import style


def save(
    figure: Figure, folder: str | Path, name: str, *, data: pd.DataFrame, alt: str, subfolder: str = "figures"
) -> Image:
    """Write <name>.png, <name>.pdf and <name>.csv into a subfolder, close the figure, return the picture for a cell.

    The same numbers give the same bytes: no dates, no random identifiers. `folder` is the notebook's `out`, `name` a
    letter and words, `data` the numbers that were plotted, tidy, and `alt` says what the figure shows to readers who
    cannot see it; it is kept in the picture's metadata.

    Raises:
        ValueError: if `alt` is empty or `data` has no columns.
    """
    if not alt.strip():
        raise ValueError(f"alt of figure {name!r} is empty; it must say what the figure shows")
    if not len(data.columns):
        raise ValueError(f"data of figure {name!r} has no columns; it must hold the plotted numbers")
    target = Path(folder) / subfolder
    target.mkdir(parents=True, exist_ok=True)
    drawn, png, pdf = BytesIO(), BytesIO(), BytesIO()
    with style():
        figure.savefig(drawn, format="png", metadata={"Software": None})
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    plt.close(figure)
    # A palette of 256 colours: a third of the size, no visible difference.
    picture = PIL.Image.open(drawn).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE)
    picture.save(png, format="png", optimize=True)
    numbers = data.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode()
    for suffix, content in ((".png", png.getvalue()), (".pdf", pdf.getvalue()), (".csv", numbers)):
        partial = target / f".{name}{suffix}.{os.getpid()}"
        partial.write_bytes(content)
        partial.replace(target / f"{name}{suffix}")
    return Image(png.getvalue(), metadata={"alt": alt})
