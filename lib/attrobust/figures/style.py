"""One look for every figure: a colour means the same thing in all notebooks, safe for colour-blind readers.

A figure is saved with its numbers: PNG for the page, PDF for print, CSV of what was plotted; byte-stable.
"""

import inspect
import textwrap
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from attrobust import paths

_blind = sns.color_palette("colorblind")

#: Colour by meaning, across all notebooks: each colour with the names that have it.
_NAMES: tuple[tuple[object, tuple[str, ...]], ...] = (
    (_blind[0], ("logit", "relu", "relative change", "saliency", "saliency, logit", "softmax", "small step")),
    (_blind[0], ("plain SGD", "natural")),
    ("#5e3c99", ("matched",)),
    ("#aaaa00", ("plateau",)),
    ("#6baed6", ("saliency, log-probability",)),
    (_blind[1], ("log_probability", "twin", "absolute change", "raw_attention")),
    (_blind[1], ("exp", "exp, not divided", "exponential", "large step", "weights")),
    (_blind[2], ("standard", "Spearman of log p", "gradient_attention", "sigmoid")),
    (_blind[2], ("slopes in the pixels", "IR SmoothGrad")),
    (_blind[3], ("attack", "attacked", "worst", "worst of all β", "wrong variant", "shared kernel", "rollout")),
    (_blind[3], ("attacked images", "PGD training")),
    (_blind[4], ("top_k", "top-8", "relevance", "gaussian", "smoothing", "IR robust teacher")),
    (_blind[5], ("center", "entropy / log n", "elu + 1", "linear")),
    (_blind[6], ("plain_rollout", "decay_held")),
    (_blind[7], ("noise", "noise of the same size", "linear, matrix not formed")),
    (_blind[8], ("pearson", "1 - Pearson of p", "ReLU²")),
    (_blind[9], ("cosine", "cosine of p", "ReLU", "ReLU kernel, normalised", "metrics")),
    ("#000000", ("theory",)),
    ("#555555", ("noise search", "scores", "fused softmax", "statement")),
    ("#8c6d31", ("linear, not divided", "linear_unnormalised")),
    ("#999933", ("l2",)),
    ("#44aa99", ("gaussian_counted",)),
    ("#332288", ("softmax_plus_one",)),
    ("#cc6677", ("doubly_stochastic",)),
    ("#661100", ("cosine scores",)),
    ("#b8860b", ("even_heads",)),
    ("#984ea3", ("softplus",)),
    # Random rows, pairs and read-outs of theory.
    ("#6b6ecf", ("normal", "central differences", "gradient in the key matrix", "keys of the query's length")),
    ("#e7ba52", ("a few raised", "gradient in the tokens", "keys of any length")),
    ("#637939", ("two leaders",)),
    ("#ce6dbd", ("exactly 8 raised",)),
    ("#843c39", ("exactly 1 raised",)),
    ("#bbbbbb", ("the other kernels",)),
    ("#74c476", ("IR gradient",)),
    ("#999999", ("IR permuted",)),
    ("#8da0cb", ("gradient norm alone",)),
    ("#a6761d", ("weight decay",)),
    # Notebook 02: brown and teal in the weights (a property of the function or not), violet and pink in the pixels.
    ("#8c510a", ("trace", "trace of the Hessian", "Gauss-Newton trace", "gradient in the kernel", "step size")),
    ("#c98b3c", ("sharpness",)),
    ("#01665e", ("invariant flatness",)),
    ("#762a83", ("mean squared input gradient", "input gradient", "gradient in the pixels", "gradient")),
    ("#762a83", ("penalty, training images",)),
    ("#b98bc9", ("penalty, test images",)),
    ("#c51b7d", ("input curvature", "Hessian in the pixels", "curvature")),
    ("#e377c2", ("relative curvature",)),
    ("#117733", ("up",)),
    ("#882255", ("down",)),
    ("#777777", ("no change",)),
)
#: Inches across a figure, so that its notes can be read where a page shows it smaller.
WIDTH = 7.6
COLORS: dict[str, object] = {name: color for color, names in _NAMES for name in names}

