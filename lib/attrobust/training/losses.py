"""Losses of a classifier, example by example."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from attrobust.versions import versioned


@versioned(1)
def cross_entropy(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"], *, label_smoothing: float = 0.0
) -> Float[Tensor, " batch"]:
    """Cross-entropy of each example, in nats."""
    return F.cross_entropy(logits, y, reduction="none", label_smoothing=label_smoothing)


@versioned(1)
def squared(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"], *, label_smoothing: float = 0.0
) -> Float[Tensor, " batch"]:
    """Half the squared distance of the logits from the one-hot label, of each example."""
    classes = logits.shape[-1]
    label = F.one_hot(y, classes).to(logits) * (1 - label_smoothing) + label_smoothing / classes
    return 0.5 * (logits - label).square().sum(-1)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "squared": squared}


def smoothed(name: str, label_smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of `LOSSES` against labels of which a share is spread evenly over all classes.

    Reference: Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision", section 7.
    """
    loss = LOSSES[name]
    if not label_smoothing:
        return loss
    return lambda logits, y: loss(logits, y, label_smoothing=label_smoothing)
