"""What a step size does: where it lets SGD stay (P8), and which loss it follows (P10).

Near an interpolating minimum with per-sample Hessians H_i (positive semi-definite, H their mean), SGD is z <- (I - eta
H^) z with H^ the mean over a random batch, and E z z^T evolves by the linear map

    T(M) = E[(I - eta H^) M (I - eta H^)] = M - eta (H M + M H) + eta^2 [(1 - rho) H M H + rho mean_i H_i M H_i]

with rho = 1/B for batches drawn with replacement, (n - B) / (B (n - 1)) without. T is self-adjoint, so the second
moment stays bounded from every start iff the largest eigenvalue of T is at most 1; the test matrix M = I gives

    eta E|H^|_F^2 <= 2 tr H,     and with rank H_i <= C:     tr H <= 2 C / (eta rho)  ( = 2 B C / eta )

Thresholds: Wu et al. 2018, Ma and Ying 2021, Mulayoff and Michaeli 2024 (a closed form); the short trace form is ours.

Gradient descent with step eta follows, up to O(eta^3) per step, the gradient flow of L + (eta / 4) |grad L|^2 (Barrett
and Dherin 2021; for SGD with random reshuffling Smith et al. 2021), and only up to O(eta^2) that of L. For one batch of
size B the added term is exactly E|grad L_B|^2 = (1 - rho) |grad L|^2 + rho mean_i |grad loss_i|^2; with P2 its second
part is a penalty on input gradients (ours).
"""

from collections.abc import Callable, Sequence
from itertools import combinations, product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from attrobust import checks, curvature
from attrobust.models import readouts
from attrobust.theory import draws, duality
from attrobust.theory.tally import Cases, NamedValues, bound, identity, named_values, trial

Hessians = Float[np.ndarray, "samples n n"]
Operator = Float[np.ndarray, "nn nn"]
Loss = Callable[[Float[Tensor, " n"]], Float[Tensor, ""]]


def sampling(samples: int, batch_size: int, *, replacement: bool = True) -> float:
    """rho, the share of per-sample noise that a batch keeps; 1 for a single sample, 0 for all without replacement.

    Raises:
        ValueError: a batch that is empty or, without replacement, larger than the sample.

    Example:
        >>> sampling(4, 1), sampling(4, 4, replacement=False)
        (1.0, 0.0)
    """
    checks.count("samples", samples)
    checks.count("batch_size", batch_size, most=None if replacement else samples)
    if replacement:
        return 1 / batch_size
    return (samples - batch_size) / (batch_size * (samples - 1)) if samples > 1 else 0.0


def second_moment_operator(hessians: Hessians, *, step_size: float, rho: float) -> Operator:
    """Matrix of T on row-major vectors of M, for symmetric positive semi-definite Hessians and rho from `sampling`.

    Example:
        >>> hessians = np.array([[[1.0]], [[3.0]]])
        >>> second_moment_operator(hessians, step_size=0.1, rho=0.0).round(4).tolist()  # (1 - 0.1 * 2)^2
        [[0.64]]
    """
    drift, noise = _drift_and_noise(hessians, rho)
    return np.eye(len(drift)) - step_size * drift + step_size**2 * noise


def largest_stable_step(hessians: Hessians, *, rho: float) -> float:
    """Largest step with a bounded second moment from every start, by bisection; the mean Hessian is not singular.

    Raises:
        ValueError: Hessians whose mean is singular.

    Example:
        >>> hessians = np.array([[[1.0]], [[3.0]]])
        >>> largest_stable_step(hessians, rho=0.0), round(largest_stable_step(hessians, rho=1.0), 4)
        (1.0, 0.8)
    """
    spectrum = np.linalg.eigvalsh(hessians.mean(0))
    if spectrum[0] <= 1e-10 * spectrum[-1]:
        least = f"{spectrum[0]:.2g}"
        raise ValueError(f"hessians have a mean with smallest eigenvalue {least}; it must be positive definite")
    drift, noise = _drift_and_noise(hessians, rho)
    low, high = 0.0, 2 / float(spectrum[-1])

    def stable(step: float) -> bool:
        return bool(np.linalg.eigvalsh(drift - step * noise)[0] >= 0)  # (I - T) / eta is positive semi-definite

    if stable(high):
        return high
    for _ in range(60):  # halvings that reach rounding
        middle = (low + high) / 2
        low, high = (middle, high) if stable(middle) else (low, middle)
    return (low + high) / 2


def trace_bound(*, step_size: float, rho: float, outputs: int = 1) -> float:
    """Largest trace at which SGD can stay, 2 C / (eta rho), C = `outputs`, one less for cross-entropy; inf at rho 0.

    Raises:
        ValueError: a step that is not above 0, a negative `rho`, or `outputs` below 1.

    Example:
        >>> trace_bound(step_size=0.1, rho=0.5), trace_bound(step_size=0.1, rho=0.0)
        (40.0, inf)
    """
    checks.positive("step_size", step_size)
    checks.at_least("rho", rho, 0)
    checks.count("outputs", outputs)
    return 2 * outputs / (step_size * rho) if rho else np.inf


