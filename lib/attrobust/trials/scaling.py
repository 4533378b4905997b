"""P23: what scaling the scores of a softmax row does to its sensitivity, its entropy and its ranks."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attrobust import entropy, similarity, statements
from attrobust.theory import rows
from attrobust.trials.cases import over_cases
from attrobust.trials.sensitivity import alike
from attrobust.versions import versioned

#: Largest third central moment of a number between 0 and 1; also bounds the curvature of any mass (P23.4).
SKEW = 1 / (6 * math.sqrt(3))


@versioned(1)
@over_cases
def scaled(case: int) -> Iterator[pd.DataFrame]:
    """The five parts of P23 on random rows, each at a random factor c in (0, 1]."""
    s = rows.scores(case)
    t = rows.moved(s, seed=case)
    g = torch.Generator().manual_seed(case)
    c = 10 ** (-2 * torch.rand(len(s), 1, generator=g, dtype=s.dtype))
    yield from _absolute(c, s, g)
    ranks = [alike(*((f * u).log_softmax(1) for u in (s, t))) for f in (c, torch.ones_like(c))]
    yield statements.residuals("P23.2", "ranks of a pair", (ranks[0] - ranks[1]).abs().max())
    yield from _entropies(c, s)
    yield from _relative(c, s, t)
    yield from _cosines(c, s, t)


@versioned(1)
def temperatures(factors: Sequence[float], keys: int, seeds: Sequence[int]) -> pd.DataFrame:
    """Two rows of attention, the second with 25 % noise on its keys, seen by several measures at every factor.

    Ranks are taken of log p, where factors cannot underflow; top-8 counts for at least 9 keys.
    """
    parts = []
    for factor in factors:
        s, t = (torch.stack(pair) for pair in zip(*(_noisy(keys, seed) for seed in seeds), strict=True))
        p, q = ((factor * u).softmax(1) for u in (s, t))
        a, b = ((factor * u).log_softmax(1)[:, None] for u in (s, t))
        numbers = {
            "entropy / log n": entropy.softmax_entropy(factor * s) / math.log(keys),
            "absolute change": (q - p).norm(dim=1),
            "relative change": (q - p).norm(dim=1) / (p - 1 / keys).norm(dim=1),
            "cosine of p": similarity.cosine(p[:, None, None], q[:, None, None]),
            "1 - Pearson of p": 1 - similarity.pearson(p[:, None], q[:, None]),
            "Spearman of log p": similarity.spearman(a, b),
            "top-8": similarity.topk_intersection(a, b, k=8),
        }
        numbers["R_s of the scores"] = entropy.relative_score_change(factor * s, factor * t)
        columns = {"factor": factor, "seed": list(seeds)}
        parts += [pd.DataFrame({"name": n, "value": v.numpy(), **columns}) for n, v in numbers.items()]
    return pd.concat(parts)


@versioned(1)
def slopes(factors: Sequence[float], keys: int, seeds: Sequence[int]) -> pd.DataFrame:
    """Slope of the entropy in the factor by central differences, and the formula -c Var, row by row."""
    c, step = torch.tensor(factors, dtype=torch.float64)[:, None], 1e-4
    parts = []
    for seed in seeds:
        s = _noisy(keys, seed)[0]
        measured = (entropy.softmax_entropy((c + step) * s) - entropy.softmax_entropy((c - step) * s)) / (2 * step)
        formula = -c[:, 0] * _variance((c * s).softmax(1), s)
        named = {"central differences": measured, "-c Var(s)": formula}
        parts += [pd.DataFrame({"name": n, "value": v, "factor": factors, "seed": seed}) for n, v in named.items()]
    return pd.concat(parts)


def _absolute(c: Tensor, s: Tensor, g: torch.Generator) -> Iterator[pd.DataFrame]:
    """P23.1 for scores that are linear in an input of three entries; every other map pulls two leaders apart."""
    maps = torch.randn(*s.shape, 3, generator=g, dtype=s.dtype)
    first, second = s.topk(2).indices.unbind(1)
    pull = torch.zeros_like(maps)
    pull[torch.arange(len(s)), first], pull[torch.arange(len(s)), second] = maps[:, 0], -maps[:, 0]
    maps = torch.where(torch.arange(len(s))[:, None, None] % 2 == 0, pull, maps)
    p = (c * s).softmax(1)
    jacobian = c[:, :, None] * (p[:, :, None] * maps - p[:, :, None] * (p[:, None] @ maps))
    limit = torch.linalg.matrix_norm(maps, ord=2)
    moved = torch.linalg.matrix_norm(jacobian, ord=2)
    yield statements.bound("P23.1", "absolute sensitivity", moved, c[:, 0] / 2 * limit)


def _entropies(c: Tensor, s: Tensor) -> Iterator[pd.DataFrame]:
    """P23.3: slope in c, fall, Hoeffding's bound, and the second order near c = 0."""
    p, at = (c * s).softmax(1), c.clone().requires_grad_()
    (slope,) = torch.autograd.grad(entropy.softmax_entropy(at * s).sum(), at)
    variance, span = _variance(p, s), entropy.oscillation(s)
    slope, size = slope[:, 0], (c[:, 0] * variance).clamp(min=1)
    off, wrong = (((slope + told) / size).abs().max() for told in (c[:, 0] * variance, variance))
    yield statements.residuals("P23.3", "slope of the entropy", off)
    yield statements.residuals("wrong", "P23.3 slope without the factor c", wrong)
    yield statements.bound("P23.3", "entropy falls", entropy.softmax_entropy(s), entropy.softmax_entropy(c * s))
    deficit = entropy.entropy_deficit(c * s)
    limit = entropy.deficit_bound(c[:, 0] * span)
    yield statements.bound("P23.3", "deficit and range", deficit, limit)
    even = c[:, 0].square() / 2 * s.var(1, correction=0)
    yield statements.bound("P23.3", "second order", (deficit - even).abs(), (c[:, 0] * span) ** 3 * SKEW / 3)


