"""Dense networks side by side, forward and backward written out as batched products.

    h_0 = (x - mean) / std,    z_l = h_{l-1} W_l^T + b_l,    h_l = a(z_l)
    d_l = dL/dz_l:             dL/dW_l = d_l^T h_{l-1},      dL/db_l = sum_batch d_l,    d_{l-1} = (d_l W_l) a'(z_{l-1})

The same numbers as vmap and autograd give, up to rounding, for less than half of the time where networks are few.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from attrobust.models import MLP, Standardize
from attrobust.training.ingredients import Loss
from attrobust.training.stacks import LINE, Networks

#: Layer to what it does to a gradient, given its own gradient, what it read and what it gave.
_BACKWARD: dict[type[nn.Module], Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]] = {
    nn.ReLU: lambda layer, d, z, h: torch.ops.aten.threshold_backward(d, z, 0),
    nn.GELU: lambda layer, d, z, h: torch.ops.aten.gelu_backward(d, z, approximate=layer.approximate),
    nn.SiLU: lambda layer, d, z, h: torch.ops.aten.silu_backward(d, z),
    nn.Softplus: lambda layer, d, z, h: torch.ops.aten.softplus_backward(d, z, layer.beta, layer.threshold),
    nn.Tanh: lambda layer, d, z, h: torch.ops.aten.tanh_backward(d, h),
}

#: Weights (networks, out, in) and biases (networks, 1, out) of each layer.
Layers = list[tuple[Tensor, Tensor]]


class Dense(Networks):
    """Every dense layer as one product for all networks."""

    lazy: bool
    bends: list[tuple[nn.Module, Callable[..., Tensor]]]
    mean: Tensor
    std: Tensor
    layers: Layers
    slopes: Layers

    def __init__(self, models: Sequence[nn.Module], loss: Loss) -> None:
        super().__init__(models, loss)
        self.lazy = not self.weights.is_cuda  # there a whole look costs less than the waiting
        self.bends = [(layer, _BACKWARD[type(layer)]) for layer in models[0].layers if type(layer) in _BACKWARD]
        first = [next(layer for layer in model.layers if isinstance(layer, Standardize)) for model in models]
        self.mean, self.std = (torch.stack([getattr(one, n) for one in first])[:, None, None] for n in ("mean", "std"))
        self.layers, self.slopes = _pairs(self.named(self.weights)), _pairs(self.slope_of)

    @staticmethod
    def can(models: Sequence[nn.Module]) -> bool:
        """Whether these are dense networks whose layers are written out here."""
        known = (Standardize, nn.Flatten, nn.Linear, *_BACKWARD)
        return all(type(model) is MLP and all(type(layer) in known for layer in model.layers) for model in models)

    def _forward(self, x: Tensor, layers: Layers, mean: Tensor, std: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What each dense layer reads, and what it gives; the last are the logits."""
        read, given = [(x.flatten(-3) - mean) / std], []
        for weight, bias in layers:
            given.append(torch.baddbmm(bias, read[-1], weight.mT))
            if len(given) < len(layers):
                read.append(_each(self.bends[len(given) - 1][0], given[-1]))
        return read, given

    @torch.no_grad()
    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each network on its own batch, and the losses."""
        read, given = self._forward(x, self.layers, self.mean, self.std)
        with torch.enable_grad():
            logits = given[-1].requires_grad_()
            losses = self.per_example(logits.flatten(0, 1), y.flatten()).view(y.shape).mean(1)
            (d,) = torch.autograd.grad(losses.sum(), logits)
        for i in reversed(range(len(self.layers))):
            weight, bias = self.slopes[i]
            torch.bmm(d.mT, read[i], out=weight)
            torch.sum(d, 1, keepdim=True, out=bias)
            if i:
                backward = partial(self.bends[i - 1][1], self.bends[i - 1][0])
                d = _each(backward, torch.bmm(d, self.layers[i][0]), given[i - 1], read[i])
        return self.slope, losses.detach()

    def _logits(self, x: Tensor) -> Tensor | list[Tensor]:
        if not self.lazy:
            return self._forward(x, self.layers, self.mean, self.std)[1][-1]
        # One network at a time: where a stack's rows begin between two cache lines, some processors round otherwise.
        return [self._alone(row, weights[None], x) for row, weights in enumerate(self.weights)]

    def _alone(self, row: int, weights: Tensor, x: Tensor) -> Tensor:
        """Logits of one network with these weights, (1, all)."""
        return self._forward(x, _pairs(self.named(weights)), self.mean[[row]], self.std[[row]])[1][-1][0]

    def _example_losses(self, row: int, state: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self.per_example(self._alone(row, state[0][None], x), y)


def _each(function: Callable[..., Tensor], *stacks: Tensor) -> Tensor:
    """An elementwise function of stacks; one network at a time where its numbers do not fill whole vector registers."""
    # What is left over at the end of a tensor is rounded by other instructions: it must be every network's own end.
    if stacks[0][0].numel() % LINE == 0:
        return function(*stacks)
    return torch.stack([function(*parts) for parts in zip(*stacks, strict=True)])


def _pairs(parts: dict[str, Tensor]) -> Layers:
    """Weight and bias of each layer, the bias as a row."""
    parts = list(parts.values())
    return [(weight, bias.unsqueeze(1)) for weight, bias in zip(parts[::2], parts[1::2], strict=True)]
