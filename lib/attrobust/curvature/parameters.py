"""Flatness of a minimum: sharpness and trace of the loss Hessian in the parameters."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrobust.curvature.estimate import Estimate
from attrobust.curvature.lanczos import lanczos
from attrobust.curvature.products import ParameterHessian, PerExampleLoss
from attrobust.curvature.traces import hutchpp

Images = Float[Tensor, "batch channels height width"]


def sharpness(
    model: nn.Module,
    loss: PerExampleLoss,
    x: Images,
    y: Int[Tensor, " batch"],
    *,
    generator: torch.Generator,
    steps: int = 40,
    tolerance: float = 1e-3,
    hessian: ParameterHessian | None = None,
) -> Estimate:
    """Largest eigenvalue of the Hessian of the mean loss.

    Args:
        model: network in eval mode.
        loss: (logits, y) -> one loss per example.
        x: images the mean is taken over.
        y: their labels.
        generator: of the starting vector.
        steps: most products spent; the top eigenvalue is isolated and takes 6 to 12.
        tolerance: residual, relative to the eigenvalue, at which Lanczos stops.
        hessian: a ParameterHessian built before, to share its kept graph.

    Returns:
        Estimate with the residual bound as `error`: an exact eigenvalue lies within it.

    Reference: Cohen et al. 2021, "Gradient descent on neural networks typically occurs at the edge of stability".
    """
    hessian = hessian or ParameterHessian(model, loss, x, y)
    start = torch.randn(1, hessian.size, dtype=x.dtype, device=generator.device, generator=generator).to(x.device)
    ends = lanczos(hessian.matvec, start, steps=steps, tolerance=tolerance)
    return Estimate(float(ends.high[0]), float(ends.high_error[0]), ends.products)


def trace(
    model: nn.Module,
    loss: PerExampleLoss,
    x: Images,
    y: Int[Tensor, " batch"],
    *,
    generator: torch.Generator,
    products: int = 30,
    hessian: ParameterHessian | None = None,
) -> Estimate:
    """Trace of the Hessian of the mean loss, by Hutch++, with its standard error.

    Args:
        model: network in eval mode.
        loss: (logits, y) -> one loss per example.
        x: images the mean is taken over.
        y: their labels.
        generator: of the random signs.
        products: budget, at least 6; 30 gives about one per cent on trained networks.
        hessian: a ParameterHessian built before, to share its kept graph.
    """
    hessian = hessian or ParameterHessian(model, loss, x, y)
    return hutchpp(hessian.matvec, hessian.size, products=products, generator=generator, dtype=x.dtype)
