"""Mini-batch SGD by a recipe, several networks at once.

    v <- momentum v + gradient + decay w,    w <- w - step_size(t) v

Networks of one architecture that differ only in their seed are trained together: every dense layer becomes one batched
product, which more than halves the cost of small networks. Transformers on a CPU, and whatever a penalty or a trainer
differentiates in its own way, take turns instead: their cost is arithmetic, which stacking does not save. Those that
have stopped rest. A network's weights do not depend on its companions, bit for bit. Nothing is done that the recipe
does not say: no averaging, no clipping. Used by notebooks 01, 02, 03, 06 and 07.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrobust import checks
from attrobust.attention import Attention
from attrobust.regularizers import PENALTIES
from attrobust.swap import ImageClassifier
from attrobust.training.augmentation import AUGMENTATIONS
from attrobust.training.dense import Dense
from attrobust.training.level import Level
from attrobust.training.noise import noisy_labels
from attrobust.training.recipe import Recipe
from attrobust.training.stacks import Networks, Stack, Turns
from attrobust.training.trainers import TRAINERS, Objective

Probe = Callable[[int, Sequence[nn.Module]], None]


@dataclass
class Fit:
    """How one network's training ended.

    Attributes:
        steps: updates made.
        train_loss: loss on the whole training set, at the end: that of the recipe, without the penalty.
        train_accuracy: share of training images classified as their labels, noisy ones included, say, at the end.
        late_change: relative change of the training loss over the last tenth of the budget; NaN if it stopped
            at a loss level.
        reached: whether `stop_loss` was reached (None if there was none).
        diverged: whether the loss stopped being finite.
    """

    steps: int = 0
    train_loss: float = math.nan
    train_accuracy: float = math.nan
    late_change: float = math.nan
    reached: bool | None = None
    diverged: bool = False


def fit(
    models: Sequence[nn.Module],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    recipe: Recipe,
    *,
    generators: Sequence[torch.Generator],
    probe: Probe | None = None,
    probe_every: int = 0,
) -> list[Fit]:
    """Train networks of one architecture side by side on the same images, each with its own draws.

    Args:
        models: networks alike but for their weights; changed in place, left in eval mode.
        x: training images, pixels in [0, 1].
        y: their labels.
        recipe: how they are trained. The loss on the whole training set is compared with its `stop_loss` once an
            epoch, and every other update when the running batch loss is near the level.
        generators: one per network; decides its noisy labels, then its batch order and augmentation.
        probe: called as probe(step, models) every `probe_every` updates, before the update.
        probe_every: updates between probes; 0 for none.

    Returns:
        One Fit per network.

    Raises:
        ValueError: for any argument outside its range.

    Example:
        >>> from attrobust import models
        >>> net = models.build("mlp", input_shape=(1, 2, 2), classes=2, seed=0, width=8)
        >>> x, y = torch.rand(8, 1, 2, 2), torch.tensor([0, 1] * 4)
        >>> recipe = Recipe(step_size=0.1, batch_size=4, epochs=3)
        >>> fit([net], x, y, recipe, generators=[torch.Generator()])[0].steps
        6
    """
    classes = _check_examples(models, x, y, generators)
    checks.count("batch_size", recipe.batch_size, most=len(x))
    checks.count("probe_every", probe_every, least=0)
    if recipe.label_noise:
        y = torch.stack([noisy_labels(y, recipe.label_noise, classes=classes, generator=g) for g in generators])
    networks = _networks(models, x, recipe, generators)
    per_epoch = len(x) // recipe.batch_size
    budget = recipe.most_epochs * per_epoch
    velocity = torch.zeros_like(networks.weights)
    late = networks.weights.new_full((len(models),), math.nan)
    fits = [Fit(reached=None if recipe.stop_loss is None else False) for _ in models]
    level = None if recipe.stop_loss is None else Level(recipe.stop_loss, networks, x, y, per_epoch=per_epoch)
    update = 0
    while update < budget and networks.running:
        for batches in _batches(len(x), recipe.batch_size, generators, x.device):
            if probe is not None and probe_every and update % probe_every == 0:
                networks.write(models)
                probe(update, models)
            batch = batches if len(batches) == len(networks.running) else batches[networks.running]
            images = _augmented(x[batch], recipe, [generators[index] for index in networks.running])
            gradient, losses = networks.gradient(images, _labels(y, networks.running, batch))
            _update(networks.weights, velocity, gradient, recipe, recipe.step(update, per_epoch=per_epoch))
            update += 1
            stopped = {} if level is None else level.reached(update, losses, networks.running)
            if level is None and update == budget - budget // 10:
                late[networks.running] = networks.loss(x, _labels(y, networks.running))
            if update % (10 * per_epoch) == 0:
                stopped = _diverged(networks, x, y) | stopped
            for index, reached in stopped.items():
                fits[index].steps, fits[index].reached = update, None if level is None else reached
            if stopped:
                velocity = _stop(networks, velocity, models, stopped)
            if not networks.running:
                break
    networks.write(models)
    for index in networks.running:
        fits[index].steps = update
    _finish(models, x, y, _networks(models, x, recipe, generators), fits, late)
    return fits


def _networks(
    models: Sequence[nn.Module], x: Tensor, recipe: Recipe, generators: Sequence[torch.Generator]
) -> Networks:
    """Stacked where that saves time and the gradient is SGD's own."""
    loss, penalty, trainer = recipe.per_example_loss, recipe.penalty, TRAINERS[recipe.trainer]
    if penalty != "none" or recipe.trainer != "sgd":
        penalty = penalty if callable(penalty) else PENALTIES[penalty]
        objective = Objective(loss, penalty, recipe.strength)

        def gradient(index: int, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Sequence[Tensor], Tensor]:
            return trainer(model, objective, x, y, recipe.radius, generators[index])

        return Turns(models, loss, gradient)
    if Dense.can(models):
        return Dense(models, loss)
    transformer = any(isinstance(module, Attention | ImageClassifier) for module in models[0].modules())
    return (Turns if transformer and x.device.type == "cpu" else Stack)(models, loss)


