"""Several networks side by side: their weights are the rows of one matrix; stacked, or one after the other.

Every parameter starts at a multiple of `LINE` numbers, so that a network's arithmetic does not depend on its row.
Running statistics of BatchNorm move where a gradient is taken, and are what a look at the loss normalises by.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import stack_module_state, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from attrobust.models.weights import called
from attrobust.training.ingredients import Loss, Objective, sgd
from attrobust.training.level import CHUNK, Look

#: Of one network: gradient in each parameter, and loss.
Gradient = Callable[..., tuple[Sequence[Tensor], Tensor]]

#: Numbers in the longest vector register or cache line of a processor, with room to spare.
LINE = 32


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that training changes, by name: those of BatchNorm."""
    own = {id(b) for m in model.modules() if isinstance(m, _BatchNorm) for b in m.buffers(recurse=False)}
    return {name: buffer for name, buffer in model.named_buffers() if id(buffer) in own}


@contextmanager
def settled(model: nn.Module) -> Iterator[None]:
    """Within, BatchNorm is in eval mode: nothing else, of what may be trained, does otherwise there."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    try:
        for norm in norms:
            norm.training = False
        yield
    finally:
        for norm in norms:
            norm.training = True


class Networks(ABC):
    """What `fit` trains: copies of networks alike but for their weights, one row of `weights` per network."""

    weights: Tensor
    slope: Tensor
    slope_of: dict[str, Tensor]
    places: dict[str, tuple[slice, torch.Size]]
    statistics: list[dict[str, Tensor]]

    #: Whether looks go network by network, and only as far as an answer needs, by `_example_losses` of another state.
    lazy: bool = False

    def __init__(self, models: Sequence[nn.Module], loss: Loss) -> None:
        self.per_example = loss
        self.places, end = {}, 0
        for name, parameter in models[0].named_parameters():
            self.places[name] = slice(end, end + parameter.numel()), parameter.shape
            end += math.ceil(parameter.numel() / LINE) * LINE
        self.weights = next(models[0].parameters()).new_zeros(len(models), end, requires_grad=False)
        for mine, parameter in self._beside(models):
            mine.copy_(parameter.detach())
        self.statistics = [{} for _ in models]
        self.slope = torch.zeros_like(self.weights)
        self.slope_of = self.named(self.slope)

    def named(self, rows: Tensor) -> dict[str, Tensor]:
        """Parameters by name as views of rows (..., numbers)."""
        return {name: rows[..., where].view(*rows.shape[:-1], *shape) for name, (where, shape) in self.places.items()}

    @torch.no_grad()
    def write(self, models: Sequence[nn.Module]) -> None:
        """Put weights and statistics into the networks they came from."""
        for mine, parameter in self._beside(models):
            parameter.copy_(mine)
        for mine, model in zip(self.statistics, models, strict=True):
            for name, buffer in statistics(model).items():
                buffer.copy_(mine[name])

    def state(self, row: int) -> list[Tensor]:
        """Copies of all that training changes in a network: its weights, then its statistics."""
        return [part.clone() for part in (self.weights[row], *self.statistics[row].values())]

    def put_back(self, row: int, state: Sequence[Tensor]) -> None:
        """Make a network what it was when its `state` was asked for."""
        for part, before in zip((self.weights[row], *self.statistics[row].values()), state, strict=True):
            part.copy_(before)

    def lengths(self, row: int) -> list[Tensor]:
        """Euclidean norms of a network's weight matrices and filter banks, as they are."""
        return [w.norm() for w in self._matrices(row)]

    def pin(self, row: int, lengths: Sequence[Tensor]) -> None:
        """Scale a network's weight matrices back to norms that they had; zeros stay zeros."""
        for w, length in zip(self._matrices(row), lengths, strict=True):
            now = w.norm()
            w.mul_(torch.where(now > 0, length / now, torch.zeros_like(now)))

    def _matrices(self, row: int) -> list[Tensor]:
        """Weights of dense and convolutional layers; a transformer's tokens of its own are none."""
        named = self.named(self.weights[row]).items()
        return [w for name, w in named if w.ndim > 1 and name.rpartition(".")[2] == "weight"]

    def _beside(self, models: Sequence[nn.Module]) -> Iterator[tuple[Tensor, nn.Parameter]]:
        """Every part of the weights beside the parameter that it belongs to."""
        for row, model in zip(self.weights, models, strict=True):
            yield from zip(self.named(row).values(), model.parameters(), strict=True)

    @abstractmethod
    def gradient(self, x: Tensor, y: Tensor, *beside: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each network on its own batch, a row each, and the losses; the rows are overwritten next time.

        `beside` are further tensors of each network's batch, which those in turns hand over.
        """

    @torch.no_grad()
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of each network over the examples; labels (batch,) or (networks, batch)."""
        labels = y.expand(len(self.weights), -1)
        return torch.stack([self.per_example(z, mine).mean() for z, mine in zip(self._logits(x), labels, strict=True)])

    @abstractmethod
    def _logits(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of each network, of the same images."""

    def looks(self, x: Tensor, y: Tensor, rows: Sequence[int], seen: Sequence[Tensor]) -> list[Look]:
        """A look at the loss of each row asked for, as it is now; lazy ones begin with what was hard before."""
        if not self.lazy:
            losses = self.loss(x, y).split(1)
            return [Look(losses[row], losses[row].__getitem__) for row in rows]

        def look(row: int, before: Tensor, now: Sequence[Tensor]) -> Look:
            return Look(before, lambda part: self._example_losses(row, now, x[part], y[row, part]))

        return [look(row, before, self.state(row)) for row, before in zip(rows, seen, strict=True)]


class Stack(Networks):
    """Every layer once for all networks, by vmap."""

    buffers: dict[str, Any]
    template: nn.Module
    convolves: bool

    def __init__(self, models: Sequence[nn.Module], loss: Loss) -> None:
        super().__init__(models, loss)
        for model in models:
            model.train()
        self.template, self.buffers = models[0], stack_module_state(list(models))[1]
        self.convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in models[0].modules())

    def _forward(self, x: Tensor, weights: dict[str, Tensor], *, shared: bool) -> Tensor:
        stacked = vmap(lambda w, b, images: called(self.template, w | b, images), (0, 0, None if shared else 0))
        if not self.convolves:
            return stacked(weights, self.buffers, x)
        # One grouped convolution would sum in an order that depends on the number of groups: networks take turns.
        turns = []
        for i in range(len(self.weights)):
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
        parts = x.split(CHUNK) if x.is_cuda else [x]  # all networks on all images do not fit
        return torch.cat([self._forward(part, self.named(self.weights), shared=True) for part in parts], dim=1)


class Turns(Networks):
    """One network after the other, on copies.

    `gradient` takes index, network, batch, labels and what is there beside them; None: the loss's own.
    """

    models: list[nn.Module]
    statistics: list[dict[str, Tensor]]
    take: Gradient

    lazy = True

    def __init__(self, models: Sequence[nn.Module], loss: Loss, gradient: Gradient | None = None) -> None:
        super().__init__(models, loss)
        self.take = gradient or (lambda row, model, x, y: sgd(model, Objective(loss), x, y, 0.0, None))
        self.models = [copy.deepcopy(model).train().requires_grad_(True) for model in models]
        for model in models:
            model.eval()  # as a probe wants them
        self.statistics = [statistics(model) for model in self.models]
        for mine, parameter in self._beside(self.models):
            parameter.data = mine

    def gradient(self, x: Tensor, y: Tensor, *beside: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each network on its own batch, and the losses."""
        losses = []
        for row, model in enumerate(self.models):
            found, loss = self.take(row, model, x[row], y[row], *(part[row] for part in beside))
            losses.append(loss)
            for part, mine in zip(found, self.slope_of.values(), strict=True):
                mine[row].copy_(part)
        return self.slope, torch.stack(losses)

    def _logits(self, x: Tensor) -> list[Tensor]:
        found = []
        for model in self.models:
            with settled(model):
                found.append(torch.cat([model(part) for part in x.split(CHUNK)]))
        return found

    def _example_losses(self, row: int, state: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        weights, *rest = state
        tensors = self.named(weights) | dict(zip(self.statistics[row], rest, strict=True))
        with settled(self.models[row]):
            return self.per_example(called(self.models[row], tensors, x), y)
