"""What notebook 06 alone calls: whether a gain reaches a map; softmax rows over scale, entropy, diversity of tokens."""

import math
from collections.abc import Sequence
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from attrobust import similarity
from attrobust.theory import entropy, traps
from attrobust.theory.draws import Source
from attrobust.theory.tally import NamedValues, equalities, named_values
from attrobust.versions import versioned


@versioned(1)
def temperatures(factors: Sequence[float], keys: int, seeds: Sequence[int]) -> pd.DataFrame:
    """Two rows of attention, the second with 25 % noise on its keys, at every factor; ranks are those of log p."""
    parts = []
    pair = [torch.stack(part) for part in zip(*(_noisy(keys, seed) for seed in seeds), strict=True)]
    for factor in factors:
        s, t = (factor * u for u in pair)
        (p, q), (a, b) = (s.softmax(1), t.softmax(1)), (u.log_softmax(1)[:, None] for u in (s, t))
        numbers = {
            "entropy / log n": entropy.softmax_entropy(s) / math.log(keys),
            "absolute change": (q - p).norm(dim=1),
            "relative change": (q - p).norm(dim=1) / (p - 1 / keys).norm(dim=1),
            "cosine of p": similarity.cosine(p[:, None, None], q[:, None, None]),
            "1 - Pearson of p": 1 - similarity.pearson(p[:, None], q[:, None]),
            "Spearman of log p": similarity.spearman(a, b),
            "top-8": similarity.topk_intersection(a, b, k=8),
            "R_s of the scores": entropy.relative_score_change(s, t),
        }
        columns = {"factor": factor, "seed": list(seeds)}
        parts += [pd.DataFrame({"name": n, "value": v.numpy(), **columns}) for n, v in numbers.items()]
    return pd.concat(parts)


@versioned(1)
def slopes(factors: Sequence[float], keys: int, seeds: Sequence[int]) -> pd.DataFrame:
    """Slope of the entropy in the factor by central differences, and the formula -c Var, row by row."""
    c, step, parts = torch.tensor(factors, dtype=torch.float64)[:, None], 1e-4, []
    for seed in seeds:
        s = _noisy(keys, seed)[0]
        measured = (entropy.softmax_entropy((c + step) * s) - entropy.softmax_entropy((c - step) * s)) / (2 * step)
        formula = -c[:, 0] * entropy.variance((c * s).softmax(1), s)
        named = {"central differences": measured, "-c Var(s)": formula}
        parts += [pd.DataFrame({"name": n, "value": v, "factor": factors, "seed": seed}) for n, v in named.items()]
    return pd.concat(parts)


@versioned(1)
def landscape(case: int, keys: int, k: int) -> pd.DataFrame:
    """Rows of one length under the ceiling of P24, over the floor of P23 and within the envelope of P20.

    Rows with two exact levels lie on the ceiling and on the floor, two keys that lead on the envelope.
    """
    g = Source(case)
    size = 10 ** (2.2 * g.uniform(600, 1) - 1)
    normal, size = size * g.normal(600, keys) / 2, size[:300]
    few = (torch.arange(keys) < torch.randint(1, keys, (300, 1), generator=g.generator)).double()
    few += 0.3 * g.uniform(300, 1) * torch.rand(300, keys, generator=g.generator)
    level, raised = (size * (torch.arange(keys) < n).double() for n in (k, 1))
    leaders = torch.full((300, keys), -40.0, dtype=few.dtype) * g.uniform(300, 1)
    leaders[:, 0], leaders[:, 1] = 0, torch.where(torch.arange(300) % 2 == 0, 0, -size[:, 0] / 2)
    shapes = {"normal": normal, "a few raised": few * size, "two leaders": leaders}
    shapes |= {f"exactly {k} raised": level, "exactly 1 raised": raised}
    return pd.concat(
        pd.DataFrame({
            "name": name, "norm": entropy.centred_norm(s), "span": entropy.oscillation(s),
            "entropy": entropy.softmax_entropy(s), "share": entropy.softmax_entropy(s) / math.log(keys),
            "gap": entropy.topk_gap(s, k=k), "sensitivity": entropy.softmax_jacobian_norm(s.softmax(1)),
        })
        for name, s in shapes.items()
    )  # fmt: skip


@versioned(1)
def landscape_limits(keys: int, k: int) -> pd.DataFrame:
    """Curves `landscape` may not cross: ceiling and envelope over the entropy, floor and deficit over the scores."""
    share = torch.linspace(0.002, 0.9999, 300, dtype=torch.float64)
    h, size = share * math.log(keys), torch.logspace(-1, 2, 300, dtype=torch.float64)
    envelope = entropy.sensitivity_envelope(h, keys=keys)
    curves = {
        "ceiling": (share, entropy.margin_ceiling(h, keys=keys, k=k)),
        "envelope, above": (share, envelope.upper),
        "envelope, below": (share, envelope.lower),
        "floor": (size, entropy.entropy_floor(size, keys=keys)),
        "deficit": (size, (math.log(keys) - entropy.deficit_bound(size)).clamp(min=0)),
    }
    return pd.concat(pd.DataFrame({"name": name, "x": x, "y": y}) for name, (x, y) in curves.items())


@named_values(version=1)
def diversities(values: Sequence[float], seeds: Sequence[int]) -> NamedValues:
    """Norms of both gradients while the tokens become alike, for softmax and sigmoid."""
    for seed, value, kind in product(seeds, values, traps.KINDS):
        found = traps.gradients(traps.draw(seed, diversity=value), kind=kind)
        numbers = {"gradient in the key matrix": found.key.norm(), "gradient in the tokens": found.tokens.norm()}
        yield {"kind": kind, "diversity": value, "seed": seed}, numbers


@versioned(1)
def attained_by_rows() -> pd.DataFrame:
    """Both sides of the inequalities on rows that attain them, that of P22 in the limit of small scores."""
    tie, even = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64), torch.ones(7, dtype=torch.float64)
    two, p = torch.tensor([[1.0, -1.0], [0.5, 0.5]], dtype=torch.float64)
    raised, levels = (1.3 * (torch.arange(7) < k).double() for k in (1, 3))
    swap, small = entropy.total_variation((1.3 * two).softmax(0), (-1.3 * two).softmax(0)), 1e-3 * two
    return equalities({
        ("P20", "two keys share all"): (entropy.softmax_jacobian_norm(tie), 0.5),
        ("P20", "uniform row"): (1 / 7, entropy.softmax_jacobian_norm(even)),
        ("P20", "entropy, uniform row"): (1 - 1 / 7, -math.expm1(-math.log(7))),
        ("P22.3", "two halves, small scores"):
            (entropy.entropy_deficit(small), entropy.deficit_bound(entropy.oscillation(small))),
        ("P23", "one raised score"):
            (entropy.entropy_floor(entropy.centred_norm(raised), keys=7), entropy.softmax_entropy(raised)),
        ("P24", "two levels"): (1.3, entropy.margin_ceiling(entropy.softmax_entropy(levels), keys=7, k=3)),
        ("P25", "two keys swap"): (swap, entropy.total_variation_bound(entropy.oscillation(2.6 * two))),
        ("P26", "two opposite values"): ((p * (two - p @ two)).square().sum(), 0.5),
    })  # fmt: skip


def _noisy(keys: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores of one query with random keys, and with the same keys plus noise of a quarter of their size."""
    g = Source(seed)
    query, key, noise = g.normal(16), g.normal(keys, 16), g.normal(keys, 16)
    return key @ query / 2, (key + 0.25 * noise) @ query / 2
