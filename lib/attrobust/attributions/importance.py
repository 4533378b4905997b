"""From signed maps to importances: per pixel, and per patch, where attention maps live."""

from collections.abc import Callable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attrobust import checks
from attrobust.shapes import Images
from attrobust.versions import versioned


def pixelwise(signed: Images) -> Float[Tensor, "batch height width"]:
    """Importance of each pixel: absolute values summed over channels."""
    return signed.abs().sum(1)


def patches(signed: Images, *, patch: int) -> Float[Tensor, "batch 1 rows columns"]:
    """Importance of each patch: the mean importance of its pixels.

    Args:
        signed: maps of the image's shape.
        patch: side of a patch; must divide height and width.

    Raises:
        ValueError: if `patch` does not divide them.

    Example:
        >>> import torch
        >>> patches(torch.tensor([[[[1.0, -3.0], [0.0, 0.0]]]]), patch=2).item()
        1.0
    """
    checks.count("patch", patch)
    height, width = signed.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(f"patch is {patch}; it must divide the map's height and width, {height} and {width}")
    return nn.functional.avg_pool2d(pixelwise(signed)[:, None], patch)


@versioned(1)
def on_patches(
    model: nn.Module, x: Images, target: Int[Tensor, " batch"], *, attribution: Callable, patch: int
) -> Float[Tensor, "batch 1 rows columns"]:
    """An input attribution pooled to patches: `partial(on_patches, attribution=saliency, patch=2)` is one itself."""
    return patches(attribution(model, x, target), patch=patch)


def zero_maps(maps: Images) -> Bool[Tensor, " batch"]:
    """Whether a map is zero everywhere, and hence explains nothing; the sum counts them.

    Maps that keep only a positive part can be. Cosine and correlations count such a map as unlike any other (0), its
    relative displacement is infinite, and its top k are arbitrary: leave it out there and say how many were.

    Example:
        >>> import torch
        >>> int(zero_maps(torch.tensor([0.0, 0.0, 0.0, 0.5]).view(2, 1, 1, 2)).sum())
        1
    """
    return ~(maps != 0).flatten(1).any(1)
