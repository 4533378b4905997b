"""From a change of the map to a guarantee for each similarity: what a bound on the gradient is worth.

With scores a (a map, or its absolute values), a change e of known size and theta the angle a map has turned:

    cosine     >= sqrt(1 - r^2),  r = |e|_2 / |a|_2          (and cos theta)
    top-k      >= (k - m*) / k,   m* the most swaps whose least squared cost c_m is within |e|_2^2
    Kendall    >= 1 - 2 #{i < j : |a_i - a_j| <= 2 |e|_inf} / (d (d - 1) / 2)
    Spearman   >= 1 - 6 sum_i N_i^2 / (d (d^2 - 1)),   N_i = #{j != i : |a_i - a_j| <= 2 |e|_inf}

All four are scale-free: scaling a and e together changes nothing. They are P14 of notebook 02, where the proofs stand;
ours. The first two are attained, as are gaps of twice the change per pixel.
"""

from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.stats import kendalltau
from torch import Tensor

from attrobust import checks, similarity
from attrobust.shapes import Importances, PerImage
from attrobust.theory.draws import Source
from attrobust.theory.tally import Cases, bound, trial

Scores = Float[Tensor, "batch pixels"]


def cosine(relative: PerImage) -> PerImage:
    """Least cosine between two maps when the second lies within `relative` times the length of the first.

    sqrt(1 - relative^2), and -1 from relative = 1 on, where nothing is guaranteed. Attained (`worst_cosine`). Raises
    ValueError if an entry is negative or NaN.

    Example:
        >>> cosine(torch.tensor([0.0, 0.6, 1.5], dtype=torch.float64)).round(decimals=9).tolist()
        [1.0, 0.8, -1.0]
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

    The certified share of the k leading pixels that stay, in [0, 1]. Exact: `swap` attains it. Ours. Raises ValueError
    if `k` is out of range or a change is negative.

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
    """Least top-k intersection after a change of at most `change` in every pixel: gaps of more than twice it hold.

    Raises ValueError if `k` is out of range or a change is negative.
    """
    _not_negative("change", change)
    inner, outer = _sides(scores, k)
    return 1 - (inner - outer <= 2 * change[:, None]).sum(1).to(scores) / k


def kendall(scores: Scores, change: PerImage) -> PerImage:
    """Least Kendall correlation after a change of at most `change` in every pixel.

    Raises ValueError if a change is negative or there are fewer than two pixels.

    Args:
        scores: importances without ties.
        change: largest |e|_inf, at least 0; |e|_2 is a valid, looser choice.

    Example:
        >>> round(kendall(torch.tensor([[0.0, 1.0, 5.0]]).double(), torch.tensor([0.5]).double()).item(), 6)
        0.333333
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
