"""The control of P32: one row of attention, read through its own kernel and through a softmax of the same scores."""

import pandas as pd
import torch
from torch import nn

from attrobust import attacks, attributions, similarity
from attrobust.balls import Ball
from attrobust.experiments.explanations import cls_rows
from attrobust.shapes import Images
from attrobust.versions import versioned


@versioned(2)
def read_out_twice(model: nn.Module, x: Images, *, radius: float, steps: int, restarts: int, seed: int) -> pd.DataFrame:
    """How steady the ranks of CLS rows are under an attack on raw attention, by two read-outs of the same scores.

    A strictly increasing kernel ranks the keys of one row as a softmax of its scores does, so row by row the two
    columns must agree; a mean of rows (the heads of a block) need not. The ranks are taken in float64.

    Args:
        model: transformer in eval mode.
        x: images.
        radius: of the linf ball, in 1/255 of the pixel range.
        steps: gradient steps of the attack (1 - Pearson of raw attention, predicted class held).
        restarts: its random starts.
        seed: of the random starts.

    Returns:
        One row per image and map ("one row": mean over heads of the rows' Spearman; "mean of heads"), with the Spearman
        correlation of clean and attacked weights under `own` kernel and under `softmax`.
    """
    found = attacks.auto(
        attributions.raw_attention,
        model,
        x,
        Ball("linf", radius / 255),
        k=1,
        effort=attacks.Effort(steps=steps, restarts=restarts, draws=0, walk=0, objectives=("pearson",)),
        generator=torch.Generator(x.device).manual_seed(seed),
    )
    kernel, columns = model.blocks[-1].attention.kernel, {}
    with torch.no_grad():
        scores = [cls_rows(model, images)[0].double() for images in (x, found.x["pearson"])]
    for name, read in {
        "own": lambda s: kernel.weights(s[:, :, None])[:, :, 0],
        "softmax": lambda s: s.softmax(-1),
    }.items():
        clean, moved = (read(s)[:, :, 1:] for s in scores)
        heads = similarity.spearman(clean.flatten(0, 1)[:, None], moved.flatten(0, 1)[:, None])
        mean = similarity.spearman(clean.mean(1)[:, None], moved.mean(1)[:, None])
        columns[name] = torch.cat([heads.view(len(x), -1).mean(1), mean]).tolist()
    maps = ["one row"] * len(x) + ["mean of heads"] * len(x)
    return pd.DataFrame({"image": [*range(len(x))] * 2, "map": maps, **columns})
