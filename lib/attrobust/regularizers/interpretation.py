"""Interpretation regularization: the gradient of the label's logit is drawn towards a wanted map, and kept short.

    interpretation    direction (1 - cos(g, T)) + size |g|,    g = dz_y / dx,    T the map wanted of the example
    gradient_norm     |g|

The wanted maps are explanations of a *teacher*, with their small entries set to zero; `permuted` makes maps of the same
numbers that point nowhere.

Reference: Noack, Ahern, Dou and Li 2021, "An empirical study on the relation between network interpretability and
adversarial robustness", section 3. They take the norm of a whole batch's gradients at once, which grows with the root
of the batch: their 0.15 on MNIST, in batches of 50, is 0.15 sqrt(50) = 1.06 per example.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust import checks
from attrobust.attributions import saliency
from attrobust.models.readouts import logit
from attrobust.regularizers.input_gradient import leaf, live_gradient
from attrobust.shapes import Images, Labels, Maps, PerImage
from attrobust.versions import versioned

#: What a wanted map is an explanation by.
WANTED = ("gradient", "smooth_grad", "permuted")

#: Images that a teacher explains at once.
TOGETHER = 512


@versioned(1)
def interpretation(
    model: nn.Module, x: Images, y: Labels, *, wanted: Maps, direction: float = 3.0, size: float = 1.06
) -> PerImage:
    """Angle between the label's logit gradient and the wanted map, as 1 - cosine, and the gradient's length, weighted.

    A wanted map that is zero has no direction: 1 - cosine is then 1, without a slope. The weights of MNIST are the
    defaults.

    Raises:
        ValueError: a negative weight, or `wanted` of another shape than `x`.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
        >>> linear[1].weight.data = torch.tensor([[3.0, 4.0]])
        >>> x, wanted = torch.zeros(1, 1, 1, 2), torch.tensor([-6.0, -8.0]).view(1, 1, 1, 2)
        >>> round(interpretation(linear, x, torch.tensor([0]), wanted=wanted, size=0.0).item(), 4)  # 3 (1 - cos 180°)
        6.0
    """
    checks.at_least("direction", direction, 0)
    checks.at_least("size", size, 0)
    if wanted.shape != x.shape:
        raise ValueError(f"wanted has shape {tuple(wanted.shape)}; it must be that of x, {tuple(x.shape)}")
    slope = _slope(model, x, y)
    return direction * (1 - F.cosine_similarity(slope, wanted.flatten(1))) + size * slope.norm(dim=1)


@versioned(1)
def gradient_norm(model: nn.Module, x: Images, y: Labels) -> PerImage:
    """Euclidean length of the label's logit gradient, not squared: the part of `interpretation` that needs no map.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
        >>> linear[1].weight.data = torch.tensor([[3.0, 4.0]])
        >>> gradient_norm(linear, torch.zeros(1, 1, 1, 2), torch.tensor([0])).item()
        5.0
    """
    return _slope(model, x, y).norm(dim=1)


@versioned(1)
def wanted_maps(
    teacher: nn.Module, x: Images, y: Labels, *, kind: str, generator: torch.Generator, samples: int = 50,
    sigma: float = 0.15, threshold: float = 1.0,
) -> Maps:  # fmt: skip
    """Signed explanations of the true classes by a teacher, their entries near the mean set to zero.

    Args:
        teacher, x, y: a classifier, images with pixels in [0, 1], their true classes.
        kind: "gradient" of the label's logit; "smooth_grad", its mean over `samples` noisy images (standard deviation
            `sigma` in pixels, cut to [0, 1]) and the clean one; or "permuted", the latter with its entries in random
            order.
        generator: of the noise, then of the orders.
        threshold: entries that differ from their map's mean by at most so many of its standard deviations become 0.

    Raises:
        ValueError: an unknown `kind`, `samples` below 1, or a negative `sigma` or `threshold`.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        >>> linear[1].weight.data = torch.tensor([[4.0, 0.0, 0.0, 0.0]] * 2)
        >>> x, y = torch.zeros(1, 1, 2, 2), torch.tensor([0])
        >>> wanted_maps(linear, x, y, kind="gradient", generator=torch.Generator()).flatten().tolist()
        [4.0, 0.0, 0.0, 0.0]
    """
    checks.one_of("kind", kind, WANTED)
    checks.count("samples", samples)
    checks.at_least("sigma", sigma, 0)
    checks.at_least("threshold", threshold, 0)
    with torch.no_grad():
        maps = saliency(teacher, x, y) if kind == "gradient" else _smooth(teacher, x, y, generator, samples, sigma)
        flat = maps.flatten(1)
        away = (flat - flat.mean(1, keepdim=True)).abs() > threshold * flat.std(1, correction=0, keepdim=True)
        maps = (flat * away).view_as(maps)
        return permuted(maps, generator=generator) if kind == "permuted" else maps


def permuted(maps: Maps, *, generator: torch.Generator) -> Maps:
    """Each map with its entries, of all channels, in a random order of its own."""
    flat = maps.flatten(1)
    order = torch.rand(flat.shape, generator=generator, device=generator.device).argsort(1).to(maps.device)
    return flat.gather(1, order).view_as(maps)


def _smooth(teacher: nn.Module, x: Images, y: Labels, generator: torch.Generator, samples: int, sigma: float) -> Maps:
    """Mean gradient of the label's logit over noisy copies, cut to pixels, and the clean image."""
    found = []
    for images, labels in zip(x.split(TOGETHER), y.split(TOGETHER), strict=True):
        total = saliency(teacher, images, labels)
        for _ in range(samples):
            noise = torch.randn(images.shape, generator=generator, device=generator.device, dtype=x.dtype)
            total = total + saliency(teacher, (images + sigma * noise.to(x.device)).clamp(0, 1), labels)
        found.append(total / (samples + 1))
    return torch.cat(found)


def _slope(model: nn.Module, x: Images, y: Labels) -> Tensor:
    at = leaf(model, x)
    return live_gradient(logit(model, at, y), at).flatten(1)
