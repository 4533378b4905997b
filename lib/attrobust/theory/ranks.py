"""What no kernel and no scale changes: the ranks of one row (P21 and P32).

For c > 0 the keys have one order under softmax(c s), s and k(s), for every strictly increasing kernel k, divided by its
sum or not. So all rank metrics of one row, the change at which its ranks flip, and the attacks that flip them are the
same for all of them. It speaks of one row: several rows put together, ties, and other scores may differ. Ours.
"""

from collections.abc import Callable, Iterator
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from attrobust.theory import draws, tally
from attrobust.theory.entropy import rank_similarity, ranks
from attrobust.theory.kernels import links, shared_map
from attrobust.versions import versioned

#: Logarithms of strictly increasing kernels of the score; all are exact where the kernel itself under- or overflows.
KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax at 1/10": lambda s: (s / 10).log_softmax(-1),
    "softmax at 10": lambda s: (10 * s).log_softmax(-1),
    "exp": lambda s: s,
    **{kind: partial(links.log_weight, kind=kind) for kind in ("sigmoid", "elu + 1", "softplus")},
}


@versioned(1)
@tally.over_cases
def rank_orders(case: int) -> Iterator[pd.DataFrame]:
    """P21: ranks of a row under every kernel; similarity of a pair of rows likewise; the head mean, which differs."""
    s = draws.scores(case)
    t = draws.moved(s, seed=case)
    pair = rank_similarity(s, t)
    for arm, kernel in KERNELS.items():
        yield tally.residuals("P21", f"ranks, {arm}", (ranks(kernel(s)) - ranks(s)).abs().max())
        kept = rank_similarity(kernel(s), kernel(t))
        yield tally.residuals("P21", f"Spearman and top-k of a pair, {arm}", (kept - pair).abs().max())
    flat = (ranks(s.relu()) - ranks(s)).abs().max()
    yield tally.residuals("P21", "with a ReLU kernel", flat, holds=False)
    mean, wider = (torch.logaddexp((c * s).log_softmax(1), (c * t).log_softmax(1)) for c in (1, 3))
    off = (ranks(mean) - ranks(wider)).abs().max()
    yield tally.residuals("P21", "after averaging two heads", off, holds=False)


@versioned(1)
@tally.over_cases
def same_ranks(case: int) -> Iterator[pd.DataFrame]:
    """P32: links, normalised or not, rank one row alike, before and after each of six changes of the scores."""
    s = draws.scores(case)
    s = s * (8 / s.abs().amax(1, keepdim=True)).clamp(max=1)  # ranks of weights themselves, no underflow
    attacks = [draws.moved(s, seed=100 * case + i) for i in range(6)]
    attacks = [t * (8 / t.abs().amax(1, keepdim=True)).clamp(max=1) for t in attacks]
    expected = torch.stack([rank_similarity(s, t) for t in attacks])
    for kind in links.SMOOTH:
        plain = [links.weight(u, kind=kind) for u in (s, *attacks)]
        for norm, maps in {"": plain, ", normalised": [a / a.sum(1, keepdim=True) for a in plain]}.items():
            seen = torch.stack([rank_similarity(maps[0], a) for a in maps[1:]])
            yield tally.residuals("P32", f"six attacks on one row, {kind}{norm}", (seen - expected).abs().max())
    seen = torch.stack([rank_similarity(s.relu(), t.relu()) for t in attacks])
    yield tally.residuals("P32", "one row, ReLU", (seen - expected).abs().max(), holds=False)
    together = [ranks(m[None])[0] for m in (s.softmax(1).mean(0), shared_map(s, kind="exp"))]
    yield tally.residuals("P32", "several rows in one map", (together[1] - together[0]).abs().max(), holds=False)
    yield from _scores_compared(case)


def _scores_compared(case: int) -> Iterator[pd.DataFrame]:
    """P32: product and distance rank keys of one length alike, and keys of several lengths not."""
    g = torch.Generator().manual_seed(case)
    count, dim = (int(torch.randint(low, high, (1,), generator=g)) for low, high in ((3, 40), (2, 9)))
    query, keys = (torch.randn(15, n, dim, generator=g, dtype=torch.float64) for n in (1, count))
    for length, k in (("one", 3 * keys / keys.norm(dim=2, keepdim=True)), ("any", keys)):
        off = (ranks((query * k).sum(2)) - ranks(-(query - k).norm(dim=2))).abs().max()
        yield tally.residuals("P32", f"dot and distance, keys of {length} length", off, holds=length == "one")
