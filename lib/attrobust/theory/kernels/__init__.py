"""Attention kernels without normalisation: what links (P27, P28), rows put together (P29, P30) and scores (P31) decide.

Used by notebook 07; proofs stand there.
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
)  # fmt: skip
from attrobust.theory.kernels.swaps import Pair, ordered, radius, swapped

__all__ = [
    "KINDS", "POWERS", "SHARPENING", "SMOOTH", "Pair", "elasticity", "log_weight", "nudged", "one_score", "ordered",
    "radius", "rescaled", "shared_map", "shared_maps", "slope", "swapped", "weight",
]  # fmt: skip
