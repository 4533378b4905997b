"""Two-layer ReLU networks, where flatness provably smooths the attribution itself.

    f(x) = sum_k v_k (w_k . x + b_k)_+ + c,    pi_k = |v_k| |w_k|   (path norm of unit k)

At squared loss, with t_k(x) = (w_k . x + b_k) / |w_k| and 1_k = [t_k > 0], every unit reaches

    g_k  = sqrt(mean t_k+^2) sqrt(mean 1_k |x~|^2),     g'_k = mean t_k+ |mean 1_k x~| <= g_k

    tr H >= 1 + 2 sum pi_k g_k  (equality at the best re-scaling),    lambda_max(H) >= 1 + 2 sum pi_k g'_k

for the Gauss-Newton Hessian H, so a stable step size bounds the weighted path norm (P9). The gradient only changes
where units flip: |grad f(x) - grad f(y)| <= sum of pi_k over flips. Mulayoff, Michaeli and Soudry 2021 (one input),
Nacson et al. 2023 (several); the trace form with its equality case and the angle bound (P10) are ours.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from attrobust import checks

Points = Float[np.ndarray, "points inputs"]
PerUnit = Float[np.ndarray, " units"]


@dataclass(frozen=True)
class TwoLayer:
    """A two-layer ReLU network with one output.

    Attributes:
        weights: w, one row per unit.
        biases: b.
        readout: v.
        offset: c.
    """

    weights: Float[np.ndarray, "units inputs"]
    biases: PerUnit
    readout: PerUnit
    offset: float = 0.0

    def __call__(self, x: Points) -> Float[np.ndarray, " points"]:
        """Value at each point."""
        return np.maximum(x @ self.weights.T + self.biases, 0) @ self.readout + self.offset

    def gradients(self, x: Points) -> Points:
        """Gradient at each point (off the kinks): the attribution."""
        return (active(self, x) * self.readout) @ self.weights


def active(net: TwoLayer, x: Points) -> Bool[np.ndarray, "points units"]:
    """Which units fire at which points."""
    return x @ net.weights.T + net.biases > 0


def path_norms(net: TwoLayer) -> PerUnit:
    """pi_k = |v_k| |w_k|; unchanged by re-scaling units.

    Example:
        >>> net = TwoLayer(np.array([[3.0, 4.0]]), np.zeros(1), np.array([-2.0]))
        >>> path_norms(net).tolist()
        [10.0]
    """
    return np.abs(net.readout) * np.linalg.norm(net.weights, axis=1)


def reach(net: TwoLayer, x: Points) -> PerUnit:
    """g_k: how much of the training set unit k sees; small for units that fire on few points."""
    t, on = _distances(net, x)
    return np.sqrt(np.square(np.maximum(t, 0)).mean(0)) * np.sqrt((on * _extended_norm(x)[:, None]).mean(0))


def mean_reach(net: TwoLayer, x: Points) -> PerUnit:
    """g'_k, which goes with the largest eigenvalue as g_k goes with the trace; never above g_k."""
    t, on = _distances(net, x)
    extended = np.column_stack([x, np.ones(len(x))])
    return np.maximum(t, 0).mean(0) * np.linalg.norm(on.T @ extended / len(x), axis=1)


def jacobian(net: TwoLayer, x: Points) -> Float[np.ndarray, "points parameters"]:
    """Derivative of f in (W, b), v, c at each point."""
    on = active(net, x) * net.readout
    extended = np.column_stack([x, np.ones(len(x))])
    first = (on[:, :, None] * extended[:, None, :]).reshape(len(x), -1)
    return np.column_stack([first, np.maximum(x @ net.weights.T + net.biases, 0), np.ones(len(x))])


def trace(net: TwoLayer, x: Points, *, block: str = "all") -> float:
    """Trace of the Gauss-Newton Hessian of the squared loss (half the mean squared error).

    Args:
        net: the network.
        x: training points.
        block: "all", "first" for (W, b), or "rest" for (v, c).

    Raises:
        ValueError: for another block.
    """
    checks.one_of("block", block, ("all", "first", "rest"))
    squares = np.square(jacobian(net, x)).mean(0)
    size = net.weights.size + net.biases.size
    return float({"all": squares, "first": squares[:size], "rest": squares[size:]}[block].sum())


def sharpness(net: TwoLayer, x: Points) -> float:
    """Largest eigenvalue of the Gauss-Newton Hessian of the squared loss."""
    j = jacobian(net, x)
    return float(np.linalg.eigvalsh(j @ j.T / len(x))[-1])


def rescaled(net: TwoLayer, factors: PerUnit) -> TwoLayer:
    """The same function with (w_k, b_k) multiplied and v_k divided by a positive factor for each unit."""
    return replace(
        net, weights=net.weights * factors[:, None], biases=net.biases * factors, readout=net.readout / factors
    )


def balanced(net: TwoLayer, x: Points) -> TwoLayer:
    """The re-scaling with the smallest trace; there tr H = 1 + 2 sum pi_k g_k exactly.

    Units that never fire, or have no readout, are left as they are.
    """
    pre = np.maximum(x @ net.weights.T + net.biases, 0)
    a = np.square(pre).mean(0)
    b = np.square(net.readout) * (active(net, x) * _extended_norm(x)[:, None]).mean(0)
    fires = (a > 0) & (b > 0)
    return rescaled(net, np.where(fires, (b / np.where(fires, a, 1)) ** 0.25, 1.0))


def flips(net: TwoLayer, x: Points, y: Points) -> Bool[np.ndarray, "points units"]:
    """Units whose state differs between x and y; along a segment each flips at most once."""
    return active(net, x) != active(net, y)


def total_variation(net: TwoLayer, low: float = -np.inf, high: float = np.inf) -> float:
    """Total variation of f' over an interval, for one input: sum of pi_k over the kinks inside (if distinct).

    Raises:
        ValueError: if the network has more than one input.
    """
    if net.weights.shape[1] != 1:
        raise ValueError(f"net has {net.weights.shape[1]} inputs; the total variation needs exactly 1")
    with np.errstate(divide="ignore", invalid="ignore"):
        kink = -net.biases / net.weights[:, 0]
    return float(path_norms(net)[(kink > low) & (kink < high)].sum())


def angle_bound(net: TwoLayer, x: Points, y: Points) -> Float[np.ndarray, " points"]:
    """Largest angle between gradients anywhere on the segment from x to y (P10), in radians.

        2 arcsin(V D / Delta),  V = sum of pi_k over flips,  D = |x - y|,  Delta = |f(x) - f(y)|

    The labels fix the mean gradient's size (Delta / D), flatness its variation (V). Infinite where V D >= Delta.
    """
    variation = flips(net, x, y) @ path_norms(net)
    share = variation * np.linalg.norm(x - y, axis=1) / np.maximum(np.abs(net(x) - net(y)), 1e-300)
    return np.where(share < 1, 2 * np.arcsin(np.minimum(share, 1)), np.inf)


def _distances(net: TwoLayer, x: Points) -> tuple[np.ndarray, np.ndarray]:
    length = np.linalg.norm(net.weights, axis=1)
    t = (x @ net.weights.T + net.biases) / np.where(length > 0, length, 1)
    return t, t > 0


def _extended_norm(x: Points) -> Float[np.ndarray, " points"]:
    return np.square(x).sum(1) + 1
