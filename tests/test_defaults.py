"""What is taken where nothing is said: results hang on these numbers, so they are written down a second time."""

import ast
import hashlib
import importlib
import inspect
import math
from pathlib import Path

import attrobust
import pytest
import reference
import torch
from attrobust.experiments import experiment

PACKAGE = Path(attrobust.__file__).parent

ROOMS = (
    "attacks", "attributions", "claims", "curvature", "experiments", "faithfulness", "regularizers", "robustness",
    "sensitivity", "training",
)  # fmt: skip
#: Rooms and files of which every number at the top is written down here.
COUNTED = ("attacks", "attention", "attributions", "claims", "curvature", "experiments", "regularizers", "rows",
           "similarity", "theory", "training")  # fmt: skip
GREY = 1 / 255  # a grey level

DEFAULTS = {
    "attacks.Effort": {
        "steps": 40, "restarts": 2, "draws": 20, "walk": 20, "eot": 1, "relative_step": 0.5, "momentum": 0.75,
    },
    "attacks.Heavy": {"steps": 300, "starts": 10},
    "attacks.frame": {"width": 1},
    "attacks.passes": {"twins": 0, "starts": 0, "lost": 0, "forward": 1, "backward": 1},
    "attacks.pgd": {"steps": 40, "restarts": 2, "length": 2.5},
    "attacks.square": {"queries": 1000},
    "attributions.deep_lift": {"baseline": 0.0},
    "attributions.integrated_gradients": {"baseline": 0.0, "steps": 32},
    "attributions.lrp": {"epsilon": 1e-6},
    "attributions.occlusion": {"baseline": 0.0},
    "claims.associations": {"draws": 1000},
    "claims.chance_curve": {"draws": 1000},
    "claims.restoration": {"margin": 0.05},
    "claims.strength": {"limit": 0.02},
    "curvature.InputHessian": {"chunk": 128},
    "curvature.ParameterHessian": {"chunk": 256},
    "curvature.extremes": {"steps": 60, "tolerance": 1e-2},
    "curvature.frobenius": {"products": 30},
    "curvature.gram_spectrum": {"chunk": 256},
    "curvature.input_curvature": {"steps": 15},
    "curvature.input_extremes": {"steps": 15, "tolerance": 0.0},
    "curvature.input_jacobian": {"chunk": 256},
    "curvature.input_moments": {"products": 30},
    "curvature.lanczos": {"tolerance": 0.0},
    "curvature.relative_curvature": {"steps": 15},
    "curvature.sharpness": {"steps": 40, "tolerance": 1e-3},
    "curvature.spectral_density": {"probes": 4, "steps": 30},
    "curvature.trace": {"products": 30},
    "experiments.Experiment": {
        "n_train": 1000, "momentum": 0.9, "patch": 2, "dim": 32, "depth": 2, "strength": 0.0, "around": 0.0,
        "teacher_around": 0.0,
    },
    "experiments.Measurement": {"n_attacked": 64, "k_share": 0.1, "trace_products": 30},
    "experiments.in_workers": {"jobs": 0},
    "experiments.run": {"jobs": 0},
    "experiments.tables": {"jobs": 0},
    "faithfulness.deletion": {"baseline": 0.0, "steps": 20},
    "faithfulness.insertion": {"baseline": 0.0, "steps": 20},
    "faithfulness.insertion_deletion": {"baseline": 0.0, "steps": 20, "draws": 4},
    "regularizers.art": {"radius": 8 * GREY, "steps": 3},
    "regularizers.cure": {"length": 1.5},
    "regularizers.hessian": {"probes": 1},
    "regularizers.ig_norm": {"radius": 8 * GREY, "steps": 5, "points": 10, "inner_points": 3},
    "regularizers.ig_sum_norm": {"radius": 8 * GREY, "steps": 5, "points": 10, "inner_points": 3, "size": 0.1},
    "regularizers.interpretation": {"direction": 3.0, "size": 1.06},
    "regularizers.jacobian": {"probes": 1},
    "regularizers.l2_cosine": {"radius": 4 * GREY, "l2": 0.01, "cosine": 0.1},
    "regularizers.ssr_lanczos": {"steps": 5},
    "regularizers.wanted_maps": {"samples": 50, "sigma": 0.15, "threshold": 1.0},
    "robustness.attribution_robustness": {"noise_draws": 4},
    "robustness.transfer": {"noise_draws": 4},
    "sensitivity.sensitivities": {"eps_min": 1e-06},
    "training.Recipe": {
        "stop_within": 1.0, "patience": 1, "momentum": 0.0, "weight_decay": 0.0, "step_x_decay": 0.0,
        "warmup_share": 0.02, "warmup_epochs": 5.0, "label_smoothing": 0.0, "label_noise": 0.0, "shift_pixels": 1,
        "strength": 0.0, "radius": 0.0,
    },
    "training.cross_entropy": {"label_smoothing": 0.0},
    "training.fit": {"probe_every": 0},
    "training.squared": {"label_smoothing": 0.0},
}  # fmt: skip

