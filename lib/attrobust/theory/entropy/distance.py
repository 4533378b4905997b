"""How far two rows lie apart: in the projective metric, in total variation, scale-free in the scores, and in ranks.

Softmax maps the oscillation of a score change onto the Hilbert distance of the rows exactly, and onto total variation
by tanh (P25: with o the odds of the keys that gain, o e^r / (1 + o e^r) - o / (1 + o) is largest at o = e^(-r/2)). The
relative score change is what no rescaling of the scores can alter (P22).
"""

from collections.abc import Iterator

import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from attrobust import checks
from attrobust.theory import draws, tally
from attrobust.theory.entropy.rows import PerRow, Scores, Weights, centred, normalised, oscillation
from attrobust.versions import versioned


def hilbert_distance(first: Weights, second: Weights) -> PerRow:
    """Hilbert's projective distance: max_i log(q_i / p_i) - min_i log(q_i / p_i); rows need no normalisation.

    Returns:
        One number per row, 0 iff the rows are proportional; infinite where a key has weight 0 in one row only, keys
        with weight 0 in both are left out; NaN where a row has no mass.

    Raises:
        ValueError: if a weight is negative, infinite or NaN, or the shapes differ.

    Example:
        >>> round(hilbert_distance(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.5])).exp().item(), 4)
        4.0

    Reference: Birkhoff 1957, "Extensions of Jentzsch's theorem".
    """
    _pair(checks.weights("first", first), checks.weights("second", second))
    both, one = (first > 0) & (second > 0), (first > 0) ^ (second > 0)
    a, b = (torch.where(both, w, torch.ones_like(w)).log() for w in (first, second))
    most = torch.where(both, b - a, -torch.inf).amax(-1)
    least = torch.where(both, b - a, torch.inf).amin(-1)
    empty = (first.sum(-1) == 0) | (second.sum(-1) == 0)
    value = torch.where(one.any(-1), torch.inf, most - least)
    return torch.where(empty, torch.nan, value)


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

    Example:
        >>> total_variation_bound(torch.tensor(0.0)).item()
        0.0
    """
    return torch.tanh(checks.none_negative("oscillation", oscillation) / 4)


def relative_score_change(scores: Scores, moved: Scores) -> PerRow:
    """Length of the change of the centred scores over the length of the centred scores: R_s, blind to scale and shift.

    Args:
        scores: rows before.
        moved: rows after, with the same keys masked.

    Returns:
        One number per row; infinite where all scores are equal and the moved ones are not, 0 where nothing moves.

    Raises:
        ValueError: if the shapes or the masks differ, or scores are no scores.

    Example:
        >>> s, t = torch.tensor([1.0, -1.0]), torch.tensor([1.5, -1.5])
        >>> [round(relative_score_change(*pair).item(), 4) for pair in ((s, t), (10 * s + 3, 10 * t))]
        [0.5, 0.5]

    Reference: ours (P22).
    """
    _pair(scores, moved)
    a, b = centred(scores), centred(moved)
    if not torch.equal(torch.isfinite(scores), torch.isfinite(moved)):
        raise ValueError("moved masks other keys than scores; both must hold -inf at the same places")
    change, length = (b - a).norm(dim=-1), a.norm(dim=-1)
    return torch.where(change == 0, torch.zeros_like(change), change / length)


@versioned(1)
@tally.over_cases
def distances(case: int) -> Iterator[pd.DataFrame]:
    """P25: the range of a score change against the Hilbert distance and the total variation of the rows."""
    s = draws.scores(case)
    t = draws.moved(s, seed=case)
    p, q = s.softmax(1), t.softmax(1)
    span, moved = oscillation(t - s), total_variation(p, q)
    off = (hilbert_distance(p, q) - span) / span.clamp(min=1)
    yield tally.residuals("P25", "Hilbert distance is the range", off.abs().max())
    limit = total_variation_bound(span)
    yield tally.bound("P25", "attention moved", moved, limit, span=span)
    # A ReLU kernel on the same scores, centred and made a hundred times smaller, is as selective as before.
    small, other = ((u - u.mean(1, keepdim=True)).relu() for u in (0.01 * s, 0.01 * t))
    kept = (small.sum(1) > 0) & (other.sum(1) > 0)
    moved, span = total_variation(small[kept], other[kept]), 0.01 * span[kept]
    limit = total_variation_bound(span)
    yield tally.bound("P25", "with a ReLU kernel", moved, limit, span=span, holds=False)


def equality() -> pd.DataFrame:
    """Two keys whose scores swap places."""
    s = torch.tensor([1.3, -1.3], dtype=torch.float64)
    sides = total_variation(s.softmax(0), (-s).softmax(0)), total_variation_bound(oscillation(2 * s))
    return tally.equalities({("P25", "two keys swap"): sides})


def ranks(values: Float[Tensor, "rows keys"]) -> Float[Tensor, "rows keys"]:
    """Ranks along the keys, in float64; ties share one."""
    return torch.from_numpy(rankdata(values.numpy(), axis=1))


def rank_similarity(first: Float[Tensor, "rows keys"], second: Float[Tensor, "rows keys"]) -> Float[Tensor, "rows two"]:
    """Spearman correlation, and share of the leading half that stays, for each pair of rows; ties are not broken."""
    a, b = ranks(first), ranks(second)
    middle = (a.shape[1] + 1) / 2
    product = ((a - middle) * (b - middle)).sum(1)
    length = (a - middle).norm(dim=1) * (b - middle).norm(dim=1)
    return torch.stack([product / length.clamp(min=1e-9), ((a > middle) & (b > middle)).double().mean(1)], 1)


def _pair(first: Float[Tensor, "..."], second: Float[Tensor, "..."]) -> None:
    if first.shape != second.shape:
        raise ValueError(f"the rows have shapes {tuple(first.shape)} and {tuple(second.shape)}; they must be the same")
