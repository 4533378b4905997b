"""What notebook 05 asks: what the explicit ways to robust maps give, and cost, against plain SGD at an equal budget.

A budget is a number of *natural trainings*, of `NATURAL_EPOCHS` epochs of plain SGD each. A method whose update takes
r times the passes of plain SGD gets one r-th of the epochs:

    epochs = budget x NATURAL_EPOCHS / r

One arm is a control: plain SGD that has a twentieth of the epochs, since whoever regularizes fits less.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attrobust import checks, curvature, experiments, training
from attrobust.experiments import measure
from attrobust.models.readouts import predictions
from attrobust.shapes import Images, Labels, PerImage
from attrobust.theory import certificates
from attrobust.versions import versioned

Values = Sequence[float] | np.ndarray | pd.Series

#: Epochs of one natural training, and its step size, which all methods share unless they are a step size.
NATURAL_EPOCHS, STEP_SIZE = 80, 0.0134


class Method(NamedTuple):
    """One way to train, as fields of an Experiment, and the field that says how much of it there is."""

    school: str  # what it acts on
    fields: Mapping[str, object] = {}
    scaled: str = ""  # field whose value pilots fixed; "" for none
    ladder: tuple[float, ...] = ()  # what it was chosen from
    share: float = 1.0  # of the budget that it takes


_DECAYS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
_WEIGHTS, _PIXELS, _ATTACKED = "weights", "slopes in the pixels", "attacked images"
METHODS: dict[str, Method] = {
    "natural": Method("plain SGD"),
    "small step": Method("plain SGD", {"step_size": 0.003}),
    "large step": Method("plain SGD", {"step_size": 0.06}),
    "stopped early": Method("plain SGD", share=0.05),
    "weight decay": Method(_WEIGHTS, {}, "weight_decay", _DECAYS),
    "softplus + weight decay": Method(_WEIGHTS, {"activation": "softplus"}, "weight_decay", _DECAYS),
    "SAM": Method(_WEIGHTS, {"trainer": "sam"}, "around", (0.03, 0.1, 0.3, 1)),
    "input gradient": Method(_PIXELS, {"penalty": "input_gradient"}, "strength", (0.03, 0.1, 0.3, 1)),
    "Jacobian": Method(_PIXELS, {"penalty": "jacobian"}, "strength", (3e-3, 1e-2, 3e-2, 0.1)),
    "Hessian": Method(_PIXELS, {"penalty": "hessian"}, "strength", (1e-3, 3e-3, 1e-2, 3e-2, 0.1)),
    "SSR": Method(_PIXELS, {"penalty": "ssr"}, "strength", (0.03, 0.1, 0.3, 1)),
    "SSR (Lanczos)": Method(_PIXELS, {"penalty": "ssr_lanczos"}, "strength", (0.03, 0.1, 0.3, 1)),
    "CURE": Method(_PIXELS, {"penalty": "cure"}, "strength", (0.01, 0.03, 0.1, 0.3, 1)),
    "l2 + cosine": Method(_PIXELS, {"penalty": "l2_cosine"}, "strength", (1e3, 1e4, 1e5, 1e6)),
    "adversarial training": Method(_ATTACKED, {"trainer": "adversarial"}, "around", (2, 4, 8, 16, 32, 64)),
    "IG-NORM": Method(_ATTACKED, {"penalty": "ig_norm"}, "strength", (0.1, 0.3, 1, 3)),
    "IG-SUM-NORM": Method(_ATTACKED, {"penalty": "ig_sum_norm"}, "strength", (0.1, 0.3, 1)),
    "ART": Method(_ATTACKED, {"penalty": "art"}, "strength", (0.1, 0.3, 1, 3, 10)),
}

#: Passes of one update over those of plain SGD, counted by `passes`; other methods that are `asked` take one.
_RETRAINED = list(METHODS)[6:]
PASSES: dict[str, dict[str, float]] = {
    name: dict(zip(methods, counted, strict=True))
    for name, methods, counted in (
        (
            "mlp fashion_mnist",
            _RETRAINED,
            (2, 3.243, 3.206, 4.888, 7.805, 9.402, 5.486, 5.412, 6.801, 48.295, 54.439, 17.221),
        ),
        ("mlp digits", _RETRAINED, (2, 3.118, 3.063, 4.834, 7.048, 8.852, 5.236, 5.125, 6.218, 44.542, 50.269, 15.867)),
        ("convnet digits", ("SAM", "SSR", "adversarial training", "IG-NORM"), (2, 6.717, 5.791, 50.067)),
    )
}

#: Those asked of convolutional networks.
CONVOLUTIONAL = ("natural", "small step", "large step", "stopped early", "weight decay", "SAM", "SSR")
CONVOLUTIONAL += ("adversarial training", "IG-NORM")

#: By network and method, fixed by pilots (seeds 100 to 102, three natural trainings) before the runs that are judged:
#: the largest of its ladder whose test accuracy lies within .02 of that at strength 0 after as many epochs.
_SCALED = [method for method, way in METHODS.items() if way.scaled]
STRENGTHS: dict[str, dict[str, float]] = {
    name: dict(zip(methods, values, strict=True))
    for name, methods, values in (
        ("mlp fashion_mnist", _SCALED, (0.03, 0.03, 0.3, 0.1, 0.01, 0.01, 0.1, 0.1, 0.03, 1e4, 4, 0.3, 0.3, 1)),
        ("mlp digits", _SCALED, (0.03, 0.03, 0.3, 0.3, 0.03, 0.03, 0.3, 0.3, 0.3, 1e4, 32, 1, 1, 3)),
        ("convnet digits", CONVOLUTIONAL[4:], (0.03, 0.3, 0.3, 32, 1)),
    )
}


def asked(name: str) -> list[str]:
    """Methods asked of a network as in "mlp digits": those whose price was counted and whose strength is fixed."""
    checks.one_of("name", name, PASSES)
    return list(METHODS if name.startswith("mlp") else CONVOLUTIONAL)


def strength(method: str, name: str) -> float:
    """What pilots fixed for a method on a network as in "mlp digits"; 0 of a method that has no strength."""
    if not METHODS[checks.one_of("method", method, METHODS)].scaled:
        return 0.0
    return STRENGTHS[checks.one_of("name", name, STRENGTHS)][checks.one_of("method", method, STRENGTHS[name])]


def network(
    method: str, name: str, *, seed: int, budget: float, strength: float, n_train: int = 1000, batch_size: int = 64
) -> experiments.Experiment:
    """The network of an architecture and a data set, as in "mlp digits", that a method trains within a budget.

    Example:
        >>> ssr = network("SSR", "mlp digits", seed=0, budget=3, strength=0.1)
        >>> ssr.penalty, ssr.epochs, network("natural", "mlp digits", seed=0, budget=3, strength=0).epochs
        ('ssr', 34, 240)
    """
    way, counted = METHODS[checks.one_of("method", method, asked(name))], PASSES[name]
    epochs = max(1, round(way.share * checks.positive("budget", budget) * NATURAL_EPOCHS / counted.get(method, 1)))
    how = {"step_size": STEP_SIZE, "batch_size": batch_size, "n_train": n_train} | dict(way.fields)
    how |= experiments.sized(*name.split()) | ({way.scaled: strength} if way.scaled else {})
    return experiments.Experiment(**how, epochs=epochs, seed=seed, protocol="budget")


def passes(method: str, name: str) -> float:
    """Passes of one update of a method on a network as in "mlp digits", over those of plain SGD, counted."""
    model, x, y, recipe = _update(method, name)
    plain = _update("natural", name)[-1]
    count = [training.passes(model, x, y, r, generator=torch.Generator().manual_seed(0)) for r in (recipe, plain)]
    return count[0] / count[1]


@versioned(1)
def seconds(names: Sequence[str], name: str, repetitions: int) -> pd.DataFrame:
    """Seconds of one update of each method on a network as in "mlp digits", in turn: CPU `seconds` and `wall`."""
    ways = {}
    for method in names:
        model, x, y, recipe = _update(method, name)
        take = training.TRAINERS["sgd" if recipe.plain else recipe.trainer]
        draw = torch.Generator().manual_seed(0)
        ways[method] = partial(take, model, recipe.objective, x, y, recipe.radius, draw)
    return training.in_turn(ways, repetitions, name="method")


def _update(method: str, name: str) -> tuple[nn.Module, Images, Labels, training.Recipe]:
    """An untrained network, a batch of noise with labels, and the recipe by which the method trains."""
    experiment = network(method, name, seed=0, budget=1, strength=0.1)
    model, draw = experiments.build(experiment), torch.Generator().manual_seed(0)
    shape = measure.dataset(experiment.dataset, experiment.side, experiment.n_train, None, "cpu").test.x.shape[1:]
    x = torch.rand(experiment.batch_size, *shape, generator=draw)
    return model, x, torch.randint(10, (len(x),), generator=draw), experiment.recipe


def front(price: Values, worth: Values) -> list[bool]:
    """Which points no other beats: none costs at most as much and is worth more, or less and is worth as much.

    Example:
        >>> front([1, 2, 3], [0.5, 0.4, 0.7])
        [True, False, True]
    """
    points = list(zip(price, worth, strict=True))
    return [b == b and not any(p <= a and w >= b and (p, w) != (a, b) for p, w in points) for a, b in points]


@versioned(1)
def smoothed_bends(
    experiment: experiments.Experiment, sigmas: Sequence[float], draws: Sequence[int], n_attacked: int,
    *, network: measure.Trained,
) -> pd.DataFrame:  # fmt: skip
    """How fast the SmoothGrad map of the probability turns, beside what bounds it, per sigma (of pixels in [0, 1]).

    `largest` is, over images, the largest absolute eigenvalue of the Hessian of the probability averaged over so many
    `draws`, which all images share; `mean` is the mean over them. `bound` is `theory.certificates.gaussian_constant` of
    a function that differs from 1/2 by at most F = 1/2, `published` the 2 F / sigma^2 of Wang et al. 2020, both for the
    mean over all draws there are.
    """
    model = network(experiment).requires_grad_(False)
    x, rows = experiments.shown(experiment, n_attacked).x, []
    target, draw = predictions(model, x), torch.Generator().manual_seed(experiment.seed)
    noise = torch.randn(max(draws), *x.shape[1:], generator=draw)
    for sigma in sigmas:
        bounds = {"bound": certificates.gaussian_constant(height=0.5, sigma=sigma), "published": 1 / sigma**2}
        for n in draws:
            hessian = curvature.InputHessian(model, x, target, readout=partial(_averaged, noise=sigma * noise[:n]))
            bend = curvature.input_curvature(hessian, generator=torch.Generator().manual_seed(experiment.seed)).value
            rows.append({"sigma": sigma, "draws": n, "mean": float(bend.mean()), "largest": float(bend.max())} | bounds)
    return pd.DataFrame(rows)


def _averaged(model: nn.Module, x: Images, y: Labels, *, noise: Tensor) -> PerImage:
    """Probability of class y, averaged over draws of noise."""
    moved = (x + noise[:, None]).flatten(0, 1)
    return model(moved).softmax(1).view(len(noise), len(x), -1).mean(0).gather(1, y[:, None])[:, 0]
