"""Two digits in one image, of which the left one decides: it is known which pixels a good explanation may point at.

Every digit is halved in size and stands in its own half of the image, at a height drawn at random. The right digit is
another image of the same split, drawn without regard to the label. Nothing in the right half tells anything of it.
"""

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

Digits = UInt8[np.ndarray, "images height width"]


def beside(x: Digits, *, seed: int) -> Digits:
    """Images of the same size, each with its own digit on the left and another image's on the right.

    Each right digit is used once. A ValueError refuses less than two images, odd sides, and other numbers than bytes.

    Example:
        >>> x = np.stack([np.full((4, 4), 40, np.uint8), np.full((4, 4), 80, np.uint8)])
        >>> pair = beside(x, seed=0)
        >>> pair.shape, sorted(set(pair[0, :, :2].ravel().tolist())), pair[:, :, 2:].max(axis=(1, 2)).tolist()
        ((2, 4, 4), [0, 40], [80, 40])
    """
    if x.ndim != 3 or x.dtype != np.uint8 or len(x) < 2:
        raise ValueError(f"x is {x.dtype} {x.shape}; it must be bytes (images, height, width), of two images or more")
    n, height, width = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"x has images of {(height, width)}; both sides must be even")
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    other = np.empty(n, dtype=int)
    other[order] = np.roll(order, 1)  # one cycle through all images: none stands beside itself
    small = x.reshape(n, height // 2, 2, width // 2, 2).mean((2, 4)).round().astype(np.uint8)
    canvas, image = np.zeros_like(x), np.arange(n)[:, None, None]
    for half, digits in enumerate((small, small[other])):
        rows = rng.integers(0, height // 2 + 1, n)[:, None, None] + np.arange(height // 2)[:, None]
        columns = half * (width // 2) + np.arange(width // 2)
        canvas[image, rows, columns] = digits
    return canvas


def deciding(height: int, width: int) -> Bool[Tensor, "height width"]:
    """The pixels that may decide: the left half.

    Example:
        >>> deciding(1, 4).int().tolist()
        [[1, 1, 0, 0]]
    """
    if width % 2:
        raise ValueError(f"width is {width}; it must be even: the middle column would belong to both digits")
    return (torch.arange(width) < width // 2).expand(height, width)
