"""One number per image that a map is the gradient of: the logit, the margin, the loss."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Readout = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


def logit(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Float[Tensor, " batch"]:
    """Logit of class y: the function a saliency map is the gradient of."""
    return model(x).gather(1, y[:, None])[:, 0]


def margin(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Float[Tensor, " batch"]:
    """Logit of class y minus the largest of the others: how far the decision is from turning."""
    logits = model(x)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return logits.gather(1, y[:, None])[:, 0] - others.amax(1)


def cross_entropy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Float[Tensor, " batch"]:
    """Cross-entropy of each image."""
    return torch.nn.functional.cross_entropy(model(x), y, reduction="none")
