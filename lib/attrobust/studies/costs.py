"""What a kernel costs: seconds of a training step, beside softmax written out and beside fused attention.

CPU seconds of this process, all kernels in turn in one process, on one thread. Timings are evidence like any other:
they are stored as rows, and figures are drawn from the rows. The first of all rounds is not counted.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust import attention, models
from attrobust.versions import versioned

#: Fused attention of torch: no matrix, hence nothing to explain, and no second derivative.
FUSED = "fused softmax"
#: Linear attention bracketed from the right: no matrix either.
UNFORMED = "linear, matrix not formed"


class _Fused(attention.Attention):
    def attend(self, x: Tensor, *, read: int | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = self._split(x)
        mixed = F.scaled_dot_product_attention(q[:, :, :read], k, v).transpose(1, 2).flatten(2)
        return self.projection(mixed), x.new_zeros(()).expand(*q.shape[:3], k.shape[2])


@versioned(1)
def training_steps(
    names: Sequence[str], patch: int, dim: int, depth: int, batch: int, repetitions: int
) -> pd.DataFrame:
    """Seconds of one training step of a 28 x 28 ViT with each kernel and with fused attention; patch 4 is 50 tokens.

    One row per kernel and repetition: `kernel`, `repetition`, `seconds`.
    """
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(batch, 1, 28, 28, generator=draw), torch.randint(10, (batch,), generator=draw)
    steps = {}
    for name in (*names, FUSED):
        size = {"patch": patch, "dim": dim, "depth": depth, "attention": "softmax" if name == FUSED else name}
        model = models.build("vit", input_shape=(1, 28, 28), classes=10, seed=0, activation="gelu", **size).train()
        for block in model.blocks if name == FUSED else ():
            block.attention.__class__ = _Fused
        steps[name] = partial(_step, model, torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9), x, y)
    return _in_turn(steps, repetitions)


@versioned(1)
def mixing(names: Sequence[str], token_counts: Sequence[int], dim: int, repetitions: int) -> pd.DataFrame:
    """Seconds of mixing n tokens with one head of a dimension, forward and backward, for each number of tokens.

    One row per number of tokens, kernel and repetition: `tokens`, `kernel`, `repetition`, `seconds`.
    """
    tables = []
    for n in token_counts:
        qkv = [t.requires_grad_() for t in torch.randn(3, 1, 1, n, dim, generator=torch.Generator().manual_seed(0))]
        ways = {name: partial(_mixed, attention.kernel(name)) for name in names}
        ways[FUSED] = F.scaled_dot_product_attention
        ways[UNFORMED] = partial(attention.mix_in_linear_time, attention.kernel("linear"))
        rounds = {name: partial(_there_and_back, way, qkv) for name, way in ways.items()}
        tables.append(_in_turn(rounds, repetitions).assign(tokens=n))
    return pd.concat(tables, ignore_index=True)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def _mixed(kernel: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return kernel(q, k) @ v


def _there_and_back(way: Callable[..., Tensor], qkv: Sequence[Tensor]) -> None:
    torch.autograd.grad(way(*qkv).square().mean(), qkv)


def _in_turn(ways: dict[str, Callable[[], None]], repetitions: int) -> pd.DataFrame:
    rows, names = [], list(ways)
    for repetition in range(-1, repetitions):
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            begin = time.process_time()
            ways[name]()
            rows.append({"kernel": name, "repetition": repetition, "seconds": time.process_time() - begin})
    return pd.DataFrame([row for row in rows if row["repetition"] >= 0])
