"""What the name of a network, a row and a table depends on: everything that their numbers depend on, and nothing else.

network   experiment, how it is fitted and by which functions, the data as decoded, first layer, kernel, device
row       its network, the measurement, the rule of what is comparable, versions of what is measured with
table     name, function and version, arguments; for a notebook's own function, versions of every instrument
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from attrobust import attacks, attention, attributions, data, robustness, training
from attrobust.attributions.importance import unwrapped
from attrobust.experiments import explanations, measure
from attrobust.experiments.experiment import Experiment, Measurement
from attrobust.regularizers import PENALTIES, wanted_maps
from attrobust.versions import digest, version_of

#: Functions of the library that a notebook's own stored function may call.
INSTRUMENTS: tuple[Callable[..., Any], ...] = (
    data.load, attention.kernel, measure.train, measure.measure, measure._size, measure._flatness, measure._input_side,
    explanations.inside, explanations.margins, explanations.under_attack, explanations.controls,
    attributions.occlusion, robustness.attribution_robustness, attacks.auto, attacks.heavy,
)  # fmt: skip

#: Others that it may call, and that had no version when the first keys were made: they enter from version 2 on.
LATE_INSTRUMENTS: tuple[Callable[..., Any], ...] = (
    attributions.saliency, attributions.input_x_gradient, attributions.integrated_gradients, attributions.on_patches,
    attributions.raw_attention, attributions.rollout, attributions.gradient_attention, attributions.relevance,
    *training.LOSSES.values(), *training.SCHEDULES.values(), *training.TRAINERS.values(),
    *filter(None, [*training.AUGMENTATIONS.values(), *PENALTIES.values()]),
)  # fmt: skip


def network(experiment: Experiment, device: str = "cpu") -> str:
    """Digest of everything the weights of an experiment depend on, the device included.

    Example:
        >>> one = Experiment(dataset="digits", step_size=0.1, batch_size=64, epochs=10, seed=0)
        >>> network(one) == network(one, "cuda")
        False
    """
    kernels = [attention.kernel] if experiment.architecture == "vit" else []
    functions = [data.load, measure.train, *kernels, *_named_by(experiment.recipe)]
    depends = {"experiment": experiment, "recipe": experiment.recipe, "functions": functions, "device": device}
    depends |= {"data": data.fingerprint(experiment.dataset), "pixels": measure.PIXELS[experiment.dataset]}
    depends |= {} if device == "cpu" else {"products": "whole"}
    if experiment.teacher:
        depends["wanted"] = {"by": wanted_maps, "teacher": network(experiment.teacher, device)}
    return digest(depends | {"kernel": attention.KERNELS[experiment.attention] if kernels else None})


def key(experiment: Experiment, measurement: Measurement, device: str = "cpu") -> str:
    """Digest that names the row of an experiment, trained and measured on a device ("cpu" or "cuda").

    Example:
        >>> one = Experiment(dataset="digits", step_size=0.1, batch_size=64, epochs=10, seed=0)
        >>> len(key(one, Measurement())), key(one, Measurement()) == key(one, Measurement(n_attacked=8))
        (16, False)
    """
    used: list[Callable] = [measure.measure, measure._size]
    used += [measure._flatness, measure._input_side] if measurement.curvature else []
    used += [explanations.inside] if experiment.architecture == "vit" else []
    used += [explanations.under_attack, explanations.controls, attributions.occlusion]
    used += [robustness.attribution_robustness, *_raised(_explaining(experiment, measurement))]
    used += [attacks.heavy] if isinstance(measurement.effort, attacks.Heavy) else []
    comparable = [measure.COMPARABLE_LOSS, measure.COMPARABLE_ACCURACY, measure.COMPARABLE_CHANGE]
    depends = {"network": network(experiment, device), "measurement": measurement}
    if set(explanations.AVERAGED) & set(explanations.explaining(experiment.architecture, measurement.maps)):
        depends["settings"] = [getattr(explanations, name) for name in ("PATH_STEPS", "SIGMA", "BOX", "SAMPLES")]
    return digest(depends | {"comparable": [*comparable, measure.COMPARABLE_BLIND], "functions": used})


def table(name: str, function: Callable, arguments: Sequence[object], *, version: int | None, device: str) -> str:
    """Digest that names a stored table of `function(*arguments)`; the version is that of a notebook's own function."""
    if version is not None and hasattr(function, "version"):
        raise ValueError(f"version is {version!r}; {function.__name__!r} has its own, {function.version}")
    mine = {"name": function.__name__, "version": version_of(function) if version is None else version}
    used = [] if function.__module__.startswith("attrobust.") else [*INSTRUMENTS, *_raised(LATE_INSTRUMENTS)]
    return digest({"table": name, "function": mine, "arguments": _entering(arguments, device), "functions": used})


def _entering(value: object, device: str) -> object:
    if isinstance(value, Experiment):
        return network(value, device)
    return [_entering(v, device) for v in value] if isinstance(value, list | tuple) else value


def _raised(functions: Iterable[Callable]) -> list[Callable]:
    """Those whose numbers are no longer the first ones; version 1 leaves a key as it is."""
    return [function for function in functions if getattr(function, "version", 1) > 1]


def _named_by(recipe: training.Recipe) -> list[Callable]:
    """Functions that a recipe names: its penalty, if it has any, and what was raised of the others."""
    others = (training.LOSSES[recipe.loss], training.AUGMENTATIONS[recipe.augmentation])
    others += (training.SCHEDULES[recipe.schedule], training.TRAINERS[recipe.trainer])
    return ([recipe.penalises] if recipe.penalises else []) + _raised(filter(None, others))


def _explaining(experiment: Experiment, measurement: Measurement) -> list[Callable]:
    """Functions of the maps that a row tells of: those attacked, and those looked at beside them."""
    transformer = experiment.architecture == "vit"
    patch, always = (experiment.patch, ("saliency", "raw_attention")) if transformer else (None, ())
    asked = explanations.explaining(experiment.architecture, measurement.maps)
    used = [*explanations.compared(patch, (*always, *asked)).values()]
    pooled = [map_of.keywords["attribution"] for map_of in used if "attribution" in getattr(map_of, "keywords", {})]
    return list(dict.fromkeys([attributions.saliency, *map(unwrapped, [*used, *pooled])]))
