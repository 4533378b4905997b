"""Plain SGD on a loss of one's choice, to a loss level or for a number of epochs, several networks at once."""

from attrobust.training.losses import LOSSES, cross_entropy, squared
from attrobust.training.sgd import SCHEDULES, Fit, Probe, fit

__all__ = ["LOSSES", "SCHEDULES", "Fit", "Probe", "cross_entropy", "fit", "squared"]
