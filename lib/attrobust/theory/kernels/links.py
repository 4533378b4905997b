"""Links of attention kernels: from a score to a weight that asks no other score, and how fast the weight grows.

    slope         psi(s) = d log kappa(s) / ds       what adding to a score does to the logarithm of its weight
    elasticity    m(s) = s psi(s)                    what multiplying a score does to it

The elasticity is constant iff the link is a power, s^m (P27); it rises with the score for exp, softplus and elu + 1,
and for the sigmoid it rises and falls again. The slope is at most 1 for exp, sigmoid, softplus and elu + 1, and
unbounded for ReLU, near its threshold (P28). Softmax is exp with rows divided by their sum. A change D of the scores
moves a row by at most sup psi (max(0, max D) - min(0, min D)) in Hilbert's distance; a factor c >= 1 on positive
scores by at most log c times the range of m.

Links: Ramapuram et al. 2024 (sigmoid), Wortsman et al. 2023 (ReLU), Katharopoulos et al. 2020 (elu + 1, there on
queries and keys, here on the score). Slope, elasticity and what follows from them are ours.
"""

import math
from collections.abc import Callable, Iterator

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from attrobust import checks
from attrobust.theory import draws, entropy, tally
from attrobust.versions import versioned

Values = Float[Tensor, "..."]

#: Below this score softplus(s) is exp(s) up to less than half a unit of rounding in float64.
_TAIL = -40.0


def _log_softplus(s: Values) -> Values:
    return torch.where(s < _TAIL, s, F.softplus(s.clamp(min=_TAIL), threshold=40).log())


def _softplus_slope(s: Values) -> Values:
    inside = s.clamp(min=_TAIL)
    return torch.where(s < _TAIL, 1.0, inside.sigmoid() / F.softplus(inside, threshold=40))


def _log_positive(s: Values) -> Values:
    return torch.where(s > 0, s, 0.0).log()


#: Logarithms of the links; exact where the weight itself would under- or overflow.
LOGS: dict[str, Callable[[Values], Values]] = {
    "exp": lambda s: s,
    "sigmoid": F.logsigmoid,
    "softplus": _log_softplus,
    "elu + 1": lambda s: torch.where(s < 0, s, s.clamp(min=0).log1p()),
    "ReLU": _log_positive,
    "ReLU²": lambda s: 2 * _log_positive(s),
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


def log_weight(scores: Values, *, kind: str) -> Values:
    """Logarithm of the weight of each score; -inf where the weight is 0.

    Raises:
        ValueError: for an unknown `kind`.

    Example:
        >>> log_weight(torch.tensor([-800.0, 0.0]).double(), kind="sigmoid").round(decimals=3).tolist()
        [-800.0, -0.693]
    """
    return LOGS[checks.one_of("kind", kind, KINDS)](scores)


def weight(scores: Values, *, kind: str) -> Values:
    """Weight of each score, at least 0; rows are not normalised.

    Raises:
        ValueError: for an unknown `kind`.

    Example:
        >>> weight(torch.tensor([-1.0, 0.0, 2.0]), kind="ReLU²").tolist()
        [0.0, 0.0, 4.0]
    """
    checks.one_of("kind", kind, KINDS)
    return scores.relu() ** POWERS[kind] if kind in POWERS else LOGS[kind](scores).exp()


def slope(scores: Values, *, kind: str) -> Values:
    """Derivative of the logarithm of the weight, psi(s); NaN where the weight is 0.

    Raises:
        ValueError: for an unknown `kind`.

    Example:
        >>> slope(torch.tensor([-1.0, 0.0, 3.0]), kind="elu + 1").tolist()
        [1.0, 1.0, 0.25]
    """
    return SLOPES[checks.one_of("kind", kind, KINDS)](scores)


def elasticity(scores: Values, *, kind: str) -> Values:
    """Derivative of the logarithm of the weight in the logarithm of the score's size, m(s) = s psi(s).

    Raises:
        ValueError: for an unknown `kind`.

    Example:
        >>> elasticity(torch.tensor([1.0, 3.0]), kind="exp").tolist()
        [1.0, 3.0]
    """
    return scores * slope(scores, kind=kind)


@versioned(1)
@tally.over_cases
def rescaled(case: int) -> Iterator[pd.DataFrame]:
    """P27 on random rows, each with a random factor: powers keep map and output, other links drift and sharpen."""
    s, g = draws.scores(case), torch.Generator().manual_seed(case)
    centred = s - s.mean(1, keepdim=True)
    c = 10 ** (2 * torch.rand(len(s), 1, generator=g, dtype=s.dtype) - 1)
    values = torch.randn(s.shape, generator=g, dtype=s.dtype)
    for kind, power in POWERS.items():
        yield from _kept(kind, power, centred, c, values)
    q, k = (torch.randn(size, 4, generator=g, dtype=s.dtype) for size in (len(s), s.shape[1]))
    maps = [entropy.normalised(u.abs() @ k.abs().T) for u in (q, c * q)]
    yield tally.residuals("P27", "map, homogeneous features", (maps[1] - maps[0]).abs().max())
    yield from _drifting(s, torch.maximum(c, 1 / c))


@versioned(1)
@tally.over_cases
def nudged(case: int) -> Iterator[pd.DataFrame]:
    """P28: Hilbert distance of a row before and after a change of its scores; half the changes have a common part."""
    s, g = draws.scores(case), torch.Generator().manual_seed(case)
    common = 3 * torch.randn(len(s), 1, generator=g, dtype=s.dtype) * (torch.arange(len(s)) % 2)[:, None]
    t = draws.moved(s, seed=case) + common
    reach, span = _reach(t - s), entropy.oscillation(t - s)
    off = (entropy.hilbert_distance(s.softmax(1), t.softmax(1)) - span) / span.clamp(min=1)
    yield tally.residuals("P28", "exp: the oscillation", off.abs().max())
    lowest = torch.minimum(s, t).amin(1)
    for kind in SMOOTH[1:]:
        distance = _distance(s, t, kind)
        yield tally.bound("P28", f"{kind}: slope 1", distance, reach)
        yield tally.bound("P28", f"{kind}: slope at the lowest score", distance, slope(lowest, kind=kind) * reach)
    distance = _distance(s, t, "sigmoid")
    yield tally.bound("P28", "sigmoid: the oscillation", distance, span, holds=False)
    highest = slope(torch.maximum(s, t).amax(1), kind="sigmoid")
    yield tally.bound("P28", "sigmoid: slope at the highest score", distance, highest * reach, holds=False)
    s, t = s.abs(), t.abs()
    reach, lowest = _reach(t - s), torch.minimum(s, t).amin(1)
    for kind in POWERS:
        limit = slope(lowest, kind=kind) * reach
        yield tally.bound("P28", f"{kind}: slope at the lowest score", _distance(s, t, kind), limit)
    yield tally.bound("P28", "ReLU: slope 1", _distance(s, t, "ReLU"), reach, holds=False)


def equality() -> pd.DataFrame:
    """Two keys times a factor near 1, in the limit; one key up and one down where the slope is 1."""
    two, c = torch.tensor([0.0, 2.0], dtype=torch.float64), 1 + 1e-7
    low, change = torch.tensor([-9.0, -7.0, -8.0], dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5])
    limit = math.log(c) * elasticity(c * two, kind="exp").max()
    return tally.equalities({
        ("P27", "factor near 1"): (entropy.oscillation(c * two - two), limit),
        ("P28", "one key up, one down"): (_distance(low, low + change, "elu + 1"), 3.0),
    })  # fmt: skip


