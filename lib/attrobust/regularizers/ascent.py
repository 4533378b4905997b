"""The inner maximisation of penalties and of adversarial training: signed steps inside a ball, from a random start."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attrobust import checks
from attrobust.balls import Ball
from attrobust.models.derivatives import again
from attrobust.models.readouts import cross_entropy
from attrobust.shapes import Images, Labels, PerImage


def ascend(
    objective: Callable[[Images], Tensor], x: Images, *, ball: Ball, steps: int, generator: torch.Generator,
    length: float | None = None,
) -> Images:  # fmt: skip
    """Images of the ball around x, pixels in [0, 1], at which an objective of one number per image tends to be larger.

    `length` is that of a step, 2.5 radius / steps if it is None (Madry et al. 2018, appendix). An image's steps depend
    on no other image.

    Raises:
        ValueError: `steps` below 1, or a negative `length`.

    Example:
        >>> x, ball = torch.full((1, 1, 1, 2), 0.5), Ball("linf", 0.25)
        >>> darker = ascend(lambda at: -at.flatten(1).sum(1), x, ball=ball, steps=3, generator=torch.Generator())
        >>> darker.flatten().tolist()
        [0.25, 0.25]
    """
    checks.count("steps", steps)
    step = 2.5 * ball.radius / steps if length is None else checks.at_least("length", length, 0)
    at = (x.detach() + ball.sample(x, generator=generator)).clamp(0, 1)
    for _ in range(steps):
        value = objective(at.requires_grad_()).sum()
        with again(value):
            (slope,) = torch.autograd.grad(value, at)
        at = (x + ball.project(at.detach() + step * ball.steepest(slope) - x)).clamp(0, 1).detach()
    return at


def rise(model: nn.Module, x: Images, end: Images, y: Labels) -> PerImage:
    """How much larger each example's cross-entropy is at `end` than at x: added to a loss, it moves the loss there."""
    return cross_entropy(model, end, y) - cross_entropy(model, x.detach(), y)
