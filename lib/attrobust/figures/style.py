"""One look for every figure: a colour means the same thing in all notebooks, safe for colour-blind readers."""

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

_blind = sns.color_palette("colorblind")

#: Colour by meaning, across all notebooks.
COLORS: dict[str, object] = {
    "matched": _blind[0],
    "plateau": _blind[1],
    "standard": _blind[2],
    "attack": _blind[3],
    "worst": _blind[3],
    "noise": _blind[7],
    "noise search": "#555555",
    "top_k": _blind[4],
    "center": _blind[5],
    "cosine": _blind[9],
    "pearson": _blind[8],
    "theory": "#000000",
    "worst of all β": _blind[3],
    "relu": _blind[0],
    "twin": _blind[1],
    "wrong variant": _blind[3],
    "normal": _blind[0],
    "a few raised": _blind[1],
    "two leaders": _blind[2],
    "exactly 8 raised": _blind[4],
    "exactly 1 raised": _blind[5],
    "entropy / log n": _blind[5],
    "absolute change": _blind[1],
    "cosine of p": _blind[9],
    "relative change": _blind[0],
    "1 - Pearson of p": _blind[4],
    "Spearman of log p": _blind[2],
    "top-8": "#555555",
    "saliency": _blind[0],
    "raw_attention": _blind[1],
    "rollout": _blind[3],
    "gradient_attention": _blind[2],
    "relevance": _blind[4],
    "scores": "#555555",
    "softmax": _blind[0],
    "exp": _blind[1],
    "sigmoid": _blind[2],
    "softplus": _blind[4],
    "elu + 1": _blind[5],
    "ReLU": _blind[9],
    "ReLU²": _blind[8],
    "l2": "#999933",
    "gaussian": _blind[4],
    "exp, not divided": _blind[1],
    "linear": _blind[5],
    "linear, not divided": "#8c6d31",
    "fused softmax": "#555555",
    "linear, matrix not formed": _blind[7],
    "plain_rollout": _blind[6],
    "small step": _blind[0],
    "large step": _blind[1],
}

#: How names in rows read in figures and tables.
LABELS: dict[str, str] = {
    "matched": "matched loss",
    "plateau": "plateau, plain",
    "standard": "plateau, standard recipe",
    "fashion_mnist": "Fashion-MNIST",
    "mnist": "MNIST",
    "digits": "digits",
    "cifar10": "CIFAR-10",
    "cifar10_4k": "CIFAR-10 (4k)",
    "step_size": "step size",
    "batch_size": "batch size",
    "top_k": "top-k intersection",
    "spearman": "Spearman of |map|",
    "cosine": "cosine of signed map",
    "pearson": "Pearson of |map|",
    "displacement": "displacement of the map (l2)",
    "relative_displacement": "relative displacement",
    "center_shift": "shift of the centre (pixels)",
    "sharpness": "sharpness (top Hessian eigenvalue)",
    "trace": "trace of the Hessian",
    "invariant_flatness": "invariant flatness",
    "logit_gradient": "input gradient |∇z|",
    "loss_gradient": "input gradient of the loss",
    "logit_input_curvature": "input curvature of the logit",
    "loss_input_curvature": "input curvature of the loss",
    "relative_curvature": "relative curvature",
    "worst": "attack (worst of all)",
    "noise": "noise, one draw",
    "noise search": "noise, best of as many",
    "unseat": "unseat the leaders",
    "center": "centre of mass",
    "match": "match a wanted map",
    "walk": "random-sign walk",
    "saliency": "saliency",
    "raw_attention": "raw attention",
    "plain_rollout": "rollout, not renormalised",
    "gradient_attention": "gradient × attention",
    "relevance": "relevance (Chefer et al.)",
    "input_x_gradient": "input × gradient",
    "integrated_gradients": "integrated gradients",
    "smooth_grad": "SmoothGrad",
}


def label(name: str) -> str:
    """Readable form of a column or value name."""
    return LABELS.get(name, str(name).replace("_", " "))


def write_note(figure: Figure, note: str) -> None:
    """Small print below a figure: n, what the intervals are, the setting; wrapped to the figure's width."""
    if note:
        lines = textwrap.fill(note, width=int(17 * figure.get_figwidth()))
        figure.supxlabel(lines, fontsize=7, color="#444444", x=0.01, ha="left", linespacing=1.4)


def unless_empty(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Where every run has left its arm there is nothing to draw: one line that says so stands for the figure."""

    @wraps(draw)
    def drawn(table: pd.DataFrame, *arguments: object, note: str = "", **options: object) -> Figure:
        if len(table):
            return draw(table, *arguments, note=note, **options)
        with style():
            figure = plt.figure(figsize=(4.0, 1.2))
            figure.text(0.5, 0.6, "no run is left to draw", ha="center")
            write_note(figure, note)
        return figure

    return drawn


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib settings of all figures, in force inside the `with` block only."""
    settings = {
        **sns.axes_style("whitegrid"),
        **sns.plotting_context("paper", font_scale=1.0),
        "font.family": "DejaVu Sans",
        "pdf.fonttype": 42,
        "figure.dpi": 100,
        "savefig.dpi": 130,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.linewidth": 0.5,
        "lines.linewidth": 1.5,
        "lines.markersize": 4,
        "legend.frameon": False,
    }
    with mpl.rc_context(settings):
        yield
