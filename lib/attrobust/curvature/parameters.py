"""Curvature of the mean loss in the parameters: how flat the minimum is."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust.curvature.density import Density, slq
from attrobust.curvature.estimate import Estimate
from attrobust.curvature.lanczos import lanczos
from attrobust.curvature.products import ParameterHessian, PerExampleLoss
from attrobust.curvature.traces import hutchpp, moments

#: Random part mixed into a warm start, relative to its length (our choice, see `sharpness`).
FRESH = 0.1


def sharpness(
    model: nn.Module,
    loss: PerExampleLoss,
    x: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator,
    steps: int = 40,
    tolerance: float = 1e-3,
    start: Float[Tensor, " n"] | None = None,
    hessian: ParameterHessian | None = None,
) -> Estimate:
    """Largest eigenvalue of the Hessian of the mean loss.

    Args:
        model: network in eval mode.
        loss: (outputs, y) -> one loss per example.
        x: examples the mean is taken over.
        y: their labels.
        generator: of the starting vector.
        steps: most products spent; the top eigenvalue is isolated and takes 6 to 12.
        tolerance: residual, relative to the eigenvalue, at which Lanczos stops.
        start: `vector` of an earlier Estimate: along a training run it saves products, more where it is closer. It
            follows that eigenvector, so where another one overtakes it the value lags for a while, within reach
            of the random part that is mixed in; start cold now and then.
        hessian: a ParameterHessian built before, to share its kept graph.

    Returns:
        Estimate with the residual bound as `error`: an exact eigenvalue lies within it.

    Reference: Cohen et al. 2021, "Gradient descent on neural networks typically occurs at the edge of stability".
    """
    hessian = hessian or ParameterHessian(model, loss, x, y)
    ends = lanczos(hessian.matvec, _start(hessian, generator, start), steps=steps, tolerance=tolerance)
    return Estimate(float(ends.high[0]), float(ends.high_error[0]), ends.products, ends.high_vector[0])


def extremes(
    model: nn.Module,
    loss: PerExampleLoss,
    x: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator,
    steps: int = 60,
    tolerance: float = 1e-2,
    start: Float[Tensor, " n"] | None = None,
    hessian: ParameterHessian | None = None,
) -> tuple[Estimate, Estimate]:
    """Lowest and highest eigenvalue of the Hessian of the mean loss, from the same products.

    Both residuals are below `tolerance` times the larger of the two sizes. The arguments are those of `sharpness`.
    """
    hessian = hessian or ParameterHessian(model, loss, x, y)
    begin = _start(hessian, generator, start)
    ends = lanczos(hessian.matvec, begin, steps=steps, tolerance=tolerance, both=True)
    low = Estimate(float(ends.low[0]), float(ends.low_error[0]), ends.products, ends.low_vector[0])
    return low, Estimate(float(ends.high[0]), float(ends.high_error[0]), ends.products, ends.high_vector[0])


def trace(
    model: nn.Module,
    loss: PerExampleLoss,
    x: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator,
    products: int = 30,
    hessian: ParameterHessian | None = None,
) -> Estimate:
    """Trace of the Hessian of the mean loss, by Hutch++, with its standard error.

    Args:
        model: network in eval mode.
        loss: (outputs, y) -> one loss per example.
        x: examples the mean is taken over.
        y: their labels.
        generator: of the random signs.
        products: budget, at least 6; 30 gives about one per cent on trained networks.
        hessian: a ParameterHessian built before, to share its kept graph.
    """
    hessian = hessian or ParameterHessian(model, loss, x, y)
    return hutchpp(hessian.matvec, hessian.size, products=products, generator=generator, dtype=hessian.dtype)


def frobenius(
    model: nn.Module,
    loss: PerExampleLoss,
    x: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator,
    products: int = 30,
    hessian: ParameterHessian | None = None,
) -> Estimate:
    """Frobenius norm of the Hessian of the mean loss, with its standard error; the arguments are those of `trace`."""
    hessian = hessian or ParameterHessian(model, loss, x, y)
    like = torch.empty(1, hessian.size, dtype=hessian.dtype, device=hessian.device)
    _, norm = moments(hessian.matvec, like, products=products, generator=generator)
    return Estimate(float(norm.value), float(norm.error), products)


def spectral_density(
    model: nn.Module,
    loss: PerExampleLoss,
    x: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator,
    probes: int = 4,
    steps: int = 30,
    hessian: ParameterHessian | None = None,
) -> Density:
    """Density of the Hessian's eigenvalues by stochastic Lanczos quadrature.

    Args:
        model: network in eval mode.
        loss: (outputs, y) -> one loss per example.
        x: examples the mean is taken over.
        y: their labels.
        generator: of the probes.
        probes: starting vectors.
        steps: products per probe.
        hessian: a ParameterHessian built before, to share its kept graph.
    """
    hessian = hessian or ParameterHessian(model, loss, x, y)
    return slq(hessian.matvec, _draw(hessian, generator, rows=probes), steps=steps)


def _start(hessian: ParameterHessian, generator: torch.Generator, warm: Tensor | None) -> Tensor:
    draw = _draw(hessian, generator)
    if warm is None:
        return draw
    if warm.shape != (hessian.size,):
        raise ValueError(f"start has shape {tuple(warm.shape)}; it must be one vector of {hessian.size} entries")
    return (warm / warm.norm()).to(draw)[None] + FRESH * draw / draw.norm()


def _draw(hessian: ParameterHessian, generator: torch.Generator, *, rows: int = 1) -> Tensor:
    shape = (rows, hessian.size)
    return torch.randn(shape, dtype=hessian.dtype, device=generator.device, generator=generator).to(hessian.device)
