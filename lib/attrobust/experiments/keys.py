"""What the name of a network, a row and a table depends on: everything that their numbers depend on, and nothing else.

network   experiment, how it is fitted, the data as decoded, first layer, kernel, versions, device
row       its network, the measurement, the rule of what is comparable, versions of what is measured with
table     name, function and version, arguments; for a notebook's own function, versions of every instrument
"""

from collections.abc import Callable, Sequence

from attrobust import attacks, attention, data, robustness
from attrobust.experiments import explanations, measure
from attrobust.experiments.experiment import Experiment, Measurement
from attrobust.versions import digest, version_of

#: Functions of the library that a notebook's own stored function may call.
INSTRUMENTS: tuple[Callable, ...] = (
    data.load,
    attention.kernel,
    measure.train,
    measure.measure,
    measure._flatness,
    measure._input_side,
    explanations.inside,
    explanations.margins,
    explanations.under_attack,
    robustness.attribution_robustness,
    robustness.strength,
    attacks.auto,
    attacks.heavy,
)

#: Constants of the rule that says which runs are compared.
COMPARABLE = ("COMPARABLE_LOSS", "COMPARABLE_ACCURACY", "COMPARABLE_CHANGE", "COMPARABLE_BLIND")


def network(experiment: Experiment, device: str = "cpu") -> str:
    """Digest of everything the weights of an experiment depend on, the device included."""
    is_transformer = experiment.architecture == "vit"
    return digest(
        {
            "experiment": experiment,
            "recipe": experiment.recipe,
            "data": data.fingerprint(experiment.dataset),
            "pixels": measure.PIXELS[experiment.dataset],
            "kernel": attention.KERNELS[experiment.attention] if is_transformer else None,
            "functions": [data.load, measure.train, *([attention.kernel] if is_transformer else [])],
            "device": device,
        }
    )


def key(experiment: Experiment, measurement: Measurement, device: str = "cpu") -> str:
    """Digest that names the row of an experiment.

    Args:
        experiment: the network.
        measurement: what is measured on it.
        device: where both happen, "cpu" or "cuda".

    Example:
        >>> network = Experiment("digits", step_size=0.1, batch_size=8, epochs=1, seed=0)
        >>> key(network, Measurement(radii=(8, 4.0))) == key(network, Measurement(radii=(4, 8)))
        True
        >>> key(network, Measurement()) == key(network, Measurement(), "cuda")
        False
    """
    used: list[Callable] = [measure.measure]
    used += [measure._flatness, measure._input_side] if measurement.curvature else []
    if experiment.architecture == "vit":
        used += [explanations.inside, explanations.under_attack]
    return digest(
        {
            "network": network(experiment, device),
            "measurement": measurement,
            "comparable": [getattr(measure, name) for name in COMPARABLE],
            "functions": [*used, robustness.attribution_robustness],
        }
    )


def table(name: str, function: Callable, arguments: Sequence[object], *, version: int | None, device: str) -> str:
    """Digest that names a stored table.

    Args:
        name: of the table.
        function: that returns it.
        arguments: of the function; an experiment enters by everything its weights depend on.
        version: of a notebook's own function; None for one of the library, which has its own.
        device: on which the networks among the arguments are trained.

    Raises:
        ValueError: if the function has no version, or both.
        TypeError: if an argument cannot enter a key.
    """
    if version is not None and hasattr(function, "version"):
        raise ValueError(f"version is {version!r}; {function.__name__!r} has its own, {function.version}")
    library = function.__module__.startswith("attrobust.")
    return digest(
        {
            "table": name,
            "function": {"name": function.__name__, "version": version_of(function) if version is None else version},
            "arguments": _entering(arguments, device),
            "functions": [] if library else list(INSTRUMENTS),
        }
    )


def _entering(value: object, device: str) -> object:
    if isinstance(value, Experiment):
        return network(value, device)
    return [_entering(v, device) for v in value] if isinstance(value, list | tuple) else value
