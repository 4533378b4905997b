"""Where the inequalities of notebooks 02 and 06 are attained: one exact example each."""

import math

import numpy as np
import pandas as pd
import torch

from attrobust import certificates, entropy, statements
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


def attained_by_rows() -> pd.DataFrame:
    """Both sides of the inequalities about attention rows on their equality examples."""
    tie, halves = (torch.tensor([1.0, 1.0, *[0.0] * n], dtype=torch.float64) for n in (3, 0))
    swap, apart = torch.tensor([1.3, -1.3], dtype=torch.float64), 1e-3 * torch.tensor([1.0, -1.0], dtype=torch.float64)
    levels, raised = (1.3 * (torch.arange(7) < k).double() for k in (3, 1))
    rows = {name: s.softmax(0) for name, s in {"swap": swap, "back": -swap, "levels": levels, "raised": raised}.items()}
    values = torch.tensor([1.0, -1.0], dtype=torch.float64)
    gradient = halves.softmax(0) * (values - halves.softmax(0) @ values)
    cases = {
        ("P20", "equality: two keys share all"): (entropy.softmax_jacobian_norm(tie), 0.5),
        ("P20", "equality: uniform row"): (1 / 7, entropy.softmax_jacobian_norm(torch.ones(7, dtype=torch.float64))),
        ("P20", "equality: entropy, uniform row"): (1 - 1 / 7, -math.expm1(-math.log(7))),
        ("P22", "equality: two keys swap"): (
            entropy.total_variation(rows["swap"], rows["back"]),
            entropy.total_variation_bound(entropy.oscillation(2 * swap)),
        ),
        ("P23.3", "equality: two halves, small scores"): (
            entropy.entropy_deficit(apart),
            entropy.deficit_bound(entropy.oscillation(apart)),
        ),
        ("P24", "equality: two levels"): (1.3, entropy.margin_ceiling(entropy.softmax_entropy(levels), keys=7, k=3)),
        ("P25", "equality: one raised score"): (
            entropy.entropy_floor(entropy.centred_norm(raised), keys=7),
            entropy.softmax_entropy(raised),
        ),
        ("P25b", "equality: two opposite values"): (gradient.square().sum(), 0.5 * torch.tensor(1.0)),
    }
    return statements.join(statements.bound(s, arm, *sides) for (s, arm), sides in cases.items())
