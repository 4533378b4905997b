"""Curvature of a network in its pixels, per image: how fast the gradient map can turn.

    input curvature     |H|_2              largest absolute eigenvalue of the Hessian H of the readout
    relative curvature  |P H|_2 / |g|      g the gradient, P the projection that removes its direction

The first bounds how far a saliency map moves per unit of input change, in absolute terms. Scale-free
similarities (cosine, ranks) see the second: the angle of the map turns at most this fast.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrobust.curvature.estimate import Estimate
from attrobust.curvature.lanczos import lanczos
from attrobust.curvature.products import InputHessian, Readout, logit

Images = Float[Tensor, "batch channels height width"]


def input_gradient_norm(
    model: nn.Module, x: Images, y: Int[Tensor, " batch"], *, readout: Readout = logit
) -> Float[Tensor, " batch"]:
    """Euclidean length of the readout's gradient at each image."""
    return InputHessian(model, x, y, readout=readout).gradient.detach().flatten(1).norm(dim=1)


def input_curvature(
    model: nn.Module,
    x: Images,
    y: Int[Tensor, " batch"],
    *,
    generator: torch.Generator,
    readout: Readout = logit,
    steps: int = 15,
    hessian: InputHessian | None = None,
) -> Estimate:
    """Largest absolute eigenvalue of the readout's Hessian in the pixels, at each image.

    Args:
        model: network in eval mode.
        x: images, pixels in [0, 1].
        y: class each readout refers to.
        generator: of the starting vectors.
        readout: (model, x, y) -> one number per image.
        steps: Lanczos products; 15 reach a relative error near 1e-8 on small networks.
        hessian: an InputHessian built before, to share its kept graph.

    Returns:
        Estimate, one value and one residual bound per image.
    """
    hessian = hessian or InputHessian(model, x, y, readout=readout)
    ends = lanczos(hessian.matvec, _start(x, generator), steps=steps)
    upper = ends.high.abs() >= ends.low.abs()
    value = torch.where(upper, ends.high.abs(), ends.low.abs())
    return Estimate(value, torch.where(upper, ends.high_error, ends.low_error), ends.products)


def relative_curvature(
    model: nn.Module,
    x: Images,
    y: Int[Tensor, " batch"],
    *,
    generator: torch.Generator,
    readout: Readout = logit,
    steps: int = 15,
    hessian: InputHessian | None = None,
) -> Estimate:
    """Spectral norm of the part of the Hessian that turns the gradient, over the gradient's length.

    Lanczos runs on H P H, whose top eigenvalue is |P H|_2^2; each step costs two products.

    Args:
        model: network in eval mode.
        x: images, pixels in [0, 1].
        y: class each readout refers to.
        generator: of the starting vectors.
        readout: (model, x, y) -> one number per image.
        steps: Lanczos steps.
        hessian: an InputHessian built before, to share its kept graph.

    Returns:
        Estimate in 1 / pixel units, per image; infinite where the gradient vanishes and the Hessian does not.
    """
    hessian = hessian or InputHessian(model, x, y, readout=readout)
    g = hessian.gradient.detach().flatten(1)
    length = g.norm(dim=1)
    unit = g / torch.where(length > 0, length, torch.ones_like(length))[:, None]

    def turn_squared(v: Tensor) -> Tensor:
        w = hessian.matvec(v)
        return hessian.matvec(w - (w * unit).sum(1, keepdim=True) * unit)

    ends = lanczos(turn_squared, _start(x, generator), steps=steps)
    norm = ends.high.clamp_min(0).sqrt()
    # |sqrt(a) - sqrt(b)| <= |a - b| / sqrt(a) turns the bound on the square into one on the norm.
    error = torch.where(norm > 0, ends.high_error / norm, ends.high_error.sqrt())
    value = torch.where(norm == 0, torch.zeros_like(norm), norm / length)
    return Estimate(value, torch.where(norm == 0, torch.zeros_like(norm), error / length), 2 * ends.products)


def _start(x: Images, generator: torch.Generator) -> Tensor:
    flat = x.flatten(1)
    return torch.randn(flat.shape, dtype=x.dtype, device=generator.device, generator=generator).to(x.device)
