"""Trace and Frobenius norm of symmetric matrices from products: Hutch++.

With Q an orthonormal basis of A S, and R = (I - QQ') A (I - QQ') what the sketch S does not reach,

    tr A    = tr(Q'AQ) + tr R
    |A|_F^2 = 2 |AQ|_F^2 - |Q'AQ|_F^2 + |R|_F^2

The first parts are exact and catch the outlying eigenvalues; Hutchinson probes z estimate the small remainders,
z'Rz for the trace and |Rz|^2 for the norm (Meyer, Musco, Musco and Woodruff 2021; the norm by the same split).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from attrobust import checks
from attrobust.curvature.estimate import Estimate
from attrobust.curvature.lanczos import MatVec


def hutchpp(
    matvec: MatVec, size: int, *, products: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Estimate:
    """Trace of one matrix, with its standard error.

    Args:
        matvec: multiplies each row of its argument with the matrix.
        size: number of rows of the matrix.
        products: total budget, at least 6; a third each for sketch, exact part and probes.
        generator: of the random signs.
        dtype: of the vectors.

    Returns:
        Estimate with the standard error of the remainder as `error`; exact, with error 0, if the budget covers
        the whole space.

    Raises:
        ValueError: if `products` is below 6.

    Reference: Meyer et al. 2021, algorithm 1.
    """
    like = torch.empty(1, size, dtype=dtype, device=generator.device)
    trace, _ = moments(matvec, like, products=products, generator=generator)
    return Estimate(float(trace.value), float(trace.error), trace.products)


def moments(
    matvec: MatVec, like: Float[Tensor, "batch n"], *, products: int, generator: torch.Generator
) -> tuple[Estimate, Estimate]:
    """Trace and Frobenius norm of a batch of matrices, both from the same products.

    Args:
        matvec: multiplies row i of its argument with matrix i.
        like: gives batch, size, dtype and device; its values are not read.
        products: total budget, at least 6; a third each for sketch, exact part and probes.
        generator: of the random signs.

    Returns:
        Trace and Frobenius norm, one value and one standard error per matrix (0 where the result is exact).

    Raises:
        ValueError: if `products` is below 6.

    Example:
        >>> a = torch.diag(torch.tensor([3.0, 1.0, -2.0]))
        >>> trace, norm = moments(lambda v: v @ a, torch.ones(1, 3), products=9, generator=torch.Generator())
        >>> trace.value.tolist(), round(norm.value.item() ** 2, 3)
        ([2.0], 14.0)
    """
    checks.count("products", products, least=6)
    batch, size = like.shape
    third = products // 3

    def times(rows: Tensor) -> Tensor:
        return torch.stack([matvec(rows[:, k]) for k in range(rows.shape[1])], 1)

    if size <= third:
        eye = torch.eye(size, dtype=like.dtype, device=like.device).expand(batch, size, size)
        image = times(eye)
        none = torch.zeros(batch, dtype=like.dtype, device=like.device)
        trace = Estimate(image.diagonal(dim1=1, dim2=2).sum(1), none, size)
        return trace, Estimate(image.flatten(1).norm(dim=1), none, size)
    q, _ = torch.linalg.qr(times(_signs(third, like, generator)).mT)
    q = q.mT
    image = times(q)
    probes = _signs(products - 2 * third, like, generator)
    probes = probes - (probes @ q.mT) @ q
    found = times(probes)

    remainder = (found * probes).sum(2).double()
    trace = (image * q).sum((1, 2)) + remainder.mean(1)
    rest = (found - (found @ q.mT) @ q).square().sum(2).double()
    outlying = 2 * image.square().sum((1, 2)) - (image @ q.mT).square().sum((1, 2))
    norm = (outlying + rest.mean(1)).clamp_min(0).sqrt()
    spread = torch.where(norm > 0, _error(rest) / (2 * norm), torch.zeros_like(norm))
    return Estimate(trace, _error(remainder), products), Estimate(norm, spread, products)


def _error(samples: Tensor) -> Tensor:
    return samples.std(dim=1, correction=1) / samples.shape[1] ** 0.5


def _signs(rows: int, like: Tensor, generator: torch.Generator) -> Tensor:
    shape = (len(like), rows, like.shape[1])
    bits = torch.randint(0, 2, shape, device=generator.device, generator=generator)
    return (2 * bits - 1).to(like)
