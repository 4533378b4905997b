"""From one random case to a table of many; and the network on real images that several trials share."""

import functools
from collections.abc import Callable, Iterator

import pandas as pd
import torch
from torch import nn

from attrobust import checks, experiments, models, statements, training


def over_cases(one: Callable[[int], Iterator[pd.DataFrame]]) -> Callable[[int, int], pd.DataFrame]:
    """Turn a function of one case into one of (number of cases, first case) that joins their tables.

    Example:
        >>> two = over_cases(lambda case: iter([statements.bound("S", "numbers", case, 10)]))
        >>> two(3, 5)["left"].tolist()
        [5.0, 6.0, 7.0]
    """

    @functools.wraps(one)
    def table(cases: int, seed: int) -> pd.DataFrame:
        checks.count("cases", cases)
        return statements.join(part for case in range(seed, seed + cases) for part in one(case))

    return table


def digits(n_train: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images and labels, and as many test images, in float64; at most the 797 that the test side holds."""
    n = min(n_train, 797)
    whole = experiments.dataset("digits", None, n, n, "cpu")
    return whole.train.x.double(), whole.train.y, whole.test.x.double()


def digits_network(
    n_train: int,
    seed: int,
    *,
    activation: str = "softplus",
    depth: int = 1,
    epochs: int = 60,
    step_size: float = 0.05,
    loss: str = "cross_entropy",
    probe: training.Probe | None = None,
    every: int = 0,
) -> nn.Module:
    """A dense float64 network trained on digits by plain SGD with batches of 20.

    Args:
        n_train: training images.
        seed: of the weights and of the batch order.
        activation: of the hidden units.
        depth: hidden layers of 24 units.
        epochs: passes over the images.
        step_size: of SGD.
        loss: "cross_entropy" or "squared".
        probe: called as probe(update, networks) every `every` updates.
        every: updates between probes.

    Returns:
        The network in eval mode.
    """
    how = {"input_shape": (1, 8, 8), "classes": 10, "seed": seed, "activation": activation, "width": 24, "depth": depth}
    model = models.build("mlp", **how).double()
    x, y, _ = digits(n_train)
    order = [torch.Generator().manual_seed(seed)]
    recipe = training.Recipe(step_size=step_size, batch_size=20, epochs=epochs, loss=loss)
    training.fit([model], x, y, recipe, generators=order, probe=probe, probe_every=every)
    return model
