"""Penalties that are added to the loss of each training example, and that training differentiates once more.

A penalty is a function of (model, x, y) that returns one number per example, live in the model's parameters. One that
draws random numbers waits for a `generator`, and draws image by image, in the order of the batch; one that needs a map
of each example waits for `wanted`.
"""

from collections.abc import Callable

from torch import Tensor

from attrobust.regularizers.alignment import art, l2_cosine
from attrobust.regularizers.along_path import ig_norm, ig_sum_norm
from attrobust.regularizers.ascent import ascend
from attrobust.regularizers.input_gradient import input_gradient
from attrobust.regularizers.interpretation import WANTED, gradient_norm, interpretation, wanted_maps
from attrobust.regularizers.logits import hessian, jacobian
from attrobust.regularizers.loss_curvature import cure, ssr, ssr_lanczos

Penalty = Callable[..., Tensor]

#: Name of a penalty to its function; "none" adds nothing.
PENALTIES: dict[str, Penalty | None] = {
    "none": None,
    "input_gradient": input_gradient,
    "jacobian": jacobian,
    "hessian": hessian,
    "ssr": ssr,
    "ssr_lanczos": ssr_lanczos,
    "cure": cure,
    "l2_cosine": l2_cosine,
    "ig_norm": ig_norm,
    "ig_sum_norm": ig_sum_norm,
    "art": art,
    "gradient_norm": gradient_norm,
    "interpretation": interpretation,
}

#: Penalties that hold loss(x') - loss(x), of the plain cross-entropy, by which the training loss moves to an attacked
#: image: they may be negative.
MOVING: tuple[Penalty, ...] = (ig_sum_norm, art)

__all__ = [
    "MOVING", "PENALTIES", "WANTED", "Penalty", "art", "ascend", "cure", "gradient_norm", "hessian", "ig_norm",
    "ig_sum_norm", "input_gradient", "interpretation", "jacobian", "l2_cosine", "ssr", "ssr_lanczos", "wanted_maps",
]  # fmt: skip
