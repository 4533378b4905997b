"""Spectral density by stochastic Lanczos quadrature: the whole spectrum from a few dozen products.

A probe z of unit length sees the measure sum_i <z, u_i>^2 delta(lambda_i), whose Gauss quadrature is read off T:
nodes are Ritz values, weights the squared first entries of T's eigenvectors. Averaged over probes:

    mean_z  sum_k w_k f(theta_k)  ->  tr f(A) / n

with f(t) = t and t^2 both exact for each probe after two steps, so trace and Frobenius norm come with it
(Golub and Welsch 1969; Ubaru, Chen and Saad 2017; for networks Ghorbani et al. 2019).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attrobust import checks
from attrobust.curvature.estimate import Estimate
from attrobust.curvature.lanczos import MatVec, krylov


@dataclass(frozen=True)
class Density:
    """Nodes and weights of the quadrature, one row a probe; the weights of a row sum to one."""

    nodes: Float[Tensor, "probes steps"]
    weights: Float[Tensor, "probes steps"]
    size: int
    products: int

    @property
    def trace(self) -> Estimate:
        """Trace, with its standard error over the probes."""
        return self._mean((self.weights * self.nodes).sum(1))

    @property
    def frobenius(self) -> Estimate:
        """Frobenius norm, with its standard error over the probes (delta method)."""
        square = self._mean((self.weights * self.nodes.square()).sum(1))
        value = math.sqrt(square.value)
        return Estimate(value, square.error / (2 * value) if value else 0.0, self.products)

    def at(self, grid: Float[Tensor, " points"], *, width: float) -> Float[Tensor, " points"]:
        """Density of the eigenvalues at each point of `grid`, every node widened to a Gaussian of this width."""
        checks.positive("width", width)
        z = (grid[:, None, None] - self.nodes) / width
        bumps = torch.exp(-z.square() / 2) / (width * math.sqrt(2 * math.pi))
        return (bumps * self.weights).sum(2).mean(1)

    def _mean(self, samples: Tensor) -> Estimate:
        samples = self.size * samples.double()
        error = float(samples.std(correction=1)) / math.sqrt(len(samples)) if len(samples) > 1 else math.inf
        return Estimate(float(samples.mean()), error, self.products)


def slq(matvec: MatVec, start: Float[Tensor, "probes n"], *, steps: int) -> Density:
    """Density of one symmetric matrix.

    Args:
        matvec: multiplies each row of its argument with the matrix.
        start: random starting vectors with independent entries of mean 0, one row a probe; a single one leaves the
            standard errors infinite.
        steps: products per probe, at least 2.

    Raises:
        ValueError: if `steps` is below 2.

    Example:
        >>> a = torch.diag(torch.tensor([3.0, 1.0, -2.0]))
        >>> found = slq(lambda v: v @ a, torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]]), steps=3)
        >>> round(found.trace.value, 4), round(found.frobenius.value ** 2, 3)
        (2.0, 14.0)
    """
    checks.count("steps", steps, least=2)
    *_, state = krylov(matvec, start, steps=steps)
    nodes, vectors = state.ritz()
    return Density(nodes, vectors[:, 0].square(), start.shape[1], len(start) * state.steps)
