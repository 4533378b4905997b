"""Plain mini-batch SGD, several networks at once.

    v <- momentum v + gradient + weight_decay w,    w <- w - step_size(t) v

Networks of one architecture that differ only in their seed are trained together: their weights are stacked and
every dense layer becomes one batched product, which more than halves the cost of small networks. Transformers on a
CPU take turns instead: their cost is arithmetic, which stacking does not save, and those that have stopped rest.
A network's weights do not depend on its companions, bit for bit. Nothing here changes the dynamics under study: no
augmentation, no label smoothing, no averaging, no clipping. Used by notebooks 01, 03, 06 and 07.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrobust import checks
from attrobust.attention import Attention
from attrobust.swap import ImageClassifier
from attrobust.training.level import Level
from attrobust.training.losses import LOSSES
from attrobust.training.stacks import Networks, Stack, Turns

Probe = Callable[[int, Sequence[nn.Module]], None]

SCHEDULES = ("constant", "cosine")
WARMUP = 0.02


@dataclass
class Fit:
    """How one network's training ended.

    Attributes:
        steps: updates made.
        train_loss: loss on the whole training set, at the end.
        train_accuracy: share of training images classified correctly, at the end.
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
    weights: dict[str, Tensor] | None = field(default=None, repr=False)


def fit(
    models: Sequence[nn.Module],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    step_size: float,
    batch_size: int,
    epochs: int,
    generators: Sequence[torch.Generator],
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    schedule: str = "constant",
    loss: str = "cross_entropy",
    stop_loss: float | None = None,
    probe: Probe | None = None,
    probe_every: int = 0,
) -> list[Fit]:
    """Train networks of one architecture side by side on the same images, each with its own batch order.

    Args:
        models: networks alike but for their weights; changed in place, left in eval mode.
        x: training images, pixels in [0, 1].
        y: their labels.
        step_size: of SGD, above 0; the peak if the schedule is "cosine".
        batch_size: images per update, from 1 to all; a last incomplete batch of an epoch is left out.
        epochs: passes over the images; with `stop_loss`, the most that are tried.
        generators: one per network; decides its batch order.
        momentum: in [0, 1).
        weight_decay: coupled L2 decay, at least 0.
        schedule: "constant", or "cosine" (linear warm-up over 2 % of the updates, then annealed to zero).
        loss: "cross_entropy" or "squared".
        stop_loss: a network stops when the loss on the whole training set falls below this level; checked
            once an epoch, and every other update when the running batch loss is near the level.
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
        >>> fit([net], x, y, step_size=0.1, batch_size=4, epochs=3, generators=[torch.Generator()])[0].steps
        6
    """
    _check_examples(models, x, y, generators)
    checks.positive("step_size", step_size)
    checks.count("batch_size", batch_size, most=len(x))
    checks.count("epochs", epochs)
    checks.at_least("momentum", momentum, 0)
    if momentum >= 1:
        raise ValueError(f"momentum is {momentum!r}; it must be below 1")
    checks.at_least("weight_decay", weight_decay, 0)
    checks.one_of("schedule", schedule, SCHEDULES)
    checks.one_of("loss", loss, LOSSES)
    if stop_loss is not None:
        checks.positive("stop_loss", stop_loss)
    checks.count("probe_every", probe_every, least=0)
    transformer = any(isinstance(module, Attention | ImageClassifier) for module in models[0].modules())
    turns = x.device.type == "cpu" and transformer
    stack = (Turns if turns else Stack)(models, LOSSES[loss])
    per_epoch = len(x) // batch_size
    budget = epochs * per_epoch
    velocity = [torch.zeros_like(w) for w in stack.weights]
    fits = [Fit(reached=None if stop_loss is None else False) for _ in models]
    level = None if stop_loss is None else Level(stop_loss, stack, x, y, per_epoch=per_epoch)
    step, loss_late = 0, torch.full((len(models),), math.nan)
    while step < budget and any(f.weights is None for f in fits):
        for batch in _batches(len(x), batch_size, generators, x.device):
            if probe is not None and probe_every and step % probe_every == 0:
                stack.write(models)
                probe(step, models)
            gradient, batch_loss = stack.gradient(x[batch], y[batch])
            if weight_decay:
                gradient = torch._foreach_add(gradient, stack.weights, alpha=weight_decay)
            torch._foreach_mul_(velocity, momentum)
            torch._foreach_add_(velocity, gradient)
            torch._foreach_add_(stack.weights, velocity, alpha=-step_size * _scale(schedule, step, budget))
            step += 1
            if level is not None:
                running = [index for index, f in enumerate(fits) if f.weights is None]
                for index, reached in level.reached(step, batch_loss, running).items():
                    _stop(fits[index], stack, index, step)
                    fits[index].reached = reached
            elif step == budget - budget // 10:
                loss_late = stack.loss(x, y)
        if step % (10 * per_epoch) == 0:
            _stop_the_diverged(stack, x, y, fits, step)
        if all(f.weights is not None for f in fits):
            break
    for index, f in enumerate(fits):
        if f.weights is None:
            f.weights, f.steps = stack.copy(index), step
    stack.restore([f.weights for f in fits])
    stack.write(models)
    _finish(models, x, y, fits, stack, loss_late if stop_loss is None else None)
    return fits


def _scale(schedule: str, step: int, budget: int) -> float:
    if schedule == "constant":
        return 1.0
    warm = min(1.0, (step + 1) / max(1.0, WARMUP * budget))
    return warm * 0.5 * (1 + math.cos(math.pi * step / budget))


def _batches(n: int, size: int, generators: Sequence[torch.Generator], device: torch.device) -> list[Tensor]:
    order = torch.stack([torch.randperm(n, generator=g) for g in generators]).to(device)
    return [batch for batch in order.split(size, dim=1) if batch.shape[1] == size]


def _stop(fit: Fit, stack: Networks, index: int, step: int) -> None:
    fit.weights, fit.steps = stack.copy(index), step
    stack.rest(index)


def _stop_the_diverged(stack: Networks, x: Tensor, y: Tensor, fits: list[Fit], step: int) -> None:
    for index, value in enumerate(stack.loss(x, y)):
        if fits[index].weights is None and not torch.isfinite(value):
            _stop(fits[index], stack, index, step)


@torch.no_grad()
def _finish(
    models: Sequence[nn.Module], x: Tensor, y: Tensor, fits: list[Fit], stack: Networks, late: Tensor | None
) -> None:
    final = stack.loss(x, y)
    for index, (model, f) in enumerate(zip(models, fits, strict=True)):
        model.eval()
        f.train_loss = float(final[index])
        f.diverged = not math.isfinite(f.train_loss)
        f.train_accuracy = float((model(x).argmax(1) == y).double().mean())
        if late is not None:
            f.late_change = float(abs(final[index] - late[index]) / late[index])
        f.weights = None


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def _check_examples(models: Sequence[nn.Module], x: Tensor, y: Tensor, generators: Sequence[torch.Generator]) -> None:
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
