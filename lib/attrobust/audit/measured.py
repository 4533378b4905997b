"""How easily the maps of a classifier are manipulated, image by image: attack, noise of the same size, another image.

The attack keeps the predicted class and looks for the map that is least alike (`attacks.auto`); beside it stand what
random noise of the same size does, and how alike the maps of two different images are: a map that is the same for every
image is robust and worth nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from attrobust import attacks, checks, curvature, faithfulness, robustness
from attrobust.attacks.problem import shift
from attrobust.attacks.streams import alike, stochastic
from attrobust.attributions.importance import zero_maps
from attrobust.attributions.tokens import layout
from attrobust.balls import Ball
from attrobust.models.readouts import predictions
from attrobust.shapes import Attribution, Images, Maps
from attrobust.theory import entropy
from attrobust.versions import versioned

#: What an audit tells of two maps: the share of leading pixels that both have, the rank correlation of the importances,
#: the cosine of the signed maps.
MEASURES = ("top_k", "spearman", "cosine")

#: Pictures that are only looked at pass so many at a time.
FEW = 16

#: What a clean map is compared with.
ATTACK, NOISE, OTHER = "attack", "noise of the same size", "other image"


@dataclass(frozen=True)
class Attacked:
    """What an audit of one map found.

    Example:
        >>> empty = torch.zeros(1, 1, 2, 2)
        >>> Attacked(pd.DataFrame({"top_k": [0.5]}), empty, empty, empty).table["top_k"].item()
        0.5
    """

    table: pd.DataFrame  # a row per image and what its map was compared with
    x: Images  # the images with the fewest leading pixels left; the clean one where no attack reached
    clean: Maps
    moved: Maps  # maps of these images, of the class predicted for the clean one


@versioned(1)
def attacked(
    model: nn.Module, x: Images, attribution: Attribution, *, others: Images, ball: Ball, k: int,
    generator: torch.Generator, effort: attacks.Effort | None = None, draws: int = 4,
) -> Attacked:  # fmt: skip
    """Attack one map of the predicted classes, and compare it with noise and with other images.

    Args:
        model, x, attribution, ball, k, generator, effort: as in `attacks.auto`.
        others: for each image another one, of the same shape.
        draws: random perturbations of full size, averaged for the row of noise; at least 1.

    Returns:
        Attacked; its table has one row per image and comparison (`ATTACK`, `NOISE`, `OTHER`) with `MEASURES`,
        `output` (the largest change of any class's probability), `kept` (the share of images compared that keep the
        predicted class) and `zero` (1 if the clean map is zero everywhere). Of the attack each measure is that of its
        own worst image, `output` that of the image with the fewest leading pixels left. What no attack reached, and
        what has a zero map, is NaN.

    Raises:
        ValueError, and its kind `attacks.BlindError`: as `attacks.auto`; for `others` of another shape.

    Example:
        >>> from attrobust import attributions, models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> effort = attacks.Effort(steps=3, restarts=1)
        >>> how = {"ball": Ball("linf", 0.1), "k": 4, "generator": torch.Generator(), "effort": effort}
        >>> table = attacked(model, x, attributions.saliency, others=x.flip(0), **how).table
        >>> table["compared"].unique().tolist()
        ['attack', 'noise of the same size', 'other image']
    """
    checks.count("draws", draws)
    if checks.images("others", others).shape != checks.images("x", x).shape:
        raise ValueError(f"others has shape {tuple(others.shape)}; it must be that of x, {tuple(x.shape)}")
    checks.kind("generator", generator, torch.Generator)
    streams = attacks.Streams(x, generator=generator)
    found = attacks.auto(attribution, model, x, ball, k=k, generator=streams, effort=effort)
    target = predictions(model, x)
    maps = robustness.explained(attribution, model, target, streams)
    with torch.no_grad():
        sure = model(x).softmax(1)

    def compared(name: str, measured: Mapping[str, torch.Tensor], images: Images) -> pd.DataFrame:
        with torch.no_grad():
            logits = model(images)
        told = {measure: measured[measure] for measure in MEASURES}
        told |= {"output": shift(logits, sure), "kept": logits.argmax(1) == target, "zero": zero}
        columns = {key: values.double().cpu().numpy() for key, values in told.items()}
        return pd.DataFrame({"image": range(len(x)), "compared": name, **columns})

    clean, at = maps(x), found.x["top_k"]
    zero, moved = zero_maps(clean), maps(at)
    worst = found.table[found.table["part"] == "worst"].reset_index(drop=True)
    rows = compared(ATTACK, {name: torch.tensor(worst[name].to_numpy()) for name in MEASURES}, at)
    rows.loc[(~found.counted | zero).cpu().numpy(), ["output", "kept"]] = float("nan")
    noise = robustness.noisy(model, x, target, ball, streams, draws)
    each = [compared(NOISE, attacks.measure(clean, maps(one), k=k), one) for one, _ in noise]
    means = pd.concat(each).groupby(["image", "compared"], as_index=False).mean()
    own = attacks.explain(attribution, model, others, predictions(model, others), streams.common()).detach()
    other = compared(OTHER, attacks.measure(clean, own, k=k), others)
    return Attacked(pd.concat([rows, means, other], ignore_index=True), at, clean, moved)


@versioned(1)
def worth(model: nn.Module, x: Images, maps: Mapping[str, Attribution], *, seed: int) -> pd.DataFrame:
    """Whether maps say what the network uses: `faithfulness.insertion_deletion`, stochastic ones under one draw.

    Example:
        >>> from attrobust import attributions
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.full((1, 1, 2, 2), 0.5)
        >>> worth(linear, x, {"saliency": attributions.saliency}, seed=0)["attribution"].tolist()
        ['random', 'saliency']
    """
    alone = {name: alike(map_of) if stochastic(map_of) else map_of for name, map_of in maps.items()}
    how = {"generator": torch.Generator().manual_seed(seed), "steps": min(20, x[0, 0].numel())}
    return faithfulness.insertion_deletion(model, x, attributions=alone, **how)


@versioned(1)
def turns(model: nn.Module, x: Images, maps: Mapping[str, Attribution], *, seed: int) -> pd.DataFrame:
    """Relative curvature of each picture, of the predicted class's logit in the pixels; NaN where it is not finite.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> turns(linear, torch.full((1, 1, 2, 2), 0.5), {}, seed=0)["relative_curvature"].tolist()
        [0.0]
    """
    hessian = curvature.InputHessian(model, x, predictions(model, x))
    found = curvature.relative_curvature(hessian, generator=torch.Generator().manual_seed(seed)).value
    finite = found.where(found.isfinite(), torch.nan).double().cpu().numpy()
    return pd.DataFrame({"image": range(len(x)), "relative_curvature": finite})


@versioned(1)
def attended(model: nn.Module, x: Images, maps: Mapping[str, Attribution], *, seed: int) -> pd.DataFrame:
    """What the class token's rows of attention are like: a row per image and block, first block 1, means over heads.

    `entropy` is that of a row divided by its mass, over its largest: 1 for a row that reads all tokens alike, 0 for one
    that reads a single token, NaN where no head has mass. `mass` is the sum of a row, 1 under softmax and free under a
    kernel that does not divide its rows. The maps and the seed are not read.

    Raises:
        ValueError: for a model that does not tell its attention, or reads no class token.

    Example:
        >>> from attrobust import models
        >>> size = {"input_shape": (1, 4, 4), "classes": 3, "patch": 2, "dim": 4, "heads": 2, "depth": 1}
        >>> table = attended(models.build("vit", seed=0, **size).eval(), torch.rand(2, 1, 4, 4), {}, seed=0)
        >>> table["mass"].round(5).tolist()
        [1.0, 1.0]
    """
    if not callable(getattr(model, "attend", None)):
        raise ValueError(f"model is {type(model).__name__}, which does not tell its attention: it has no `attend`")
    parts = []
    for start in range(0, len(x), FEW):
        some = x[start : start + FEW]
        with torch.no_grad():
            weights = model.attend(some)[1]
        cls = layout(model, some, weights).cls
        for block, matrix in enumerate(weights, start=1):
            rows = matrix[:, :, cls].double()
            spread = entropy.row_entropy(rows) / entropy.row_entropy(torch.ones_like(rows))
            told = {"entropy": spread.nanmean(1), "mass": entropy.row_mass(rows).mean(1)}
            columns = {name: values.cpu().numpy() for name, values in told.items()}
            parts.append(pd.DataFrame({"image": range(start, start + len(some)), "block": block, **columns}))
    return pd.concat(parts).sort_values(["image", "block"], ignore_index=True)
