"""How much of an explanation survives an attack: attribution x attack x similarity, image by image.

For every image the *worst case* over the attack's objectives is taken separately for each similarity, and beside it
stands random noise of the same size, without which an attack table cannot be read. Every function takes a `model` in
eval mode, on which every map is judged, images `x` with pixels in [0, 1], `attributions` by name, the `ball` of allowed
perturbations, `k` leading pixels of the top-k measures (from 1 to one less than the map has), and a `generator`, which
gives one number from which every image's streams follow, and refuses what `attacks.auto` refuses; `compare` attacks
nothing and takes what it needs of these.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from attrobust import attacks, checks
from attrobust.attacks.problem import shift
from attrobust.attributions.importance import name_of
from attrobust.balls import Ball
from attrobust.models import guards
from attrobust.models.readouts import predictions
from attrobust.shapes import Attribution, Images, Labels, Maps, Marks, PerImage
from attrobust.versions import versioned

#: Similarities (worst = lowest) and distances (worst = highest) of every table.
SIMILARITIES = tuple(name for name, worse in attacks.MEASURES.items() if worse < 0)
DISTANCES = tuple(name for name, worse in attacks.MEASURES.items() if worse > 0 and name != "match")
COLUMNS = (*SIMILARITIES, *DISTANCES)


@versioned(3)
def attribution_robustness(
    model: nn.Module, x: Images, *, attributions: Mapping[str, Attribution], ball: Ball, k: int,
    generator: torch.Generator, effort: attacks.Effort | attacks.Heavy | None = None, noise_draws: int = 4,
    ascend_on: Sequence[nn.Module] | None = None, refuse: bool = True, held: float | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Attack the maps of the predicted classes and compare them with the clean ones.

    Args:
        model, x, attributions, ball, k, generator: as above.
        effort: how hard `attacks.auto` climbs, `attacks.Effort()` if None, without noise and walk; or a `Heavy`, for
            the attack of another kind that judges the strength of `auto`.
        noise_draws: random perturbations of full size, averaged, for the noise row; at least 1.
        ascend_on: networks to climb on; twins of the model are built if its derivative fails the audit.
        held: largest change of a class's probability that counts, noise included; None for any that keeps the class.
        refuse: whether a map that cannot be climbed is an error; if not, it was not attacked, and its row is NaN.

    Returns:
        One row per image, attribution and attack ("noise", each part of the attack, "worst"), with every measure of
        `COLUMNS` and `counted`: an iterate kept the prediction (for noise, the share of draws that did). An image that
        was not attacked has NaN.

    Raises:
        ValueError: images out of [0, 1], an argument of another kind, `noise_draws` below 1; a BlindError where
            `refuse` and a map cannot be climbed.

    Example:
        >>> from attrobust import attributions, models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x = torch.linspace(0.2, 0.8, 16).view(1, 1, 4, 4)
        >>> how = {"ball": Ball("linf", 0.1), "k": 4, "generator": torch.Generator()}
        >>> effort = attacks.Effort(steps=2, restarts=1, objectives=("cosine",))
        >>> table = attribution_robustness(model, x, attributions={"map": attributions.saliency}, effort=effort, **how)
        >>> table["attack"].tolist()
        ['noise', 'cosine', 'worst']
    """
    checks.images("x", x)
    checks.kind("attributions", attributions, Mapping)
    checks.kind("ball", ball, Ball)
    effort = attacks.Effort() if effort is None else effort
    checks.kind("effort", effort, attacks.Effort, attacks.Heavy)
    checks.kind("generator", generator, torch.Generator)
    checks.count("noise_draws", noise_draws)
    checks.count("effort.steps", effort.steps)
    how = {"ascend_on": ascend_on, "held": held}
    if isinstance(effort, attacks.Heavy):
        attack = partial(attacks.heavy, effort=effort, **how)
    else:
        attack = partial(attacks.auto, effort=dataclasses.replace(effort, draws=0, walk=0), **how)
    streams, tables = attacks.Streams(x, generator=generator), []
    target = predictions(model, x)
    noise = noisy(model, x, target, ball, streams, noise_draws, held)
    for name, attribution in attributions.items():
        found = _found(attack, attribution, model, x, ball, k, streams, refuse=refuse)
        maps = explained(attribution, model, target, streams)
        clean = maps(x)
        drawn = [attacks.measure(clean, maps(noisy), k=k) for noisy, _ in noise]
        means = {column: torch.stack([d[column] for d in drawn]).mean(0) for column in COLUMNS}
        nothing = dict.fromkeys(COLUMNS, torch.full((len(x),), torch.nan))
        worst = found.table if found else _table(nothing, torch.zeros(len(x)), part="worst")
        tables.append(pd.concat([_table(means, _share(noise), part="noise"), worst]).assign(attribution=name))
    table = pd.concat(tables, ignore_index=True).rename(columns={"part": "attack"})
    return table[["image", "attribution", "attack", *COLUMNS, "counted"]]