#: Numbers of a paper, of the protocol, of the attack that rows were made with, or of what a machine holds.
CONSTANTS = {
    "attacks.audit": {"STEP": GREY, "TOLERANCE": 0.3, "FAILING": 0.2},
    "attacks.climb": {"SIDE_BY_SIDE": 2**20},
    "attacks.effort": {"BETAS": (5.0, 10.0, 50.0), "DIRECTIONS": 2},
    "attacks.heavy": {"FIRST": 0.22, "SHRINK": 0.03, "LEAST": 0.06, "RISING": 0.75, "NEW": 0.75},
    "attacks.judge": {
        "MEASURES": {
            "top_k": -1, "top_k_share": -1, "spearman": -1, "cosine": -1, "pearson": -1, "displacement": 1,
            "relative_displacement": 1, "center_shift": 1, "match": 1,
        },
        "ROUNDING": 64,
    },
    "attacks.objectives": {"FLATTEN": 0.5, "PAIRWISE": 16},
    "attacks.predictions": {
        "FIRST_SHARE": 0.8, "HALVINGS": (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8), "TILES": 5, "EVERY": 20,
        "LAST": 400, "RIDGE": 1e-3, "MOST": 2**23,
    },
    "attacks.streams": {"TOGETHER": 2**14},
    "attacks.suite": {"WALK_STEP": 1 / 16, "MOVES": 8, "ROUNDING": 1024},
    "attention": {"ROUNDS": 3},
    "attributions.attention": {"LARGEST": 2**30},
    "attributions.propagation": {"ROUNDED": {torch.float32: 1e-3, torch.float64: 2e-12}},
    "attributions.rerun": {"WAYS": 2, "SHARE": 3 / 8, "ROUNDING": 0.6, "FLOOR": 2**-42},
    "claims.cells": {
        "FEWEST_SEEDS": 5, "HEADLINE_SEEDS": 10, "MOST_SEEDS": 20, "COUNTED_SHARE": 0.9, "ALPHA": 0.05, "MARGIN": 0.05,
        "RATIO_MARGIN": math.log(1.1), "ROOM": (0.2, 0.9),
    },
    "claims.mediators": {"FEWEST_CLUSTERS": 5},
    "claims.rule": {"CONFIDENCE": 0.95},
    "claims.strength": {"LIMIT": 0.02},
    "curvature.chain": {"HELD": 2**21},
    "curvature.derivatives": {"FEW": 4},
    "curvature.factored": {"LEAST": 2, "ROWS": 256, "FREEDOM": 128},
    "curvature.inputs": {"ORDINARY": 16},
    "curvature.parameters": {"FRESH": 0.1},
    "curvature.products": {"SHARE": 0.5},
    "experiments.experiment": {
        "SIDES": {"mnist": 14, "two_digits": 14, "fashion_mnist": 14, "cifar10_4k": 16}, "TEACHER": 1_000_000,
    },
    "experiments.explanations": {
        "PATH_STEPS": 16, "SIGMA": 0.1, "BOX": 8 * GREY, "SAMPLES": 16, "FEW": 32, "FEWEST": 16, "COVERED": 2,
    },
    "experiments.measure": {
        "PIXELS": {
            "digits": (0.305, 0.376), "mnist": (0.131, 0.308), "two_digits": (0.065, 0.209),
            "fashion_mnist": (0.286, 0.353), "cifar10": (0.473, 0.251), "cifar10_4k": (0.478, 0.250),
        },
        "COMPARABLE_LOSS": 0.25, "COMPARABLE_ACCURACY": 0.995, "COMPARABLE_CHANGE": 0.1, "COMPARABLE_BLIND": 0.1,
    },
    "experiments.schema": {
        "METRICS": {
            "top_k": (0, 1), "top_k_share": (0, math.inf), "spearman": (-1, 1), "cosine": (-1, 1), "pearson": (-1, 1),
            "displacement": (0, math.inf), "relative_displacement": (0, math.inf), "center_shift": (0, math.inf),
            "counted": (0, 1),
        },
        "LIKE": {"between": (-1, 1), "contrast": (0, math.inf), "entropy": (0, 1), "occlusion": (-1, 1)},
        "_ANY": (-math.inf, math.inf), "_NOT_NEGATIVE": (0, math.inf), "_SHARE": (0, 1), "_SLACK": 1e-5,
        "_DIGITS": 1e-4,
    },
    "regularizers.alignment": {"LEADING": 1000 / 3072, "STEP": 5 / 8, "SHORT": 1e-4},
    "regularizers.interpretation": {"TOGETHER": 512},
    "theory.entropy": {"SKEW": 1 / (6 * math.sqrt(3))},
    "theory.kernels": {"_TAIL": -40.0, "POWERS": {"ReLU": 1, "ReLU²": 2}},
    "theory.tally": {"RESIDUAL": 1e-10, "ROUNDING": 1e-9},
    "training.ingredients": {"ADVERSARIAL_STEPS": 7},
    "training.level": {"CHUNK": 256, "LEAST": 32},
    "training.recipes": {"_LEVEL": {"momentum": 0.9, "stop_within": 0.25, "patience": 5}},
    "training.sgd": {"MOST": 10_000, "DRAWS": 0x5EED0000},
    "training.stacks": {"LINE": 32},
}  # fmt: skip

