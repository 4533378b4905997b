"""Attention kernels: what links (P27, P28), shared maps (P29, P30) and scores (P31) decide, and ranks, which stay.

A *link* makes a weight out of a score and asks no other score. How fast the weight grows is said by

    slope         psi(s) = d log kappa(s) / ds       what adding to a score does to the logarithm of its weight
    elasticity    m(s) = s psi(s)                    what multiplying a score does to it

P27  The elasticity is constant iff the link is a power, s^m; it rises with the score for exp, softplus and elu + 1, and
     for the sigmoid it rises and falls again. A factor c >= 1 on positive scores moves a row by at most log c times the
     range of m in Hilbert's distance.
P28  The slope is at most 1 for exp, sigmoid, softplus and elu + 1, and unbounded for ReLU, near its threshold. A change
     D of the scores moves a row by at most sup psi (max(0, max D) - min(0, min D)). Softmax is exp over the row's sum.
P29  Rows r = 1..R have scores s_r, softmax p_r and Z_r = sum_i exp(s_ri). Summed and divided once, un-normalised exp
     rows give sum_r Z_r p_r / sum Z; the softmax mean is sum_r p_r / R. Rows that hold shares W before and W' after of
     the mass move a shared map by at most 2 max(W, W') in l1, under every kernel.
P30  If only the score of key j changes, by t, then |Delta a|_1 = |Delta a_j| for undivided weights, and for softmax
     Delta p_j = p_j (1 - p_j) (e^t - 1) / (1 - p_j + p_j e^t),   |Delta p|_1 = 2 |Delta p_j|
     "Probability cage": Richter and Wattenhofer 2020.
P31  What makes two keys change places under one query, by the product or by the distance d_i = |q - k_i|:
     radius     smallest joint l2 change of the keys that lets them draw level
                product   q . (k_i - k_j) / (sqrt 2 |q|),     distance   (d_j - d_i) / sqrt 2
     gradient   in the key: |q| for the product, d_i for half the squared distance
     weight     exp(-d^2 / 2 sigma^2) moves with its key at a rate of at most exp(-1/2) / sigma; divided by the sum of
                two such weights at most d / (4 sigma^2), which is attained and has no bound in d; products: Kim 2021
     With keys of one length both scores rank alike and the radii have the ratio 2 |q| / (d_i + d_j).
P21, P32  No kernel and no scale changes the ranks of one row: for c > 0 the keys have one order under softmax(c s), s
     and k(s), for every strictly increasing kernel k, divided by its sum or not. So all rank metrics of one row, the
     change at which its ranks flip, and the attacks that flip them are the same for all of them. Several rows put
     together, ties, and other scores may differ. Ours, as all that names nobody.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from attrobust import attention, checks
from attrobust.theory import draws, entropy
from attrobust.theory.tally import Cases, bound, identity, residual, trial

Values = Float[Tensor, "..."]
Vectors = Float[Tensor, "*some rows dim"]

_TAIL = -40.0  # below this score softplus(s) is exp(s) up to less than half a unit of rounding in float64


def _softplus(s: Values) -> Values:
    return F.softplus(s.clamp(min=_TAIL), threshold=40)


#: Link -> logarithm of the weight, and its slope; exact where the weight itself would under- or overflow.
_LINKS: dict[str, tuple[Callable[[Values], Values], Callable[[Values], Values]]] = {
    "exp": (lambda s: s, torch.ones_like),
    "sigmoid": (F.logsigmoid, lambda s: (-s).sigmoid()),
    "softplus": (
        lambda s: torch.where(s < _TAIL, s, _softplus(s).log()),
        lambda s: torch.where(s < _TAIL, 1.0, s.sigmoid() / _softplus(s)),
    ),
    "elu + 1": (lambda s: torch.where(s < 0, s, s.clamp(min=0).log1p()), lambda s: 1 / (1 + s.clamp(min=0))),
    "ReLU": (lambda s: torch.where(s > 0, s, 0.0).log(), lambda s: torch.where(s > 0, 1 / s, torch.nan)),
    "ReLU²": (lambda s: 2 * torch.where(s > 0, s, 0.0).log(), lambda s: torch.where(s > 0, 2 / s, torch.nan)),
}
KINDS = tuple(_LINKS)
SMOOTH = ("exp", "sigmoid", "softplus", "elu + 1")  # strictly increasing links with a slope of at most 1
SHARPENING = ("exp", "softplus", "elu + 1")  # elasticity rises with the score: a larger scale always sharpens the row
POWERS = {"ReLU": 1, "ReLU²": 2}  # links that are powers of a positive score, with the power

#: Links that `attention` knows, by its names; its elu + 1 is one of queries and keys, the one here of the score.
ATTENTION = {"exp": "exp", "sigmoid": "sigmoid", "ReLU": "relu", "ReLU²": "relu"}


def weight(scores: Values, *, kind: str) -> Values:
    """Weight of each score, at least 0; rows are not normalised. Raises ValueError for an unknown `kind`.

    Example:
        >>> weight(torch.tensor([2.0, -1.0]), kind="ReLU").tolist(), weight(torch.tensor([0.0]), kind="exp").tolist()
        ([2.0, 0.0], [1.0])
    """
    if checks.one_of("kind", kind, KINDS) not in ATTENTION:
        return log_weight(scores, kind=kind).exp()
    one_key = torch.ones(())  # for which the sigmoid of attention has no bias
    return attention.LINKS[ATTENTION[kind]](scores, one_key) ** POWERS.get(kind, 1)


def log_weight(scores: Values, *, kind: str) -> Values:
    """Logarithm of `weight`; -inf where the weight is 0.

    Raises:
        ValueError: an unknown `kind`.

    Example:
        >>> log_weight(torch.tensor([2.0, 0.0]), kind="exp").tolist()
        [2.0, 0.0]
    """
    return _LINKS[checks.one_of("kind", kind, KINDS)][0](scores)


def slope(scores: Values, *, kind: str) -> Values:
    """Derivative of `log_weight`, psi(s); NaN where the weight is 0.

    Raises:
        ValueError: an unknown `kind`.

    Example:
        >>> slope(torch.tensor([2.0, 0.0]), kind="exp").tolist()
        [1.0, 1.0]
    """
    return _LINKS[checks.one_of("kind", kind, KINDS)][1](scores)


def elasticity(scores: Values, *, kind: str) -> Values:
    """Derivative of `log_weight` in the logarithm of the score's size, m(s) = s psi(s).

    Raises:
        ValueError: an unknown `kind`.

    Example:
        >>> elasticity(torch.tensor([2.0, 0.5]), kind="exp").tolist()
        [2.0, 0.5]
    """
    return scores * slope(scores, kind=kind)


@trial(version=1)
def rescaled(case: int) -> Cases:
    """P27 on random rows, each with a random factor: powers keep map and output, other links drift and sharpen."""
    s, g = draws.scores(case), draws.Source(case)
    centred, c, values = s - s.mean(1, keepdim=True), 10 ** (2 * g.uniform(len(s), 1) - 1), g.normal(*s.shape)
    for kind, power in POWERS.items():
        at, further = ((f * centred).requires_grad_() for f in (1, c))
        a, b = (weight(u, kind=kind) for u in (at, further))
        (slope,), (steeper,) = torch.autograd.grad(a.sum(), at), torch.autograd.grad(b.sum(), further)
        size, output = (a * values.abs()).sum(1), (a * values).sum(1)
        yield residual("P27", f"output, {kind}", ((b * values / c**power).sum(1) - output) / size)
        yield residual("P27", f"map, {kind}", entropy.normalised(b) - entropy.normalised(a))
        yield residual("P27", f"entropy, {kind}", entropy.row_entropy(b) - entropy.row_entropy(a))
        yield residual("P27", f"sensitivity, {kind}", (c * steeper / c**power - slope) / slope.amax(1, keepdim=True))
        if power > 1:
            off = ((b * values / c).sum(1) - output) / size
            yield residual("P27", f"output, {kind} with the power 1", off, holds=False)
    q, k = g.normal(len(s), 4), g.normal(s.shape[1], 4)
    first, second = (entropy.normalised(u.abs() @ k.abs().T) for u in (q, c * q))
    yield residual("P27", "map, homogeneous features", second - first)
    # A factor of at least 1: the map drifts by no more than the elasticity varies, and sharpens.
    c, positive = torch.maximum(c, 1 / c), s.abs()
    for kind in SHARPENING:
        most, least = (elasticity(u, kind=kind) for u in (c[:, 0] * positive.amax(1), positive.amin(1)))
        drift = _distance(positive, c * positive, kind)
        yield bound("P27", f"drift and elasticity, {kind}", drift, c[:, 0].log() * (most - least))
        sharper, plain = (entropy.softmax_entropy(log_weight(u, kind=kind)) for u in (c * s, s))
        yield bound("P27", f"scaling up sharpens, {kind}", sharper, plain)
    for kind in SMOOTH:
        first, second = (log_weight(u, kind=kind).softmax(1) for u in (s, c * s))
        yield residual("P27", f"map unchanged, {kind}", second - first, holds=False)
    sharper, plain = (entropy.softmax_entropy(log_weight(u, kind="sigmoid")) for u in (c * positive, positive))
    yield bound("P27", "scaling up sharpens, sigmoid", sharper, plain, holds=False)


@trial(version=1)
def nudged(case: int) -> Cases:
    """P28: Hilbert distance of a row before and after a change of its scores; half the changes have a common part."""
    s, g = draws.scores(case), draws.Source(case)
    t = draws.moved(s, seed=case) + 3 * g.normal(len(s), 1) * (torch.arange(len(s)) % 2)[:, None]
    reach, span = (t - s).amax(1).clamp(min=0) - (t - s).amin(1).clamp(max=0), entropy.oscillation(t - s)
    off = entropy.hilbert_distance(s.softmax(1), t.softmax(1)) - span
    yield residual("P28", "exp: the oscillation", off / span.clamp(min=1))
    lowest = torch.minimum(s, t).amin(1)
    for kind in SMOOTH[1:]:
        distance = _distance(s, t, kind)
        yield bound("P28", f"{kind}: slope 1", distance, reach)
        yield bound("P28", f"{kind}: slope at the lowest score", distance, slope(lowest, kind=kind) * reach)
    distance, highest = _distance(s, t, "sigmoid"), slope(torch.maximum(s, t).amax(1), kind="sigmoid")
    yield bound("P28", "sigmoid: the oscillation", distance, span, holds=False)
    yield bound("P28", "sigmoid: slope at the highest score", distance, highest * reach, holds=False)
    s, t = s.abs(), t.abs()
    reach, lowest = (t - s).amax(1).clamp(min=0) - (t - s).amin(1).clamp(max=0), torch.minimum(s, t).amin(1)
    for kind in POWERS:
        limit = slope(lowest, kind=kind) * reach
        yield bound("P28", f"{kind}: slope at the lowest score", _distance(s, t, kind), limit)
    yield bound("P28", "ReLU: slope 1", _distance(s, t, "ReLU"), reach, holds=False)


def _distance(s: Tensor, t: Tensor, kind: str) -> Tensor:
    """Hilbert distance of the two rows of weights, from their logarithms."""
    return entropy.oscillation(log_weight(t, kind=kind) - log_weight(s, kind=kind))


def shared_map(scores: Float[Tensor, "*batch rows keys"], *, kind: str) -> Float[Tensor, "*batch keys"]:
    """One map out of several rows: weights summed over the rows, over their sum in all; a ValueError if all are 0.

    Example:
        >>> shared_map(torch.zeros(2, 4), kind="exp").tolist()
        [0.25, 0.25, 0.25, 0.25]
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
    # What a row gives when all its scores are lowered.
    yield residual("P29", "softmax: lowering a row changes nothing", (s - down).softmax(-1) - s.softmax(-1))
    for kind in SMOOTH:
        before, after = (log_weight(u, kind=kind).logsumexp(-1) for u in (s, s - down))
        lost = before - after  # of every row under exp, of one row of each map below
        if kind == "exp":
            yield residual("P29", "exp: mass falls by exp(-L)", (lost - down[..., 0]) / (1 + before.abs()))
        else:
            yield bound("P29", f"{kind}: log of the mass lost", lost[:, 0], down[:, 0, 0])
    yield residual("P29", "ReLU: a row can be silent", weight(s - s.amax(-1, keepdim=True), kind="ReLU").sum())
    # An exp map is the softmax rows weighted by their evidence; how far the softmax mean can move.
    weighted = (s.logsumexp(-1).softmax(-1)[..., None] * s.softmax(-1)).sum(1)
    yield residual("P29", "exp: rows by evidence", shared_map(s, kind="exp") - weighted)
    limit = 2 / count * entropy.total_variation_bound(entropy.oscillation(t - s)).sum(1)
    change = (t.softmax(-1) - s.softmax(-1)).mean(1).abs().sum(1)
    yield bound("P29", "softmax mean: all rows count alike", change, limit)
    change = (shared_map(t, kind="exp") - shared_map(s, kind="exp")).abs().sum(-1)
    yield bound("P29", "exp: all rows count alike", change, limit, holds=False)
    # Rows that change move a map by at most twice their share of its mass.
    changes = torch.arange(count)[:, None] < lowered
    s = torch.where(changes, s - down, s)
    t, shares = torch.where(changes, t - down, s), {}
    mean_change = (t.softmax(-1) - s.softmax(-1)).mean(1).abs().sum(1)
    yield bound("P29", "softmax mean: share of the rows", mean_change, 2 * (lowered / count))
    for kind in ("exp", "sigmoid", "elu + 1"):
        masses = (log_weight(u, kind=kind).logsumexp(-1) for u in (s, t))
        shares[kind] = torch.maximum(*(mass.softmax(-1)[:, :lowered].sum(1) for mass in masses))
        change = (shared_map(t, kind=kind) - shared_map(s, kind=kind)).abs().sum(-1)
        yield bound("P29", f"{kind}: share of the mass", change, 2 * shares[kind])
    yield bound("P29", "softmax mean: share of the mass", mean_change, 2 * shares["exp"], holds=False)


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


