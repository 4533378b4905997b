"""What notebook 10 asks: does training for interpretable gradients protect predictions (Noack et al. 2021)?

All arms have the same data, epochs, step and schedule. How much there is of each was chosen on validation images, which
are training images that no network is trained on; test images are looked at once, at the end.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from torch.nn import functional as F

from attrobust import attacks, attributions, checks, data, experiments, faithfulness
from attrobust.balls import Ball
from attrobust.experiments.measure import Trained, wanted_of
from attrobust.models.readouts import logit, margin, predictions
from attrobust.studies.explicit_regularizers import Method
from attrobust.versions import versioned

#: Radii of attacks on predictions, in pixels of [0, 1], by data set and norm (Noack et al. 2021); those of MNIST are
#: taken for other digits, too.
_MNIST = {"linf": (0.1, 0.2, 0.25, 0.3), "l2": (1.5, 2.5, 3.5)}
_CIFAR = {"linf": (4 / 255, 8 / 255), "l2": (80 / 255, 320 / 255)}
RADII: dict[str, dict[str, tuple[float, ...]]] = {"mnist": _MNIST, "digits": _MNIST, "cifar10_4k": _CIFAR}
RADII |= {"cifar10": _CIFAR, "two_digits": _MNIST}

#: How much accuracy on validation images a strength may cost.
MAY_LOSE = 0.02

_LADDER = (0.01, 0.03, 0.1, 0.3, 1.0)
_PLAIN, _DRAWN, _SLOPES, _ATTACKED = "plain SGD", "gradient drawn to a map", "slopes in the pixels", "attacked images"
_WEIGHTS = "weights"


def _drawn(wanted: str, trainer: str = "sgd") -> Method:
    fields = {"penalty": "interpretation", "wanted": wanted, "teacher_trainer": trainer}
    return Method(_DRAWN, fields, "strength", _LADDER)


#: Arms; "IR" is interpretation regularization, drawn to the maps of a standard teacher unless it says another.
METHODS: dict[str, Method] = {
    "natural": Method(_PLAIN),
    "IR gradient": _drawn("gradient"),
    "IR SmoothGrad": _drawn("smooth_grad"),
    "IR permuted": _drawn("permuted"),
    "IR robust teacher": _drawn("smooth_grad", "adversarial"),
    "PGD training": Method(_ATTACKED, {"trainer": "adversarial"}, "around", (12.75, 25.5, 51, 76.5)),
    "small step": Method(_PLAIN, {"step_size": 0.003}),
    "large step": Method(_PLAIN, {"step_size": 0.06}),
    "weight decay": Method(_WEIGHTS, {}, "weight_decay", (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
    "IR robust gradient": _drawn("gradient", "adversarial"),
    "IR robust permuted": _drawn("permuted", "adversarial"),
    "IR l2-robust gradient": _drawn("gradient", "adversarial_l2"),
    "IR l2-robust teacher": _drawn("smooth_grad", "adversarial_l2"),
    "gradient norm alone": Method(_SLOPES, {"penalty": "gradient_norm"}, "strength", _LADDER),
    "double backprop": Method(_SLOPES, {"penalty": "input_gradient"}, "strength", (0.1, 0.3, 1, 3, 10)),
    "Jacobian": Method(_SLOPES, {"penalty": "jacobian"}, "strength", (1e-3, 3e-3, 1e-2, 3e-2, 0.1)),
    "PGD training l2": Method(_ATTACKED, {"trainer": "adversarial_l2"}, "around", (127.5, 255, 382.5, 637.5)),
}

#: Step size of all arms that are no step size.
STEP_SIZE = 0.0134

#: Arms that take the strength of "IR robust teacher" and have no pilots of their own.
_ALIKE = ("IR robust gradient", "IR robust permuted", "IR l2-robust gradient", "IR l2-robust teacher")

#: By network and method, fixed by `chosen` from pilots (seeds 100 to 102) before the runs that are judged.
STRENGTHS: dict[str, dict[str, float]] = {
    "convnet mnist": dict.fromkeys(["IR gradient", "IR SmoothGrad", "IR permuted", "IR robust teacher", *_ALIKE], 0.3)
    | {"PGD training": 12.75, "PGD training l2": 255, "gradient norm alone": 0.3, "double backprop": 0.3}
    | {"Jacobian": 0.01, "weight decay": 0.03},
    "convnet cifar10_4k": dict.fromkeys(["IR gradient", "IR SmoothGrad", "IR permuted", "IR robust teacher"], 0.1)
    | {"PGD training": 1, "gradient norm alone": 0.1, "weight decay": 0.03},
}
STRENGTHS["convnet two_digits"] = dict.fromkeys(["IR SmoothGrad", "IR permuted", "gradient norm alone"], 0.1)
STRENGTHS["convnet two_digits"] |= {"PGD training": 2, "weight decay": 0.03}
#: Small digits and the whole of CIFAR-10 had no pilots.
STRENGTHS["convnet digits"] = {one: STRENGTHS["convnet mnist"][one] for one in STRENGTHS["convnet cifar10_4k"]}
STRENGTHS["convnet cifar10"] = STRENGTHS["convnet cifar10_4k"]


def asked(name: str) -> list[str]:
    """Methods asked of a network as in "convnet mnist": natural training, and those whose strength is fixed."""
    checks.one_of("name", name, STRENGTHS)
    return [method for method, way in METHODS.items() if not way.scaled or method in STRENGTHS[name]]


def ladder(method: str, name: str) -> tuple[float, ...]:
    """Strengths of a method that pilots try on a network as in "convnet mnist": none for arms that take another's.

    At the radii of one digit PGD training learns no photographs or pairs of digits any more: its ladder lies below.

    Example:
        >>> ladder("PGD training", "convnet mnist"), ladder("PGD training", "convnet cifar10_4k")
        ((12.75, 25.5, 51, 76.5), (1, 2, 4, 8))
    """
    way = METHODS[checks.one_of("method", method, METHODS)]
    if method in _ALIKE:
        return ()
    harder = name.split()[1] not in ("mnist", "digits")
    return (1, 2, 4, 8) if method == "PGD training" and harder else way.ladder


def network(
    method: str, name: str, *, seed: int, epochs: int, n_train: int, batch_size: int = 64, strength: float | None = None
) -> experiments.Experiment:
    """The network of an architecture and a data set, as in "convnet mnist", that a method trains; images as they are.

    A robust teacher is trained as the arm of adversarial training in its norm is. None takes the strength that pilots
    fixed.

    Example:
        >>> one = network("IR SmoothGrad", "convnet mnist", seed=0, epochs=20, n_train=2000, strength=0.1)
        >>> one.wanted, one.teacher.trainer, one.teacher.seed
        ('smooth_grad', 'sgd', 1000000)
    """
    way, size = METHODS[checks.one_of("method", method, METHODS)], experiments.sized(*name.split()) | {"side": None}
    how = {"step_size": STEP_SIZE, "epochs": epochs, "n_train": n_train, "batch_size": batch_size, "seed": seed}
    how |= size | dict(way.fields)
    if (taught := way.fields.get("teacher_trainer", "sgd")) != "sgd":
        how["teacher_around"] = _fixed("PGD training" if taught == "adversarial" else "PGD training l2", name)
    if way.scaled:
        how[way.scaled] = _fixed(method, name) if strength is None else strength
    return experiments.Experiment(**how, protocol="budget")


def _fixed(method: str, name: str) -> float:
    """The strength that pilots fixed; a ValueError where there is none."""
    if method not in STRENGTHS.get(name, {}):
        raise ValueError(f"the strength of {method!r} is fixed for no network {name!r}; give one, or one of `asked`")
    return STRENGTHS[name][method]


@versioned(2)
def right_under_attack(
    experiment: experiments.Experiment, attack: Callable[..., attacks.Attacked], radii: Sequence[tuple[str, float]],
    n: int, effort: Mapping[str, int], split: str, *, network: Trained,
) -> pd.DataFrame:  # fmt: skip
    """Share of images that stay classified rightly wherever an attack looks: a row per norm and radius, and for none.

    All are NaN of a network that diverged, whose answers are no numbers.

    Args:
        experiment, network: which network, and what finds it.
        attack: `attacks.pgd` or `attacks.square`; `effort` are its options.
        radii: (norm, radius in pixels of [0, 1]). What was broken within a smaller ball of the norm is broken in a
            larger one, and not attacked again.
        n: images, the seed's own draw of "test" images, or the same "validation" images for all.
        split: "test" or "validation".
    """
    if attack not in (attacks.pgd, attacks.square):
        raise ValueError(f"attack is {checks.short(attack)}; it must be attacks.pgd or attacks.square")
    model = network(experiment).requires_grad_(False)
    x, y = _examples(experiment, n, split)
    right = predictions(model, x) == y
    with torch.no_grad():
        answers = not bool(model(x).isnan().any())
    rows = [{"attack": "none", "norm": "none", "radius": 0.0, "value": float(right.double().mean())}]
    for norm in dict.fromkeys(norm for norm, _ in radii):
        left = right.clone()
        for radius in sorted(r for other, r in radii if other == norm):
            if answers and left.any():
                draw = torch.Generator().manual_seed(experiment.seed)
                found = attack(model, x[left], y[left], Ball(norm, radius), generator=draw, **effort)
                left[left.clone()] = ~found.broken
            row = {"attack": attack.__name__, "norm": norm, "radius": radius}
            rows.append(row | {"value": float(left.double().mean())})
    table = pd.DataFrame(rows).assign(seed=experiment.seed)
    return table if answers else table.assign(value=math.nan)


def _examples(experiment: experiments.Experiment, n: int, split: str) -> data.Examples:
    if checks.one_of("split", split, ("test", "validation")) == "test":
        return experiments.shown(experiment, n)
    return data.held_out(experiment.dataset, n, n_train=experiment.n_train, side=experiment.side)


@versioned(2)
def gradients_like(experiment: experiments.Experiment, n: int, *, network: Trained) -> pd.DataFrame:
    """What the predicted logits' gradients at n test images are like: one row of means.

    `alignment` is the absolute cosine of gradient and image (Etmann et al. 2019, eq. 1, over the image's length),
    `length` the gradient's Euclidean length, `reach` the predicted class's margin over the length of the margin's own
    gradient: how far, to first order, the decision is from turning, in pixels. `wanted` is the cosine of the true
    logit's gradient and what the teacher would have wanted of this image, NaN without one; `deletion` and `insertion`
    are areas of the predicted class's probability (Petsiuk et al. 2018), also of pixels in `random` order.
    """
    model = network(experiment).requires_grad_(False)
    x, y = experiments.shown(experiment, n)
    target = predictions(model, x)
    slope, way = (attributions.saliency(model, x, target, readout=r).detach().flatten(1) for r in (logit, margin))
    with torch.no_grad():
        reach = margin(model, x, target) / way.norm(dim=1)
    aimed = torch.tensor(torch.nan)
    if experiment.teacher:
        maps = wanted_of(experiment, data.Examples(x, y), network, seed=experiment.seed)
        aimed = _cosine(attributions.saliency(model, x, y).detach(), maps)
    row = {"wanted": aimed, "alignment": _cosine(slope, x).abs(), "length": slope.norm(dim=1), "reach": reach}
    how = {"attributions": {"saliency": attributions.saliency}, "steps": min(20, x[0, 0].numel())}
    how["generator"] = torch.Generator().manual_seed(experiment.seed)
    curves = faithfulness.insertion_deletion(model, x, **how).groupby("attribution")[["deletion", "insertion"]].mean()
    areas = {"deletion": curves.loc["saliency", "deletion"], "insertion": curves.loc["saliency", "insertion"]}
    areas |= {f"random_{name}": curves.loc[faithfulness.RANDOM, name] for name in ("deletion", "insertion")}
    return pd.DataFrame([{"seed": experiment.seed} | {k: float(v.nanmean()) for k, v in row.items()} | areas])


@versioned(1)
def pictured(experiment: experiments.Experiment, n: int, *, network: Trained) -> pd.DataFrame:
    """Pixels of n test images, of the true logit's gradients there, and of what a teacher wants, channels summed."""
    model = network(experiment).requires_grad_(False)
    x, y = experiments.shown(experiment, n)
    panels = {"image": x.mean(1), "gradient": attributions.saliency(model, x, y).detach().sum(1)}
    if experiment.teacher:
        panels["wanted"] = wanted_of(experiment, data.Examples(x, y), network, seed=experiment.seed).sum(1)
    parts = []
    for kind, images in panels.items():
        for place, values in enumerate(images):
            i, j = torch.meshgrid(*map(torch.arange, values.shape), indexing="ij")
            pixels = {"i": i.flatten(), "j": j.flatten(), "value": values.flatten()}
            parts.append(pd.DataFrame({k: v.numpy() for k, v in pixels.items()}).assign(kind=kind, image=place))
    return pd.concat(parts, ignore_index=True)


def _cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Cosine of maps of each image; NaN where one is zero."""
    found = F.cosine_similarity(one.flatten(1), other.flatten(1), dim=1)
    there = (one.flatten(1).norm(dim=1) > 0) & (other.flatten(1).norm(dim=1) > 0)
    return found.where(there, torch.nan)


def chosen(pilots: pd.DataFrame) -> pd.DataFrame:
    """Strength of each method, by pilots on validation images: of those that keep the accuracy, the most robust one.

    Args:
        pilots: rows of `right_under_attack` with columns `method` and `strength`, natural training's among them.

    A strength keeps the accuracy if it loses at most `MAY_LOSE` of natural training's; the most robust one has the
    largest mean accuracy under attack, over all norms and radii; of equal ones the smallest. One at which any pilot
    diverged keeps nothing. A method without any that keeps it takes the smallest. Columns: method, strength, accuracy,
    under_attack, keeps, chosen.

    Example:
        >>> rows = [("natural", 0, "none", 0.9), ("natural", 0, "pgd", 0.1)]
        >>> rows += [("IR", s, a, v) for s, clean, hit in ((0.1, 0.9, 0.3), (1, 0.5, 0.4))
        ...          for a, v in (("none", clean), ("pgd", hit))]
        >>> table = chosen(pd.DataFrame(rows, columns=["method", "strength", "attack", "value"]))
        >>> table[table.chosen][["method", "strength"]].to_numpy().tolist()
        [['natural', 0.0], ['IR', 0.1]]
    """
    means = pilots.assign(kind=pilots["attack"].where(pilots["attack"] == "none", "under_attack"))
    means["strength"] = means["strength"].astype(float).fillna(0.0)
    means["value"] = means["value"].fillna(-math.inf)  # else a mean would leave out the pilot that diverged
    table = means.pivot_table(index=["method", "strength"], columns="kind", values="value").replace(-math.inf, math.nan)
    table = table.rename(columns={"none": "accuracy"}).reset_index().rename_axis(columns=None)
    order = list(pilots["method"].unique())
    table = table.sort_values("method", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)
    if "natural" not in order:
        raise ValueError(f"pilots are of {', '.join(map(str, order))}; natural training must be among them")
    natural = table.loc[table["method"] == "natural", "accuracy"].max()
    table["keeps"] = table["accuracy"] >= natural - MAY_LOSE - 1e-9
    table["chosen"] = False
    for _, rungs in table.groupby("method"):
        kept = rungs[rungs["keeps"]]
        table.loc[kept["under_attack"].idxmax() if len(kept) else rungs.index[0], "chosen"] = True
    return table[["method", "strength", "accuracy", "under_attack", "keeps", "chosen"]]
