"""What scaling the scores of a softmax row does: p_c = softmax(c s) with 0 < c <= 1 (P22).

    1  |d p_c / dx| <= (c / 2) |d s / dx|                        the absolute sensitivity falls
    2  every rank metric stays (P21)
    3  dH(p_c) / dc = -c Var(s),  log n - H(p_c) <= c^2 (max s - min s)^2 / 8
    4  p_c is 1 / n + c (s - mean s) / n up to c^2 (max s - min s)^2 / (6 sqrt 3) in l1, so its relative change tends
       to that of the scores, in which c does not occur
    5  rows whose entropy lacks at most e to log n are within 2 sqrt(2 e) in l1 and 2 arctan sqrt(2 n e) in angle

The deficit follows from Hoeffding's lemma and is attained by two even halves in the limit, 5 from Pinsker's
inequality; the rest is ours.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attrobust import checks
from attrobust.theory import draws, tally
from attrobust.theory.entropy.distance import rank_similarity, relative_score_change
from attrobust.theory.entropy.rows import PerRow, centred_norm, entropy_deficit, oscillation, softmax_entropy
from attrobust.versions import versioned

#: Largest third central moment of a number between 0 and 1; also bounds the curvature of any mass (part 4).
SKEW = 1 / (6 * math.sqrt(3))


def deficit_bound(oscillation: PerRow) -> PerRow:
    """Most that the entropy can fall short of log keys when the scores span `oscillation`: its square over 8.

    Raises:
        ValueError: if an entry is negative or NaN.

    Example:
        >>> deficit_bound(torch.tensor([0.0, 2.0])).tolist()
        [0.0, 0.5]

    Reference: Hoeffding 1963, the lemma in "Probability inequalities for sums of bounded random variables".
    """
    return checks.none_negative("oscillation", oscillation).square() / 8


@versioned(1)
@tally.over_cases
def scaled(case: int) -> Iterator[pd.DataFrame]:
    """The five parts of P22 on random rows, each at a random factor c in (0, 1]."""
    s = draws.scores(case)
    t = draws.moved(s, seed=case)
    g = torch.Generator().manual_seed(case)
    c = 10 ** (-2 * torch.rand(len(s), 1, generator=g, dtype=s.dtype))
    yield from _absolute(c, s, g)
    ranks = [rank_similarity(*((f * u).log_softmax(1) for u in (s, t))) for f in (c, torch.ones_like(c))]
    yield tally.residuals("P22.2", "ranks of a pair", (ranks[0] - ranks[1]).abs().max())
    yield from _entropies(c, s)
    yield from _relative(c, s, t)
    yield from _cosines(c, s, t)


def equality() -> pd.DataFrame:
    """Two halves, in the limit of small scores."""
    apart = 1e-3 * torch.tensor([1.0, -1.0], dtype=torch.float64)
    sides = entropy_deficit(apart), deficit_bound(oscillation(apart))
    return tally.equalities({("P22.3", "two halves, small scores"): sides})


def variance(p: Tensor, s: Tensor) -> Tensor:
    """Variance of each row of scores under its weights."""
    return (p * (s - (p * s).sum(1, keepdim=True)).square()).sum(1)


def _absolute(c: Tensor, s: Tensor, g: torch.Generator) -> Iterator[pd.DataFrame]:
    """P22.1 for scores that are linear in an input of three entries; every other map pulls two leaders apart."""
    maps = torch.randn(*s.shape, 3, generator=g, dtype=s.dtype)
    first, second = s.topk(2).indices.unbind(1)
    pull = torch.zeros_like(maps)
    pull[torch.arange(len(s)), first], pull[torch.arange(len(s)), second] = maps[:, 0], -maps[:, 0]
    maps = torch.where(torch.arange(len(s))[:, None, None] % 2 == 0, pull, maps)
    p = (c * s).softmax(1)
    jacobian = c[:, :, None] * (p[:, :, None] * maps - p[:, :, None] * (p[:, None] @ maps))
    limit = torch.linalg.matrix_norm(maps, ord=2)
    moved = torch.linalg.matrix_norm(jacobian, ord=2)
    yield tally.bound("P22.1", "absolute sensitivity", moved, c[:, 0] / 2 * limit)


def _entropies(c: Tensor, s: Tensor) -> Iterator[pd.DataFrame]:
    """P22.3: slope in c, fall, Hoeffding's bound, and the second order near c = 0."""
    p, at = (c * s).softmax(1), c.clone().requires_grad_()
    (slope,) = torch.autograd.grad(softmax_entropy(at * s).sum(), at)
    spread, span = variance(p, s), oscillation(s)
    slope, size = slope[:, 0], (c[:, 0] * spread).clamp(min=1)
    off, without = (((slope + formula) / size).abs().max() for formula in (c[:, 0] * spread, spread))
    yield tally.residuals("P22.3", "slope of the entropy", off)
    yield tally.residuals("P22.3", "slope without the factor c", without, holds=False)
    yield tally.bound("P22.3", "entropy falls", softmax_entropy(s), softmax_entropy(c * s))
    deficit = entropy_deficit(c * s)
    limit = deficit_bound(c[:, 0] * span)
    yield tally.bound("P22.3", "deficit and range", deficit, limit)
    even = c[:, 0].square() / 2 * s.var(1, correction=0)
    yield tally.bound("P22.3", "second order", (deficit - even).abs(), (c[:, 0] * span) ** 3 * SKEW / 3)


