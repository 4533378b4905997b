"""How far a map can turn (P13), what its change leaves of each similarity (P14), and what smoothing buys (P18).

With g the gradient, H the Hessian and P the projection that removes the direction of g (g / |g| moves on the sphere):

    angle(g(x), g(x + d)) <= integral over t in [0, 1] of |P H(x_t) d| / |g(x_t)|,   x_t = x + t d

A map that has turned by less than a right angle has, up to a scale that no rank sees, changed by the sine of the angle.
With scores a (a map, or its absolute values), a change e of known size and theta the angle a map has turned:

    cosine     >= sqrt(1 - r^2),  r = |e|_2 / |a|_2          (and cos theta)
    top-k      >= (k - m*) / k,   m* the most swaps whose least squared cost c_m is within |e|_2^2
    Kendall    >= 1 - 2 #{i < j : |a_i - a_j| <= 2 |e|_inf} / (d (d - 1) / 2)
    Spearman   >= 1 - 6 sum_i N_i^2 / (d (d^2 - 1)),   N_i = #{j != i : |a_i - a_j| <= 2 |e|_inf}

All four are scale-free; the first two are attained, as are gaps of twice the change per pixel. Ours as stated; on level
sets the angle is of Dombrowski et al. 2019, "Explanations can be manipulated and geometry is to blame". Numbers out of
range (scores that are NaN or infinite, a change that is negative or NaN, k not from 1 to the number of pixels) raise a
ValueError everywhere.

With G = sup |grad f| and F = sup |f - const|, the map of SmoothGrad (Gaussian noise, standard deviation s) changes per
unit of input by at most (constants ours or textbook; robustness in this sense: Wang et al. 2020)

    min{ sup |hess f|_2,  sqrt(2 / pi) G / s,  4 phi(1) F / s^2 },   phi the normal density,  4 phi(1) = 0.96788

and the gradient averaged over a ball of radius r in d dimensions by at most 2 (V_{d-1} / V_d) G / r. The functions |u .
x| and sign((u . x)^2 - s^2) attain them.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.stats import kendalltau, norm
from torch import Tensor, nn

from attrobust import checks, similarity
from attrobust.shapes import Images, Importances, PerImage
from attrobust.theory.draws import Source, network
from attrobust.theory.tally import Cases, bound, trial

Scores = Float[Tensor, "batch pixels"]
Vector = Float[Tensor, " n"]
Line = Float[np.ndarray, " points"]


def turn(function: Callable[[Vector], Float[Tensor, ""]], start: Vector, step: Vector, *, nodes: int = 32) -> float:
    """Most that the gradient's direction can turn on the way from `start` to `start + step`, in radians (P13).

    Infinite, that is no guarantee, if it turns by more than a right angle between two neighbouring nodes: passing
    through zero it reverses at once, and no curvature tells. The function is differentiable twice; there are at least 2
    `nodes` of Gauss and Legendre (32 is our choice), and the distance from the rule with half as many is added to err
    on the safe side.

    Raises:
        ValueError: fewer than two `nodes`.

    Example:
        >>> start, step = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
        >>> round(turn(lambda x: x.square().sum() / 2, start, step), 3)  # from one axis to the other
        1.571
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
    """Angle between two maps in radians, accurate for small angles too; NaN where a map is zero.

    Example:
        >>> round(angle(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item(), 4)
        1.5708
    """
    u, v = (m / m.norm(dim=1, keepdim=True) for m in (first, second))
    return 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))


def change_of_turn(angle: PerImage) -> PerImage:
    """Relative change |e| / |a| by a turn, sin(angle) up to the scale no rank or cosine sees; infinite from pi / 2.

    Example:
        >>> change_of_turn(torch.tensor([0.0, 2.0])).tolist()
        [0.0, inf]
    """
    return torch.where(angle < math.pi / 2, angle.sin(), math.inf)


def logit_at(model: nn.Module, x: Images, y: Tensor) -> Callable[[Vector], Tensor]:
    """The logit of class y[0] as a function of one flat image of the shape of x.

    Example:
        >>> at = logit_at(nn.Flatten(), torch.zeros(1, 1, 1, 2), torch.tensor([1]))
        >>> at(torch.tensor([3.0, 5.0])).item()
        5.0
    """
    return lambda flat: model(flat.view(x.shape))[0, y[0]]


