"""Several networks side by side: their weights stacked, or one after the other."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

#: Examples that go through a network at once; and the fewest that are worth it.
CHUNK, LEAST = 256, 32


class Networks(ABC):
    """What `fit` trains, stacked or in turns."""

    @abstractmethod
    def copy(self, index: int) -> dict[str, Tensor]:
        """Weights of one network by name."""

    def write(self, models: Sequence[nn.Module]) -> None:
        """Put the weights into the networks they came from."""
        for index, model in enumerate(models):
            _put(model, self.copy(index))


class Stack(Networks):
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


class Turns(Networks):
    """The same one after the other, on copies of the networks; who has stopped, or is not asked for, costs nothing."""

    def __init__(self, models: Sequence[nn.Module], loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.models = [copy.deepcopy(model).train().requires_grad_(True) for model in models]
        self.parameters = [dict(model.named_parameters()) for model in self.models]
        self.weights = [parameter.detach() for mine in self.parameters for parameter in mine.values()]
        self.per_example = loss
        self.running, self.seen = set(range(len(models))), {}

    def rest(self, index: int) -> None:
        """A network has stopped and takes no more turns."""
        self.running.discard(index)

    def gradient(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], Tensor]:
        """Gradient of each network's loss on its own batch, and the losses; zero and infinite where it rests."""
        gradient, losses = [], y.new_full((len(y),), math.inf, dtype=x.dtype)
        for index, model in enumerate(self.models):
            mine = list(self.parameters[index].values())
            if index not in self.running:
                gradient += [torch.zeros_like(w) for w in mine]
                continue
            value = self.per_example(model(x[index]), y[index]).mean()
            gradient += torch.autograd.grad(value, mine)
            losses[index] = value.detach()
        return gradient, losses

    @torch.no_grad()
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Loss of each network over the examples."""
        logits = [torch.cat([model(part) for part in x.split(CHUNK)]) for model in self.models]
        return torch.stack([self.per_example(z, y).mean() for z in logits])

    def looks(self, x: Tensor, y: Tensor, asked: Sequence[int]) -> dict[int, "Look"]:
        """A look at the loss of those that are asked for; nothing is computed yet."""
        return {index: self._look(index, x, y) for index in asked}

    def _look(self, index: int, x: Tensor, y: Tensor) -> "Look":
        """A look at one network as it is now, that begins with what was hard when last looked at."""
        model, now = self.models[index], self.copy(index)
        seen = self.seen.setdefault(index, x.new_zeros(len(x)))
        return Look(seen, lambda part: self.per_example(functional_call(model, now, (x[part],)), y[part]))

    def copy(self, index: int) -> dict[str, Tensor]:
        """Weights of one network by name."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters[index].items()}

    def restore(self, copies: Sequence[dict[str, Tensor]]) -> None:
        """Set every network back to a copy of its weights."""
        for model, copied in zip(self.models, copies, strict=True):
            _put(model, copied)


class Look:
    """The loss of one network over the training set, looked at only as far as an answer needs it.

    Args:
        seen: loss of each example when it was last looked at, updated in place; the largest are looked at first.
        losses: from indices of examples to their losses now.
    """

    def __init__(self, seen: Tensor, losses: Callable[[Tensor], Tensor]) -> None:
        self.seen, self.losses = seen, losses
        self.rest = seen.argsort(descending=True, stable=True)
        self.total = seen.new_zeros(())

    @property
    def over(self) -> bool:
        """Whether all examples have been seen."""
        return not len(self.rest)

    @torch.no_grad()
    def until(self, enough: float) -> Tensor:
        """The loss; from `enough` on, a lower bound of it will do."""
        limit = enough * len(self.seen)
        while not self.over and not self.total > limit:
            # As many as would do if they were as hard as they were.
            short = (self.seen[self.rest].cumsum(0) <= limit - self.total).sum()
            part, self.rest = self.rest.tensor_split([min(max(LEAST, int(short) + 1), CHUNK)])
            self.seen[part] = self.losses(part)
            self.total += self.seen[part].sum()
        return self.seen.mean() if self.over else self.total / len(self.seen)


@torch.no_grad()
def _put(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
