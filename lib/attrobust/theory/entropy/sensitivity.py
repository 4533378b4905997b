"""How much a softmax row moves when its scores do: the spectral norm of diag(p) - p p^T, exactly and bounded.

With p_(1) >= p_(2) >= ... the sorted weights and n keys (P20)

    max{ p_(2), p_(1)(1 - p_(1)), (1 - |p|^2) / (n - 1) }  <=  lambda_max
    lambda_max  <=  min{ 1/2, p_(1), 2 p_(1)(1 - p_(1)), 1 - |p|^2 }

lambda_max lies between p_(2) and p_(1) and is the root there of the secular equation 1 = sum_i p_i^2 / (p_i - lambda),
found by bisection between the two bounds above: they are a factor of 2 apart at most, so full precision needs as many
halvings as the number format has digits. A row of n keys costs n operations per halving, no matrix is built.

The bound 1/2 is that of Nair 2025 (arXiv 2510.23012) in l2; the eigenvalue facts are textbook (Golub 1973 for the
secular equation); the form in the entropy is ours.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from attrobust.theory import draws
from attrobust.theory.entropy.margins import leading_mass
from attrobust.theory.entropy.rows import PerRow, Scores, Weights, normalised, softmax_entropy
from attrobust.theory.tally import Cases, bound, equalities, residual, trial


class Bounds(NamedTuple):
    """Lower and upper bound, one number per row each."""

    lower: PerRow
    upper: PerRow


def softmax_jacobian_norm(weights: Weights) -> PerRow:
    """Largest eigenvalue of diag(p) - p p^T, the Jacobian of softmax at the row p = weights over their mass.

    In [0, 1/2]: 0 at one-hot, 1 / keys at uniform, 1/2 where two keys share everything; NaN for a row without mass.
    Times 1 / temperature it is the norm of the derivative of the weights in the scores. Derivatives of any order are
    exact where the two largest weights differ. Where they are equal the first one is exact too, or one of the
    subgradients if the eigenvalue is multiple, and no higher one should be used.

    Raises:
        ValueError: if a weight is negative, infinite or NaN.

    Example:
        >>> softmax_jacobian_norm(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])).round(decimals=4).abs().tolist()
        [0.0, 0.5]
    """
    return _TopEigenvalue.apply(normalised(weights).sort(-1, descending=True).values)


def row_jacobian_norm(kernel: Callable[[Scores], Weights], scores: Scores) -> PerRow:
    """Largest singular value of the Jacobian of a row in its scores, for any kernel; by the dense matrix.

    For softmax it is `softmax_jacobian_norm`, which is faster and accurate to the last digit; where each weight
    depends on its own score alone, it is the largest slope.

    Example:
        >>> round(row_jacobian_norm(lambda s: s.exp() / 4, torch.tensor([0.0, -1.0, -1.0, -5.0])).item(), 4)
        0.25
    """
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: kernel(row[None])[0]))
    return torch.linalg.matrix_norm(jacobian(scores.reshape(-1, scores.shape[-1])), ord=2).view(scores.shape[:-1])


def jacobian_bounds(weights: Weights) -> Bounds:
    """The bounds on `softmax_jacobian_norm` that the largest weights, and the sum of squares, give.

    Example:
        >>> [round(b.item(), 2) for b in jacobian_bounds(torch.tensor([0.7, 0.2, 0.1]))]
        [0.23, 0.42]
    """
    return _bounds(normalised(weights).sort(-1, descending=True).values)


def sensitivity_envelope(entropy: PerRow, *, keys: int) -> Bounds:
    """What the entropy H (in nats) of a row of at least two keys alone says about `softmax_jacobian_norm`.

        min{ m(1 - m), l(1 - l) }  <=  lambda_max  <=  min{ 1/2, m, 2 l(1 - l) where H <= log 2 }

    with m the largest and l the least size that the first weight of a row of that entropy can have: m from two levels
    (`leading_mass`, k = 1); l from two keys alone where H <= log 2, above that l >= e^-H. Both sides vanish at entropy
    0 and meet near 1 / keys at log keys: a hump. Ours.

    Raises:
        ValueError: if `keys` is below 2 or an entropy lies outside [0, log keys].

    Example:
        >>> [round(b.item(), 3) for b in sensitivity_envelope(torch.tensor(0.0), keys=9)]
        [0.0, 0.0]
    """
    few = entropy <= math.log(2)
    pair = leading_mass(entropy.clamp(max=math.log(2)), keys=2, k=1)
    most, least = leading_mass(entropy, keys=keys, k=1), torch.where(few, pair, (-entropy).exp())
    lower = torch.minimum(most * (1 - most), least * (1 - least))
    return Bounds(lower, torch.minimum(most.clamp(max=0.5), torch.where(few, 2 * pair * (1 - pair), 0.5)))


@trial(version=1)
def hump(case: int) -> Cases:
    """P20 on rows whose Jacobian is built and diagonalised; the library's fast route beside it."""
    s = draws.scores(case)
    p, h = s.softmax(1), softmax_entropy(s)
    top = torch.linalg.eigvalsh(torch.diag_embed(p) - p[:, :, None] * p[:, None])[:, -1]
    yield residual("P20", "secular equation", softmax_jacobian_norm(p) - top)
    first, second = p.topk(2).values.unbind(1)
    left = 1 - p.square().sum(1)
    lower = {"second weight": second, "p(1 - p) of the first": first * (1 - first)}
    lower |= {"mean eigenvalue": left / (p.shape[1] - 1)}
    upper = {"one half": 0.5, "first weight": first, "twice p(1 - p)": 2 * first * (1 - first), "1 - |p|²": left}
    for arm, side in lower.items():
        yield bound("P20", f"{arm}, below", side, top)
    for arm, side in upper.items():
        yield bound("P20", f"{arm}, above", top, side)
    yield bound("P20", "1 - |p|² and entropy", left, -torch.expm1(-h))
    envelope = sensitivity_envelope(h, keys=s.shape[1])
    yield bound("P20", "entropy alone, below", envelope.lower, top)
    yield bound("P20", "entropy alone, above", top, envelope.upper, entropy=h)


