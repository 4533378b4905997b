"""Integrated gradients of the loss from an image to an attacked one, as penalties (Chen et al. 2019).

    IG(x, x') = (x' - x) * mean over k = 1..m of grad loss(x + k/m (x' - x))         sums to loss(x') - loss(x)

    ig_norm       |IG(x, x')|_1                           x' the image of the ball that makes it large
    ig_sum_norm   b |IG(x, x')|_1 + loss(x') - loss(x)    x' the one that makes b |IG|_1 + loss large
                  so that the training loss is taken at x': b = 0 is adversarial training

Reference: Chen, Wu, Rastogi, Liang and Jha 2019, "Robust attribution regularization", section 3.3, there with sums over
the batch. On Fashion-MNIST they take radius 0.1, 20 inner steps, m = 50 (10 of them in the inner steps), b = 0.1;
cheaper values are the defaults here, as a penalty of 250 gradients leaves an equal budget nothing to train with.
"""

import torch
from torch import nn

from attrobust import checks
from attrobust.balls import Ball
from attrobust.models.readouts import cross_entropy
from attrobust.regularizers.ascent import ascend, rise
from attrobust.regularizers.input_gradient import leaf, live_gradient
from attrobust.shapes import Images, Labels, PerImage
from attrobust.versions import versioned


def loss_path(model: nn.Module, x: Images, end: Images, y: Labels, *, points: int) -> Images:
    """Integrated gradients of each example's cross-entropy from x to `end`, live in parameters and in `end`."""
    share = torch.arange(1, checks.count("points", points) + 1, dtype=x.dtype, device=x.device) / points
    path = x + share.view(-1, *(1,) * x.ndim) * (end - x)
    if not path.requires_grad:
        path.requires_grad_()
    loss = cross_entropy(model, path.flatten(0, 1), y.repeat(points))
    return (end - x) * live_gradient(loss, path).mean(0)


@versioned(1)
def ig_norm(
    model: nn.Module, x: Images, y: Labels, *, generator: torch.Generator, radius: float = 8 / 255, steps: int = 5,
    points: int = 10, inner_points: int = 3,
) -> PerImage:  # fmt: skip
    """|IG|_1 of the loss from each image to the one that `steps` signed steps find within the linf `radius`.

    Raises:
        ValueError: a negative radius, `steps` below 1, or what `input_gradient` refuses.

    Example:
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.full((2, 1, 2, 2), 0.5)
        >>> size = ig_norm(linear, x, torch.tensor([0, 1]), generator=torch.Generator())
        >>> tuple(size.shape), bool((size > 0).all())
        ((2,), True)
    """
    leaf(model, x)

    def size(at: Images) -> PerImage:
        return _size(model, x, at, y, inner_points)

    end = ascend(size, x, ball=Ball("linf", radius), steps=steps, generator=generator)
    return _size(model, x, end, y, points)


@versioned(1)
def ig_sum_norm(
    model: nn.Module, x: Images, y: Labels, *, generator: torch.Generator, radius: float = 8 / 255, steps: int = 5,
    points: int = 10, inner_points: int = 3, size: float = 0.1,
) -> PerImage:  # fmt: skip
    """`size` times |IG|_1 of the loss, plus how much larger the loss is there: at strength 1 it is taken there.

    Raises:
        ValueError: a negative `size` or radius, `steps` below 1, or what `input_gradient` refuses.

    Example:
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.full((2, 1, 2, 2), 0.5)
        >>> ig_sum_norm(linear, x, torch.tensor([0, 1]), generator=torch.Generator()).shape
        torch.Size([2])
    """
    checks.at_least("size", size, 0)
    leaf(model, x)

    def harm(at: Images) -> PerImage:
        return cross_entropy(model, at, y) + size * _size(model, x, at, y, inner_points)

    end = ascend(harm, x, ball=Ball("linf", radius), steps=steps, generator=generator)
    return size * _size(model, x, end, y, points) + rise(model, x, end, y)


def _size(model: nn.Module, x: Images, end: Images, y: Labels, points: int) -> PerImage:
    return loss_path(model, x.detach(), end, y, points=points).flatten(1).abs().sum(1)
