"""How far a map can turn (P13), and from its change to a guarantee for each similarity (P14).

With g the gradient, H the Hessian and P the projection that removes the direction of g (g / |g| moves on the sphere):

    angle(g(x), g(x + d)) <= integral over t in [0, 1] of |P H(x_t) d| / |g(x_t)|,   x_t = x + t d

A map that has turned by less than a right angle has, up to a scale that no rank sees, changed by the sine of the angle.
With scores a (a map, or its absolute values), a change e of known size and theta the angle a map has turned:

    cosine     >= sqrt(1 - r^2),  r = |e|_2 / |a|_2          (and cos theta)
    top-k      >= (k - m*) / k,   m* the most swaps whose least squared cost c_m is within |e|_2^2
    Kendall    >= 1 - 2 #{i < j : |a_i - a_j| <= 2 |e|_inf} / (d (d - 1) / 2)
    Spearman   >= 1 - 6 sum_i N_i^2 / (d (d^2 - 1)),   N_i = #{j != i : |a_i - a_j| <= 2 |e|_inf}

All four are scale-free: scaling a and e together changes nothing. The first two are attained, as are gaps of twice the
change per pixel. A ValueError says where a change is negative or NaN, or k not from 1 to the number of pixels. Proofs
stand in notebook 02; ours as stated. On level sets the angle is of Dombrowski et al. 2019, "Explanations can be
manipulated and geometry is to blame".
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.stats import kendalltau
from torch import Tensor, nn

from attrobust import checks, similarity
from attrobust.shapes import Importances, PerImage
from attrobust.theory.draws import Source, network
from attrobust.theory.tally import Cases, bound, equalities, trial

Scores = Float[Tensor, "batch pixels"]
Vector = Float[Tensor, " n"]


def turn(function: Callable[[Vector], Float[Tensor, ""]], start: Vector, step: Vector, *, nodes: int = 32) -> float:
    """Most that the gradient's direction can turn on the way from `start` to `start + step`, in radians.

    Infinite, that is no guarantee, if the gradient turns by more than a right angle between two neighbouring nodes:
    passing through zero it reverses at once, and no curvature tells. The function is differentiable twice; there are
    `nodes` of Gauss and Legendre (32 is our choice), and the distance from the rule with half as many is added, so that
    the answer errs on the safe side. Raises ValueError if `nodes` is not a whole number of at least 2.

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


def angle(first: Scores, second: Scores) -> PerImage:
    """Angle between two maps in radians, accurate for small angles too; NaN where a map is zero."""
    u, v = (m / m.norm(dim=1, keepdim=True) for m in (first, second))
    return 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))


def change_of_turn(angle: PerImage) -> PerImage:
    """Relative change |e| / |a| that a turn by `angle` can bring, up to the scale no rank or cosine sees.

    The turned map may be rescaled freely; the nearest rescaled one lies sin(angle) away. Infinite from pi / 2 on.
    """
    return torch.where(angle < math.pi / 2, angle.sin(), torch.full_like(angle, math.inf))


def logit_at(model: nn.Module, x: Float[Tensor, "one channels height width"], y: Tensor) -> Callable[[Tensor], Tensor]:
    """The logit of class y[0] as a function of one flat image of the shape of x."""
    return lambda flat: model(flat.view(x.shape))[0, y[0]]


def cosine(relative: PerImage) -> PerImage:
    """Least cosine between two maps when the second lies within `relative` times the length of the first.

    sqrt(1 - relative^2), and -1 from relative = 1 on, where nothing is guaranteed. Attained (`worst_cosine`).
    """
    _not_negative("relative", relative)
    return torch.where(relative < 1, (1 - relative.square()).clamp_min(0).sqrt(), -torch.ones_like(relative))


def worst_cosine(scores: Scores, across: Scores, relative: PerImage) -> Scores:
    """Change of `relative` size below 1 that attains `cosine`: along -a by r^2, across by r sqrt(1 - r^2).

    The maps a are not zero, and the directions `across` perpendicular to them, of any length.
    """
    r = relative[:, None]
    unit = across / across.norm(dim=1, keepdim=True)
    return -r.square() * scores + r * (1 - r.square()).sqrt() * scores.norm(dim=1, keepdim=True) * unit


