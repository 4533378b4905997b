"""Attacks on explanations: change the map, keep the prediction, stay inside a norm ball.

An attack is an objective (what to change), a ball (how far), `pgd` (how to climb) and `same_prediction` (what
must stay). Networks with kinks are climbed on a smooth twin and judged as they are. `auto` runs all of it at once and
keeps the worst of each image.
"""

from attrobust.attacks.auto import OBJECTIVES, Found, auto
from attrobust.attacks.effort import Effort, Passes, passes
from attrobust.attacks.objectives import (
    Attribution,
    Objective,
    frame,
    lower_cosine,
    lower_pearson,
    match_map,
    shift_center,
    shift_topk,
    unseat_topk,
)
from attrobust.attacks.pgd import Attacked, noise_search, pgd
from attrobust.attacks.prediction import Overheard, refuse_kinks, same_prediction
from attrobust.attacks.referee import MEASURES, measure
from attrobust.attacks.streams import Streams, each, explain

__all__ = [
    "MEASURES",
    "OBJECTIVES",
    "Attacked",
    "Attribution",
    "Effort",
    "Found",
    "Objective",
    "Overheard",
    "Passes",
    "Streams",
    "auto",
    "each",
    "explain",
    "frame",
    "lower_cosine",
    "lower_pearson",
    "match_map",
    "measure",
    "noise_search",
    "passes",
    "pgd",
    "refuse_kinks",
    "same_prediction",
    "shift_center",
    "shift_topk",
    "unseat_topk",
]
