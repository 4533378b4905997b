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


def save(figure: Figure, folder: str | Path, name: str, *, data: pd.DataFrame, alt: str) -> Image:
    """Write <name>.png, <name>.pdf and <name>.csv into `folder`, close the figure, show the PNG.

    The same numbers give the same bytes: no dates, no random identifiers.

    Args:
        figure: what to save.
        folder: the notebook's `out`; figures go to its subfolder "figures".
        name: file stem, a letter and words.
        data: the numbers that were plotted, tidy; without rows where no run is left.
        alt: what the figure shows, for readers who cannot see it.

    Returns:
        The picture, with the alternative text in its metadata, for display as a cell's last line.

    Raises:
        ValueError: if `alt` is empty or `data` has no columns.
    """
    return write(figure, Path(folder) / "figures", name, data=data, alt=alt)


def write(figure: Figure, target: Path, name: str, *, data: pd.DataFrame, alt: str) -> Image:
    """The same as `save`, straight into the folder `target`."""
    if not alt.strip():
        raise ValueError(f"alt of figure {name!r} is empty; it must say what the figure shows")
    if not len(data.columns):
        raise ValueError(f"data of figure {name!r} has no columns; it must hold the plotted numbers")
    target.mkdir(parents=True, exist_ok=True)
    png, pdf = BytesIO(), BytesIO()
    with style():
        figure.savefig(png, format="png", metadata={"Software": None})
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    png = _indexed(png)
    plt.close(figure)
    numbers = data.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode()
    for suffix, content in ((".png", png.getvalue()), (".pdf", pdf.getvalue()), (".csv", numbers)):
        partial = target / f".{name}{suffix}.{os.getpid()}"
        partial.write_bytes(content)
        partial.replace(target / f"{name}{suffix}")
    return Image(png.getvalue(), metadata={"alt": alt})


def _indexed(png: BytesIO) -> BytesIO:
    """The same picture with a palette of 256 colours: a third of the size, no visible difference."""
    small = BytesIO()
    picture = PIL.Image.open(png).convert("RGB")
    picture.quantize(256, dither=PIL.Image.Dither.NONE).save(small, format="png", optimize=True)
    return small