#: How names in rows read in figures and tables, where it is not enough that they lose their underscores.
LABELS = {"matched": "matched loss", "plateau": "plateau, plain", "standard": "plateau, decay"}
LABELS |= {"decay_held": "plateau, step × decay held", "step_size": "step size", "batch_size": "batch size"}
LABELS |= {"log_probability": "log-probability", "large batch": "matched loss, batch 500"}
LABELS |= {"fashion_mnist": "Fashion-MNIST", "mnist": "MNIST", "cifar10": "CIFAR-10", "cifar10_4k": "CIFAR-10 (4k)"}
LABELS |= {"top_k": "top-k intersection", "spearman": "Spearman of |map|", "cosine": "cosine of signed map"}
LABELS |= {"pearson": "Pearson of |map|", "displacement": "displacement of the map (l2)"}
LABELS |= {"center_shift": "shift of the centre (pixels)", "trace": "trace of the Hessian"}
LABELS |= {"sharpness": "sharpness (top Hessian eigenvalue)", "logit_gradient": "input gradient |∇z|"}
LABELS |= {"loss_gradient": "input gradient of the loss", "loss_input_curvature": "input curvature of the loss"}
LABELS |= {"logit_input_curvature": "input curvature of the logit", "walk": "random-sign walk"}
LABELS |= {"worst": "attack (worst of all)", "noise": "noise, one draw", "noise search": "noise, best of as many"}
LABELS |= {"unseat": "unseat the leaders", "center": "centre of mass", "match": "match a wanted map"}
LABELS |= {"exponential": "exp, not divided", "linear_unnormalised": "linear, not divided"}
LABELS |= {"gaussian_counted": "gaussian, counted"}
LABELS |= {"even_heads": "raw attention, every head alike", "wide": "wide start", "narrow": "narrow start"}
LABELS |= {"plain_rollout": "rollout, not renormalised", "gradient_attention": "gradient × attention"}
LABELS |= {"relevance": "relevance (Chefer et al.)", "input_x_gradient": "input × gradient", "grad_cam": "Grad-CAM"}
LABELS |= {"smooth_grad": "SmoothGrad", "uniform_grad": "uniform gradient", "deep_lift": "DeepLIFT", "lrp": "LRP"}
LABELS |= {"mlp": "dense", "convnet": "convolutional", "convnet_bn": "convolutional, BatchNorm"}
LABELS |= {"resnet": "residual, BatchNorm", "vit": "transformer"}
LABELS |= {"radius_x_relative_curvature": "radius × relative curvature"}


def label(name: str) -> str:
    """Readable form of a column or value name.

    Example:
        >>> label("step_size"), label("plateau")
        ('step size', 'plateau, plain')
    """
    return LABELS.get(name, str(name).replace("_", " "))


def ends(*names: str) -> tuple[float, float]:
    """Least and largest value of what these names speak of: a correlation ends at 1, so does its interval.

    Example:
        >>> ends("spearman"), ends("value", "test accuracy"), ends("gain", "spearman")
        ((-1.0, 1.0), (0.0, 1.0), (-inf, inf))
    """
    said = " ".join(f"{name} {label(name)}" for name in names).lower()
    if not any(word in said for word in ("gain", "change", "differ", "displace", "distance", "1 -")):
        if any(word in said for word in ("top-k", "top_k", "accuracy")):
            return 0.0, 1.0
        if any(word in said for word in ("spearman", "pearson", "cosine", "correlation")):
            return -1.0, 1.0
    return -np.inf, np.inf