def topk(scores: Scores, change: PerImage, *, k: int) -> PerImage:
    """Least top-k intersection after any change of Euclidean length at most `change`, which may be infinite.

    The certified share of the k leading pixels that stay, in [0, 1]. Exact: `swap` attains it.

    Example:
        >>> a = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).double()
        >>> topk(a, torch.tensor([0.7]).double(), k=2).item(), topk(a, torch.tensor([0.71]).double(), k=2).item()
        (1.0, 0.5)
    """
    _not_negative("change", change)
    return 1 - (swap_costs(scores, k=k) <= change[:, None].square()).sum(1).to(scores) / k


def swap_costs(scores: Scores, *, k: int) -> Float[Tensor, "batch swaps"]:
    """Least squared length c_m of a change that takes m pixels out of the k leading ones, m = 1, 2, ...

        c_m = min over tau of  sum_S (a_i - tau)_+^2 + sum_T (tau - a_j)_+^2

    S: the m smallest of the leading k; T: the m largest of the rest. There are min(k, d - k) columns, growing.
    """
    _, down, up = _levels(scores, k)
    return (down.square() + up.square()).sum(-1)


def swap(scores: Scores, *, k: int, swaps: int) -> Scores:
    """Cheapest change that takes `swaps` pixels out of the leading k (up to a tie, which any nudge breaks).

    Raises ValueError if `swaps` is not from 1 to min(k, pixels - k).
    """
    checks.count("swaps", swaps, most=min(k, scores.shape[1] - k))
    tau = _levels(scores, k)[0][:, swaps - 1, None]
    order = scores.argsort(dim=1, descending=True, stable=True)
    lower, raise_ = order[:, k - swaps : k], order[:, k : k + swaps]
    change = torch.zeros_like(scores).scatter(1, lower, (tau - scores.gather(1, lower)).clamp_max(0))
    return change.scatter(1, raise_, (tau - scores.gather(1, raise_)).clamp_min(0))


def topk_within(scores: Scores, change: PerImage, *, k: int) -> PerImage:
    """Least top-k intersection after a change of at most `change` in every pixel: gaps of more than twice it hold."""
    _not_negative("change", change)
    inner, outer = _sides(scores, k)
    return 1 - (inner - outer <= 2 * change[:, None]).sum(1).to(scores) / k


def kendall(scores: Scores, change: PerImage) -> PerImage:
    """Least Kendall correlation after a change of at most `change` in every pixel.

    The scores have no ties; |e|_2 is a valid, looser choice. Raises ValueError if there are fewer than two pixels.
    """
    close, pixels = _close(scores, change), scores.shape[1]
    return 1 - 2 * close.sum((1, 2)).to(scores) / 2 / (pixels * (pixels - 1) / 2)


def spearman(scores: Scores, change: PerImage) -> PerImage:
    """Least Spearman correlation after the change of `kendall`, never below -1: a rank moves at most N_i."""
    moved, pixels = _close(scores, change).sum(2).to(scores).square().sum(1), scores.shape[1]
    return (1 - 6 * moved / (pixels * (pixels**2 - 1))).clamp_min(-1)


def kendall_correlation(first: Importances, second: Importances) -> PerImage:
    """Kendall correlation of the pixels of each pair of maps."""
    pairs = zip(first.flatten(1), second.flatten(1), strict=True)
    return torch.tensor([kendalltau(a, b).statistic for a, b in pairs], dtype=first.dtype)


@trial(version=1)
def turning(case: int) -> Cases:
    """P13: the angle between two maps of a smooth network and what it certifies, by the curvature on the way."""
    model, x, y = network(case, images=1)
    g = Source(case)
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
    yield bound("P13", "1 - top-2, certified", lost, 1 - topk(a, change, k=2))
    lost = 1 - similarity.spearman(a[:, None], b[:, None])
    yield bound("P13", "1 - Spearman, certified", lost, 1 - spearman(a, change))


