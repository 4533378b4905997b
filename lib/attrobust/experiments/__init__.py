"""Grids of trained and measured networks; every row is stored evidence, computed once."""

from attrobust.experiments.experiment import PROTOCOLS, Experiment, Measurement, grid, key
from attrobust.experiments.explanations import cls_rows, inside, margins, on_the_patch_grid, under_attack
from attrobust.experiments.measure import build, dataset
from attrobust.experiments.sweep import in_workers, run, table, tables, trained

__all__ = [
    "PROTOCOLS",
    "Experiment",
    "Measurement",
    "build",
    "cls_rows",
    "dataset",
    "grid",
    "in_workers",
    "inside",
    "key",
    "margins",
    "on_the_patch_grid",
    "run",
    "table",
    "tables",
    "trained",
    "under_attack",
]
