"""How far a gradient can turn on the way from one image to another: never more than the curvature relative to it.

    angle(g(x), g(x + d)) <= integral over t in [0, 1] of |P H(x_t) d| / |g(x_t)|,   x_t = x + t d

with g the gradient, H the Hessian and P the projection that removes the direction of g (P13; the unit vector g / |g|
moves on the sphere with this velocity). A map that has turned by less than a right angle has, up to a scale that no
rank sees, changed by the sine of the angle, so `certificates` apply. Ours as stated; on level sets Dombrowski et al.
2019, "Explanations can be manipulated and geometry is to blame".
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import checks, similarity
from attrobust.shapes import PerImage
from attrobust.theory import certificates, draws
from attrobust.theory.tally import Cases, bound, equalities, trial

Maps = Float[Tensor, "batch pixels"]
Vector = Float[Tensor, " n"]


def turn(function: Callable[[Vector], Float[Tensor, ""]], start: Vector, step: Vector, *, nodes: int = 32) -> float:
    """Most that the gradient's direction can turn on the way from `start` to `start + step`, in radians.

    Infinite, that is no guarantee, if the gradient turns by more than a right angle between two neighbouring nodes:
    passing through zero it reverses at once, and no curvature tells. Raises ValueError if `nodes` is not a whole number
    of at least 2.

    Args:
        function: smooth scalar function of a vector, differentiable twice.
        start: where the way begins.
        step: the whole way.
        nodes: Gauss-Legendre nodes, at least 2 (32 is our choice); the distance from the rule with half as many is
            added, so that the answer errs on the safe side.

    Example:
        >>> start, step = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
        >>> round(turn(lambda x: x[0] * x[1], start, step), 6) == round(math.pi / 4, 6)
        True
    """
    checks.count("nodes", nodes, least=2)
    gradient = torch.func.grad(function)

    def at(place: Tensor) -> tuple[Tensor, Tensor]:
        g, bend = torch.func.jvp(gradient, (start + place * step,), (step,))
        across = bend - (bend @ g) / g.square().sum().clamp_min(torch.finfo(g.dtype).tiny) * g
        return g / g.norm(), across.norm() / g.norm()

    def rule(nodes: int) -> tuple[float, Tensor]:
        places, weights = (torch.from_numpy(part).to(start) for part in np.polynomial.legendre.leggauss(nodes))
        with torch.no_grad():
            units, rates = torch.func.vmap(at)((places + 1) / 2)
        return float((weights / 2 * rates).sum()), units

    (fine, units), (coarse, _) = rule(nodes), rule(nodes // 2)
    if bool(((units[1:] * units[:-1]).sum(1) < 0).any()) or not math.isfinite(fine + coarse):
        return math.inf
    return fine + abs(fine - coarse)


def angle(first: Maps, second: Maps) -> PerImage:
    """Angle between two maps in radians, accurate for small angles too; NaN where a map is zero."""
    u, v = (m / m.norm(dim=1, keepdim=True) for m in (first, second))
    return 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))


def change_of_turn(angle: PerImage) -> PerImage:
    """Relative change |e| / |a| that a turn by `angle` can bring, up to the scale no rank or cosine sees.

    The turned map may be rescaled freely; the nearest rescaled one lies sin(angle) away. Infinite from a right
    angle on.

    Example:
        >>> change_of_turn(torch.tensor([0.0, math.pi / 6, 2.0]).double()).round(decimals=6).tolist()
        [0.0, 0.5, inf]
    """
    return torch.where(angle < math.pi / 2, angle.sin(), torch.full_like(angle, math.inf))


def logit_at(model: nn.Module, x: Float[Tensor, "one channels height width"], y: Tensor) -> Callable[[Tensor], Tensor]:
    """The logit of class y[0] as a function of one flat image of the shape of x."""
    return lambda flat: model(flat.view(x.shape))[0, y[0]]


@trial(version=1)
def turning(case: int) -> Cases:
    """P13: the angle between two maps of a smooth network and what it certifies, by the curvature on the way."""
    model, x, y = draws.network(case, images=1)
    g = draws.Source(case)
    step = g.normal(x.numel()) * 10 ** float(2 * torch.rand(1, generator=g.generator) - 1.7)
    value = logit_at(model, x, y)
    first, last = (torch.func.grad(value)(x.flatten() + t * step)[None] for t in (0, 1))
    limit = turn(value, x.flatten(), step, nodes=128)
    yield bound("P13", "angle and integrated curvature", angle(first, last), limit)
    cosine = similarity.cosine(first.view(x.shape), last.view(x.shape))
    yield bound("P13", "1 - cosine, certified", 1 - cosine, 1 - np.cos(min(limit, np.pi)))
    a, b = first.abs() / first.norm(), last.abs() / last.norm()
    change = change_of_turn(torch.tensor([limit], dtype=x.dtype))
    lost = 1 - similarity.topk_intersection(a[:, None], b[:, None], k=2)
    yield bound("P13", "1 - top-2, certified", lost, 1 - certificates.topk(a, change, k=2))
    lost = 1 - similarity.spearman(a[:, None], b[:, None])
    yield bound("P13", "1 - Spearman, certified", lost, 1 - certificates.spearman(a, change))


def equality() -> pd.DataFrame:
    """The gradient of x_1 x_2 turns in a plane."""
    quarter = turn(lambda p: p[0] * p[1], *torch.eye(2, dtype=torch.float64))
    return equalities({("P13", "turn in a plane"): (np.pi / 4, quarter)})
