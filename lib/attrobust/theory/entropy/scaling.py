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

import pandas as pd
import torch
from torch import Tensor

from attrobust import checks
from attrobust.theory import draws
from attrobust.theory.entropy.rows import (
    PerRow,
    centred_norm,
    entropy_deficit,
    oscillation,
    rank_similarity,
    relative_score_change,
    softmax_entropy,
)  # fmt: skip
from attrobust.theory.tally import Cases, bound, equalities, residual, trial
from attrobust.theory.turning import angle

#: Largest third central moment of a number between 0 and 1; also bounds the curvature of any mass (part 4).
SKEW = 1 / (6 * math.sqrt(3))


def deficit_bound(oscillation: PerRow) -> PerRow:
    """Most that the entropy can fall short of log keys when the scores span `oscillation`: its square over 8.

    Hoeffding 1963, the lemma in "Probability inequalities for sums of bounded random variables".

    Raises:
        ValueError: if an entry is negative or NaN.
    """
    return checks.none_negative("oscillation", oscillation).square() / 8


def variance(p: Tensor, s: Tensor) -> Tensor:
    """Variance of each row of scores under its weights."""
    return (p * (s - (p * s).sum(1, keepdim=True)).square()).sum(1)


@trial(version=1)
def scaled(case: int) -> Cases:
    """The five parts of P22 on random rows, each at a random factor c in (0, 1]."""
    s, g = draws.scores(case), draws.Source(case)
    t = draws.moved(s, seed=case)
    c = 10 ** (-2 * g.uniform(len(s), 1))
    yield from _absolute(c, s, g)
    whole, shrunk = (rank_similarity((f * s).log_softmax(1), (f * t).log_softmax(1)) for f in (torch.ones_like(c), c))
    yield residual("P22.2", "ranks of a pair", shrunk - whole)
    yield from _entropies(c, s)
    yield from _relative(c, s, t)


def equality() -> pd.DataFrame:
    """Two halves, in the limit of small scores."""
    apart = 1e-3 * torch.tensor([1.0, -1.0], dtype=torch.float64)
    return equalities({
        ("P22.3", "two halves, small scores"): (entropy_deficit(apart), deficit_bound(oscillation(apart)))
    })  # fmt: skip


def _absolute(c: Tensor, s: Tensor, g: draws.Source) -> Cases:
    """P22.1 for scores that are linear in an input of three entries; every other map pulls two leaders apart."""
    maps, row = g.normal(*s.shape, 3), torch.arange(len(s))
    first, second = s.topk(2).indices.unbind(1)
    pull = torch.zeros_like(maps)
    pull[row, first], pull[row, second] = maps[:, 0], -maps[:, 0]
    maps, p = torch.where(row[:, None, None] % 2 == 0, pull, maps), (c * s).softmax(1)
    jacobian = c[:, :, None] * (p[:, :, None] * maps - p[:, :, None] * (p[:, None] @ maps))
    moved, limit = (torch.linalg.matrix_norm(m, ord=2) for m in (jacobian, maps))
    yield bound("P22.1", "absolute sensitivity", moved, c[:, 0] / 2 * limit)


def _entropies(c: Tensor, s: Tensor) -> Cases:
    """P22.3: slope in c, fall, Hoeffding's bound, and the second order near c = 0."""
    p, at = (c * s).softmax(1), c.clone().requires_grad_()
    (slope,) = torch.autograd.grad(softmax_entropy(at * s).sum(), at)
    spread, slope, c = variance(p, s), slope[:, 0], c[:, 0]
    size = (c * spread).clamp(min=1)
    yield residual("P22.3", "slope of the entropy", (slope + c * spread) / size)
    yield residual("P22.3", "slope without the factor c", (slope + spread) / size, holds=False)
    yield bound("P22.3", "entropy falls", softmax_entropy(s), softmax_entropy(c[:, None] * s))
    deficit, span = entropy_deficit(c[:, None] * s), c * oscillation(s)
    yield bound("P22.3", "deficit and range", deficit, deficit_bound(span))
    even = c.square() / 2 * s.var(1, correction=0)
    yield bound("P22.3", "second order", (deficit - even).abs(), span**3 * SKEW / 3)


def _relative(c: Tensor, s: Tensor, t: Tensor) -> Cases:
    """P22.4 and 5: small scores are linear in c and keep their relative change; rows of high entropy are near."""
    n = s.shape[1]
    p, q = ((c * u).softmax(1) for u in (s, t))
    rest, other = (SKEW * (c[:, 0] * oscillation(u)) ** 2 for u in (s, t))
    line = 1 / n + c / n * (s - s.mean(1, keepdim=True))
    yield bound("P22.4", "linear in small scores", (p - line).abs().sum(1), rest)
    length, change = centred_norm(c * s) / n, centred_norm(c * (t - s)) / n
    seen = (q - p).norm(dim=1) / (p - 1 / n).norm(dim=1)
    # Numerator and denominator are known up to their remainders; the bound says something where the latter is not 0.
    sure = length > rest
    most, least = (change + rest + other) / (length - rest), (change - rest - other) / (length + rest)
    yield bound("P22.4", "relative change, above", seen[sure], most[sure])
    yield bound("P22.4", "relative change, below", least[sure], seen[sure])
    gained, small = c[:, 0] * relative_score_change(s, t), c[:, 0] < 0.5
    yield bound("P22.4", "scaling down lowers relative change", seen[small], gained[small], holds=False)
    deficit = torch.maximum(*(entropy_deficit(c * u) for u in (s, t)))
    yield bound("P22.5", "distance of any two rows", (q - p).abs().sum(1), 2 * (2 * deficit).sqrt())
    turn = 2 * torch.atan((2 * n * deficit).sqrt())
    yield bound("P22.5", "angle of any two rows", angle(p, q), turn.clamp(max=math.pi / 2))
