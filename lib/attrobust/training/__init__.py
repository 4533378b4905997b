"""Mini-batch SGD by a recipe, to a loss level or for a number of epochs, several networks at once.

`fit` trains; a `Recipe` says how; `recipes` names those of the notebooks. A schedule, a loss, an augmentation or a
trainer is added by one file and one line in its registry.
"""

from attrobust.training import recipes
from attrobust.training.augmentation import AUGMENTATIONS
from attrobust.training.losses import LOSSES, cross_entropy, squared
from attrobust.training.noise import noisy_labels
from attrobust.training.recipe import Recipe
from attrobust.training.schedules import SCHEDULES
from attrobust.training.sgd import Fit, Probe, fit
from attrobust.training.trainers import TRAINERS, Objective

__all__ = [
    "AUGMENTATIONS",
    "LOSSES",
    "SCHEDULES",
    "TRAINERS",
    "Fit",
    "Objective",
    "Probe",
    "Recipe",
    "cross_entropy",
    "fit",
    "noisy_labels",
    "recipes",
    "squared",
]
