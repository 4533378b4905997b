"""What makes two keys change places under one query: product against distance (P31).

    radius     smallest joint l2 change of the keys that lets them draw level
               product   q . (k_i - k_j) / (sqrt 2 |q|),     distance   (d_j - d_i) / sqrt 2,   d_i = |q - k_i|
    gradient   in the key: |q| for the product, d_i for half the squared distance
    weight     exp(-d^2 / 2 sigma^2) moves with its key at a rate of at most exp(-1/2) / sigma; divided by the sum of
               two such weights at most d / (4 sigma^2), which is attained and has no bound in d

With keys of one length both scores rank alike and the radii have the ratio 2 |q| / (d_i + d_j). Ours; that attention by
products is not Lipschitz: Kim et al. 2021.
"""

import math
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from attrobust.theory.draws import Source
from attrobust.theory.tally import Cases, bound, equalities, identity, residual, trial

Vectors = Float[Tensor, "*some rows dim"]


class Pair(NamedTuple):
    """Queries with two keys each: the one ahead and the one behind."""

    query: Vectors
    ahead: Vectors
    behind: Vectors


@trial(version=1)
def swapped(case: int) -> Cases:
    """P31 on 15 queries with two keys each: radii, equal norms, gradients, Lipschitz constants."""
    g = Source(case)
    dim, draw = g.whole(2, 8), 10 ** (g.uniform(3, 15, 1) - 0.5)
    query, one, other = draw * g.normal(3, 15, dim)
    for score in ("dot", "distance"):
        yield from _radius(score, ordered(query, one, other, score), g)
    length = query.norm(dim=1, keepdim=True)
    near, length = (torch.arange(15)[:, None] % 2) * 3 * query / length, length * draw[1]
    one, other = (length * k / k.norm(dim=1, keepdim=True) for k in (near + one, near + other))
    yield from _equal_norms(ordered(query, one, other, "dot"))
    at = one.clone().requires_grad_()
    dot, half = (query * at).sum(), -(query - at).square().sum() / 2
    (steep,), (flat,) = torch.autograd.grad(dot, at), torch.autograd.grad(half, at)
    yield identity("P31", "gradient of the dot product", steep.norm(dim=1), query.norm(dim=1))
    yield identity("P31", "gradient of the distance", flat.norm(dim=1), (query - one).norm(dim=1))
    yield from _lipschitz(query, g)


def radius(pair: Pair, score: str) -> Float[Tensor, "*some rows"]:
    """Smallest joint l2 change of the two keys that lets them draw level (P31)."""
    return lead(pair, score) / (math.sqrt(2) * (pair.query.norm(dim=-1) if score == "dot" else 1.0))


def lead(pair: Pair, score: str) -> Float[Tensor, "*some rows"]:
    """How far the key ahead is ahead: difference of the products, or of the distances."""
    if score == "dot":
        return (pair.query * (pair.ahead - pair.behind)).sum(-1)
    return (pair.behind - pair.query).norm(dim=-1) - (pair.ahead - pair.query).norm(dim=-1)


def ordered(query: Tensor, one: Tensor, other: Tensor, score: str) -> Pair:
    """The pair with the key that leads under this score first."""
    leads = (lead(Pair(query, one, other), score) >= 0)[:, None]
    return Pair(query, torch.where(leads, one, other), torch.where(leads, other, one))


def equality() -> pd.DataFrame:
    """The query at 0 and keys at distance 0.7, which is one width of the Gaussian."""
    at = torch.tensor([0.7, 0.7], dtype=torch.float64, requires_grad=True)
    own = torch.exp(-at.square() / (2 * 0.7**2))
    (steep,) = torch.autograd.grad(own.sum(), at, retain_graph=True)
    (normed,) = torch.autograd.grad(own[0] / own.sum(), at)
    return equalities({
        ("P31", "Gaussian at one width"): (steep[0].abs(), math.exp(-0.5) / 0.7),
        ("P31", "two keys as near"): (normed[0].abs(), 0.7 / (4 * 0.7**2)),
    })  # fmt: skip


