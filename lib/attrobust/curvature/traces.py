"""Trace of a symmetric matrix from products: Hutch++.

    tr A = tr(Q^T A Q) + tr((I - Q Q^T) A (I - Q Q^T)),   Q = orth(A S)

The first part is exact and catches the outlying eigenvalues; Hutchinson probes estimate the small remainder
(Meyer, Musco, Musco and Woodruff 2021).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from attrobust import checks
from attrobust.curvature.estimate import Estimate


def hutchpp(
    matvec: Callable[[Float[Tensor, "batch n"]], Float[Tensor, "batch n"]],
    size: int,
    *,
    products: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Estimate:
    """Trace with its standard error.

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
    checks.count("products", products, least=6)
    third = products // 3
    if size <= third:
        eye = torch.eye(size, dtype=dtype, device=generator.device)
        return Estimate(float((matvec(eye) * eye).sum()), 0.0, size)
    q, _ = torch.linalg.qr(matvec(_signs(third, size, dtype, generator)).mT)
    exact = float((matvec(q.mT) * q.mT).sum())
    probes = _signs(products - 2 * third, size, dtype, generator)
    probes = probes - (probes @ q) @ q.mT
    samples = (matvec(probes) * probes).sum(1).double()
    return Estimate(exact + float(samples.mean()), float(samples.std(correction=1) / len(samples) ** 0.5), products)


def _signs(rows: int, size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, (rows, size), device=generator.device, generator=generator)
    return (2 * bits - 1).to(dtype)
