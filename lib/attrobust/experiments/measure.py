"""Train one group of networks and measure each: the only place where training meets curvature and attacks."""

import dataclasses
from collections.abc import Sequence
from functools import cache

import pandas as pd
import torch
from torch import nn

from attrobust import attributions, curvature, data, models, robustness, training
from attrobust.balls import Ball
from attrobust.experiments import explanations
from attrobust.experiments.experiment import PROTOCOLS, TRANSFORMER, Experiment, Measurement
from attrobust.rows import ATTACKED
from attrobust.versions import versioned

#: Mean and standard deviation of the training pixels (the networks' first layer).
PIXELS = {
    "digits": (0.305, 0.376),
    "mnist": (0.131, 0.308),
    "fashion_mnist": (0.286, 0.353),
    "cifar10": (0.473, 0.251),
    "cifar10_4k": (0.478, 0.250),
}

COMPARABLE_LOSS = 0.25
COMPARABLE_ACCURACY = 0.995
COMPARABLE_CHANGE = 0.10


@cache
def dataset(name: str, side: int | None, n_train: int, n_test: int | None, device: str) -> data.Dataset:
    """A data set, kept by each worker process."""
    return data.load(name, side=side, n_train=n_train, n_test=n_test, device=device)


def build(experiment: Experiment, device: str = "cpu") -> nn.Module:
    """The untrained network of an experiment."""
    channels, height, width = _image_shape(experiment)
    mean, std = PIXELS[experiment.dataset]
    model = models.build(
        experiment.architecture,
        input_shape=(channels, height, width),
        classes=10,
        seed=experiment.seed,
        activation=experiment.activation,
        mean=mean,
        std=std,
        **experiment.model_options,
    )
    return model.to(device)


@versioned(1)
def train(group: Sequence[Experiment], device: str = "cpu") -> tuple[list[nn.Module], list[training.Fit]]:
    """Train experiments that differ only in their seed, together."""
    first = group[0]
    examples = dataset(first.dataset, first.side, first.n_train, None, device).train
    networks = [build(e, device) for e in group]
    generators = [torch.Generator().manual_seed(e.seed) for e in group]
    return networks, training.fit(networks, *examples, generators=generators, **first.fit_arguments)


@versioned(1)
def measure(
    experiment: Experiment, measurement: Measurement, model: nn.Module, fit: training.Fit, device: str = "cpu"
) -> tuple[dict[str, object], pd.DataFrame]:
    """What belongs to one trained network, and how similar its maps stay under attack.

    Returns:
        Columns of the network; and long rows `readout, map, attack, metric, radius, value, n`, empty for a network that
        diverged.
    """
    whole = dataset(experiment.dataset, experiment.side, experiment.n_train, None, device)
    attacked = dataset(experiment.dataset, experiment.side, experiment.n_train, measurement.n_attacked, device).test
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    reason = incomparable(experiment, fit)
    row: dict[str, object] = {
        "steps": fit.steps,
        "train_loss": fit.train_loss,
        "train_accuracy": fit.train_accuracy,
        "late_change": fit.late_change,
        "test_accuracy": float((model(whole.test.x).argmax(1) == whole.test.y).double().mean()),
        "comparable": not reason,
        "reason": reason,
    }
    if fit.diverged:
        return row, pd.DataFrame(columns=[*ATTACKED[1:]])
    if measurement.curvature:
        row |= _flatness(model, whole.train, measurement, experiment.seed, device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if measurement.curvature:
        row |= _input_side(model, attacked.x, experiment.seed, device)
    if experiment.architecture == "vit":
        k = _leaders(experiment, measurement, attacked.x)
        row |= explanations.inside(model, attacked.x, patch=experiment.patch, k=k)
    attack = _several_maps if experiment.architecture == "vit" else _one_map
    tables = [attack(experiment, model, attacked.x, radius, measurement) for radius in measurement.radii]
    return row, pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*ATTACKED[1:]])


def incomparable(experiment: Experiment, fit: training.Fit) -> str:
    """Why a run leaves its arm; "" if it stays. The rule was fixed before the runs."""
    if fit.diverged:
        return "diverged"
    level = PROTOCOLS[experiment.protocol]["stop_loss"]
    if level is not None:
        if not fit.reached:
            return f"loss {fit.train_loss:.3g} never reached {level:g}"
        off = abs(fit.train_loss / level - 1)
        return f"loss {fit.train_loss:.3g} is {off:.0%} off the level" if off > COMPARABLE_LOSS else ""
    if fit.train_accuracy < COMPARABLE_ACCURACY:
        return f"training accuracy {fit.train_accuracy:.1%}"
    if not fit.late_change < COMPARABLE_CHANGE:
        return f"loss still changed by {fit.late_change:.0%}"
    return ""


