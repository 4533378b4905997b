"""Lanczos for many symmetric matrices at once: both ends of each spectrum from a handful of products.

    A Q = Q T + beta q e^T,   |A y - theta y| = beta |s_last|   for a Ritz pair (theta, y = Q s) of T

Bases are fully re-orthogonalised (twice is enough, Kahan and Parlett); a spectrum with two signs is no problem,
unlike for power iteration, which the logit Hessian of a network defeats.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attrobust import checks

MatVec = Callable[[Float[Tensor, "batch n"]], Float[Tensor, "batch n"]]


@dataclass(frozen=True)
class Ends:
    """Lowest and highest Ritz value of each matrix, with residual bounds and Ritz vectors."""

    low: Float[Tensor, " batch"]
    high: Float[Tensor, " batch"]
    low_error: Float[Tensor, " batch"]
    high_error: Float[Tensor, " batch"]
    low_vector: Float[Tensor, "batch n"]
    high_vector: Float[Tensor, "batch n"]
    products: int


@dataclass(frozen=True)
class Krylov:
    """The state after some steps: T by its diagonal and side, the next beta, and the basis Q.

    A matrix whose recursion ended early (an exact invariant subspace) is padded with zeros.
    """

    diagonal: Float[Tensor, "batch steps"]
    off: Float[Tensor, "batch less"]
    beta: Float[Tensor, " batch"]
    basis: Float[Tensor, "batch steps n"]

    @property
    def steps(self) -> int:
        """Products spent."""
        return self.diagonal.shape[1]

    def ritz(self) -> tuple[Float[Tensor, "batch steps"], Float[Tensor, "batch steps steps"]]:
        """Ritz values, ascending, and the eigenvectors of T in columns."""
        side = torch.diag_embed(self.off, offset=1)
        t = torch.diag_embed(self.diagonal) + side + side.mT if self.steps > 1 else self.diagonal[..., None]
        return torch.linalg.eigh(t)


def krylov(matvec: MatVec, start: Float[Tensor, "batch n"], *, steps: int) -> Iterator[Krylov]:
    """The recursion, one state a step; it ends after `steps` or when every matrix has an invariant subspace."""
    tiny = torch.finfo(start.dtype).eps
    steps = min(steps, start.shape[1])
    # Room for sixteen vectors, doubled when it is full: most searches end sooner and never copy their basis.
    room = start.new_empty(len(start), min(steps, 16), start.shape[1])
    room[:, 0] = start / start.norm(dim=1, keepdim=True)
    diagonal, off = start.new_empty(len(start), steps), start.new_empty(len(start), steps)
    scale = torch.zeros_like(diagonal[:, 0])
    for step in range(steps):
        basis = room[:, : step + 1]
        w = matvec(basis[:, -1])
        alpha = (w * basis[:, -1]).sum(1)
        w = w - alpha[:, None] * basis[:, -1]
        for _ in range(2):
            w = w - torch.einsum("bkn,bk->bn", basis, torch.einsum("bkn,bn->bk", basis, w))
        beta = w.norm(dim=1)
        scale = torch.maximum(scale, torch.maximum(alpha.abs(), beta))
        beta = torch.where(beta > 10 * tiny * scale, beta, torch.zeros_like(beta))
        diagonal[:, step], off[:, step] = alpha, beta
        yield Krylov(diagonal[:, : step + 1], off[:, :step], beta, basis)
        if step == steps - 1 or bool((beta == 0).all()):
            return
        if step + 1 == room.shape[1]:
            room = torch.cat([room, room.new_empty(len(room), min(step + 1, steps - step - 1), room.shape[2])], 1)
        room[:, step + 1] = torch.where(beta[:, None] > 0, w / beta.clamp_min(torch.finfo(w.dtype).tiny)[:, None], 0)


def lanczos(
    matvec: MatVec, start: Float[Tensor, "batch n"], *, steps: int, tolerance: float = 0.0, both: bool = False
) -> Ends:
    """Both ends of the spectrum of a batch of symmetric matrices.

    Args:
        matvec: multiplies row i of its argument with matrix i.
        start: one starting vector per matrix, not zero.
        steps: most products spent, at least 1.
        tolerance: stop when every matrix's highest Ritz value has a residual below this share of the largest
            absolute Ritz value; 0 spends all steps.
        both: whether the lowest Ritz value must reach the tolerance too.

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
    for state in krylov(matvec, start, steps=steps):
        if tolerance and _settled(state, tolerance, both):
            break  # the state is read below
    values, vectors, residual, low, high = _ends(state)

    def vector(index: Tensor) -> Tensor:
        pick = vectors.gather(2, index[:, None].expand(-1, state.steps, 1))[..., 0]
        return torch.einsum("bk,bkn->bn", pick, state.basis)

    return Ends(
        low=values.gather(1, low)[:, 0],
        high=values.gather(1, high)[:, 0],
        low_error=residual.gather(1, low)[:, 0],
        high_error=residual.gather(1, high)[:, 0],
        low_vector=vector(low),
        high_vector=vector(high),
        products=state.steps,
    )


def _settled(state: Krylov, tolerance: float, both: bool) -> bool:
    values, _, residual, low, high = _ends(state)
    largest = torch.maximum(values.gather(1, low).abs(), values.gather(1, high).abs())
    wanted = (low, high) if both else (high,)
    return all(bool((residual.gather(1, end) <= tolerance * largest).all()) for end in wanted)


def _ends(state: Krylov) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Ritz values, vectors of T and residuals, and where the lowest and the highest value stand."""
    values, vectors = state.ritz()
    residual = state.beta[:, None] * vectors[:, -1].abs()
    # Ritz values of the zero padding have no weight on the start vector.
    weight = vectors[:, 0].abs() > torch.finfo(values.dtype).eps * 10
    low = torch.where(weight, values, torch.inf).argmin(1, keepdim=True)
    high = torch.where(weight, values, -torch.inf).argmax(1, keepdim=True)
    return values, vectors, residual, low, high
