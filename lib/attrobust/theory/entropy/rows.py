"""Numbers of one row, and how far two rows lie apart.

    entropy     H(p) = - sum_i p_i log p_i                              0 at one-hot, log n at uniform
    distances   Hilbert's projective one, total variation, the relative change of the scores, and ranks

Softmax maps the range of a score change onto the Hilbert distance of the rows exactly, and onto total variation by tanh
(P25: with o the odds of the keys that gain, o e^r / (1 + o e^r) - o / (1 + o) is largest at o = e^(-r/2)).

A key whose weight is exactly 0, or whose score is -inf, counts as absent: it adds nothing and gets gradient 0. In a
row without any mass the entropy does not exist; it is NaN there, so that such rows can be counted.
"""

import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from attrobust import checks
from attrobust.theory import draws
from attrobust.theory.tally import Cases, bound, equalities, residual, trial

Weights = Float[Tensor, "*batch keys"]
Scores = Float[Tensor, "*batch keys"]
PerRow = Float[Tensor, "*batch"]
Rows = Float[Tensor, "rows keys"]


def row_mass(weights: Weights) -> PerRow:
    """Sum of each row: 1 under softmax, free under a kernel without normalisation.

    Raises:
        ValueError: if a weight is negative, infinite or NaN.
    """
    return checks.weights("weights", weights).sum(-1)


def normalised(weights: Weights) -> Weights:
    """Each row over its mass (see `row_mass`); NaN in a row without mass."""
    total = row_mass(weights).unsqueeze(-1)
    return weights / torch.where(total > 0, total, torch.nan)


def row_entropy(weights: Weights) -> PerRow:
    """Entropy of each row in nats, after dividing the row by its mass: from 0 to log keys; NaN for a row without mass.

    Raises:
        ValueError: if a weight is negative, infinite or NaN.

    Example:
        >>> row_entropy(torch.tensor([[1.0, 0.0], [3.0, 3.0]]).double()).round(decimals=6).tolist()
        [0.0, 0.693147]
    """
    p = normalised(weights)
    return (p * -torch.where(p > 0, p, torch.ones_like(p)).log()).sum(-1)


def effective_keys(weights: Weights) -> PerRow:
    """Number of keys a uniform row of the same entropy (see `row_entropy`) would have: exp(H), from 1 to keys.

    Example:
        >>> round(effective_keys(torch.tensor([0.5, 0.5, 0.0])).item(), 4)
        2.0
    """
    return row_entropy(weights).exp()


def softmax_entropy(scores: Scores) -> PerRow:
    """Entropy of softmax(scores) in nats, accurate for the most peaked rows too.

    Raises:
        ValueError: if scores hold NaN or +inf, or a row is masked altogether.

    Example:
        >>> softmax_entropy(torch.tensor([0.0, -50.0], dtype=torch.float64)).item() > 0
        True
    """
    top = checks.scores("scores", scores).argmax(-1, keepdim=True)
    below = scores - scores.gather(-1, top)
    raised = below.exp()
    rest = raised.scatter(-1, top, 0).sum(-1)
    finite = torch.where(torch.isfinite(below), below, torch.zeros_like(below))
    return rest.log1p() - (raised * finite).sum(-1) / (1 + rest)


def entropy_deficit(scores: Scores) -> PerRow:
    """What the entropy of softmax(scores) lacks to the logarithm of the unmasked keys; accurate near uniform rows too.

    It is the Kullback-Leibler divergence from the uniform row. Bad scores are refused as by `softmax_entropy`.

    Example:
        >>> round(entropy_deficit(torch.tensor([1e-6, -1e-6], dtype=torch.float64)).item() * 1e12, 6)
        0.5
    """
    kept, small = torch.isfinite(scores), (oscillation(scores) < 1).unsqueeze(-1)
    near = torch.where(small, centred(scores), torch.zeros_like(scores))
    keys = kept.sum(-1, keepdim=True)
    level = (near.expm1() * kept).sum(-1, keepdim=True).div(keys).log1p()
    divergence = ((near - level).exp() * (near - level) * kept).sum(-1) / keys.squeeze(-1)
    far = keys.squeeze(-1).to(scores).log() - softmax_entropy(scores)
    return torch.where(small.squeeze(-1), divergence.clamp(min=0), far)


