"""P30 and P31: what makes two tokens change places, and what cannot."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from attrobust import statements
from attrobust.theory import kernels, rows
from attrobust.trials.cases import over_cases
from attrobust.trials.sensitivity import alike
from attrobust.versions import versioned


class Pair(NamedTuple):
    """Queries with two keys each: the one ahead and the one behind."""

    query: Float[Tensor, "*some rows dim"]
    ahead: Float[Tensor, "*some rows dim"]
    behind: Float[Tensor, "*some rows dim"]


@versioned(1)
@over_cases
def swapped(case: int) -> Iterator[pd.DataFrame]:
    """P30 on 15 queries with two keys each: radii, equal norms, gradients, Lipschitz constants."""
    g = torch.Generator().manual_seed(case)
    dim = int(torch.randint(2, 9, (1,), generator=g))
    draw = 10 ** (torch.rand(3, 15, 1, generator=g, dtype=torch.float64) - 0.5)
    query, one, other = draw * torch.randn(3, 15, dim, generator=g, dtype=torch.float64)
    for score in ("dot", "distance"):
        yield from _radius(score, _ordered(query, one, other, score), g)
    near = (torch.arange(15)[:, None] % 2) * 3 * query / query.norm(dim=1, keepdim=True)
    length = query.norm(dim=1, keepdim=True) * draw[1]
    one, other = (length * k / k.norm(dim=1, keepdim=True) for k in (near + one, near + other))
    yield from _equal_norms(_ordered(query, one, other, "dot"))
    yield from _gradients(query, one)
    yield from _lipschitz(query, g)


@versioned(1)
@over_cases
def same_ranks(case: int) -> Iterator[pd.DataFrame]:
    """P31: links, normalised or not, rank one row alike, before and after each of six changes of the scores."""
    s = rows.scores(case)
    s = s * (8 / s.abs().amax(1, keepdim=True)).clamp(max=1)  # ranks of weights themselves, no underflow
    attacks = [rows.moved(s, seed=100 * case + i) for i in range(6)]
    attacks = [t * (8 / t.abs().amax(1, keepdim=True)).clamp(max=1) for t in attacks]
    told = torch.stack([alike(s, t) for t in attacks])
    for kind in kernels.SMOOTH:
        plain = [kernels.weight(u, kind=kind) for u in (s, *attacks)]
        for norm, maps in {"": plain, ", normalised": [a / a.sum(1, keepdim=True) for a in plain]}.items():
            seen = torch.stack([alike(maps[0], a) for a in maps[1:]])
            yield statements.residuals("P31", f"six attacks on one row, {kind}{norm}", (seen - told).abs().max())
    seen = torch.stack([alike(s.relu(), t.relu()) for t in attacks])
    yield statements.residuals("wrong", "P31 one row, ReLU", (seen - told).abs().max())
    together = [ranks(m[None])[0] for m in (s.softmax(1).mean(0), kernels.shared_map(s, kind="exp"))]
    yield statements.residuals("wrong", "P31 several rows in one map", (together[1] - together[0]).abs().max())
    yield from _scores_compared(case)


@versioned(1)
def swap_radii(cases: int, seed: int) -> pd.DataFrame:
    """Radius under distance over radius under the dot product, over the mean distance in lengths of the query."""
    g = torch.Generator().manual_seed(seed)
    query, one, other = torch.randn(3, cases, 8, generator=g, dtype=torch.float64)
    near = torch.rand(2, cases, 1, generator=g, dtype=query.dtype)
    one, other = (n * k + (1 - n) * query for n, k in zip(near, (one, other), strict=True))
    length = query.norm(dim=1, keepdim=True)
    even = [length * k / k.norm(dim=1, keepdim=True) for k in (one, other)]
    parts = []
    for name, keys in (("keys of the query's length", even), ("keys of any length", [one, other])):
        dot, far = (radius(_ordered(query, *keys, score), score) for score in ("dot", "distance"))
        mean = sum((k - query).norm(dim=1) for k in keys) / 2
        parts.append(pd.DataFrame({"name": name, "x": mean / length[:, 0], "y": far / dot}))
    return pd.concat(parts)


def radius(pair: Pair, score: str) -> Float[Tensor, "*some rows"]:
    """Smallest joint l2 change of the two keys that lets them draw level (P30)."""
    if score == "dot":
        return (pair.query * (pair.ahead - pair.behind)).sum(1) / (math.sqrt(2) * pair.query.norm(dim=1))
    return ((pair.behind - pair.query).norm(dim=1) - (pair.ahead - pair.query).norm(dim=1)) / math.sqrt(2)


def lead(pair: Pair, score: str) -> Float[Tensor, "*some rows"]:
    """How far the key ahead is ahead: difference of the products, or of the distances."""
    if score == "dot":
        return (pair.query * (pair.ahead - pair.behind)).sum(-1)
    return (pair.behind - pair.query).norm(dim=-1) - (pair.ahead - pair.query).norm(dim=-1)


def ranks(values: Float[Tensor, "rows keys"]) -> Float[Tensor, "rows keys"]:
    """Ranks along the keys; ties share one."""
    return torch.from_numpy(rankdata(values.numpy(), axis=1))


def _radius(score: str, pair: Pair, g: torch.Generator) -> Iterator[pd.DataFrame]:
    """The radius is attained, nothing found gets further, and just beyond it the order turns."""
    far, start = radius(pair, score)[:, None], lead(pair, score)
    best = _straight(pair, score)
    size = pair.query.norm(dim=1) if score == "dot" else torch.ones_like(start)
    level = lead(_changed(pair, far * best), score) / (size * (1 + sum(k.norm(dim=1) for k in pair)))
    yield statements.residuals("P30", f"{score}: the radius is attained", level.abs().max())
    wander = torch.randn(40, *best.shape, generator=g, dtype=best.dtype)
    wander *= torch.logspace(-4, 1, 40, dtype=best.dtype)[:, None, None] / math.sqrt(best.shape[1])
    tried = best + wander
    tried = tried / tried.norm(dim=-1, keepdim=True)
    gained = (start - lead(_changed(pair, 0.999 * far * tried), score)).amax(0)
    limit = math.sqrt(2) * size * 0.999 * far[:, 0]
    yield statements.bound("P30", f"{score}: best of 40 changes", gained, limit)
    yield statements.bound("P30", f"{score}: order within the radius", (gained > start).double(), 0.0)
    turned = lead(_changed(pair, 1.001 * far * best), score) < 0
    yield statements.bound("wrong", f"P30 {score}: order just beyond the radius", turned.double(), 0.0)
    if score == "dot":
        yield statements.bound("wrong", "P30 dot: the radius of one key for two", gained, limit / math.sqrt(2))


def _equal_norms(pair: Pair) -> Iterator[pd.DataFrame]:
    """With keys of one length both scores rank alike, and the radii have the ratio 2 |q| / (d_i + d_j)."""
    dot, far = radius(pair, "dot"), radius(pair, "distance")
    ahead, behind = ((k - pair.query).norm(dim=1) for k in (pair.ahead, pair.behind))
    length, size = pair.query.norm(dim=1), pair.query.norm(dim=1) + pair.ahead.norm(dim=1)
    off = (far * (ahead + behind) - 2 * length * dot) / size.square()
    yield statements.residuals("P30", "ratio of the radii, keys of one length", off.abs().max())
    near = ahead + behind < 2 * length
    yield statements.bound("P30", "distance is safer for near keys", dot[near], far[near])
    yield statements.bound("wrong", "P30 distance is always safer", dot, far)


def _gradients(query: Tensor, key: Tensor) -> Iterator[pd.DataFrame]:
    """Gradients of the two scores in the key: |q| and |q - k|."""
    at = key.clone().requires_grad_()
    dot, half = (query * at).sum(), -(query - at).square().sum() / 2
    (steep,), (flat,) = torch.autograd.grad(dot, at), torch.autograd.grad(half, at)
    yield statements.identity("P30", "gradient of the dot product", steep.norm(dim=1), query.norm(dim=1))
    yield statements.identity("P30", "gradient of the distance", flat.norm(dim=1), (query - key).norm(dim=1))


def _lipschitz(query: Tensor, g: torch.Generator) -> Iterator[pd.DataFrame]:
    """How fast the weight of one key of two can move with the key, for keys at all distances from the query."""
    width = 10 ** (torch.rand(len(query), 1, generator=g, dtype=query.dtype) - 0.5)
    away, aside = torch.randn(2, *query.shape, generator=g, dtype=query.dtype)
    share = 10 ** (2 * torch.rand(len(query), 1, generator=g, dtype=query.dtype) - 1)
    share[::3] = 1 + 0.01 * away[::3, :1]  # at one width the Gaussian is steepest
    reach = share * width
    further = torch.where(torch.arange(len(query))[:, None] % 2 == 0, reach, reach + aside[:, :1].abs() * width)
    first, second = (query + r * u / u.norm(dim=1, keepdim=True) for r, u in ((reach, away), (further, aside)))
    at = first.clone().requires_grad_()
    logs = [-(query - k).square().sum(1) / (2 * width[:, 0] ** 2) for k in (at, second)]
    product = torch.exp((query * at).sum(1) / width[:, 0] ** 2)
    weights = (logs[0].exp(), torch.sigmoid(logs[0] - logs[1]), product)
    rates = [torch.autograd.grad(w.sum(), at, retain_graph=True)[0].norm(dim=1) for w in weights]
    limit = math.exp(-0.5) / width[:, 0]
    yield statements.bound("P30", "Gaussian: Lipschitz in a key", rates[0], limit)
    quarter = (query - first).norm(dim=1) / (4 * width[:, 0] ** 2)
    yield statements.bound("P30", "Gaussian, normalised: grows with the distance", rates[1], quarter)
    yield statements.bound("wrong", "P30 Gaussian, normalised: Lipschitz in a key", rates[1], limit)
    finite = rates[2].isfinite()
    yield statements.bound("wrong", "P30 exp of the dot product: Lipschitz in a key", rates[2][finite], limit[finite])


def _scores_compared(case: int) -> Iterator[pd.DataFrame]:
    """P31: product and distance rank keys of one length alike, and keys of several lengths not."""
    g = torch.Generator().manual_seed(case)
    count, dim = (int(torch.randint(low, high, (1,), generator=g)) for low, high in ((3, 40), (2, 9)))
    query, keys = (torch.randn(15, n, dim, generator=g, dtype=torch.float64) for n in (1, count))
    for name, k in (("P31", 3 * keys / keys.norm(dim=2, keepdim=True)), ("wrong", keys)):
        by_dot, by_distance = ranks((query * k).sum(2)), ranks(-(query - k).norm(dim=2))
        arm = "dot and distance, keys of one length" if name == "P31" else "P31 dot and distance, keys of any length"
        yield statements.residuals(name, arm, (by_dot - by_distance).abs().max())


def _ordered(query: Tensor, one: Tensor, other: Tensor, score: str) -> Pair:
    """The pair with the key that leads under this score first."""
    leads = (lead(Pair(query, one, other), score) >= 0)[:, None]
    return Pair(query, torch.where(leads, one, other), torch.where(leads, other, one))


def _straight(pair: Pair, score: str) -> Float[Tensor, "rows twodim"]:
    """Direction of the shortest joint change, of length 1: key ahead and key behind, side by side."""
    if score == "dot":
        away = back = -pair.query / pair.query.norm(dim=1, keepdim=True)
    else:
        away, back = ((k - pair.query) / (k - pair.query).norm(dim=1, keepdim=True) for k in (pair.ahead, pair.behind))
    return torch.cat([away, -back], 1) / math.sqrt(2)


def _changed(pair: Pair, change: Float[Tensor, "*some rows twodim"]) -> Pair:
    away, back = change.chunk(2, -1)
    return Pair(pair.query, pair.ahead + away, pair.behind + back)
