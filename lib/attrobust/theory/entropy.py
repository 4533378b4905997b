"""Entropy of attention rows, and what it decides: how sensitive a row is, how clear its ranks can be (P20, P22 to P25).

A *row* is what one query of one head gives to its keys: the last axis of a tensor of *weights* (softmax or any other
kernel, at least 0) or of *scores* (what stands before the softmax). Entropy is in nats, H(p) = - sum_i p_i log p_i of
the weights over their sum. A key whose weight is 0, or whose score is -inf, counts as absent and gets gradient 0; in a
row without any mass the entropy is NaN. Weights that are negative, infinite or NaN, scores that are NaN or +inf, rows
of -inf only, two rows of different shapes and numbers out of range raise a ValueError everywhere.

P20  How much a row moves with its scores: lambda_max of diag(p) - p p^T. With p_(1) >= p_(2) >= ... and n keys
         max{ p_(2), p_(1)(1 - p_(1)), (1 - |p|^2) / (n - 1) }  <=  lambda_max
         lambda_max  <=  min{ 1/2, p_(1), 2 p_(1)(1 - p_(1)), 1 - |p|^2 }
     It is the root between p_(2) and p_(1) of the secular equation 1 = sum_i p_i^2 / (p_i - lambda) (Golub 1973), found
     by bisection between these bounds, which are a factor of 2 apart at most, without building a matrix. 1/2 is of Nair
     2025 (arXiv 2510.23012) in l2, the eigenvalue facts are textbook, the form in the entropy is ours.
P22  What scaling the scores does, p_c = softmax(c s) with 0 < c <= 1:
     1  |d p_c / dx| <= (c / 2) |d s / dx|                        the absolute sensitivity falls
     2  every rank metric stays (P21)
     3  dH(p_c) / dc = -c Var(s),  log n - H(p_c) <= c^2 (max s - min s)^2 / 8       (Hoeffding's lemma, 1963)
     4  p_c is 1 / n + c (s - mean s) / n up to c^2 (max s - min s)^2 / (6 sqrt 3) in l1, so its relative change tends
        to that of the scores, in which c does not occur
     5  rows whose entropy lacks at most e to log n are within 2 sqrt(2 e) in l1 (Pinsker) and in angle within
        2 arctan sqrt(2 n e)
     The deficit is attained by two even halves in the limit; all but the two inequalities is ours.
P23  H(p) >= log(1 + (n-1) b) + a sqrt(n(n-1)) b / (1 + (n-1) b),  a = |s - mean s|,  b = exp(-a sqrt(n/(n-1)));
     attained by one raised score. Of Zhai et al. 2023 (arXiv 2303.06296), re-derived.
P24  s_(k) - s_(k+1) <= G with H(two levels, k of n keys raised by G) = H(p); attained by two levels. Ours.
P25  Softmax maps the range of a score change onto the Hilbert distance of the rows exactly, and onto total variation by
     tanh: with o the odds of the keys that gain, o e^r / (1 + o e^r) - o / (1 + o) is largest at o = e^(-r/2).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from attrobust import checks, similarity
from attrobust.theory import draws
from attrobust.theory.certificates import angle
from attrobust.theory.draws import Rows
from attrobust.theory.tally import Cases, bound, residual, trial

Weights = Float[Tensor, "*batch keys"]
Scores = Float[Tensor, "*batch keys"]
PerRow = Float[Tensor, "*batch"]
SKEW = 1 / (6 * math.sqrt(3))  # largest third central moment of a number in [0, 1]; bounds the curvature of any mass


def row_mass(weights: Weights) -> PerRow:
    """Sum of each row: 1 under softmax, free under a kernel without normalisation.

    Raises:
        ValueError: weights that are negative or not finite.

    Example:
        >>> row_mass(torch.tensor([[0.5, 0.25]])).tolist()
        [0.75]
    """
    return checks.weights("weights", weights).sum(-1)


def normalised(weights: Weights) -> Weights:
    """Each row over its mass; NaN in a row without mass.

    Raises:
        ValueError: weights that are negative or not finite.

    Example:
        >>> normalised(torch.tensor([[1.0, 3.0], [0.0, 0.0]])).tolist()
        [[0.25, 0.75], [nan, nan]]
    """
    mass = row_mass(weights).unsqueeze(-1)
    top = torch.where(mass.isinf(), weights.amax(-1, keepdim=True), 1)  # a sum may be too large for its precision
    return weights / top / torch.where(mass.isinf(), (weights / top).sum(-1, keepdim=True), mass)


def row_entropy(weights: Weights) -> PerRow:
    """Entropy of each row in nats, after dividing the row by its mass: from 0 to log keys; NaN for a row without mass.

    Example:
        >>> row_entropy(torch.tensor([[1.0, 0.0], [3.0, 3.0]]).double()).round(decimals=6).tolist()
        [0.0, 0.693147]
    """
    p = normalised(weights)
    return (p * -torch.where(p > 0, p, torch.ones_like(p)).log()).sum(-1)


def effective_keys(weights: Weights) -> PerRow:
    """Number of keys a uniform row of the same entropy would have: exp(H), from 1 to keys.

    Raises:
        ValueError: weights that are negative or not finite.

    Example:
        >>> round(effective_keys(torch.tensor([[0.5, 0.5, 0.0]])).item(), 4)
        2.0
    """
    return row_entropy(weights).exp()


def softmax_entropy(scores: Scores) -> PerRow:
    """Entropy of softmax(scores) in nats, accurate for the most peaked rows too.

    Raises:
        ValueError: scores that are NaN or +inf, or a row without any key.

    Example:
        >>> round(softmax_entropy(torch.zeros(1, 2)).item(), 4)  # log 2
        0.6931
    """
    top = checks.scores("scores", scores).argmax(-1, keepdim=True)
    below = scores - scores.gather(-1, top)
    raised = below.exp()
    rest = raised.scatter(-1, top, 0).sum(-1)
    finite = torch.where(torch.isfinite(below), below, torch.zeros_like(below))
    return rest.log1p() - (raised * finite).sum(-1) / (1 + rest)


def entropy_deficit(scores: Scores) -> PerRow:
    """What the entropy of softmax(scores) lacks to the log of the unmasked keys; accurate near uniform rows too.

    Raises:
        ValueError: scores that are NaN or +inf, or a row without any key.

    Example:
        >>> entropy_deficit(torch.zeros(1, 3)).item()
        0.0
    """
    kept, small = torch.isfinite(scores), (oscillation(scores) < 1).unsqueeze(-1)
    near = torch.where(small, centred(scores), torch.zeros_like(scores))
    keys = kept.sum(-1, keepdim=True)
    level = near.expm1().sum(-1, keepdim=True).div(keys).log1p()  # a masked key is centred at 0
    divergence = ((near - level).exp() * (near - level) * kept).sum(-1) / keys.squeeze(-1)
    far = keys.squeeze(-1).to(scores).log() - softmax_entropy(scores)
    return torch.where(small.squeeze(-1), divergence.clamp(min=0), far)


def oscillation(scores: Scores) -> PerRow:
    """Largest minus smallest score of each row, over unmasked keys.

    Raises:
        ValueError: scores that are NaN or +inf, or a row without any key.

    Example:
        >>> oscillation(torch.tensor([[1.0, 4.0, -torch.inf]])).item()
        3.0
    """
    least = torch.where(torch.isfinite(checks.scores("scores", scores)), scores, torch.inf)
    return scores.amax(-1) - least.amin(-1)


def centred_norm(scores: Scores) -> PerRow:
    """Euclidean norm of the centred scores, see `centred`.

    Raises:
        ValueError: scores that are NaN or +inf, or a row without any key.

    Example:
        >>> centred_norm(torch.tensor([[4.0, 10.0, 7.0, 7.0]])).square().round().item()
        18.0
    """
    return _length(centred(scores))


def centred(scores: Scores) -> Scores:
    """Scores minus the mean of the unmasked ones; 0 at masked keys.

    Raises:
        ValueError: scores that are NaN or +inf, or a row without any key.

    Example:
        >>> centred(torch.tensor([[1.0, 3.0, -torch.inf]])).tolist()
        [[-1.0, 1.0, 0.0]]
    """
    kept = torch.isfinite(checks.scores("scores", scores))
    filled = torch.where(kept, scores, torch.zeros_like(scores))
    total, keys = filled.sum(-1, keepdim=True), kept.sum(-1, keepdim=True)
    mean = torch.where(total.isinf(), (filled / keys).sum(-1, keepdim=True), total / keys)
    return torch.where(kept, filled - mean, torch.zeros_like(scores))


def hilbert_distance(first: Weights, second: Weights) -> PerRow:
    """Hilbert's projective distance: max_i log(q_i / p_i) - min_i log(q_i / p_i); rows need no normalisation.

    0 iff the rows are proportional; infinite where a key has weight 0 in one row only, keys with weight 0 in both are
    left out; NaN where a row has no mass. Birkhoff 1957, "Extensions of Jentzsch's theorem".

    Raises:
        ValueError: weights that are negative or not finite, or rows of other shapes.

    Example:
        >>> round(hilbert_distance(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 2.0]])).item(), 4)  # log 2
        0.6931
    """
    _pair(checks.weights("first", first), checks.weights("second", second))
    both, one = (first > 0) & (second > 0), (first > 0) ^ (second > 0)
    a, b = (torch.where(both, w, torch.ones_like(w)).log() for w in (first, second))
    most = torch.where(both, b - a, -torch.inf).amax(-1)
    least = torch.where(both, b - a, torch.inf).amin(-1)
    empty = (first.sum(-1) == 0) | (second.sum(-1) == 0)
    return torch.where(empty, torch.nan, torch.where(one.any(-1), torch.inf, most - least))


def total_variation(first: Weights, second: Weights) -> PerRow:
    """Share of attention that has to be moved to turn one row into the other, in [0, 1]; rows are normalised first.

    Raises:
        ValueError: weights that are negative or not finite, or rows of other shapes.

    Example:
        >>> total_variation(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])).item()
        0.5
    """
    _pair(first, second)
    return (normalised(first) - normalised(second)).abs().sum(-1) / 2


def total_variation_bound(oscillation: PerRow) -> PerRow:
    """Most total variation by a change of scores of this oscillation, tanh(oscillation / 4); attained by two keys.

    Raises:
        ValueError: an oscillation that is negative or NaN.

    Example:
        >>> round(total_variation_bound(torch.tensor([4.0])).item(), 4)  # tanh 1
        0.7616
    """
    return torch.tanh(checks.none_negative("oscillation", oscillation) / 4)


def relative_score_change(scores: Scores, moved: Scores) -> PerRow:
    """Length of the change of the centred scores over the length of the centred scores: R_s, blind to scale and shift.

    Infinite where all scores are equal and the moved ones are not, 0 where nothing moves; the masks must agree. Ours
    (P22).

    Raises:
        ValueError: masks that differ.

    Example:
        >>> scores = torch.tensor([[1.0, 3.0]])
        >>> relative_score_change(scores, 2 * scores + 5).item(), relative_score_change(scores, scores + 5).item()
        (1.0, 0.0)
    """
    _pair(scores, moved)
    a, b = centred(scores), centred(moved)
    if not torch.equal(torch.isfinite(scores), torch.isfinite(moved)):
        raise ValueError("moved masks other keys than scores; both must hold -inf at the same places")
    change, length = _length(b - a), _length(a)
    return torch.where(change == 0, torch.zeros_like(change), change / length)


def ranks(values: Rows) -> Rows:
    """Ranks along the keys, in float64; ties share one.

    Example:
        >>> ranks(torch.tensor([[0.5, 0.1, 0.5]])).tolist()
        [[2.5, 1.0, 2.5]]
    """
    return torch.from_numpy(rankdata(values.numpy(), axis=1))


def rank_similarity(first: Rows, second: Rows) -> Float[Tensor, "rows two"]:
    """Spearman correlation, and share of the leading half that stays, for each pair of rows; ties are not broken.

    Example:
        >>> a = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
        >>> [round(value, 4) for value in rank_similarity(a, a.flip(1))[0].tolist()]
        [-1.0, 0.0]
    """
    middle = (first.shape[1] + 1) / 2
    a, b = ranks(first) - middle, ranks(second) - middle
    spearman = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-9)
    return torch.stack([spearman, ((a > 0) & (b > 0)).double().mean(1)], 1)


def entropy_floor(norm: PerRow, *, keys: int) -> PerRow:
    """Least entropy of a softmax row whose centred scores have a given Euclidean norm, which may be infinite (P23).

    Raises:
        ValueError: `keys` below 1, or a norm that is negative or NaN.

    Example:
        >>> entropy_floor(torch.tensor([1.0, 3.0, 6.0]).double(), keys=17).round(decimals=2).tolist()
        [2.78, 1.85, 0.23]
    """
    checks.count("keys", keys)
    checks.none_negative("norm", norm)
    if keys == 1:
        return torch.zeros_like(norm)
    b = (-norm * math.sqrt(keys / (keys - 1))).exp()
    steep = torch.where(b > 0, norm, torch.zeros_like(norm)) * b
    return torch.log1p((keys - 1) * b) + math.sqrt(keys * (keys - 1)) * steep / (1 + (keys - 1) * b)


def topk_gap(scores: Scores, *, k: int) -> PerRow:
    """The k-th score minus the next, infinite where only that is masked; half of it per score keeps the top-k set.

    Raises:
        ValueError: `k` below 1 or without a next key, or scores that are NaN or +inf.

    Example:
        >>> topk_gap(torch.tensor([[5.0, 3.0, 2.0]]), k=1).item()
        2.0
    """
    keys = checks.scores("scores", scores).shape[-1]
    checks.count("k", k, most=keys - 1)
    last, following = scores.topk(k + 1).values[..., k - 1 :].unbind(-1)
    masked, none = last == -torch.inf, torch.zeros_like(last)
    return torch.where(masked, none, torch.where(masked, none, last) - following)


def margin_ceiling(entropy: PerRow, *, keys: int, k: int) -> PerRow:
    """Largest `topk_gap` that a softmax row of a given entropy can have, at temperature 1 (P24).

    By bisection in the gap t of the row with k keys raised by t, whose entropy falls with t. The entropy is lowered by
    a few units of rounding first, so the answer errs on the safe side (by up to 1e-7 at log keys in float64). Carries
    no gradient. At temperature T the ceiling is T times as high. Near 0 at log keys; infinite from log k down, where k
    keys can hold everything; NaN where the entropy is.

    Raises:
        ValueError: an entropy out of [0, log keys], fewer than two `keys`, or `k` out of range.

    Example:
        >>> row = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
        >>> round(margin_ceiling(softmax_entropy(row), keys=3, k=1).item(), 4)  # this row has all the margin it can
        2.0
    """
    checks.count("keys", keys, least=2)
    checks.count("k", k, most=keys - 1)
    h, room = entropy.detach(), 1e-4
    known = h[~h.isnan()]
    if bool(((known < -room) | (known > math.log(keys) + room)).any()):
        low, high = float(known.min()), float(known.max())
        raise ValueError(f"entropy spans [{low:g}, {high:g}]; it must lie in [0, {math.log(keys):g}] nats")
    excess = h - 4 * torch.finfo(h.dtype).eps * (1 + math.log(keys)) - math.log(k)
    low, high = torch.zeros_like(h), torch.full_like(h, -math.log(torch.finfo(h.dtype).tiny))
    for _ in range(2 * torch.finfo(h.dtype).bits):
        t = (low + high) / 2
        r = (keys - k) / k * (-t).exp()  # mass of the lower level over that of the upper one
        wider = r.log1p() + t * r / (1 + r) > excess
        low, high = torch.where(wider, t, low), torch.where(wider, high, t)
    return torch.where(excess <= 0, torch.inf, high).where(~h.isnan(), h)


def leading_mass(entropy: PerRow, *, keys: int, k: int) -> PerRow:
    """Largest share that the k leading keys of a row of a given entropy can hold, from k / keys to 1.

    Raises:
        ValueError: an entropy out of [0, log keys], fewer than two `keys`, or `k` out of range.

    Example:
        >>> round(leading_mass(torch.tensor([math.log(3)]), keys=3, k=1).item(), 2)  # of the uniform row
        0.33
    """
    return torch.sigmoid(margin_ceiling(entropy, keys=keys, k=k) - math.log((keys - k) / k))


@trial(version=1)
def floors(case: int) -> Cases:
    """P23: the entropy of a row against its floor, given the norm of its centred scores."""
    s = draws.scores(case)
    norm, keys = centred_norm(s), s.shape[1]
    yield bound("P23", "entropy and norm", entropy_floor(norm, keys=keys), softmax_entropy(s), norm=norm, keys=keys)


@trial(version=1)
def ceilings(case: int) -> Cases:
    """P24: the gap after the k-th score against its ceiling, and what half the gap certifies."""
    s, g = draws.scores(case), draws.Source(case)
    keys = s.shape[1]
    k, temperature = g.whole(1, keys - 1), 10 ** float(torch.rand(1, generator=g.generator) - 0.5)
    gap, limit = topk_gap(s, k=k), temperature * margin_ceiling(softmax_entropy(s / temperature), keys=keys, k=k)
    yield bound("P24", "gap after the k-th score", gap, limit, temperature=temperature)
    leading = torch.zeros_like(s, dtype=torch.bool).scatter(1, s.topk(k).indices, True)
    clear = gap > 1e-6
    for share, arm in ((0.999, "top-k set within half the gap"), (1.001, "just beyond half the gap")):
        worst = s + share * gap[:, None] / 2 * torch.where(leading, -1.0, 1.0)
        after = torch.zeros_like(leading).scatter(1, worst.topk(k).indices, True)
        yield bound("P24", arm, (leading & ~after).sum(1)[clear], 0.0, holds=share < 1)


class Bounds(NamedTuple):
    """Lower and upper bound, one number per row each.

    Example:
        >>> Bounds(torch.tensor([0.1]), torch.tensor([0.5])).upper.item()
        0.5
    """

    lower: PerRow
    upper: PerRow


def softmax_jacobian_norm(weights: Weights) -> PerRow:
    """Largest eigenvalue of diag(p) - p p^T, the Jacobian of softmax at the row p = weights over their mass (P20).

    In [0, 1/2]: 0 at one-hot, 1 / keys at uniform, 1/2 where two keys share everything; NaN for a row without mass.
    Over the temperature it is the norm of the derivative of the weights in the scores. Its derivatives are exact where
    the two largest weights differ; where they are equal the first one is a subgradient, and no higher one should be
    used.

    Raises:
        ValueError: weights that are negative or not finite.

    Example:
        >>> rows = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
        >>> [round(value, 4) for value in softmax_jacobian_norm(rows).tolist()]
        [0.5, 0.0]
    """
    return _TopEigenvalue.apply(normalised(weights).sort(-1, descending=True).values)


def row_jacobian_norm(kernel: Callable[[Scores], Weights], scores: Scores) -> PerRow:
    """Largest singular value of the Jacobian of a row in its scores, for any kernel; by the dense matrix.

    Example:
        >>> round(row_jacobian_norm(lambda scores: scores.softmax(-1), torch.zeros(1, 2)).item(), 4)
        0.5
    """
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: kernel(row[None])[0]))
    return torch.linalg.matrix_norm(jacobian(scores.reshape(-1, scores.shape[-1])), ord=2).view(scores.shape[:-1])


def jacobian_bounds(weights: Weights) -> Bounds:
    """The bounds of P20 on `softmax_jacobian_norm` by the largest weights and the sum of squares.

    Raises:
        ValueError: weights that are negative or not finite.

    Example:
        >>> lower, upper = jacobian_bounds(torch.tensor([[0.5, 0.5]]))
        >>> round(lower.item(), 4), round(upper.item(), 4)
        (0.5, 0.5)
    """
    return _bounds(normalised(weights).sort(-1, descending=True).values)


def sensitivity_envelope(entropy: PerRow, *, keys: int) -> Bounds:
    """What the entropy H (in nats) of a row of at least two keys alone says about `softmax_jacobian_norm`. Ours.

        min{ m(1 - m), l(1 - l) }  <=  lambda_max  <=  min{ 1/2, m, 2 l(1 - l) where H <= log 2 }

    with m the largest and l the least size that the first weight of a row of that entropy can have: m from two levels
    (`leading_mass`, k = 1); l from two keys alone where H <= log 2, above that l >= e^-H. A hump: both sides vanish at
    entropy 0 and meet near 1 / keys at log keys.

    Raises:
        ValueError: an entropy out of [0, log keys], or fewer than two `keys`.

    Example:
        >>> lower, upper = sensitivity_envelope(torch.tensor([0.0, math.log(2)], dtype=torch.float64), keys=2)
        >>> [round(value, 2) for value in upper.tolist()]
        [0.0, 0.5]
    """
    few = entropy <= math.log(2)
    pair = leading_mass(entropy.clamp(max=math.log(2)), keys=2, k=1)
    most, least = leading_mass(entropy, keys=keys, k=1), torch.where(few, pair, (-entropy).exp())
    lower = torch.minimum(most * (1 - most), least * (1 - least))
    return Bounds(lower, torch.minimum(most.clamp(max=0.5), torch.where(few, 2 * pair * (1 - pair), most)))


@trial(version=1)
def hump(case: int) -> Cases:
    """P20 on rows whose Jacobian is built and diagonalised; the library's fast route beside it."""
    s = draws.scores(case)
    p, h = s.softmax(1), softmax_entropy(s)
    top = torch.linalg.eigvalsh(torch.diag_embed(p) - p[:, :, None] * p[:, None])[:, -1]
    yield residual("P20", "secular equation", softmax_jacobian_norm(p) - top)
    first, second = p.topk(2).values.unbind(1)
    left = 1 - p.square().sum(1)
    yield bound("P20", "second weight, below", second, top)
    yield bound("P20", "p(1 - p) of the first, below", first * (1 - first), top)
    yield bound("P20", "mean eigenvalue, below", left / (p.shape[1] - 1), top)
    yield bound("P20", "one half, above", top, 0.5)
    yield bound("P20", "first weight, above", top, first)
    yield bound("P20", "twice p(1 - p), above", top, 2 * first * (1 - first))
    yield bound("P20", "1 - |p|², above", top, left)
    yield bound("P20", "1 - |p|² and entropy", left, -torch.expm1(-h))
    envelope = sensitivity_envelope(h, keys=s.shape[1])
    yield bound("P20", "entropy alone, below", envelope.lower, top)
    yield bound("P20", "entropy alone, above", top, envelope.upper, entropy=h)


