"""How far two rows lie apart: in the projective metric, in total variation, and scale-free in the scores.

Softmax maps the oscillation of a score change onto the Hilbert distance of the rows exactly, and onto total variation
by tanh (P22 of notebook 06). The relative score change is what no rescaling of the scores can alter (P23).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from attrobust import checks
from attrobust.entropy.rows import PerRow, Scores, Weights, centred, normalised


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

    Reference: ours (P23 of notebook 06).
    """
    _pair(scores, moved)
    a, b = centred(scores), centred(moved)
    if not torch.equal(torch.isfinite(scores), torch.isfinite(moved)):
        raise ValueError("moved masks other keys than scores; both must hold -inf at the same places")
    change, length = (b - a).norm(dim=-1), a.norm(dim=-1)
    return torch.where(change == 0, torch.zeros_like(change), change / length)


def _pair(first: Float[Tensor, "..."], second: Float[Tensor, "..."]) -> None:
    if first.shape != second.shape:
        raise ValueError(f"the rows have shapes {tuple(first.shape)} and {tuple(second.shape)}; they must be the same")
