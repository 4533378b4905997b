"""Train one group of networks and measure each: the only place where training meets curvature and attacks."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attrobust import attributions, curvature, data, models, training
from attrobust.experiments import explanations
from attrobust.experiments.experiment import TRANSFORMER, Experiment, Measurement
from attrobust.precision import whole_products
from attrobust.regularizers import wanted_maps
from attrobust.rows import ATTACKED, DECIDING
from attrobust.shapes import Attribution
from attrobust.swap import ImageClassifier
from attrobust.versions import as_before, versioned

#: Mean and standard deviation of the training pixels (the networks' first layer).
PIXELS = {"digits": (0.305, 0.376), "mnist": (0.131, 0.308), "two_digits": (0.065, 0.209)}
PIXELS |= {"fashion_mnist": (0.286, 0.353), "cifar10": (0.473, 0.251), "cifar10_4k": (0.478, 0.250)}

#: Finds the trained network of an experiment, in eval mode.
Trained = Callable[[Experiment], nn.Module]

COMPARABLE_LOSS = 0.25
COMPARABLE_ACCURACY = 0.995
COMPARABLE_CHANGE = 0.10
#: Largest share of test images without a usable gradient; a run above it has collapsed and is not measured further.
COMPARABLE_BLIND = 0.10

#: Columns of training, of the network's size, of flatness (the last for the first layer of a dense network alone) and
#: of the input side.
FIT = ("steps", "halvings", "train_loss", "train_accuracy", "late_change", "test_accuracy")
SIZE = ("weight_norm", "first_layer_norm", "spectral_product", "distance", "margin")
FLATNESS = ("sharpness", "sharpness_error", "trace", "trace_error", "invariant_flatness")
_OF_PIXELS = ("gradient", "input_curvature", "relative_curvature")
INPUT_SIDE = tuple(f"{readout}_{what}" for readout in explanations.READOUTS for what in _OF_PIXELS)


@cache
def dataset(name: str, side: int | None, n_train: int, n_test: int | None, device: str) -> data.Dataset:
    """A data set, kept by each worker process."""
    return data.load(name, side=side, n_train=n_train, n_test=n_test, device=device)


def shown(experiment: Experiment, n: int, device: str = "cpu") -> data.Examples:
    """Test images on which the networks of a seed are measured: a class-balanced draw of that seed's own.

    All networks of the seed on one data set share it, whatever their step, recipe or map, so that comparisons are
    paired and the scatter over seeds covers the choice of images too.

    Example:
        >>> one = Experiment(dataset="digits", step_size=0.1, batch_size=64, epochs=10, seed=0)
        >>> shown(one, 20).y.bincount().tolist()
        [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    test = dataset(experiment.dataset, experiment.side, experiment.n_train, None, device).test
    chosen = torch.as_tensor(data.balanced(test.y.cpu().numpy(), n, experiment.seed), device=device)
    return data.Examples(test.x[chosen], test.y[chosen])


def build(experiment: Experiment, device: str = "cpu") -> nn.Module:
    """The untrained network of an experiment.

    Example:
        >>> one = Experiment(dataset="digits", step_size=0.1, batch_size=64, epochs=10, seed=0)
        >>> build(one)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    channels, *sides = data.image_shape(experiment.dataset)
    mean, std = PIXELS[experiment.dataset]
    shape = (channels, *([experiment.side] * 2 if experiment.side else sides))
    options = ("seed", "activation", "initial", *(TRANSFORMER if experiment.architecture == "vit" else ()))
    how = {name: getattr(experiment, name) for name in options}
    return models.build(experiment.architecture, input_shape=shape, classes=10, mean=mean, std=std, **how).to(device)


def small_vit(name: str, who: str, *, seed: int, side: int, patch: int, dim: int, spread: float) -> ImageClassifier:
    """An untrained ViT of transformers for the grey images of a data set: two blocks of four heads, of drawn weights.

    Args:
        name: data set, whose pixels are standardised.
        who: asks for it, as the ImportError without transformers says.
        seed: of the weights.
        side: height and width of the images, in pixels.
        patch: height and width of the patches, in pixels.
        dim: length of the tokens.
        spread: standard deviation of the weights.
    """
    try:
        from transformers import ViTConfig, ViTForImageClassification
    except ImportError as error:
        raise ImportError(f"{who} needs transformers; install it by pip install attrobust[hf]") from error
    config = ViTConfig(
        image_size=side, patch_size=patch, num_channels=1, num_labels=10, hidden_size=dim, intermediate_size=2 * dim,
        num_hidden_layers=2, num_attention_heads=4, attn_implementation="eager", initializer_range=spread,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTForImageClassification(config)
    mean, std = PIXELS[name]
    return ImageClassifier(model, mean=mean, std=std).eval()


@versioned(1)
@whole_products()
def train(
    group: Sequence[Experiment], device: str = "cpu", *, network: Trained | None = None
) -> tuple[list[nn.Module], list[training.Fit]]:
    """Train experiments that differ only in their seed, together; `network` finds their teachers, None trains them."""
    first = group[0]
    networks = [build(e, device) for e in group]
    generators = [torch.Generator().manual_seed(e.seed) for e in group]
    examples = dataset(first.dataset, first.side, first.n_train, None, device).train
    wanted = None
    if first.teacher and first.strength:
        find = network or partial(trained_anew, device=device)
        wanted = [wanted_of(e, examples, find, seed=e.teacher.seed) for e in group]
    return networks, training.fit(networks, *examples, first.recipe, generators=generators, wanted=wanted)


def trained_anew(experiment: Experiment, device: str = "cpu") -> nn.Module:
    """The network of one experiment, trained here and now."""
    return train([experiment], device)[0][0]


def wanted_of(experiment: Experiment, examples: data.Examples, network: Trained, *, seed: int) -> Tensor:
    """Maps of these images by the experiment's teacher, under draws of a seed."""
    draw = torch.Generator().manual_seed(seed)
    return wanted_maps(network(experiment.teacher), *examples, kind=experiment.wanted, generator=draw)


@versioned(3)
@whole_products()
def measure(
    experiment: Experiment, measurement: Measurement, model: nn.Module, fit: training.Fit, device: str = "cpu"
) -> tuple[dict[str, object], pd.DataFrame]:
    """Columns of one trained network, and long rows of its maps; only of its training if it diverged or collapsed."""
    transformer, seed = experiment.architecture == "vit", experiment.seed
    whole = dataset(experiment.dataset, experiment.side, experiment.n_train, None, device)
    attacked = shown(experiment, measurement.n_attacked, device).x
    model.requires_grad_(True)
    share_blind = float(blind(model, attacked).double().mean())
    reason = incomparable(experiment, fit, share_blind)
    row: dict[str, object] = {name: getattr(fit, name) for name in FIT[:-1]}
    with torch.no_grad():
        row["test_accuracy"] = float((model(whole.test.x).argmax(1) == whole.test.y).double().mean())
    row |= {"comparable": not reason, "reason": reason}
    if fit.diverged or share_blind > COMPARABLE_BLIND:
        return row, pd.DataFrame(columns=[*ATTACKED[1:]])
    row |= _size(model, build(experiment, device), whole.train)
    if measurement.curvature:
        row |= _flatness(model, whole.train, measurement, seed)
    model.requires_grad_(False)
    if measurement.curvature:
        row |= _input_side(model, attacked, seed)
    patch = experiment.patch if transformer else None
    height, width = (side // (patch or 1) for side in attacked.shape[-2:])
    k = max(1, round(measurement.k_share * height * width))
    if transformer:
        row |= explanations.inside(model, attacked, patch=experiment.patch, k=k)
    return row, _attacked(model, attacked, measurement, attacked_maps(experiment, measurement), patch, k, seed)


def attacked_maps(experiment: Experiment, measurement: Measurement) -> dict[tuple[str, str], Attribution]:
    """The maps that a row tells of, by map and readout: those asked for that the network has."""
    patch = experiment.patch if experiment.architecture == "vit" else None
    asked = explanations.explaining(experiment.architecture, measurement.maps)
    return explanations.compared(patch, asked, measurement.readouts)


def blind(model: nn.Module, x: Float[Tensor, "batch channels height width"]) -> Bool[Tensor, " batch"]:
    """Whether the predicted logit does not depend on the pixels, or not in a finite way, so that no map explains it.

    Its gradient's 1-norm, which bounds the change over all pixels to first order, then lies below the logit's rounding.
    """
    with torch.no_grad():
        logits = model(x)
    target = logits.argmax(1)
    largest = logits.gather(1, target[:, None])[:, 0].abs()
    change = attributions.saliency(model, x, target).detach().flatten(1).abs().sum(1)
    return ~(change.isfinite() & (change > torch.finfo(x.dtype).eps * largest))


def incomparable(experiment: Experiment, fit: training.Fit, share_blind: float) -> str:
    """Why a run with a share of `blind` images leaves its arm; "" if it stays. The rule was fixed before the runs."""
    if fit.diverged:
        return "diverged"
    if share_blind > COMPARABLE_BLIND:
        images = "no image has a" if share_blind == 1 else f"{share_blind:.0%} of the images have no"
        return f"collapsed: {images} gradient"
    level = experiment.recipe.stop_loss
    if level is not None:
        if not fit.reached:
            return f"loss {fit.train_loss:.3g} never reached {level:g}"
        off = abs(fit.train_loss / level - 1)
        return f"loss {fit.train_loss:.3g} is {off:.0%} off the level" if off > COMPARABLE_LOSS else ""
    if experiment.protocol == "budget":
        return ""  # what a budget buys is compared: a poorer fit is part of the price, and told beside
    if fit.train_accuracy < COMPARABLE_ACCURACY:
        return f"training accuracy {fit.train_accuracy:.1%}"
    return "" if fit.late_change < COMPARABLE_CHANGE else f"loss still changed by {fit.late_change:.0%}"


@versioned(1)
def _size(model: nn.Module, start: nn.Module, examples: data.Examples) -> dict[str, float]:
    """How large the weights are, all and those of the first layer, how far they went, how sure the network is.

    Norms are Euclidean; `spectral_product` is the product of the largest singular values of all weight matrices
    (kernels flattened), `margin` the mean logit margin on the training images.
    """
    with torch.no_grad():
        weights = [w.double() for w in model.parameters()]
        moved = [(w - v.double()).norm() for w, v in zip(weights, start.parameters(), strict=True)]
        matrices = [w.flatten(1) for w in weights if w.ndim > 1]
        margin = models.readouts.margin(model, *examples).double().mean()
        first = curvature.first_layer(model)[1].weight.double()
        values = (
            torch.stack([w.norm() for w in weights]).norm(), first.norm(),
            torch.stack([torch.linalg.matrix_norm(m, 2) for m in matrices]).prod(), torch.stack(moved).norm(), margin,
        )  # fmt: skip
    return dict(zip(SIZE, map(float, values), strict=True))


@versioned(2)
def _flatness(model: nn.Module, examples: data.Examples, m: Measurement, seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    hessian = curvature.ParameterHessian(model, training.cross_entropy, *examples)
    sharp = curvature.sharpness(hessian, generator=generator)
    total = curvature.trace(hessian, generator=generator, products=m.trace_products)
    row = dict(zip(FLATNESS, (sharp.value, sharp.error, total.value, total.error), strict=False))
    if isinstance(curvature.first_layer(model)[1], nn.Linear):
        row["invariant_flatness"] = curvature.invariant_flatness(curvature.GaussNewton(model, examples.x)).value
    return row


@versioned(2)
def _input_side(model: nn.Module, x: Tensor, seed: int) -> dict[str, float]:
    """Gradient, curvature and relative curvature in the pixels, under both readouts, of the predicted classes.

    Of the log-probability the first two are also those of the loss, were the prediction the label. An image whose
    gradient vanishes (of a network that is very sure) has no relative curvature and leaves its mean.
    """
    with torch.no_grad():
        target = model(x).argmax(1)
    generator = torch.Generator().manual_seed(seed)
    row = {}
    for name, readout in explanations.READOUTS.items():
        hessian = curvature.InputHessian(model, x, target, readout=readout)
        bend = curvature.input_curvature(hessian, generator=generator)
        turn = curvature.relative_curvature(hessian, generator=generator)
        row[f"{name}_gradient"] = float(hessian.gradient.detach().flatten(1).norm(dim=1).double().mean())
        row[f"{name}_input_curvature"] = float(bend.value.double().mean())
        row[f"{name}_relative_curvature"] = float(turn.value[turn.value.isfinite()].double().mean())
    return row


def _attacked(
    model: nn.Module, x: Tensor, m: Measurement, maps: Mapping[tuple[str, str], Attribution], patch: int | None, k: int,
    seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Long rows of every map: under attack, radius by radius, and what the clean map is like."""
    like = explanations.controls(model, x, maps=maps, patch=patch).assign(attack="clean", radius=0.0, images="")
    tables = [like.melt(["readout", "map", "attack", "radius", "n", "images"], var_name="metric")]
    for radius, names_there in m.asked(dict.fromkeys(name for name, _ in maps)).items():
        asked = {told: attribution for told, attribution in maps.items() if told[0] in names_there}
        how = {"maps": asked, "k": k, "radius": radius, "effort": m.effort, "seed": seed, "held": m.held}
        found = explanations.under_attack(model, x, **how).drop(columns="zero_maps").assign(radius=float(radius))
        tables.append(found.melt(["readout", "map", "attack", "radius", "n", "images"], var_name="metric"))
    table = pd.concat(tables, ignore_index=True)[[*ATTACKED[1:]]]
    deciding = (table[[*DECIDING]] == pd.Series(DECIDING)).all(axis=1)
    return table.assign(images=table["images"].where(deciding, ""))


def names(experiment: Experiment, measurement: Measurement) -> list[str]:
    """Columns that `measure` gives beyond those of the training; a run that diverged or collapsed has none of them."""
    transformer, dense = experiment.architecture == "vit", experiment.architecture == "mlp"
    found = [n for n in (*FLATNESS, *INPUT_SIDE) if measurement.curvature and (dense or n != "invariant_flatness")]
    return [*SIZE, *found, *(explanations.inside_names(experiment.attention) if transformer else [])]


def columns(experiment: Experiment) -> dict[str, object]:
    """The experiment's own columns of a row; a transformer's only where there is one, later ones if they say more."""
    absent = {*as_before(experiment), *(TRANSFORMER if experiment.architecture != "vit" else ())}
    return {name: v for name, v in dataclasses.asdict(experiment).items() if name not in absent}