def _radius(score: str, pair: Pair, g: Source) -> Cases:
    """The radius is attained, nothing found gets further, and just beyond it the order turns."""
    far, start = radius(pair, score)[:, None], lead(pair, score)
    size = pair.query.norm(dim=1) if score == "dot" else torch.ones_like(start)
    if score == "dot":
        away = back = -_unit(pair.query)
    else:
        away, back = (_unit(k - pair.query) for k in (pair.ahead, pair.behind))
    best = torch.cat([away, -back], 1) / math.sqrt(2)  # the shortest joint change, of length 1

    def led(change: Tensor) -> Tensor:
        away, back = change.chunk(2, -1)
        return lead(Pair(pair.query, pair.ahead + away, pair.behind + back), score)

    level = led(far * best) / (size * (1 + sum(k.norm(dim=1) for k in pair)))
    yield residual("P31", f"{score}: the radius is attained", level)
    wander = torch.logspace(-4, 1, 40, dtype=best.dtype)[:, None, None] / math.sqrt(best.shape[1])
    tried = best + g.normal(40, *best.shape) * wander
    gained = (start - led(0.999 * far * (tried / tried.norm(dim=-1, keepdim=True)))).amax(0)
    limit = math.sqrt(2) * size * 0.999 * far[:, 0]
    yield bound("P31", f"{score}: best of 40 changes", gained, limit)
    yield bound("P31", f"{score}: order within the radius", (gained > start).double(), 0.0)
    turned = (led(1.001 * far * best) < 0).double()
    yield bound("P31", f"{score}: order just beyond the radius", turned, 0.0, holds=False)
    if score == "dot":
        yield bound("P31", "dot: the radius of one key for two", gained, limit / math.sqrt(2), holds=False)


def _equal_norms(pair: Pair) -> Cases:
    """With keys of one length both scores rank alike, and the radii have the ratio 2 |q| / (d_i + d_j)."""
    dot, far = radius(pair, "dot"), radius(pair, "distance")
    both = (pair.ahead - pair.query).norm(dim=1) + (pair.behind - pair.query).norm(dim=1)
    length, size = pair.query.norm(dim=1), pair.query.norm(dim=1) + pair.ahead.norm(dim=1)
    off = (far * both - 2 * length * dot) / size.square()
    yield residual("P31", "ratio of the radii, keys of one length", off)
    near = both < 2 * length
    yield bound("P31", "distance is safer for near keys", dot[near], far[near])
    yield bound("P31", "distance is always safer", dot, far, holds=False)


def _lipschitz(query: Tensor, g: Source) -> Cases:
    """How fast the weight of one key of two can move with the key, for keys at all distances from the query."""
    rows = len(query)
    width = 10 ** (g.uniform(rows, 1) - 0.5)
    away, aside = g.normal(2, *query.shape)
    share = 10 ** (2 * g.uniform(rows, 1) - 1)
    share[::3] = 1 + 0.01 * away[::3, :1]  # at one width the Gaussian is steepest
    reach = share * width
    further = torch.where(torch.arange(rows)[:, None] % 2 == 0, reach, reach + aside[:, :1].abs() * width)
    first, second = (query + r * u / u.norm(dim=1, keepdim=True) for r, u in ((reach, away), (further, aside)))
    at, width = first.clone().requires_grad_(), width[:, 0]
    logs = [-(query - k).square().sum(1) / (2 * width**2) for k in (at, second)]
    weights = (logs[0].exp(), torch.sigmoid(logs[0] - logs[1]), torch.exp((query * at).sum(1) / width**2))
    own, normed, product = (torch.autograd.grad(w.sum(), at, retain_graph=True)[0].norm(dim=1) for w in weights)
    limit, finite = math.exp(-0.5) / width, product.isfinite()
    yield bound("P31", "Gaussian: Lipschitz in a key", own, limit)
    quarter = (query - first).norm(dim=1) / (4 * width**2)
    yield bound("P31", "Gaussian, normalised: grows with the distance", normed, quarter)
    yield bound("P31", "Gaussian, normalised: Lipschitz in a key", normed, limit, holds=False)
    arm = "exp of the dot product: Lipschitz in a key"
    yield bound("P31", arm, product[finite], limit[finite], holds=False)


def _unit(vectors: Vectors) -> Vectors:
    return vectors / vectors.norm(dim=-1, keepdim=True)