def transfer(
    model: nn.Module, x: Images, *, attributions: Mapping[str, Attribution], ball: Ball, k: int,
    generator: torch.Generator, effort: attacks.Effort | None = None, noise_draws: int = 4,
    ascend_on: Sequence[nn.Module] | None = None, refuse: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Attack one map, measure another: every pair, image by image, beside random noise.

    Each map is attacked by `attacks.auto`; each measure is then taken on every map, at the images that are worst for
    that measure on the attacked map. The diagonal is the suite's own worst case. A stochastic map is measured under the
    same draws throughout; arguments are those of `attribution_robustness`, and no map may be called "noise". Where one
    that cannot be climbed is not refused, the pairs in which it is attacked are NaN.

    Returns:
        One row per image, `attacked` (a name, or "noise") and `measured` (a name), with every measure of `COLUMNS`, and
        `counted`: an iterate kept the prediction (where none did every measure is NaN), for noise the share of draws
        that did.

    Raises:
        ValueError: a map called "noise", images out of [0, 1], an argument of another kind, `noise_draws` below 1; a
            BlindError where `refuse` and a map cannot be climbed.

    Example:
        >>> from attrobust import attributions, models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x = torch.linspace(0.2, 0.8, 16).view(1, 1, 4, 4)
        >>> how = {"ball": Ball("linf", 0.1), "k": 4, "generator": torch.Generator()}
        >>> effort = attacks.Effort(steps=2, restarts=1, draws=0, walk=0, objectives=("cosine",))
        >>> table = transfer(model, x, attributions={"map": attributions.saliency}, effort=effort, **how)
        >>> table[["attacked", "measured"]].values.tolist()
        [['map', 'map'], ['noise', 'map']]

    Reference: Wang et al. 2020, "Smoothed geometry for robust attribution", transfer of attacks between maps.
    """
    checks.images("x", x)
    checks.kind("attributions", attributions, Mapping)
    checks.kind("ball", ball, Ball)
    checks.kind("generator", generator, torch.Generator)
    checks.count("noise_draws", noise_draws)
    if "noise" in attributions:
        raise ValueError("attributions has a map called 'noise'; that name stands for the control")
    streams, moved, counted = attacks.Streams(x, generator=generator), {}, {}
    for name, attribution in attributions.items():
        attack = partial(attacks.auto, effort=effort, ascend_on=ascend_on)
        found = _found(attack, attribution, model, x, ball, k, streams, refuse=refuse)
        moved[name] = [found.x if found else dict.fromkeys(COLUMNS, x)]
        counted[name] = found.counted.double() if found else x.new_zeros(len(x), dtype=torch.float64)
    target, tables = predictions(model, x), []
    noise = noisy(model, x, target, ball, streams, noise_draws)
    moved["noise"], counted["noise"] = [dict.fromkeys(COLUMNS, noisy) for noisy, _ in noise], _share(noise)
    for measured, attribution in attributions.items():
        maps = explained(attribution, model, target, streams)
        clean = maps(x)
        for attacked, every in moved.items():
            each = [_measured(clean, maps, images, k=k) for images in every]
            values = {name: torch.stack([m[name] for m in each]).mean(0) for name in COLUMNS}
            reached = counted[attacked] > 0 if attacked != "noise" else torch.ones_like(counted[attacked]).bool()
            values = {name: torch.where(reached, value, torch.nan) for name, value in values.items()}
            tables.append(_table(values, counted[attacked], attacked=attacked, measured=measured))
    return pd.concat(tables, ignore_index=True)[["image", "attacked", "measured", *COLUMNS, "counted"]]


def compare(model: nn.Module, attribution: Attribution, x: Images, moved: Images, *, k: int) -> pd.DataFrame:
    """Every measure of `COLUMNS` between the maps of clean and moved images, one row per image.

    The maps explain the class that is predicted for the clean image; `kept` says whether the moved one is given it too.

    Raises:
        ValueError: images out of [0, 1], or an attribution that gives an image another map in other company.

    Example:
        >>> from attrobust import attributions, models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x = torch.linspace(0.2, 0.8, 16).view(1, 1, 4, 4)
        >>> table = compare(model, attributions.saliency, x, x, k=4)
        >>> table["top_k"].item(), bool(table["kept"].item())
        (1.0, True)
    """
    for name, images in (("x", x), ("moved", moved)):
        checks.images(name, images)
    target = predictions(model, x)
    guards.each("attribution", attribution, model, x, target)
    name = f"the map of attribution {name_of(attribution)}"
    maps = (checks.floating(name, attribution(model, at, target)) for at in (x, moved))
    clean, there = (m.detach() for m in maps)
    found = attacks.measure(clean, there, k=k) | {"kept": predictions(model, moved) == target}
    return pd.DataFrame({"image": range(len(x)), **{name: v.double().cpu().numpy() for name, v in found.items()}})


def noisy(
    model: nn.Module, x: Images, target: Labels, ball: Ball, streams: attacks.Streams, count: int,
    held: float | None = None,
) -> list[tuple[Images, Marks]]:  # fmt: skip
    """Perturbations of full size, and which of them keep the prediction; every map sees the same ones.

    Example:
        >>> from attrobust import models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x = torch.full((1, 1, 4, 4), 0.5)
        >>> streams = attacks.Streams(x, generator=torch.Generator())
        >>> [(moved, kept)] = noisy(model, x, predictions(model, x), Ball("linf", 0.1), streams, 1)
        >>> (moved - x).abs().mul(100).round().unique().tolist()
        [10.0]
    """
    draws = [streams(image, "noise row") for image in range(len(x))]
    moved = [(x + attacks.each(ball.boundary, x, draws)).clamp(0, 1) for _ in range(count)]
    kept = [predictions(model, noisy) == target for noisy in moved]
    if held is not None:
        with torch.no_grad():
            sure = model(x).softmax(1)
            kept = [mark & (shift(model(noisy), sure) <= held) for mark, noisy in zip(kept, moved, strict=True)]
    return list(zip(moved, kept, strict=True))


def _share(noise: Sequence[tuple[Images, Marks]]) -> PerImage:
    return torch.stack([kept for _, kept in noise]).double().mean(0)


def explained(
    attribution: Attribution, model: nn.Module, target: Tensor, streams: attacks.Streams
) -> Callable[[Images], Maps]:
    """Maps of the predicted classes, stochastic ones under each image's common draws.

    Example:
        >>> x, linear = torch.full((1, 1, 2, 2), 0.5), nn.Flatten()
        >>> streams = attacks.Streams(x, generator=torch.Generator())
        >>> maps = explained(lambda model, x, target: 2 * x, linear, torch.tensor([0]), streams)
        >>> maps(x).flatten().tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    return lambda images: attacks.explain(attribution, model, images, target, streams.common()).detach()


def _found(
    attack: Callable, attribution: Attribution, model: nn.Module, x: Images, ball: Ball, k: int,
    generator: torch.Generator | attacks.Streams, *, refuse: bool,
) -> attacks.Found | None:  # fmt: skip
    """What an attack found; None where it cannot climb and this is no error."""
    try:
        return attack(attribution, model, x, ball, k=k, generator=generator)
    except attacks.BlindError:
        if refuse:
            raise
        return None


def _measured(
    clean: Maps, maps: Callable[[Images], Maps], moved: Mapping[str, Images], *, k: int
) -> dict[str, PerImage]:
    """Each measure at its own images; images that serve several measures are mapped once."""
    found = {key: attacks.measure(clean, maps(at), k=k) for key, at in {id(at): at for at in moved.values()}.items()}
    return {name: found[id(at)][name] for name, at in moved.items() if name != "match"}


def _table(values: Mapping[str, Tensor], counted: Tensor, **names: str) -> pd.DataFrame:
    numbers = {name: value.double().cpu().numpy() for name, value in {**values, "counted": counted}.items()}
    return pd.DataFrame({"image": range(len(counted)), **names, **numbers})
