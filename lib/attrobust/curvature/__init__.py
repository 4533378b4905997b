"""Curvature in the parameters and in the pixels; every result is a small Estimate: value, error, products."""

from attrobust.curvature.estimate import Estimate
from attrobust.curvature.gauss_newton import first_layer, gauss_newton_trace, invariant_flatness
from attrobust.curvature.inputs import input_curvature, input_gradient_norm, relative_curvature
from attrobust.curvature.lanczos import Ends, lanczos
from attrobust.curvature.parameters import sharpness, trace
from attrobust.curvature.products import InputHessian, ParameterHessian, cross_entropy, logit
from attrobust.curvature.traces import hutchpp

__all__ = [
    "Ends",
    "Estimate",
    "InputHessian",
    "ParameterHessian",
    "cross_entropy",
    "first_layer",
    "gauss_newton_trace",
    "hutchpp",
    "input_curvature",
    "input_gradient_norm",
    "invariant_flatness",
    "lanczos",
    "logit",
    "relative_curvature",
    "sharpness",
    "trace",
]
