"""Projected gradient ascent inside a norm ball, judged on the real model.

    x <- project(x + a_t steepest(gradient of the ascent objective)),   a_t annealed from `relative_step` x radius

An iterate counts only if `keep` allows it (the prediction is unchanged); the best counted iterate under the
*judging* objective is returned, never the last one. Madry et al. 2018; the ball's three operations follow the
design of Rauber et al. 2017 (foolbox).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attrobust import checks
from attrobust.attacks.objectives import Objective
from attrobust.balls import Ball

Images = Float[Tensor, "batch channels height width"]
Keep = Callable[[Images], Bool[Tensor, " batch"]]


@dataclass(frozen=True)
class Attacked:
    """The outcome of an attack.

    Attributes:
        x: best counted iterate of each image; the clean image where none counted.
        objective: its judging objective, as reached.
        counted: whether any iterate beside the clean image counted.
    """

    x: Images
    objective: Float[Tensor, " batch"]
    counted: Bool[Tensor, " batch"]


def pgd(
    objective: Objective,
    x: Images,
    ball: Ball,
    *,
    steps: int,
    generator: torch.Generator,
    restarts: int = 1,
    relative_step: float = 0.5,
    keep: Keep | None = None,
    judge: Objective | None = None,
) -> Attacked:
    """Increase `objective` inside the ball and inside [0, 1].

    Args:
        objective: climbed by its gradient; one number per image.
        x: clean images, pixels in [0, 1].
        ball: allowed perturbations.
        steps: gradient steps per restart, at least 1.
        generator: of the random starts.
        restarts: random starts, at least 1, run side by side as one batch; the best iterate over all counts.
        relative_step: first step over the radius; annealed to zero by a half cosine (0.5 is our choice; it left
            least on the table at 20 steps in notebook 01's strength check).
        keep: says which iterates count; all if None.
        judge: objective that selects the iterate, when the ascent climbs on a twin; `objective` if None.

    Returns:
        Attacked; it never leaves the ball or [0, 1], and never scores below the clean image under the judge.

    Raises:
        ValueError: for arguments out of range, or if the ascent direction is exactly zero for every image at the
            first start: the objective is piecewise constant (a ReLU network without a smooth twin) and an attack
            would be blind.

    Example:
        >>> x = torch.full((1, 1, 1, 2), 0.5)
        >>> brighter = pgd(lambda im: im.sum((1, 2, 3)), x, Ball("linf", 0.25), steps=5, generator=torch.Generator())
        >>> brighter.x.flatten().tolist()
        [0.75, 0.75]
    """
    checks.images("x", x)
    checks.count("steps", steps)
    checks.count("restarts", restarts)
    checks.positive("relative_step", relative_step)
    judge = judge or objective
    center = x.repeat(restarts, 1, 1, 1)
    with torch.enable_grad():
        best_here = judge(x).detach().repeat(restarts)
    best_at, counted_at = center.clone(), torch.zeros(len(center), dtype=torch.bool, device=x.device)
    at = (center + ball.sample(center, generator=generator)).clamp(0, 1)
    for step in range(steps + 1):
        at = at.detach().requires_grad_()
        with torch.enable_grad():
            climbed = objective(at)
        scored = (climbed if judge is objective else judge(at.detach())).detach()
        allowed = keep(at.detach()) if keep is not None else torch.ones_like(counted_at)
        counted_at |= allowed
        better = allowed & (scored > best_here)
        best_here = torch.where(better, scored, best_here)
        best_at = torch.where(better.view(-1, 1, 1, 1), at.detach(), best_at)
        if step == steps:
            break
        gradient = _gradient(climbed, at)
        if step == 0 and ball.radius > 0 and not bool(gradient.any()):
            raise ValueError(
                "objective has an exactly zero gradient at every image, so the attack would be blind; a"
                " piecewise-linear network must be attacked through models.smooth_twin"
            )
        size = relative_step * ball.radius * 0.5 * (1 + math.cos(math.pi * step / steps))
        at = (center + ball.project(at.detach() + size * ball.steepest(gradient) - center)).clamp(0, 1)
    winner = best_here.view(restarts, -1).argmax(0)
    rows = winner * len(x) + torch.arange(len(x), device=x.device)
    return Attacked(best_at[rows], best_here[rows], counted_at.view(restarts, -1).any(0))


def noise_search(
    objective: Objective, x: Images, ball: Ball, *, draws: int, generator: torch.Generator, keep: Keep | None = None
) -> Attacked:
    """Best of `draws` random perturbations of full size: the control with an attack's budget and no gradient.

    Args:
        objective: one number per image, the larger the better.
        x: clean images.
        ball: allowed perturbations; draws lie on its boundary (before clipping to [0, 1]).
        draws: at least 1.
        generator: of the draws.
        keep: says which draws count; all if None.

    Raises:
        ValueError: if `draws` is not a positive whole number.
    """
    checks.images("x", x)
    checks.count("draws", draws)
    best_value = objective(x).detach()
    best, counted = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(draws):
        at = (x + ball.boundary(x, generator=generator)).clamp(0, 1)
        scored = objective(at).detach()
        allowed = keep(at) if keep is not None else torch.ones_like(counted)
        counted |= allowed
        better = allowed & (scored > best_value)
        best_value = torch.where(better, scored, best_value)
        best = torch.where(better.view(-1, 1, 1, 1), at, best)
    return Attacked(best, best_value, counted)


def _gradient(values: Tensor, at: Tensor) -> Tensor:
    if not values.requires_grad:
        return torch.zeros_like(at)
    gradient = torch.autograd.grad(values, at, torch.ones_like(values), allow_unused=True, materialize_grads=True)[0]
    return gradient.nan_to_num()
