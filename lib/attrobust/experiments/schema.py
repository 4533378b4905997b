"""What a stored row must look like before it is believed: types, ranges, completeness, and that it is the run's own.

A row is compared with the experiment and the measurement that its key stands for.
"""

import itertools
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from attrobust.experiments.experiment import Experiment, Measurement
from attrobust.experiments.explanations import inside_names
from attrobust.experiments.measure import FIT, FLATNESS, INPUT_SIDE, columns, maps_of, names, reads
from attrobust.robustness import DISTANCES, SIMILARITIES
from attrobust.rows import IDENTITY

_ANY, _NOT_NEGATIVE, _SHARE = (-math.inf, math.inf), (0, math.inf), (0, 1)

#: Range of every measured column, and of every attacked metric.
MEASURED = dict.fromkeys((*FIT, *FLATNESS, *INPUT_SIDE, *inside_names("gaussian")), _NOT_NEGATIVE)
MEASURED |= dict.fromkeys(("late_change", "sharpness", "trace"), _ANY)
MEASURED |= dict.fromkeys(("train_accuracy", "test_accuracy", "entropy", "empty"), _SHARE)
METRICS = dict.fromkeys(SIMILARITIES, (-1, 1)) | dict.fromkeys(DISTANCES, _NOT_NEGATIVE)
METRICS |= dict.fromkeys(("top_k", "counted"), _SHARE) | {"top_k_share": _NOT_NEGATIVE}

#: Room for the rounding of float32 means.
_SLACK = 1e-5


def fault(
    run: Mapping[str, object],
    attacked: Sequence[Mapping[str, object]],
    experiment: Experiment,
    measurement: Measurement,
) -> str:
    """The first thing that is wrong with a row's run and attacked similarities; "" if nothing is."""
    present = {name: value for name, value in run.items() if not _missing(value)}
    comparable = str(present.get("comparable")) == "True"
    of_lines = (_line(line, measurement.n_attacked) for line in attacked)
    return next(
        itertools.chain(
            _of_the_run(present, comparable, experiment, measurement),
            filter(None, of_lines),
            _incomplete(attacked, comparable, experiment, measurement),
        ),
        "",
    )


def _of_the_run(
    present: Mapping[str, object], comparable: bool, experiment: Experiment, measurement: Measurement
) -> Iterator[str]:
    """Is it this experiment's, does it say whether and why it is compared, and has it every number in its range?"""
    own = columns(experiment)
    for name, value in own.items():
        if present.get(name) != value:
            yield f"column {name!r} holds {present.get(name)!r}, but its key stands for {value!r}"
    said, reason = present.get("comparable"), present.get("reason", "")
    if str(said) not in ("True", "False"):
        yield f"column 'comparable' holds {said!r}; it must be True or False"
    if not isinstance(reason, str) or comparable != (reason == ""):
        yield f"column 'reason' holds {reason!r} beside comparable {said}; a run has a reason or is comparable"
    for name in (n for n in present if n not in (*own, "key", "comparable", "reason")):
        if name not in MEASURED:
            yield f"column {name!r} belongs to no run"
        elif wrong := _outside(f"column {name!r}", present[name], MEASURED[name]):
            yield wrong
    wanted = {*FIT, *FLATNESS, *INPUT_SIDE} - {"late_change"}
    for name in (*FIT, *names(experiment, measurement)) if comparable else ():
        if name in wanted and not math.isfinite(present.get(name, math.nan)):
            yield f"column {name!r} is missing, or not finite"


def _line(line: Mapping[str, object], n_attacked: int) -> str:
    where, metric, n = f"{line.get('place', '')}: ".removeprefix(": "), line.get("metric"), line.get("n")
    if metric not in METRICS:
        return f"{where}metric is {metric!r}; it must be one of {', '.join(METRICS)}"
    if not isinstance(n, numbers.Real) or n not in range(n_attacked + 1):
        return f"{where}n is {n!r}; it must be a whole number from 0 to {n_attacked}"
    value = line.get("value")
    if _missing(value) != (n == 0):
        return f"{where}value is {value!r} over {n} images; it is missing if none counted"
    wrong = "" if n == 0 else _outside(metric, value, METRICS[metric])
    return f"{where}{wrong}" if wrong else ""


def _incomplete(
    attacked: Sequence[Mapping[str, object]], comparable: bool, experiment: Experiment, measurement: Measurement
) -> Iterator[str]:
    """Does every map, attack, metric and radius stand there exactly once?"""
    if not attacked and not (comparable and measurement.radii):
        return
    held = [tuple(line.get(name) for name in IDENTITY) for line in attacked]
    if len(set(held)) < len(held):
        yield f"the number of {_named(next(line for line in held if held.count(line) > 1))} stands there twice"
    attacks = dict.fromkeys(("noise", "worst", *(line.get("attack") for line in attacked)))
    every = {
        (reads(name), name, attack, metric, float(radius))
        for name in maps_of(experiment, measurement)
        for attack, metric, radius in itertools.product(attacks, METRICS, measurement.radii)
    }
    there = {(*line[:-1], float(line[-1])) for line in held}
    if every - there:
        yield f"the number of {_named(min(every - there, key=str))} is missing"
    if there - every:
        yield f"the number of {_named(min(there - every, key=str))} belongs to no such run"


def _named(line: Sequence[object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(IDENTITY, line, strict=True))


def _outside(what: str, value: object, limits: tuple[float, float]) -> str:
    low, high = limits
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return f"{what} is {value!r}; it must be a number"
    if not low - _SLACK * (low != 0) <= value <= high + _SLACK:
        return f"{what} is {value!r}; it must lie in [{low:g}, {high:g}]"
    return ""


def _missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
