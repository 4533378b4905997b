"""What the size of the scores allows the entropy, and what the entropy allows the scores.

With n keys, p = softmax(s):

    floor      H(p) >= log(1 + (n-1) b) + a sqrt(n(n-1)) b / (1 + (n-1) b),
               a = |s - mean s|,  b = exp(-a sqrt(n/(n-1)))
    margin     s_(k) - s_(k+1) <= G with  H(two levels, k of n keys raised by G) = H(p)

The floor (P23) is that of Zhai et al. 2023 (arXiv 2303.06296), re-derived; the margin (P24) is ours. Both are
attained: by one raised score, by two levels.
"""

import math
from collections.abc import Iterator

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from attrobust import checks
from attrobust.theory import draws, tally
from attrobust.theory.entropy.rows import PerRow, Scores, centred_norm, softmax_entropy
from attrobust.versions import versioned


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

    Reference: ours (P24).
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


@versioned(1)
@tally.over_cases
def floors(case: int) -> Iterator[pd.DataFrame]:
    """P23: the entropy of a row against its floor, given the norm of its centred scores."""
    s = draws.scores(case)
    norm, keys, h = centred_norm(s), s.shape[1], softmax_entropy(s)
    yield tally.bound("P23", "entropy and norm", entropy_floor(norm, keys=keys), h, norm=norm, keys=keys)


@versioned(1)
@tally.over_cases
def ceilings(case: int) -> Iterator[pd.DataFrame]:
    """P24: the gap after the k-th score against its ceiling, and what half the gap certifies."""
    s = draws.scores(case)
    keys, g = s.shape[1], torch.Generator().manual_seed(case)
    k = int(torch.randint(1, keys, (1,), generator=g))
    temperature = 10 ** float(torch.rand(1, generator=g) - 0.5)
    gap, h = topk_gap(s, k=k), softmax_entropy(s / temperature)
    limit = margin_ceiling(h, keys=keys, k=k)
    yield tally.bound("P24", "gap after the k-th score", gap, temperature * limit, temperature=temperature)
    leading = torch.zeros_like(s, dtype=torch.bool).scatter(1, s.topk(k).indices, True)
    clear = gap > 1e-6
    for share, arm in ((0.999, "top-k set within half the gap"), (1.001, "just beyond half the gap")):
        worst = s + share * gap[:, None] / 2 * torch.where(leading, -1.0, 1.0)
        after = torch.zeros_like(leading).scatter(1, worst.topk(k).indices, True)
        yield tally.bound("P24", arm, (leading & ~after).sum(1)[clear], 0.0, holds=share < 1)


def equality() -> pd.DataFrame:
    """One raised score, and two levels."""
    raised, levels = (1.3 * (torch.arange(7) < k).double() for k in (1, 3))
    return tally.equalities({
        ("P23", "one raised score"): (entropy_floor(centred_norm(raised), keys=7), softmax_entropy(raised)),
        ("P24", "two levels"): (1.3, margin_ceiling(softmax_entropy(levels), keys=7, k=3)),
    })  # fmt: skip


def _entropy(value: Float[Tensor, "*batch"], keys: int) -> Float[Tensor, "*batch"]:
    known, room = value[~value.isnan()], 1e-4
    if bool(((known < -room) | (known > math.log(keys) + room)).any()):
        low, high = float(known.min()), float(known.max())
        raise ValueError(f"entropy spans [{low:g}, {high:g}]; it must lie in [0, {math.log(keys):g}] nats")
    return value
