"""What is done to the images of a batch before each update, drawn from the network's generator.

An entry of `AUGMENTATIONS` takes images, how many pixels they may move and a generator; labels stay as they are.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from attrobust.shapes import Images
from attrobust.versions import versioned

Augmentation = Callable[[Tensor, int, torch.Generator], Tensor]


@versioned(1)
def none(x: Images, pixels: int, generator: torch.Generator) -> Images:
    """The images as they are; nothing is drawn."""
    return x


@versioned(1)
def shift(x: Images, pixels: int, generator: torch.Generator) -> Images:
    """Each image moved by a whole number of pixels from -`pixels` to `pixels` along both sides; black moves in.

    Example:
        >>> moved = shift(torch.ones(1, 1, 4, 4), 1, torch.Generator().manual_seed(0))
        >>> moved.sum() in (16, 12, 9)
        True
    """
    batch, _, height, width = x.shape
    start = torch.randint(2 * pixels + 1, (2, batch, 1), generator=generator).to(x.device)
    rows, columns = (first + torch.arange(n, device=x.device) for first, n in zip(start, (height, width), strict=True))
    padded = F.pad(x, [pixels] * 4)
    image = torch.arange(batch, device=x.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


@versioned(1)
def flip(x: Images, pixels: int, generator: torch.Generator) -> Images:
    """Each image mirrored left to right with probability one half."""
    mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(mirrored[:, None, None, None], x.flip(-1), x)


AUGMENTATIONS: dict[str, Augmentation] = {"none": none, "shift": shift, "flip": flip}
