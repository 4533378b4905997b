"""P7, P8 and P8b: what the step size and the batch size of SGD impose."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from attrobust import curvature, statements
from attrobust.theory import descent, draws, duality, modified_loss, path_norm, stability
from attrobust.trials.cases import over_cases
from attrobust.versions import versioned


@versioned(1)
@over_cases
def stable(case: int) -> Iterator[pd.DataFrame]:
    """P7 at the exact threshold of random per-sample Hessians."""
    rng = np.random.default_rng(case)
    n, size, outputs, batch = (int(rng.integers(a, b)) for a, b in ((6, 12), (2, 6), (1, 4), (1, 5)))
    j = np.exp(rng.normal(size=(n, 1, 1))) * rng.standard_normal((n, size, outputs))
    each, rho = j @ j.mT, stability.sampling(n, batch)
    h, eta = each.mean(0), stability.largest_stable_step(each, rho=rho)
    part = each[:, : size // 2, : size // 2]
    for arm, hs in (("squared norm", each), ("squared norm, one block", part)):
        norm = stability.batch_norm_squared(hs, rho=rho)
        yield statements.bound("P7", arm, eta * norm, 2 * np.trace(hs.mean(0)))
    limit = stability.trace_bound(step_size=eta, rho=rho, outputs=outputs)
    yield statements.bound("P7", "trace", np.trace(h), limit)
    yield statements.bound("P7", "fourth moment", np.square(np.trace(each, axis1=1, axis2=2)).mean(), limit**2)
    yield statements.bound("P7", "top eigenvalue", np.linalg.eigvalsh(h)[-1], 2 / eta)
    below, above = (_spectral_radius(each, factor * eta, rho) for factor in (0.99, 1.01))
    yield statements.bound("P7", "bounded below the threshold", below, 1.0)
    yield statements.bound("P7", "unbounded above it", 1.0, above)


@versioned(1)
def thresholds(seed: int, batch_sizes: Sequence[int]) -> pd.DataFrame:
    """Largest stable step against the batch size, with its two limits, for gradients spread out and alike."""
    rng, rows = np.random.default_rng(seed), []
    spread = 1.2 * rng.standard_normal((12, 6))
    alike = 2 * np.eye(6)[0] + 0.3 * rng.standard_normal((12, 6))
    for panel, j in (("gradients spread out", spread), ("gradients alike", alike)):
        each = j[:, :, None] * j[:, None]
        h = each.mean(0)
        for batch in batch_sizes:
            values = {
                "exact threshold": stability.largest_stable_step(each, rho=stability.sampling(12, batch)),
                "2 B / trace": 2 * batch / np.trace(h),
                "2 / top eigenvalue": 2 / np.linalg.eigvalsh(h)[-1],
            }
            rows += [{"panel": panel, "batch_size": batch, "name": n, "value": float(v)} for n, v in values.items()]
    return pd.DataFrame(rows)


@versioned(1)
def stability_sides(seed: int, factors: Sequence[float], updates: int) -> pd.DataFrame:
    """E|z|^2 along SGD with batches of two, for steps at these multiples of the threshold."""
    j = 1.2 * np.random.default_rng(seed).standard_normal((12, 6))
    each = j[:, :, None] * j[:, None]
    eta, parts = stability.largest_stable_step(each, rho=0.5), []
    for factor in factors:
        moment = stability.second_moment(each, step_size=factor * eta, rho=0.5, updates=updates)
        name = f"{factor:g} × threshold"
        parts.append(pd.DataFrame({"name": name, "update": range(updates + 1), "value": moment}))
    return pd.concat(parts)


@versioned(1)
def sweep(updates: int, seeds: Sequence[int]) -> pd.DataFrame:
    """Two-layer ReLU networks at the end of plain SGD: 20 points in five dimensions, labels -1 and 1."""
    rng = np.random.default_rng(0)
    x, y, fresh = rng.standard_normal((20, 5)), rng.choice([-1.0, 1.0], 20), rng.standard_normal((200, 5))
    pairs = [(step, 1) for step in (0.005, 0.01, 0.02, 0.03, 0.04, 0.06)] + [(0.04, b) for b in (2, 4, 16)]
    grid = [(step, batch, seed) for step, batch in pairs for seed in seeds]
    steps, batches, starts = zip(*grid, strict=True)
    how = {"units": 60, "updates": updates, "scale": 1.5, "stop": 1e-24}
    nets, losses = descent.descend(x, y, step_sizes=steps, batch_sizes=batches, seeds=starts, **how)
    rows = [_at_minimum(net, x, fresh, *run) for net, run in zip(nets, grid, strict=True)]
    return pd.DataFrame(rows).assign(loss=losses, settled=losses < 1e-8)


@versioned(1)
@over_cases
def batches(case: int) -> Iterator[pd.DataFrame]:
    """P8b: every batch out of eight images listed, and the input-gradient penalty underneath."""
    model, x, y = draws.network(case, images=8)
    how = {"readout": curvature.cross_entropy}
    gradients, first = duality.parameter_gradients(model, x, y, **how).numpy(), duality.first_dense(model, x)
    slopes = curvature.input_gradient_norm(model, x, y, **how)
    inputs = float((first.extended.square().sum(1) * slopes.square()).mean()) / first.spectral**2
    for batch, replacement in ((1, True), (2, True), (3, True), (2, False), (3, False), (8, False)):
        listed, formula = modified_loss.batch_gradient_norms(gradients, batch, replacement=replacement)
        rho = stability.sampling(8, batch, replacement=replacement)
        yield statements.identity("P8b", "listed batches and formula", listed, formula)
        yield statements.bound("P8b", "input-gradient penalty", rho * inputs, listed)


@versioned(1)
def orders(seeds: Sequence[int], step_sizes: Sequence[float]) -> pd.DataFrame:
    """Error of one step of descent against the flows of the loss and of the modified loss."""
    rows, names = [], ("flow of the loss", "flow of the modified loss")
    for seed in seeds:
        g = torch.Generator().manual_seed(seed)
        a, w = torch.randn(6, 6, generator=g, dtype=torch.float64), torch.randn(6, generator=g, dtype=torch.float64)
        for step in step_sizes:
            errors = modified_loss.step_errors(lambda v, a=a: torch.tanh(a @ v).square().sum(), w, step_size=step)
            rows += [
                {"case": seed, "step_size": step, "name": n, "value": e} for n, e in zip(names, errors, strict=True)
            ]
    return pd.DataFrame(rows)


def _spectral_radius(each: np.ndarray, step: float, rho: float) -> float:
    return float(np.linalg.eigvalsh(stability.second_moment_operator(each, step_size=step, rho=rho))[-1])


def _at_minimum(
    net: path_norm.TwoLayer, x: np.ndarray, fresh: np.ndarray, step: float, batch: int, seed: int
) -> dict[str, float]:
    """Every quantity of P8 and P9 for one network."""
    pi, g = path_norm.path_norms(net), path_norm.reach(net, x)
    total, rest = path_norm.trace(net, x), path_norm.trace(net, x, block="rest")
    slopes, scale = np.square(net.gradients(x)).sum(1), np.linalg.norm(net.weights, 2) ** 2
    return {
        "step_size": step,
        "batch_size": batch,
        "seed": seed,
        "trace": total,
        "limit": 2 * batch / step,
        "gradients": (np.square(x).sum(1) + 1) @ slopes / len(x),
        "flatness": scale * (total - rest),
        "allowed": scale * (2 * batch / step - rest),
        "plain_gradients": slopes.mean(),
        "fresh_gradients": np.square(net.gradients(fresh)).sum(1).mean(),
        "least_trace": 1 + 2 * pi @ g,
        "path": pi @ g,
        "path_limit": batch / step - 0.5,
        "unseen": pi[g < 0.1].sum() / pi.sum(),
    }
