"""Two-layer ReLU networks, where flatness provably smooths the attribution itself, and where SGD ends on them.

    f(x) = sum_k v_k (w_k . x + b_k)_+ + c,    pi_k = |v_k| |w_k|   (path norm of unit k)

At squared loss, with t_k(x) = (w_k . x + b_k) / |w_k| and 1_k = [t_k > 0], every unit reaches

    g_k  = sqrt(mean t_k+^2) sqrt(mean 1_k |x~|^2),     g'_k = mean t_k+ |mean 1_k x~| <= g_k

    tr H >= 1 + 2 sum pi_k g_k  (equality at the best re-scaling),    lambda_max(H) >= 1 + 2 sum pi_k g'_k

for the Gauss-Newton Hessian H, so a stable step size bounds the weighted path norm (P11). The gradient only changes
where units flip: |grad f(x) - grad f(y)| <= sum of pi_k over flips. Mulayoff, Michaeli and Soudry 2021 (one input),
Nacson et al. 2023 (several); the trace form with its equality case and the angle bound (P12) are ours. Re-scaling a
unit changes flatness and not the function; |W|^2 tr H_(W,b) does not notice one factor for all units (P5: Dinh et al.
2017, Petzka et al. 2021). P2 and P8 together say at a minimum with loss zero (P9)

    mean_i |x~_i|^2 |grad f(x_i)|^2  <=  |W|_2^2 tr H_(W,b)  <=  |W|_2^2 (2 B / eta - tr H_rest)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from attrobust import checks
from attrobust.theory.certificates import angle
from attrobust.theory.tally import Cases, bound, identity, trial
from attrobust.versions import versioned

Points = Float[np.ndarray, "points inputs"]
PerUnit = Float[np.ndarray, " units"]
PerPoint = Float[np.ndarray, " points"]
Run = tuple[float, int, int]  # step size, batch size or 0 for the whole set in every update, seed of the weights


@dataclass(frozen=True)
class TwoLayer:
    """A two-layer ReLU network with one output: w (one row per unit), b, v and c of the formula.

    Example:
        >>> ramp = TwoLayer(np.array([[2.0]]), np.array([-1.0]), np.array([3.0]))
        >>> ramp(np.array([[0.0], [1.0]])).tolist(), ramp.gradients(np.array([[1.0]])).tolist()
        ([0.0, 3.0], [[6.0]])
    """

    weights: Float[np.ndarray, "units inputs"]
    biases: PerUnit
    readout: PerUnit
    offset: float = 0.0

    def __call__(self, x: Points) -> PerPoint:
        """Value at each point."""
        return _hidden(self, x) @ self.readout + self.offset

    def gradients(self, x: Points) -> Points:
        """Gradient at each point (off the kinks): the attribution."""
        return (active(self, x) * self.readout) @ self.weights


def draw(seed: int, *, inputs: int = 0, points: int = 12) -> tuple[TwoLayer, Points]:
    """A network of one to eight units with unbalanced layers, and normal points; 0 inputs draws one to four.

    Example:
        >>> net, x = draw(0, inputs=2, points=5)
        >>> x.shape, net(x).shape
        ((5, 2), (5,))
    """
    rng = np.random.default_rng(seed)
    inputs = inputs or int(rng.integers(1, 5))
    units = int(rng.integers(1, 9))
    weights, biases = rng.standard_normal((units, inputs)), 0.7 * rng.standard_normal(units)
    net = TwoLayer(weights, biases, rng.standard_normal(units) * np.exp(rng.standard_normal(units)))
    return net, rng.standard_normal((points, inputs))


def active(net: TwoLayer, x: Points) -> Bool[np.ndarray, "points units"]:
    """Which units fire at which points.

    Example:
        >>> ramp = TwoLayer(np.array([[2.0]]), np.array([-1.0]), np.array([3.0]))
        >>> active(ramp, np.array([[0.0], [1.0]])).tolist()
        [[False], [True]]
    """
    return x @ net.weights.T + net.biases > 0


def path_norms(net: TwoLayer) -> PerUnit:
    """pi_k = |v_k| |w_k|; unchanged by re-scaling units.

    Example:
        >>> path_norms(TwoLayer(np.array([[3.0, 4.0]]), np.array([0.0]), np.array([-2.0]))).tolist()
        [10.0]
    """
    return np.abs(net.readout) * np.linalg.norm(net.weights, axis=1)


def reach(net: TwoLayer, x: Points) -> PerUnit:
    """g_k: how much of the training set unit k sees; small for units that fire on few points.

    Example:
        >>> ramp = TwoLayer(np.array([[1.0]]), np.array([0.0]), np.array([1.0]))
        >>> reach(ramp, np.array([[-1.0], [-2.0]])).tolist()  # it fires nowhere
        [0.0]
    """
    t, on = _distances(net, x)
    return np.sqrt(np.square(t).mean(0)) * np.sqrt((on * _squared_norms(x)).mean(0))


def mean_reach(net: TwoLayer, x: Points) -> PerUnit:
    """g'_k, which goes with the largest eigenvalue as g_k goes with the trace; never above g_k.

    Example:
        >>> net, x = draw(0)
        >>> bool((mean_reach(net, x) <= reach(net, x) + 1e-9).all())
        True
    """
    t, on = _distances(net, x)
    return t.mean(0) * np.linalg.norm(on.T @ _extended(x) / len(x), axis=1)


def jacobian(net: TwoLayer, x: Points) -> Float[np.ndarray, "points parameters"]:
    """Derivative of f in (W, b), v, c at each point.

    Example:
        >>> ramp = TwoLayer(np.array([[2.0]]), np.array([-1.0]), np.array([3.0]))
        >>> jacobian(ramp, np.array([[1.0]])).tolist()  # in w, b, v, c
        [[3.0, 3.0, 1.0, 1.0]]
    """
    on = active(net, x) * net.readout
    first = (on[:, :, None] * _extended(x)[:, None, :]).reshape(len(x), -1)
    return np.column_stack([first, _hidden(net, x), np.ones(len(x))])


def trace(net: TwoLayer, x: Points, *, block: str = "all") -> float:
    """Trace of the Gauss-Newton Hessian of half the mean squared error: of all, "first" (W, b), or "rest" (v, c).

    Raises:
        ValueError: an unknown `block`.

    Example:
        >>> ramp = TwoLayer(np.array([[2.0]]), np.array([-1.0]), np.array([3.0]))
        >>> x = np.array([[1.0]])
        >>> trace(ramp, x), trace(ramp, x, block="first"), trace(ramp, x, block="rest")
        (20.0, 18.0, 2.0)
    """
    squares, size = np.square(jacobian(net, x)).mean(0), net.weights.size + net.biases.size
    blocks = {"all": squares, "first": squares[:size], "rest": squares[size:]}
    return float(blocks[checks.one_of("block", block, blocks)].sum())


def sharpness(net: TwoLayer, x: Points) -> float:
    """Largest eigenvalue of the Gauss-Newton Hessian of the squared loss.

    Example:
        >>> ramp = TwoLayer(np.array([[2.0]]), np.array([-1.0]), np.array([3.0]))
        >>> round(sharpness(ramp, np.array([[1.0]])), 4)  # of one point all of the trace
        20.0
    """
    j = jacobian(net, x)
    return float(np.linalg.eigvalsh(j @ j.T / len(x))[-1])


def invariant_flatness(net: TwoLayer, x: Points) -> float:
    """|W|_2^2 tr H_(W,b), which no common factor between the layers changes (P5).

    Example:
        >>> ramp = TwoLayer(np.array([[2.0]]), np.array([-1.0]), np.array([3.0]))
        >>> x = np.array([[1.0]])
        >>> round(invariant_flatness(ramp, x), 4), round(invariant_flatness(rescaled(ramp, np.array([5.0])), x), 4)
        (72.0, 72.0)
    """
    return float(np.linalg.norm(net.weights, 2) ** 2 * trace(net, x, block="first"))


def rescaled(net: TwoLayer, factors: PerUnit) -> TwoLayer:
    """The same function with (w_k, b_k) multiplied and v_k divided by a positive factor for each unit.

    Example:
        >>> net, x = draw(0)
        >>> np.allclose(rescaled(net, np.full(len(net.biases), 2.0))(x), net(x))
        True
    """
    weights = net.weights * factors[:, None]
    return replace(net, weights=weights, biases=net.biases * factors, readout=net.readout / factors)


def balanced(net: TwoLayer, x: Points) -> TwoLayer:
    """The re-scaling with the smallest trace, 1 + 2 sum pi_k g_k; units that never fire or have no readout stay.

    Example:
        >>> net, x = draw(0)
        >>> trace(balanced(net, x), x) <= trace(net, x), np.allclose(balanced(net, x)(x), net(x))
        (True, True)
    """
    a, b = np.square(_hidden(net, x)).mean(0), np.square(net.readout) * (active(net, x) * _squared_norms(x)).mean(0)
    fires = (a > 0) & (b > 0)
    return rescaled(net, np.where(fires, (b / np.where(fires, a, 1)) ** 0.25, 1.0))


def flips(net: TwoLayer, x: Points, y: Points) -> Bool[np.ndarray, "points units"]:
    """Units whose state differs between x and y; along a segment each flips at most once.

    Example:
        >>> ramp = TwoLayer(np.array([[2.0]]), np.array([-1.0]), np.array([3.0]))
        >>> flips(ramp, np.array([[0.0]]), np.array([[1.0]])).tolist()
        [[True]]
    """
    return active(net, x) != active(net, y)


def total_variation(net: TwoLayer, low: float = -np.inf, high: float = np.inf) -> float:
    """Total variation of f' over an interval, for exactly one input: sum of pi_k over the (distinct) kinks inside.

    Raises:
        ValueError: a network of another number of inputs than 1.

    Example:
        >>> ramp = TwoLayer(np.array([[2.0]]), np.array([-1.0]), np.array([3.0]))
        >>> total_variation(ramp), total_variation(ramp, low=1.0)  # its kink lies at 1/2
        (6.0, 0.0)
    """
    if net.weights.shape[1] != 1:
        raise ValueError(f"net has {net.weights.shape[1]} inputs; the total variation needs exactly 1")
    with np.errstate(divide="ignore", invalid="ignore"):
        kink = -net.biases / net.weights[:, 0]
    return float(path_norms(net)[(kink > low) & (kink < high)].sum())


def angle_bound(net: TwoLayer, x: Points, y: Points) -> PerPoint:
    """Largest angle between gradients anywhere on the segment from x to y (P12), infinite where V D >= Delta.

        2 arcsin(V D / Delta),  V = sum of pi_k over flips,  D = |x - y|,  Delta = |f(x) - f(y)|     in radians

    The labels fix the mean gradient's size (Delta / D), flatness its variation (V).

    Example:
        >>> ramp = TwoLayer(np.array([[2.0]]), np.array([-1.0]), np.array([3.0]))
        >>> angle_bound(ramp, np.array([[1.0]]), np.array([[2.0]])).tolist()  # no unit flips between these
        [0.0]
    """
    variation = flips(net, x, y) @ path_norms(net)
    share = variation * np.linalg.norm(x - y, axis=1) / np.maximum(np.abs(net(x) - net(y)), 1e-300)
    return np.where(share < 1, 2 * np.arcsin(np.minimum(share, 1)), np.inf)


@trial(version=1)
def rescaling(case: int) -> Cases:
    """P5: function, attribution and invariant flatness under a random factor between the layers."""
    net, x = draw(case)
    factor = np.exp(np.random.default_rng(case).normal())
    other = rescaled(net, np.full(len(net.readout), factor))
    before, after = (invariant_flatness(n, x) for n in (net, other))
    yield identity("P5", "function", other(x), net(x))
    yield identity("P5", "attribution", other.gradients(x), net.gradients(x))
    yield identity("P5", "invariant flatness", before / after if after else 1.0, 1.0)


@trial(version=1)
def paths(case: int) -> Cases:
    """P11: both lower bounds, their equality, and what flips can do to the attribution."""
    net, x = draw(case)
    pi, best = path_norms(net), balanced(net, x)
    least, mean = (1 + 2 * pi @ weight(net, x) for weight in (reach, mean_reach))
    yield bound("P11", "path norm and trace", least, trace(net, x))
    yield bound("P11", "path norm and trace, best re-scaling", least, trace(best, x))
    yield bound("P11", "path norm and top eigenvalue", mean, sharpness(best, x))
    changed = np.linalg.norm(net.gradients(x[1:]) - net.gradients(x[:-1]), axis=1)
    yield bound("P11", "attribution and flips", changed, flips(net, x[1:], x[:-1]) @ pi)
    line, _ = draw(case, inputs=1)
    slopes = line.gradients(np.linspace(-50, 50, 20001)[:, None])[:, 0]
    yield bound("P11", "variation, one input", np.abs(np.diff(slopes)).sum(), total_variation(line))


@trial(version=1)
def angles(case: int) -> Cases:
    """P12: the largest angle between gradients of random pairs on segments that satisfy its condition."""
    net, x = draw(case, inputs=3)
    rng, points = np.random.default_rng(case), 41
    y = x + 10 ** rng.uniform(-2, 0.3, (len(x), 1)) * rng.standard_normal(x.shape)
    limit, t = angle_bound(net, x, y), np.linspace(0, 1, points)[:, None, None]
    slopes = net.gradients((x + t * (y - x)).reshape(-1, 3)).reshape(points, -1, 3)
    a, b = (torch.from_numpy(slopes[rng.permutation(points)]) for _ in range(2))
    meets = np.isfinite(limit) & flips(net, x, y).any(1)
    largest = [float(angle(a[:, i], b[:, i]).max()) for i in np.flatnonzero(meets)]
    yield bound("P12", "angle on a segment", largest, limit[meets])


def descend(
    x: Points, y: PerPoint, runs: Sequence[Run], *, units: int, updates: int, stop: float = 1e-20, scale: float = 1.0
) -> tuple[list[TwoLayer], Float[np.ndarray, " runs"]]:
    """Train one network per run, side by side, and say where they end; the loss of a diverged run is infinite.

    Squared loss, batches drawn with replacement, balanced initialisation of size `scale`, no momentum: the setting of
    P8 and P11. At most `updates` are made; all runs end once every loss (half the mean squared error) is below `stop`.

    Raises:
        ValueError: `units` or `updates` below 1, or a step that is not above 0.

    Example:
        >>> x, y = np.array([[-1.0], [1.0]]), np.array([1.0, -1.0])
        >>> nets, losses = descend(x, y, [(0.1, 1, 0), (0.1, 2, 0)], units=3, updates=5)
        >>> len(nets), losses.shape
        (2, (2,))
    """
    checks.count("units", units)
    checks.count("updates", updates)
    step_sizes, batch_sizes, seeds = zip(*runs, strict=True)
    for step in step_sizes:
        checks.positive("step_size", step)
    extended, even, block = _extended(x), np.full(len(x), 1 / len(x)), 500
    starts, draws = ([np.random.default_rng(more + seed) for seed in seeds] for more in (0, 1000))
    first = np.stack([rng.standard_normal((units, x.shape[1] + 1)) for rng in starts])
    first *= scale / units**0.25 / np.linalg.norm(first, axis=2, keepdims=True)  # balanced: |w_k, b_k| = |v_k|
    readout = np.stack([scale * rng.choice([-1.0, 1.0], units) / units**0.25 for rng in starts])
    offset, eta = np.zeros(len(seeds)), np.asarray(step_sizes)[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(0, updates, block):
            size = min(block, updates - begin)
            batches = [
                rng.multinomial(batch, even, size=size) / batch if batch else np.broadcast_to(even, (size, len(x)))
                for rng, batch in zip(draws, batch_sizes, strict=True)
            ]
            for share in np.stack(batches, axis=1):  # of every point in every run, summing to 1
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
    """Two-layer networks on 20 points in five dimensions after plain SGD, one row each; `settled` below loss 1e-8.

    Example:
        >>> sweep(1, [0])["batch_size"].tolist()
        [1, 1, 1, 1, 1, 1, 2, 4, 16]
    """
    rng = np.random.default_rng(0)
    x, y, fresh = rng.standard_normal((20, 5)), rng.choice([-1.0, 1.0], 20), rng.standard_normal((200, 5))
    pairs = [(step, 1) for step in (0.005, 0.01, 0.02, 0.03, 0.04, 0.06)] + [(0.04, b) for b in (2, 4, 16)]
    grid = [(step, batch, seed) for step, batch in pairs for seed in seeds]
    nets, losses = descend(x, y, grid, units=60, updates=updates, scale=1.5, stop=1e-24)
    rows = []
    for net, (step, batch, seed) in zip(nets, grid, strict=True):
        pi, g = path_norms(net), reach(net, x)
        total, rest = trace(net, x), trace(net, x, block="rest")
        slopes, scale = np.square(net.gradients(x)).sum(1), np.linalg.norm(net.weights, 2) ** 2
        row = {"step_size": step, "batch_size": batch, "seed": seed, "trace": total, "limit": 2 * batch / step}
        row |= {
            "gradients": _squared_norms(x)[:, 0] @ slopes / len(x),
            "flatness": scale * (total - rest),
            "allowed": scale * (2 * batch / step - rest),
            "plain_gradients": slopes.mean(),
            "fresh_gradients": np.square(net.gradients(fresh)).sum(1).mean(),
            "least_trace": 1 + 2 * pi @ g, "path": pi @ g, "path_limit": batch / step - 0.5,
            "unseen": pi[g < 0.1].sum() / pi.sum(),
        }  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows).assign(loss=losses, settled=losses < 1e-8)


def _hidden(net: TwoLayer, x: Points) -> Float[np.ndarray, "points units"]:
    """Value of each unit at each point."""
    return np.maximum(x @ net.weights.T + net.biases, 0)


def _distances(net: TwoLayer, x: Points) -> tuple[np.ndarray, np.ndarray]:
    """t_k+ and 1_k at each point."""
    length = np.linalg.norm(net.weights, axis=1)
    t = (x @ net.weights.T + net.biases) / np.where(length > 0, length, 1)
    return np.maximum(t, 0), t > 0


def _extended(x: Points) -> Float[np.ndarray, "points inputs_and_one"]:
    return np.column_stack([x, np.ones(len(x))])


def _squared_norms(x: Points) -> Float[np.ndarray, "points 1"]:
    """|x~|^2 of each point."""
    return np.square(x).sum(1, keepdims=True) + 1
