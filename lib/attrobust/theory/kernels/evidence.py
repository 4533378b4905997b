"""Whose evidence counts in a map made of several rows (P29), and whom the change of one score reaches (P30).

Rows r = 1..R with scores s_r, softmax p_r and Z_r = sum_i exp(s_ri). Summed and divided once, un-normalised exp rows
give sum_r Z_r p_r / sum Z; the softmax mean is sum_r p_r / R. Rows that hold shares W before and W' after of the mass
move a shared map by at most 2 max(W, W') in l1, under every kernel. If only the score of key j changes, by t, then

    softmax       Delta p_j = p_j (1 - p_j) (e^t - 1) / (1 - p_j + p_j e^t),   |Delta p|_1 = 2 |Delta p_j|
    undivided     |Delta a|_1 = |Delta a_j|

Ours; "probability cage": Richter and Wattenhofer 2020.
"""

from collections.abc import Iterator

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from attrobust.theory import draws, entropy, tally
from attrobust.theory.kernels import links
from attrobust.versions import versioned


def shared_map(scores: Float[Tensor, "*batch rows keys"], *, kind: str) -> Float[Tensor, "*batch keys"]:
    """One map out of several rows: weights summed over the rows, divided by their sum over all rows and keys.

    All weights are divided by the largest one first, which the division by the sum removes again.

    Raises:
        ValueError: for an unknown `kind`, or where all weights are 0.

    Example:
        >>> shared_map(torch.tensor([[3.0, 1.0], [-1.0, -2.0]]).double(), kind="ReLU").round(decimals=9).tolist()
        [0.75, 0.25]
    """
    logs = links.log_weight(scores, kind=kind)
    top = logs.amax((-2, -1), keepdim=True)
    if bool((top == -torch.inf).any()):
        raise ValueError(f"scores give no weight above 0 under {kind}; a map needs at least one")
    weights = (logs - top).exp().sum(-2)
    return weights / weights.sum(-1, keepdim=True)


@versioned(1)
@tally.over_cases
def shared_maps(case: int) -> Iterator[pd.DataFrame]:
    """P29 on 15 maps of 2 to 6 rows each; the first rows of every map are lowered, and only they change."""
    g = torch.Generator().manual_seed(case)
    count = int(torch.randint(2, 7, (1,), generator=g))
    lowered = int(torch.randint(1, count, (1,), generator=g))
    flat = draws.scores(case, rows=15 * count)
    s, t = (u.unflatten(0, (15, count)) for u in (flat, draws.moved(flat, seed=case)))
    down = 6 * torch.rand(15, 1, 1, generator=g, dtype=s.dtype)
    yield from _abstention(s, down)
    yield from _weighting(s, t)
    changes = torch.arange(count)[:, None] < lowered
    s = torch.where(changes, s - down, s)
    yield from _outvoted(s, torch.where(changes, t - down, s), lowered)


@versioned(1)
@tally.over_cases
def one_score(case: int) -> Iterator[pd.DataFrame]:
    """P30: one score of each row changes; what softmax does, and what a kernel without normalisation does."""
    s, g = draws.scores(case), torch.Generator().manual_seed(case)
    s = s - s.mean(1, keepdim=True)  # ReLU then gives weight to one key at least
    j = torch.randint(0, s.shape[1], (len(s), 1), generator=g)
    change = 3 * torch.randn(len(s), 1, generator=g, dtype=s.dtype)
    change[::3] = torch.logit(s.softmax(1).gather(1, j)[::3].clamp(1e-6, 1 - 1e-6)) * -2  # the key swaps its odds
    t = s.scatter_add(1, j, change)
    p, moved = s.softmax(1), t.softmax(1) - s.softmax(1)
    at, total = moved.gather(1, j)[:, 0], moved.abs().sum(1)
    first, grown = p.gather(1, j)[:, 0], change[:, 0].expm1()
    others = p.scatter(1, j, 0).sum(1)  # 1 - p_j without cancellation
    formula = first * others * grown / (others + first * change[:, 0].exp())
    yield tally.residuals("P30", "softmax: change of the key", (at - formula).abs().max())
    yield tally.residuals("P30", "softmax: half falls on other keys", (total - 2 * at.abs()).abs().max())
    yield tally.bound("P30", "softmax: change and score", at.abs(), torch.tanh(change[:, 0].abs() / 4))
    yield tally.residuals("P30", "softmax: others stay", (total - at.abs()).abs().max(), holds=False)
    for kind in links.KINDS:
        logs = [links.log_weight(u, kind=kind) for u in (s, t)]
        weights = [(u - torch.maximum(*logs).amax(1, keepdim=True)).exp() for u in logs]
        away = (weights[1] - weights[0]).scatter(1, j, 0).abs().sum(1)
        yield tally.residuals("P30", f"{kind}: others stay", away.max())
    maps = [links.log_weight(u, kind="sigmoid").softmax(1) for u in (s, t)]
    away = (maps[1] - maps[0]).scatter(1, j, 0).abs().sum(1).max()
    yield tally.residuals("P30", "sigmoid, rows normalised: others stay", away, holds=False)


