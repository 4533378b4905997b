"""P26 and P27: what multiplying the scores, and what adding to them, does to a row under each link."""

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor

from attrobust import entropy, statements
from attrobust.theory import kernels, rows
from attrobust.trials.cases import over_cases
from attrobust.versions import versioned


@versioned(1)
@over_cases
def rescaled(case: int) -> Iterator[pd.DataFrame]:
    """P26 on random rows, each with a random factor: powers keep map and output, other links drift and sharpen."""
    s, g = rows.scores(case), torch.Generator().manual_seed(case)
    centred = s - s.mean(1, keepdim=True)
    c = 10 ** (2 * torch.rand(len(s), 1, generator=g, dtype=s.dtype) - 1)
    values = torch.randn(s.shape, generator=g, dtype=s.dtype)
    for kind, power in kernels.POWERS.items():
        yield from _kept(kind, power, centred, c, values)
    q, k = (torch.randn(size, 4, generator=g, dtype=s.dtype) for size in (len(s), s.shape[1]))
    maps = [entropy.normalised(u.abs() @ k.abs().T) for u in (q, c * q)]
    yield statements.residuals("P26", "map, homogeneous features", (maps[1] - maps[0]).abs().max())
    yield from _drifting(s, torch.maximum(c, 1 / c))


@versioned(1)
@over_cases
def nudged(case: int) -> Iterator[pd.DataFrame]:
    """P27: Hilbert distance of a row before and after a change of its scores; half the changes have a common part."""
    s, g = rows.scores(case), torch.Generator().manual_seed(case)
    common = 3 * torch.randn(len(s), 1, generator=g, dtype=s.dtype) * (torch.arange(len(s)) % 2)[:, None]
    t = rows.moved(s, seed=case) + common
    reach, span = _reach(t - s), entropy.oscillation(t - s)
    off = (entropy.hilbert_distance(s.softmax(1), t.softmax(1)) - span) / span.clamp(min=1)
    yield statements.residuals("P27", "exp: the oscillation", off.abs().max())
    lowest = torch.minimum(s, t).amin(1)
    for kind in kernels.SMOOTH[1:]:
        distance = _distance(s, t, kind)
        yield statements.bound("P27", f"{kind}: slope 1", distance, reach)
        yield statements.bound("P27", f"{kind}: slope at the lowest score", distance, _slope(lowest, kind) * reach)
    distance = _distance(s, t, "sigmoid")
    yield statements.bound("wrong", "P27 sigmoid: the oscillation", distance, span)
    highest = _slope(torch.maximum(s, t).amax(1), "sigmoid")
    yield statements.bound("wrong", "P27 sigmoid: slope at the highest score", distance, highest * reach)
    s, t = s.abs(), t.abs()
    reach, lowest = _reach(t - s), torch.minimum(s, t).amin(1)
    for kind in kernels.POWERS:
        limit = _slope(lowest, kind) * reach
        yield statements.bound("P27", f"{kind}: slope at the lowest score", _distance(s, t, kind), limit)
    yield statements.bound("wrong", "P27 ReLU: slope 1", _distance(s, t, "ReLU"), reach)


@versioned(1)
def scale_sweep(factors: Sequence[float], keys: int, seeds: Sequence[int]) -> pd.DataFrame:
    """Relative entropy of normal rows under every link while their scores are multiplied."""
    parts = []
    for seed in seeds:
        s = 2 * torch.randn(1, keys, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        scaled = torch.tensor(factors, dtype=s.dtype)[:, None] * s
        for kind in kernels.KINDS:
            share = entropy.softmax_entropy(kernels.log_weight(scaled, kind=kind)) / entropy.softmax_entropy(0 * s)
            parts.append(pd.DataFrame({"kernel": kind, "factor": factors, "seed": seed, "value": share.numpy()}))
    return pd.concat(parts)


@versioned(1)
def link_curves(reach: float, points: int) -> pd.DataFrame:
    """Slope and elasticity of every link over the scores from -reach to reach."""
    s = torch.linspace(-reach, reach, points, dtype=torch.float64)
    parts = []
    for kind in kernels.KINDS:
        for name, function in (("slope", kernels.slope), ("elasticity", kernels.elasticity)):
            parts.append(pd.DataFrame({"kernel": kind, "name": name, "score": s, "value": function(s, kind=kind)}))
    return pd.concat(parts).dropna()


def _kept(kind: str, power: int, s: Tensor, c: Tensor, values: Tensor) -> Iterator[pd.DataFrame]:
    """P26 (a): what a power of the score keeps when the scores are multiplied."""
    (a, slope), (b, steeper) = ((kernels.weight(u, kind=kind), _derivative(u, kind)) for u in (s, c * s))
    size = (a * values.abs()).sum(1)
    off = ((b * values / c**power).sum(1) - (a * values).sum(1)) / size
    yield statements.residuals("P26", f"output, {kind}", off.abs().max())
    maps = [entropy.normalised(u) for u in (a, b)]
    yield statements.residuals("P26", f"map, {kind}", (maps[1] - maps[0]).abs().max())
    spread = entropy.row_entropy(b) - entropy.row_entropy(a)
    yield statements.residuals("P26", f"entropy, {kind}", spread.abs().max())
    off = c * steeper / c**power - slope
    yield statements.residuals("P26", f"sensitivity, {kind}", (off / slope.amax(1, keepdim=True)).abs().max())
    if power > 1:
        off = ((b * values / c).sum(1) - (a * values).sum(1)) / size
        yield statements.residuals("wrong", f"P26 output, {kind} with the power 1", off.abs().max())


def _drifting(s: Tensor, c: Tensor) -> Iterator[pd.DataFrame]:
    """P26 (b, c) for a factor of at least 1: the map drifts by no more than the elasticity varies, and sharpens."""
    positive = s.abs()
    for kind in kernels.SHARPENING:
        ends = (c[:, 0] * positive.amax(1), positive.amin(1))
        varies = kernels.elasticity(ends[0], kind=kind) - kernels.elasticity(ends[1], kind=kind)
        drift = _distance(positive, c * positive, kind)
        yield statements.bound("P26", f"drift and elasticity, {kind}", drift, c[:, 0].log() * varies)
        spread = [entropy.softmax_entropy(kernels.log_weight(u, kind=kind)) for u in (c * s, s)]
        yield statements.bound("P26", f"scaling up sharpens, {kind}", *spread)
    for kind in kernels.SMOOTH:
        moved = [kernels.log_weight(u, kind=kind).softmax(1) for u in (s, c * s)]
        yield statements.residuals("wrong", f"P26 map unchanged, {kind}", (moved[1] - moved[0]).abs().max())
    spread = [entropy.softmax_entropy(kernels.log_weight(u, kind="sigmoid")) for u in (c * positive, positive)]
    yield statements.bound("wrong", "P26 scaling up sharpens, sigmoid", *spread)


def _derivative(s: Tensor, kind: str) -> Tensor:
    at = s.clone().requires_grad_()
    return torch.autograd.grad(kernels.weight(at, kind=kind).sum(), at)[0]


def _distance(s: Tensor, t: Tensor, kind: str) -> Tensor:
    """Hilbert distance of the two rows of weights, from their logarithms."""
    return entropy.oscillation(kernels.log_weight(t, kind=kind) - kernels.log_weight(s, kind=kind))


def _reach(change: Tensor) -> Tensor:
    """Range of the change of the scores, 0 included."""
    return change.amax(1).clamp(min=0) - change.amin(1).clamp(max=0)


def _slope(s: Tensor, kind: str) -> Tensor:
    return kernels.slope(s, kind=kind)
