"""Grids of trained and measured networks; every row is stored evidence, computed once."""

from attrobust.experiments.control import read_out_twice
from attrobust.experiments.costs import FUSED, UNFORMED, mixing, training_steps
from attrobust.experiments.drop_in import drop_in
from attrobust.experiments.experiment import VITS, Experiment, Measurement, grid
from attrobust.experiments.explanations import cls_rows, inside, margins, on_the_patch_grid, under_attack
from attrobust.experiments.keys import key, network
from attrobust.experiments.measure import build, dataset
from attrobust.experiments.sweep import in_workers, run, table, tables, trained
from attrobust.rows import Rows, join

__all__ = [
    "FUSED",
    "UNFORMED",
    "VITS",
    "Experiment",
    "Measurement",
    "Rows",
    "build",
    "cls_rows",
    "dataset",
    "drop_in",
    "grid",
    "in_workers",
    "inside",
    "join",
    "key",
    "margins",
    "mixing",
    "network",
    "on_the_patch_grid",
    "read_out_twice",
    "run",
    "table",
    "tables",
    "trained",
    "training_steps",
    "under_attack",
]
