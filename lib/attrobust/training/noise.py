"""Wrong labels on purpose."""

import torch
from jaxtyping import Int
from torch import Tensor

from attrobust import checks


def noisy_labels(
    y: Int[Tensor, " batch"], share: float, *, classes: int, generator: torch.Generator
) -> Int[Tensor, " batch"]:
    """Labels of which a share, rounded to a whole number of examples, is replaced by another class.

    Args:
        y: class indices below `classes`.
        share: of the labels that are replaced, in [0, 1].
        classes: number of classes, at least 2.
        generator: chooses the examples, and their new labels evenly among the other classes.

    Returns:
        The labels, on the device of `y`.

    Raises:
        ValueError: for a share or a number of classes outside its range.

    Example:
        >>> y = torch.zeros(10, dtype=torch.long)
        >>> int((noisy_labels(y, 0.3, classes=5, generator=torch.Generator()) != y).sum())
        3
    """
    checks.share("share", share)
    checks.count("classes", classes, least=2)
    chosen = torch.randperm(len(y), generator=generator)[: round(share * len(y))].to(y.device)
    away = torch.randint(1, classes, (len(chosen),), generator=generator).to(y.device)
    noisy = y.clone()
    noisy[chosen] = (y[chosen] + away) % classes
    return noisy
