"""Entropy of attention rows, and what it decides: how sensitive a row is, how clear its ranks can be (P20, P22 to P26).

A *row* is what one query of one head gives to its keys: the last axis of a tensor of *weights* (softmax or any other
kernel, at least 0) or of *scores* (what stands before the softmax; -inf masks a key). All other axes are batch axes.
Weights are divided by their sum first, so that kernels without normalisation can be compared. Entropy is in nats.

Used by notebook 06; proofs stand there.
"""

from attrobust.theory.entropy.blind_spot import readouts
from attrobust.theory.entropy.distance import (
    distances,
    hilbert_distance,
    rank_similarity,
    ranks,
    relative_score_change,
    total_variation,
    total_variation_bound,
)  # fmt: skip
from attrobust.theory.entropy.margins import ceilings, entropy_floor, floors, leading_mass, margin_ceiling, topk_gap
from attrobust.theory.entropy.rows import (
    centred_norm,
    effective_keys,
    entropy_deficit,
    normalised,
    oscillation,
    row_entropy,
    row_mass,
    softmax_entropy,
)  # fmt: skip
from attrobust.theory.entropy.scaling import deficit_bound, scaled
from attrobust.theory.entropy.sensitivity import (
    Bounds,
    hump,
    jacobian_bounds,
    row_jacobian_norm,
    sensitivity_envelope,
    softmax_jacobian_norm,
)  # fmt: skip

__all__ = [
    "Bounds", "ceilings", "centred_norm", "deficit_bound", "distances", "effective_keys", "entropy_deficit",
    "entropy_floor", "floors", "hilbert_distance", "hump", "jacobian_bounds", "leading_mass", "margin_ceiling",
    "normalised", "oscillation", "rank_similarity", "ranks", "readouts", "relative_score_change", "row_entropy",
    "row_jacobian_norm", "row_mass", "scaled", "sensitivity_envelope", "softmax_entropy", "softmax_jacobian_norm",
    "topk_gap", "total_variation", "total_variation_bound",
]  # fmt: skip