def cosine(relative: PerImage) -> PerImage:
    """Least cosine when the second map lies within `relative` times the length of the first; -1 from 1 on. Attained.

    Raises:
        ValueError: a `relative` change that is negative or NaN.

    Example:
        >>> [round(value, 4) for value in cosine(torch.tensor([0.0, 0.6, 1.0])).tolist()]
        [1.0, 0.8, -1.0]
    """
    checks.none_negative("relative", relative)
    return torch.where(relative < 1, (1 - relative.square()).clamp_min(0).sqrt(), -1.0)


def worst_cosine(scores: Scores, across: Scores, relative: PerImage) -> Scores:
    """Change of `relative` size r < 1 that attains `cosine`: -r^2 along a, r sqrt(1 - r^2) along normals `across`.

    Example:
        >>> a, normal = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> moved = a + worst_cosine(a, normal, torch.tensor([0.6]))
        >>> round(torch.nn.functional.cosine_similarity(a, moved).item(), 4)  # as `cosine` says, 0.8
        0.8
    """
    r = relative[:, None]
    unit = across / across.norm(dim=1, keepdim=True)
    return -r.square() * scores + r * (1 - r.square()).sqrt() * scores.norm(dim=1, keepdim=True) * unit


def topk(scores: Scores, change: PerImage, *, k: int) -> PerImage:
    """Least share of the k leading pixels left by a change of Euclidean length at most `change`; `swap` attains it.

    Raises:
        ValueError: scores that are NaN or infinite, a `change` that is negative or NaN, or `k` out of range.

    Example:
        >>> topk(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([1.0]), k=1).item()  # a swap takes root two
        1.0
    """
    checks.none_negative("change", change)
    return 1 - (swap_costs(scores, k=k) <= change[:, None].square()).sum(1).to(scores) / k


def swap_costs(scores: Scores, *, k: int) -> Float[Tensor, "batch swaps"]:
    """Least squared length c_m of a change that takes m pixels out of the k leading ones, m = 1, 2, ...

        c_m = min over tau of  sum_S (a_i - tau)_+^2 + sum_T (tau - a_j)_+^2

    S: the m smallest of the leading k; T: the m largest of the rest. There are min(k, d - k) columns, growing.

    Raises:
        ValueError: scores that are NaN or infinite, or `k` below 1 or above the number of pixels.

    Example:
        >>> [round(cost, 4) for cost in swap_costs(torch.tensor([[3.0, 1.0, 0.0]]), k=1)[0].tolist()]
        [2.0]
    """
    _, down, up = _levels(scores, k)
    return (down.square() + up.square()).sum(-1)


def swap(scores: Scores, *, k: int, swaps: int) -> Scores:
    """Cheapest change that takes `swaps` pixels, 1 to min(k, pixels - k), out of the leading k (up to a tie).

    Raises:
        ValueError: scores that are NaN or infinite, or `swaps` out of range.

    Example:
        >>> [round(move, 4) for move in swap(torch.tensor([[3.0, 1.0, 0.0]]), k=1, swaps=1)[0].tolist()]  # to 2
        [-1.0, 1.0, 0.0]
    """
    checks.count("swaps", swaps, most=min(k, scores.shape[1] - k))
    tau = _levels(scores, k)[0][:, swaps - 1, None]
    order = scores.argsort(dim=1, descending=True, stable=True)
    lower, raise_ = order[:, k - swaps : k], order[:, k : k + swaps]
    change = torch.zeros_like(scores).scatter(1, lower, (tau - scores.gather(1, lower)).clamp_max(0))
    return change.scatter(1, raise_, (tau - scores.gather(1, raise_)).clamp_min(0))


def topk_within(scores: Scores, change: PerImage, *, k: int) -> PerImage:
    """Least top-k intersection after a change of at most `change` in every pixel: gaps of more than twice it hold.

    Raises:
        ValueError: scores that are NaN or infinite, a `change` that is negative or NaN, or `k` out of range.

    Example:
        >>> scores = torch.tensor([[3.0, 1.0, 0.0]]).repeat(2, 1)
        >>> topk_within(scores, torch.tensor([0.9, 1.1]), k=1).tolist()
        [1.0, 0.0]
    """
    checks.none_negative("change", change)
    inner, outer = _sides(scores, k)
    return 1 - (inner - outer <= 2 * change[:, None]).sum(1).to(scores) / k


