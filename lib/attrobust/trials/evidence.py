"""P28 and P29: whose evidence counts in a map made of several rows, and whom the change of one score reaches."""

import math
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor

from attrobust import entropy, similarity, statements
from attrobust.theory import kernels, rows
from attrobust.trials.cases import over_cases
from attrobust.versions import versioned

#: Links of the sweep over evidence, beside softmax.
SHOWN = ("exp", "sigmoid", "ReLU")


@versioned(1)
@over_cases
def shared_maps(case: int) -> Iterator[pd.DataFrame]:
    """P28 on 15 maps of 2 to 6 rows each; the first rows of every map are lowered, and only they change."""
    g = torch.Generator().manual_seed(case)
    count = int(torch.randint(2, 7, (1,), generator=g))
    lowered = int(torch.randint(1, count, (1,), generator=g))
    flat = rows.scores(case, rows=15 * count)
    s, t = (u.unflatten(0, (15, count)) for u in (flat, rows.moved(flat, seed=case)))
    down = 6 * torch.rand(15, 1, 1, generator=g, dtype=s.dtype)
    yield from _abstention(s, down)
    yield from _weighting(s, t)
    changes = torch.arange(count)[:, None] < lowered
    s = torch.where(changes, s - down, s)
    yield from _outvoted(s, torch.where(changes, t - down, s), lowered)


@versioned(1)
@over_cases
def one_score(case: int) -> Iterator[pd.DataFrame]:
    """P29: one score of each row changes; what softmax does, and what a kernel without normalisation does."""
    s, g = rows.scores(case), torch.Generator().manual_seed(case)
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
    yield statements.residuals("P29", "softmax: change of the key", (at - formula).abs().max())
    yield statements.residuals("P29", "softmax: half falls on other keys", (total - 2 * at.abs()).abs().max())
    yield statements.bound("P29", "softmax: change and score", at.abs(), torch.tanh(change[:, 0].abs() / 4))
    yield statements.residuals("wrong", "P29 softmax: others stay", (total - at.abs()).abs().max())
    for kind in kernels.KINDS:
        logs = [kernels.log_weight(u, kind=kind) for u in (s, t)]
        weights = [(u - torch.maximum(*logs).amax(1, keepdim=True)).exp() for u in logs]
        away = (weights[1] - weights[0]).scatter(1, j, 0).abs().sum(1)
        yield statements.residuals("P29", f"{kind}: others stay", away.max())
    maps = [kernels.log_weight(u, kind="sigmoid").softmax(1) for u in (s, t)]
    away = (maps[1] - maps[0]).scatter(1, j, 0).abs().sum(1).max()
    yield statements.residuals("wrong", "P29 sigmoid, rows normalised: others stay", away)


@versioned(1)
def evidence_sweep(shifts: Sequence[float], keys: int, seeds: Sequence[int], *, k: int = 5) -> pd.DataFrame:
    """Similarity of maps before and after noise, while 18 rows that know nothing are lowered beside 2 that know.

    The two rows share one pattern of size 2; the 18 have scores of size 1 of their own. Noise of size 0.8 meets all
    scores alike. The sigmoid has the bias -log(keys).
    """
    parts = []
    for shift in shifts:
        for seed in seeds:
            g = torch.Generator().manual_seed(seed)
            pattern, own, noise = (torch.randn(n, keys, generator=g, dtype=torch.float64) for n in (1, 18, 20))
            s = torch.cat([2 * pattern.expand(2, keys), own - shift])
            for name, (first, second) in _maps(s, s + 0.8 * noise).items():
                a, b = (m[None, None] for m in (first, second))
                numbers = {
                    f"top-{k}": similarity.topk_intersection(a, b, k=k),
                    "Spearman": similarity.spearman(a, b),
                    "plain cosine": similarity.cosine(a[None], b[None]),
                }
                common = {"kernel": name, "shift": shift, "seed": seed}
                parts += [{**common, "name": n, "value": float(v)} for n, v in numbers.items()]
    return pd.DataFrame(parts)


def _abstention(s: Tensor, down: Tensor) -> Iterator[pd.DataFrame]:
    """P28 (b): what a row gives when all its scores are lowered."""
    still = (s - down).softmax(-1) - s.softmax(-1)
    yield statements.residuals("P28", "softmax: lowering a row changes nothing", still.abs().max())
    for kind in kernels.SMOOTH:
        before, after = (kernels.log_weight(u, kind=kind).logsumexp(-1) for u in (s, s - down))
        lost = before - after  # of every row under exp, of one row of each map below
        if kind == "exp":
            off = ((lost - down[..., 0]) / (1 + before.abs())).abs().max()
            yield statements.residuals("P28", "exp: mass falls by exp(-L)", off)
        else:
            yield statements.bound("P28", f"{kind}: log of the mass lost", lost[:, 0], down[:, 0, 0])
    silent = kernels.weight(s - s.amax(-1, keepdim=True), kind="ReLU").sum()
    yield statements.residuals("P28", "ReLU: a row can be silent", silent)


def _weighting(s: Tensor, t: Tensor) -> Iterator[pd.DataFrame]:
    """P28 (a, c): an exp map is the softmax rows weighted by their evidence; how far the softmax mean can move."""
    count = s.shape[1]
    share = s.logsumexp(-1).softmax(-1)
    weighted = (share[..., None] * s.softmax(-1)).sum(1)
    off = kernels.shared_map(s, kind="exp") - weighted
    yield statements.residuals("P28", "exp: rows by evidence", off.abs().max())
    change = (t.softmax(-1) - s.softmax(-1)).mean(1).abs().sum(1)
    limit = 2 / count * entropy.total_variation_bound(entropy.oscillation(t - s)).sum(1)
    yield statements.bound("P28", "softmax mean: all rows count alike", change, limit)
    change = _change(s, t, "exp")
    yield statements.bound("wrong", "P28 exp: all rows count alike", change, limit)


def _outvoted(s: Tensor, t: Tensor, lowered: int) -> Iterator[pd.DataFrame]:
    """P28 (d): rows that change move a map by at most twice their share of its mass."""
    share = lowered / s.shape[1]
    change = (t.softmax(-1) - s.softmax(-1)).mean(1).abs().sum(1)
    yield statements.bound("P28", "softmax mean: share of the rows", change, torch.full_like(change, 2 * share))
    for kind in ("exp", "sigmoid", "elu + 1"):
        limit = 2 * torch.maximum(*(_share(u, kind, lowered) for u in (s, t)))
        yield statements.bound("P28", f"{kind}: share of the mass", _change(s, t, kind), limit)
    limit = 2 * torch.maximum(*(_share(u, "exp", lowered) for u in (s, t)))
    yield statements.bound("wrong", "P28 softmax mean: share of the mass", change, limit)


def _change(s: Tensor, t: Tensor, kind: str) -> Tensor:
    return (kernels.shared_map(t, kind=kind) - kernels.shared_map(s, kind=kind)).abs().sum(-1)


def _share(s: Tensor, kind: str, lowered: int) -> Tensor:
    """Share of the mass that the first rows hold."""
    return kernels.log_weight(s, kind=kind).logsumexp(-1).softmax(-1)[:, :lowered].sum(1)


def _maps(s: Tensor, t: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Clean and noisy map of softmax and of every link shown."""
    maps = {"softmax": (s.softmax(1).mean(0), t.softmax(1).mean(0))}
    for kind in SHOWN:
        bias = math.log(s.shape[1]) if kind == "sigmoid" else 0.0
        maps[kind] = (kernels.shared_map(s - bias, kind=kind), kernels.shared_map(t - bias, kind=kind))
    return maps
