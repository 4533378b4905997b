"""Grids of trained and measured networks; every row is stored evidence, computed once."""

from attrobust.experiments.experiment import PROTOCOLS, Experiment, Measurement, grid, key
from attrobust.experiments.measure import build, dataset
from attrobust.experiments.sweep import in_workers, run, table, tables, trained

__all__ = [
    "PROTOCOLS",
    "Experiment",
    "Measurement",
    "build",
    "dataset",
    "grid",
    "in_workers",
    "key",
    "run",
    "table",
    "tables",
    "trained",
]
