"""From signed maps to importances, per pixel and per patch, where attention maps live."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from attrobust import checks
from attrobust.shapes import Images, Importances, Labels, Logits, Maps, Marks, OnePlane
from attrobust.versions import versioned


def pixelwise(signed: Images) -> Importances:
    """Importance of each pixel: absolute values summed over channels.

    Raises:
        ValueError: what is no floating-point batch of images.

    Example:
        >>> pixelwise(torch.tensor([[[[1.0, -2.0]], [[-3.0, 0.0]]]])).tolist()
        [[[4.0, 2.0]]]
    """
    if checks.floating("signed", signed).ndim != 4:
        raise ValueError(f"signed has shape {tuple(signed.shape)}; it must be (batch, channels, height, width)")
    return signed.abs().squeeze(1) if signed.shape[1] == 1 else signed.abs().sum(1)


def patches(signed: Images, *, patch: int) -> OnePlane:
    """Importance of each patch, a side of which must divide height and width: the mean importance of its pixels.

    Raises:
        ValueError: a `patch` that does not divide height and width.

    Example:
        >>> patches(torch.tensor([[[[1.0, -3.0, 0.0, 0.0], [0.0, 0.0, 4.0, 4.0]]]]), patch=2).tolist()
        [[[[1.0, 2.0]]]]
    """
    checks.count("patch", patch)
    checks.floating("signed", signed)
    height, width = signed.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(f"patch is {patch}; it must divide the map's height and width, {height} and {width}")
    return nn.functional.avg_pool2d(pixelwise(signed)[:, None], patch)


#: Attributions that `brings_logits` marks.
BRINGING: list[Callable[..., Any]] = []

#: Attributions that `draws_for_each` marks.
DRAWING: list[Callable[..., Any]] = []


def brings_logits(attribution: Callable) -> Callable:
    """Mark an attribution that returns (map, logits of the same forward pass) if it is called with `logits=True`.

    Example:
        >>> @brings_logits
        ... def brightness(model, x, target, *, logits=False):
        ...     return (x, model(x)) if logits else x
        >>> maps, scores = with_logits(brightness, nn.Flatten(), torch.ones(1, 1, 1, 2), torch.tensor([0]))
        >>> scores.tolist()
        [[1.0, 1.0]]
    """
    BRINGING.append(attribution)
    return attribution


def draws_for_each(attribution: Callable) -> Callable:
    """Mark a stochastic attribution whose `generator` may be a list, of one for each image.

    Example:
        >>> noisy = draws_for_each(lambda model, x, target, *, generator: x)
        >>> marked(noisy, DRAWING), marked(print, DRAWING)
        (True, False)
    """
    DRAWING.append(attribution)
    return attribution


def marked(attribution: Callable, marks: list[Callable[..., Any]]) -> bool:
    """Whether an attribution, without the options that `partial` has set, is in such a list."""
    return any(unwrapped(attribution) is known for known in marks)


@brings_logits
@versioned(1)
def on_patches(
    model: nn.Module, x: Images, target: Labels, *, attribution: Callable, patch: int, logits: bool = False
) -> OnePlane | tuple[OnePlane, Logits | None]:
    """An input attribution pooled to patches: `partial(on_patches, attribution=saliency, patch=2)` is one itself.

    Raises:
        ValueError: a `patch` that does not divide height and width.

    Example:
        >>> from attrobust.attributions import saliency
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False)), torch.full((1, 1, 4, 4), 0.5)
        >>> m = on_patches(linear, x, torch.tensor([2]), attribution=saliency, patch=2)
        >>> tuple(m.shape), torch.allclose(m.mean(), linear[1].weight[2].abs().mean())
        ((1, 1, 2, 2), True)
    """
    maps, scores = with_logits(attribution, model, x, target)
    return (patches(maps, patch=patch), scores) if logits else patches(maps, patch=patch)


@draws_for_each
def drawn_on_patches(
    model: nn.Module, x: Images, target: Labels, *, attribution: Callable, patch: int,
    generator: torch.Generator | Sequence[torch.Generator],
) -> OnePlane:  # fmt: skip
    """A stochastic input attribution pooled to patches; `generator` is one, or one for each image, as in SmoothGrad.

    Raises:
        ValueError: a list of generators for an attribution that takes one, or a `patch` that does not divide height and
            width.

    Example:
        >>> from attrobust.attributions import smooth_grad
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False)), torch.full((1, 1, 4, 4), 0.5)
        >>> how = {"attribution": partial(smooth_grad, sigma=0.1, samples=2), "generator": torch.Generator()}
        >>> drawn_on_patches(linear, x, torch.tensor([2]), patch=2, **how).shape
        torch.Size([1, 1, 2, 2])
    """
    if isinstance(generator, Sequence) and not marked(attribution, DRAWING):
        raise ValueError(f"generator is a list; {name_of(attribution)} takes one for all images")
    return patches(attribution(model, x, target, generator=generator), patch=patch)


def with_logits(attribution: Callable, model: nn.Module, x: Images, target: Labels) -> tuple[Maps, Logits | None]:
    """Maps, and the logits of the same forward pass if the attribution `brings_logits`.

    Raises:
        ValueError: an attribution that is no function.

    Example:
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)), torch.full((1, 1, 2, 2), 0.5)
        >>> maps, scores = with_logits(lambda model, x, target: x, linear, x, torch.tensor([0]))
        >>> scores is None  # an attribution that is not marked brings none
        True
    """
    if marked(checks.function("attribution", attribution), BRINGING):
        return attribution(model, x, target, logits=True)
    return attribution(model, x, target), None


def unwrapped(attribution: Callable) -> Callable:
    """An attribution without the options that `partial` has set."""
    while isinstance(attribution, partial):
        attribution = attribution.func
    return attribution


def name_of(attribution: Callable) -> str:
    """Name of an attribution, whatever it is wrapped in."""
    attribution = unwrapped(attribution)
    return getattr(attribution, "__name__", type(attribution).__name__)


def zero_maps(maps: Images) -> Marks:
    """Whether a map is zero everywhere, and hence explains nothing; the sum counts them.

    Maps that keep only a positive part can be. Cosine and correlations count such a map as unlike any other (0), its
    relative displacement is infinite, and its top k are arbitrary: leave it out there and say how many were.

    Raises:
        ValueError: maps that are not of floating-point numbers.

    Example:
        >>> zero_maps(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)).tolist()
        [True, False]
    """
    return ~(checks.floating("maps", maps) != 0).flatten(1).any(1)
