"""What the size of the scores allows the entropy, and what the entropy allows the scores.

With n keys, p = softmax(s):

    floor      H(p) >= log(1 + (n-1) b) + a sqrt(n(n-1)) b / (1 + (n-1) b),
               a = |s - mean s|,  b = exp(-a sqrt(n/(n-1)))
    deficit    log n - H(p) <= (max s - min s)^2 / 8
    margin     s_(k) - s_(k+1) <= G with  H(two levels, k of n keys raised by G) = H(p)

The floor is that of Zhai et al. 2023 (arXiv 2303.06296), re-derived; the deficit follows from Hoeffding's lemma, the
margin is ours. All three are attained: by one raised score, by two even halves in the limit, by two levels.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from attrobust import checks
from attrobust.entropy.rows import PerRow, Scores


def entropy_floor(norm: PerRow, *, keys: int) -> PerRow:
    """Least entropy of a softmax row whose centred scores have a given Euclidean norm.

    Args:
        norm: of the centred scores (`centred_norm`), at least 0; may be infinite.
        keys: of a row, at least 1.

    Returns:
        Nats: log keys at norm 0, falling exponentially to 0. Attained where one score is raised and the others equal.

    Raises:
        ValueError: if a norm is negative or NaN, or `keys` is below 1.

    Example:
        >>> entropy_floor(torch.tensor([1.0, 3.0, 6.0]).double(), keys=17).round(decimals=2).tolist()
        [2.78, 1.85, 0.23]

    Reference: Zhai et al. 2023, "Stabilizing transformer training by preventing attention entropy collapse".
    """
    checks.count("keys", keys)
    checks.none_negative("norm", norm)
    if keys == 1:
        return torch.zeros_like(norm)
    b = (-norm * math.sqrt(keys / (keys - 1))).exp()
    steep = torch.where(b > 0, norm, torch.zeros_like(norm)) * b
    return torch.log1p((keys - 1) * b) + math.sqrt(keys * (keys - 1)) * steep / (1 + (keys - 1) * b)


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


def topk_gap(scores: Scores, *, k: int) -> PerRow:
    """Difference of the k-th and the next score; half of it is the largest change per score that keeps the top-k set.

    Args:
        scores: rows; -inf for masked keys.
        k: number of leading keys, from 1 to keys - 1.

    Returns:
        One number per row, at least 0; infinite where the next key is masked, 0 where the k-th is.

    Raises:
        ValueError: if `k` is out of range or scores are no scores.

    Example:
        >>> topk_gap(torch.tensor([3.0, 2.5, 0.0]), k=2).item()
        2.5
    """
    keys = checks.scores("scores", scores).shape[-1]
    checks.count("k", k, most=keys - 1)
    top = scores.topk(k + 1, dim=-1).values
    last, following = top[..., k - 1], top[..., k]
    masked = last == -torch.inf
    return torch.where(masked, torch.zeros_like(last), torch.where(masked, torch.zeros_like(last), last) - following)


def margin_ceiling(entropy: PerRow, *, keys: int, k: int) -> PerRow:
    """Largest `topk_gap` that a softmax row of a given entropy can have, at temperature 1.

    Found by bisection in the gap t of the row with k keys raised by t, whose entropy falls with t. The entropy is
    lowered by a few units of rounding first, so the answer errs on the safe side (by up to 1e-7 at log keys in
    float64). Carries no gradient. At temperature T the ceiling is T times as high.

    Args:
        entropy: of each row in nats.
        keys: of a row, at least 2.
        k: number of leading keys, from 1 to keys - 1.

    Returns:
        Near 0 at log keys; infinite from log k down, where k keys can hold everything; NaN where the entropy is.

    Raises:
        ValueError: if `k` is out of range or an entropy lies outside [0, log keys].

    Example:
        >>> two_levels = torch.tensor([1.3, 1.3, 0, 0, 0], dtype=torch.float64).softmax(0)
        >>> round(margin_ceiling(-(two_levels * two_levels.log()).sum(), keys=5, k=2).item(), 6)
        1.3

    Reference: ours (P24 of notebook 06).
    """
    checks.count("keys", keys, least=2)
    checks.count("k", k, most=keys - 1)
    h = _entropy(entropy.detach(), keys)
    excess = h - 4 * torch.finfo(h.dtype).eps * (1 + math.log(keys)) - math.log(k)
    odds = (keys - k) / k
    low, high = torch.zeros_like(h), torch.full_like(h, -math.log(torch.finfo(h.dtype).tiny))
    for _ in range(2 * torch.finfo(h.dtype).bits):
        t = (low + high) / 2
        r = odds * (-t).exp()  # mass of the lower level over that of the upper one
        wider = r.log1p() + t * r / (1 + r) > excess
        low, high = torch.where(wider, t, low), torch.where(wider, high, t)
    return torch.where(excess <= 0, torch.inf, high).where(~h.isnan(), h)


def leading_mass(entropy: PerRow, *, keys: int, k: int) -> PerRow:
    """Largest share that the k leading keys of a row of a given entropy can hold, from k / keys to 1.

    Raises:
        ValueError: if `k` is out of range or an entropy lies outside [0, log keys].

    Example:
        >>> round(leading_mass(torch.tensor(4.0).log(), keys=4, k=1).item(), 2)
        0.25
    """
    gap = margin_ceiling(entropy, keys=keys, k=k)
    return torch.sigmoid(gap - math.log((keys - k) / k))


def _entropy(value: Float[Tensor, "*batch"], keys: int) -> Float[Tensor, "*batch"]:
    known, room = value[~value.isnan()], 1e-4
    if bool(((known < -room) | (known > math.log(keys) + room)).any()):
        low, high = float(known.min()), float(known.max())
        raise ValueError(f"entropy spans [{low:g}, {high:g}]; it must lie in [0, {math.log(keys):g}] nats")
    return value
