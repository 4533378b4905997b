"""What a row must look like before it is believed: types, ranges, completeness, and that it is what its key says."""

import itertools
import math
import numbers
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from attrobust.experiments.experiment import Experiment, Measurement
from attrobust.experiments.explanations import CONTROLS, inside_names
from attrobust.experiments.measure import FIT, FLATNESS, INPUT_SIDE, SIZE, attacked_maps, columns, names
from attrobust.robustness import DISTANCES, SIMILARITIES
from attrobust.rows import DECIDING, IDENTITY
from attrobust.versions import as_before

Row = Mapping[str, object]

_ANY, _NOT_NEGATIVE, _SHARE = (-math.inf, math.inf), (0, math.inf), (0, 1)

#: Range of every measured column, and of every attacked metric.
MEASURED = dict.fromkeys((*FIT, *SIZE, *FLATNESS, *INPUT_SIDE, *inside_names("gaussian")), _NOT_NEGATIVE)
MEASURED |= dict.fromkeys(("late_change", "sharpness", "trace", "margin"), _ANY)
MEASURED |= dict.fromkeys(("train_accuracy", "test_accuracy", "entropy", "empty"), _SHARE)
METRICS = dict.fromkeys(SIMILARITIES, (-1, 1)) | dict.fromkeys(DISTANCES, _NOT_NEGATIVE)
METRICS |= dict.fromkeys(("top_k", "counted"), _SHARE) | {"top_k_share": _NOT_NEGATIVE}
LIKE = dict.fromkeys(CONTROLS, (-1, 1)) | {"contrast": _NOT_NEGATIVE, "entropy": _SHARE}

#: Room for the rounding of float32 means, and of the digits that single images are kept with.
_SLACK, _DIGITS = 1e-5, 1e-4


def fault(run: Row, attacked: Sequence[Row], experiment: Experiment, measurement: Measurement) -> str:
    """The first thing that is wrong with a row's run and attacked similarities; "" if nothing is."""
    return next(_faults(run, attacked, experiment, measurement), "")


def _faults(run: Row, attacked: Sequence[Row], experiment: Experiment, measurement: Measurement) -> Iterator[str]:
    present, own = {name: value for name, value in run.items() if not _missing(value)}, columns(experiment)
    own |= {name: getattr(experiment, name) for name in as_before(experiment) if name in present}
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
    wanted = {*FIT, *SIZE, *FLATNESS, *INPUT_SIDE} - {"late_change"}  # a transformer's rows may have no such number
    for name in (*FIT, *names(experiment, measurement)) if comparable else ():
        if name in wanted and not math.isfinite(present.get(name, math.nan)):
            yield f"column {name!r} is missing, or not finite"
    yield from (wrong for line in attacked if (wrong := _line(line, measurement.n_attacked)))
    if not attacked and not comparable:
        return
    held = [tuple(line.get(name) for name in IDENTITY) for line in attacked]
    if twice := next((line for line, n in Counter(held).items() if n > 1), None):
        yield f"the number of {_named(twice)} stands there twice"
    attacks = dict.fromkeys(["noise", "worst", *(a for line in attacked if (a := line.get("attack")) != "clean")])
    maps = attacked_maps(experiment, measurement)
    every = {
        (readout, name, attack, metric, float(radius))
        for radius, there in measurement.asked(dict.fromkeys(name for name, _ in maps)).items()
        for (name, readout), attack, metric in itertools.product(maps, attacks, METRICS)
        if name in there
    }
    every |= {(readout, name, "clean", metric, 0.0) for (name, readout), metric in itertools.product(maps, LIKE)}
    there = {(*line[:-1], float(line[-1])) for line in held}
    for lines, what in ((every - there, "is missing"), (there - every, "belongs to no such run")):
        if lines:
            yield f"the number of {_named(min(lines, key=str))} {what}"


def _line(line: Row, n_attacked: int) -> str:
    """What is wrong with a line of attacked.csv."""
    where, metric, n, value = line.get("place", ""), line.get("metric"), line.get("n"), line.get("value")
    ranges = LIKE if line.get("attack") == "clean" else METRICS
    if metric not in ranges:
        wrong = f"metric is {metric!r}; it must be one of {', '.join(ranges)}"
    elif not isinstance(n, numbers.Real) or n not in range(n_attacked + 1):
        wrong = f"n is {n!r}; it must be a whole number from 0 to {n_attacked}"
    elif _missing(value) != (n == 0) and not (metric == "between" and n == 1):
        wrong = f"value is {value!r} over {n} images; it is missing if none counted"
    else:
        wrong = "" if _missing(value) else _outside(metric, value, ranges[metric])
        wrong = wrong or _images(line, n_attacked)
    return f"{where}: {wrong}" if where and wrong else wrong


def _images(line: Row, n_attacked: int) -> str:
    """What is wrong with the values image by image, which the deciding line has and no other."""
    images = "" if _missing(line.get("images")) else line.get("images")
    if any(line.get(name) != value for name, value in DECIDING.items()):
        return f"images is {images!r}; only the line of {' '.join(DECIDING.values())} has any" if images else ""
    try:
        values = [float(word) for word in images.split()]
    except (AttributeError, ValueError):
        return f"images is {images!r}; it must be numbers"
    counted = [value for value in values if not math.isnan(value)]
    if len(values) != n_attacked or len(counted) != line["n"]:
        return f"images holds {len(counted)} numbers of {len(values)}; {line['n']} of {n_attacked} were counted"
    if counted and abs(sum(counted) / len(counted) - line["value"]) > _DIGITS:
        return f"images have the mean {sum(counted) / len(counted):.4f}, beside the value {line['value']:.4f}"
    return next((wrong for value in counted if (wrong := _outside("images", value, METRICS[line["metric"]]))), "")


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