class Pair(NamedTuple):
    """Queries with two keys each: the one ahead and the one behind.

    Example:
        >>> ahead, behind = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> lead(Pair(torch.tensor([[2.0, 0.0]]), ahead, behind), "dot").tolist()
        [2.0]
    """

    query: Vectors
    ahead: Vectors
    behind: Vectors


@trial(version=1)
def swapped(case: int) -> Cases:
    """P31 on 15 queries with two keys each: radii, equal norms, gradients, Lipschitz constants."""
    g = draws.Source(case)
    dim, draw = g.whole(2, 8), 10 ** (g.uniform(3, 15, 1) - 0.5)
    query, one, other = draw * g.normal(3, 15, dim)
    for score in ("dot", "distance"):
        yield from _radius(score, ordered(query, one, other, score), g)
    length = query.norm(dim=1, keepdim=True)
    near, length = (torch.arange(15)[:, None] % 2) * 3 * query / length, length * draw[1]
    one, other = (length * k / k.norm(dim=1, keepdim=True) for k in (near + one, near + other))
    # With keys of one length both scores rank alike, and the radii have the ratio 2 |q| / (d_i + d_j).
    pair, length = ordered(query, one, other, "dot"), query.norm(dim=1)
    dot, far = radius(pair, "dot"), radius(pair, "distance")
    both = (pair.ahead - query).norm(dim=1) + (pair.behind - query).norm(dim=1)
    off = (far * both - 2 * length * dot) / (length + pair.ahead.norm(dim=1)).square()
    yield residual("P31", "ratio of the radii, keys of one length", off)
    near = both < 2 * length
    yield bound("P31", "distance is safer for near keys", dot[near], far[near])
    yield bound("P31", "distance is always safer", dot, far, holds=False)
    at = one.clone().requires_grad_()
    dot, half = (query * at).sum(), -(query - at).square().sum() / 2
    (steep,), (flat,) = torch.autograd.grad(dot, at), torch.autograd.grad(half, at)
    yield identity("P31", "gradient of the dot product", steep.norm(dim=1), length)
    yield identity("P31", "gradient of the distance", flat.norm(dim=1), (query - one).norm(dim=1))
    yield from _lipschitz(query, g)


