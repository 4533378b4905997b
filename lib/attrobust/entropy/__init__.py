"""Entropy of attention rows, and what it decides: how sensitive a row is, how clear its ranks can be.

A *row* is what one query of one head gives to its keys: the last axis of a tensor of *weights* (softmax or any other
kernel, at least 0) or of *scores* (what stands before the softmax; -inf masks a key). All other axes are batch axes.
Weights are divided by their sum first, so that kernels without normalisation can be compared. Entropy is in nats.

Used by notebook 06; proofs stand there.
"""

from attrobust.entropy.distances import (
    hilbert_distance,
    relative_score_change,
    total_variation,
    total_variation_bound,
)
from attrobust.entropy.limits import deficit_bound, entropy_floor, leading_mass, margin_ceiling, topk_gap
from attrobust.entropy.rows import (
    centred_norm,
    effective_keys,
    entropy_deficit,
    normalised,
    oscillation,
    row_entropy,
    row_mass,
    softmax_entropy,
)
from attrobust.entropy.sensitivity import (
    Bounds,
    jacobian_bounds,
    row_jacobian_norm,
    sensitivity_envelope,
    softmax_jacobian_norm,
)

__all__ = [
    "Bounds",
    "centred_norm",
    "deficit_bound",
    "effective_keys",
    "entropy_deficit",
    "entropy_floor",
    "hilbert_distance",
    "jacobian_bounds",
    "leading_mass",
    "margin_ceiling",
    "normalised",
    "oscillation",
    "relative_score_change",
    "row_entropy",
    "row_jacobian_norm",
    "row_mass",
    "sensitivity_envelope",
    "softmax_entropy",
    "softmax_jacobian_norm",
    "topk_gap",
    "total_variation",
    "total_variation_bound",
]