def kendall(scores: Scores, change: PerImage) -> PerImage:
    """Least Kendall correlation of two or more scores without ties after a change of at most `change` per pixel.

    Raises:
        ValueError: scores that are NaN or infinite, a `change` that is negative or NaN, or a single pixel.

    Example:
        >>> scores = torch.tensor([[3.0, 1.0]]).repeat(2, 1)
        >>> kendall(scores, torch.tensor([0.9, 1.1])).tolist()
        [1.0, -1.0]
    """
    close, pixels = _close(scores, change), scores.shape[1]
    return 1 - 2 * close.sum((1, 2)).to(scores) / 2 / (pixels * (pixels - 1) / 2)


def spearman(scores: Scores, change: PerImage) -> PerImage:
    """Least Spearman correlation after the change of `kendall`, never below -1: a rank moves at most N_i.

    Raises:
        ValueError: scores that are NaN or infinite, a `change` that is negative or NaN, or a single pixel.

    Example:
        >>> scores = torch.tensor([[3.0, 1.0]]).repeat(2, 1)
        >>> spearman(scores, torch.tensor([0.9, 1.1])).tolist()
        [1.0, -1.0]
    """
    moved, pixels = _close(scores, change).sum(2).to(scores).square().sum(1), scores.shape[1]
    return (1 - 6 * moved / (pixels * (pixels**2 - 1))).clamp_min(-1)


def kendall_correlation(first: Importances, second: Importances) -> PerImage:
    """Kendall correlation of the pixels of each pair of maps.

    Example:
        >>> a = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> round(kendall_correlation(a, a.flip(2)).item(), 4)
        -1.0
    """
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
    leading, upper = (torch.where(a >= level, -1.0, 1.0).to(a) for level in (a.topk(k).values[:, -1:], a.median()))
    for direction in (leading, upper, g.normal(1, pixels).sign()):
        e = size * direction
        yield _lost("top-k per pixel", top, a, e, topk_within(a, size, k=k))
        yield _lost("Kendall", kendall_correlation, a, e, kendall(a, size))
        yield _lost("Spearman", similarity.spearman, a, e, spearman(a, size))


def gaussian_constant(*, slope: float = math.inf, height: float = math.inf, sigma: float) -> float:
    """Lipschitz constant of SmoothGrad maps from G = slope or F = height, in readout units per squared pixel unit.

    The smaller of the two bounds; F is 0.5 for a probability.

    Raises:
        ValueError: a `sigma` that is not above 0.

    Example:
        >>> round(gaussian_constant(slope=1.0, sigma=0.5), 3)
        1.596
    """
    checks.positive("sigma", sigma)
    return min(math.sqrt(2 / math.pi) * slope / sigma, 4 * float(norm.pdf(1)) * height / sigma**2)


def ball_constant(*, slope: float, radius: float, dimensions: int) -> float:
    """Lipschitz constant of gradients averaged over a Euclidean ball: 2 (V_{d-1} / V_d) G / r.

    Raises:
        ValueError: a `radius` that is not above 0, or `dimensions` below 1.

    Example:
        >>> round(ball_constant(slope=1.0, radius=0.5, dimensions=1), 4)  # of a mean over an interval of length 1
        2.0
    """
    checks.positive("radius", radius)
    checks.count("dimensions", dimensions)
    log_ratio = math.lgamma(dimensions / 2 + 1) - math.lgamma((dimensions - 1) / 2 + 1) - math.log(math.pi) / 2
    return 2 * math.exp(log_ratio) * slope / radius


def two_layer_constant(weights: Float[np.ndarray, "units inputs"], readout: Float[np.ndarray, " units"]) -> float:
    """Bound on the input Hessian of sum_k v_k s(w_k . x + b_k) over *all* inputs, for 0 <= s'' <= 1/4 (softplus).

    Units with positive and with negative readout are bounded apart; the larger norm counts. Weights are per pixel unit.

    Example:
        >>> two_layer_constant(np.array([[2.0, 0.0]]), np.array([1.0]))  # 1/4 |w|^2
        1.0
    """
    sides = [np.maximum(readout, 0), np.maximum(-readout, 0)]
    return 0.25 * float(max(np.linalg.norm(weights.T @ (side[:, None] * weights), 2) for side in sides))