def equality() -> pd.DataFrame:
    """Scores below 0, where elu + 1 is exp; rows that all swap; one row of two that moves; two keys that swap."""
    low = torch.tensor([-9.0, -7.0, -8.0], dtype=torch.float64)
    mass = [links.log_weight(u, kind="elu + 1").logsumexp(0) for u in (low, low - 3)]
    swap = torch.tensor([[1.3, -1.3]] * 3, dtype=torch.float64)
    gained = swap.softmax(1) - (-swap).softmax(1)
    limit = entropy.total_variation_bound(entropy.oscillation(2 * swap))
    # Two rows, each with all its weight on one key; the second row's key changes.
    steady, turned = torch.full((2, 2, 3), -60.0, dtype=torch.float64)
    steady[0, 0] = steady[1, 1] = turned[0, 0] = turned[1, 2] = 0.0
    moved = shared_map(turned, kind="exp") - shared_map(steady, kind="exp")
    return tally.equalities({
        ("P29", "scores below 0"): (mass[0] - mass[1], 3.0),
        ("P29", "all rows swap"): (gained.mean(0).abs().sum(), 2 * limit.mean()),
        ("P29", "half the mass moves"): (moved.abs().sum(), 1.0),
        ("P30", "two keys swap"): (gained[0, 0], entropy.total_variation_bound(torch.tensor(5.2, dtype=torch.float64))),
    })  # fmt: skip


def _abstention(s: Tensor, down: Tensor) -> Iterator[pd.DataFrame]:
    """P29 (b): what a row gives when all its scores are lowered."""
    still = (s - down).softmax(-1) - s.softmax(-1)
    yield tally.residuals("P29", "softmax: lowering a row changes nothing", still.abs().max())
    for kind in links.SMOOTH:
        before, after = (links.log_weight(u, kind=kind).logsumexp(-1) for u in (s, s - down))
        lost = before - after  # of every row under exp, of one row of each map below
        if kind == "exp":
            off = ((lost - down[..., 0]) / (1 + before.abs())).abs().max()
            yield tally.residuals("P29", "exp: mass falls by exp(-L)", off)
        else:
            yield tally.bound("P29", f"{kind}: log of the mass lost", lost[:, 0], down[:, 0, 0])
    silent = links.weight(s - s.amax(-1, keepdim=True), kind="ReLU").sum()
    yield tally.residuals("P29", "ReLU: a row can be silent", silent)


def _weighting(s: Tensor, t: Tensor) -> Iterator[pd.DataFrame]:
    """P29 (a, c): an exp map is the softmax rows weighted by their evidence; how far the softmax mean can move."""
    count = s.shape[1]
    share = s.logsumexp(-1).softmax(-1)
    weighted = (share[..., None] * s.softmax(-1)).sum(1)
    off = shared_map(s, kind="exp") - weighted
    yield tally.residuals("P29", "exp: rows by evidence", off.abs().max())
    change = (t.softmax(-1) - s.softmax(-1)).mean(1).abs().sum(1)
    limit = 2 / count * entropy.total_variation_bound(entropy.oscillation(t - s)).sum(1)
    yield tally.bound("P29", "softmax mean: all rows count alike", change, limit)
    yield tally.bound("P29", "exp: all rows count alike", _change(s, t, "exp"), limit, holds=False)


def _outvoted(s: Tensor, t: Tensor, lowered: int) -> Iterator[pd.DataFrame]:
    """P29 (d): rows that change move a map by at most twice their share of its mass."""
    share = lowered / s.shape[1]
    change = (t.softmax(-1) - s.softmax(-1)).mean(1).abs().sum(1)
    yield tally.bound("P29", "softmax mean: share of the rows", change, torch.full_like(change, 2 * share))
    for kind in ("exp", "sigmoid", "elu + 1"):
        limit = 2 * torch.maximum(*(_share(u, kind, lowered) for u in (s, t)))
        yield tally.bound("P29", f"{kind}: share of the mass", _change(s, t, kind), limit)
    limit = 2 * torch.maximum(*(_share(u, "exp", lowered) for u in (s, t)))
    yield tally.bound("P29", "softmax mean: share of the mass", change, limit, holds=False)


def _change(s: Tensor, t: Tensor, kind: str) -> Tensor:
    return (shared_map(t, kind=kind) - shared_map(s, kind=kind)).abs().sum(-1)


def _share(s: Tensor, kind: str, lowered: int) -> Tensor:
    """Share of the mass that the first rows hold."""
    return links.log_weight(s, kind=kind).logsumexp(-1).softmax(-1)[:, :lowered].sum(1)
