"""What a row must look like before it is believed: types, ranges, completeness, and that it is what its key says."""

import itertools
import math
import numbers
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from attrobust.experiments.experiment import Experiment, Measurement
from attrobust.experiments.explanations import inside_names
from attrobust.experiments.measure import FIT, FLATNESS, INPUT_SIDE, columns, names, reads
from attrobust.robustness import DISTANCES, SIMILARITIES
from attrobust.rows import IDENTITY

Row = Mapping[str, object]

_ANY, _NOT_NEGATIVE, _SHARE = (-math.inf, math.inf), (0, math.inf), (0, 1)

#: Range of every measured column, and of every attacked metric.
MEASURED = dict.fromkeys((*FIT, *FLATNESS, *INPUT_SIDE, *inside_names("gaussian")), _NOT_NEGATIVE)
MEASURED |= dict.fromkeys(("late_change", "sharpness", "trace"), _ANY)
MEASURED |= dict.fromkeys(("train_accuracy", "test_accuracy", "entropy", "empty"), _SHARE)
METRICS = dict.fromkeys(SIMILARITIES, (-1, 1)) | dict.fromkeys(DISTANCES, _NOT_NEGATIVE)
METRICS |= dict.fromkeys(("top_k", "counted"), _SHARE) | {"top_k_share": _NOT_NEGATIVE}

#: Room for the rounding of float32 means.
_SLACK = 1e-5


def fault(run: Row, attacked: Sequence[Row], experiment: Experiment, measurement: Measurement) -> str:
    """The first thing that is wrong with a row's run and attacked similarities; "" if nothing is."""
    return next(_faults(run, attacked, experiment, measurement), "")


def _faults(run: Row, attacked: Sequence[Row], experiment: Experiment, measurement: Measurement) -> Iterator[str]:
    present, own = {name: value for name, value in run.items() if not _missing(value)}, columns(experiment)
    said, reason = present.get("comparable"), present.get("reason", "")
    comparable = str(said) == "True"
    for name, value in own.items():
        if present.get(name) != value:
            yield f"column {name!r} holds {present.get(name)!r}, but its key stands for {value!r}"
    if str(said) not in ("True", "False"):
        yield f"column 'comparable' holds {said!r}; it must be True or False"
    if not isinstance(reason, str) or comparable != (reason == ""):
        yield f"column 'reason' holds {reason!r} beside comparable {said}; a run has a reason or is comparable"
    for name in (n for n in present if n not in (*own, "key", "comparable", "reason")):
        if name not in MEASURED:
            yield f"column {name!r} belongs to no run"
        elif wrong := _outside(f"column {name!r}", present[name], MEASURED[name]):
            yield wrong
    wanted = {*FIT, *FLATNESS, *INPUT_SIDE} - {"late_change"}  # a transformer's rows may have no such number
    for name in (*FIT, *names(experiment, measurement)) if comparable else ():
        if name in wanted and not math.isfinite(present.get(name, math.nan)):
            yield f"column {name!r} is missing, or not finite"
    yield from (wrong for line in attacked if (wrong := _line(line, measurement.n_attacked)))
    if not attacked and not (comparable and measurement.radii):
        return
    held = [tuple(line.get(name) for name in IDENTITY) for line in attacked]
    if twice := next((line for line, n in Counter(held).items() if n > 1), None):
        yield f"the number of {_named(twice)} stands there twice"
    attacks = dict.fromkeys(("noise", "worst", *(line.get("attack") for line in attacked)))
    maps = measurement.maps if experiment.architecture == "vit" else ("saliency",)
    places = itertools.product(maps, attacks, METRICS, map(float, measurement.radii))
    every = {(reads(name), name, attack, metric, radius) for name, attack, metric, radius in places}
    there = {(*line[:-1], float(line[-1])) for line in held}
    for lines, what in ((every - there, "is missing"), (there - every, "belongs to no such run")):
        if lines:
            yield f"the number of {_named(min(lines, key=str))} {what}"


def _line(line: Row, n_attacked: int) -> str:
    """What is wrong with a line of attacked.csv."""
    where, metric, n, value = line.get("place", ""), line.get("metric"), line.get("n"), line.get("value")
    if metric not in METRICS:
        wrong = f"metric is {metric!r}; it must be one of {', '.join(METRICS)}"
    elif not isinstance(n, numbers.Real) or n not in range(n_attacked + 1):
        wrong = f"n is {n!r}; it must be a whole number from 0 to {n_attacked}"
    elif _missing(value) != (n == 0):
        wrong = f"value is {value!r} over {n} images; it is missing if none counted"
    else:
        wrong = "" if n == 0 else _outside(metric, value, METRICS[metric])
    return f"{where}: {wrong}" if where and wrong else wrong


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
