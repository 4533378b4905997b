"""Several networks side by side: their weights stacked, or one after the other."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

CHUNK = 256


class Stack:
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

    def _logits_of_all(self, x: Tensor, weights: list[Tensor], *, shared: bool) -> Tensor:
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
        """Gradient of each network's loss on its own batch, stacked as the weights are, and the losses."""
        weights = [w.requires_grad_() for w in self.weights]
        logits = self._logits_of_all(x, weights, shared=False)
        losses = self.per_example(logits.flatten(0, 1), y.flatten()).view(y.shape).mean(1)
        gradient = list(torch.autograd.grad(losses.sum(), weights))
        for w in self.weights:
            w.requires_grad_(False)
        return gradient, losses.detach()

    @torch.no_grad()
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Loss of each network over the examples."""
        logits = self._logits_of_all(x, self.weights, shared=True)
        return torch.stack([self.per_example(z, y).mean() for z in logits])

    def looks(self, x: Tensor, y: Tensor, asked: Sequence[int]) -> dict[int, "Look"]:
        """A look at the loss of those that are asked for; a stack cannot do less than all."""
        losses = self.loss(x, y).split(1)
        return {index: Look(losses[index], losses[index].__getitem__) for index in asked}

    def rest(self, index: int) -> None:
        """A network has stopped; in a stack it is carried along."""

    def copy(self, index: int) -> dict[str, Tensor]:
        """Weights of one network by name."""
        return {name: w[index].clone() for name, w in zip(self.names, self.weights, strict=True)}

    def restore(self, copies: Sequence[dict[str, Tensor]]) -> None:
        """Set every network back to a copy of its weights."""
        for index, copied in enumerate(copies):
            for name, w in zip(self.names, self.weights, strict=True):
                w[index] = copied[name]

    def write(self, models: Sequence[nn.Module]) -> None:
        """Put the weights into the networks they came from."""
        with torch.no_grad():
            for index, model in enumerate(models):
                for name, parameter in model.named_parameters():
                    parameter.copy_(self.weights[self.names.index(name)][index])


class Turns(Stack):
    """The same, one network after the other; those that have stopped, or are not asked for, cost nothing."""

    def __init__(self, models: Sequence[nn.Module], loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(models, loss)
        self.running, self.seen = set(range(len(models))), {}

    def rest(self, index: int) -> None:
        """A network has stopped and takes no more turns."""
        self.running.discard(index)

    def gradient(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], Tensor]:
        """Gradients and losses as a stack gives them; those of networks that rest are zero and infinite."""
        gradient, losses = [torch.zeros_like(w) for w in self.weights], y.new_full((len(y),), math.inf, dtype=x.dtype)
        for index in self.running:
            mine = [w[index].requires_grad_() for w in self.weights]
            value = self.per_example(self._logits(index, x[index], mine), y[index]).mean()
            for whole, part in zip(gradient, torch.autograd.grad(value, mine), strict=True):
                whole[index] = part
            losses[index] = value.detach()
        return gradient, losses

    @torch.no_grad()
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Loss of each network over the examples."""
        losses = []
        for index in range(len(self.weights[0])):
            mine = [w[index] for w in self.weights]
            logits = torch.cat([self._logits(index, part, mine) for part in x.split(CHUNK)])
            losses.append(self.per_example(logits, y).mean())
        return torch.stack(losses)

    def looks(self, x: Tensor, y: Tensor, asked: Sequence[int]) -> dict[int, "Look"]:
        """A look at the loss of those that are asked for; nothing is computed yet."""
        return {index: self._look(index, x, y) for index in asked}

    def _look(self, index: int, x: Tensor, y: Tensor) -> "Look":
        """A look at one network as it is now, that begins with what was hard when last looked at."""
        mine = [w[index].clone() for w in self.weights]
        seen = self.seen.setdefault(index, x.new_zeros(len(x)))
        return Look(seen, lambda part: self.per_example(self._logits(index, x[part], mine), y[part]))

    def _logits(self, index: int, x: Tensor, weights: list[Tensor]) -> Tensor:
        buffers = {name: b[index] for name, b in self.buffers.items()}
        return functional_call(self.template, (dict(zip(self.names, weights, strict=True)), buffers), (x,))


class Look:
    """The loss of one network over the training set, looked at only as far as an answer needs it.

    Args:
        seen: loss of each example when it was last looked at, updated in place; the largest are looked at first.
        losses: from indices of examples to their losses now.
    """

    def __init__(self, seen: Tensor, losses: Callable[[Tensor], Tensor]) -> None:
        self.seen, self.losses = seen, losses
        self.rest = list(seen.argsort(descending=True, stable=True).split(CHUNK))
        self.total = seen.new_zeros(())

    @property
    def over(self) -> bool:
        """Whether all examples have been seen."""
        return not self.rest

    @torch.no_grad()
    def until(self, enough: float) -> Tensor:
        """The loss; from `enough` on, a lower bound of it will do."""
        while self.rest and not self.total > enough * len(self.seen):
            part = self.rest.pop(0)
            self.seen[part] = self.losses(part)
            self.total += self.seen[part].sum()
        return self.seen.mean() if self.over else self.total / len(self.seen)
