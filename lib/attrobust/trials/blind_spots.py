"""P25b: what the gradient in the key matrix sees of an attention row, and what the tokens see."""

from collections.abc import Iterator, Sequence

import pandas as pd
import torch

from attrobust import entropy, statements
from attrobust.theory import readout
from attrobust.trials.cases import over_cases
from attrobust.versions import versioned


@versioned(1)
@over_cases
def readouts(case: int) -> Iterator[pd.DataFrame]:
    """P25b on a random read-out: closed forms, the size of the score gradient, centred tokens, identical tokens."""
    size = torch.rand(1, generator=torch.Generator().manual_seed(case))
    row = readout.draw(case, diversity=10 ** float(2 * size - 1.5))
    p, v = readout.weights(readout.scores(row), kind="softmax"), row.values
    found, xi = readout.gradients(row, kind="softmax"), p * (v - p @ v)
    yield statements.identity("P25b", "gradient in the scores", found.scores, xi)
    yield statements.identity("P25b", "gradient in W_K", found.key, torch.outer(row.query, row.tokens.T @ xi))
    yield statements.identity("P25b", "gradient in the tokens", found.tokens, torch.outer(xi, row.key.T @ row.query))
    yield statements.residuals("P25b", "score gradient sums to 0", found.scores.sum())
    variance, h = (p * (v - p @ v).square()).sum(), entropy.row_entropy(p)
    size = found.scores.square().sum()
    yield statements.bound("P25b", "score gradient and variance", size, p.max() * variance)
    limit = p.max() * (v.max() - v.min()).square() / 2 * -torch.expm1(-h)
    yield statements.bound("P25b", "score gradient and entropy", size, limit)
    yield statements.bound("wrong", "P25b variance times the squared first weight", size, p.max().square() * variance)
    centred = torch.linalg.matrix_norm(row.tokens - row.tokens.mean(0), ord=2)
    for kind, name in (("softmax", "P25b"), ("sigmoid", "wrong")):
        seen = readout.gradients(row, kind=kind)
        arm = "W_K sees centred tokens" if kind == "softmax" else "P25b centred tokens under a sigmoid"
        yield statements.bound(name, arm, seen.key.norm(), row.query.norm() * centred * seen.scores.norm())
    alike = readout.draw(case, diversity=0.0)
    for kind, name in (("softmax", "P25b"), ("sigmoid", "wrong")):
        arm = "identical tokens are unseen" if kind == "softmax" else "P25b identical tokens under a sigmoid"
        yield statements.residuals(name, arm, readout.gradients(alike, kind=kind).key.norm())


@versioned(1)
def diversities(values: Sequence[float], seeds: Sequence[int]) -> pd.DataFrame:
    """Norms of both gradients while the tokens become alike, for softmax and sigmoid."""
    records = []
    for seed in seeds:
        for value in values:
            for kind in readout.KINDS:
                found = readout.gradients(readout.draw(seed, diversity=value), kind=kind)
                common = {"kind": kind, "diversity": value, "seed": seed}
                records.append({**common, "name": "gradient in the key matrix", "value": float(found.key.norm())})
                records.append({**common, "name": "gradient in the tokens", "value": float(found.tokens.norm())})
    return pd.DataFrame(records)
