"""How Lipschitz a smoothed attribution is, whatever the network does.

With G = sup |grad f| and F = sup |f - const|, the map of SmoothGrad (Gaussian noise, standard deviation s) changes
per unit of input by at most

    min{ sup |hess f|_2,  sqrt(2 / pi) G / s,  4 phi(1) F / s^2 },   phi the normal density,  4 phi(1) = 0.96788

and the gradient averaged over a ball of radius r in d dimensions by at most 2 (V_{d-1} / V_d) G / r. The functions
|u . x| and sign((u . x)^2 - s^2) attain them. Attribution robustness in this sense: Wang et al. 2020; constants ours
or textbook (P18).
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import norm

from attrobust import checks
from attrobust.theory.tally import Cases, bound, equalities, trial

Points = Float[np.ndarray, " points"]


def gaussian_constant(*, slope: float = math.inf, height: float = math.inf, sigma: float) -> float:
    """Lipschitz constant of SmoothGrad maps from G = slope or F = height, in readout units per squared pixel unit.

    The smaller of the two bounds; F is 0.5 for a probability. Raises ValueError if `sigma` is not positive.

    Example:
        >>> round(gaussian_constant(slope=1.0, sigma=1.0), 5), round(gaussian_constant(height=1.0, sigma=1.0), 5)
        (0.79788, 0.96788)
    """
    checks.positive("sigma", sigma)
    return min(math.sqrt(2 / math.pi) * slope / sigma, 4 * float(norm.pdf(1)) * height / sigma**2)


def ball_constant(*, slope: float, radius: float, dimensions: int) -> float:
    """Lipschitz constant of gradients averaged over a Euclidean ball: 2 (V_{d-1} / V_d) G / r.

    Raises ValueError if `radius` is not positive or `dimensions` is below 1.
    """
    checks.positive("radius", radius)
    checks.count("dimensions", dimensions)
    log_ratio = math.lgamma(dimensions / 2 + 1) - math.lgamma((dimensions - 1) / 2 + 1) - math.log(math.pi) / 2
    return 2 * math.exp(log_ratio) * slope / radius


def two_layer_constant(
    weights: Float[np.ndarray, "units inputs"], readout: Float[np.ndarray, " units"], *, bend: float = 0.25
) -> float:
    """Bound on the input Hessian of sum_k v_k s(w_k . x + b_k) over *all* inputs, for 0 <= s'' <= `bend`.

    The units with positive and with negative readout are bounded apart; the larger norm counts. Weights are in pixel
    units; softplus bends by 1/4. Raises ValueError if `bend` is not positive.
    """
    checks.positive("bend", bend)
    sides = [np.maximum(readout, 0), np.maximum(-readout, 0)]
    return bend * float(max(np.linalg.norm(weights.T @ (side[:, None] * weights), 2) for side in sides))


class Folds(NamedTuple):
    """f(x) = sum_k c_k |x - t_k| on the line: every smoothed derivative is known in closed form."""

    heights: Float[np.ndarray, " kinks"]
    places: Float[np.ndarray, " kinks"]

    def pieces(self) -> Float[np.ndarray, " kinks_and_one"]:
        """Values of f' between the kinks, from left to right."""
        order = np.argsort(self.places)
        return -self.heights.sum() + np.concatenate([[0.0], 2 * np.cumsum(self.heights[order])])

    def slope(self) -> float:
        """G, the largest |f'|."""
        return float(np.abs(self.pieces()).max())

    def derivative(self, x: Points) -> Points:
        """Slope f' off the kinks: the attribution."""
        return np.sign(x[:, None] - self.places) @ self.heights

    def gaussian_bend(self, x: Points, sigma: float) -> Points:
        """Derivative of the SmoothGrad map at x."""
        return 2 * norm.pdf(x[:, None], self.places, sigma) @ self.heights

    def step_bend(self, x: Points, sigma: float) -> Points:
        """Derivative of the SmoothGrad map of the step function f' at x."""
        away = x[:, None] - self.places
        return (-away / sigma**2 * 2 * norm.pdf(away, scale=sigma)) @ self.heights


@trial(version=1)
def smoothed(case: int) -> Cases:
    """P18 on a random folded function of one input, whose smoothed derivatives are known in closed form."""
    rng = np.random.default_rng(case)
    n, size = int(rng.integers(1, 6)), 10 ** rng.uniform(-1, 0.5)
    folds = Folds(rng.standard_normal(n), rng.normal(size=n))
    at = np.concatenate([np.linspace(-4, 4, 401), *(folds.places + shift * size for shift in (-1, 0, 1))])
    limit = gaussian_constant(slope=folds.slope(), sigma=size)
    yield bound("P18", "SmoothGrad, slope", np.abs(folds.gaussian_bend(at, size)).max(), limit)
    limit = gaussian_constant(height=float(np.ptp(folds.pieces()) / 2), sigma=size)
    yield bound("P18", "SmoothGrad, height", np.abs(folds.step_bend(at, size)).max(), limit)
    limit = ball_constant(slope=folds.slope(), radius=size, dimensions=1)
    at = at + 1e-9  # off the kinks: the map averaged over [x - size, x + size] has the slope below
    bend = (folds.derivative(at + size) - folds.derivative(at - size)) / (2 * size)
    yield bound("P18", "ball average", np.abs(bend).max(), limit)


def equality() -> pd.DataFrame:
    """A single fold for the slope, sign(x^2 - s^2) for the height."""
    zero = np.zeros(1)
    fold, bump = Folds(np.ones(1), zero), Folds(np.array([-1.0, 1.0]), np.array([-0.7, 0.7]))
    return equalities({
        ("P18", "one fold"): (np.abs(fold.gaussian_bend(zero, 0.7)), gaussian_constant(slope=1.0, sigma=0.7)),
        ("P18", "a bump"): (np.abs(bump.step_bend(zero, 0.7)), gaussian_constant(height=1.0, sigma=0.7)),
    })  # fmt: skip
