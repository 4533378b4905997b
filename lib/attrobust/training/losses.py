"""Losses of a classifier, example by example."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Cross-entropy of each example, in nats."""
    return F.cross_entropy(logits, y, reduction="none")


def squared(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Half the squared distance of the logits from the one-hot label, of each example."""
    return 0.5 * (logits - F.one_hot(y, logits.shape[-1])).square().sum(-1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": cross_entropy, "squared": squared}
