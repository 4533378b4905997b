"""Many small two-layer ReLU networks trained side by side by plain SGD, each with its own step and batch size.

Squared loss, batches drawn with replacement (or the full set), balanced initialisation, no momentum: exactly the
setting of P7 to P9. One run is one row of every array.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from attrobust import checks
from attrobust.theory.path_norm import TwoLayer


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
    """Train one network per entry of `step_sizes`.

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

    Returns:
        The networks and their final losses; a diverged run has an infinite loss.

    Raises:
        ValueError: if the lists differ in length or a number is out of range.
    """
    if not len(step_sizes) == len(batch_sizes) == len(seeds):
        raise ValueError(f"step_sizes has {len(step_sizes)} entries; batch_sizes and seeds must have as many")
    for name, number in (("units", units), ("updates", updates)):
        checks.count(name, number)
    for step in step_sizes:
        checks.positive("step_size", step)
    extended = np.column_stack([x, np.ones(len(x))])
    first, readout = map(np.stack, zip(*[_start(x.shape[1], units, seed, scale) for seed in seeds], strict=True))
    offset, eta = np.zeros(len(seeds)), np.asarray(step_sizes)[:, None]
    draws = [np.random.default_rng(1000 + seed) for seed in seeds]
    block = 500
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(0, updates, block):
            shares = _shares(draws, batch_sizes, len(x), min(block, updates - begin))
            for share in shares:
                hidden = np.maximum(extended @ first.mT, 0)  # (runs, points, units)
                pull = share * ((hidden @ readout[..., None])[..., 0] + offset[:, None] - y)
                back = pull[..., None] * (hidden > 0) * readout[:, None, :]
                first = first - eta[..., None] * (back.mT @ extended)
                readout = readout - eta * (pull[:, None, :] @ hidden)[:, 0]
                offset = offset - eta[:, 0] * pull.sum(1)
            nets = [_net(*parts) for parts in zip(first, readout, offset, strict=True)]
            losses = np.array([0.5 * np.square(net(x) - y).mean() for net in nets])
            if (losses[np.isfinite(losses)] < stop).all():
                break
    return nets, np.where(np.isfinite(losses), losses, np.inf)


def _net(first: np.ndarray, readout: np.ndarray, offset: float) -> TwoLayer:
    return TwoLayer(first[:, :-1].copy(), first[:, -1].copy(), readout.copy(), float(offset))


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