#: Tables that have laws of their own below, or in the tests of the schema.
TABLES = {"experiments.experiment": {"RADII", "CHOSEN"}, "experiments.schema": {"MEASURED"}}


def numbers(value):
    """Numbers that a function takes by default."""
    taken = {name: p.default for name, p in inspect.signature(value).parameters.items()}
    return {name: n for name, n in taken.items() if isinstance(n, int | float) and not isinstance(n, bool)}


def test_numbers_that_are_taken_by_default_are_those_written_down():
    found = {name: numbers(value) for name, value in reference.public().items()
             if name.split(".")[0] in ROOMS and not name.endswith("Error")}  # fmt: skip
    found.pop("training.Fit")  # what training has found, empty as it begins
    assert {name: taken for name, taken in found.items() if taken} == DEFAULTS


def test_numbers_of_papers_and_of_the_protocol_are_those_written_down():
    for name, told in CONSTANTS.items():
        file = importlib.import_module(f"attrobust.{name}")
        for constant, number in told.items():
            found = getattr(file, constant)
            assert found == number or found == pytest.approx(number, rel=1e-12, abs=0), constant


def is_numbers(value):
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        return bool(value) and all(is_numbers(v) for v in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def at_the_top(file):
    """Names in capitals that a file gives to numbers, or to tables of numbers."""
    given = [node for node in ast.parse(inspect.getsource(file)).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    names = {n.id for node in given for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return {name for name in names if name.isupper() and is_numbers(getattr(file, name))}


def test_no_number_at_the_top_of_a_file_is_written_down_once():
    files = [".".join(f.relative_to(PACKAGE).with_suffix("").parts) for f in sorted(PACKAGE.rglob("*.py"))]
    found = {name: at_the_top(importlib.import_module(f"attrobust.{name}")) for name in files
             if name.split(".")[0] in COUNTED and not name.endswith("__init__")}  # fmt: skip
    told = {name: {*CONSTANTS.get(name, ()), *TABLES.get(name, ())} for name in {*CONSTANTS, *TABLES}}
    assert {name: names for name, names in found.items() if names} == told


def test_the_radii_and_the_sizes_of_transformers_are_those_that_rows_were_computed_at():
    places = sorted((*place, float(radius)) for place, radius in experiment.RADII.items())
    assert (
        hashlib.sha256(repr(places).encode()).hexdigest()[:16] == "b2e230e675f56b85"
    )  # fixed by pilots, before the runs
    sizes = {name: (told["patch"], told["dim"], told["depth"]) for name, told in experiment.VITS.items()}
    assert sizes == {
        "digits": (2, 32, 2), "mnist": (7, 48, 2), "fashion_mnist": (7, 48, 2), "fashion_mnist_deep": (4, 64, 4),
        "cifar10_4k": (8, 48, 2), "cifar10_deep": (4, 128, 6),
    }  # fmt: skip
    assert experiment.TRANSFORMER == {"attention": "softmax", "patch": 2, "dim": 32, "depth": 2}
    assert experiment.Measurement().radii == (4, 8)
