"""What no kernel and no scale changes: the ranks of one row (P21 and P32).

For c > 0 the keys have one order under softmax(c s), s and k(s), for every strictly increasing kernel k, divided by its
sum or not. So all rank metrics of one row, the change at which its ranks flip, and the attacks that flip them are the
same for all of them. It speaks of one row: several rows put together, ties, and other scores may differ. Ours.
"""

from functools import partial

import torch

from attrobust.theory import draws
from attrobust.theory.entropy import rank_similarity, ranks
from attrobust.theory.kernels import SMOOTH, log_weight, shared_map, weight
from attrobust.theory.tally import Cases, residual, trial

#: Logarithms of strictly increasing kernels of the score; all are exact where the kernel itself under- or overflows.
KERNELS = {
    "softmax at 1/10": lambda s: (s / 10).log_softmax(-1),
    "softmax at 10": lambda s: (10 * s).log_softmax(-1),
    **{kind: partial(log_weight, kind=kind) for kind in ("exp", "sigmoid", "elu + 1", "softplus")},
}


@trial(version=1)
def rank_orders(case: int) -> Cases:
    """P21: ranks of a row under every kernel; similarity of a pair of rows likewise; the head mean, which differs."""
    s = draws.scores(case)
    t = draws.moved(s, seed=case)
    for arm, kernel in KERNELS.items():
        yield residual("P21", f"ranks, {arm}", ranks(kernel(s)) - ranks(s))
        kept = rank_similarity(kernel(s), kernel(t)) - rank_similarity(s, t)
        yield residual("P21", f"Spearman and top-k of a pair, {arm}", kept)
    yield residual("P21", "with a ReLU kernel", ranks(s.relu()) - ranks(s), holds=False)
    mean, wider = (torch.logaddexp((c * s).log_softmax(1), (c * t).log_softmax(1)) for c in (1, 3))
    yield residual("P21", "after averaging two heads", ranks(mean) - ranks(wider), holds=False)


@trial(version=1)
def same_ranks(case: int) -> Cases:
    """P32: links, normalised or not, rank one row alike, before and after each of six changes of the scores."""
    s = _bounded(draws.scores(case))
    attacks = [_bounded(draws.moved(s, seed=100 * case + i)) for i in range(6)]
    expected = torch.stack([rank_similarity(s, t) for t in attacks])
    for kind in SMOOTH:
        plain = [weight(u, kind=kind) for u in (s, *attacks)]
        for norm, maps in {"": plain, ", normalised": [a / a.sum(1, keepdim=True) for a in plain]}.items():
            seen = torch.stack([rank_similarity(maps[0], a) for a in maps[1:]])
            yield residual("P32", f"six attacks on one row, {kind}{norm}", seen - expected)
    seen = torch.stack([rank_similarity(s.relu(), t.relu()) for t in attacks])
    yield residual("P32", "one row, ReLU", seen - expected, holds=False)
    mean, shared = (ranks(m[None]) for m in (s.softmax(1).mean(0), shared_map(s, kind="exp")))
    yield residual("P32", "several rows in one map", shared - mean, holds=False)
    # Product and distance rank keys of one length alike, and keys of several lengths not.
    g = draws.Source(case)
    count, dim = g.whole(3, 39), g.whole(2, 8)
    query, keys = g.normal(15, 1, dim), g.normal(15, count, dim)
    for length, k in (("one", 3 * keys / keys.norm(dim=2, keepdim=True)), ("any", keys)):
        off = ranks((query * k).sum(2)) - ranks(-(query - k).norm(dim=2))
        yield residual("P32", f"dot and distance, keys of {length} length", off, holds=length == "one")


def _bounded(s: draws.Rows) -> draws.Rows:
    """Scores of at most 8: ranks are taken of the weights themselves, which then do not underflow."""
    return s * (8 / s.abs().amax(1, keepdim=True)).clamp(max=1)
