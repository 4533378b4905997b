"""Attacks on explanations: change the map, keep the prediction, stay inside a norm ball.

An objective says what to change, as a function of two maps; `climb` ascends it; `auto` audits the derivative, climbs
every objective, searches at random beside it, and keeps the worst of each image under every measure.
"""

from attrobust.attacks.audit import Audit, BlindError, audit
from attrobust.attacks.clean import Clean
from attrobust.attacks.effort import BETAS, CLIMBABLE, FIRST_VERSION, OBJECTIVES, Effort, Heavy, Passes, passes
from attrobust.attacks.heavy import heavy
from attrobust.attacks.judge import MEASURES, measure
from attrobust.attacks.objectives import (
    Objective,
    frame,
    lower_cosine,
    lower_pearson,
    lower_spearman,
    match_map,
    shift_center,
    shift_topk,
    unseat_topk,
)
from attrobust.attacks.predictions import Attacked, pgd, square
from attrobust.attacks.streams import Streams, each, explain
from attrobust.attacks.suite import Found, auto

__all__ = [
    "BETAS", "CLIMBABLE", "FIRST_VERSION", "MEASURES", "OBJECTIVES", "Attacked", "Audit", "BlindError", "Clean",
    "Effort", "Found", "Heavy", "Objective", "Passes", "Streams", "audit", "auto", "each", "explain", "frame", "heavy",
    "lower_cosine", "lower_pearson", "lower_spearman", "match_map", "measure", "passes", "pgd",
    "shift_center", "shift_topk", "square", "unseat_topk",
]  # fmt: skip
