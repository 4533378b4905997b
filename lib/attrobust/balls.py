"""A norm ball as a value: where an attack may go, and how it moves there.

A norm enters an attack through three small operations only: sample, steepest step, project.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attrobust import checks
from attrobust.shapes import Inputs


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

    def sample(self, like: Inputs, *, generator: torch.Generator) -> Inputs:
        """Draw uniformly from the ball, one perturbation for each image of `like`."""
        self._check("like", like)
        if self.norm == "linf":
            return (2 * _uniform(like, generator) - 1) * self.radius
        length = _uniform(like.flatten(1)[:, :1], generator) ** (1 / like.shape[1:].numel())
        return self.steepest(_normal(like, generator)) * length.view(-1, *(1,) * (like.ndim - 1)) * self.radius

    def boundary(self, like: Inputs, *, generator: torch.Generator) -> Inputs:
        """Draw a perturbation of full size: random signs (linf), or a random direction (l2)."""
        return self.radius * self.steepest(_normal(self._check("like", like), generator))

    def project(self, perturbation: Inputs) -> Inputs:
        """Return the nearest perturbation inside the ball."""
        self._check("perturbation", perturbation)
        if self.norm == "linf":
            return perturbation.clamp(-self.radius, self.radius)
        return (perturbation * (self.radius / _lengths(perturbation)).clamp_max(1)).to(perturbation)

    def steepest(self, gradient: Inputs) -> Inputs:
        """Return the unit-norm step along which a linear function with this gradient grows fastest."""
        self._check("gradient", gradient)
        if self.norm == "linf":
            return gradient.sign()
        return (gradient / _lengths(gradient)).to(gradient)

    def _check(self, name: str, value: Tensor) -> Tensor:
        """A length over all axes but the first needs these axes."""
        if checks.floating(name, value).ndim < 2 and self.norm == "l2":
            raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be a batch of examples, (batch, ...)")
        return value


def _lengths(examples: Inputs) -> Tensor:
    """Euclidean length of each example, beside all of its axes, however large or small it is; 1 of zeros."""
    flat = examples.flatten(1).to(torch.promote_types(examples.dtype, torch.float32))
    lengths, real = flat.norm(dim=1), torch.finfo(flat.dtype)
    plain = lengths.isfinite() & (lengths > real.tiny**0.5 / real.eps)
    if not bool(plain.all()):
        largest = torch.where(flat.any(1), flat.abs().amax(1), 1)
        lengths = torch.where(plain, lengths, (flat / largest[:, None]).norm(dim=1) * largest)
    return torch.where(lengths > 0, lengths, 1).view(-1, *(1,) * (examples.ndim - 1))


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    checks.kind("generator", generator, torch.Generator)
    return torch.rand(like.shape, dtype=like.dtype, device=generator.device, generator=generator).to(like.device)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    checks.kind("generator", generator, torch.Generator)
    return torch.randn(like.shape, dtype=like.dtype, device=generator.device, generator=generator).to(like.device)
