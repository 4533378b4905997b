"""How much of an explanation survives an attack: attribution x attack x similarity, image by image.

For every image the *worst case* over the attack objectives is taken separately for each similarity, and beside it
stands random noise of the same size, without which an attack table cannot be read.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import attacks, checks
from attrobust.attributions import distances, similarities
from attrobust.balls import Ball
from attrobust.versions import versioned

Images = Float[Tensor, "batch channels height width"]

#: Similarities (worst = lowest) and distances (worst = highest) of every table.
SIMILARITIES = ("top_k", "spearman", "cosine", "pearson")
DISTANCES = ("displacement", "relative_displacement", "center_shift")


def objectives(k: int) -> dict[str, Callable[..., attacks.Objective]]:
    """The attack objectives that the worst case is taken over, by name."""
    return {
        "top_k": partial(attacks.shift_topk, k=k),
        "center": attacks.shift_center,
        "cosine": attacks.lower_cosine,
        "pearson": attacks.lower_pearson,
    }


@versioned(1)
def attribution_robustness(
    model: nn.Module,
    x: Images,
    *,
    attributions: Mapping[str, attacks.Attribution],
    ball: Ball,
    k: int,
    generator: torch.Generator,
    steps: int = 20,
    restarts: int = 1,
    noise_draws: int = 4,
    ascend_on: Sequence[nn.Module] | None = None,
) -> pd.DataFrame:
    """Attack the maps of the predicted classes and compare them with the clean ones.

    Args:
        model: classifier in eval mode; every map is judged on it.
        x: clean images, pixels in [0, 1].
        attributions: name -> (model, x, target) -> signed map.
        ball: allowed perturbations.
        k: pixels compared by the top-k intersection, from 1 to height x width.
        generator: of random starts and noise.
        steps: gradient steps of each attack.
        restarts: random starts of each attack.
        noise_draws: random perturbations of full size, averaged, for the noise row.
        ascend_on: smooth twins the attack climbs on, one after the other, the worst counting; needed if the
            model has a ReLU anywhere.

    Returns:
        One row per image, attribution and attack ("noise", each objective, "worst"), with every similarity and
        distance, `counted` (share of rows where an iterate kept the prediction) and `kept` (the judged image has
        the clean prediction; for noise, the share of draws that do).

    Raises:
        ValueError: for bad images, a number out of range, or a model with kinks and no twin.
    """
    checks.images("x", x)
    checks.count("k", k, most=x.shape[-1] * x.shape[-2])
    checks.count("noise_draws", noise_draws)
    if ascend_on is None:
        attacks.refuse_kinks(model, x)
    for twin in ascend_on or ():
        attacks.refuse_kinks(twin, x)
    with torch.no_grad():
        target = model(x).argmax(1)
    overheard = attacks.Overheard(model)
    keep = attacks.same_prediction(overheard, x)
    tables = []
    for name, attribution in attributions.items():
        clean = attribution(model, x, target).detach()
        compare = partial(_compare, overheard, attribution, clean, target, k=k, keep=keep)
        noise = [compare((x + ball.boundary(x, generator=generator)).clamp(0, 1)) for _ in range(noise_draws)]
        rows = {"noise": sum(noise[1:], noise[0]) / noise_draws}
        rows["noise"]["counted"] = 1.0
        for attack, build in objectives(k).items():
            if not bool(clean.any()):  # a collapsed network: every map is zero and nothing can move it
                rows[attack] = compare(x).assign(counted=0.0)
                continue
            for climbed in ascend_on or [model]:
                judge = build(attribution, overheard, x, target)
                objective = judge if climbed is model else build(attribution, climbed, x, target)
                found = attacks.pgd(
                    objective,
                    x,
                    ball,
                    steps=steps,
                    restarts=restarts,
                    keep=keep,
                    judge=judge,
                    generator=generator,
                )
                table = compare(found.x).assign(counted=found.counted.cpu().double().numpy())
                rows[attack] = _worst([rows[attack], table]) if attack in rows else table
        rows["worst"] = _worst([rows[attack] for attack in objectives(k)])
        tables += [t.assign(image=range(len(x)), attribution=name, attack=attack) for attack, t in rows.items()]
    table = pd.concat(tables, ignore_index=True)
    return table[["image", "attribution", "attack", *SIMILARITIES, *DISTANCES, "kept", "counted"]]


def transfer(
    model: nn.Module,
    x: Images,
    *,
    attributions: Mapping[str, attacks.Attribution],
    ball: Ball,
    k: int,
    generator: torch.Generator,
    effort: attacks.Effort | None = None,
    noise_draws: int = 4,
    ascend_on: Sequence[nn.Module] | None = None,
) -> pd.DataFrame:
    """Attack one map, measure another: every pair, image by image, beside random noise.

    Each map is attacked by `attacks.auto`; each measure is then taken on every map, at the images that are worst for
    that measure on the attacked map. The diagonal is the suite's own worst case.

    Args:
        model: classifier in eval mode.
        x: clean images, pixels in [0, 1].
        attributions: name -> map; one that waits for a `generator` is measured under the same draws throughout.
        ball: allowed perturbations.
        k: pixels of the top-k measures.
        generator: gives one number, from which every image's streams follow.
        effort: how hard the suite tries; `attacks.Effort()` if None.
        noise_draws: perturbations of full size, averaged, for the rows attacked on "noise".
        ascend_on: networks to climb on; twins of the model are built if it has kinks and this is None.

    Returns:
        One row per image, `attacked` (a name, or "noise") and `measured` (a name), with every measure of
        `attacks.MEASURES` but "match", and `counted`: an iterate kept the prediction (where none did the clean image
        is measured), for noise the share of draws that did.

    Raises:
        ValueError: for what `attacks.auto` refuses, a map called "noise", or `noise_draws` below 1.

    Reference: Wang et al. 2020, "Smoothed geometry for robust attribution", transfer of attacks between maps.
    """
    checks.images("x", x)
    checks.count("noise_draws", noise_draws)
    if "noise" in attributions:
        raise ValueError("attributions has a map called 'noise'; that name stands for the control")
    streams, moved, counted = attacks.Streams(x, generator=generator), {}, {}
    for name, attribution in attributions.items():
        how = {"k": k, "generator": streams, "effort": effort, "ascend_on": ascend_on}
        found = attacks.auto(attribution, model, x, ball, **how)
        moved[name], counted[name] = [found.x], [found.counted]
    with torch.no_grad():
        target = model(x).argmax(1)
    keep = attacks.same_prediction(model, x)
    moved["noise"], counted["noise"] = [], []
    draws = [streams(image, "noise row") for image in range(len(x))]
    for _ in range(noise_draws):
        noisy = (x + attacks.each(ball.boundary, x, draws)).clamp(0, 1)
        moved["noise"].append(dict.fromkeys(attacks.MEASURES, noisy))
        counted["noise"].append(keep(noisy))
    tables = []
    for measured, attribution in attributions.items():

        def maps(images: Images, attribution: attacks.Attribution = attribution) -> Images:
            return attacks.explain(attribution, model, images, target, streams.common()).detach()

        clean = maps(x)
        for attacked, every in moved.items():
            each = [_measured(clean, maps, images, k=k) for images in every]
            share = torch.stack(counted[attacked]).double().mean(0)
            columns = {name: torch.stack([m[name] for m in each]).mean(0) for name in each[0]} | {"counted": share}
            numbers = {name: value.double().cpu().numpy() for name, value in columns.items()}
            tables.append(pd.DataFrame({"image": range(len(x)), "attacked": attacked, "measured": measured, **numbers}))
    return pd.concat(tables, ignore_index=True)


def compare(model: nn.Module, attribution: attacks.Attribution, x: Images, moved: Images, *, k: int) -> pd.DataFrame:
    """Every similarity and distance between the maps of clean and moved images, one row per image.

    Args:
        model: classifier in eval mode; the maps explain the class it predicts for the clean image.
        attribution: (model, x, target) -> signed map.
        x: clean images.
        moved: perturbed images.
        k: pixels compared by the top-k intersection.
    """
    with torch.no_grad():
        target = model(x).argmax(1)
    clean = attribution(model, x, target).detach()
    keep = attacks.same_prediction(model, x)
    return _compare(model, attribution, clean, target, moved, k=k, keep=keep).assign(image=range(len(x)))


def _compare(
    model: nn.Module,
    attribution: attacks.Attribution,
    clean: Tensor,
    target: Tensor,
    moved: Images,
    *,
    k: int,
    keep: Callable[[Images], Tensor],
) -> pd.DataFrame:
    there = attribution(model, moved, target).detach()
    columns = similarities(clean, there, k=k) | distances(clean, there) | {"kept": keep(moved)}
    return pd.DataFrame({name: values.detach().cpu().double().numpy() for name, values in columns.items()})


def _measured(
    clean: Tensor, maps: Callable[[Images], Tensor], moved: Mapping[str, Images], *, k: int
) -> dict[str, Float[Tensor, " batch"]]:
    """Each measure at its own images; images that serve several measures are mapped once."""
    found = {key: attacks.measure(clean, maps(at), k=k) for key, at in {id(at): at for at in moved.values()}.items()}
    return {name: found[id(at)][name] for name, at in moved.items() if name != "match"}


def _worst(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    by_image = pd.concat(tables, keys=range(len(tables))).groupby(level=1)
    return by_image.min()[[*SIMILARITIES, "kept"]].join(by_image.max()[[*DISTANCES, "counted"]])
