"""Trainers: where a network's gradient on a batch is taken. SGD takes it where the network is.

A trainer of `TRAINERS` is a function of a network, its objective, a batch, the recipe's radius and the network's
generator; it returns the gradients of the parameters, in their order, and the mean loss without the penalty. It must
leave the parameters as found. Momentum, decay and schedule are `fit`'s, whatever the trainer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attrobust.regularizers import Penalty
from attrobust.versions import versioned


@dataclass(frozen=True)
class Objective:
    """What is made small on a batch: mean of loss + strength * penalty.

    Attributes:
        loss: from logits and labels to one number per example.
        penalty: from (model, x, y) to one number per example; None for none.
        strength: of the penalty.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    penalty: Penalty | None = None
    strength: float = 0.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The objective, live, and the mean loss without the penalty."""
        loss = self.loss(model(x), y).mean()
        if self.penalty is None:
            return loss, loss.detach()
        return loss + self.strength * self.penalty(model, x, y).mean(), loss.detach()


Trainer = Callable[[nn.Module, Objective, Tensor, Tensor, float, torch.Generator], tuple[Sequence[Tensor], Tensor]]


@versioned(1)
def sgd(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, radius: float, generator: torch.Generator | None
) -> tuple[Sequence[Tensor], Tensor]:
    """The gradient where the network is; nothing is drawn, so that no generator is needed."""
    value, loss = objective(model, x, y)
    return torch.autograd.grad(value, list(model.parameters())), loss


TRAINERS: dict[str, Trainer] = {"sgd": sgd}
