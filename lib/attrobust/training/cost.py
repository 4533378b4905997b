"""What training costs, counted: floating-point operations of matrix products and convolutions, of forward and backward.

Unlike seconds they are the same on every machine and under any load. A *pass* is one forward of one image. Seconds are
compared in turn, so that a load that changes meets all ways alike.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from attrobust.models import watched
from attrobust.shapes import Images, Labels, Maps
from attrobust.training.ingredients import TRAINERS
from attrobust.training.recipes import Recipe


class Operations(TorchDispatchMode):
    """Counts, within, the floating-point operations of products and convolutions; their derivatives included.

    Example:
        >>> with Operations() as counted:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> counted.total
        48
    """

    total: int

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        found = function(*args, **kwargs or {})
        count = flop_registry.get(function._overloadpacket)
        self.total += count(*args, **kwargs or {}, out_val=found) if count else 0
        return found


def passes(
    model: nn.Module, x: Images, y: Labels, recipe: Recipe, *, generator: torch.Generator, wanted: Maps | None = None
) -> float:
    """Passes that one update by this recipe costs for each image; plain SGD takes three, but for the first layer.

    The network's parameters and statistics stay as they are. `wanted` are the maps that a penalty may wait for.

    Raises:
        ValueError: a network without a product or convolution to count; a penalty of other than one number per image.

    Example:
        >>> from attrobust import models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8)
        >>> x, y, recipe = torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), Recipe(step_size=0.1, batch_size=2, epochs=1)
        >>> 2 < passes(model, x, y, recipe, generator=torch.Generator()) < 3
        True
    """
    take = TRAINERS["sgd" if recipe.plain else recipe.trainer]
    with watched.untouched(model):
        with Operations() as forward:  # with gradients on: what torch fuses without them is not counted
            model(x)
        if not forward.total:
            raise ValueError("model runs no product or convolution that could be counted")
        with Operations() as update:
            take(model, dataclasses.replace(recipe.objective, wanted=wanted), x, y, recipe.radius, generator)
    return update.total / forward.total


def in_turn(ways: Mapping[str, Callable[[], object]], repetitions: int, *, name: str) -> pd.DataFrame:
    """CPU `seconds` and `wall` seconds of each way, all in every `repetition`, each of which begins with another one.

    A first repetition, which warms up, is not told. `name` is the column of the ways' names.

    Example:
        >>> table = in_turn({"sum": lambda: sum(range(9)), "none": lambda: None}, 2, name="way")
        >>> table["way"].tolist()
        ['sum', 'none', 'none', 'sum']
    """
    rows, names = [], list(ways)
    for repetition in range(-1, repetitions):
        shift = repetition % len(names)
        for way in names[shift:] + names[:shift]:
            wall, begin = time.perf_counter(), time.process_time()
            ways[way]()
            spent = {"seconds": time.process_time() - begin, "wall": time.perf_counter() - wall}
            rows.append({name: way, "repetition": repetition, **spent})
    return pd.DataFrame([row for row in rows if row["repetition"] >= 0])