def _bounds(p: Weights) -> Bounds:
    """Bounds of sorted, normalised rows."""
    first, others = p[..., 0], p[..., 1:]
    rest = others.sum(-1)
    spread = first * rest + (others * (1 - others)).sum(-1)  # 1 - |p|^2 without cancellation
    second = others[..., 0] if others.shape[-1] else torch.zeros_like(first)
    lower = torch.maximum(torch.maximum(second, first * rest), spread / max(p.shape[-1] - 1, 1))
    upper = torch.minimum(torch.minimum(first, 2 * first * rest), spread)
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


def deficit_bound(oscillation: PerRow) -> PerRow:
    """Most that the entropy can fall short of log keys when the scores span `oscillation`: its square / 8 (P22.3).

    Raises:
        ValueError: an oscillation that is negative or NaN.

    Example:
        >>> deficit_bound(torch.tensor([2.0])).item()
        0.5
    """
    return checks.none_negative("oscillation", oscillation).square() / 8


def variance(p: Tensor, s: Tensor) -> Tensor:
    """Variance of each row of scores under its weights.

    Example:
        >>> variance(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 3.0]])).item()
        1.0
    """
    return (p * (s - (p * s).sum(1, keepdim=True)).square()).sum(1)


@trial(version=1)
def scaled(case: int) -> Cases:
    """The five parts of P22 on random rows, each at a random factor c in (0, 1]."""
    s, g = draws.scores(case), draws.Source(case)
    t, n = draws.moved(s, seed=case), s.shape[1]
    c = 10 ** (-2 * g.uniform(len(s), 1))
    factor, small, other = c[:, 0], c * s, c * t
    p, q = small.softmax(1), other.softmax(1)
    # 1: scores that are linear in an input of three entries; every other map pulls two leaders apart.
    maps, row = g.normal(*s.shape, 3), torch.arange(len(s))
    first, second = s.topk(2).indices.unbind(1)
    pull = torch.zeros_like(maps)
    pull[row, first], pull[row, second] = maps[:, 0], -maps[:, 0]
    maps = torch.where(row[:, None, None] % 2 == 0, pull, maps)
    jacobian = c[:, :, None] * (p[:, :, None] * maps - p[:, :, None] * (p[:, None] @ maps))
    moved, limit = (torch.linalg.matrix_norm(m, ord=2) for m in (jacobian, maps))
    yield bound("P22.1", "absolute sensitivity", moved, factor / 2 * limit)
    whole = rank_similarity(s.log_softmax(1), t.log_softmax(1))
    shrunk = rank_similarity(small.log_softmax(1), other.log_softmax(1))
    yield residual("P22.2", "ranks of a pair", shrunk - whole)
    # 3: slope in c, fall, Hoeffding's bound, and the second order near c = 0.
    at = c.clone().requires_grad_()
    (slope,) = torch.autograd.grad(softmax_entropy(at * s).sum(), at)
    spread, slope = variance(p, s), slope[:, 0]
    size = (factor * spread).clamp(min=1)
    yield residual("P22.3", "slope of the entropy", (slope + factor * spread) / size)
    yield residual("P22.3", "slope without the factor c", (slope + spread) / size, holds=False)
    yield bound("P22.3", "entropy falls", softmax_entropy(s), softmax_entropy(small))
    deficit, span = entropy_deficit(small), factor * oscillation(s)
    yield bound("P22.3", "deficit and range", deficit, deficit_bound(span))
    even = factor.square() / 2 * s.var(1, correction=0)
    yield bound("P22.3", "second order", (deficit - even).abs(), span**3 * SKEW / 3)
    # 4: the row is linear in small scores, and its relative change that of the scores up to the remainders. The bound
    # says something where the denominator cannot be 0.
    rest, remainder = (SKEW * (factor * oscillation(u)) ** 2 for u in (s, t))
    line = 1 / n + c / n * (s - s.mean(1, keepdim=True))
    yield bound("P22.4", "linear in small scores", (p - line).abs().sum(1), rest)
    length, change = centred_norm(small) / n, centred_norm(c * (t - s)) / n
    seen, sure = (q - p).norm(dim=1) / (p - 1 / n).norm(dim=1), length > rest
    most, least = (change + rest + remainder) / (length - rest), (change - rest - remainder) / (length + rest)
    yield bound("P22.4", "relative change, above", seen[sure], most[sure])
    yield bound("P22.4", "relative change, below", least[sure], seen[sure])
    gained, low = factor * relative_score_change(s, t), factor < 0.5
    yield bound("P22.4", "scaling down lowers relative change", seen[low], gained[low], holds=False)
    # 5: any two rows of high entropy are near in l1 (Pinsker) and have a cosine near 1.
    deficit = torch.maximum(deficit, entropy_deficit(other))
    yield bound("P22.5", "distance of any two rows", (q - p).abs().sum(1), 2 * (2 * deficit).sqrt())
    turn = 2 * torch.atan((2 * n * deficit).sqrt())
    yield bound("P22.5", "angle of any two rows", angle(p, q), turn.clamp(max=math.pi / 2))


