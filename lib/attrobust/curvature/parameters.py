"""Curvature of the mean loss in the parameters: how flat the minimum is.

Every estimate is of one `ParameterHessian`, whose graph they share. All but the trace, which looks at the network
behind it, need nothing but products and take any operator with `matvec`, `size`, `dtype` and `device`.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from attrobust import checks
from attrobust.curvature import factored, guards
from attrobust.curvature.chain import layers_of, walks
from attrobust.curvature.products import ParameterHessian
from attrobust.curvature.spectra import Density, Estimate, lanczos, moments, normal, slq

Vector = Float[Tensor, " n"]

#: Random part mixed into a warm start, relative to its length (our choice, see `sharpness`).
FRESH = 0.1


@runtime_checkable
class Symmetric(Protocol):
    """A symmetric matrix that multiplies."""

    size: int
    dtype: torch.dtype
    device: torch.device

    def matvec(self, v: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The matrix times each row of `v`."""


def sharpness(
    hessian: Symmetric, *, generator: Generator, steps: int = 40, tolerance: float = 1e-3, start: Vector | None = None
) -> Estimate:
    """Largest eigenvalue of the Hessian of the mean loss; an exact one lies within `error` of it, the residual bound.

    Lanczos stops at `tolerance`, the residual relative to the eigenvalue, or after `steps` products; the top eigenvalue
    is isolated and takes 6 to 12. To `start` from the `vector` of an earlier Estimate saves products along a training
    run. Where another eigenvector overtakes it the value lags for a while, within reach of the random part that is
    mixed in; start cold now and then. (Cohen et al. 2021, "Gradient
    descent on neural networks typically occurs at the edge of stability".)

    Raises:
        ValueError: `steps` below 1, a negative `tolerance`, or a `start` of another size.

    Example:
        >>> from torch import nn
        >>> net, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> h = ParameterHessian(net, lambda out, y: (out - y).square()[:, 0], x, x[:, :1])
        >>> round(sharpness(h, generator=Generator()).value, 3)  # of the matrix diag(1, 4)
        4.0
    """
    return _ends(hessian, generator, start, steps=steps, tolerance=tolerance)[1]


def extremes(
    hessian: Symmetric, *, generator: Generator, steps: int = 60, tolerance: float = 1e-2, start: Vector | None = None
) -> tuple[Estimate, Estimate]:
    """Lowest and highest eigenvalue of the Hessian of the mean loss, from the same products.

    Both residuals are below `tolerance` times the larger of the two sizes. The arguments are those of `sharpness`.

    Raises:
        ValueError: `steps` below 1, a negative `tolerance`, or a `start` of another size.

    Example:
        >>> from torch import nn
        >>> net, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> h = ParameterHessian(net, lambda out, y: (out - y).square()[:, 0], x, x[:, :1])
        >>> [round(end.value, 3) for end in extremes(h, generator=Generator())]
        [1.0, 4.0]
    """
    return _ends(hessian, generator, start, steps=steps, tolerance=tolerance, both=True)


def trace(hessian: ParameterHessian, *, generator: Generator, products: int = 30) -> Estimate:
    """Trace of the Hessian of the mean loss, with its standard error.

    A chain of dense layers is exact, with error 0 and without chance. One with convolutions is exact but for the part
    of the remainder that lies below them (a few per cent as a rule), which random changes of the weights estimate,
    drawn for each example by itself; see `factored`. Any other network is multiplied, and a chain whose loss reads more
    than its output, such as a penalty of the weights: Hutch++.
    Of `products`, the budget, a chain with convolutions draws a tenth for each example, and the Estimate counts these
    and backward passes to the activations; Hutch++ spends it, and 30 give one to three per cent on trained networks.
    Fewer than 6 are refused.

    Example:
        >>> from torch import nn
        >>> net, x = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3)), torch.zeros(4, 2)
        >>> h = ParameterHessian(net, lambda out, y: (out - y).square().sum(1), x, torch.ones(4, 3))
        >>> trace(h, generator=Generator()).error
        0.0
    """
    checks.kind("hessian", hessian, ParameterHessian)
    checks.count("products", products, least=6)
    guards.mode()
    hessian.unchanged()
    layers = layers_of(hessian.model, hessian.x[:1])
    if layers:
        hessian.audit(order=2)
    if not layers or not hessian.of_outputs:
        return moments(hessian.matvec, _rows(hessian, 1), products=products, generator=generator)[0].single()
    asked = set(hessian.parameters)
    total, variance, spent = 0.0, 0.0, 0
    for links, y in walks(layers, hessian.x, hessian.y):
        slope, factor = factored.logit_factor(hessian.loss, links[-1].leaving, y)
        remainder = factored.Remainder(links, slope, asked)
        total += float((factored.gauss_newton(links, factor, asked) + remainder.exact()).sum())
        spent = slope.shape[1] + 1
        if remainder.random:
            mean, spread = remainder.sampled(probes=products // 10, generator=generator)
            total, variance, spent = total + float(mean.sum()), variance + float(spread.sum()), spent + products // 10
    count = len(hessian.x)
    return Estimate(total / count, variance**0.5 / count, spent)


def frobenius(hessian: Symmetric, *, generator: Generator, products: int = 30) -> Estimate:
    """Frobenius norm of the Hessian of the mean loss, with its standard error, from a budget of 6 products or more.

    Raises:
        ValueError: `products` below 6.

    Example:
        >>> from torch import nn
        >>> net, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> h = ParameterHessian(net, lambda out, y: (out - y).square()[:, 0], x, x[:, :1])
        >>> round(frobenius(h, generator=Generator()).value ** 2, 3)  # 1^2 + 4^2
        17.0
    """
    return moments(hessian.matvec, _rows(hessian, 1), products=products, generator=generator)[1].single()


def spectral_density(hessian: Symmetric, *, generator: Generator, probes: int = 4, steps: int = 30) -> Density:
    """Density of the Hessian's eigenvalues by stochastic Lanczos quadrature, `steps` products for each probe.

    Raises:
        ValueError: `probes` below 1, or `steps` below 2.

    Example:
        >>> from torch import nn
        >>> net, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> h = ParameterHessian(net, lambda out, y: (out - y).square()[:, 0], x, x[:, :1])
        >>> found = spectral_density(h, generator=Generator(), probes=1, steps=2)
        >>> [round(node, 3) for node in found.nodes[0].tolist()]
        [1.0, 4.0]
    """
    start = normal(_rows(hessian, checks.count("probes", probes)), generator)
    return slq(hessian.matvec, start, steps=steps)


def _ends(hessian: Symmetric, generator: Generator, start: Tensor | None, **how: float) -> tuple[Estimate, Estimate]:
    begin = normal(_rows(hessian, 1), generator)
    if start is not None:
        if checks.floating("start", start).shape != (hessian.size,):
            raise ValueError(f"start has shape {tuple(start.shape)}; it must be one vector of {hessian.size} entries")
        begin = (start / start.norm()).to(begin)[None] + FRESH * begin / begin.norm()
    low, high = lanczos(hessian.matvec, begin, **how)
    return low.single(), high.single()


def _rows(hessian: Symmetric, rows: int) -> Tensor:
    checks.kind("hessian", hessian, Symmetric)
    return torch.empty(rows, hessian.size, dtype=hessian.dtype, device=hessian.device)
