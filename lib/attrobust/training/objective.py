"""What training makes small on a batch, and where its gradient is taken.

A trainer of `TRAINERS` is a function of a network, its objective, a batch, the recipe's radius and the network's
generator; it returns the gradients of the parameters, in their order, and the mean loss without the penalty, and leaves
the parameters as found. Momentum, decay and schedule are `fit`'s, whatever the trainer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust.regularizers import Penalty
from attrobust.shapes import Labels, PerImage
from attrobust.versions import versioned

Loss = Callable[[Tensor, Tensor], Tensor]


@versioned(1)
def cross_entropy(logits: Float[Tensor, "batch classes"], y: Labels, *, label_smoothing: float = 0.0) -> PerImage:
    """Cross-entropy of each example, in nats."""
    return F.cross_entropy(logits, y, reduction="none", label_smoothing=label_smoothing)


@versioned(1)
def squared(logits: Float[Tensor, "batch classes"], y: Labels, *, label_smoothing: float = 0.0) -> PerImage:
    """Half the squared distance of the logits from the one-hot label, of each example."""
    classes = logits.shape[-1]
    label = F.one_hot(y, classes).to(logits) * (1 - label_smoothing) + label_smoothing / classes
    return 0.5 * (logits - label).square().sum(-1)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "squared": squared}


@dataclass(frozen=True)
class Objective:
    """Mean of loss + strength * penalty; both give one number per example, the penalty from (model, x, y)."""

    loss: Loss
    penalty: Penalty | None = None
    strength: float = 0.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The objective, live, and the mean loss without the penalty."""
        loss = self.loss(model(x), y).mean()
        if self.penalty is None:
            return loss, loss.detach()
        return loss + self.strength * self.penalty(model, x, y).mean(), loss.detach()


@versioned(1)
def sgd(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, radius: float, generator: torch.Generator | None
) -> tuple[Sequence[Tensor], Tensor]:
    """The gradient where the network is; nothing is drawn, so that no generator is needed."""
    value, loss = objective(model, x, y)
    return torch.autograd.grad(value, list(model.parameters())), loss


TRAINERS: dict[str, Callable[..., tuple[Sequence[Tensor], Tensor]]] = {"sgd": sgd}
