"""Dense and convolutional classifiers, small enough to read at a glance; and the function that builds every network."""

import math
from itertools import pairwise

import torch
from torch import nn

from attrobust import checks
from attrobust.models.layers import ACTIVATIONS, Standardize
from attrobust.models.transformer import Patches, ViT
from attrobust.shapes import Images, Logits


class MLP(nn.Module):
    """Dense network: standardise, flatten, `depth` hidden layers of `width` units, one logit per class."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        activation: str = "gelu",
        width: int = 64,
        depth: int = 3,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        sizes = [math.prod(input_shape), *[width] * depth, classes]
        layers: list[nn.Module] = [Standardize(mean, std), nn.Flatten()]
        for fan_in, fan_out in pairwise(sizes[:-1]):
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))

    def forward(self, x: Images) -> Logits:
        """Logits of each image."""
        return self.layers(x)


class ConvNet(nn.Module):
    """Convolutional network: two strided 3 x 3 convolutions, then one hidden dense layer."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        activation: str = "gelu",
        width: int = 16,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        channels, height, width_pixels = input_shape
        act = ACTIVATIONS[activation]
        flat = 2 * width * math.ceil(height / 4) * math.ceil(width_pixels / 4)
        self.layers = nn.Sequential(
            Standardize(mean, std),
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            act(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            act(),
            nn.Flatten(),
            nn.Linear(flat, 4 * width),
            act(),
            nn.Linear(4 * width, classes),
        )

    def forward(self, x: Images) -> Logits:
        """Logits of each image."""
        return self.layers(x)


ARCHITECTURES: dict[str, type[nn.Module]] = {"mlp": MLP, "convnet": ConvNet, "vit": ViT}
INITIAL = ("wide", "narrow")


def build(
    architecture: str,
    *,
    input_shape: tuple[int, int, int],
    classes: int,
    seed: int,
    activation: str = "gelu",
    initial: str = "wide",
    **options: float | str,
) -> nn.Module:
    """Build a classifier whose weights depend on `seed` alone; the global random state is left as found.

    Args:
        architecture: one of `ARCHITECTURES`.
        input_shape: channels, height, width of one image.
        classes: number of logits, at least 2.
        seed: of the initial weights.
        activation: one of `ACTIVATIONS`.
        initial: size of the initial weights, one of `INITIAL`: "wide" as below; "narrow" as torch's own dense and
            convolutional layers (uniform, variance 1 / (3 fan-in), biases too), and positions of a ViT at 0.02.
        **options: passed on to the architecture: mean, std; width, depth; attention, patch, dim, depth, heads of a ViT.

    Returns:
        The network in train mode, on the CPU, in float32.

    Raises:
        ValueError: for an unknown architecture or activation, fewer than two classes, or what a ViT refuses.

    Example:
        >>> model = build("mlp", input_shape=(1, 8, 8), classes=10, seed=0, width=16)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    Reference: He et al. 2015, "Delving deep into rectifiers", eq. 10 (initialisation). A ViT's dense layers read
    normalised tokens and start at variance 1 / fan-in (LeCun et al. 1998), so that first scores have unit variance.
    """
    checks.one_of("architecture", architecture, ARCHITECTURES)
    checks.one_of("activation", activation, ACTIVATIONS)
    checks.one_of("initial", initial, INITIAL)
    checks.count("classes", classes, least=2)
    gain = "linear" if architecture == "vit" else "relu"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ARCHITECTURES[architecture](input_shape, classes, activation=activation, **options)
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and initial == "wide":
                nn.init.kaiming_normal_(layer.weight, nonlinearity=gain)
                nn.init.zeros_(layer.bias)
            if isinstance(layer, ViT | Patches) and initial == "narrow":
                layer.narrow()
    return model
