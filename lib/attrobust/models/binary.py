"""A classifier that decides by the sign of one logit, as one of two classes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attrobust import checks
from attrobust.models import watched
from attrobust.shapes import Images, Logits


class TwoLogits(nn.Module):
    """Logits (-z / 2, z / 2) of a network that returns one logit z for each image, of class 1 being true.

    Their softmax is the sigmoid of z, their argmax its sign, and the margin of class 1 is z: nothing else is added.

    Example:
        >>> TwoLogits(nn.Flatten())(torch.full((1, 1, 1, 1), 3.0)).tolist()
        [[-1.5, 1.5]]
    """

    original: nn.Module
    training: bool

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = checks.kind("original", original, nn.Module)
        self.training = watched.training(original)

    def forward(self, x: Images) -> Logits:
        """Both logits of each image."""
        return self._both(self.original(x), x)

    @property
    def attend(self) -> Callable:
        """`attend` of the original network, with both logits; missing where the original has none."""
        original = self.original.attend

        def attend(x: Images) -> tuple[Logits, list[Tensor]]:
            logits, maps = original(x)
            return self._both(logits, x), maps

        return attend

    def _both(self, z: Tensor, x: Images) -> Logits:
        if not isinstance(z, Tensor) or z.numel() != len(x):
            shape = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"original returned {shape}; it must return one logit for each of {len(x)} images")
        return torch.stack([-z.flatten() / 2, z.flatten() / 2], 1)
