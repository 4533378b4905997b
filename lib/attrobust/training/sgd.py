"""Mini-batch SGD by a recipe, several networks at once.

Networks that differ only in their seed are trained together: every dense layer becomes one batched product, which more
than halves the cost of small networks. Transformers and convolutional networks on a CPU, networks with BatchNorm, and
whatever a penalty or a trainer differentiates in its own way, take turns: stacking does not save arithmetic. A
network's weights and statistics do not depend on its companions, bit for bit. Nothing is done that the recipe does not
say: no averaging, no clipping.

BatchNorm normalises by its batch where a gradient is taken, and its running statistics move then and only then, as
torch moves them. Every loss on the whole training set, at a level too, is that of the network in eval mode.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from attrobust import checks
from attrobust.attacks.streams import waits_for
from attrobust.attention import Attention
from attrobust.models import guards, watched
from attrobust.models.weights import called
from attrobust.shapes import Images, Labels, Maps
from attrobust.swap import ImageClassifier
from attrobust.training.dense import Dense
from attrobust.training.ingredients import AUGMENTATIONS, TRAINERS, noisy_labels
from attrobust.training.level import Level
from attrobust.training.recipes import Recipe
from attrobust.training.stacks import Networks, Stack, Turns, settled, statistics

#: Images that go through a network at once when all is over.
MOST = 10_000
#: What tells the seed of a penalty's draws from that of the batches.
DRAWS = 0x5EED << 16  # below 2^32: torch reads no more of a seed on a CPU

Probe = Callable[[int, Sequence[nn.Module]], None]


@dataclass
class Fit:
    """How one network's training ended.

    Example:
        >>> Fit(steps=100, train_loss=0.01).diverged
        False
    """

    steps: int = 0  # updates made
    train_loss: float = math.nan  # of the recipe, without the penalty, on the whole training set, at the end
    train_accuracy: float = math.nan  # share of training images classified as their labels, noisy ones included
    late_change: float = math.nan  # relative change of the loss over the last tenth; NaN at a level, or of one update
    reached: bool | None = None  # whether `stop_loss` was reached; None if there was none
    halvings: int = 0  # times that it overshot the level and went on from before, with half the step
    diverged: bool = False  # whether the loss stopped being finite


def fit(
    models: Sequence[nn.Module], x: Images, y: Labels, recipe: Recipe, *, generators: Sequence[torch.Generator],
    wanted: Sequence[Maps] | None = None, probe: Probe | None = None, probe_every: int = 0,
) -> list[Fit]:  # fmt: skip
    """Train networks that are alike but for their weights, in place, side by side on the same images in [0, 1].

    Each network's own generator decides its noisy labels, then its batch order and augmentation; what a penalty or a
    trainer draws comes from a stream that its initial seed names, so that the batches do not depend on it. `wanted`
    holds, for each network, the maps of all images that a penalty may wait for. `probe` is called as
    probe(step, models) every `probe_every` updates (0: never), before the update. Networks are left in eval mode.
    A ValueError refuses networks that are random or couple the images of a batch in train mode, but for BatchNorm with
    running statistics; such a network takes no penalty and no other trainer, which run it more often than its
    statistics may move.

    Raises:
        ValueError: networks that differ in more than their weights, share some or hold frozen ones; and what else
            cannot be trained by this recipe on these images and labels.

    Example:
        >>> from attrobust import models
        >>> net = models.build("mlp", input_shape=(1, 2, 2), classes=2, seed=0, width=8)
        >>> x, y = torch.rand(8, 1, 2, 2), torch.tensor([0, 1] * 4)
        >>> fit([net], x, y, Recipe(step_size=0.1, batch_size=4, epochs=3), generators=[torch.Generator()])[0].steps
        6
    """
    classes = _check_examples(models, x, y, generators)
    _check_statistics(models[0], x, recipe)
    _check_wanted(wanted, models, x, recipe)
    checks.count("batch_size", recipe.batch_size, most=len(x))
    checks.count("probe_every", probe_every, least=0)
    noisy = partial(noisy_labels, y, recipe.label_noise, classes=classes)
    y = torch.stack([noisy(generator=g) for g in generators]) if recipe.label_noise else y.expand(len(models), -1)
    beside = [torch.Generator().manual_seed(g.initial_seed() ^ DRAWS) for g in generators]
    networks = _networks(models, recipe, beside, x.device)
    per_epoch = len(x) // recipe.batch_size
    budget, update = recipe.most_epochs * per_epoch, 0
    velocity, late = torch.zeros_like(networks.weights), networks.weights.new_full((len(models),), math.nan)
    level, augment = None, AUGMENTATIONS[recipe.augmentation]
    if recipe.stop_loss is not None:
        level = Level(recipe.stop_loss, per_epoch, [x.new_zeros(len(x)) for _ in models], recipe.stop_within)
    # Where each network was last seen above the level, and how fast it went.
    before = [(networks.state(index), velocity[index].clone()) for index in range(len(models))]
    lengths = [networks.lengths(row) for row in range(len(models))] if recipe.pinned else []
    fits = [Fit(reached=None if level is None else False) for _ in models]
    running, alive, labels = list(range(len(models))), list(models), y
    while update < budget and running:
        order = torch.stack([torch.randperm(len(x), generator=g) for g in generators]).to(x.device)
        for batches in order[:, : per_epoch * recipe.batch_size].split(recipe.batch_size, dim=1):
            if probe is not None and probe_every and update % probe_every == 0:
                networks.write(alive)
                probe(update, models)
            batch = batches if len(batches) == len(running) else batches[running]
            images = x[batch]
            if augment is not None:
                draws = zip(images, running, strict=True)
                images = torch.stack([augment(part, recipe.shift_pixels, generators[index]) for part, index in draws])
            maps = () if wanted is None else (torch.stack([wanted[i][b] for i, b in zip(running, batch, strict=True)]),)
            with torch.enable_grad():
                gradient, losses = networks.gradient(images, labels.gather(1, batch), *maps)
            step = recipe.step(update, per_epoch=per_epoch)
            _update(networks.weights, velocity, gradient, recipe, [step / 2 ** fits[i].halvings for i in running])
            for row, index in enumerate(running if recipe.pinned else ()):
                networks.pin(row, lengths[index])
            update += 1
            stopped = {}
            if level is not None:
                stopped = level.reached(update, losses, running, partial(networks.looks, x, labels))
                for row, index in enumerate(running):
                    if index in level.above:
                        before[index] = networks.state(row), velocity[row].clone()
                    elif index in level.overshot:
                        state, velocity[row] = before[index]
                        networks.put_back(row, state)
                        fits[index].halvings += 1
            elif update == budget - max(1, budget // 10):
                late[running] = networks.loss(x, labels)
            if update % (10 * per_epoch) == 0:
                finite = torch.isfinite(networks.loss(x, labels)).tolist()
                stopped = {i: False for i, ok in zip(running, finite, strict=True) if not ok} | stopped
            if stopped:
                for index, reached in stopped.items():
                    fits[index].steps, fits[index].reached = update, None if level is None else reached
                networks.write(alive)
                kept = [row for row, index in enumerate(running) if index not in stopped]
                running, velocity, labels = [running[row] for row in kept], velocity[kept], labels[kept]
                alive = [models[index] for index in running]
                if not running:
                    break
                networks = _networks(alive, recipe, [beside[index] for index in running], x.device)
    if running:
        networks.write(alive)
    for index in running:
        fits[index].steps = update
    final = _networks(models, recipe, beside, x.device).loss(x, y)
    for model, mine, f, loss, before in zip(models, y, fits, final, late, strict=True):
        with torch.no_grad():
            predicted = torch.cat([model.eval()(part).argmax(1) for part in x.split(MOST)])
            f.train_accuracy = float((predicted == mine).double().mean())
        f.train_loss, f.late_change = float(loss), float(abs(loss - before) / before)
        f.diverged = not math.isfinite(f.train_loss)
    return fits


def _networks(
    models: Sequence[nn.Module], recipe: Recipe, generators: Sequence[torch.Generator], device: torch.device
) -> Networks:
    """Stacked where that saves time and the gradient is SGD's own."""
    loss = recipe.per_example_loss
    if not recipe.plain:
        objective = recipe.objective

        def gradient(
            index: int, model: nn.Module, x: Tensor, y: Tensor, wanted: Tensor | None = None
        ) -> tuple[Sequence[Tensor], Tensor]:
            told = objective if wanted is None else dataclasses.replace(objective, wanted=wanted)
            return TRAINERS[recipe.trainer](model, told, x, y, recipe.radius, generators[index])

        return Turns(models, loss, gradient)
    if Dense.can(models):
        return Dense(models, loss)
    return (Turns if in_turns(models[0], device) else Stack)(models, loss)