@versioned(1)
def _flatness(
    model: nn.Module, train_examples: data.Examples, measurement: Measurement, seed: int, device: str
) -> dict[str, float]:
    generator = torch.Generator(device).manual_seed(seed)
    hessian = curvature.ParameterHessian(model, training.cross_entropy, *train_examples)
    sharp = curvature.sharpness(model, training.cross_entropy, *train_examples, generator=generator, hessian=hessian)
    total = curvature.trace(
        model,
        training.cross_entropy,
        *train_examples,
        generator=generator,
        products=measurement.trace_products,
        hessian=hessian,
    )
    row = {
        "sharpness": sharp.value,
        "sharpness_error": sharp.error,
        "trace": total.value,
        "trace_error": total.error,
    }
    if isinstance(curvature.first_layer(model)[1], nn.Linear):
        row["invariant_flatness"] = curvature.invariant_flatness(model, train_examples.x).value
    return row


@versioned(1)
def _input_side(model: nn.Module, x: torch.Tensor, seed: int, device: str) -> dict[str, float]:
    with torch.no_grad():
        target = model(x).argmax(1)
    generator = torch.Generator(device).manual_seed(seed)
    row = {}
    for name, readout in (("logit", curvature.logit), ("loss", curvature.cross_entropy)):
        hessian = curvature.InputHessian(model, x, target, readout=readout)
        bend = curvature.input_curvature(model, x, target, generator=generator, hessian=hessian)
        row[f"{name}_gradient"] = float(hessian.gradient.detach().flatten(1).norm(dim=1).double().mean())
        row[f"{name}_input_curvature"] = float(bend.value.double().mean())
        if name == "logit":
            turn = curvature.relative_curvature(model, x, target, generator=generator, hessian=hessian)
            row["relative_curvature"] = float(turn.value.double().mean())
    return row


def _several_maps(
    experiment: Experiment, model: nn.Module, x: torch.Tensor, radius: float, measurement: Measurement
) -> pd.DataFrame:
    """Long rows of a transformer's maps, means over the images that had a map at all."""
    table = explanations.under_attack(
        model,
        x,
        patch=experiment.patch,
        k=_leaders(experiment, measurement, x),
        radius=radius,
        steps=measurement.attack_steps,
        restarts=measurement.restarts,
        seed=experiment.seed,
        names=measurement.maps,
        ascend_on=_twins(model, x, measurement),
    )
    means = table.drop(columns="zero_maps").rename(columns={"attribution": "map"})
    return _lines(means.melt(["map", "attack", "n"], var_name="metric"), radius)


def _one_map(
    experiment: Experiment, model: nn.Module, x: torch.Tensor, radius: float, measurement: Measurement
) -> pd.DataFrame:
    """Long rows of the saliency map, means over the images."""
    table = robustness.attribution_robustness(
        model,
        x,
        attributions={"saliency": attributions.saliency},
        ball=Ball("linf", radius / 255),
        k=_leaders(experiment, measurement, x),
        steps=measurement.attack_steps,
        restarts=measurement.restarts,
        ascend_on=_twins(model, x, measurement),
        generator=torch.Generator(x.device).manual_seed(experiment.seed),
    )
    table = table[table["attack"].isin(["worst", "noise"])].drop(columns="image")
    values = table.melt(["attribution", "attack"], var_name="metric").groupby(
        ["attribution", "attack", "metric"], sort=False
    )
    found = values["value"].agg(value="mean", n="count").reset_index().rename(columns={"attribution": "map"})
    return _lines(found, radius)


def _lines(found: pd.DataFrame, radius: float) -> pd.DataFrame:
    """Means of one radius as rows of attacked.csv."""
    return found.assign(readout=found["map"].map(reads), radius=radius)[[*ATTACKED[1:]]]


def _leaders(experiment: Experiment, measurement: Measurement, x: torch.Tensor) -> int:
    """Pixels, or patches of a transformer, that the top-k intersection compares."""
    height, width = (side // (experiment.patch if experiment.architecture == "vit" else 1) for side in x.shape[-2:])
    return max(1, round(measurement.k_share * height * width))


def maps_of(experiment: Experiment, measurement: Measurement) -> tuple[str, ...]:
    """Attributions that are attacked."""
    return measurement.maps if experiment.architecture == "vit" else ("saliency",)


def reads(name: str) -> str:
    """Readout that a map explains; "none" for maps of attention alone."""
    return "none" if name in explanations.ATTENTION_ALONE else "logit"


def _twins(model: nn.Module, x: torch.Tensor, measurement: Measurement) -> list[nn.Module] | None:
    """What a network with kinks is attacked through."""
    return [models.smooth_twin(model, x, beta=b) for b in measurement.betas] if models.kinks(model, x) else None


def _image_shape(experiment: Experiment) -> tuple[int, int, int]:
    channels, height, width = data.image_shape(experiment.dataset)
    return (channels, experiment.side, experiment.side) if experiment.side else (channels, height, width)


def columns(experiment: Experiment) -> dict[str, object]:
    """The experiment's own columns of a row; a transformer's only where there is one."""
    common = {name: v for name, v in dataclasses.asdict(experiment).items() if name not in TRANSFORMER}
    return common | experiment.model_options
