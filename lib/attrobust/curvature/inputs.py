"""Curvature of a network in its pixels, per image: how fast the gradient map can turn.

    input curvature     |H|_2              largest absolute eigenvalue of the Hessian H of the readout
    relative curvature  |P H|_2 / |g|      g the gradient, P the projection that removes its direction

The first bounds how far a saliency map moves per unit of input change, in absolute terms. Scale-free
similarities (cosine, ranks) see the second: the angle of the map turns at most this fast. Both ends of the
spectrum, its trace and its Frobenius norm say what kind of bend it is. Each is of one `InputHessian(model, x, y,
readout=...)`, whose graph they share; the readout is any of `models.readouts` or of the reader's own.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrobust.curvature.estimate import Estimate
from attrobust.curvature.lanczos import lanczos
from attrobust.curvature.products import InputHessian
from attrobust.curvature.traces import moments
from attrobust.models.readouts import Readout, logit

Images = Float[Tensor, "batch *shape"]


def input_gradient_norm(
    model: nn.Module, x: Images, y: Int[Tensor, " batch"], *, readout: Readout = logit
) -> Float[Tensor, " batch"]:
    """Euclidean length of the readout's gradient at each image."""
    return InputHessian(model, x, y, readout=readout).gradient.flatten(1).norm(dim=1)


def input_extremes(
    hessian: InputHessian,
    *,
    generator: torch.Generator,
    steps: int = 15,
    tolerance: float = 0.0,
) -> tuple[Estimate, Estimate]:
    """Lowest and highest eigenvalue of the readout's Hessian at each image, from the same products.

    Args:
        hessian: of the readout at the images.
        generator: of the starting vectors.
        steps: most Lanczos products; 15 reach a relative error near 1e-8 on small networks.
        tolerance: stop when both ends of every image have a residual below this share of the larger one.
    """
    ends = lanczos(hessian.matvec, _start(hessian.x, generator), steps=steps, tolerance=tolerance, both=True)
    low = Estimate(ends.low, ends.low_error, ends.products, ends.low_vector)
    return low, Estimate(ends.high, ends.high_error, ends.products, ends.high_vector)


def input_moments(
    hessian: InputHessian, *, generator: torch.Generator, products: int = 30
) -> tuple[Estimate, Estimate]:
    """Trace and Frobenius norm of the readout's Hessian at each image, by Hutch++ with standard errors.

    Args:
        hessian: of the readout at the images.
        generator: of the random signs.
        products: budget, at least 6.
    """
    return moments(hessian.matvec, hessian.x.flatten(1), products=products, generator=generator)


def input_curvature(hessian: InputHessian, *, generator: torch.Generator, steps: int = 15) -> Estimate:
    """Largest absolute eigenvalue of the readout's Hessian in the pixels, at each image.

    Args:
        hessian: of the readout at the images.
        generator: of the starting vectors.
        steps: Lanczos products; 15 reach a relative error near 1e-8 on small networks.

    Returns:
        Estimate, one value and one residual bound per image.
    """
    ends = lanczos(hessian.matvec, _start(hessian.x, generator), steps=steps)
    upper = ends.high.abs() >= ends.low.abs()
    value = torch.where(upper, ends.high.abs(), ends.low.abs())
    return Estimate(value, torch.where(upper, ends.high_error, ends.low_error), ends.products)


def relative_curvature(hessian: InputHessian, *, generator: torch.Generator, steps: int = 15) -> Estimate:
    """Spectral norm of the part of the Hessian that turns the gradient, over the gradient's length.

    Lanczos runs on H P H, whose top eigenvalue is |P H|_2^2; each step costs two products.

    Args:
        hessian: of the readout at the images.
        generator: of the starting vectors.
        steps: Lanczos steps.

    Returns:
        Estimate in 1 / pixel units, per image; infinite where the gradient vanishes and the Hessian does not.
    """
    g = hessian.gradient.flatten(1)
    length = g.norm(dim=1)
    unit = g / torch.where(length > 0, length, torch.ones_like(length))[:, None]

    def turn_squared(v: Tensor) -> Tensor:
        w = hessian.matvec(v)
        return hessian.matvec(w - (w * unit).sum(1, keepdim=True) * unit)

    ends = lanczos(turn_squared, _start(hessian.x, generator), steps=steps)
    norm = ends.high.clamp_min(0).sqrt()
    # |sqrt(a) - sqrt(b)| <= |a - b| / sqrt(a) turns the bound on the square into one on the norm.
    error = torch.where(norm > 0, ends.high_error / norm, ends.high_error.sqrt())
    value = torch.where(norm == 0, torch.zeros_like(norm), norm / length)
    return Estimate(value, torch.where(norm == 0, torch.zeros_like(norm), error / length), 2 * ends.products)


def _start(x: Images, generator: torch.Generator) -> Tensor:
    flat = x.flatten(1)
    return torch.randn(flat.shape, dtype=x.dtype, device=generator.device, generator=generator).to(x.device)
