"""Plain mini-batch SGD, several networks at once.

    v <- momentum v + gradient + weight_decay w,    w <- w - step_size(t) v

Networks of one architecture that differ only in their seed are trained together: their weights are stacked and
every dense layer becomes one batched product, which more than halves the cost of small networks. Transformers on a
CPU take turns instead: their cost is arithmetic, which stacking does not save, and those that have stopped rest.
A network's weights do not depend on its companions, bit for bit. Nothing here changes the dynamics under study: no
augmentation, no label smoothing, no averaging, no clipping. Used by notebooks 01, 03 and 06.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from attrobust import checks
from attrobust.attention import Attention
from attrobust.swap import ImageClassifier

Probe = Callable[[int, Sequence[nn.Module]], None]

SCHEDULES = ("constant", "cosine")
WARMUP = 0.02
CHUNK = 256


def cross_entropy(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Cross-entropy of each example, in nats."""
    return F.cross_entropy(logits, y, reduction="none")


def squared(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Half the squared distance of the logits from the one-hot label, of each example."""
    return 0.5 * (logits - F.one_hot(y, logits.shape[-1])).square().sum(-1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": cross_entropy, "squared": squared}


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
    stack = (_Turns if turns else _Stack)(models, LOSSES[loss])
    per_epoch = len(x) // batch_size
    budget = epochs * per_epoch
    velocity = [torch.zeros_like(w) for w in stack.weights]
    fits = [Fit(reached=None if stop_loss is None else False) for _ in models]
    near = torch.zeros(len(models), dtype=torch.bool, device=x.device)
    step, loss_late = 0, torch.full((len(models),), math.nan)
    while step < budget and any(f.weights is None for f in fits):
        for batch in _batches(len(x), batch_size, generators, x.device):
            if probe is not None and probe_every and step % probe_every == 0:
                stack.write(models)
                probe(step, models)
            gradient, batch_loss = stack.gradient(x[batch], y[batch])
            if weight_decay:
                torch._foreach_add_(gradient, stack.weights, alpha=weight_decay)
            torch._foreach_mul_(velocity, momentum)
            torch._foreach_add_(velocity, gradient)
            torch._foreach_add_(stack.weights, velocity, alpha=-step_size * _scale(schedule, step, budget))
            step += 1
            if stop_loss is not None:
                near |= batch_loss < 2 * stop_loss
                due = torch.ones_like(near) if step % per_epoch == 0 else near & (step % 2 == 0)
                if due.any():
                    near = _stop_those_below(stop_loss, stack, x, y, fits, step, due, near)
            elif step == budget - budget // 10:
                loss_late = stack.loss(x, y)
        if step % (10 * per_epoch) == 0:
            _stop_the_diverged(stack, x, y, fits, step)
        if all(f.weights is not None for f in fits):
            break
    for index, f in enumerate(fits):
        if f.weights is None:
            f.weights, f.steps = stack.copy(index), step
    stack.restore(fits)
    stack.write(models)
    _finish(models, x, y, fits, stack, loss_late if stop_loss is None else None)
    return fits


class _Stack:
    """The weights of several networks, stacked; leaves `requires_grad` on the stacked tensors only."""

    def __init__(self, models: Sequence[nn.Module], loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        for model in models:
            model.train()
        parameters, buffers = stack_module_state(list(models))
        self.names = list(parameters)
        self.weights = [parameters[name].detach().clone() for name in self.names]
        self.buffers = buffers
        self.template = models[0]
        self.convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in models[0].modules())
        self.per_example = loss

    def forward(self, x: Tensor, weights: list[Tensor], *, shared: bool) -> Tensor:
        if not self.convolves:
            return self._forward(x, weights, self.buffers, shared=shared)
        # One grouped convolution would sum in an order that depends on the number of groups: networks take turns.
        turns = []
        for i in range(len(weights[0])):
            mine, buffers = [w[i : i + 1] for w in weights], {name: b[i : i + 1] for name, b in self.buffers.items()}
            turns.append(self._forward(x if shared else x[i : i + 1], mine, buffers, shared=shared))
        return torch.cat(turns)

    def _forward(self, x: Tensor, weights: list[Tensor], buffers: dict[str, Tensor], *, shared: bool) -> Tensor:
        named = dict(zip(self.names, weights, strict=True))
        return vmap(
            lambda w, b, images: functional_call(self.template, (w, b), (images,)), (0, 0, None if shared else 0)
        )(named, buffers, x)

    def gradient(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], Tensor]:
        weights = [w.requires_grad_() for w in self.weights]
        logits = self.forward(x, weights, shared=False)
        losses = self.per_example(logits.flatten(0, 1), y.flatten()).view(y.shape).mean(1)
        gradient = list(torch.autograd.grad(losses.sum(), weights))
        for w in self.weights:
            w.requires_grad_(False)
        return gradient, losses.detach()

    @torch.no_grad()
    def loss(self, x: Tensor, y: Tensor, asked: Tensor | None = None, *, enough: float = math.inf) -> Tensor:
        """Loss of each network; from `enough` on a lower bound may stand for it. A stack cannot do less than all."""
        logits = self.forward(x, self.weights, shared=True)
        return torch.stack([self.per_example(z, y).mean() for z in logits])

    def rest(self, index: int) -> None:
        """A network has stopped; in a stack it is carried along."""

    def copy(self, index: int) -> dict[str, Tensor]:
        return {name: w[index].clone() for name, w in zip(self.names, self.weights, strict=True)}

    def restore(self, fits: list[Fit]) -> None:
        for index, f in enumerate(fits):
            for name, w in zip(self.names, self.weights, strict=True):
                w[index] = f.weights[name]

    def write(self, models: Sequence[nn.Module]) -> None:
        with torch.no_grad():
            for index, model in enumerate(models):
                for name, parameter in model.named_parameters():
                    parameter.copy_(self.weights[self.names.index(name)][index])


class _Turns(_Stack):
    """The same, one network after the other; those that have stopped, or are not asked for, cost nothing."""

    def __init__(self, models: Sequence[nn.Module], loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(models, loss)
        self.running, self.seen = set(range(len(models))), {}

    def rest(self, index: int) -> None:
        self.running.discard(index)

    def gradient(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], Tensor]:
        gradient, losses = [torch.zeros_like(w) for w in self.weights], y.new_full((len(y),), math.inf, dtype=x.dtype)
        for index in self.running:
            mine = [w[index].requires_grad_() for w in self.weights]
            value = self.per_example(self._logits(index, x[index], mine), y[index]).mean()
            for whole, part in zip(gradient, torch.autograd.grad(value, mine), strict=True):
                whole[index] = part
            losses[index] = value.detach()
        return gradient, losses

    @torch.no_grad()
    def loss(self, x: Tensor, y: Tensor, asked: Tensor | None = None, *, enough: float = math.inf) -> Tensor:
        losses = x.new_full((len(self.weights[0]),), math.inf)
        for index in range(len(losses)) if asked is None else asked.nonzero().flatten().tolist():
            losses[index] = self._loss(index, x, y, enough)
        return losses

    def _loss(self, index: int, x: Tensor, y: Tensor, enough: float) -> Tensor:
        """Loss of one network; what was hard last time is looked at first, until the loss is `enough`."""
        mine, values = [w[index] for w in self.weights], x.new_zeros(len(x))
        order = self.seen[index].argsort(descending=True) if index in self.seen else torch.arange(len(x)).to(y)
        for part in order.split(CHUNK):
            values[part] = self.per_example(self._logits(index, x[part], mine), y[part])
            if values.sum() > enough * len(x):
                break
        if enough < math.inf:
            self.seen[index] = values
        return values.mean()

    def _logits(self, index: int, x: Tensor, weights: list[Tensor]) -> Tensor:
        buffers = {name: b[index] for name, b in self.buffers.items()}
        return functional_call(self.template, (dict(zip(self.names, weights, strict=True)), buffers), (x,))


def _scale(schedule: str, step: int, budget: int) -> float:
    if schedule == "constant":
        return 1.0
    warm = min(1.0, (step + 1) / max(1.0, WARMUP * budget))
    return warm * 0.5 * (1 + math.cos(math.pi * step / budget))


def _batches(n: int, size: int, generators: Sequence[torch.Generator], device: torch.device) -> list[Tensor]:
    order = torch.stack([torch.randperm(n, generator=g) for g in generators]).to(device)
    return [batch for batch in order.split(size, dim=1) if batch.shape[1] == size]


def _stop_those_below(
    level: float, stack: _Stack, x: Tensor, y: Tensor, fits: list[Fit], step: int, due: Tensor, near: Tensor
) -> Tensor:
    running = torch.tensor([f.weights is None for f in fits], device=near.device)
    losses = stack.loss(x, y, due & running, enough=level)
    for index, f in enumerate(fits):
        if f.weights is None and due[index] and not losses[index] >= level:
            f.weights, f.steps = stack.copy(index), step
            stack.rest(index)
            f.reached = bool(torch.isfinite(losses[index]))
    running = torch.tensor([f.weights is None for f in fits], device=near.device)
    return torch.where(due, losses < 2 * level, near) & running


def _stop_the_diverged(stack: _Stack, x: Tensor, y: Tensor, fits: list[Fit], step: int) -> None:
    for index, value in enumerate(stack.loss(x, y)):
        if fits[index].weights is None and not torch.isfinite(value):
            fits[index].weights, fits[index].steps = stack.copy(index), step
            stack.rest(index)


@torch.no_grad()
def _finish(
    models: Sequence[nn.Module], x: Tensor, y: Tensor, fits: list[Fit], stack: _Stack, late: Tensor | None
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
