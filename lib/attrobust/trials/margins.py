"""P24 and P25: what the size of the scores allows the entropy, and the entropy the margin between ranks."""

import math
from collections.abc import Iterator

import pandas as pd
import torch

from attrobust import entropy, statements
from attrobust.theory import rows
from attrobust.trials.cases import over_cases
from attrobust.versions import versioned


@versioned(1)
@over_cases
def ceilings(case: int) -> Iterator[pd.DataFrame]:
    """P24: the gap after the k-th score against its ceiling, and what half the gap certifies."""
    s = rows.scores(case)
    keys, g = s.shape[1], torch.Generator().manual_seed(case)
    k = int(torch.randint(1, keys, (1,), generator=g))
    temperature = 10 ** float(torch.rand(1, generator=g) - 0.5)
    gap, h = entropy.topk_gap(s, k=k), entropy.softmax_entropy(s / temperature)
    limit = entropy.margin_ceiling(h, keys=keys, k=k)
    yield statements.bound("P24", "gap after the k-th score", gap, temperature * limit, temperature=temperature)
    leading = torch.zeros_like(s, dtype=torch.bool).scatter(1, s.topk(k).indices, True)
    for name, share in (("P24", 0.999), ("wrong", 1.001)):
        clear = gap > 1e-6
        worst = s + share * gap[:, None] / 2 * torch.where(leading, -1.0, 1.0)
        after = torch.zeros_like(leading).scatter(1, worst.topk(k).indices, True)
        lost = (leading & ~after).sum(1)[clear]
        arm = "top-k set within half the gap" if name == "P24" else "P24 just beyond half the gap"
        yield statements.bound(name, arm, lost, 0.0)


@versioned(1)
@over_cases
def floors(case: int) -> Iterator[pd.DataFrame]:
    """P25: the entropy of a row against its floor, given the norm of its centred scores."""
    s = rows.scores(case)
    norm, keys, h = entropy.centred_norm(s), s.shape[1], entropy.softmax_entropy(s)
    yield statements.bound("P25", "entropy and norm", entropy.entropy_floor(norm, keys=keys), h, norm=norm, keys=keys)


@versioned(1)
def landscape(case: int, keys: int, k: int) -> pd.DataFrame:
    """Rows of one length under the ceiling of P24, over the floor of P25 and within the envelope of P20.

    Rows with two exact levels lie on the ceiling and on the floor, two keys that lead on the envelope.
    """
    g = torch.Generator().manual_seed(case)
    size = 10 ** (2.2 * torch.rand(600, 1, generator=g, dtype=torch.float64) - 1)
    normal = size * torch.randn(600, keys, generator=g, dtype=torch.float64) / 2
    few = (torch.arange(keys) < torch.randint(1, keys, (300, 1), generator=g)).double()
    few += 0.3 * torch.rand(300, 1, generator=g, dtype=few.dtype) * torch.rand(300, keys, generator=g)
    few *= size[:300]
    level = size[:300] * (torch.arange(keys) < k).double()
    raised = size[:300] * (torch.arange(keys) < 1).double()
    leaders = torch.full((300, keys), -40.0, dtype=few.dtype) * torch.rand(300, 1, generator=g, dtype=few.dtype)
    leaders[:, 0], leaders[:, 1] = 0, torch.where(torch.arange(300) % 2 == 0, 0, -size[:300, 0] / 2)
    shapes = {"normal": normal, "a few raised": few, "two leaders": leaders}
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
    h = share * math.log(keys)
    size = torch.logspace(-1, 2, 300, dtype=torch.float64)
    envelope = entropy.sensitivity_envelope(h, keys=keys)
    curves = {
        "ceiling": (share, entropy.margin_ceiling(h, keys=keys, k=k)),
        "envelope, above": (share, envelope.upper),
        "envelope, below": (share, envelope.lower),
        "floor": (size, entropy.entropy_floor(size, keys=keys)),
        "deficit": (size, (math.log(keys) - entropy.deficit_bound(size)).clamp(min=0)),
    }
    return pd.concat(pd.DataFrame({"name": name, "x": x, "y": y}) for name, (x, y) in curves.items())