def radius(pair: Pair, score: str) -> Float[Tensor, "*some rows"]:
    """Smallest joint l2 change of the two keys that lets them draw level (P31).

    Example:
        >>> ahead, behind = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> pair = Pair(torch.tensor([[2.0, 0.0]]), ahead, behind)
        >>> round(radius(pair, "dot").item() ** 2, 4)  # the products differ by 2, the query is as long, so 1 / root two
        0.5
    """
    return lead(pair, score) / (math.sqrt(2) * (pair.query.norm(dim=-1) if score == "dot" else 1.0))


def lead(pair: Pair, score: str) -> Float[Tensor, "*some rows"]:
    """How far the key ahead is ahead: difference of the products, or of the distances.

    Example:
        >>> ahead, behind = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> pair = Pair(torch.tensor([[2.0, 0.0]]), ahead, behind)
        >>> lead(pair, "dot").item(), lead(pair, "distance").item()
        (2.0, 1.0)
    """
    if score == "dot":
        return (pair.query * (pair.ahead - pair.behind)).sum(-1)
    return (pair.behind - pair.query).norm(dim=-1) - (pair.ahead - pair.query).norm(dim=-1)


def ordered(query: Tensor, one: Tensor, other: Tensor, score: str) -> Pair:
    """The pair with the key that leads under this score first.

    Example:
        >>> one, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> ordered(torch.tensor([[2.0, 0.0]]), one, other, "dot").ahead.tolist()
        [[1.0, 0.0]]
    """
    leads = (lead(Pair(query, one, other), score) >= 0)[:, None]
    return Pair(query, torch.where(leads, one, other), torch.where(leads, other, one))


