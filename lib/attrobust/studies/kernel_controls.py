"""Two controls of notebook 07: the same scores by another read-out, and another attention in the same network.

The second takes a transformer of Hugging Face, trained, swapped to another attention and trained on, beside one that
was not swapped; that one gets the same extra passes over the images in the same order.
"""

import copy
from collections.abc import Sequence
from functools import cache

import pandas as pd
import torch
from torch import nn

from attrobust import attacks, attributions, data, similarity, swap, training
from attrobust.attacks import Effort
from attrobust.balls import Ball
from attrobust.experiments.explanations import cls_rows, under_attack
from attrobust.experiments.measure import PIXELS, dataset
from attrobust.shapes import Images
from attrobust.versions import versioned

_PATCH = 2


@versioned(2)
def read_out_twice(model: nn.Module, x: Images, *, radius: float, steps: int, restarts: int, seed: int) -> pd.DataFrame:
    """How steady the ranks of CLS rows are under an attack on raw attention, by two read-outs of the same scores.

    A strictly increasing kernel ranks the keys of one row as a softmax of its scores does, so row by row the two
    columns must agree (P32); a mean of rows (the heads of a block) need not. The ranks are taken in float64. One row
    per image and map ("one row": mean over heads of the rows' Spearman; "mean of heads"), with the Spearman correlation
    of clean and attacked weights under the model's `own` kernel and under `softmax`. The attack moves the Pearson
    correlation of raw attention, the predicted class held, in a linf ball whose radius is in 1/255 of the pixel range.
    """
    effort = Effort(steps=steps, restarts=restarts, draws=0, walk=0, objectives=("pearson",))
    how = {"k": 1, "effort": effort, "generator": torch.Generator(x.device).manual_seed(seed)}
    found = attacks.auto(attributions.raw_attention, model, x, Ball("linf", radius / 255), **how)
    kernel, columns = model.blocks[-1].attention.kernel, {}
    readouts = {"own": lambda s: kernel.weights(s[:, :, None])[:, :, 0], "softmax": lambda s: s.softmax(-1)}
    with torch.no_grad():
        scores = [cls_rows(model, images)[0].double() for images in (x, found.x["pearson"])]
    for name, read in readouts.items():
        clean, moved = (read(s)[:, :, 1:] for s in scores)
        heads = similarity.spearman(clean.flatten(0, 1)[:, None], moved.flatten(0, 1)[:, None])
        mean = similarity.spearman(clean.mean(1)[:, None], moved.mean(1)[:, None])
        columns[name] = torch.cat([heads.view(len(x), -1).mean(1), mean]).tolist()
    maps = ["one row"] * len(x) + ["mean of heads"] * len(x)
    return pd.DataFrame({"image": [*range(len(x))] * 2, "map": maps, **columns})


@versioned(2)
def drop_in(
    names: Sequence[str],
    seed: int,
    *,
    n_train: int,
    n_attacked: int,
    epochs: int,
    step_size: float,
    radius: float,
    effort: Effort,
) -> pd.DataFrame:
    """Train a small ViT of transformers on digits, swap its attention, train on, and attack its maps.

    One row per kernel (softmax is the control), attribution and attack ("noise", "worst"): similarities, and the test
    accuracy `before` the swap, right after it (`swapped`) and after training on (`after`). SGD has momentum 0.9 and a
    step annealed to zero, before the swap and, for half as many epochs, after it; the linf radius is in 1/255 of the
    pixel range. An ImportError says if transformers is not installed.
    """
    digits, attacked = (dataset("digits", None, n_train, n, "cpu") for n in (None, n_attacked))
    original = _original(seed, n_train, epochs, step_size)
    how = {"patch": _PATCH, "k": (attacked.test.x.shape[-1] // _PATCH) ** 2 // 4, "radius": radius, "effort": effort}
    before, tables = _accuracy(original, digits), []
    for name in names:
        model = swap.attention(copy.deepcopy(original), name)
        accuracies = {"before": before, "swapped": _accuracy(model, digits)}
        _fit(model, digits, seed=seed + 1, epochs=max(1, epochs // 2), step_size=step_size)
        accuracies["after"] = _accuracy(model, digits)
        maps = ("saliency", "raw_attention", "rollout")
        table = under_attack(model.requires_grad_(False), attacked.test.x, **how, seed=seed, names=maps)
        tables.append(table.assign(kernel=name, seed=seed, **accuracies))
    return pd.concat(tables, ignore_index=True)


@cache
def _original(seed: int, n_train: int, epochs: int, step_size: float) -> swap.ImageClassifier:
    """The network before the swap, kept by each worker process."""
    model = _vit(seed)
    _fit(model, dataset("digits", None, n_train, None, "cpu"), seed=seed, epochs=epochs, step_size=step_size)
    return model


def _vit(seed: int) -> swap.ImageClassifier:
    try:
        from transformers import ViTConfig, ViTForImageClassification
    except ImportError as error:
        raise ImportError("drop_in needs transformers; install it by pip install attrobust[hf]") from error
    config = ViTConfig(
        image_size=8, patch_size=_PATCH, num_channels=1, num_labels=10, hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, attn_implementation="eager", initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTForImageClassification(config)
    mean, std = PIXELS["digits"]
    return swap.ImageClassifier(model, mean=mean, std=std).eval()


def _fit(model: nn.Module, digits: data.Dataset, *, seed: int, epochs: int, step_size: float) -> None:
    size = min(64, len(digits.train.x))
    recipe = training.recipes.named("plateau", step_size=step_size, batch_size=size, epochs=epochs)
    training.fit([model], *digits.train, recipe, generators=[torch.Generator().manual_seed(seed)])


@torch.no_grad()
def _accuracy(model: nn.Module, digits: data.Dataset) -> float:
    return float((model(digits.test.x).argmax(1) == digits.test.y).double().mean())
