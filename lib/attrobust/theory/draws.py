"""Random networks, and random rows of scores, on which every statement is tried: float64, decided by one seed.

Depth, widths, activation, classes, image size and the scale of the weights all vary, so that a bound is tried far
from the initialisations people use; first layers of a single unit are among them, where transfers hold with equality.
Lengths, scales and shapes of the rows vary too. Besides normal scores there are rows with one raised key, with two
levels and with two leaders close together, because these are where the statements are attained; and long-tailed ones.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrobust import checks, models

Rows = Float[Tensor, "rows keys"]

SMOOTH = ("tanh", "softplus", "gelu", "silu")


def network(
    seed: int, *, activations: Sequence[str] = SMOOTH, images: int = 3
) -> tuple[nn.Sequential, Float[Tensor, "batch 1 height width"], Int[Tensor, " batch"]]:
    """A dense network with images and labels.

    Args:
        seed: decides everything.
        activations: names to draw from.
        images: how many, at least 1; pixels in [0, 1].

    Returns:
        Network in eval mode with one to three hidden layers of one to six units, images of 2 x 2 or 3 x 3 pixels,
        labels of two to four classes.

    Raises:
        ValueError: for an unknown activation.

    Example:
        >>> model, x, y = network(0)
        >>> model(x).dtype, len(x) == len(y)
        (torch.float64, True)
    """
    for name in activations:
        checks.one_of("activations", name, models.ACTIVATIONS)
    g = torch.Generator().manual_seed(seed)
    side, classes, depth = (_whole(low, high, g) for low, high in ((2, 3), (2, 4), (1, 3)))
    sizes = [side**2, *[_whole(1, 6, g) for _ in range(depth)], classes]
    activation = models.ACTIVATIONS[activations[_whole(0, len(activations) - 1, g)]]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layers += [dense(fan_in, fan_out, generator=g), activation()]
    x = torch.rand(images, 1, side, side, generator=g, dtype=torch.float64)
    y = torch.randint(0, classes, (images,), generator=g)
    return nn.Sequential(*layers[:-1]).eval(), x, y


def dense(fan_in: int, fan_out: int, *, generator: torch.Generator) -> nn.Linear:
    """A float64 layer with normal weights of standard deviation between 0.5 and 3 over the root of `fan_in`."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(fan_in, fan_out).double()
    scale = 0.5 + 2.5 * float(torch.rand(1, generator=generator))
    with torch.no_grad():
        for parameter, size in ((layer.weight, scale / fan_in**0.5), (layer.bias, 0.5)):
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


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


def _whole(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=generator))


def _shapes(keys: int, g: torch.Generator) -> list[Float[Tensor, " keys"]]:
    normal, noise = (torch.randn(keys, generator=g, dtype=torch.float64) for _ in range(2))
    raised, levels, leaders = (torch.zeros(keys, dtype=torch.float64) for _ in range(3))
    raised[0], leaders[:2] = 3.0, 2.0
    levels[: int(torch.randint(1, keys, (1,), generator=g))] = 2.0
    faint = 10 ** (-4 * float(torch.rand(1, generator=g))) * noise
    tailed = normal.sign() * (-torch.rand(keys, generator=g, dtype=torch.float64).log()) ** 2 / math.sqrt(2)
    return [normal, raised + faint, levels + faint, leaders + faint, tailed]
