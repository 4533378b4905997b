"""Several networks side by side: their weights are the rows of one matrix; stacked, or one after the other.

Every parameter starts at a multiple of `LINE` numbers, so that a network's arithmetic does not depend on its row.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from attrobust.training.level import CHUNK, Look
from attrobust.training.objective import Loss, Objective, sgd

#: Numbers in the longest vector register or cache line of a processor, with room to spare.
LINE = 32


class Networks(ABC):
    """What `fit` trains: copies of networks alike but for their weights.

    Attributes:
        weights: (networks, numbers), one row per network that is still training.
        running: which networks these are, counted in `models`.
        lazy: whether a look at the loss goes network by network, and only as far as an answer needs it.
    """

    def __init__(self, models: Sequence[nn.Module], loss: Loss) -> None:
        self.per_example, self.lazy = loss, False
        self.seen: dict[int, Tensor] = {}
        self.places, end = {}, 0
        for name, parameter in models[0].named_parameters():
            self.places[name] = slice(end, end + parameter.numel()), parameter.shape
            end += math.ceil(parameter.numel() / LINE) * LINE
        self.weights = next(models[0].parameters()).new_zeros(len(models), end, requires_grad=False)
        self.running = list(range(len(models)))
        for mine, parameter in self._beside(models):
            mine.copy_(parameter.detach())
        self._arrange()

    def named(self, rows: Tensor) -> dict[str, Tensor]:
        """Parameters by name as views of rows (..., numbers)."""
        return {name: rows[..., where].view(*rows.shape[:-1], *shape) for name, (where, shape) in self.places.items()}

    @torch.no_grad()
    def write(self, models: Sequence[nn.Module]) -> None:
        """Put the weights of those that are training into the networks they came from."""
        for mine, parameter in self._beside(models):
            parameter.copy_(mine)

    def _beside(self, models: Sequence[nn.Module]) -> Iterator[tuple[Tensor, nn.Parameter]]:
        """Every part of the weights beside the parameter that it belongs to."""
        for row, index in zip(self.weights, self.running, strict=True):
            yield from zip(self.named(row).values(), models[index].parameters(), strict=True)

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on training; the others cost nothing more."""
        self.running = [self.running[row] for row in rows]
        self.weights = self.weights[rows]
        self._arrange()

    def _arrange(self) -> None:
        """Follow a change of rows."""
        self.slope = torch.zeros_like(self.weights)
        self.slope_of = self.named(self.slope)

    @abstractmethod
    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each network on its own batch, a row each, and the losses; the rows are overwritten next time."""

    @torch.no_grad()
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of each network over the examples; labels (batch,) or (networks, batch)."""
        labels = y.expand(len(self.running), -1)
        return torch.stack([self.per_example(z, mine).mean() for z, mine in zip(self._logits(x), labels, strict=True)])

    @abstractmethod
    def _logits(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of each network, of the same images."""

    def looks(self, x: Tensor, y: Tensor, asked: Sequence[int]) -> dict[int, Look]:
        """A look at the loss of those that are asked for, as they are now; labels (all networks, batch).

        A lazy one begins with what was hard when last looked at.
        """
        if not self.lazy:
            losses = dict(zip(self.running, self.loss(x, y[self.running]).split(1), strict=True))
            return {index: Look(losses[index], losses[index].__getitem__) for index in asked}

        def look(index: int, now: Tensor) -> Look:
            seen = self.seen.setdefault(index, x.new_zeros(len(x)))
            return Look(seen, lambda part: self._example_losses(index, now, x[part], y[index, part]))

        return {index: look(index, self.weights[self.running.index(index)].clone()) for index in asked}

    def _example_losses(self, index: int, row: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Loss of each example, of one network with the weights of a row; asked for where looks are lazy."""
        raise NotImplementedError


class Stack(Networks):
    """Every layer once for all networks, by vmap."""

    def __init__(self, models: Sequence[nn.Module], loss: Loss) -> None:
        for model in models:
            model.train()
        self.template = models[0]
        self.convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in models[0].modules())
        self.all_buffers = stack_module_state(list(models))[1]
        super().__init__(models, loss)

    def _arrange(self) -> None:
        super()._arrange()
        self.buffers = {name: b[self.running] for name, b in self.all_buffers.items()}

    def _forward(self, x: Tensor, weights: dict[str, Tensor], *, shared: bool) -> Tensor:
        stacked = vmap(
            lambda w, b, images: functional_call(self.template, (w, b), (images,)), (0, 0, None if shared else 0)
        )
        if not self.convolves:
            return stacked(weights, self.buffers, x)
        # One grouped convolution would sum in an order that depends on the number of groups: networks take turns.
        turns = []
        for i in range(len(self.running)):
            mine, buffers = ({name: part[i : i + 1] for name, part in p.items()} for p in (weights, self.buffers))
            turns.append(stacked(mine, buffers, x if shared else x[i : i + 1]))
        return torch.cat(turns)

    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each network on its own batch, and the losses."""
        weights = {name: w.detach().requires_grad_() for name, w in self.named(self.weights).items()}
        logits = self._forward(x, weights, shared=False)
        losses = self.per_example(logits.flatten(0, 1), y.flatten()).view(y.shape).mean(1)
        for name, found in zip(weights, torch.autograd.grad(losses.sum(), list(weights.values())), strict=True):
            self.slope_of[name].copy_(found)
        return self.slope, losses.detach()

    def _logits(self, x: Tensor) -> Tensor:
        return self._forward(x, self.named(self.weights), shared=True)


class Turns(Networks):
    """One network after the other, on copies; who has stopped, or is not asked for, costs nothing.

    `gradient` goes from (which network, the network, its batch, its labels) to the gradients of its parameters and its
    loss; None for those of the mean loss.
    """

    def __init__(self, models: Sequence[nn.Module], loss: Loss, gradient: Callable[..., tuple] | None = None) -> None:
        self.models = [copy.deepcopy(model).train().requires_grad_(True) for model in models]
        self.take = gradient or (lambda index, model, x, y: sgd(model, Objective(loss), x, y, 0.0, None))
        super().__init__(models, loss)
        self.lazy = True

    def _arrange(self) -> None:
        super()._arrange()
        for mine, parameter in self._beside(self.models):
            parameter.data = mine

    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each network on its own batch, and the losses."""
        losses = []
        for row, index in enumerate(self.running):
            found, loss = self.take(index, self.models[index], x[row], y[row])
            losses.append(loss)
            for part, mine in zip(found, self.slope_of.values(), strict=True):
                mine[row].copy_(part)
        return self.slope, torch.stack(losses)

    def _logits(self, x: Tensor) -> list[Tensor]:
        return [torch.cat([self.models[index](part) for part in x.split(CHUNK)]) for index in self.running]

    def _example_losses(self, index: int, row: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.per_example(functional_call(self.models[index], self.named(row), (x,)), y)
