"""Schedules: by how much the step size of an update, counted from 0, is multiplied.

    warm-up over u updates:  min(1, (t + 1) / u)
    cosine:                  warm-up(t) (1 + cos(pi t / T)) / 2        over T updates

Reference: Loshchilov and Hutter 2017, "SGDR", eq. 5, without restarts.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrobust.versions import versioned

if TYPE_CHECKING:
    from attrobust.training.recipe import Recipe


@versioned(1)
def constant(recipe: "Recipe", update: int, per_epoch: int) -> float:
    """One step size all along."""
    return 1.0


@versioned(1)
def cosine(recipe: "Recipe", update: int, per_epoch: int) -> float:
    """Linear warm-up over a share of the updates, under half a cosine that would be zero after the last one."""
    budget = recipe.most_epochs * per_epoch
    return _warm(update, recipe.warmup_share * budget) * 0.5 * (1 + math.cos(math.pi * update / budget))


@versioned(1)
def warmup_constant(recipe: "Recipe", update: int, per_epoch: int) -> float:
    """Linear warm-up over some epochs, then one step size."""
    return _warm(update, recipe.warmup_epochs * per_epoch)


def _warm(update: int, updates: float) -> float:
    return min(1.0, (update + 1) / max(1.0, updates))


SCHEDULES: dict[str, Callable[["Recipe", int, int], float]] = {
    "constant": constant,
    "cosine": cosine,
    "warmup-constant": warmup_constant,
}
