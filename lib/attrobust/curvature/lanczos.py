"""Lanczos for many symmetric matrices at once: both ends of each spectrum from a handful of products.

    A Q = Q T + beta q e^T,   |A y - theta y| = beta |s_last|   for a Ritz pair (theta, y = Q s) of T

Bases are fully re-orthogonalised (twice is enough, Kahan and Parlett); a spectrum with two signs is no problem,
unlike for power iteration, which the logit Hessian of a network defeats.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attrobust import checks


@dataclass(frozen=True)
class Ends:
    """Lowest and highest Ritz value of each matrix, with residual bounds, and the vector of the highest."""

    low: Float[Tensor, " batch"]
    high: Float[Tensor, " batch"]
    low_error: Float[Tensor, " batch"]
    high_error: Float[Tensor, " batch"]
    high_vector: Float[Tensor, "batch n"]
    products: int


def lanczos(
    matvec: Callable[[Float[Tensor, "batch n"]], Float[Tensor, "batch n"]],
    start: Float[Tensor, "batch n"],
    *,
    steps: int,
    tolerance: float = 0.0,
) -> Ends:
    """Both ends of the spectrum of a batch of symmetric matrices.

    Args:
        matvec: multiplies row i of its argument with matrix i.
        start: one starting vector per matrix, not zero.
        steps: most products spent, at least 1.
        tolerance: stop when every matrix's highest Ritz value has a residual below this share of the largest
            absolute Ritz value; 0 spends all steps.

    Returns:
        Ends; an exact invariant subspace ends the recursion early with a zero bound.

    Raises:
        ValueError: if `steps` or `tolerance` is out of range.

    Example:
        >>> a = torch.diag(torch.tensor([3.0, 1.0, -2.0]))
        >>> ends = lanczos(lambda v: v @ a, torch.ones(1, 3), steps=3)
        >>> round(ends.low.item(), 4), round(ends.high.item(), 4)
        (-2.0, 3.0)

    Reference: Paige 1972; Kuczynski and Wozniakowski 1992 (random start).
    """
    checks.count("steps", steps)
    checks.at_least("tolerance", tolerance, 0)
    tiny = torch.finfo(start.dtype).eps
    q = start / start.norm(dim=1, keepdim=True)
    basis, diagonal, off = [q], [], []
    scale = torch.zeros_like(q[:, 0])
    for step in range(min(steps, start.shape[1])):
        w = matvec(basis[-1])
        alpha = (w * basis[-1]).sum(1)
        w = w - alpha[:, None] * basis[-1]
        stack = torch.stack(basis, 1)
        for _ in range(2):
            w = w - torch.einsum("bkn,bk->bn", stack, torch.einsum("bkn,bn->bk", stack, w))
        beta = w.norm(dim=1)
        diagonal.append(alpha)
        scale = torch.maximum(scale, torch.maximum(alpha.abs(), beta))
        beta = torch.where(beta > 10 * tiny * scale, beta, torch.zeros_like(beta))
        last = step == min(steps, start.shape[1]) - 1
        ends = _ritz(diagonal, off, beta, basis, step + 1)
        largest = torch.maximum(ends.low.abs(), ends.high.abs())
        if last or bool((beta == 0).all()) or (tolerance and bool((ends.high_error <= tolerance * largest).all())):
            return ends
        off.append(beta)
        basis.append(torch.where(beta[:, None] > 0, w / beta.clamp_min(torch.finfo(w.dtype).tiny)[:, None], 0 * w))
    raise AssertionError("unreachable")


def _ritz(diagonal: list[Tensor], off: list[Tensor], beta: Tensor, basis: list[Tensor], products: int) -> Ends:
    t = torch.diag_embed(torch.stack(diagonal, 1))
    if off:
        side = torch.diag_embed(torch.stack(off, 1), offset=1)
        t = t + side + side.mT
    values, vectors = torch.linalg.eigh(t)
    # A matrix whose recursion ended early is padded with zeros; those Ritz values have no weight on the start vector.
    weight = vectors[:, 0].abs() > torch.finfo(t.dtype).eps * 10
    high = torch.where(weight, values, -torch.inf).argmax(1, keepdim=True)
    low = torch.where(weight, values, torch.inf).argmin(1, keepdim=True)
    residual = beta[:, None] * vectors[:, -1].abs()
    pick = vectors.gather(2, high[:, None].expand(-1, t.shape[1], 1))[..., 0]
    return Ends(
        low=values.gather(1, low)[:, 0],
        high=values.gather(1, high)[:, 0],
        low_error=residual.gather(1, low)[:, 0],
        high_error=residual.gather(1, high)[:, 0],
        high_vector=torch.einsum("bk,bkn->bn", pick, torch.stack(basis, 1)),
        products=products,
    )
