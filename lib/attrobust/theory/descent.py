"""Where SGD ends: many small two-layer ReLU networks trained side by side, each with its own step and batch size.

Squared loss, batches drawn with replacement (or the full set), balanced initialisation, no momentum: exactly the
setting of P8 and P11. One run is one row of every array. P2 and P8 together say at a minimum with loss zero (P9)

    mean_i |x~_i|^2 |grad f(x_i)|^2  <=  |W|_2^2 tr H_(W,b)  <=  |W|_2^2 (2 B / eta - tr H_rest)
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from attrobust import checks
from attrobust.theory import path_norm
from attrobust.theory.path_norm import TwoLayer
from attrobust.versions import versioned


def descend(
    x: Float[np.ndarray, "points inputs"],
    y: Float[np.ndarray, " points"],
    *,
    step_sizes: Sequence[float],
    batch_sizes: Sequence[int],
    seeds: Sequence[int],
    units: int,
    updates: int,
    stop: float = 1e-20,
    scale: float = 1.0,
) -> tuple[list[TwoLayer], Float[np.ndarray, " runs"]]:
    """Train one network per entry of `step_sizes`; the networks and their final losses, infinite if diverged.

    Raises ValueError if the lists differ in length or a number is out of range.

    Args:
        x: training points.
        y: targets.
        step_sizes: of SGD, one per run, above 0.
        batch_sizes: one per run; 0 for the whole set in every update.
        seeds: of the initial weights, one per run.
        units: hidden units, at least 1.
        updates: at most this many.
        stop: all runs end once every loss (half the mean squared error) is below this.
        scale: of the initial weights.
    """
    if not len(step_sizes) == len(batch_sizes) == len(seeds):
        raise ValueError(f"step_sizes has {len(step_sizes)} entries; batch_sizes and seeds must have as many")
    checks.count("units", units)
    checks.count("updates", updates)
    for step in step_sizes:
        checks.positive("step_size", step)
    extended = np.column_stack([x, np.ones(len(x))])
    first, readout = map(np.stack, zip(*[_start(x.shape[1], units, seed, scale) for seed in seeds], strict=True))
    offset, eta = np.zeros(len(seeds)), np.asarray(step_sizes)[:, None]
    draws, block = [np.random.default_rng(1000 + seed) for seed in seeds], 500
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(0, updates, block):
            for share in _shares(draws, batch_sizes, len(x), min(block, updates - begin)):
                hidden = np.maximum(extended @ first.mT, 0)  # (runs, points, units)
                pull = share * ((hidden @ readout[..., None])[..., 0] + offset[:, None] - y)
                back = pull[..., None] * (hidden > 0) * readout[:, None, :]
                first = first - eta[..., None] * (back.mT @ extended)
                readout = readout - eta * (pull[:, None, :] @ hidden)[:, 0]
                offset = offset - eta[:, 0] * pull.sum(1)
            parts = zip(first, readout, offset, strict=True)
            nets = [TwoLayer(w[:, :-1].copy(), w[:, -1].copy(), v.copy(), float(c)) for w, v, c in parts]
            losses = np.array([0.5 * np.square(net(x) - y).mean() for net in nets])
            if (losses[np.isfinite(losses)] < stop).all():
                break
    return nets, np.where(np.isfinite(losses), losses, np.inf)


@versioned(1)
def sweep(updates: int, seeds: Sequence[int]) -> pd.DataFrame:
    """Two-layer ReLU networks at the end of plain SGD: 20 points in five dimensions, labels -1 and 1.

    One row per run with every quantity of P8, P9 and P11; `settled` where the loss is below 1e-8.
    """
    rng = np.random.default_rng(0)
    x, y, fresh = rng.standard_normal((20, 5)), rng.choice([-1.0, 1.0], 20), rng.standard_normal((200, 5))
    pairs = [(step, 1) for step in (0.005, 0.01, 0.02, 0.03, 0.04, 0.06)] + [(0.04, b) for b in (2, 4, 16)]
    grid = [(step, batch, seed) for step, batch in pairs for seed in seeds]
    steps, batches, starts = zip(*grid, strict=True)
    nets, losses = descend(
        x, y, step_sizes=steps, batch_sizes=batches, seeds=starts, units=60, updates=updates, scale=1.5, stop=1e-24
    )
    rows = [_at_minimum(net, x, fresh, *run) for net, run in zip(nets, grid, strict=True)]
    return pd.DataFrame(rows).assign(loss=losses, settled=losses < 1e-8)


def _at_minimum(
    net: TwoLayer, x: np.ndarray, fresh: np.ndarray, step: float, batch: int, seed: int
) -> dict[str, float]:
    """Every quantity of P8, P9 and P11 for one network."""
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


def _start(inputs: int, units: int, seed: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights, biases and readouts with |w_k, b_k| = |v_k| on average."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((units, inputs + 1))
    first *= scale / units**0.25 / np.linalg.norm(first, axis=1, keepdims=True)
    return first, scale * rng.choice([-1.0, 1.0], units) / units**0.25


def _shares(draws: list, batch_sizes: Sequence[int], points: int, updates: int) -> np.ndarray:
    """Weight of every point in every update of every run: (updates, runs, points), rows summing to 1."""
    even = np.full(points, 1 / points)
    each = [
        rng.multinomial(batch, even, size=updates) / batch if batch else np.broadcast_to(even, (updates, points))
        for rng, batch in zip(draws, batch_sizes, strict=True)
    ]
    return np.stack(each, axis=1)
