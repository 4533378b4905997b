"""Random rows of scores on which the statements of notebooks 06 and 07 are tried: float64, decided by one seed.

Lengths, scales and shapes vary. Besides normal scores there are rows with one raised key, with two levels and with
two leaders close together, because these are where the statements are attained; and long-tailed ones.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from attrobust import checks

Rows = Float[Tensor, "rows keys"]


def scores(seed: int, *, rows: int = 15) -> Rows:
    """Rows of scores of one random length, five shapes in turn, each of a random scale.

    Args:
        seed: decides everything.
        rows: how many, at least 1.

    Returns:
        Scores of 2 to 40 keys; typical sizes from 0.1 to 10.

    Raises:
        ValueError: if `rows` is below 1.

    Example:
        >>> scores(0).dtype, len(scores(0, rows=7))
        (torch.float64, 7)
    """
    checks.count("rows", rows)
    g = torch.Generator().manual_seed(seed)
    keys = int(torch.randint(2, 41, (1,), generator=g))
    drawn = torch.stack([_shapes(keys, g)[row % 5] for row in range(rows)])
    size = 10 ** (2 * torch.rand(rows, 1, generator=g, dtype=torch.float64) - 1)
    return size * drawn


def moved(start: Rows, *, seed: int) -> Rows:
    """The rows after a change: noise of a random size, or one half of the keys against the other as far as it can be.

    Every third row is moved by t up on a random set of keys and t down on the others, with t such that the set's
    share p becomes 1 - p: then the total variation is the largest that this range of score changes allows.
    """
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(start.shape, generator=g, dtype=start.dtype)
    size = 10 ** (2.5 * torch.rand(len(start), 1, generator=g, dtype=start.dtype) - 1.5)
    chosen = torch.rand(start.shape, generator=g) < 0.5
    chosen[:, 0], chosen[:, 1] = True, False
    inside = torch.where(chosen, start, -torch.inf).logsumexp(1) - torch.where(chosen, -torch.inf, start).logsumexp(1)
    swap = torch.where(chosen, -1.0, 1.0) * inside[:, None]  # the log odds of the set change sign
    third = torch.arange(len(start))[:, None] % 3 == 0
    return start + torch.where(third, swap, size * noise)


def _shapes(keys: int, g: torch.Generator) -> list[Float[Tensor, " keys"]]:
    normal, noise = (torch.randn(keys, generator=g, dtype=torch.float64) for _ in range(2))
    raised, levels, leaders = (torch.zeros(keys, dtype=torch.float64) for _ in range(3))
    raised[0], leaders[:2] = 3.0, 2.0
    levels[: int(torch.randint(1, keys, (1,), generator=g))] = 2.0
    faint = 10 ** (-4 * float(torch.rand(1, generator=g))) * noise
    tailed = normal.sign() * (-torch.rand(keys, generator=g, dtype=torch.float64).log()) ** 2 / math.sqrt(2)
    return [normal, raised + faint, levels + faint, leaders + faint, tailed]