def _radius(score: str, pair: Pair, g: draws.Source) -> Cases:
    """The radius is attained, nothing found gets further, and just beyond it the order turns."""
    far, start = radius(pair, score)[:, None], lead(pair, score)
    size = pair.query.norm(dim=1) if score == "dot" else torch.ones_like(start)
    if score == "dot":
        away = back = -F.normalize(pair.query)
    else:
        away, back = (F.normalize(k - pair.query) for k in (pair.ahead, pair.behind))
    best = torch.cat([away, -back], 1) / math.sqrt(2)  # the shortest joint change, of length 1

    def led(change: Tensor) -> Tensor:
        away, back = change.chunk(2, -1)
        return lead(Pair(pair.query, pair.ahead + away, pair.behind + back), score)

    level = led(far * best) / (size * (1 + sum(k.norm(dim=1) for k in pair)))
    yield residual("P31", f"{score}: the radius is attained", level)
    wander = torch.logspace(-4, 1, 40, dtype=best.dtype)[:, None, None] / math.sqrt(best.shape[1])
    tried = best + g.normal(40, *best.shape) * wander
    gained = (start - led(0.999 * far * F.normalize(tried, dim=-1))).amax(0)
    limit = math.sqrt(2) * size * 0.999 * far[:, 0]
    yield bound("P31", f"{score}: best of 40 changes", gained, limit)
    yield bound("P31", f"{score}: order within the radius", (gained > start).double(), 0.0)
    turned = (led(1.001 * far * best) < 0).double()
    yield bound("P31", f"{score}: order just beyond the radius", turned, 0.0, holds=False)
    if score == "dot":
        yield bound("P31", "dot: the radius of one key for two", gained, limit / math.sqrt(2), holds=False)


