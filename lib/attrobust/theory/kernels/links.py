"""Links of attention kernels: from a score to a weight that asks no other score, and how fast the weight grows.

    slope         psi(s) = d log kappa(s) / ds       what adding to a score does to the logarithm of its weight
    elasticity    m(s) = s psi(s)                    what multiplying a score does to it

The elasticity is constant iff the link is a power, s^m (P27); it rises with the score for exp, softplus and elu + 1,
and for the sigmoid it rises and falls again. The slope is at most 1 for exp, sigmoid, softplus and elu + 1, and
unbounded for ReLU, near its threshold (P28). Softmax is exp with rows divided by their sum. A change D of the scores
moves a row by at most sup psi (max(0, max D) - min(0, min D)) in Hilbert's distance; a factor c >= 1 on positive
scores by at most log c times the range of m. Slope, elasticity and what follows from them are ours.
"""

import math
from collections.abc import Callable

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from attrobust import attention, checks
from attrobust.theory import draws
from attrobust.theory.entropy.rows import hilbert_distance, normalised, oscillation, row_entropy, softmax_entropy
from attrobust.theory.tally import Cases, bound, equalities, residual, trial

Values = Float[Tensor, "..."]

#: Below this score softplus(s) is exp(s) up to less than half a unit of rounding in float64.
_TAIL = -40.0


def _log_softplus(s: Values) -> Values:
    return torch.where(s < _TAIL, s, F.softplus(s.clamp(min=_TAIL), threshold=40).log())


def _softplus_slope(s: Values) -> Values:
    inside = s.clamp(min=_TAIL)
    return torch.where(s < _TAIL, 1.0, inside.sigmoid() / F.softplus(inside, threshold=40))


#: Logarithms of the links; exact where the weight itself would under- or overflow.
LOGS: dict[str, Callable[[Values], Values]] = {
    "exp": lambda s: s,
    "sigmoid": F.logsigmoid,
    "softplus": _log_softplus,
    "elu + 1": lambda s: torch.where(s < 0, s, s.clamp(min=0).log1p()),
    "ReLU": lambda s: torch.where(s > 0, s, 0.0).log(),
    "ReLU²": lambda s: 2 * torch.where(s > 0, s, 0.0).log(),
}

SLOPES: dict[str, Callable[[Values], Values]] = {
    "exp": torch.ones_like,
    "sigmoid": lambda s: (-s).sigmoid(),
    "softplus": _softplus_slope,
    "elu + 1": lambda s: 1 / (1 + s.clamp(min=0)),
    "ReLU": lambda s: torch.where(s > 0, 1 / s, torch.nan),
    "ReLU²": lambda s: torch.where(s > 0, 2 / s, torch.nan),
}

KINDS = tuple(LOGS)

#: Strictly increasing links with a slope of at most 1.
SMOOTH = ("exp", "sigmoid", "softplus", "elu + 1")

#: Links whose elasticity rises with the score, so that a larger scale always sharpens the row.
SHARPENING = ("exp", "softplus", "elu + 1")

#: Links that are powers of a positive score, with the power.
POWERS = {"ReLU": 1, "ReLU²": 2}

#: Links that `attention` knows, by its names; its elu + 1 is one of queries and keys, the one here of the score.
ATTENTION = {"exp": "exp", "sigmoid": "sigmoid", "ReLU": "relu", "ReLU²": "relu"}


def weight(scores: Values, *, kind: str) -> Values:
    """Weight of each score, at least 0; rows are not normalised.

    Raises:
        ValueError: for an unknown `kind`.

    Example:
        >>> weight(torch.tensor([-1.0, 0.0, 2.0]), kind="ReLU²").tolist()
        [0.0, 0.0, 4.0]
    """
    if checks.one_of("kind", kind, KINDS) not in ATTENTION:
        return LOGS[kind](scores).exp()
    one_key = torch.ones(())  # for which the sigmoid of attention has no bias
    return attention.LINKS[ATTENTION[kind]](scores, one_key) ** POWERS.get(kind, 1)


def log_weight(scores: Values, *, kind: str) -> Values:
    """Logarithm of `weight`; -inf where the weight is 0.

    Example:
        >>> log_weight(torch.tensor([-800.0, 0.0]).double(), kind="sigmoid").round(decimals=3).tolist()
        [-800.0, -0.693]
    """
    return LOGS[checks.one_of("kind", kind, KINDS)](scores)


def slope(scores: Values, *, kind: str) -> Values:
    """Derivative of `log_weight`, psi(s); NaN where the weight is 0.

    Example:
        >>> slope(torch.tensor([-1.0, 0.0, 3.0]), kind="elu + 1").tolist()
        [1.0, 1.0, 0.25]
    """
    return SLOPES[checks.one_of("kind", kind, KINDS)](scores)


def elasticity(scores: Values, *, kind: str) -> Values:
    """Derivative of `log_weight` in the logarithm of the score's size, m(s) = s psi(s).

    Example:
        >>> elasticity(torch.tensor([1.0, 3.0]), kind="exp").tolist()
        [1.0, 3.0]
    """
    return scores * slope(scores, kind=kind)