@trial(version=1)
def distances(case: int) -> Cases:
    """P25: the range of a score change against the Hilbert distance and the total variation of the rows."""
    s = draws.scores(case)
    t = draws.moved(s, seed=case)
    p, q, span = s.softmax(1), t.softmax(1), oscillation(t - s)
    yield residual("P25", "Hilbert distance is the range", (hilbert_distance(p, q) - span) / span.clamp(min=1))
    yield bound("P25", "attention moved", total_variation(p, q), total_variation_bound(span), span=span)
    # A ReLU kernel on the same scores, centred and made a hundred times smaller, is as selective as before.
    small, other = ((u - u.mean(1, keepdim=True)).relu() for u in (0.01 * s, 0.01 * t))
    kept = (small.sum(1) > 0) & (other.sum(1) > 0)
    moved, span = total_variation(small[kept], other[kept]), 0.01 * span[kept]
    yield bound("P25", "with a ReLU kernel", moved, total_variation_bound(span), span=span, holds=False)


def _length(rows: Scores) -> PerRow:
    """Euclidean norm of each row, also of those whose squares are too large or too small for their precision."""
    return similarity.length(rows.reshape(-1, rows.shape[-1])).view(rows.shape[:-1])


def _pair(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"the rows have shapes {tuple(first.shape)} and {tuple(second.shape)}; they must be the same")
