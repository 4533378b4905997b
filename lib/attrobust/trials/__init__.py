"""Every statement of notebooks 02, 06 and 07 put to the test: one function a statement, tables of cases out.

A function marked `over_cases` is written for one random case, decided by one number, and is called with how many
cases to try and the first of them. The others take what they vary and return a tidy table.
"""

from attrobust.trials.blind_spots import diversities, readouts
from attrobust.trials.cases import over_cases
from attrobust.trials.descents import batches, orders, stability_sides, stable, sweep, thresholds
from attrobust.trials.equalities import attained, attained_by_kernels, attained_by_rows
from attrobust.trials.evidence import evidence_sweep, one_score, shared_maps
from attrobust.trials.inputs import detector, identities, radii, transfer, transformers
from attrobust.trials.layers import blind_unit, learning_digits, one_factor, rescaling, surfaces
from attrobust.trials.lines import angles, line_numbers, line_pictures, paths
from attrobust.trials.links import link_curves, nudged, rescaled, scale_sweep
from attrobust.trials.maps import certified, fading, loss_gradients, metrics, scales, smoothed, turning, twins
from attrobust.trials.margins import ceilings, floors, landscape, landscape_limits
from attrobust.trials.scaling import scaled, slopes, temperatures
from attrobust.trials.sensitivity import distances, hump, rank_orders
from attrobust.trials.swaps import same_ranks, swap_radii, swapped

__all__ = [
    "angles",
    "attained",
    "attained_by_kernels",
    "attained_by_rows",
    "batches",
    "blind_unit",
    "ceilings",
    "certified",
    "detector",
    "distances",
    "diversities",
    "evidence_sweep",
    "fading",
    "floors",
    "hump",
    "identities",
    "landscape",
    "landscape_limits",
    "learning_digits",
    "line_numbers",
    "line_pictures",
    "link_curves",
    "loss_gradients",
    "metrics",
    "nudged",
    "one_factor",
    "one_score",
    "orders",
    "over_cases",
    "paths",
    "radii",
    "rank_orders",
    "readouts",
    "rescaled",
    "rescaling",
    "same_ranks",
    "scale_sweep",
    "scaled",
    "scales",
    "shared_maps",
    "slopes",
    "smoothed",
    "stability_sides",
    "stable",
    "surfaces",
    "swap_radii",
    "swapped",
    "sweep",
    "temperatures",
    "thresholds",
    "transfer",
    "transformers",
    "turning",
    "twins",
]