def _relative(c: Tensor, s: Tensor, t: Tensor) -> Iterator[pd.DataFrame]:
    """P23.4: the row is linear in small scores, and its relative change that of the scores up to the remainder."""
    n = s.shape[1]
    p, q = ((c * u).softmax(1) for u in (s, t))
    rest, other = (SKEW * (c[:, 0] * entropy.oscillation(u)) ** 2 for u in (s, t))
    line = 1 / n + c / n * (s - s.mean(1, keepdim=True))
    yield statements.bound("P23.4", "linear in small scores", (p - line).abs().sum(1), rest)
    length, change = entropy.centred_norm(c * s) / n, entropy.centred_norm(c * (t - s)) / n
    seen = (q - p).norm(dim=1) / (p - 1 / n).norm(dim=1)
    told = length > rest
    most, least = (change + rest + other) / (length - rest), (change - rest - other) / (length + rest)
    yield statements.bound("P23.4", "relative change, above", seen[told], most[told])
    yield statements.bound("P23.4", "relative change, below", least[told], seen[told])
    gained = c[:, 0] * entropy.relative_score_change(s, t)
    small = c[:, 0] < 0.5
    yield statements.bound("wrong", "P23.4 scaling down lowers relative change", seen[small], gained[small])


def _cosines(c: Tensor, s: Tensor, t: Tensor) -> Iterator[pd.DataFrame]:
    """P23.5: any two rows of high entropy are near in l1 (Pinsker) and have a cosine near 1."""
    n = s.shape[1]
    p, q = ((c * u).softmax(1) for u in (s, t))
    deficit = torch.maximum(*(entropy.entropy_deficit(c * u) for u in (s, t)))
    yield statements.bound("P23.5", "distance of any two rows", (q - p).abs().sum(1), 2 * (2 * deficit).sqrt())
    turn = 2 * torch.atan((2 * n * deficit).sqrt())
    angle = 2 * torch.atan2((_unit(p) - _unit(q)).norm(dim=1), (_unit(p) + _unit(q)).norm(dim=1))
    yield statements.bound("P23.5", "angle of any two rows", angle, turn.clamp(max=np.pi / 2))


def _noisy(keys: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores of one query with random keys, and with the same keys plus noise of a quarter of their size."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    query, key, noise = draw(16), draw(keys, 16), draw(keys, 16)
    return key @ query / 2, (key + 0.25 * noise) @ query / 2


def _variance(p: Tensor, s: Tensor) -> Tensor:
    return (p * (s - (p * s).sum(1, keepdim=True)).square()).sum(1)


def _unit(p: Tensor) -> Tensor:
    return p / p.norm(dim=1, keepdim=True)
