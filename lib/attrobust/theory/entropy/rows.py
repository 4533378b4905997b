"""Numbers of one row: its mass, its entropy, the size of its scores.

    H(p) = - sum_i p_i log p_i,     0 at one-hot, log n at uniform

A key whose weight is exactly 0, or whose score is -inf, counts as absent: it adds nothing and gets gradient 0. In a
row without any mass the entropy does not exist; it is NaN there, so that such rows can be counted.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from attrobust import checks

Weights = Float[Tensor, "*batch keys"]
Scores = Float[Tensor, "*batch keys"]
PerRow = Float[Tensor, "*batch"]


def row_mass(weights: Weights) -> PerRow:
    """Sum of each row: 1 under softmax, free under a kernel without normalisation.

    Raises:
        ValueError: if a weight is negative, infinite or NaN.

    Example:
        >>> row_mass(torch.tensor([[0.5, 0.5], [0.25, 0.5]])).tolist()
        [1.0, 0.75]
    """
    return checks.weights("weights", weights).sum(-1)


def normalised(weights: Weights) -> Weights:
    """Each row over its mass; NaN in a row without mass.

    Raises:
        ValueError: if a weight is negative, infinite or NaN.
    """
    total = row_mass(weights).unsqueeze(-1)
    return weights / torch.where(total > 0, total, torch.nan)


def row_entropy(weights: Weights) -> PerRow:
    """Entropy of each row in nats, after dividing the row by its mass.

    Args:
        weights: attention after the softmax or any other kernel, at least 0.

    Returns:
        One number per row from 0 (one key takes all) to log keys (all alike); NaN for a row without mass. Divide by
        log keys to compare rows of different length.

    Raises:
        ValueError: if a weight is negative, infinite or NaN.

    Example:
        >>> row_entropy(torch.tensor([[1.0, 0.0], [3.0, 3.0]]).double()).round(decimals=6).tolist()
        [0.0, 0.693147]
    """
    p = normalised(weights)
    return (p * -torch.where(p > 0, p, torch.ones_like(p)).log()).sum(-1)


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

    It is the Kullback-Leibler divergence from the uniform row.

    Raises:
        ValueError: if scores hold NaN or +inf, or a row is masked altogether.

    Example:
        >>> s = torch.tensor([1e-6, -1e-6], dtype=torch.float64)
        >>> round(entropy_deficit(s).item() * 1e12, 6)
        0.5
    """
    kept, small = torch.isfinite(scores), (oscillation(scores) < 1).unsqueeze(-1)
    near = torch.where(small, centred(scores), torch.zeros_like(scores))
    keys = kept.sum(-1, keepdim=True)
    level = (near.expm1() * kept).sum(-1, keepdim=True).div(keys).log1p()
    divergence = ((near - level).exp() * (near - level) * kept).sum(-1) / keys.squeeze(-1)
    far = keys.squeeze(-1).to(scores).log() - softmax_entropy(scores)
    return torch.where(small.squeeze(-1), divergence.clamp(min=0), far)


def effective_keys(weights: Weights) -> PerRow:
    """Number of keys a uniform row of the same entropy would have: exp(H), from 1 to keys.

    Raises:
        ValueError: if a weight is negative, infinite or NaN.

    Example:
        >>> round(effective_keys(torch.tensor([0.5, 0.5, 0.0])).item(), 4)
        2.0
    """
    return row_entropy(weights).exp()


def oscillation(scores: Scores) -> PerRow:
    """Largest minus smallest score of each row, over unmasked keys.

    Raises:
        ValueError: if scores hold NaN or +inf, or a row is masked altogether.
    """
    least = torch.where(torch.isfinite(checks.scores("scores", scores)), scores, torch.inf)
    return scores.amax(-1) - least.amin(-1)


def centred_norm(scores: Scores) -> PerRow:
    """Euclidean norm of the scores minus their mean, over unmasked keys.

    Raises:
        ValueError: if scores hold NaN or +inf, or a row is masked altogether.

    Example:
        >>> centred_norm(torch.tensor([3.0, 0.0, -3.0])).square().round(decimals=4).item()
        18.0
    """
    return centred(scores).norm(dim=-1)


def centred(scores: Scores) -> Scores:
    """Scores minus the mean of the unmasked ones; 0 at masked keys."""
    kept = torch.isfinite(checks.scores("scores", scores))
    filled = torch.where(kept, scores, torch.zeros_like(scores))
    mean = filled.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True)
    return torch.where(kept, filled - mean, torch.zeros_like(scores))
