"""Integrated gradients of the loss from an image to an attacked one, as penalties (Chen et al. 2019).

    IG(x, x') = (x' - x) * mean over k = 1..m of grad loss(x + k/m (x' - x))         sums to loss(x') - loss(x)
    x' = the image of the ball that makes |IG(x, x')|_1 large

    ig_norm       |IG(x, x')|_1
    ig_sum_norm   |IG(x, x')|_1 + loss(x') - loss(x):  with it, the training loss is taken at x', not at x

Reference: Chen, Wu, Rastogi, Liang and Jha 2019, "Robust attribution regularization", section 3.3, there with sums over
the batch. On Fashion-MNIST they take radius 0.1, 20 inner steps, m = 50 (10 of them in the inner steps); cheaper
values are the defaults here, as a penalty of 250 gradients leaves an equal budget nothing to train with.
"""

import torch
from torch import nn
from torch.nn import functional as F

from attrobust import checks
from attrobust.balls import Ball
from attrobust.regularizers.ascent import ascend
from attrobust.shapes import Images, Labels, PerImage
from attrobust.versions import versioned


def loss_path(model: nn.Module, x: Images, end: Images, y: Labels, *, points: int) -> Images:
    """Integrated gradients of each example's cross-entropy from x to `end`, live in parameters and in `end`."""
    share = torch.arange(1, checks.count("points", points) + 1, dtype=x.dtype, device=x.device) / points
    path = x + share.view(-1, *(1,) * x.ndim) * (end - x)
    if not path.requires_grad:
        path.requires_grad_()
    loss = F.cross_entropy(model(path.flatten(0, 1)), y.repeat(points), reduction="sum")
    (slopes,) = torch.autograd.grad(loss, path, create_graph=True)
    return (end - x) * slopes.mean(0)


@versioned(1)
def ig_norm(
    model: nn.Module, x: Images, y: Labels, *, generator: torch.Generator, radius: float = 8 / 255, steps: int = 5,
    points: int = 10, inner_points: int = 3,
) -> PerImage:  # fmt: skip
    """|IG|_1 of the loss from each image to the one that `steps` signed steps find within the linf `radius`."""
    end = _attacked(model, x, y, radius, steps, inner_points, generator)
    return loss_path(model, x.detach(), end, y, points=points).flatten(1).abs().sum(1)


@versioned(1)
def ig_sum_norm(
    model: nn.Module, x: Images, y: Labels, *, generator: torch.Generator, radius: float = 8 / 255, steps: int = 5,
    points: int = 10, inner_points: int = 3,
) -> PerImage:  # fmt: skip
    """|IG|_1 as `ig_norm`, plus how much larger the loss is there; at strength 1 the loss is taken there instead."""
    end = _attacked(model, x, y, radius, steps, inner_points, generator)
    size = loss_path(model, x.detach(), end, y, points=points).flatten(1).abs().sum(1)
    there, here = (F.cross_entropy(model(at), y, reduction="none") for at in (end, x.detach()))
    return size + there - here


def _attacked(
    model: nn.Module, x: Images, y: Labels, radius: float, steps: int, points: int, generator: torch.Generator
) -> Images:
    def size(at: Images) -> PerImage:
        return loss_path(model, x.detach(), at, y, points=points).flatten(1).abs().sum(1)

    return ascend(size, x, ball=Ball("linf", radius), steps=steps, generator=generator)
