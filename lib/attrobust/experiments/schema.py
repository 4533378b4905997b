"""What a stored row must look like before it is believed: types, ranges, completeness, and that it is the run's own.

A row is compared with the experiment and the measurement that its key stands for. By hand: a table of ranges and some
thirty lines say what a row is; a schema library would need the same table.
"""

import itertools
import math
import numbers
from collections.abc import Mapping, Sequence

import pandas as pd

from attrobust.experiments.experiment import Experiment, Measurement
from attrobust.experiments.measure import columns, maps_of, reads
from attrobust.robustness import DISTANCES, SIMILARITIES
from attrobust.rows import IDENTITY

_ANY, _NOT_NEGATIVE, _SHARE = (-math.inf, math.inf), (0, math.inf), (0, 1)

#: Columns of every run, then of flatness, of the input side, of a transformer's rows: range of each.
FIT = {
    "steps": _NOT_NEGATIVE,
    "train_loss": _NOT_NEGATIVE,
    "train_accuracy": _SHARE,
    "late_change": _ANY,
    "test_accuracy": _SHARE,
}
FLATNESS = {
    "sharpness": _ANY,
    "sharpness_error": _NOT_NEGATIVE,
    "trace": _ANY,
    "trace_error": _NOT_NEGATIVE,
    "logit_gradient": _NOT_NEGATIVE,
    "logit_input_curvature": _NOT_NEGATIVE,
    "relative_curvature": _NOT_NEGATIVE,
    "loss_gradient": _NOT_NEGATIVE,
    "loss_input_curvature": _NOT_NEGATIVE,
}
INSIDE = {"entropy": _SHARE, "norm": _NOT_NEGATIVE, "margin": _NOT_NEGATIVE, "mass": _NOT_NEGATIVE, "empty": _SHARE}
INSIDE |= {f"{n}_{kind}": _NOT_NEGATIVE for n in ("score", "map", "saliency") for kind in ("sensitivity", "relative")}
MEASURED = FIT | FLATNESS | {"invariant_flatness": _NOT_NEGATIVE} | INSIDE

#: Range of every attacked metric.
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
    """The first thing that is wrong with a row; "" if nothing is.

    Args:
        run: columns of the network.
        attacked: its attacked similarities.
        experiment: that the row's key stands for.
        measurement: that the row's key stands for.
    """
    present = {name: value for name, value in run.items() if not _missing(value)}
    return (
        _of_another_run(present, columns(experiment))
        or _words(present)
        or next((wrong for n in present if (wrong := _measured(n, present[n], columns(experiment)))), "")
        or _absent(present, experiment, measurement)
        or next((wrong for line in attacked if (wrong := _line(line, measurement))), "")
        or _incomplete(attacked, str(run["comparable"]) == "True", experiment, measurement)
    )


def _of_another_run(present: Mapping[str, object], own: Mapping[str, object]) -> str:
    for name, value in own.items():
        if present.get(name) != value:
            return f"column {name!r} holds {present.get(name)!r}, but its key stands for {value!r}"
    return ""


def _words(present: Mapping[str, object]) -> str:
    comparable, reason = present.get("comparable"), present.get("reason", "")
    if str(comparable) not in ("True", "False"):
        return f"column 'comparable' holds {comparable!r}; it must be True or False"
    if not isinstance(reason, str) or (str(comparable) == "True") != (reason == ""):
        return f"column 'reason' holds {reason!r} beside comparable {comparable}; a run has a reason or is comparable"
    return ""


def _measured(name: str, value: object, own: Mapping[str, object]) -> str:
    if name in own or name in ("key", "comparable", "reason"):
        return ""
    if name not in MEASURED:
        return f"column {name!r} belongs to no run"
    return _outside(f"column {name!r}", value, MEASURED[name])


def _absent(present: Mapping[str, object], experiment: Experiment, measurement: Measurement) -> str:
    """Which column a comparable run lacks; one that is not may lack what could not be measured."""
    wanted = [] if str(present["comparable"]) == "False" else [n for n in FIT if n != "late_change"]
    if wanted and measurement.curvature:
        wanted += [*FLATNESS, *(["invariant_flatness"] if experiment.architecture == "mlp" else [])]
    gone = [name for name in wanted if name not in present or not math.isfinite(present[name])]
    return f"column {gone[0]!r} is missing, or not finite" if gone else ""


def _line(line: Mapping[str, object], measurement: Measurement) -> str:
    where, metric, n = f"{line.get('place', '')}: ".removeprefix(": "), line.get("metric"), line.get("n")
    if metric not in METRICS:
        return f"{where}metric is {metric!r}; it must be one of {', '.join(METRICS)}"
    if not isinstance(n, numbers.Real) or n not in range(measurement.n_attacked + 1):
        return f"{where}n is {n!r}; it must be a whole number from 0 to {measurement.n_attacked}"
    if _missing(line.get("value")) or n == 0:
        alike = _missing(line.get("value")) and n == 0
        return "" if alike else f"{where}value is {line.get('value')!r} over {n} images; it is missing if none counted"
    wrong = _outside(f"{metric}", line["value"], METRICS[metric])
    return f"{where}{wrong}" if wrong else ""


def _incomplete(
    attacked: Sequence[Mapping[str, object]], comparable: bool, experiment: Experiment, measurement: Measurement
) -> str:
    """Whether every map, attack, metric and radius stands there exactly once."""
    if not attacked and not (comparable and measurement.radii):
        return ""
    held = [tuple(line.get(name) for name in IDENTITY) for line in attacked]
    twice = next((line for line in held if held.count(line) > 1), None) if len(set(held)) < len(held) else None
    if twice:
        return f"the number of {_named(twice)} stands there twice"
    attacks = dict.fromkeys(("noise", "worst", *(line.get("attack") for line in attacked)))
    maps = maps_of(experiment, measurement)
    every = {
        (reads(name), name, attack, metric, float(radius))
        for name, attack, metric, radius in itertools.product(maps, attacks, METRICS, measurement.radii)
    }
    there = {(*line[:-1], float(line[-1])) for line in held}
    if every - there:
        return f"the number of {_named(min(every - there, key=str))} is missing"
    return f"the number of {_named(min(there - every, key=str))} belongs to no such run" if there - every else ""


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
