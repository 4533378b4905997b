"""A norm ball as a value: where an attack may go, and how it moves there.

A norm enters an attack through three small operations only: sample, steepest step, project.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attrobust import checks
from attrobust.shapes import Images


@dataclass(frozen=True)
class Ball:
    """All perturbations of an image whose norm is at most `radius`.

    Args:
        norm: "linf" (largest pixel change) or "l2" (Euclidean length over all pixels of one image).
        radius: in pixel units, where pixels span [0, 1]; at least 0.

    Raises:
        ValueError: for an unknown norm, or a radius that is negative or not finite.

    Example:
        >>> Ball("linf", 0.25).project(torch.ones(1, 1, 2, 2)).max().item()
        0.25
    """

    norm: Literal["linf", "l2"]
    radius: float

    def __post_init__(self) -> None:
        checks.one_of("norm", self.norm, ("linf", "l2"))
        checks.at_least("radius", self.radius, 0)

    def sample(self, like: Images, *, generator: torch.Generator) -> Images:
        """Draw uniformly from the ball, one perturbation for each image of `like`."""
        checks.floating("like", like)
        if self.norm == "linf":
            return (2 * _uniform(like, generator) - 1) * self.radius
        pixels = like[0].numel()
        length = _uniform(like[:, :1, :1, :1], generator) ** (1 / pixels)
        return self.steepest(_normal(like, generator)) * length * self.radius

    def boundary(self, like: Images, *, generator: torch.Generator) -> Images:
        """Draw a perturbation of full size: random signs (linf), or a random direction (l2)."""
        return self.radius * self.steepest(_normal(checks.floating("like", like), generator))

    def project(self, perturbation: Images) -> Images:
        """Return the nearest perturbation inside the ball."""
        checks.floating("perturbation", perturbation)
        if self.norm == "linf":
            return perturbation.clamp(-self.radius, self.radius)
        length = perturbation.flatten(1).norm(dim=1).clamp_min(torch.finfo(perturbation.dtype).tiny)
        return perturbation * (self.radius / length).clamp_max(1).view(-1, 1, 1, 1)

    def steepest(self, gradient: Images) -> Images:
        """Return the unit-norm step along which a linear function with this gradient grows fastest."""
        checks.floating("gradient", gradient)
        if self.norm == "linf":
            return gradient.sign()
        length = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
        return gradient / length.view(-1, 1, 1, 1)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    checks.kind("generator", generator, torch.Generator)
    return torch.rand(like.shape, dtype=like.dtype, device=generator.device, generator=generator).to(like.device)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    checks.kind("generator", generator, torch.Generator)
    return torch.randn(like.shape, dtype=like.dtype, device=generator.device, generator=generator).to(like.device)