@trial(version=1)
def rescaled(case: int) -> Cases:
    """P27 on random rows, each with a random factor: powers keep map and output, other links drift and sharpen."""
    s, g = draws.scores(case), draws.Source(case)
    centred, c = s - s.mean(1, keepdim=True), 10 ** (2 * g.uniform(len(s), 1) - 1)
    values = g.normal(*s.shape)
    for kind in POWERS:
        yield from _kept(kind, centred, c, values)
    q, k = g.normal(len(s), 4), g.normal(s.shape[1], 4)
    first, second = (normalised(u.abs() @ k.abs().T) for u in (q, c * q))
    yield residual("P27", "map, homogeneous features", second - first)
    yield from _drifting(s, torch.maximum(c, 1 / c))


@trial(version=1)
def nudged(case: int) -> Cases:
    """P28: Hilbert distance of a row before and after a change of its scores; half the changes have a common part."""
    s, g = draws.scores(case), draws.Source(case)
    t = draws.moved(s, seed=case) + 3 * g.normal(len(s), 1) * (torch.arange(len(s)) % 2)[:, None]
    reach, span = _reach(t - s), oscillation(t - s)
    off = hilbert_distance(s.softmax(1), t.softmax(1)) - span
    yield residual("P28", "exp: the oscillation", off / span.clamp(min=1))
    lowest = torch.minimum(s, t).amin(1)
    for kind in SMOOTH[1:]:
        distance = _distance(s, t, kind)
        yield bound("P28", f"{kind}: slope 1", distance, reach)
        yield bound("P28", f"{kind}: slope at the lowest score", distance, slope(lowest, kind=kind) * reach)
    distance, highest = _distance(s, t, "sigmoid"), slope(torch.maximum(s, t).amax(1), kind="sigmoid")
    yield bound("P28", "sigmoid: the oscillation", distance, span, holds=False)
    yield bound("P28", "sigmoid: slope at the highest score", distance, highest * reach, holds=False)
    s, t = s.abs(), t.abs()
    reach, lowest = _reach(t - s), torch.minimum(s, t).amin(1)
    for kind in POWERS:
        limit = slope(lowest, kind=kind) * reach
        yield bound("P28", f"{kind}: slope at the lowest score", _distance(s, t, kind), limit)
    yield bound("P28", "ReLU: slope 1", _distance(s, t, "ReLU"), reach, holds=False)


def equality() -> pd.DataFrame:
    """Two keys times a factor near 1, in the limit; one key up and one down where the slope is 1."""
    two, c = torch.tensor([0.0, 2.0], dtype=torch.float64), 1 + 1e-7
    low, change = torch.tensor([-9.0, -7.0, -8.0], dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5])
    limit = math.log(c) * elasticity(c * two, kind="exp").max()
    return equalities({
        ("P27", "factor near 1"): (oscillation(c * two - two), limit),
        ("P28", "one key up, one down"): (_distance(low, low + change, "elu + 1"), 3.0),
    })  # fmt: skip


def _kept(kind: str, s: Tensor, c: Tensor, values: Tensor) -> Cases:
    """P27 (a): what a power of the score keeps when the scores are multiplied."""
    power = POWERS[kind]
    (a, slope), (b, steeper) = ((weight(u, kind=kind), _derivative(u, kind)) for u in (s, c * s))
    size, output = (a * values.abs()).sum(1), (a * values).sum(1)
    yield residual("P27", f"output, {kind}", ((b * values / c**power).sum(1) - output) / size)
    yield residual("P27", f"map, {kind}", normalised(b) - normalised(a))
    yield residual("P27", f"entropy, {kind}", row_entropy(b) - row_entropy(a))
    off = c * steeper / c**power - slope
    yield residual("P27", f"sensitivity, {kind}", off / slope.amax(1, keepdim=True))
    if power > 1:
        off = ((b * values / c).sum(1) - output) / size
        yield residual("P27", f"output, {kind} with the power 1", off, holds=False)


def _drifting(s: Tensor, c: Tensor) -> Cases:
    """P27 (b, c) for a factor of at least 1: the map drifts by no more than the elasticity varies, and sharpens."""
    positive = s.abs()
    for kind in SHARPENING:
        most, least = (elasticity(u, kind=kind) for u in (c[:, 0] * positive.amax(1), positive.amin(1)))
        drift = _distance(positive, c * positive, kind)
        yield bound("P27", f"drift and elasticity, {kind}", drift, c[:, 0].log() * (most - least))
        yield bound("P27", f"scaling up sharpens, {kind}", *_spread(c * s, s, kind))
    for kind in SMOOTH:
        first, second = (log_weight(u, kind=kind).softmax(1) for u in (s, c * s))
        yield residual("P27", f"map unchanged, {kind}", second - first, holds=False)
    yield bound("P27", "scaling up sharpens, sigmoid", *_spread(c * positive, positive, "sigmoid"), holds=False)


def _spread(s: Tensor, t: Tensor, kind: str) -> list[Tensor]:
    """Entropies of the two rows of weights."""
    return [softmax_entropy(log_weight(u, kind=kind)) for u in (s, t)]


def _derivative(s: Tensor, kind: str) -> Tensor:
    at = s.clone().requires_grad_()
    return torch.autograd.grad(weight(at, kind=kind).sum(), at)[0]


def _distance(s: Tensor, t: Tensor, kind: str) -> Tensor:
    """Hilbert distance of the two rows of weights, from their logarithms."""
    return oscillation(log_weight(t, kind=kind) - log_weight(s, kind=kind))


def _reach(change: Tensor) -> Tensor:
    """Range of the change of the scores, 0 included."""
    return change.amax(1).clamp(min=0) - change.amin(1).clamp(max=0)