def style() -> AbstractContextManager[None]:
    """Matplotlib settings of all figures, in force inside the `with` block only.

    Example:
        >>> import matplotlib as mpl
        >>> with style():
        ...     mpl.rcParams["axes.spines.top"]
        False
    """
    settings = sns.axes_style("whitegrid") | sns.plotting_context("paper", font_scale=1.0)
    settings |= {"font.family": "DejaVu Sans", "pdf.fonttype": 42, "figure.dpi": 100, "savefig.dpi": 130}
    settings |= {"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False}
    settings |= {"grid.linewidth": 0.5, "lines.linewidth": 1.5, "lines.markersize": 4, "legend.frameon": False}
    return mpl.rc_context(settings)


def drawing(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """A function that draws in the common style and writes `note` below; without rows, that no run is left to draw.

    A canvas that a legend, a label or a title would leave grows until it holds all of them.
    """

    @wraps(draw)
    def drawn(table: pd.DataFrame, *arguments: object, note: str = "", **options: object) -> Figure:
        with style():
            if len(table):
                figure = draw(table, *arguments, **options)
            else:
                figure = plt.figure(figsize=(4.0, 1.2))
                figure.text(0.5, 0.6, "no run is left to draw", ha="center")
            if note:
                lines = textwrap.fill(note, width=int(17 * figure.get_figwidth()))
                figure.supxlabel(lines, fontsize=7, color="#444444", x=0.01, ha="left", linespacing=1.4)
            _grow(figure)
        return figure

    signature = inspect.signature(draw)
    note = inspect.Parameter("note", inspect.Parameter.KEYWORD_ONLY, default="", annotation=str)
    drawn.__signature__ = signature.replace(parameters=[*signature.parameters.values(), note])
    return drawn


def _grow(figure: Figure) -> None:
    """Lay a figure out, and enlarge it by what stands outside its canvas; the layout is then made anew, in turns."""
    places = {axis: axis.get_position(original=True) for axis in figure.axes}
    for _ in range(4):
        figure.draw_without_rendering()
        (left, low, right, high), size = figure.get_tightbbox().extents, figure.get_size_inches()
        beyond = np.maximum(0, [-left, -low]) + np.maximum(0, [right, high] - size)
        if beyond.max() <= 0.02:  # of an inch
            figure.stale = False  # the layout holds; to measure it changed nothing
            break
        for axis, place in places.items():  # a layout begins where the last one ended, and moves a little each time
            axis.set_position(place)
            axis.set_in_layout(True)
        figure.set_size_inches(size + 2 * beyond)


def panels(
    table: pd.DataFrame, column: str | None, inches: tuple[float, float, float], *, least: float = 0, **options: object
) -> tuple[Figure, list[tuple[Axes, str, pd.DataFrame]]]:
    """Panels, one per value of a column: axes, value and rows; inches of a panel, beside them, and high.

    Up to three stand in a row; more are wrapped, so that a page need not shrink them.
    """
    values = list(table[column].unique()) if column else [""]
    across = len(values) if len(values) <= 3 else 2 if len(values) == 4 else 3
    down = -(-len(values) // across)
    size = max(least, inches[0] * across + inches[1]), inches[2] * down
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, **options)
    for axis in axes.flat[len(values) :]:
        axis.remove()
    rows = [table[table[column] == value] if column else table for value in values]
    return figure, list(zip(axes.flat, values, rows, strict=False))


def legend(figure: Figure, looks: dict[str, dict[str, object]], *, columns: int = 0) -> None:
    """What every look stands for, above the figure, in as many columns as fit; none where there is only one."""
    if len(looks) > 1:
        handles = [plt.Line2D([], [], label=label(name), **look) for name, look in looks.items()]
        columns = columns or fitting(figure.get_figwidth(), looks)
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)


def direct(axis: Axes, lines: dict[str, tuple[float, float, object]]) -> None:
    """The name of each line at its right end, in its colour, in place of a legend: x, y and colour by name.

    Light colours are darkened, so that their names can be read. Names that would stand on each other are moved apart.
    Call it when the limits of the axis are final.
    """
    places = {n: axis.transAxes.inverted().transform(axis.transData.transform(end[:2]))[1] for n, end in lines.items()}
    order = sorted(places, key=places.get)
    gap = max(0.075, 0.16 / max(0.5, axis.get_window_extent().height / axis.figure.dpi))  # of a line of text, in axes
    for below, name in pairwise(order):
        places[name] = max(places[name], places[below] + gap)
    for name in order:
        ink = np.array(mpl.colors.to_rgb(lines[name][2]))
        ink *= min(1, 0.5 / max(ink @ [0.3, 0.6, 0.1], 0.01))
        height = axis.transData.inverted().transform(axis.transAxes.transform((1, places[name])))[1]
        how = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": 8}
        axis.text(1.02, height, label(name), color=tuple(ink), **how)


def outer(axis: Axes, text: str) -> str:
    """Name of an axis that panels side by side share: only the first of them shows it."""
    return text if axis.get_subplotspec().is_first_col() else ""


def written_out(axis: Axis, between: Sequence[int] = (1, 2, 5)) -> None:
    """Ticks of a logarithmic axis at these multiples of powers of ten, their numbers written out."""
    axis.set_major_locator(LogLocator(subs=between))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def fitting(width: float, looks: Collection[str]) -> int:
    """Columns of a legend that fit into `width` inches."""
    widest = 0.6 + 0.074 * max(len(label(name)) for name in looks)
    return max(1, min(len(looks), int(width / widest)))


def bare(axis: Axes) -> None:
    """Neither grid nor frame."""
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def save(
    figure: Figure, folder: str | Path, name: str, *, data: pd.DataFrame, alt: str, subfolder: str = "figures"
) -> Image:
    """Write <name>.png, <name>.pdf and <name>.csv into a subfolder, close the figure, return the picture for a cell.

    `folder` is the notebook's `out`, `name` a letter and words, `data` the numbers that were plotted, tidy, and `alt`
    says what the figure shows to readers who cannot see it; it is kept in the picture's metadata. A committed figure of
    the same name, picture and numbers lends its PDF, whose drawing took a quarter of a notebook's time; delete it to
    have it drawn.

    Raises:
        ValueError: an `alt` without words, or `data` without columns.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> figure, _ = plt.subplots(figsize=(1, 1))
        >>> with TemporaryDirectory() as folder:
        ...     image = save(figure, folder, "a_square", data=pd.DataFrame({"x": [1]}), alt="An empty square.")
        ...     sorted(path.name for path in Path(folder, "figures").iterdir())
        ['a_square.csv', 'a_square.pdf', 'a_square.png']
    """
    if not alt.strip():
        raise ValueError(f"alt of figure {name!r} is empty; it must say what the figure shows")
    if not len(data.columns):
        raise ValueError(f"data of figure {name!r} has no columns; it must hold the plotted numbers")
    drawn, png = BytesIO(), BytesIO()
    with style():
        if figure.stale:  # changed since it was drawn
            figure.draw_without_rendering()
    with style(), mpl.rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)  # laid out once, which takes longer than to draw
        figure.savefig(drawn, format="png", metadata={"Software": None})
        # A palette of 256 colours: a third of the size, no visible difference.
        picture = PIL.Image.open(drawn).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE)
        picture.save(png, format="png", optimize=True)
        numbers = data.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode()
        pdf = _lent(name, png.getvalue(), numbers) or _pdf(figure)
    plt.close(figure)
    for suffix, content in ((".png", png.getvalue()), (".pdf", pdf), (".csv", numbers)):
        paths.write_bytes(Path(folder) / subfolder / f"{name}{suffix}", content)
    return Image(png.getvalue(), metadata={"alt": alt})


def _pdf(figure: Figure) -> bytes:
    drawn = BytesIO()
    figure.savefig(drawn, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return drawn.getvalue()


def _lent(name: str, png: bytes, numbers: bytes) -> bytes | None:
    """The PDF of a committed figure with this name, these pixels and these numbers, if there is one."""
    for picture in paths.figures.glob(f"*/{name}.png"):
        pdf, table = picture.with_suffix(".pdf"), picture.with_suffix(".csv")
        if pdf.is_file() and table.is_file() and (picture.read_bytes(), table.read_bytes()) == (png, numbers):
            return pdf.read_bytes()
    return None
