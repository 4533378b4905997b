"""The same networks and the same images for every route: three small networks, trained on enlarged digits."""

from collections.abc import Callable, Iterator
from functools import cache

import torch
from attrobust import models
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

IMAGES = 1000  # of a parameter Hessian
TRACED = 250  # of a trace
PIXELS_OF = 256  # images with an input Hessian each
PRODUCTS = 30  # of a trace
STEPS = 15  # of a Lanczos search in the pixels


@cache
def digits(size: int = 28) -> tuple[Tensor, Tensor]:
    """All 1,797 digits, enlarged from 8 x 8 pixels, in [0, 1], in a fixed order."""
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    return x[order], torch.tensor(bunch.target)[order]


def dense(*, activation: str = "gelu", width: int = 128, classes: int = 10) -> nn.Module:
    """The dense network of the notebooks, untrained."""
    return models.build("mlp", input_shape=(1, 28, 28), classes=classes, seed=0, activation=activation, width=width)


def strided(*, activation: str = "gelu", width: int = 16, classes: int = 10) -> nn.Module:
    """The convolutional network of the notebooks, untrained."""
    return models.build("convnet", input_shape=(1, 28, 28), classes=classes, seed=0, activation=activation, width=width)


def pooled(*, activation: str = "softplus", width: int = 16, classes: int = 10) -> nn.Module:
    """A convolutional network at full resolution with average pools: far more activations per weight, untrained."""
    act = {"softplus": lambda: nn.Softplus(5), "relu": nn.ReLU}[activation]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), act(), nn.AvgPool2d(2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), act(), nn.AvgPool2d(2)),
            *(nn.Flatten(), nn.Linear(98 * width, 28), act(), nn.Linear(28, classes)),
        )


NETWORKS: dict[str, Callable[..., nn.Module]] = {"dense": dense, "strided": strided, "pooled": pooled}


def epochs(
    model: nn.Module, count: int, *, step_size: float = 0.05, batch_size: int = 64, every: int = 12
) -> Iterator[int]:
    """Train by SGD with momentum; yield the number of steps after each `every` of them."""
    x, y = digits()
    optimizer = torch.optim.SGD(model.parameters(), step_size, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    done = 0
    for _ in range(count):
        for index in torch.randperm(len(x), generator=generator).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            done += 1
            if done % every == 0:
                optimizer.zero_grad(set_to_none=True)
                yield done
    optimizer.zero_grad(set_to_none=True)


@cache
def trained(network: str, *, relu: bool = False) -> nn.Module:
    """The network after six passes over the digits, the same at every call."""
    model = NETWORKS[network](**({"activation": "relu"} if relu else {})).eval()
    for _ in epochs(model, 6):
        pass
    return model


def loss(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each image."""
    return F.cross_entropy(logits, y, reduction="none")


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of one route's own."""
    return torch.Generator().manual_seed(seed)
