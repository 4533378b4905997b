"""P9 and P10: two-layer ReLU networks, where the step size provably smooths the attribution."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from attrobust import certificates, statements
from attrobust.theory import descent, draws, path_norm
from attrobust.trials.cases import over_cases
from attrobust.versions import versioned


@versioned(1)
@over_cases
def paths(case: int) -> Iterator[pd.DataFrame]:
    """P9: both lower bounds, their equality, and what flips can do to the attribution."""
    net, x = draws.two_layer(case)
    pi, best = path_norm.path_norms(net), path_norm.balanced(net, x)
    least, mean = (1 + 2 * pi @ reach(net, x) for reach in (path_norm.reach, path_norm.mean_reach))
    yield statements.bound("P9", "path norm and trace", least, path_norm.trace(net, x))
    yield statements.bound("P9", "path norm and trace, best re-scaling", least, path_norm.trace(best, x))
    yield statements.bound("P9", "path norm and top eigenvalue", mean, path_norm.sharpness(best, x))
    changed = np.linalg.norm(net.gradients(x[1:]) - net.gradients(x[:-1]), axis=1)
    yield statements.bound("P9", "attribution and flips", changed, path_norm.flips(net, x[1:], x[:-1]) @ pi)
    line, _ = draws.two_layer(case, inputs=1)
    slopes = line.gradients(np.linspace(-50, 50, 20001)[:, None])[:, 0]
    yield statements.bound("P9", "variation, one input", np.abs(np.diff(slopes)).sum(), path_norm.total_variation(line))


@versioned(1)
@over_cases
def angles(case: int) -> Iterator[pd.DataFrame]:
    """P10: the largest angle between gradients of random pairs on segments that satisfy its condition."""
    net, x = draws.two_layer(case, inputs=3)
    rng, points = np.random.default_rng(case), 41
    y = x + 10 ** rng.uniform(-2, 0.3, (len(x), 1)) * rng.standard_normal(x.shape)
    limit, t = path_norm.angle_bound(net, x, y), np.linspace(0, 1, points)[:, None, None]
    slopes = net.gradients((x + t * (y - x)).reshape(-1, 3)).reshape(points, -1, 3)
    a, b = (torch.from_numpy(slopes[rng.permutation(points)]) for _ in range(2))
    meets = np.isfinite(limit) & path_norm.flips(net, x, y).any(1)
    largest = [float(certificates.angle(a[:, i], b[:, i]).max()) for i in np.flatnonzero(meets)]
    yield statements.bound("P10", "angle on a segment", largest, limit[meets])


@versioned(1)
def line_pictures(updates: int, step_sizes: Sequence[float], seed: int) -> pd.DataFrame:
    """Fit and attribution of networks with one input on a fine grid, one line per step size."""
    fine = np.linspace(-1, 1, 401)[:, None]
    _, grid, nets, _ = _descended(updates, step_sizes, [seed])
    drawn = [
        (f"step size {step:g}", net(fine), net.gradients(fine)[:, 0]) for (step, _), net in zip(grid, nets, strict=True)
    ]
    drawn.append(("data", _target(fine[:, 0]), 2.0 * (fine[:, 0] > 0)))
    parts = []
    for panel, place in (("fit f", 1), ("attribution f'", 2)):
        parts += [pd.DataFrame({"panel": panel, "name": d[0], "x": fine[:, 0], "value": d[place]}) for d in drawn]
    return pd.concat(parts)


@versioned(1)
def line_numbers(updates: int, step_sizes: Sequence[float], seeds: Sequence[int]) -> pd.DataFrame:
    """Sharpness, weighted path norm and total variation of every network with one input."""
    x, grid, nets, losses = _descended(updates, step_sizes, seeds)
    rows = []
    for (step, seed), net, loss in zip(grid, nets, losses, strict=True):
        numbers = {"loss": loss, "sharpness": path_norm.sharpness(net, x), "settled": loss < 1e-8}
        numbers |= {"path": path_norm.path_norms(net) @ path_norm.mean_reach(net, x)}
        numbers |= {"variation": path_norm.total_variation(net, -1, 1)}
        rows.append({"step_size": step, "seed": seed, **numbers})
    return pd.DataFrame(rows)


def _descended(updates: int, step_sizes: Sequence[float], seeds: Sequence[int]) -> tuple:
    """Eight points on |x| + x, the grid of runs, the networks after full-batch descent, their losses."""
    x = np.linspace(-1, 1, 8)[:, None]
    grid = [(step, seed) for step in step_sizes for seed in seeds]
    steps, starts = zip(*grid, strict=True)
    how = {"batch_sizes": [0] * len(grid), "units": 100, "updates": updates, "scale": 1.7, "stop": 1e-24}
    return x, grid, *descent.descend(x, _target(x[:, 0]), step_sizes=steps, seeds=starts, **how)


def _target(x: np.ndarray) -> np.ndarray:
    return np.abs(x) + x