def in_turns(model: nn.Module, device: torch.device) -> bool:
    """Whether networks like this one are trained one after the other, by a recipe without penalty or other trainer.

    On a CPU nothing is saved where transformers are stacked, and convolutions take longer side by side than in turn.
    """
    slower = nn.Conv1d | nn.Conv2d | nn.Conv3d | Attention | ImageClassifier
    return bool(statistics(model)) or (device.type == "cpu" and any(isinstance(m, slower) for m in model.modules()))


def _update(weights: Tensor, velocity: Tensor, gradient: Tensor, recipe: Recipe, steps: Sequence[float]) -> None:
    """One update, network by network: a row's rounding then does not depend on how many rows there are."""
    for w, v, g, step in zip(weights, velocity, gradient, steps, strict=True):
        if recipe.decay:
            g = g.add(w, alpha=recipe.decay)
        v.mul_(recipe.momentum).add_(g)
        w.add_(g.add(v, alpha=recipe.momentum) if recipe.nesterov else v, alpha=-step)


def _check_examples(models: Sequence[nn.Module], x: Tensor, y: Tensor, generators: Sequence[torch.Generator]) -> int:
    """Number of classes, if everything is as it must be."""
    if not isinstance(models, list | tuple) or not models or not all(isinstance(m, nn.Module) for m in models):
        raise ValueError(f"models is an empty {type(models).__name__}, or holds no modules; it must be a list of such")
    if len({id(model) for model in models}) < len(models):
        raise ValueError("models holds a network twice; each is trained by itself")
    if not isinstance(generators, list | tuple) or not all(isinstance(g, torch.Generator) for g in generators):
        raise ValueError("generators must be a list of torch generators, one per network")
    if len(generators) != len(models):
        raise ValueError(f"generators has {len(generators)} entries; it must have one per network, {len(models)}")
    checks.images("x", x)
    try:
        with _as_trained(models[0]):
            guards.classifier(models[0], x)
            with torch.no_grad():
                classes = checks.logits("models", models[0](x[:1]), batch=1, least=2).shape[1]
    except ValueError as error:
        said = str(error).partition(";")[0]
        raise ValueError(
            f"{said}; `fit` trains what stays a fixed function of each image in train mode, but for BatchNorm"
        ) from error
    _check_alike(models, x)
    checks.labels("y", y, batch=len(x), classes=classes)
    return classes


