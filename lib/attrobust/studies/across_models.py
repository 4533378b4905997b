"""What notebook 04 asks: which choices decide whether a larger step makes maps robust; where attacked maps point.

A condition changes one thing of a base network, at both ends of the step range and with the same seeds:

    difference = (change over the steps under the condition) - (change over the steps in the base)

Where a choice also rescales the noise of SGD, the step is rescaled with it, so that step / ((1 - momentum) batch) stays
what it was.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from attrobust import attacks, attributions, claims, data, experiments, faithfulness, robustness
from attrobust.attacks.streams import stochastic
from attrobust.balls import Ball
from attrobust.experiments.measure import Trained, train
from attrobust.models.readouts import predictions
from attrobust.shapes import Attribution, Images
from attrobust.versions import versioned


class Condition(NamedTuple):
    """One choice beside what it is compared with, as fields of an Experiment."""

    factor: str  # what is chosen
    name: str  # how
    changes: Mapping[str, object]  # to the base
    base: Mapping[str, object] = {}  # what the base has beyond matched loss and its defaults
    only: str = ""  # the architecture that alone can make the choice; "" for any


#: Fixed budgets are compared with a fixed budget.
_BUDGET = {"protocol": "plateau"}
CONDITIONS: tuple[Condition, ...] = (
    Condition("activation", "ReLU", {"activation": "relu"}),
    Condition("activation", "softplus", {"activation": "softplus"}),
    Condition("initial size", "narrow", {"initial": "narrow"}),
    Condition("norms", "pinned", {"protocol": "pinned"}),
    Condition("normalisation", "BatchNorm", {"architecture": "convnet_bn"}, only="convnet"),
    Condition("batch", "16 (step rescaled)", {"batch_size": 16}),
    Condition("batch", "512 (step rescaled)", {"batch_size": 512}),
    Condition("momentum", "none (step rescaled)", {"momentum": 0.0}),
    Condition("time after the fit", "loss 0.1", {"protocol": "early"}),
    Condition("time after the fit", "loss 0.001", {"protocol": "late"}),
    Condition("time after the fit", "fixed budget", {"protocol": "plateau"}),
    Condition("weight decay", "5e-4", {"protocol": "standard"}, _BUDGET),
    Condition("weight decay", "step × decay held", {"protocol": "decay_held"}, _BUDGET),
    Condition("loss", "squared", {"protocol": "squared"}, _BUDGET),
    Condition("labels", "smoothed by 0.1", {"protocol": "smoothed"}, _BUDGET),
    Condition("labels", "a tenth wrong", {"protocol": "noisy"}, _BUDGET),
    Condition("images", "moved by a pixel", {"protocol": "augmented"}, _BUDGET),
    Condition("images", "moved at a constant step", {"protocol": "constant_moved"}, {"protocol": "constant"}),
    Condition("schedule", "constant after warm-up", {"protocol": "constant"}, _BUDGET),
)

#: No larger step is tried.
MOST_STEP = 100.0

#: Sides of a condition, and ends of its step range.
SIDES, ENDS = ("base", "condition"), ("small step", "large step")


def conditions(architecture: str, n_train: int) -> list[Condition]:
    """Those that a network of this architecture can make, on so many images.

    Example:
        >>> len(conditions("convnet", 1000)) - len(conditions("mlp", 100))
        2
    """
    return [c for c in CONDITIONS if c.only in ("", architecture) and c.changes.get("batch_size", 1) <= n_train]


def networks(
    condition: Condition, base: Mapping[str, object], *, steps: Sequence[float], seeds: Sequence[int]
) -> dict[tuple[str, str], list[experiments.Experiment]]:
    """Experiments of both sides at both ends of the step range, by (side, end), one per seed.

    `base` are fields of an Experiment; `steps` the smallest and the largest step size of the base. A ValueError refuses
    a base that has made the choice already, and one of an architecture that cannot make it.

    Example:
        >>> digits = experiments.sized("mlp", "digits") | {"batch_size": 64, "epochs": 400}
        >>> found = networks(CONDITIONS[7], digits, steps=[0.003, 0.06], seeds=[0, 1])
        >>> [e.step_size for e in found["condition", "large step"]], len(found)
        ([0.6, 0.6], 4)
    """
    if len(steps) != 2 or not steps[0] < steps[1]:
        raise ValueError(f"steps is {list(steps)}; it must be the smallest and the largest step size")
    if condition.only and base.get("architecture") != condition.only:
        raise ValueError(f"base is of architecture {base.get('architecture')!r}; only {condition.only!r} can be chosen")
    plain, found, noise = {**base, **condition.base}, {}, []
    for side, fields in zip(SIDES, (plain, {**plain, **condition.changes}), strict=True):
        one = experiments.Experiment(**fields, step_size=1.0, seed=0)
        noise.append(1.0 / ((1 - one.momentum) * one.batch_size))
        rescaled = [float(f"{step * noise[0] / noise[-1]:.12g}") for step in steps]
        found |= _at_ends(side, fields, rescaled, seeds)
    if found[SIDES[0], ENDS[0]] == found[SIDES[1], ENDS[0]]:
        raise ValueError(f"base has {condition.factor} {condition.name!r} already; it must be without it")
    return found


def _at_ends(
    side: str, fields: Mapping[str, object], steps: Sequence[float], seeds: Sequence[int]
) -> dict[tuple[str, str], list[experiments.Experiment]]:
    """Networks of one side at both ends of a range of steps, one per seed."""
    return {
        (side, end): [experiments.Experiment(**fields, step_size=step, seed=seed) for seed in seeds]
        for end, step in zip(ENDS, steps, strict=True)
    }


def plan(
    base: Mapping[str, object], *, steps: Sequence[float], seeds: Sequence[int], stable: float = float("nan")
) -> pd.DataFrame:
    """Every network that differs from a base in one choice, and the base itself for each: a row per network.

    Choices that the base has made already are left out. Columns `factor`, `choice`, `role` (one of `SIDES`), `end` (one
    of `ENDS`), `experiment`. With `stable`, the largest stable step, if it is larger than those of the base, one more
    choice is a range of steps that ends there and is as wide as that of the base.
    """
    found = {
        (c.factor, c.name): networks(c, base, steps=steps, seeds=seeds)
        for c in conditions(base["architecture"], base.get("n_train", 1000))
        if any(base.get(name) != value for name, value in c.changes.items())
    }
    if stable > steps[1]:
        ranges = (steps, (stable / (steps[1] / steps[0]), stable))
        sides = [_at_ends(side, base, at, seeds) for side, at in zip(SIDES, ranges, strict=True)]
        found["steps", "up to the largest stable"] = sides[0] | sides[1]
    lines = [
        {"factor": factor, "choice": choice, "role": role, "end": end, "experiment": e}
        for (factor, choice), sides in found.items()
        for (role, end), group in sides.items()
        for e in group
    ]
    return pd.DataFrame(lines)


def changes(rows: pd.DataFrame, *, kind: Sequence[str], properties: Sequence[str]) -> pd.DataFrame:
    """What changes between the `ENDS` of each kind of network, told by the column `end`, seed by seed.

    `value` changes by a difference, properties by the natural log of their ratio, NaN where one is not above 0. Seeds
    that lack an end do not enter; others than these ends do not count.
    """
    names = [*kind, "seed"]
    first, last = (rows[rows["end"] == end].set_index(names)[["value", *properties]].astype(float) for end in ENDS)
    both = first.index.intersection(last.index, sort=False)
    first, last = first.loc[both], last.loc[both]
    found = np.log(last.where(last > 0)) - np.log(first.where(first > 0))
    return found.assign(value=last["value"] - first["value"]).reset_index()


def mediation(
    rows: pd.DataFrame, *, kind: Sequence[str], properties: Sequence[str], by: str, generator: np.random.Generator
) -> pd.DataFrame:
    """`claims.associations` of each property, with the worst of `claims.carried_over` beside it, as lines."""
    table = claims.associations(rows, properties=properties, cluster=kind, generator=generator)
    carried = claims.carried_over(rows, properties=properties, by=by).groupby("property", sort=False)
    worst = carried[["correlation", "r2"]].min().add_prefix("carried_").reset_index()
    table = table.merge(worst, on="property", how="left").rename(columns={"correlation": "effect", "clusters": "seeds"})
    word = np.where(table["low"] > 0, "positive", np.where(table["high"] < 0, "negative", "unclear"))
    return table.assign(by="runs", start="", end="", word=word)


@versioned(1)
def largest_stable(experiment: experiments.Experiment, first: float, epochs: int) -> pd.DataFrame:
    """The largest of the step sizes first, first sqrt 2, first 2, ... up to which a network reaches its level of loss.

    The level is that of the experiment's recipe, to be reached within so many epochs. One row with `step_size`, NaN
    where already the first one is too large.
    """
    if experiment.recipe.stop_loss is None:
        raise ValueError(f"experiment has protocol {experiment.protocol!r}; it must stop at a level of loss")
    short = dataclasses.replace(experiment, epochs=max(1, epochs // experiment.recipe.patience))
    step, stable = first, float("nan")
    while step <= MOST_STEP:
        _, (fit,) = train([dataclasses.replace(short, step_size=step)])
        if not fit.reached:
            break
        step, stable = step * 2**0.5, step
    return pd.DataFrame([{"step_size": stable}])


@versioned(1)
def transferred(
    experiment: experiments.Experiment, names: Sequence[str], radius: float, effort: attacks.Effort, n_attacked: int,
    *, network: Trained,
) -> pd.DataFrame:  # fmt: skip
    """Attack one map of a network, measure another: Spearman's rank correlation, a row for each pair of maps.

    Every map is told as "map, readout"; `attacked` is "noise" for noise of the same size. The linf radius is in 1/255
    of the pixel range; images that no attack reached do not count, and a map that none could climb has NaN.
    """
    model, x, maps = _explained(experiment, names, n_attacked, network)
    draw = torch.Generator().manual_seed(experiment.seed)
    how = {"ball": Ball("linf", radius / 255), "k": max(1, x[0, 0].numel() // 10), "generator": draw, "effort": effort}
    table = robustness.transfer(model, x, attributions=maps, refuse=False, **how)
    means = table.groupby(["attacked", "measured"], sort=False)["spearman"].mean().reset_index()
    return means.assign(seed=experiment.seed, step_size=experiment.step_size)


@versioned(1)
def relevance_mass(
    experiment: experiments.Experiment, names: Sequence[str], radius: float, effort: attacks.Effort, n_attacked: int,
    *, network: Trained,
) -> pd.DataFrame:  # fmt: skip
    """Where maps of a network of `two_digits` point, before and under attack; a row per map, and one of "random" order.

    `mass` is the share of a map's importances on the digit that decides (relevance mass accuracy: Arras, Osman and
    Samek 2022), `mass_attacked` the same at the image with the least rank correlation, which is `spearman`;
    `deletion` and `insertion` are areas of the predicted class's probability (Petsiuk et al. 2018). The linf radius is
    in 1/255 of the pixel range; images that no attack reached do not count in the second and third number, zero maps
    not in the first two. Stochastic maps are refused.
    """
    drawn = [name for name, map_of in experiments.of_pixels().items() if name in names and stochastic(map_of)]
    if drawn:
        raise ValueError(f"names holds {drawn[0]!r}, which draws random numbers; its share is not one number")
    model, x, maps = _explained(experiment, names, n_attacked, network)
    target, half = predictions(model, x), data.two_digits.deciding(*x.shape[-2:])
    how = {"ball": Ball("linf", radius / 255), "k": max(1, x[0, 0].numel() // 10), "effort": effort}
    draw, steps = torch.Generator().manual_seed(experiment.seed), min(20, half.numel())
    curves = faithfulness.insertion_deletion(model, x, attributions=maps, generator=draw, steps=steps)
    areas, rows = curves.groupby("attribution", sort=False)[["deletion", "insertion"]].mean(), []
    for name, attribution in maps.items():
        draw = torch.Generator().manual_seed(experiment.seed)
        found = attacks.auto(attribution, model, x, generator=draw, **how)
        clean, moved = (_share(attribution(model, at, target), half) for at in (x, found.x["spearman"]))
        worst = found.table[found.table["part"] == "worst"]["spearman"]
        row = {"mass": clean.nanmean(), "mass_attacked": moved[found.counted].nanmean(), "spearman": worst.mean()}
        rows.append({"map": name, **{key: float(value) for key, value in row.items()}, **areas.loc[name]})
    own = {"seed": experiment.seed, "step_size": experiment.step_size}
    return pd.DataFrame([*rows, {"map": faithfulness.RANDOM, **areas.loc[faithfulness.RANDOM]}]).assign(**own)


def _explained(
    experiment: experiments.Experiment, names: Sequence[str], n: int, network: Trained
) -> tuple[nn.Module, Images, dict[str, Attribution]]:
    """A network, trained, images of its seed's own draw, and its maps under both readouts by name."""
    lacking = [name for name in names if name not in experiments.explaining(experiment.architecture, names)]
    if lacking or not names:
        raise ValueError(f"names is {[*names]}; it must hold maps that a network {experiment.architecture!r} has")
    maps = experiments.compared(None, names, list(experiments.READOUTS))
    told = {f"{name}, {readout}": attribution for (name, readout), attribution in maps.items()}
    return network(experiment).requires_grad_(False), experiments.shown(experiment, n).x, told


def _share(maps: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Share of each map's importances that lies in a region, NaN of a map that is zero everywhere."""
    importances = attributions.pixelwise(maps.detach())
    return (importances * where).flatten(1).sum(1) / importances.flatten(1).sum(1)
