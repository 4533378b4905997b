"""Attacks on explanations: change the map, keep the prediction, stay inside a norm ball.

An attack is an objective (what to change), a ball (how far), `pgd` (how to climb) and `same_prediction` (what
must stay). Networks with kinks are climbed on a smooth twin and judged as they are.
"""

from attrobust.attacks.objectives import (
    Attribution,
    Objective,
    lower_cosine,
    lower_pearson,
    shift_center,
    shift_topk,
)
from attrobust.attacks.pgd import Attacked, noise_search, pgd
from attrobust.attacks.prediction import refuse_kinks, same_prediction

__all__ = [
    "Attacked",
    "Attribution",
    "Objective",
    "lower_cosine",
    "lower_pearson",
    "noise_search",
    "pgd",
    "refuse_kinks",
    "same_prediction",
    "shift_center",
    "shift_topk",
]
