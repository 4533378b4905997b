"""Curvature in the parameters and in the pixels; every result is a small Estimate: value, error, products."""

from attrobust.curvature.gauss_newton import GaussNewton, first_layer, gauss_newton_trace, invariant_flatness
from attrobust.curvature.inputs import (
    gram_spectrum,
    input_curvature,
    input_extremes,
    input_gradient_norm,
    input_jacobian,
    input_jacobian_norm,
    input_moments,
    jacobian_of,
    relative_curvature,
)
from attrobust.curvature.parameters import extremes, frobenius, sharpness, spectral_density, trace
from attrobust.curvature.products import InputHessian, ParameterHessian
from attrobust.curvature.spectra import Density, Estimate, lanczos, moments, slq

__all__ = [
    "Density", "Estimate", "GaussNewton", "InputHessian", "ParameterHessian", "extremes", "first_layer", "frobenius",
    "gauss_newton_trace", "gram_spectrum", "input_curvature", "input_extremes", "input_gradient_norm",
    "input_jacobian", "input_jacobian_norm", "input_moments", "invariant_flatness", "jacobian_of", "lanczos", "moments",
    "relative_curvature", "sharpness", "slq", "spectral_density", "trace",
]  # fmt: skip
