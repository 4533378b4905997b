"""What notebook 04 asks: which choices decide whether a larger step makes maps robust, one choice at a time.

A condition changes one thing of a base network, at both ends of the step range and with the same seeds:

    difference = (change over the steps under the condition) - (change over the steps in the base)

Where a choice also rescales the noise of SGD, step sizes are rescaled with it, so that step / ((1 - momentum) batch)
stays what it was.
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
    scale: float = 1.0  # what the step sizes of the condition are multiplied by


#: Fixed budgets are compared with a fixed budget.
_BUDGET = {"protocol": "plateau"}
CONDITIONS: tuple[Condition, ...] = (
    Condition("activation", "ReLU", {"activation": "relu"}),
    Condition("activation", "softplus", {"activation": "softplus"}),
    Condition("initial size", "narrow", {"initial": "narrow"}),
    Condition("norms", "pinned", {"protocol": "pinned"}),
    Condition("batch", "512, step × 8", {"batch_size": 512}, scale=8.0),
    Condition("momentum", "none, step × 10", {"momentum": 0.0}, scale=10.0),
    Condition("time after the fit", "loss 0.1", {"protocol": "early"}),
    Condition("time after the fit", "loss 0.001", {"protocol": "late"}),
    Condition("time after the fit", "fixed budget", {"protocol": "plateau"}),
    Condition("weight decay", "5e-4", {"protocol": "standard"}, _BUDGET),
    Condition("weight decay", "step × decay held", {"protocol": "decay_held"}, _BUDGET),
    Condition("loss", "squared", {"protocol": "squared"}, _BUDGET),
    Condition("labels", "smoothed by 0.1", {"protocol": "smoothed"}, _BUDGET),
    Condition("labels", "a tenth wrong", {"protocol": "noisy"}, _BUDGET),
    Condition("images", "moved by a pixel", {"protocol": "augmented"}, _BUDGET),
    Condition("schedule", "constant after warm-up", {"protocol": "constant"}, _BUDGET),
    Condition("schedule", "the same, images moved", {"protocol": "constant_moved"}, _BUDGET),
)

#: Sides of a condition, and ends of its step range.
SIDES, ENDS = ("base", "condition"), ("small step", "large step")


def networks(
    condition: Condition, base: Mapping[str, object], *, steps: Sequence[float], seeds: Sequence[int]
) -> dict[tuple[str, str], list[experiments.Experiment]]:
    """Experiments of both sides at both ends of the step range, by (side, end), one per seed.

    `base` are fields of an Experiment; `steps` the smallest and the largest step size of the base.

    Example:
        >>> digits = experiments.sized("mlp", "digits") | {"batch_size": 64, "epochs": 400}
        >>> found = networks(CONDITIONS[5], digits, steps=[0.003, 0.06], seeds=[0, 1])
        >>> [e.step_size for e in found["condition", "large step"]], len(found)
        ([0.6, 0.6], 4)
    """
    if len(steps) != 2 or not steps[0] < steps[1]:
        raise ValueError(f"steps is {list(steps)}; it must be the smallest and the largest step size")
    found = {}
    for side in SIDES:
        for end, step in zip(ENDS, steps, strict=True):
            fields = {**base, **condition.base, "step_size": step}
            if side == "condition":
                fields |= {**condition.changes, "step_size": step * condition.scale}
            found[side, end] = [experiments.Experiment(**fields, seed=seed) for seed in seeds]
    return found
