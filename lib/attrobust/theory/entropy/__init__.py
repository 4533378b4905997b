"""Entropy of attention rows, and what it decides: how sensitive a row is, how clear its ranks can be (P20, P22 to P26).

A *row* is what one query of one head gives to its keys: the last axis of a tensor of *weights* (softmax or any other
kernel, at least 0) or of *scores* (what stands before the softmax; -inf masks a key). All other axes are batch axes.
Weights are divided by their sum first, so that kernels without normalisation can be compared. Entropy is in nats.
Proofs stand in notebook 06.
"""

from attrobust.theory.entropy.blind_spot import readouts
from attrobust.theory.entropy.margins import ceilings, entropy_floor, floors, leading_mass, margin_ceiling, topk_gap
from attrobust.theory.entropy.rows import (
    centred_norm,
    distances,
    effective_keys,
    entropy_deficit,
    hilbert_distance,
    oscillation,
    relative_score_change,
    row_entropy,
    row_mass,
    softmax_entropy,
    total_variation,
    total_variation_bound,
)
from attrobust.theory.entropy.scaling import deficit_bound, scaled
from attrobust.theory.entropy.sensitivity import (
    hump,
    jacobian_bounds,
    row_jacobian_norm,
    sensitivity_envelope,
    softmax_jacobian_norm,
)

__all__ = [
    "ceilings", "centred_norm", "deficit_bound", "distances", "effective_keys", "entropy_deficit", "entropy_floor",
    "floors", "hilbert_distance", "hump", "jacobian_bounds", "leading_mass", "margin_ceiling", "oscillation",
    "readouts", "relative_score_change", "row_entropy", "row_jacobian_norm", "row_mass", "scaled",
    "sensitivity_envelope", "softmax_entropy", "softmax_jacobian_norm", "topk_gap", "total_variation",
    "total_variation_bound",
]  # fmt: skip
