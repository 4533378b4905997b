"""Implicit gradient regularisation: a finite step follows another loss (P10).

Gradient descent with step eta follows, up to O(eta^3) per step, the gradient flow of L + (eta / 4) |grad L|^2
(Barrett and Dherin 2021; for SGD with random reshuffling Smith et al. 2021), and only up to O(eta^2) that of L.
For one batch of size B the added term is, exactly,

    E|grad L_B|^2 = (1 - rho) |grad L|^2 + rho mean_i |grad loss_i|^2

with rho as in `stability.sampling`; with P2 its second part is a penalty on input gradients (ours).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from attrobust import checks, curvature
from attrobust.models import readouts
from attrobust.theory import draws, duality, tally
from attrobust.theory.stability import sampling
from attrobust.versions import versioned

Loss = Callable[[Float[Tensor, " n"]], Float[Tensor, ""]]


def step_errors(loss: Loss, start: Float[Tensor, " n"], *, step_size: float, substeps: int = 16) -> tuple[float, float]:
    """Distance of one step of gradient descent from the flows of the loss and of the modified loss.

    Args:
        loss: smooth function of a float64 vector.
        start: where the step begins.
        step_size: eta, above 0; also the time the flows run.
        substeps: Runge-Kutta steps for the flow; 16 leave it exact to rounding (our choice).

    Returns:
        Error against the plain flow and against the modified flow.

    Raises:
        ValueError: for arguments out of range.

    Example:
        >>> loss = lambda w: (w.square() / 2).sum()
        >>> plain, modified = step_errors(loss, torch.ones(1).double(), step_size=0.1)
        >>> modified < plain / 10
        True

    Reference: Barrett and Dherin 2021, "Implicit gradient regularization", section 3.
    """
    checks.positive("step_size", step_size)
    checks.count("substeps", substeps)

    def modified(w: Tensor) -> Tensor:
        return loss(w) + step_size / 4 * grad(loss)(w).square().sum()

    arrived = start - step_size * grad(loss)(start)
    ends = [_flow(f, start, step_size, substeps) for f in (loss, modified)]
    return tuple(float((arrived - end).norm()) for end in ends)


def batch_gradient_norms(
    gradients: Float[np.ndarray, "samples n"], batch_size: int, *, replacement: bool
) -> tuple[float, float]:
    """E|grad L_B|^2 by listing every batch, and by the formula.

    Args:
        gradients: per-sample gradients.
        batch_size: B, at least 1; without replacement at most the number of samples.
        replacement: whether a batch may hold a sample twice.

    Returns:
        (listed, formula).

    Raises:
        ValueError: if `batch_size` is out of range.

    Example:
        >>> listed, formula = batch_gradient_norms(np.eye(3), 2, replacement=False)
        >>> round(listed, 12) == round(formula, 12) == 0.5
        True
    """
    samples = len(gradients)
    rho = sampling(samples, batch_size, replacement=replacement)
    batches = product(range(samples), repeat=batch_size) if replacement else combinations(range(samples), batch_size)
    listed = np.mean([np.square(gradients[list(batch)].mean(0)).sum() for batch in batches])
    formula = (1 - rho) * np.square(gradients.mean(0)).sum() + rho * np.square(gradients).sum(1).mean()
    return float(listed), float(formula)


@versioned(1)
@tally.over_cases
def batches(case: int) -> Iterator[pd.DataFrame]:
    """P10: every batch out of eight images listed, and the input-gradient penalty underneath."""
    model, x, y = draws.network(case, images=8)
    first = duality.first_dense(model, x)
    gradients = duality.parameter_gradients(model, x, y, readout=readouts.cross_entropy).numpy()
    slopes = curvature.input_gradient_norm(model, x, y, readout=readouts.cross_entropy)
    inputs = float((first.extended.square().sum(1) * slopes.square()).mean()) / first.spectral**2
    for batch, replacement in ((1, True), (2, True), (3, True), (2, False), (3, False), (8, False)):
        listed, formula = batch_gradient_norms(gradients, batch, replacement=replacement)
        rho = sampling(8, batch, replacement=replacement)
        yield tally.identity("P10", "listed batches and formula", listed, formula)
        yield tally.bound("P10", "input-gradient penalty", rho * inputs, listed)


@versioned(1)
def orders(seeds: Sequence[int], step_sizes: Sequence[float]) -> pd.DataFrame:
    """Error of one step of descent against the flows of the loss and of the modified loss."""
    rows = []
    for seed in seeds:
        g = torch.Generator().manual_seed(seed)
        a, w = torch.randn(6, 6, generator=g, dtype=torch.float64), torch.randn(6, generator=g, dtype=torch.float64)
        for step in step_sizes:
            plain, modified = step_errors(lambda v, a=a: torch.tanh(a @ v).square().sum(), w, step_size=step)
            for name, error in (("flow of the loss", plain), ("flow of the modified loss", modified)):
                rows.append({"case": seed, "step_size": step, "name": name, "value": error})
    return pd.DataFrame(rows)


def _flow(loss: Loss, start: Tensor, time: float, substeps: int) -> Tensor:
    """End of the gradient flow w' = -grad loss(w), by the classical Runge-Kutta method."""
    slope, w, h = grad(loss), start, time / substeps
    for _ in range(substeps):
        a = -slope(w)
        b = -slope(w + h / 2 * a)
        c = -slope(w + h / 2 * b)
        d = -slope(w + h * c)
        w = w + h / 6 * (a + 2 * b + 2 * c + d)
    return w
