"""From signed maps to importances, per pixel and per patch; and two maps beside each other."""

from collections.abc import Callable

from torch import nn

from attrobust import checks, similarity
from attrobust.shapes import Images, Importances, Labels, Marks, OnePlane, PerImage


def pixelwise(signed: Images) -> Importances:
    """Importance of each pixel: absolute values summed over channels."""
    return signed.abs().sum(1)


def patches(signed: Images, *, patch: int) -> OnePlane:
    """Importance of each patch, a side of which must divide height and width: the mean importance of its pixels.

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


def on_patches(model: nn.Module, x: Images, target: Labels, *, attribution: Callable, patch: int) -> OnePlane:
    """An input attribution pooled to patches: `partial(on_patches, attribution=saliency, patch=2)` is one itself."""
    return patches(attribution(model, x, target), patch=patch)


def zero_maps(maps: Images) -> Marks:
    """Whether a map is zero everywhere, and hence explains nothing; the sum counts them.

    Maps that keep only a positive part can be. Cosine and correlations count such a map as unlike any other (0), its
    relative displacement is infinite, and its top k are arbitrary: leave it out there and say how many were.

    Example:
        >>> import torch
        >>> int(zero_maps(torch.tensor([0.0, 0.0, 0.0, 0.5]).view(2, 1, 1, 2)).sum())
        1
    """
    return ~(maps != 0).flatten(1).any(1)


def similarities(clean: Images, there: Images, *, k: int) -> dict[str, PerImage]:
    """Top-k intersection, Spearman, cosine (of the signed maps) and Pearson; 1 = alike.

    Example:
        >>> import torch
        >>> a = torch.rand(2, 1, 3, 3)
        >>> similarities(a, 2 * a, k=2)["top_k"].tolist()
        [1.0, 1.0]
    """
    a, b = pixelwise(clean), pixelwise(there)
    return {
        "top_k": similarity.topk_intersection(a, b, k=k),
        "spearman": similarity.spearman(a, b),
        "cosine": similarity.cosine(clean, there),
        "pearson": similarity.pearson(a, b),
    }


def distances(clean: Images, there: Images) -> dict[str, PerImage]:
    """How far a map moved, absolutely and relatively, and its centre in pixels; 0 = not at all."""
    return {
        "displacement": similarity.displacement(clean, there),
        "relative_displacement": similarity.relative_displacement(clean, there),
        "center_shift": similarity.center_shift(pixelwise(clean), pixelwise(there)),
    }
