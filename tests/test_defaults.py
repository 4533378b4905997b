"""What is taken where nothing is said: results hang on these numbers, so they are written down a second time."""

import importlib
import inspect
import math

import pytest
import reference

ROOMS = ("attacks", "attributions", "curvature", "regularizers", "training")
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
    "training.Recipe": {
        "stop_within": 1.0, "patience": 1, "momentum": 0.0, "weight_decay": 0.0, "step_x_decay": 0.0,
        "warmup_share": 0.02, "warmup_epochs": 5.0, "label_smoothing": 0.0, "label_noise": 0.0, "shift_pixels": 1,
        "strength": 0.0, "radius": 0.0,
    },
    "training.cross_entropy": {"label_smoothing": 0.0},
    "training.fit": {"probe_every": 0},
    "training.squared": {"label_smoothing": 0.0},
}  # fmt: skip

#: Numbers of a paper, of the protocol, or of the attack that rows were made with.
CONSTANTS = {
    "attacks.audit": {"STEP": GREY, "TOLERANCE": 0.3, "FAILING": 0.2},
    "attacks.effort": {"BETAS": (5.0, 10.0, 50.0), "DIRECTIONS": 2},
    "attacks.heavy": {"FIRST": 0.22, "SHRINK": 0.03, "LEAST": 0.06, "RISING": 0.75, "NEW": 0.75},
    "attacks.objectives": {"FLATTEN": 0.5},
    "attacks.predictions": {
        "FIRST_SHARE": 0.8, "HALVINGS": (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8), "TILES": 5, "EVERY": 20,
        "LAST": 400, "RIDGE": 1e-3,
    },
    "attacks.suite": {"WALK_STEP": 1 / 16, "MOVES": 8},
    "claims.cells": {
        "FEWEST_SEEDS": 5, "HEADLINE_SEEDS": 10, "COUNTED_SHARE": 0.9, "ALPHA": 0.05, "MARGIN": 0.05,
        "RATIO_MARGIN": math.log(1.1), "ROOM": (0.2, 0.9),
    },
    "claims.mediators": {"FEWEST_CLUSTERS": 5},
    "claims.rule": {"CONFIDENCE": 0.95},
    "claims.strength": {"LIMIT": 0.02},
    "regularizers.alignment": {"LEADING": 1000 / 3072, "STEP": 5 / 8, "SHORT": 1e-4},
    "training.ingredients": {"ADVERSARIAL_STEPS": 7},
}  # fmt: skip


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
            assert getattr(file, constant) == pytest.approx(number, rel=1e-12), constant
