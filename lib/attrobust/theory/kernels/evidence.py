"""Whose evidence counts in a map made of several rows (P29), and whom the change of one score reaches (P30).

Rows r = 1..R with scores s_r, softmax p_r and Z_r = sum_i exp(s_ri). Summed and divided once, un-normalised exp rows
give sum_r Z_r p_r / sum Z; the softmax mean is sum_r p_r / R. Rows that hold shares W before and W' after of the mass
move a shared map by at most 2 max(W, W') in l1, under every kernel. If only the score of key j changes, by t, then

    softmax       Delta p_j = p_j (1 - p_j) (e^t - 1) / (1 - p_j + p_j e^t),   |Delta p|_1 = 2 |Delta p_j|
    undivided     |Delta a|_1 = |Delta a_j|

Ours; "probability cage": Richter and Wattenhofer 2020.
"""

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from attrobust.theory import draws
from attrobust.theory.entropy.rows import oscillation, total_variation_bound
from attrobust.theory.kernels.links import KINDS, SMOOTH, log_weight, weight
from attrobust.theory.tally import Cases, bound, equalities, residual, trial


def shared_map(scores: Float[Tensor, "*batch rows keys"], *, kind: str) -> Float[Tensor, "*batch keys"]:
    """One map out of several rows: weights summed over the rows, divided by their sum over all rows and keys.

    All weights are divided by the largest one first, which the division by the sum removes again.

    Raises:
        ValueError: for an unknown `kind`, or where all weights are 0.

    Example:
        >>> shared_map(torch.tensor([[3.0, 1.0], [-1.0, -2.0]]).double(), kind="ReLU").round(decimals=9).tolist()
        [0.75, 0.25]
    """
    logs = log_weight(scores, kind=kind)
    top = logs.amax((-2, -1), keepdim=True)
    if bool((top == -torch.inf).any()):
        raise ValueError(f"scores give no weight above 0 under {kind}; a map needs at least one")
    weights = (logs - top).exp().sum(-2)
    return weights / weights.sum(-1, keepdim=True)


@trial(version=1)
def shared_maps(case: int) -> Cases:
    """P29 on 15 maps of 2 to 6 rows each; the first rows of every map are lowered, and only they change."""
    g = draws.Source(case)
    count = g.whole(2, 6)
    lowered, flat = g.whole(1, count - 1), draws.scores(case, rows=15 * count)
    s, t = (u.unflatten(0, (15, count)) for u in (flat, draws.moved(flat, seed=case)))
    down = 6 * g.uniform(15, 1, 1)
    yield from _abstention(s, down)
    yield from _weighting(s, t)
    changes = torch.arange(count)[:, None] < lowered
    s = torch.where(changes, s - down, s)
    yield from _outvoted(s, torch.where(changes, t - down, s), lowered)


@trial(version=1)
def one_score(case: int) -> Cases:
    """P30: one score of each row changes; what softmax does, and what a kernel without normalisation does."""
    s, g = draws.scores(case), draws.Source(case)
    s = s - s.mean(1, keepdim=True)  # ReLU then gives weight to one key at least
    j = torch.randint(0, s.shape[1], (len(s), 1), generator=g.generator)
    change = 3 * g.normal(len(s), 1)
    change[::3] = torch.logit(s.softmax(1).gather(1, j)[::3].clamp(1e-6, 1 - 1e-6)) * -2  # the key swaps its odds
    t, p, change = s.scatter_add(1, j, change), s.softmax(1), change[:, 0]
    moved = t.softmax(1) - p
    at, total, first = moved.gather(1, j)[:, 0], moved.abs().sum(1), p.gather(1, j)[:, 0]
    others = p.scatter(1, j, 0).sum(1)  # 1 - p_j without cancellation
    formula = first * others * change.expm1() / (others + first * change.exp())
    yield residual("P30", "softmax: change of the key", at - formula)
    yield residual("P30", "softmax: half falls on other keys", total - 2 * at.abs())
    yield bound("P30", "softmax: change and score", at.abs(), torch.tanh(change.abs() / 4))
    yield residual("P30", "softmax: others stay", total - at.abs(), holds=False)
    for kind in KINDS:
        logs = [log_weight(u, kind=kind) for u in (s, t)]
        a, b = ((u - torch.maximum(*logs).amax(1, keepdim=True)).exp() for u in logs)
        yield residual("P30", f"{kind}: others stay", (b - a).scatter(1, j, 0).abs().sum(1))
    a, b = (log_weight(u, kind="sigmoid").softmax(1) for u in (s, t))
    yield residual("P30", "sigmoid, rows normalised: others stay", (b - a).scatter(1, j, 0).abs().sum(1), holds=False)


