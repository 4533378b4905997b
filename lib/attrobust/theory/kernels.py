"""Links of attention kernels: from a score to a weight that asks no other score, and how fast the weight grows.

    slope         psi(s) = d log kappa(s) / ds       what adding to a score does to the logarithm of its weight
    elasticity    m(s) = s psi(s)                    what multiplying a score does to it

The slope is at most 1 for exp, sigmoid, softplus and elu + 1, and unbounded for ReLU, near its threshold (P27 of
notebook 07). The elasticity is constant iff the link is a power, s^m (P26); it rises with the score for exp, softplus
and elu + 1, and for the sigmoid it rises and falls again. Softmax is exp with rows divided by their sum.

Links: Ramapuram et al. 2024 (sigmoid), Wortsman et al. 2023 (ReLU), Katharopoulos et al. 2020 (elu + 1, there on
queries and keys, here on the score). Slope, elasticity and what follows from them are ours.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from attrobust import checks

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


def shared_map(scores: Float[Tensor, "*batch rows keys"], *, kind: str) -> Float[Tensor, "*batch keys"]:
    """One map out of several rows: weights summed over the rows, divided by their sum over all rows and keys.

    All weights are divided by the largest one first, which the division by the sum removes again.

    Raises:
        ValueError: for an unknown `kind`, or where all weights are 0.

    Example:
        >>> shared_map(torch.tensor([[3.0, 1.0], [-1.0, -2.0]]).double(), kind="ReLU").round(decimals=9).tolist()
        [0.75, 0.25]
    """
    logs = log_weight(scores, kind=kind)
    top = logs.amax((-2, -1), keepdim=True)
    if bool((top == -torch.inf).any()):
        raise ValueError(f"scores give no weight above 0 under {kind}; a map needs at least one")
    weights = (logs - top).exp().sum(-2)
    return weights / weights.sum(-1, keepdim=True)
