"""Mini-batch SGD by a recipe, to a loss level or for a number of epochs, several networks at once.

`fit` trains; a `Recipe` says how; `recipes` names those of the notebooks; `passes` counts what an update costs. A
schedule, a loss, an augmentation or a trainer is added by one function and one line in its registry.
"""

from attrobust.training import recipes
from attrobust.training.cost import Operations, in_turn, passes
from attrobust.training.ingredients import (
    AUGMENTATIONS,
    IN_PIXELS,
    LOSSES,
    TRAINERS,
    cross_entropy,
    noisy_labels,
    squared,
)
from attrobust.training.recipes import SCHEDULES, Recipe
from attrobust.training.sgd import Fit, Probe, fit

__all__ = ["AUGMENTATIONS", "IN_PIXELS", "LOSSES", "SCHEDULES", "TRAINERS", "Fit", "Operations", "Probe", "Recipe"]
__all__ += ["cross_entropy", "fit", "in_turn", "noisy_labels", "passes", "recipes", "squared"]
