"""Where the inequalities of notebooks 02, 06 and 07 are attained: one exact example each."""

import math

import numpy as np
import pandas as pd
import torch

from attrobust import certificates, entropy, statements
from attrobust.theory import kernels, penalty, smoothing, stability
from attrobust.versions import versioned


@versioned(1)
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


@versioned(1)
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


@versioned(1)
def attained_by_kernels() -> pd.DataFrame:
    """Both sides of the inequalities about kernels on their equality examples; drift is attained in the limit."""
    two, c = torch.tensor([0.0, 2.0], dtype=torch.float64), 1 + 1e-7
    low, change = torch.tensor([-9.0, -7.0, -8.0], dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5])
    logs = [kernels.log_weight(u, kind="elu + 1") for u in (low, low + change, low - 3)]
    swap, far = torch.tensor([[1.3, -1.3]] * 3, dtype=torch.float64), -60.0
    steady, turned = torch.full((2, 3), far, dtype=torch.float64), torch.full((2, 3), far, dtype=torch.float64)
    steady[0, 0] = steady[1, 1] = turned[0, 0] = turned[1, 2] = 0.0
    maps = [kernels.shared_map(u, kind="exp") for u in (steady, turned)]
    at = torch.tensor([0.7, 0.7], dtype=torch.float64, requires_grad=True)
    own = torch.exp(-at.square() / (2 * 0.7**2))  # the query at 0, keys at distance 0.7
    (steep,) = torch.autograd.grad(own.sum(), at, retain_graph=True)
    (normed,) = torch.autograd.grad(own[0] / own.sum(), at)
    cases = {
        ("P26", "equality: factor near 1"): (
            entropy.oscillation(c * two - two),
            math.log(c) * kernels.elasticity(c * two, kind="exp").max(),
        ),
        ("P27", "equality: one key up, one down"): (entropy.oscillation(logs[1] - logs[0]), 3.0),
        ("P28", "equality: scores below 0"): (logs[0].logsumexp(0) - logs[2].logsumexp(0), 3.0),
        ("P28", "equality: all rows swap"): (
            (swap.softmax(1) - (-swap).softmax(1)).mean(0).abs().sum(),
            2 * entropy.total_variation_bound(entropy.oscillation(2 * swap)).mean(),
        ),
        ("P28", "equality: half the mass moves"): ((maps[1] - maps[0]).abs().sum(), 1.0),
        ("P29", "equality: two keys swap"): (
            (swap[0].softmax(0) - (-swap[0]).softmax(0))[0],
            entropy.total_variation_bound(torch.tensor(4 * 1.3, dtype=torch.float64)),
        ),
        ("P30", "equality: Gaussian at one width"): (steep[0].abs(), math.exp(-0.5) / 0.7),
        ("P30", "equality: two keys as near"): (normed[0].abs(), 0.7 / (4 * 0.7**2)),
    }
    return statements.join(statements.bound(s, arm, *sides) for (s, arm), sides in cases.items())