@contextmanager
def _as_trained(model: nn.Module) -> Iterator[None]:
    """Within, a network is in train mode, but for BatchNorm; every mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with settled(model.train()):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _check_alike(models: Sequence[nn.Module], x: Tensor) -> None:
    """Refuse networks that are not the first one with weights of their own: its layers train all."""
    first, images, owners = models[0], watched.company(x), {}
    for index, model in enumerate(models):
        which, state = f"models[{index}]", dict(model.named_parameters())
        if frozen := [name for name, weight in state.items() if not weight.requires_grad]:
            raise ValueError(f"models hold frozen parameters ({frozen[0]} of {which}); `fit` trains all: unfreeze them")
        trained = (state | statistics(model)).items()
        if shared := [name for name, t in trained if t.numel() and owners.setdefault(t.data_ptr(), index) != index]:
            raise ValueError(f"{which} shares {shared[0]!r} with another; each network is trained by itself")
        if model is first:
            continue
        if _layers(model) != _layers(first):
            raise ValueError(f"{which} has other layers than models[0]; they must be alike but for their weights")
        runs = (model, partial(called, first, state | dict(model.named_buffers())))
        with watched.untouched(model), watched.untouched(first), _as_trained(model), _as_trained(first):
            told = [watched.run(run, images).detach() for run in runs]
        if gap := watched.apart(told[:1], told[1:], like=x.dtype):
            raise ValueError(f"{which} answers otherwise than models[0] would with its weights, by up to {gap:.2g}")


def _layers(model: nn.Module) -> list[object]:
    held = model.state_dict(keep_vars=True).items()
    shapes = ((name, t.shape, t.dtype, t.device) for name, t in held if isinstance(t, Tensor))
    return [*map(type, model.modules()), *shapes]


def _check_wanted(wanted: Sequence[Tensor] | None, models: Sequence[nn.Module], x: Tensor, recipe: Recipe) -> None:
    """Refuse maps that no penalty reads, or that do not belong to the images, and a penalty that lacks its maps."""
    penalty = recipe.objective.penalty
    if penalty is None or not waits_for(penalty, "wanted"):
        if wanted is not None:
            raise ValueError("wanted is given; no penalty of this recipe, at its strength, waits for maps")
        return
    if not isinstance(wanted, list | tuple) or [getattr(m, "shape", None) for m in wanted] != [x.shape] * len(models):
        raise ValueError(
            f"wanted must be a list of {len(models)} tensors of the images' shape, {tuple(x.shape)}: the penalty draws"
            " each network towards maps of its own"
        )
    if recipe.augmentation != "none":
        raise ValueError(f"augmentation is {recipe.augmentation!r}; moved images would not belong to the wanted maps")


def _check_statistics(model: nn.Module, x: Tensor, recipe: Recipe) -> None:
    """Refuse what a network with BatchNorm cannot be trained by: batches of single values, more passes than one."""
    if not statistics(model):
        return
    for name, plain in (("penalty", "none"), ("trainer", "sgd")):
        if (value := getattr(recipe, name)) != plain:
            raise ValueError(f"{name} is {value!r}; networks with BatchNorm are trained with {plain!r} alone")
    try:
        with watched.untouched(model), torch.no_grad():
            model.train()(x[: recipe.batch_size])
    except ValueError as error:
        said = watched.said(error)
        raise ValueError(f"batch_size is {recipe.batch_size}; models do not train on such a batch: {said}") from error
