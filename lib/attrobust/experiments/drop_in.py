"""A transformer of Hugging Face, trained, swapped to another attention and trained on, beside one that was not swapped.

Not swapping is the control: it gets the same extra passes over the images in the same order.
"""

import copy
from collections.abc import Sequence
from functools import cache

import pandas as pd
import torch
from torch import nn

from attrobust import attacks, data, swap, training
from attrobust.experiments.explanations import under_attack
from attrobust.experiments.measure import PIXELS, dataset
from attrobust.versions import versioned

PATCH = 2


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
    effort: attacks.Effort,
) -> pd.DataFrame:
    """Train a small ViT of transformers on digits, swap its attention, train on, and attack its maps.

    Args:
        names: kernels swapped in; "softmax" is the control.
        seed: of weights, batch order and attack.
        n_train: training images.
        n_attacked: test images whose maps are attacked.
        epochs: passes over the images before the swap, and half as many after it.
        step_size: of SGD with momentum 0.9, annealed to zero in both parts.
        radius: of the linf ball, in 1/255 of the pixel range.
        effort: how hard the maps are attacked.

    Returns:
        One row per kernel, attribution and attack ("noise", "worst"): similarities, and the test accuracy `before` the
        swap, right after it (`swapped`) and after training on (`after`).

    Raises:
        ImportError: if transformers is not installed.
    """
    digits, attacked = (dataset("digits", None, n_train, n, "cpu") for n in (None, n_attacked))
    original = _original(seed, n_train, epochs, step_size)
    before, tables = _accuracy(original, digits), []
    for name in names:
        model = swap.attention(copy.deepcopy(original), name)
        swapped = _accuracy(model, digits)
        _fit(model, digits, seed=seed + 1, epochs=max(1, epochs // 2), step_size=step_size)
        accuracies = {"before": before, "swapped": swapped, "after": _accuracy(model, digits)}
        model.requires_grad_(False)
        table = under_attack(
            model,
            attacked.test.x,
            patch=PATCH,
            k=(attacked.test.x.shape[-1] // PATCH) ** 2 // 4,
            radius=radius,
            effort=effort,
            seed=seed,
            names=("saliency", "raw_attention", "rollout"),
        )
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
        image_size=8, patch_size=PATCH, num_channels=1, num_labels=10, hidden_size=32, intermediate_size=64,
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
