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
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from attrobust import checks, curvature
from attrobust.theory import draws, duality
from attrobust.theory.stability import sampling
from attrobust.theory.tally import Cases, bound, identity, named_values, trial
from attrobust.versions import versioned

Loss = Callable[[Float[Tensor, " n"]], Float[Tensor, ""]]


def step_errors(loss: Loss, start: Float[Tensor, " n"], *, step_size: float) -> tuple[float, float]:
    """Distance of one step of descent from the flow of the loss, and from that of the modified loss, for as long.

    Barrett and Dherin 2021, "Implicit gradient regularization", section 3. Raises ValueError if `step_size` is not
    positive.

    Args:
        loss: smooth function of a float64 vector.
        start: where the step begins.
        step_size: eta, above 0; also the time the flows run.

    Example:
        >>> plain, modified = step_errors(lambda w: (w.square() / 2).sum(), torch.ones(1).double(), step_size=0.1)
        >>> modified < plain / 10
        True
    """
    checks.positive("step_size", step_size)

    def modified(w: Tensor) -> Tensor:
        return loss(w) + step_size / 4 * grad(loss)(w).square().sum()

    arrived = start - step_size * grad(loss)(start)
    return tuple(float((arrived - _flow(f, start, step_size)).norm()) for f in (loss, modified))


def batch_gradient_norms(
    gradients: Float[np.ndarray, "samples n"], batch_size: int, *, replacement: bool
) -> tuple[float, float]:
    """E|grad L_B|^2 from per-sample gradients, by listing every batch, and by the formula.

    Raises ValueError if `batch_size` is below 1, or above the number of samples without replacement.

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


@trial(version=1)
def batches(case: int) -> Cases:
    """P10: every batch out of eight images listed, and the input-gradient penalty underneath."""
    model, x, y = draws.network(case, images=8)
    first = duality.first_dense(model, x)
    gradients = duality.parameter_gradients(model, x, y, readout=curvature.cross_entropy).numpy()
    slopes = curvature.input_gradient_norm(model, x, y, readout=curvature.cross_entropy)
    inputs = float((first.extended.square().sum(1) * slopes.square()).mean()) / first.spectral**2
    for batch, replacement in ((1, True), (2, True), (3, True), (2, False), (3, False), (8, False)):
        listed, formula = batch_gradient_norms(gradients, batch, replacement=replacement)
        yield identity("P10", "listed batches and formula", listed, formula)
        rho = sampling(8, batch, replacement=replacement)
        yield bound("P10", "input-gradient penalty", rho * inputs, listed)


@versioned(1)
@named_values
def orders(seeds: Sequence[int], step_sizes: Sequence[float]) -> Iterator[tuple[dict, dict]]:
    """Error of one step of descent against the flows of the loss and of the modified loss."""
    for seed in seeds:
        g = draws.Source(seed)
        a, w = g.normal(6, 6), g.normal(6)
        for step in step_sizes:
            plain, modified = step_errors(lambda v, a=a: torch.tanh(a @ v).square().sum(), w, step_size=step)
            named = {"flow of the loss": plain, "flow of the modified loss": modified}
            yield {"case": seed, "step_size": step}, named


def _flow(loss: Loss, start: Tensor, time: float) -> Tensor:
    """End of the gradient flow w' = -grad loss(w): 16 classical Runge-Kutta steps, exact to rounding (our choice)."""
    slope, w, h = grad(loss), start, time / 16
    for _ in range(16):
        a = -slope(w)
        b = -slope(w + h / 2 * a)
        c = -slope(w + h / 2 * b)
        d = -slope(w + h * c)
        w = w + h / 6 * (a + 2 * b + 2 * c + d)
    return w
