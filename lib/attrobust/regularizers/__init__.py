"""Penalties that are added to the loss of each training example, and that training differentiates once more.

A penalty is a function of (model, x, y) that returns one number per example, live in the model's parameters.
"""

from collections.abc import Callable

from torch import Tensor, nn

from attrobust.regularizers.input_gradient import input_gradient

Penalty = Callable[[nn.Module, Tensor, Tensor], Tensor]

#: Name of a penalty to its function; "none" adds nothing.
PENALTIES: dict[str, Penalty | None] = {
    "none": None,
    "input_gradient": input_gradient,
}

__all__ = ["PENALTIES", "Penalty", "input_gradient"]
