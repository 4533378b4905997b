"""What notebook 07 alone calls: pictures of links, of shared maps and of the radii at which keys change places."""

import math
from collections.abc import Sequence

import pandas as pd
import torch

from attrobust import similarity
from attrobust.theory import kernels
from attrobust.theory.draws import Source
from attrobust.theory.entropy import softmax_entropy
from attrobust.theory.tally import NamedValues, named_values
from attrobust.versions import versioned


@versioned(1)
def scale_sweep(factors: Sequence[float], keys: int, seeds: Sequence[int]) -> pd.DataFrame:
    """Relative entropy of normal rows under every link while their scores are multiplied."""
    parts = []
    for seed in seeds:
        s = 2 * Source(seed).normal(1, keys)
        scaled = torch.tensor(factors, dtype=s.dtype)[:, None] * s
        for kind in kernels.KINDS:
            share = softmax_entropy(kernels.log_weight(scaled, kind=kind)) / softmax_entropy(0 * s)
            parts.append(pd.DataFrame({"kernel": kind, "factor": factors, "seed": seed, "value": share.numpy()}))
    return pd.concat(parts)


@versioned(1)
def link_curves(reach: float, points: int) -> pd.DataFrame:
    """Slope and elasticity of every link over the scores from -reach to reach."""
    s = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return pd.concat(
        pd.DataFrame({"kernel": kind, "name": name, "score": s, "value": function(s, kind=kind)})
        for kind in kernels.KINDS
        for name, function in (("slope", kernels.slope), ("elasticity", kernels.elasticity))
    ).dropna()


@versioned(1)
@named_values
def evidence_sweep(shifts: Sequence[float], keys: int, seeds: Sequence[int], *, k: int = 5) -> NamedValues:
    """Similarity of maps before and after noise, while 18 rows that know nothing are lowered beside 2 that know.

    The two rows share one pattern of size 2; the 18 have scores of size 1 of their own. Noise of size 0.8 meets all
    scores alike. The sigmoid has the bias -log(keys).
    """
    maps = {"softmax": lambda s: s.softmax(1).mean(0), "exp": lambda s: kernels.shared_map(s, kind="exp")}
    maps["sigmoid"] = lambda s: kernels.shared_map(s - math.log(keys), kind="sigmoid")
    maps["ReLU"] = lambda s: kernels.shared_map(s, kind="ReLU")
    for shift in shifts:
        for seed in seeds:
            g = Source(seed)
            pattern, own, noise = g.normal(1, keys), g.normal(18, keys), g.normal(20, keys)
            s = torch.cat([2 * pattern.expand(2, keys), own - shift])
            for name, of in maps.items():
                a, b = (of(u)[None, None] for u in (s, s + 0.8 * noise))
                numbers = {
                    f"top-{k}": similarity.topk_intersection(a, b, k=k),
                    "Spearman": similarity.spearman(a, b),
                    "plain cosine": similarity.cosine(a[None], b[None]),
                }
                yield {"kernel": name, "shift": shift, "seed": seed}, numbers


@versioned(1)
def swap_radii(cases: int, seed: int) -> pd.DataFrame:
    """Radius under distance over radius under the dot product, over the mean distance in lengths of the query."""
    g = Source(seed)
    query, *keys = g.normal(3, cases, 8)
    keys = [n * k + (1 - n) * query for n, k in zip(g.uniform(2, cases, 1), keys, strict=True)]
    length, parts = query.norm(dim=1, keepdim=True), []
    even = [length * k / k.norm(dim=1, keepdim=True) for k in keys]
    for name, pair in (("keys of the query's length", even), ("keys of any length", keys)):
        dot, far = (kernels.radius(kernels.ordered(query, *pair, score), score) for score in ("dot", "distance"))
        mean = sum((k - query).norm(dim=1) for k in pair) / 2
        parts.append(pd.DataFrame({"name": name, "x": mean / length[:, 0], "y": far / dot}))
    return pd.concat(parts)


@versioned(1)
def attained_by_kernels() -> pd.DataFrame:
    """Both sides of the inequalities about kernels on their equality examples; drift is attained in the limit."""
    return kernels.equality()
