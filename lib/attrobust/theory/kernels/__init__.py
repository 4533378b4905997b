"""Attention kernels without normalisation: what links (P27, P28), rows put together (P29, P30) and scores (P31) decide.

Proofs stand in notebook 07.
"""

from attrobust.theory.kernels.evidence import one_score, shared_map, shared_maps
from attrobust.theory.kernels.links import (
    KINDS,
    POWERS,
    SHARPENING,
    SMOOTH,
    elasticity,
    log_weight,
    nudged,
    rescaled,
    slope,
    weight,
)
from attrobust.theory.kernels.swaps import ordered, radius, swapped

__all__ = [
    "KINDS", "POWERS", "SHARPENING", "SMOOTH", "elasticity", "log_weight", "nudged", "one_score", "ordered", "radius",
    "rescaled", "shared_map", "shared_maps", "slope", "swapped", "weight",
]  # fmt: skip