@trial(version=1)
def metrics(case: int) -> Cases:
    """P14 against changes built to break it; similarities enter as 1 - value, so that left <= right."""
    g = Source(case)
    pixels, k = g.whole(6, 16), g.whole(1, 5)
    a, r, across = g.uniform(1, pixels), g.uniform(1, 1), g.normal(1, pixels)
    across = across - (across * a).sum() / a.square().sum() * a
    yield _lost("cosine", similarity.cosine, a, worst_cosine(a, across, r[0]), cosine(r[0]))
    top = partial(similarity.topk_intersection, k=k)
    for swaps in range(1, min(k, pixels - k) + 1):
        e = swap(a, k=k, swaps=swaps) * (1 + 1e-7)
        yield _lost("top-k", top, a, e, topk(a, e.norm(dim=1), k=k))
    size = 0.3 * r[0].square()
    leading = torch.where(a >= a.topk(k).values[:, -1:], -1.0, 1.0).to(a)
    upper = torch.where(a >= a.median(), -1.0, 1.0).to(a)
    for direction in (leading, upper, g.normal(1, pixels).sign()):
        e = size * direction
        yield _lost("top-k per pixel", top, a, e, topk_within(a, size, k=k))
        yield _lost("Kendall", kendall_correlation, a, e, kendall(a, size))
        yield _lost("Spearman", similarity.spearman, a, e, spearman(a, size))


def equality() -> pd.DataFrame:
    """The gradient of x_1 x_2 turns in a plane."""
    quarter = turn(lambda p: p[0] * p[1], *torch.eye(2, dtype=torch.float64))
    return equalities({("P13", "turn in a plane"): (np.pi / 4, quarter)})


def _lost(arm: str, metric: Callable, a: Tensor, e: Tensor, certified: Tensor) -> pd.DataFrame:
    """What the change takes from the metric against what the certificate concedes."""
    shape = (1, 1, 1, -1) if metric is similarity.cosine else (1, 1, -1)
    return bound("P14", arm, 1 - metric(a.view(shape), (a + e).view(shape)), 1 - certified)


def _close(scores: Scores, change: PerImage) -> Bool[Tensor, "batch pixels pixels"]:
    """Pairs of pixels whose order the change can turn."""
    if scores.shape[1] < 2:
        raise ValueError(f"scores has {scores.shape[1]} pixels; a rank correlation needs at least 2")
    _not_negative("change", change)
    near = (scores[:, :, None] - scores[:, None, :]).abs() <= 2 * change[:, None, None]
    return near & ~torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)


def _sides(scores: Scores, k: int) -> tuple[Tensor, Tensor]:
    """Leading pixels from the smallest up and the others from the largest down, as many as can swap."""
    checks.count("k", k, most=scores.shape[1])
    ordered = scores.sort(dim=1, descending=True).values
    most = min(k, scores.shape[1] - k)
    return ordered[:, k - most : k].flip(1), ordered[:, k : k + most]


def _levels(scores: Scores, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """For every number of swaps the level at which they meet, and how far pixels move down and up to it.

    Row m of the pixels, `tril`, is the first m of them: those that m swaps touch.
    """
    inner, outer = _sides(scores, k)
    most = inner.shape[1]
    inner, outer = (side[:, None].expand(-1, most, -1) for side in (inner, outer))
    low, high = (outer.amin(-1), inner.amax(-1)) if most else (outer.sum(-1), inner.sum(-1))

    def moves(tau: Tensor) -> tuple[Tensor, Tensor]:
        return (inner - tau[..., None]).clamp_min(0).tril(), (tau[..., None] - outer).clamp_min(0).tril()

    for _ in range(60):  # the derivative of the cost in tau rises: bisect it
        tau = (low + high) / 2
        down, up = moves(tau)
        rising = up.sum(-1) > down.sum(-1)
        low, high = torch.where(rising, low, tau), torch.where(rising, tau, high)
    tau = (low + high) / 2
    lowered, raised = (inner >= tau[..., None]).to(inner).tril(), (outer <= tau[..., None]).to(outer).tril()
    count = lowered.sum(-1) + raised.sum(-1)
    exact = ((lowered * inner).sum(-1) + (raised * outer).sum(-1)) / count.clamp_min(1)
    tau = torch.where(count > 0, exact, tau)
    return tau, *moves(tau)


def _not_negative(name: str, value: Tensor) -> None:
    if bool((value < 0).any()) or bool(value.isnan().any()):
        raise ValueError(f"{name} has an entry of {float(value.min())}; every entry must be at least 0")
