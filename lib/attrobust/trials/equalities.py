"""Where the inequalities of notebook 02 are attained: one exact example each."""

import numpy as np
import pandas as pd
import torch

from attrobust import certificates, statements
from attrobust.theory import penalty, smoothing, stability


def attained() -> pd.DataFrame:
    """Both sides of every inequality on its equality example; each ratio is 1 up to rounding."""
    even, unit = torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    apart = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64)
    orthogonal = 3 * np.eye(4)[:, :, None] * np.eye(4)[:, None]
    step = stability.largest_stable_step(orthogonal, rho=1.0)
    quarter = certificates.turn(lambda p: p[0] * p[1], unit[0], unit[1])
    fold, bump = smoothing.Folds(np.ones(1), np.zeros(1)), smoothing.Folds(np.array([-1.0, 1.0]), np.array([-0.7, 0.7]))
    zero = np.zeros(1)
    cases = {
        ("P4", "equality: two even classes"): (penalty.top_curvature(apart, even), torch.tensor(2.0) / 2),
        ("P7", "equality: orthogonal samples"): (3.0, stability.trace_bound(step_size=step, rho=1.0)),
        ("P11", "equality: turn in a plane"): (np.pi / 4, quarter),
        ("P12", "equality: one fold"): (
            np.abs(fold.gaussian_bend(zero, 0.7)),
            smoothing.gaussian_constant(slope=1.0, sigma=0.7),
        ),
        ("P12", "equality: a bump"): (
            np.abs(bump.step_bend(zero, 0.7)),
            smoothing.gaussian_constant(height=1.0, sigma=0.7),
        ),
    }
    return statements.join(statements.bound(s, arm, *sides) for (s, arm), sides in cases.items())
