"""What the size of the scores allows the entropy, and what the entropy allows the scores.

With n keys, p = softmax(s):

    floor      H(p) >= log(1 + (n-1) b) + a sqrt(n(n-1)) b / (1 + (n-1) b),
               a = |s - mean s|,  b = exp(-a sqrt(n/(n-1)))
    margin     s_(k) - s_(k+1) <= G with  H(two levels, k of n keys raised by G) = H(p)

The floor (P23) is that of Zhai et al. 2023 (arXiv 2303.06296), re-derived; the margin (P24) is ours. Both are
attained: by one raised score, by two levels.
"""

import math

import pandas as pd
import torch

from attrobust import checks
from attrobust.theory import draws
from attrobust.theory.entropy.rows import PerRow, Scores, centred_norm, softmax_entropy
from attrobust.theory.tally import Cases, bound, equalities, trial


def entropy_floor(norm: PerRow, *, keys: int) -> PerRow:
    """Least entropy of a softmax row whose centred scores have a given Euclidean norm.

    In nats: log keys at norm 0, falling exponentially to 0. Attained where one score is raised and the others equal.
    Zhai et al. 2023, "Stabilizing transformer training by preventing attention entropy collapse".

    Args:
        norm: of the centred scores (`centred_norm`), at least 0; may be infinite.
        keys: of a row, at least 1.

    Raises:
        ValueError: if a norm is negative or NaN, or `keys` is below 1.

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
    """Difference of the k-th and the next score; half of it is the largest change per score that keeps the top-k set.

    At least 0; infinite where the next key is masked (-inf), 0 where the k-th is.

    Raises:
        ValueError: if `k` is not from 1 to keys - 1 or scores are no scores.

    Example:
        >>> topk_gap(torch.tensor([3.0, 2.5, 0.0]), k=2).item()
        2.5
    """
    keys = checks.scores("scores", scores).shape[-1]
    checks.count("k", k, most=keys - 1)
    last, following = scores.topk(k + 1, dim=-1).values[..., k - 1 :].unbind(-1)
    masked, none = last == -torch.inf, torch.zeros_like(last)
    return torch.where(masked, none, torch.where(masked, none, last) - following)


def margin_ceiling(entropy: PerRow, *, keys: int, k: int) -> PerRow:
    """Largest `topk_gap` that a softmax row of a given entropy can have, at temperature 1.

    Found by bisection in the gap t of the row with k keys raised by t, whose entropy falls with t. The entropy is
    lowered by a few units of rounding first, so the answer errs on the safe side (by up to 1e-7 at log keys in
    float64). Carries no gradient. At temperature T the ceiling is T times as high. Near 0 at log keys; infinite from
    log k down, where k keys can hold everything; NaN where the entropy is. Ours (P24).

    Args:
        entropy: of each row in nats.
        keys: of a row, at least 2.
        k: number of leading keys, from 1 to keys - 1.

    Raises:
        ValueError: if `k` is out of range or an entropy lies outside [0, log keys].

    Example:
        >>> two_levels = torch.tensor([1.3, 1.3, 0, 0, 0], dtype=torch.float64)
        >>> round(margin_ceiling(softmax_entropy(two_levels), keys=5, k=2).item(), 6)
        1.3
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

    Refuses what `margin_ceiling` does.

    Example:
        >>> round(leading_mass(torch.tensor(4.0).log(), keys=4, k=1).item(), 2)
        0.25
    """
    return torch.sigmoid(margin_ceiling(entropy, keys=keys, k=k) - math.log((keys - k) / k))


@trial(version=1)
def floors(case: int) -> Cases:
    """P23: the entropy of a row against its floor, given the norm of its centred scores."""
    s = draws.scores(case)
    norm, keys = centred_norm(s), s.shape[1]
    limit = entropy_floor(norm, keys=keys)
    yield bound("P23", "entropy and norm", limit, softmax_entropy(s), norm=norm, keys=keys)


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


def equality() -> pd.DataFrame:
    """One raised score, and two levels."""
    raised, levels = (1.3 * (torch.arange(7) < k).double() for k in (1, 3))
    return equalities({
        ("P23", "one raised score"): (entropy_floor(centred_norm(raised), keys=7), softmax_entropy(raised)),
        ("P24", "two levels"): (1.3, margin_ceiling(softmax_entropy(levels), keys=7, k=3)),
    })  # fmt: skip
