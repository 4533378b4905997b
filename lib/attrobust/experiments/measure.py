"""Train one group of networks and measure each: the only place where training meets curvature and attacks."""

import dataclasses
from collections.abc import Sequence
from functools import cache

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attrobust import attributions, curvature, data, models, robustness, training
from attrobust.balls import Ball
from attrobust.experiments import explanations
from attrobust.experiments.experiment import TRANSFORMER, Experiment, Measurement
from attrobust.rows import ATTACKED
from attrobust.versions import versioned

#: Mean and standard deviation of the training pixels (the networks' first layer).
PIXELS = {"digits": (0.305, 0.376), "mnist": (0.131, 0.308), "fashion_mnist": (0.286, 0.353)}
PIXELS |= {"cifar10": (0.473, 0.251), "cifar10_4k": (0.478, 0.250)}

COMPARABLE_LOSS = 0.25
COMPARABLE_ACCURACY = 0.995
COMPARABLE_CHANGE = 0.10
#: Largest share of test images without a usable gradient; a run above it has collapsed and is not measured further.
COMPARABLE_BLIND = 0.10

#: Columns of training, of flatness (the last one for the first layer of a dense network alone) and of the input side.
FIT = ("steps", "train_loss", "train_accuracy", "late_change", "test_accuracy")
FLATNESS = ("sharpness", "sharpness_error", "trace", "trace_error", "invariant_flatness")
INPUT_SIDE = ("logit_gradient", "logit_input_curvature", "relative_curvature")
INPUT_SIDE += ("loss_gradient", "loss_input_curvature")


@cache
def dataset(name: str, side: int | None, n_train: int, n_test: int | None, device: str) -> data.Dataset:
    """A data set, kept by each worker process."""
    return data.load(name, side=side, n_train=n_train, n_test=n_test, device=device)


def build(experiment: Experiment, device: str = "cpu") -> nn.Module:
    """The untrained network of an experiment."""
    channels, *sides = data.image_shape(experiment.dataset)
    mean, std = PIXELS[experiment.dataset]
    shape = (channels, *([experiment.side] * 2 if experiment.side else sides))
    options = ("seed", "activation", "initial", *(TRANSFORMER if experiment.architecture == "vit" else ()))
    how = {name: getattr(experiment, name) for name in options}
    return models.build(experiment.architecture, input_shape=shape, classes=10, mean=mean, std=std, **how).to(device)


@versioned(1)
def train(group: Sequence[Experiment], device: str = "cpu") -> tuple[list[nn.Module], list[training.Fit]]:
    """Train experiments that differ only in their seed, together."""
    first = group[0]
    networks = [build(e, device) for e in group]
    generators = [torch.Generator().manual_seed(e.seed) for e in group]
    examples = dataset(first.dataset, first.side, first.n_train, None, device).train
    return networks, training.fit(networks, *examples, first.recipe, generators=generators)