def batch_norm_squared(hessians: Hessians, *, rho: float) -> float:
    """E|H^|_F^2 = (1 - rho) |H|_F^2 + rho mean_i |H_i|_F^2.

    Example:
        >>> hessians = np.array([[[1.0]], [[3.0]]])
        >>> batch_norm_squared(hessians, rho=0.0), batch_norm_squared(hessians, rho=1.0)
        (4.0, 5.0)
    """
    return float((1 - rho) * np.square(hessians.mean(0)).sum() + rho * np.square(hessians).sum((1, 2)).mean())


@trial(version=1)
def stable(case: int) -> Cases:
    """P8 at the exact threshold of random per-sample Hessians."""
    rng = np.random.default_rng(case)
    n, size, outputs, batch = (int(rng.integers(a, b)) for a, b in ((6, 12), (2, 6), (1, 4), (1, 5)))
    j = np.exp(rng.normal(size=(n, 1, 1))) * rng.standard_normal((n, size, outputs))
    each, rho = j @ j.mT, sampling(n, batch)
    h, eta = each.mean(0), largest_stable_step(each, rho=rho)
    part = each[:, : size // 2, : size // 2]
    for arm, hs in (("squared norm", each), ("squared norm, one block", part)):
        yield bound("P8", arm, eta * batch_norm_squared(hs, rho=rho), 2 * np.trace(hs.mean(0)))
    limit = trace_bound(step_size=eta, rho=rho, outputs=outputs)
    yield bound("P8", "trace", np.trace(h), limit)
    yield bound("P8", "fourth moment", np.square(np.trace(each, axis1=1, axis2=2)).mean(), limit**2)
    yield bound("P8", "top eigenvalue", np.linalg.eigvalsh(h)[-1], 2 / eta)
    # The spectral radius of T decides whether the second moment stays bounded.
    operators = (second_moment_operator(each, step_size=factor * eta, rho=rho) for factor in (0.99, 1.01))
    below, above = (float(np.linalg.eigvalsh(operator)[-1]) for operator in operators)
    yield bound("P8", "bounded below the threshold", below, 1.0)
    yield bound("P8", "unbounded above it", 1.0, above)


def step_errors(loss: Loss, start: Float[Tensor, " n"], *, step_size: float) -> tuple[float, float]:
    """Distance of a step of descent from the flow of a smooth loss, and from that of the modified loss, for as long.

    Raises:
        ValueError: a step that is not above 0.

    Example:
        >>> start = torch.tensor([1.0], dtype=torch.float64)
        >>> plain, modified = step_errors(lambda w: w.square().sum() / 2, start, step_size=0.1)
        >>> modified < plain / 10
        True
    """
    checks.positive("step_size", step_size)

    def modified(w: Tensor) -> Tensor:
        return loss(w) + step_size / 4 * grad(loss)(w).square().sum()

    arrived = start - step_size * grad(loss)(start)
    return tuple(float((arrived - _flow(f, start, step_size)).norm()) for f in (loss, modified))


@trial(version=1)
def batches(case: int) -> Cases:
    """P10: every batch out of eight images listed, and the input-gradient penalty underneath."""
    model, x, y = draws.network(case, images=8)
    first = duality.first_dense(model, x)
    gradients = duality.parameter_gradients(model, x, y, readout=readouts.cross_entropy).numpy()
    slopes = curvature.input_gradient_norm(model, x, y, readout=readouts.cross_entropy)
    inputs = float((first.extended.square().sum(1) * slopes.square()).mean()) / first.spectral**2
    for batch, replacement in ((1, True), (2, True), (3, True), (2, False), (3, False), (8, False)):
        rho = sampling(8, batch, replacement=replacement)
        every = product(range(8), repeat=batch) if replacement else combinations(range(8), batch)
        listed = np.mean([np.square(gradients[list(chosen)].mean(0)).sum() for chosen in every])
        formula = (1 - rho) * np.square(gradients.mean(0)).sum() + rho * np.square(gradients).sum(1).mean()
        yield identity("P10", "listed batches and formula", listed, formula)
        yield bound("P10", "input-gradient penalty", rho * inputs, listed)


@named_values(version=1)
def orders(seeds: Sequence[int], step_sizes: Sequence[float]) -> NamedValues:
    """Error of one step of descent against the flows of the loss and of the modified loss."""
    for seed in seeds:
        g = draws.Source(seed)
        a, w = g.normal(6, 6), g.normal(6)
        for step in step_sizes:
            plain, modified = step_errors(lambda v, a=a: torch.tanh(a @ v).square().sum(), w, step_size=step)
            named = {"flow of the loss": plain, "flow of the modified loss": modified}
            yield {"case": seed, "step_size": step}, named


def _drift_and_noise(hessians: Hessians, rho: float) -> tuple[Operator, Operator]:
    """The parts of T that go with eta and with its square."""
    mean, eye = hessians.mean(0), np.eye(hessians.shape[1])
    each = np.einsum("sab,scd->acbd", hessians, hessians).reshape(len(mean) ** 2, -1) / len(hessians)
    return np.kron(mean, eye) + np.kron(eye, mean), (1 - rho) * np.kron(mean, mean) + rho * each


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
