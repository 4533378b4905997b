"""What notebook 04 asks: which choices decide whether a larger step makes maps robust, one choice at a time.

A condition changes one thing of a base network, at both ends of the step range and with the same seeds:

    difference = (change over the steps under the condition) - (change over the steps in the base)

Where a choice also rescales the noise of SGD, the step is rescaled with it, so that step / ((1 - momentum) batch) stays
what it was.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from attrobust import experiments


class Condition(NamedTuple):
    """One choice beside what it is compared with, as fields of an Experiment."""

    factor: str  # what is chosen
    name: str  # how
    changes: Mapping[str, object]  # to the base
    base: Mapping[str, object] = {}  # what the base has beyond matched loss and its defaults


#: Fixed budgets are compared with a fixed budget.
_BUDGET = {"protocol": "plateau"}
CONDITIONS: tuple[Condition, ...] = (
    Condition("activation", "ReLU", {"activation": "relu"}),
    Condition("activation", "softplus", {"activation": "softplus"}),
    Condition("initial size", "narrow", {"initial": "narrow"}),
    Condition("norms", "pinned", {"protocol": "pinned"}),
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

#: Sides of a condition, and ends of its step range.
SIDES, ENDS = ("base", "condition"), ("small step", "large step")


def networks(
    condition: Condition, base: Mapping[str, object], *, steps: Sequence[float], seeds: Sequence[int]
) -> dict[tuple[str, str], list[experiments.Experiment]]:
    """Experiments of both sides at both ends of the step range, by (side, end), one per seed.

    `base` are fields of an Experiment; `steps` the smallest and the largest step size of the base. A ValueError refuses
    a base that has made the choice already.

    Example:
        >>> digits = experiments.sized("mlp", "digits") | {"batch_size": 64, "epochs": 400}
        >>> found = networks(CONDITIONS[5], digits, steps=[0.003, 0.06], seeds=[0, 1])
        >>> [e.step_size for e in found["condition", "large step"]], len(found)
        ([0.6, 0.6], 4)
    """
    if len(steps) != 2 or not steps[0] < steps[1]:
        raise ValueError(f"steps is {list(steps)}; it must be the smallest and the largest step size")
    plain, found, noise = {**base, **condition.base}, {}, []
    for side, fields in zip(SIDES, (plain, {**plain, **condition.changes}), strict=True):
        one = experiments.Experiment(**fields, step_size=1.0, seed=0)
        noise.append(1.0 / ((1 - one.momentum) * one.batch_size))
        for end, step in zip(ENDS, steps, strict=True):
            rescaled = float(f"{step * noise[0] / noise[-1]:.12g}")
            found[side, end] = [experiments.Experiment(**fields, step_size=rescaled, seed=seed) for seed in seeds]
    if found[SIDES[0], ENDS[0]] == found[SIDES[1], ENDS[0]]:
        raise ValueError(f"base has {condition.factor} {condition.name!r} already; it must be without it")
    return found
