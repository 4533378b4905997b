"""What notebook 07 alone calls: pictures of links, of shared maps and of the radii at which keys change places."""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from attrobust import similarity
from attrobust.theory import entropy, kernels, tally
from attrobust.theory.kernels import evidence, links, swaps
from attrobust.versions import versioned

#: Links of the sweep over evidence, beside softmax.
SHOWN = ("exp", "sigmoid", "ReLU")


@versioned(1)
def scale_sweep(factors: Sequence[float], keys: int, seeds: Sequence[int]) -> pd.DataFrame:
    """Relative entropy of normal rows under every link while their scores are multiplied."""
    parts = []
    for seed in seeds:
        s = 2 * torch.randn(1, keys, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        scaled = torch.tensor(factors, dtype=s.dtype)[:, None] * s
        for kind in kernels.KINDS:
            share = entropy.softmax_entropy(kernels.log_weight(scaled, kind=kind)) / entropy.softmax_entropy(0 * s)
            parts.append(pd.DataFrame({"kernel": kind, "factor": factors, "seed": seed, "value": share.numpy()}))
    return pd.concat(parts)


@versioned(1)
def link_curves(reach: float, points: int) -> pd.DataFrame:
    """Slope and elasticity of every link over the scores from -reach to reach."""
    s = torch.linspace(-reach, reach, points, dtype=torch.float64)
    parts = []
    for kind in kernels.KINDS:
        for name, function in (("slope", kernels.slope), ("elasticity", kernels.elasticity)):
            parts.append(pd.DataFrame({"kernel": kind, "name": name, "score": s, "value": function(s, kind=kind)}))
    return pd.concat(parts).dropna()


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
        dot, far = (kernels.radius(kernels.ordered(query, *keys, score), score) for score in ("dot", "distance"))
        mean = sum((k - query).norm(dim=1) for k in keys) / 2
        parts.append(pd.DataFrame({"name": name, "x": mean / length[:, 0], "y": far / dot}))
    return pd.concat(parts)


@versioned(1)
def attained_by_kernels() -> pd.DataFrame:
    """Both sides of the inequalities about kernels on their equality examples; drift is attained in the limit."""
    return tally.join(chain.equality() for chain in (links, evidence, swaps))


def _maps(s: Tensor, t: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Clean and noisy map of softmax and of every link shown."""
    maps = {"softmax": (s.softmax(1).mean(0), t.softmax(1).mean(0))}
    for kind in SHOWN:
        bias = math.log(s.shape[1]) if kind == "sigmoid" else 0.0
        maps[kind] = (kernels.shared_map(s - bias, kind=kind), kernels.shared_map(t - bias, kind=kind))
    return maps