def equality() -> pd.DataFrame:
    """Scores below 0, where elu + 1 is exp; rows that all swap; one row of two that moves; two keys that swap."""
    low = torch.tensor([-9.0, -7.0, -8.0], dtype=torch.float64)
    mass = [log_weight(u, kind="elu + 1").logsumexp(0) for u in (low, low - 3)]
    swap = torch.tensor([[1.3, -1.3]] * 3, dtype=torch.float64)
    gained = swap.softmax(1) - (-swap).softmax(1)
    limit = total_variation_bound(oscillation(2 * swap))
    # Two rows, each with all its weight on one key; the second row's key changes.
    steady, turned = torch.full((2, 2, 3), -60.0, dtype=torch.float64)
    steady[0, 0] = steady[1, 1] = turned[0, 0] = turned[1, 2] = 0.0
    return equalities({
        ("P29", "scores below 0"): (mass[0] - mass[1], 3.0),
        ("P29", "all rows swap"): (gained.mean(0).abs().sum(), 2 * limit.mean()),
        ("P29", "half the mass moves"): (_change(steady, turned, "exp"), 1.0),
        ("P30", "two keys swap"): (gained[0, 0], limit[0]),
    })  # fmt: skip


def _abstention(s: Tensor, down: Tensor) -> Cases:
    """P29 (b): what a row gives when all its scores are lowered."""
    yield residual("P29", "softmax: lowering a row changes nothing", (s - down).softmax(-1) - s.softmax(-1))
    for kind in SMOOTH:
        before, after = (log_weight(u, kind=kind).logsumexp(-1) for u in (s, s - down))
        lost = before - after  # of every row under exp, of one row of each map below
        if kind == "exp":
            yield residual("P29", "exp: mass falls by exp(-L)", (lost - down[..., 0]) / (1 + before.abs()))
        else:
            yield bound("P29", f"{kind}: log of the mass lost", lost[:, 0], down[:, 0, 0])
    yield residual("P29", "ReLU: a row can be silent", weight(s - s.amax(-1, keepdim=True), kind="ReLU").sum())


def _weighting(s: Tensor, t: Tensor) -> Cases:
    """P29 (a, c): an exp map is the softmax rows weighted by their evidence; how far the softmax mean can move."""
    weighted = (s.logsumexp(-1).softmax(-1)[..., None] * s.softmax(-1)).sum(1)
    yield residual("P29", "exp: rows by evidence", shared_map(s, kind="exp") - weighted)
    limit = 2 / s.shape[1] * total_variation_bound(oscillation(t - s)).sum(1)
    yield bound("P29", "softmax mean: all rows count alike", _mean_change(s, t), limit)
    yield bound("P29", "exp: all rows count alike", _change(s, t, "exp"), limit, holds=False)


def _outvoted(s: Tensor, t: Tensor, lowered: int) -> Cases:
    """P29 (d): rows that change move a map by at most twice their share of its mass."""

    def limit(kind: str) -> Tensor:
        masses = (log_weight(u, kind=kind).logsumexp(-1) for u in (s, t))
        return 2 * torch.maximum(*(mass.softmax(-1)[:, :lowered].sum(1) for mass in masses))

    change = _mean_change(s, t)
    yield bound("P29", "softmax mean: share of the rows", change, 2 * (lowered / s.shape[1]))
    for kind in ("exp", "sigmoid", "elu + 1"):
        yield bound("P29", f"{kind}: share of the mass", _change(s, t, kind), limit(kind))
    yield bound("P29", "softmax mean: share of the mass", change, limit("exp"), holds=False)


def _change(s: Tensor, t: Tensor, kind: str) -> Tensor:
    """How far, in l1, the shared map moves."""
    return (shared_map(t, kind=kind) - shared_map(s, kind=kind)).abs().sum(-1)


def _mean_change(s: Tensor, t: Tensor) -> Tensor:
    """How far, in l1, the mean of the softmax rows moves."""
    return (t.softmax(-1) - s.softmax(-1)).mean(1).abs().sum(1)