def _batches(n: int, size: int, generators: Sequence[torch.Generator], device: torch.device) -> list[Tensor]:
    order = torch.stack([torch.randperm(n, generator=g) for g in generators]).to(device)
    return [batch for batch in order.split(size, dim=1) if batch.shape[1] == size]


def _augmented(x: Tensor, recipe: Recipe, generators: Sequence[torch.Generator]) -> Tensor:
    if recipe.augmentation == "none":
        return x
    augment = AUGMENTATIONS[recipe.augmentation]
    return torch.stack([augment(images, recipe.shift_pixels, g) for images, g in zip(x, generators, strict=True)])


def _labels(y: Tensor, running: int | Sequence[int], batch: Tensor | None = None) -> Tensor:
    """Labels of the running networks, where each has its own; of their batches, if there are any."""
    if y.ndim == 2:
        y = y[running]
        return y if batch is None else y.gather(1, batch)
    return y if batch is None else y[batch]


def _update(weights: Tensor, velocity: Tensor, gradient: Tensor, recipe: Recipe, step: float) -> None:
    """One update, network by network: a row's rounding then does not depend on how many rows there are."""
    for w, v, g in zip(weights, velocity, gradient, strict=True):
        if recipe.decay:
            g = g.add(w, alpha=recipe.decay)
        v.mul_(recipe.momentum).add_(g)
        w.add_(g.add(v, alpha=recipe.momentum) if recipe.nesterov else v, alpha=-step)


def _diverged(networks: Networks, x: Tensor, y: Tensor) -> dict[int, bool]:
    finite = torch.isfinite(networks.loss(x, _labels(y, networks.running))).tolist()
    return {index: False for index, ok in zip(networks.running, finite, strict=True) if not ok}


def _stop(networks: Networks, velocity: Tensor, models: Sequence[nn.Module], stopped: dict[int, bool]) -> Tensor:
    """Write the networks that stop, let them go, and return the velocity of the others."""
    networks.write(models)
    kept = [row for row, index in enumerate(networks.running) if index not in stopped]
    networks.keep(kept)
    return velocity[kept]


@torch.no_grad()
def _finish(
    models: Sequence[nn.Module], x: Tensor, y: Tensor, networks: Networks, fits: list[Fit], late: Tensor
) -> None:
    final = networks.loss(x, y)
    for index, (model, f) in enumerate(zip(models, fits, strict=True)):
        model.eval()
        f.train_loss = float(final[index])
        f.diverged = not math.isfinite(f.train_loss)
        f.train_accuracy = float((model(x).argmax(1) == _labels(y, index)).double().mean())
        f.late_change = float(abs(final[index] - late[index]) / late[index])


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def _check_examples(models: Sequence[nn.Module], x: Tensor, y: Tensor, generators: Sequence[torch.Generator]) -> int:
    """Number of classes, if everything is as it must be."""
    if not models:
        raise ValueError("models is empty; it must hold at least one network")
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) or _drops(m) for m in models[0].modules()):
        raise ValueError("models hold batch normalisation or dropout; `fit` trains networks without them")
    checks.images("x", x)
    with torch.no_grad():
        classes = models[0](x[:1]).shape[1]
    checks.labels("y", y, batch=len(x), classes=classes)
    if len(generators) != len(models):
        raise ValueError(f"generators has {len(generators)} entries; it must have one per network, {len(models)}")
    return classes
