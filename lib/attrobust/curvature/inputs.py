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

from attrobust.curvature.products import InputHessian
from attrobust.curvature.spectra import Estimate, lanczos, moments
from attrobust.models.readouts import Readout, logit

Images = Float[Tensor, "batch *shape"]


def input_gradient_norm(
    model: nn.Module, x: Images, y: Int[Tensor, " batch"], *, readout: Readout = logit
) -> Float[Tensor, " batch"]:
    """Euclidean length of the readout's gradient at each image."""
    return InputHessian(model, x, y, readout=readout).gradient.flatten(1).norm(dim=1)


def input_extremes(
    hessian: InputHessian, *, generator: torch.Generator, steps: int = 15, tolerance: float = 0.0
) -> tuple[Estimate, Estimate]:
    """Lowest and highest eigenvalue of the readout's Hessian at each image, from the same products.

    Args:
        hessian: of the readout at the images.
        generator: of the starting vectors.
        steps: most Lanczos products; 15 reach a relative error near 1e-8 on small networks.
        tolerance: stop when both ends of every image have a residual below this share of the larger one.
    """
    return lanczos(hessian.matvec, _start(hessian.x, generator), steps=steps, tolerance=tolerance, both=True)


def input_moments(
    hessian: InputHessian, *, generator: torch.Generator, products: int = 30
) -> tuple[Estimate, Estimate]:
    """Trace and Frobenius norm of the readout's Hessian at each image, by Hutch++ from 6 products or more."""
    return moments(hessian.matvec, hessian.x.flatten(1), products=products, generator=generator)


def input_curvature(hessian: InputHessian, *, generator: torch.Generator, steps: int = 15) -> Estimate:
    """Largest absolute eigenvalue of the readout's Hessian in the pixels, with its residual bound, at each image."""
    low, high = input_extremes(hessian, generator=generator, steps=steps)
    upper = high.value.abs() >= low.value.abs()
    value = torch.where(upper, high.value.abs(), low.value.abs())
    return Estimate(value, torch.where(upper, high.error, low.error), high.products)


def relative_curvature(hessian: InputHessian, *, generator: torch.Generator, steps: int = 15) -> Estimate:
    """Spectral norm of the part of the Hessian that turns the gradient, over the gradient's length.

    Lanczos runs on H P H, whose top eigenvalue is |P H|_2^2; each step costs two products. In 1 / pixel units, per
    image; infinite where the gradient vanishes and the Hessian does not.
    """
    g = hessian.gradient.flatten(1)
    length = g.norm(dim=1)
    unit = g / torch.where(length > 0, length, torch.ones_like(length))[:, None]

    def turn_squared(v: Tensor) -> Tensor:
        w = hessian.matvec(v)
        return hessian.matvec(w - (w * unit).sum(1, keepdim=True) * unit)

    _, high = lanczos(turn_squared, _start(hessian.x, generator), steps=steps)
    norm = high.value.clamp_min(0).sqrt()
    # |sqrt(a) - sqrt(b)| <= |a - b| / sqrt(a) turns the bound on the square into one on the norm.
    error = torch.where(norm > 0, high.error / norm, high.error.sqrt())
    value, error = (torch.where(norm == 0, torch.zeros_like(norm), bound / length) for bound in (norm, error))
    return Estimate(value, error, 2 * high.products)


def _start(x: Images, generator: torch.Generator) -> Tensor:
    flat = x.flatten(1)
    return torch.randn(flat.shape, dtype=x.dtype, device=generator.device, generator=generator).to(x.device)