class Folds(NamedTuple):
    """f(x) = sum_k c_k |x - t_k| on the line: every smoothed derivative is known in closed form.

    Example:
        >>> fold = Folds(np.array([1.0]), np.array([0.0]))  # |x|
        >>> fold.slope(), fold.pieces().tolist()
        (1.0, [-1.0, 1.0])
    """

    heights: Float[np.ndarray, " kinks"]
    places: Float[np.ndarray, " kinks"]

    def pieces(self) -> Float[np.ndarray, " kinks_and_one"]:
        """Values of f' between the kinks, from left to right."""
        return -self.heights.sum() + np.concatenate([[0.0], 2 * np.cumsum(self.heights[np.argsort(self.places)])])

    def slope(self) -> float:
        """G, the largest |f'|."""
        return float(np.abs(self.pieces()).max())

    def derivative(self, x: Line) -> Line:
        """Slope f' off the kinks: the attribution."""
        return np.sign(x[:, None] - self.places) @ self.heights

    def gaussian_bend(self, x: Line, sigma: float) -> Line:
        """Derivative of the SmoothGrad map at x."""
        return 2 * norm.pdf(x[:, None], self.places, sigma) @ self.heights

    def step_bend(self, x: Line, sigma: float) -> Line:
        """Derivative of the SmoothGrad map of the step function f' at x."""
        away = x[:, None] - self.places
        return (-away / sigma**2 * 2 * norm.pdf(away, scale=sigma)) @ self.heights


@trial(version=1)
def smoothed(case: int) -> Cases:
    """P18 on a random folded function of one input, whose smoothed derivatives are known in closed form."""
    rng = np.random.default_rng(case)
    n, size = int(rng.integers(1, 6)), 10 ** rng.uniform(-1, 0.5)
    folds = Folds(rng.standard_normal(n), rng.normal(size=n))
    at = np.concatenate([np.linspace(-4, 4, 401), *(folds.places + shift * size for shift in (-1, 0, 1))])
    limit = gaussian_constant(slope=folds.slope(), sigma=size)
    yield bound("P18", "SmoothGrad, slope", np.abs(folds.gaussian_bend(at, size)).max(), limit)
    limit = gaussian_constant(height=float(np.ptp(folds.pieces()) / 2), sigma=size)
    yield bound("P18", "SmoothGrad, height", np.abs(folds.step_bend(at, size)).max(), limit)
    limit = ball_constant(slope=folds.slope(), radius=size, dimensions=1)
    at = at + 1e-9  # off the kinks: the map averaged over [x - size, x + size] has the slope below
    bend = (folds.derivative(at + size) - folds.derivative(at - size)) / (2 * size)
    yield bound("P18", "ball average", np.abs(bend).max(), limit)


def _lost(arm: str, metric: Callable, a: Tensor, e: Tensor, certified: Tensor) -> pd.DataFrame:
    """What the change takes from the metric against what the certificate concedes."""
    shape = (1, 1, 1, -1) if metric is similarity.cosine else (1, 1, -1)
    return bound("P14", arm, 1 - metric(a.view(shape), (a + e).view(shape)), 1 - certified)


def _close(scores: Scores, change: PerImage) -> Bool[Tensor, "batch pixels pixels"]:
    """Pairs of pixels whose order the change can turn."""
    if scores.shape[1] < 2:
        raise ValueError(f"scores has {scores.shape[1]} pixels; a rank correlation needs at least 2")
    checks.finite("scores", scores)
    checks.none_negative("change", change)
    near = (scores[:, :, None] - scores[:, None, :]).abs() <= 2 * change[:, None, None]
    return near & ~torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)


def _sides(scores: Scores, k: int) -> tuple[Tensor, Tensor]:
    """Leading pixels from the smallest up and the others from the largest down, as many as can swap."""
    checks.count("k", k, most=scores.shape[1])
    checks.finite("scores", scores)
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
