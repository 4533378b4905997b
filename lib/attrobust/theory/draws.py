"""Random networks, and random rows of scores, on which every statement is tried: float64, decided by one seed.

Depth, widths, activation, classes, image size and scale of the weights vary; first layers of a single unit are among
them, where transfers hold with equality. Rows vary in length, scale and shape: normal scores, one raised key, two
levels and two leaders close together, where the statements are attained, and long-tailed ones.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import checks, models
from attrobust.shapes import Images, Labels

Rows = Float[Tensor, "rows keys"]
SMOOTH = ("tanh", "softplus", "gelu", "silu")


class Source:
    """Random float64 numbers that a seed decides.

    Example:
        >>> Source(0).whole(3, 3), Source(0).normal(2).dtype
        (3, torch.float64)
    """

    generator: torch.Generator

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(torch.randint(low, high + 1, (1,), generator=self.generator))

    def normal(self, *shape: int) -> Float[Tensor, "..."]:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Float[Tensor, "..."]:
        """Uniform numbers in [0, 1)."""
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)


def network(seed: int, *, activations: Sequence[str] = SMOOTH, images: int = 3) -> tuple[nn.Sequential, Images, Labels]:
    """A dense network in eval mode with images and labels; a ValueError for an unknown activation.

    One to three hidden layers of one to six units, 2 x 2 or 3 x 3 pixels in [0, 1], two to four classes; the weights of
    a layer have a standard deviation between 0.5 and 3 over the root of what enters it.

    Example:
        >>> model, x, y = network(0)
        >>> model(x).shape[0], len(y)
        (3, 3)
    """
    for name in activations:
        checks.one_of("activations", name, models.ACTIVATIONS)
    g = Source(seed)
    side, classes, depth = g.whole(2, 3), g.whole(2, 4), g.whole(1, 3)
    sizes = [side**2, *[g.whole(1, 6) for _ in range(depth)], classes]
    activation = models.ACTIVATIONS[activations[g.whole(0, len(activations) - 1)]]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=torch.float64)
        scale = 0.5 + 2.5 * float(torch.rand(1, generator=g.generator))
        layer.weight.data, layer.bias.data = scale / fan_in**0.5 * g.normal(fan_out, fan_in), 0.5 * g.normal(fan_out)
        layers += [layer, activation()]
    x, y = g.uniform(images, 1, side, side), torch.randint(0, classes, (images,), generator=g.generator)
    return nn.Sequential(*layers[:-1]).eval(), x, y


def scores(seed: int, *, rows: int = 15) -> Rows:
    """Rows of scores of one random length (2 to 40 keys), five shapes in turn, each of a random scale (0.1 to 10).

    Raises:
        ValueError: `rows` below 1.

    Example:
        >>> scores(0, rows=5).shape[0], bool(scores(0).equal(scores(0)))
        (5, True)
    """
    checks.count("rows", rows)
    g = Source(seed)
    keys = g.whole(2, 40)
    drawn = torch.stack([_shapes(keys, g)[row % 5] for row in range(rows)])
    return 10 ** (2 * g.uniform(rows, 1) - 1) * drawn


def moved(start: Rows, *, seed: int) -> Rows:
    """The rows after a change: noise of a random size; in every third row a set of keys against the others.

    It moves by t up and they by t down, such that the set's share p becomes 1 - p: the largest total variation that
    this range of score changes allows.

    Example:
        >>> start = scores(0)
        >>> moved(start, seed=1).shape == start.shape
        True
    """
    g = Source(seed)
    noise, size = g.normal(*start.shape), 10 ** (2.5 * g.uniform(len(start), 1) - 1.5)
    chosen = torch.rand(start.shape, generator=g.generator) < 0.5
    chosen[:, 0], chosen[:, 1] = True, False
    inside = torch.where(chosen, start, -torch.inf).logsumexp(1) - torch.where(chosen, -torch.inf, start).logsumexp(1)
    swap = torch.where(chosen, -1.0, 1.0) * inside[:, None]  # the log odds of the set change sign
    third = torch.arange(len(start))[:, None] % 3 == 0
    return start + torch.where(third, swap, size * noise)


def _shapes(keys: int, g: Source) -> list[Float[Tensor, " keys"]]:
    """Normal scores, one raised, two levels, two leaders, long-tailed ones."""
    normal, noise = g.normal(keys), g.normal(keys)
    raised, levels, leaders = torch.zeros(3, keys, dtype=torch.float64)
    raised[0], leaders[:2] = 3.0, 2.0
    levels[: g.whole(1, keys - 1)] = 2.0
    faint = 10 ** (-4 * float(torch.rand(1, generator=g.generator))) * noise
    tailed = normal.sign() * (-g.uniform(keys).log()) ** 2 / math.sqrt(2)
    return [normal, raised + faint, levels + faint, leaders + faint, tailed]