def _relative(c: Tensor, s: Tensor, t: Tensor) -> Iterator[pd.DataFrame]:
    """P22.4: the row is linear in small scores, and its relative change that of the scores up to the remainder."""
    n = s.shape[1]
    p, q = ((c * u).softmax(1) for u in (s, t))
    rest, other = (SKEW * (c[:, 0] * oscillation(u)) ** 2 for u in (s, t))
    line = 1 / n + c / n * (s - s.mean(1, keepdim=True))
    yield tally.bound("P22.4", "linear in small scores", (p - line).abs().sum(1), rest)
    length, change = centred_norm(c * s) / n, centred_norm(c * (t - s)) / n
    seen = (q - p).norm(dim=1) / (p - 1 / n).norm(dim=1)
    # Numerator and denominator are known up to their remainders; the bound says something where the latter is not 0.
    sure = length > rest
    most, least = (change + rest + other) / (length - rest), (change - rest - other) / (length + rest)
    yield tally.bound("P22.4", "relative change, above", seen[sure], most[sure])
    yield tally.bound("P22.4", "relative change, below", least[sure], seen[sure])
    gained = c[:, 0] * relative_score_change(s, t)
    small = c[:, 0] < 0.5
    yield tally.bound("P22.4", "scaling down lowers relative change", seen[small], gained[small], holds=False)


def _cosines(c: Tensor, s: Tensor, t: Tensor) -> Iterator[pd.DataFrame]:
    """P22.5: any two rows of high entropy are near in l1 (Pinsker) and have a cosine near 1."""
    n = s.shape[1]
    p, q = ((c * u).softmax(1) for u in (s, t))
    deficit = torch.maximum(*(entropy_deficit(c * u) for u in (s, t)))
    yield tally.bound("P22.5", "distance of any two rows", (q - p).abs().sum(1), 2 * (2 * deficit).sqrt())
    turn = 2 * torch.atan((2 * n * deficit).sqrt())
    angle = 2 * torch.atan2((_unit(p) - _unit(q)).norm(dim=1), (_unit(p) + _unit(q)).norm(dim=1))
    yield tally.bound("P22.5", "angle of any two rows", angle, turn.clamp(max=np.pi / 2))


def _unit(p: Tensor) -> Tensor:
    return p / p.norm(dim=1, keepdim=True)
