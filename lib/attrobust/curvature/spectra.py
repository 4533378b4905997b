"""What products alone tell of symmetric matrices, a batch of them at once: ends, density, trace and Frobenius norm.

    Lanczos   A Q = Q T + beta q e',   |A y - theta y| = beta |s_last|   for a Ritz pair (theta, y = Q s) of T
    density   mean_z sum_k w_k f(theta_k)  ->  tr f(A) / n,   w_k the squared first entries of T's eigenvectors
    Hutch++   tr A    = tr(Q'AQ) + tr R,   R = (I - QQ') A (I - QQ'),   Q an orthonormal basis of a sketch A S
              |A|_F^2 = 2 |AQ|_F^2 - |Q'AQ|_F^2 + |R|_F^2

A spectrum with two signs is no problem, unlike for power iteration, which the logit Hessian of a network defeats.
Budgets out of range raise a ValueError in a sentence.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from attrobust import checks, similarity

MatVec = Callable[[Float[Tensor, "batch n"]], Float[Tensor, "batch n"]]


@dataclass(frozen=True)
class Estimate:
    """What every curvature function returns: a value, how wrong it may be, and what it cost.

    Example:
        >>> Estimate(torch.tensor([2.0]), torch.tensor([0.1]), products=5).single().value
        2.0
    """

    #: A number, or one per image.
    value: float | Tensor
    #: Residual bound (Lanczos), standard error (stochastic) or 0 (exact), of the value's shape.
    error: float | Tensor
    #: Matrix-vector products spent; for exact routes the gradients they took.
    products: int
    #: The Ritz vector of an eigenvalue, to start the next search from.
    vector: Tensor | None = field(default=None, repr=False, compare=False)

    def single(self) -> "Estimate":
        """The same in numbers, where the batch is one matrix."""
        vector = None if self.vector is None else self.vector[0]
        return Estimate(float(self.value), float(self.error), self.products, vector)


@dataclass(frozen=True)
class Krylov:
    """The recursion after some steps: T by its diagonal and side, next beta, basis Q; zeros where it ended early."""

    diagonal: Float[Tensor, "batch steps"]
    off: Float[Tensor, "batch less"]
    beta: Float[Tensor, " batch"]
    basis: Float[Tensor, "batch steps n"]

    def ritz(self) -> tuple[Float[Tensor, "batch steps"], Float[Tensor, "batch steps steps"]]:
        """Ritz values, ascending, and the eigenvectors of T in columns."""
        side = torch.diag_embed(self.off, offset=-1)  # eigh reads the lower triangle alone
        return torch.linalg.eigh(torch.diag_embed(self.diagonal) + side)

    def ends(self, *, vectors: bool) -> tuple[Estimate, Estimate]:
        """Lowest and highest Ritz value of each matrix with their residuals, and their Ritz vectors if asked for."""
        values, s = self.ritz()
        residual = self.beta[:, None] * s[:, -1].abs()
        # Ritz values of the zero padding have no weight on the start vector.
        weight = s[:, 0].abs() > torch.finfo(values.dtype).eps * 10

        def end(at: Tensor) -> Estimate:
            pick = s.gather(2, at[:, None].expand(-1, s.shape[1], 1))[..., 0]
            vector = torch.einsum("bk,bkn->bn", pick, self.basis) if vectors else None
            return Estimate(values.gather(1, at)[:, 0], residual.gather(1, at)[:, 0], s.shape[1], vector)

        low = end(torch.where(weight, values, torch.inf).argmin(1, keepdim=True))
        return low, end(torch.where(weight, values, -torch.inf).argmax(1, keepdim=True))


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
        for _ in range(2):  # fully re-orthogonalised: twice is enough (Kahan and Parlett)
            w = w - torch.einsum("bkn,bk->bn", basis, torch.einsum("bkn,bn->bk", basis, w))
        beta = similarity.length(w)
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
) -> tuple[Estimate, Estimate]:
    """Lowest and highest eigenvalue of each matrix of a batch, with residual bounds and Ritz vectors.

    `matvec` multiplies row i of its argument with matrix i, and row i of `start`, not zero, is where its search begins
    (Paige 1972; Kuczynski and Wozniakowski 1992 for random ones). It ends after `steps`; or when every matrix's highest
    Ritz value, and its lowest if `both` must, has a residual below `tolerance` times the largest absolute Ritz value (0
    spends all steps); or with a zero bound at an exact invariant subspace.

    Raises:
        ValueError: `steps` below 1, or a negative `tolerance`.

    Example:
        >>> matrix = torch.diag(torch.tensor([-1.0, 2.0, 5.0]))
        >>> low, high = lanczos(lambda v: v @ matrix, torch.ones(1, 3), steps=3)
        >>> round(low.value.item(), 4), round(high.value.item(), 4)
        (-1.0, 5.0)
    """
    checks.count("steps", steps)
    checks.at_least("tolerance", tolerance, 0)
    for state in krylov(matvec, start, steps=steps):
        if tolerance:
            low, high = state.ends(vectors=False)
            allowed = tolerance * torch.maximum(low.value.abs(), high.value.abs())
            if all(bool((end.error <= allowed).all()) for end in (high, low)[: 1 + both]):
                break
    return state.ends(vectors=True)


@dataclass(frozen=True)
class Density:
    """Nodes and weights of the quadrature, one row a probe; the weights of a row sum to one.

    Example:
        >>> found = Density(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.5, 0.5]]), size=2, products=2)
        >>> found.trace.value, round(found.frobenius.value**2, 4)
        (4.0, 10.0)
    """

    nodes: Float[Tensor, "probes steps"]
    weights: Float[Tensor, "probes steps"]
    size: int
    products: int

    @property
    def trace(self) -> Estimate:
        """Trace, with its standard error over the probes."""
        return self._mean(self.nodes)

    @property
    def frobenius(self) -> Estimate:
        """Frobenius norm, with its standard error over the probes (delta method)."""
        square = self._mean(self.nodes.double().square())
        value = math.sqrt(square.value)
        return Estimate(value, square.error / (2 * value) if value else 0.0, self.products)

    def at(self, grid: Float[Tensor, " points"], *, width: float) -> Float[Tensor, " points"]:
        """Density of the eigenvalues at each point of `grid`, every node widened to a Gaussian of this width."""
        checks.positive("width", width)
        z = (grid[:, None, None] - self.nodes) / width
        bumps = torch.exp(-z.square() / 2) / (width * math.sqrt(2 * math.pi))
        return (bumps * self.weights).sum(2).mean(1)

    def _mean(self, of_nodes: Tensor) -> Estimate:
        """Estimate of n times the mean of a function of the eigenvalues."""
        samples = self.size * (self.weights * of_nodes).sum(1).double()
        error = float(_standard_error(samples)) if len(samples) > 1 else math.inf
        return Estimate(float(samples.mean()), error, self.products)


def slq(matvec: MatVec, start: Float[Tensor, "probes n"], *, steps: int) -> Density:
    """Spectral density of one matrix by stochastic Lanczos quadrature: the whole spectrum from a few dozen products.

    A probe z of unit length sees the measure sum_i <z, u_i>^2 delta(lambda_i), whose Gauss quadrature is read off T.
    It is exact for f(t) = t and t^2 after two steps, so trace and Frobenius norm come with it. Probes are random with
    independent entries of mean 0; a single one leaves the standard errors infinite. (Golub and Welsch 1969; Ubaru, Chen
    and Saad 2017; for networks Ghorbani et al. 2019.) Each spends `steps` products, 2 or more.

    Raises:
        ValueError: `steps` below 2.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 3.0]))
        >>> found = slq(lambda v: v @ matrix, torch.ones(1, 2), steps=2)
        >>> [round(node, 4) for node in found.nodes[0].tolist()], round(found.trace.value, 4)
        ([1.0, 3.0], 4.0)
    """
    checks.count("steps", steps, least=2)
    *_, state = krylov(matvec, start, steps=steps)
    nodes, vectors = state.ritz()
    return Density(nodes, vectors[:, 0].square(), start.shape[1], nodes.numel())


def moments(
    matvec: MatVec, like: Float[Tensor, "batch n"], *, products: int, generator: Generator
) -> tuple[Estimate, Estimate]:
    """Trace and Frobenius norm of each matrix of a batch by Hutch++, both from the same products.

    The first parts of the formulas above are exact and catch the outlying eigenvalues; Hutchinson probes z estimate
    the small remainders, z'Rz for the trace and |Rz|^2 for the norm (Meyer, Musco, Musco and Woodruff 2021, algorithm
    1; the norm by the same split). Errors are standard errors of these, and 0 where the budget covers the whole space.
    Of `products`, 6 or more, sketch, exact part and probes take a third each. `like` gives batch, size, dtype and
    device; its values are not read.

    Raises:
        ValueError: `products` below 6.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 2.0]))
        >>> found, norm = moments(lambda v: v @ matrix, torch.ones(1, 2), products=6, generator=Generator())
        >>> round(found.value.item(), 4), round(norm.value.item() ** 2, 4)
        (3.0, 5.0)
    """
    checks.count("products", products, least=6)
    batch, size = like.shape
    third = products // 3

    power = torch.zeros(batch, 1, dtype=torch.int32, device=like.device)

    def times(rows: Tensor) -> Tensor:
        return similarity.times(torch.stack([matvec(rows[:, k]) for k in range(rows.shape[1])], 1), -power[..., None])

    if size <= third:
        image = times(torch.eye(size, dtype=like.dtype, device=like.device).expand(batch, size, size))
        none = torch.zeros(batch, dtype=like.dtype, device=like.device)
        trace = Estimate(image.diagonal(dim1=1, dim2=2).sum(1), none, size)
        return trace, Estimate(similarity.length(image.flatten(1)), none, size)
    sketch = times(signs((batch, third, size), like, generator))
    power = similarity.exponent(sketch.flatten(1))  # squares of a matrix of 1e-25 vanish in single precision
    q = torch.linalg.qr(similarity.times(sketch, -power[..., None]).mT)[0].mT
    image = times(q)
    probes = signs((batch, products - 2 * third, size), like, generator)
    probes = probes - (probes @ q.mT) @ q
    found = times(probes)

    remainder = (found * probes).sum(2).double()
    trace = (image * q).sum((1, 2)) + remainder.mean(1)
    rest = (found - (found @ q.mT) @ q).square().sum(2).double()
    outlying = 2 * image.square().sum((1, 2)) - (image @ q.mT).square().sum((1, 2))
    norm = (outlying + rest.mean(1)).clamp_min(0).sqrt()
    spread = torch.where(norm > 0, _standard_error(rest) / (2 * norm), torch.zeros_like(norm))
    parts = (trace, _standard_error(remainder), norm, spread)
    trace, off, norm, spread = (similarity.times(part, power[:, 0]) for part in parts)
    return Estimate(trace, off, products), Estimate(norm, spread, products)


def signs(shape: tuple[int, ...], like: Tensor, generator: Generator) -> Tensor:
    """Random signs of this shape, with dtype and device of `like`."""
    checks.kind("generator", generator, Generator)
    return 2 * torch.randint(0, 2, shape, device=generator.device, generator=generator).to(like) - 1


def normal(like: Tensor, generator: Generator) -> Tensor:
    """Standard normal numbers with shape, dtype and device of `like`."""
    checks.kind("generator", generator, Generator)
    return torch.randn(like.shape, dtype=like.dtype, device=generator.device, generator=generator).to(like.device)


def _standard_error(samples: Tensor) -> Tensor:
    return samples.std(dim=-1, correction=1) / samples.shape[-1] ** 0.5
