"""Two maps beside each other: every similarity and distance, signed where signs count, by importance elsewhere."""

from attrobust import similarity
from attrobust.attributions.importance import Images, pixelwise
from attrobust.shapes import PerImage


def similarities(clean: Images, there: Images, *, k: int) -> dict[str, PerImage]:
    """Top-k intersection, Spearman, cosine (of the signed maps) and Pearson; 1 = alike.

    Args:
        clean: reference maps.
        there: maps that are compared with them.
        k: leading pixels of the top-k intersection, from 1 to height x width.

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