def _lipschitz(query: Tensor, g: draws.Source) -> Cases:
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
    yield bound("P31", "exp of the dot product: Lipschitz in a key", product[finite], limit[finite], holds=False)


@trial(version=1)
def rank_orders(case: int) -> Cases:
    """P21: ranks of a row under every kernel; similarity of a pair of rows likewise; the head mean, which differs."""
    s = draws.scores(case)
    t = draws.moved(s, seed=case)
    kernels = {f"softmax at {name}": lambda u, c=c: (c * u).log_softmax(-1) for name, c in (("1/10", 0.1), ("10", 10))}
    kernels |= {kind: partial(log_weight, kind=kind) for kind in ("exp", "sigmoid", "elu + 1", "softplus")}
    for arm, kernel in kernels.items():  # logarithms, exact where the kernel itself under- or overflows
        yield residual("P21", f"ranks, {arm}", entropy.ranks(kernel(s)) - entropy.ranks(s))
        kept = entropy.rank_similarity(kernel(s), kernel(t)) - entropy.rank_similarity(s, t)
        yield residual("P21", f"Spearman and top-k of a pair, {arm}", kept)
    yield residual("P21", "with a ReLU kernel", entropy.ranks(s.relu()) - entropy.ranks(s), holds=False)
    mean, wider = (torch.logaddexp((c * s).log_softmax(1), (c * t).log_softmax(1)) for c in (1, 3))
    yield residual("P21", "after averaging two heads", entropy.ranks(mean) - entropy.ranks(wider), holds=False)