def oscillation(scores: Scores) -> PerRow:
    """Largest minus smallest score of each row, over unmasked keys; refuses what `softmax_entropy` does."""
    least = torch.where(torch.isfinite(checks.scores("scores", scores)), scores, torch.inf)
    return scores.amax(-1) - least.amin(-1)


def centred_norm(scores: Scores) -> PerRow:
    """Euclidean norm of the centred scores, see `centred`.

    Example:
        >>> centred_norm(torch.tensor([3.0, 0.0, -3.0])).square().round(decimals=4).item()
        18.0
    """
    return centred(scores).norm(dim=-1)


def centred(scores: Scores) -> Scores:
    """Scores minus the mean of the unmasked ones; 0 at masked keys. Refuses what `softmax_entropy` does."""
    kept = torch.isfinite(checks.scores("scores", scores))
    filled = torch.where(kept, scores, torch.zeros_like(scores))
    mean = filled.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True)
    return torch.where(kept, filled - mean, torch.zeros_like(scores))


def hilbert_distance(first: Weights, second: Weights) -> PerRow:
    """Hilbert's projective distance: max_i log(q_i / p_i) - min_i log(q_i / p_i); rows need no normalisation.

    0 iff the rows are proportional; infinite where a key has weight 0 in one row only, keys with weight 0 in both are
    left out; NaN where a row has no mass. Birkhoff 1957, "Extensions of Jentzsch's theorem".

    Raises:
        ValueError: if a weight is negative, infinite or NaN, or the shapes differ.

    Example:
        >>> round(hilbert_distance(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.5])).exp().item(), 4)
        4.0
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
        ValueError: if a weight is negative, infinite or NaN, or the shapes differ.

    Example:
        >>> total_variation(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])).item()
        1.0
    """
    _pair(first, second)
    return (normalised(first) - normalised(second)).abs().sum(-1) / 2


def total_variation_bound(oscillation: PerRow) -> PerRow:
    """Most total variation that a change of the scores of a given oscillation brings about: tanh(oscillation / 4).

    Attained by two keys whose scores swap places.

    Raises:
        ValueError: if an entry is negative or NaN.
    """
    return torch.tanh(checks.none_negative("oscillation", oscillation) / 4)


def relative_score_change(scores: Scores, moved: Scores) -> PerRow:
    """Length of the change of the centred scores over the length of the centred scores: R_s, blind to scale and shift.

    Infinite where all scores are equal and the moved ones are not, 0 where nothing moves. Ours (P22).

    Raises:
        ValueError: if the shapes or the masks differ, or scores are no scores.

    Example:
        >>> s, t = torch.tensor([1.0, -1.0]), torch.tensor([1.5, -1.5])
        >>> [round(relative_score_change(*pair).item(), 4) for pair in ((s, t), (10 * s + 3, 10 * t))]
        [0.5, 0.5]
    """
    _pair(scores, moved)
    a, b = centred(scores), centred(moved)
    if not torch.equal(torch.isfinite(scores), torch.isfinite(moved)):
        raise ValueError("moved masks other keys than scores; both must hold -inf at the same places")
    change, length = (b - a).norm(dim=-1), a.norm(dim=-1)
    return torch.where(change == 0, torch.zeros_like(change), change / length)


def ranks(values: Rows) -> Rows:
    """Ranks along the keys, in float64; ties share one."""
    return torch.from_numpy(rankdata(values.numpy(), axis=1))


def rank_similarity(first: Rows, second: Rows) -> Float[Tensor, "rows two"]:
    """Spearman correlation, and share of the leading half that stays, for each pair of rows; ties are not broken."""
    middle = (first.shape[1] + 1) / 2
    a, b = ranks(first) - middle, ranks(second) - middle
    spearman = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-9)
    return torch.stack([spearman, ((a > 0) & (b > 0)).double().mean(1)], 1)


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


def equality() -> pd.DataFrame:
    """Two keys whose scores swap places."""
    s = torch.tensor([1.3, -1.3], dtype=torch.float64)
    sides = total_variation(s.softmax(0), (-s).softmax(0)), total_variation_bound(oscillation(2 * s))
    return equalities({("P25", "two keys swap"): sides})


def _pair(first: Float[Tensor, "..."], second: Float[Tensor, "..."]) -> None:
    if first.shape != second.shape:
        raise ValueError(f"the rows have shapes {tuple(first.shape)} and {tuple(second.shape)}; they must be the same")