def _kept(kind: str, power: int, s: Tensor, c: Tensor, values: Tensor) -> Iterator[pd.DataFrame]:
    """P27 (a): what a power of the score keeps when the scores are multiplied."""
    (a, slope), (b, steeper) = ((weight(u, kind=kind), _derivative(u, kind)) for u in (s, c * s))
    size = (a * values.abs()).sum(1)
    off = ((b * values / c**power).sum(1) - (a * values).sum(1)) / size
    yield tally.residuals("P27", f"output, {kind}", off.abs().max())
    maps = [entropy.normalised(u) for u in (a, b)]
    yield tally.residuals("P27", f"map, {kind}", (maps[1] - maps[0]).abs().max())
    spread = entropy.row_entropy(b) - entropy.row_entropy(a)
    yield tally.residuals("P27", f"entropy, {kind}", spread.abs().max())
    off = c * steeper / c**power - slope
    yield tally.residuals("P27", f"sensitivity, {kind}", (off / slope.amax(1, keepdim=True)).abs().max())
    if power > 1:
        off = ((b * values / c).sum(1) - (a * values).sum(1)) / size
        yield tally.residuals("P27", f"output, {kind} with the power 1", off.abs().max(), holds=False)


def _drifting(s: Tensor, c: Tensor) -> Iterator[pd.DataFrame]:
    """P27 (b, c) for a factor of at least 1: the map drifts by no more than the elasticity varies, and sharpens."""
    positive = s.abs()
    for kind in SHARPENING:
        ends = (c[:, 0] * positive.amax(1), positive.amin(1))
        varies = elasticity(ends[0], kind=kind) - elasticity(ends[1], kind=kind)
        drift = _distance(positive, c * positive, kind)
        yield tally.bound("P27", f"drift and elasticity, {kind}", drift, c[:, 0].log() * varies)
        spread = [entropy.softmax_entropy(log_weight(u, kind=kind)) for u in (c * s, s)]
        yield tally.bound("P27", f"scaling up sharpens, {kind}", *spread)
    for kind in SMOOTH:
        moved = [log_weight(u, kind=kind).softmax(1) for u in (s, c * s)]
        yield tally.residuals("P27", f"map unchanged, {kind}", (moved[1] - moved[0]).abs().max(), holds=False)
    spread = [entropy.softmax_entropy(log_weight(u, kind="sigmoid")) for u in (c * positive, positive)]
    yield tally.bound("P27", "scaling up sharpens, sigmoid", *spread, holds=False)


def _derivative(s: Tensor, kind: str) -> Tensor:
    at = s.clone().requires_grad_()
    return torch.autograd.grad(weight(at, kind=kind).sum(), at)[0]


def _distance(s: Tensor, t: Tensor, kind: str) -> Tensor:
    """Hilbert distance of the two rows of weights, from their logarithms."""
    return entropy.oscillation(log_weight(t, kind=kind) - log_weight(s, kind=kind))


def _reach(change: Tensor) -> Tensor:
    """Range of the change of the scores, 0 included."""
    return change.amax(1).clamp(min=0) - change.amin(1).clamp(max=0)