def equality() -> pd.DataFrame:
    """Two keys that share everything, and a uniform row."""
    tie, even = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64), torch.ones(7, dtype=torch.float64)
    return equalities({
        ("P20", "two keys share all"): (softmax_jacobian_norm(tie), 0.5),
        ("P20", "uniform row"): (1 / 7, softmax_jacobian_norm(even)),
        ("P20", "entropy, uniform row"): (1 - 1 / 7, -math.expm1(-math.log(7))),
    })  # fmt: skip


def _bounds(p: Weights) -> Bounds:
    """Bounds of sorted, normalised rows."""
    first, others = p[..., 0], p[..., 1:]
    rest = others.sum(-1)
    spread = first * rest + (others * (1 - others)).sum(-1)  # 1 - |p|^2 without cancellation
    second = others[..., 0] if others.shape[-1] else torch.zeros_like(first)
    lower = torch.maximum(torch.maximum(second, first * rest), spread / max(p.shape[-1] - 1, 1))
    upper = torch.minimum(torch.minimum(first, 2 * first * rest), spread).clamp(max=0.5)
    return Bounds(lower, torch.maximum(lower, upper))


class _TopEigenvalue(torch.autograd.Function):
    """Root of the secular equation; backward by the eigenvector, v_i ~ p_i / (p_i - lambda)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, p: Tensor) -> Tensor:
        """Bisect between the bounds."""
        first, others = p[..., 0], p[..., 1:]
        low, high = _bounds(p)
        for _ in range(torch.finfo(p.dtype).bits):
            middle = (low + high) / 2
            inside = (first * others.sum(-1) - middle) / (first - middle)  # 1 - p_1^2 / (p_1 - middle)
            above = inside + (others.square() / (middle.unsqueeze(-1) - others)).nan_to_num(0).sum(-1) > 0
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        ctx.save_for_backward(p)
        return torch.where(first.isnan(), first, (low + high) / 2)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        """Derivative of v^T (diag p - p p^T) v at the unit eigenvector v."""
        (p,) = ctx.saved_tensors
        apart = p - _TopEigenvalue.apply(p).unsqueeze(-1)  # again, so that this can be differentiated in turn
        v = p / torch.where(apart == 0, torch.finfo(p.dtype).tiny, apart)
        if p.shape[-1] > 1:
            tie = torch.zeros_like(p)
            tie[..., 0], tie[..., 1] = 1, -1
            v = torch.where(p[..., :1] - p[..., 1:2] <= 4 * torch.finfo(p.dtype).eps, tie, v)
        v = v / v.abs().amax(-1, keepdim=True)
        v = v / v.norm(dim=-1, keepdim=True)
        return grad.unsqueeze(-1) * (v.square() - 2 * (v * p).sum(-1, keepdim=True) * v)