@trial(version=1)
def same_ranks(case: int) -> Cases:
    """P32: links, normalised or not, rank one row alike, before and after each of six changes of the scores."""
    s = _bounded(draws.scores(case))
    attacks = [_bounded(draws.moved(s, seed=100 * case + i)) for i in range(6)]
    expected = torch.stack([entropy.rank_similarity(s, t) for t in attacks])
    for kind in SMOOTH:
        plain = [weight(u, kind=kind) for u in (s, *attacks)]
        for norm, maps in {"": plain, ", normalised": [a / a.sum(1, keepdim=True) for a in plain]}.items():
            seen = torch.stack([entropy.rank_similarity(maps[0], a) for a in maps[1:]])
            yield residual("P32", f"six attacks on one row, {kind}{norm}", seen - expected)
    seen = torch.stack([entropy.rank_similarity(s.relu(), t.relu()) for t in attacks])
    yield residual("P32", "one row, ReLU", seen - expected, holds=False)
    mean, shared = (entropy.ranks(m[None]) for m in (s.softmax(1).mean(0), shared_map(s, kind="exp")))
    yield residual("P32", "several rows in one map", shared - mean, holds=False)
    # Product and distance rank keys of one length alike, and keys of several lengths not.
    g = draws.Source(case)
    count, dim = g.whole(3, 39), g.whole(2, 8)
    query, keys = g.normal(15, 1, dim), g.normal(15, count, dim)
    for length, k in (("one", 3 * keys / keys.norm(dim=2, keepdim=True)), ("any", keys)):
        off = entropy.ranks((query * k).sum(2)) - entropy.ranks(-(query - k).norm(dim=2))
        yield residual("P32", f"dot and distance, keys of {length} length", off, holds=length == "one")


def _bounded(s: draws.Rows) -> draws.Rows:
    """Scores of at most 8: ranks are taken of the weights themselves, which then do not underflow."""
    return s * (8 / s.abs().amax(1, keepdim=True)).clamp(max=1)
