"""Grids of trained and measured networks; every row is stored evidence, computed once."""

from attrobust.experiments.experiment import RADII, SIDES, VITS, Experiment, Measurement, calibrated, grid, sized
from attrobust.experiments.explanations import (
    AVERAGED,
    READOUTS,
    affordable,
    cls_rows,
    compared,
    controls,
    explaining,
    inside,
    margins,
    of_pixels,
    on_the_patch_grid,
    under_attack,
)
from attrobust.experiments.keys import key, network
from attrobust.experiments.measure import build, dataset, shown
from attrobust.experiments.sweep import none_here, run, table, tables, trained
from attrobust.experiments.workers import in_workers
from attrobust.rows import Rows, join

__all__ = [
    "AVERAGED", "RADII", "READOUTS", "SIDES", "VITS", "Experiment", "Measurement", "Rows", "affordable", "build",
    "calibrated", "cls_rows", "compared", "controls", "dataset", "explaining", "grid", "in_workers", "inside", "join",
    "key", "margins", "network", "none_here", "of_pixels", "on_the_patch_grid", "run", "shown", "sized", "table",
    "tables", "trained", "under_attack",
]  # fmt: skip