@versioned(2)
def measure(
    experiment: Experiment, measurement: Measurement, model: nn.Module, fit: training.Fit, device: str = "cpu"
) -> tuple[dict[str, object], pd.DataFrame]:
    """Columns of one trained network, and long rows of its maps; only of its training if it diverged or collapsed."""
    transformer, seed = experiment.architecture == "vit", experiment.seed
    of = (experiment.dataset, experiment.side, experiment.n_train)
    whole, attacked = dataset(*of, None, device), dataset(*of, measurement.n_attacked, device).test.x
    model.requires_grad_(True)
    share_blind = float(blind(model, attacked).double().mean())
    reason = incomparable(experiment, fit, share_blind)
    row: dict[str, object] = {name: getattr(fit, name) for name in FIT[:-1]}
    row["test_accuracy"] = float((model(whole.test.x).argmax(1) == whole.test.y).double().mean())
    row |= {"comparable": not reason, "reason": reason}
    nothing = pd.DataFrame(columns=[*ATTACKED[1:]])
    if fit.diverged or share_blind > COMPARABLE_BLIND:
        return row, nothing
    if measurement.curvature:
        row |= _flatness(model, whole.train, measurement, seed, device)
    model.requires_grad_(False)
    if measurement.curvature:
        row |= _input_side(model, attacked, seed, device)
    height, width = (side // (experiment.patch if transformer else 1) for side in attacked.shape[-2:])
    k = max(1, round(measurement.k_share * height * width))
    if transformer:
        row |= explanations.inside(model, attacked, patch=experiment.patch, k=k)
    under_attack = _several_maps if transformer else _one_map
    tables = []
    for radius in measurement.radii:
        found = under_attack(experiment, measurement, model, attacked, radius, k)
        tables.append(found.assign(readout=found["map"].map(reads), radius=radius)[[*ATTACKED[1:]]])
    return row, pd.concat(tables, ignore_index=True) if tables else nothing


def blind(model: nn.Module, x: Float[Tensor, "batch channels height width"]) -> Bool[Tensor, " batch"]:
    """Whether the predicted logit does not depend on the pixels, or not in a finite way, so that no map explains it.

    Its gradient's 1-norm, which bounds the change over all pixels to first order, then lies below the logit's rounding.
    """
    with torch.no_grad():
        logits = model(x)
    target = logits.argmax(1)
    largest = logits.gather(1, target[:, None])[:, 0].abs()
    change = attributions.saliency(model, x, target).detach().flatten(1).abs().sum(1)
    return ~(change.isfinite() & (change > torch.finfo(x.dtype).eps * largest))


def incomparable(experiment: Experiment, fit: training.Fit, share_blind: float) -> str:
    """Why a run with a share of `blind` images leaves its arm; "" if it stays. The rule was fixed before the runs."""
    if fit.diverged:
        return "diverged"
    if share_blind > COMPARABLE_BLIND:
        images = "no image has a" if share_blind == 1 else f"{share_blind:.0%} of the images have no"
        return f"collapsed: {images} gradient"
    level = experiment.recipe.stop_loss
    if level is not None:
        if not fit.reached:
            return f"loss {fit.train_loss:.3g} never reached {level:g}"
        off = abs(fit.train_loss / level - 1)
        return f"loss {fit.train_loss:.3g} is {off:.0%} off the level" if off > COMPARABLE_LOSS else ""
    if fit.train_accuracy < COMPARABLE_ACCURACY:
        return f"training accuracy {fit.train_accuracy:.1%}"
    return "" if fit.late_change < COMPARABLE_CHANGE else f"loss still changed by {fit.late_change:.0%}"


@versioned(2)
def _flatness(model: nn.Module, examples: data.Examples, m: Measurement, seed: int, device: str) -> dict[str, float]:
    generator = torch.Generator(device).manual_seed(seed)
    hessian = curvature.ParameterHessian(model, training.cross_entropy, *examples)
    sharp = curvature.sharpness(hessian, generator=generator)
    total = curvature.trace(hessian, generator=generator, products=m.trace_products)
    row = dict(zip(FLATNESS, (sharp.value, sharp.error, total.value, total.error), strict=False))
    if isinstance(curvature.first_layer(model)[1], nn.Linear):
        row["invariant_flatness"] = curvature.invariant_flatness(curvature.GaussNewton(model, examples.x)).value
    return row


@versioned(1)
def _input_side(model: nn.Module, x: Tensor, seed: int, device: str) -> dict[str, float]:
    with torch.no_grad():
        target = model(x).argmax(1)
    generator = torch.Generator(device).manual_seed(seed)
    row = {}
    for name, readout in (("logit", models.readouts.logit), ("loss", models.readouts.cross_entropy)):
        hessian = curvature.InputHessian(model, x, target, readout=readout)
        bend = curvature.input_curvature(hessian, generator=generator)
        row[f"{name}_gradient"] = float(hessian.gradient.detach().flatten(1).norm(dim=1).double().mean())
        row[f"{name}_input_curvature"] = float(bend.value.double().mean())
        if name == "logit":
            turn = curvature.relative_curvature(hessian, generator=generator)
            row["relative_curvature"] = float(turn.value.double().mean())
    return row


def _several_maps(e: Experiment, m: Measurement, model: nn.Module, x: Tensor, radius: float, k: int) -> pd.DataFrame:
    """Long rows of a transformer's maps, means over the images that had a map at all."""
    how = {"patch": e.patch, "k": k, "radius": radius, "effort": m.effort, "seed": e.seed, "names": m.maps}
    table = explanations.under_attack(model, x, **how)
    means = table.drop(columns="zero_maps").rename(columns={"attribution": "map"})
    return means.melt(["map", "attack", "n"], var_name="metric")


def _one_map(e: Experiment, m: Measurement, model: nn.Module, x: Tensor, radius: float, k: int) -> pd.DataFrame:
    """Long rows of the saliency map, means over the images."""
    how = {"attributions": {"saliency": attributions.saliency}, "ball": Ball("linf", radius / 255), "k": k}
    how |= {"effort": m.effort, "generator": torch.Generator(x.device).manual_seed(e.seed), "refuse": False}
    table = robustness.attribution_robustness(model, x, **how)
    table = table[table["attack"].isin(["worst", "noise"])].drop(columns="image").rename(columns={"attribution": "map"})
    values = table.melt(["map", "attack"], var_name="metric").groupby(["map", "attack", "metric"], sort=False)["value"]
    return values.agg(value="mean", n="count").reset_index()


def names(experiment: Experiment, measurement: Measurement) -> list[str]:
    """Columns that `measure` gives beyond those of the training; a run that diverged or collapsed has none of them."""
    transformer, dense = experiment.architecture == "vit", experiment.architecture == "mlp"
    found = [n for n in (*FLATNESS, *INPUT_SIDE) if measurement.curvature and (dense or n != "invariant_flatness")]
    return found + (explanations.inside_names(experiment.attention) if transformer else [])


def reads(name: str) -> str:
    """Readout that a map explains; "none" for maps of attention alone."""
    return "none" if name in explanations.ATTENTION_ALONE else "logit"


def columns(experiment: Experiment) -> dict[str, object]:
    """The experiment's own columns of a row; a transformer's only where there is one."""
    absent = TRANSFORMER if experiment.architecture != "vit" else ()
    return {name: v for name, v in dataclasses.asdict(experiment).items() if name not in absent}
