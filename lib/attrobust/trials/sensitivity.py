"""P20 to P22: what the weights of a softmax row say about its sensitivity, its order and its distances."""

from collections.abc import Callable, Iterator
from functools import partial

import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor

from attrobust import entropy, statements
from attrobust.theory import kernels, rows
from attrobust.trials.cases import over_cases
from attrobust.versions import versioned

#: Logarithms of strictly increasing kernels of the score; all are exact where the kernel itself under- or overflows.
KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax at 1/10": lambda s: (s / 10).log_softmax(-1),
    "softmax at 10": lambda s: (10 * s).log_softmax(-1),
    "exp": lambda s: s,
    **{kind: partial(kernels.log_weight, kind=kind) for kind in ("sigmoid", "elu + 1", "softplus")},
}


@versioned(1)
@over_cases
def hump(case: int) -> Iterator[pd.DataFrame]:
    """P20 on rows whose Jacobian is built and diagonalised; the library's fast route beside it."""
    s = rows.scores(case)
    p, h = s.softmax(1), entropy.softmax_entropy(s)
    top = torch.linalg.eigvalsh(torch.diag_embed(p) - p[:, :, None] * p[:, None])[:, -1]
    yield statements.residuals("P20", "secular equation", (entropy.softmax_jacobian_norm(p) - top).abs().max())
    first, second = p.topk(2).values.unbind(1)
    left = 1 - p.square().sum(1)
    lower = {"second weight": second, "p(1 - p) of the first": first * (1 - first)}
    lower |= {"mean eigenvalue": left / (p.shape[1] - 1)}
    upper = {"one half": torch.full_like(top, 0.5), "first weight": first, "twice p(1 - p)": 2 * first * (1 - first)}
    upper |= {"1 - |p|²": left}
    for arm, side in lower.items():
        yield statements.bound("P20", f"{arm}, below", side, top)
    for arm, side in upper.items():
        yield statements.bound("P20", f"{arm}, above", top, side)
    yield statements.bound("P20", "1 - |p|² and entropy", left, -torch.expm1(-h))
    envelope = entropy.sensitivity_envelope(h, keys=s.shape[1])
    yield statements.bound("P20", "entropy alone, below", envelope.lower, top)
    yield statements.bound("P20", "entropy alone, above", top, envelope.upper, entropy=h)


@versioned(1)
@over_cases
def rank_orders(case: int) -> Iterator[pd.DataFrame]:
    """P21: ranks of a row under every kernel; similarity of a pair of rows likewise; the head mean, which differs."""
    s = rows.scores(case)
    t = rows.moved(s, seed=case)
    pair = alike(s, t)
    for arm, kernel in KERNELS.items():
        yield statements.residuals("P21", f"ranks, {arm}", (_ranks(kernel(s)) - _ranks(s)).abs().max())
        kept = alike(kernel(s), kernel(t))
        yield statements.residuals("P21", f"Spearman and top-k of a pair, {arm}", (kept - pair).abs().max())
    flat = (_ranks(s.relu()) - _ranks(s)).abs().max()
    yield statements.residuals("wrong", "P21 with a ReLU kernel", flat)
    mean, wider = (torch.logaddexp((c * s).log_softmax(1), (c * t).log_softmax(1)) for c in (1, 3))
    yield statements.residuals("wrong", "P21 after averaging two heads", (_ranks(mean) - _ranks(wider)).abs().max())


@versioned(1)
@over_cases
def distances(case: int) -> Iterator[pd.DataFrame]:
    """P22: the range of a score change against the Hilbert distance and the total variation of the rows."""
    s = rows.scores(case)
    t = rows.moved(s, seed=case)
    p, q = s.softmax(1), t.softmax(1)
    span, moved = entropy.oscillation(t - s), entropy.total_variation(p, q)
    off = (entropy.hilbert_distance(p, q) - span) / span.clamp(min=1)
    yield statements.residuals("P22", "Hilbert distance is the range", off.abs().max())
    limit = entropy.total_variation_bound(span)
    yield statements.bound("P22", "attention moved", moved, limit, span=span)
    small, other = ((u - u.mean(1, keepdim=True)).relu() for u in (0.01 * s, 0.01 * t))
    there = (small.sum(1) > 0) & (other.sum(1) > 0)
    moved = entropy.total_variation(small[there], other[there])
    span = 0.01 * span[there]
    limit = entropy.total_variation_bound(span)
    yield statements.bound("wrong", "P22 with a ReLU kernel", moved, limit, span=span)


def alike(first: Tensor, second: Tensor) -> Tensor:
    """Spearman correlation, and share of the leading half that stays, for each pair of rows; ties are not broken."""
    a, b = _ranks(first), _ranks(second)
    middle = (a.shape[1] + 1) / 2
    product = ((a - middle) * (b - middle)).sum(1)
    length = (a - middle).norm(dim=1) * (b - middle).norm(dim=1)
    return torch.stack([product / length.clamp(min=1e-9), ((a > middle) & (b > middle)).double().mean(1)], 1)


def _ranks(values: Tensor) -> Tensor:
    return torch.from_numpy(rankdata(values.numpy(), axis=1))
