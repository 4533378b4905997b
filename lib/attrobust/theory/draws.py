"""Random networks on which every statement is tried: small, float64, decided by one seed.

Depth, widths, activation, classes, image size and the scale of the weights all vary, so that a bound is tried far
from the initialisations people use; first layers of a single unit are among them, where transfers hold with equality.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrobust import checks, models
from attrobust.theory.path_norm import TwoLayer

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


def two_layer(seed: int, *, inputs: int = 0, points: int = 12) -> tuple[TwoLayer, Float[np.ndarray, "points inputs"]]:
    """A two-layer ReLU network with points, in numpy.

    Args:
        seed: decides everything.
        inputs: of the network; 0 draws one to four.
        points: how many, at least 1.

    Returns:
        Network of one to eight units with unbalanced layers, and normal points.
    """
    rng = np.random.default_rng(seed)
    inputs = inputs or int(rng.integers(1, 5))
    units = int(rng.integers(1, 9))
    weights, biases = rng.standard_normal((units, inputs)), 0.7 * rng.standard_normal(units)
    net = TwoLayer(weights, biases, rng.standard_normal(units) * np.exp(rng.standard_normal(units)))
    return net, rng.standard_normal((points, inputs))


def dense(fan_in: int, fan_out: int, *, generator: torch.Generator) -> nn.Linear:
    """A float64 layer with normal weights of standard deviation between 0.5 and 3 over the root of `fan_in`."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(fan_in, fan_out).double()
    scale = 0.5 + 2.5 * float(torch.rand(1, generator=generator))
    with torch.no_grad():
        for parameter, size in ((layer.weight, scale / fan_in**0.5), (layer.bias, 0.5)):
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


def _whole(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=generator))
