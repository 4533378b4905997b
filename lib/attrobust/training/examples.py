"""What is done to training examples: labels replaced once, images moved before each update.

An entry of `AUGMENTATIONS` takes images, how many pixels they may move and the network's generator.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from attrobust import checks
from attrobust.shapes import Images, Labels
from attrobust.versions import versioned


def noisy_labels(y: Labels, share: float, *, classes: int, generator: torch.Generator) -> Labels:
    """Labels of which a share in [0, 1], rounded to whole examples, is replaced evenly by the other classes.

    Raises:
        ValueError: for a share outside its range, or fewer than two classes.

    Example:
        >>> y = torch.zeros(10, dtype=torch.long)
        >>> int((noisy_labels(y, 0.3, classes=5, generator=torch.Generator()) != y).sum())
        3
    """
    checks.share("share", share)
    checks.count("classes", classes, least=2)
    chosen = torch.randperm(len(y), generator=generator)[: round(share * len(y))].to(y.device)
    away = torch.randint(1, classes, (len(chosen),), generator=generator).to(y.device)
    noisy = y.clone()
    noisy[chosen] = (y[chosen] + away) % classes
    return noisy


@versioned(1)
def shift(x: Images, pixels: int, generator: torch.Generator) -> Images:
    """Each image moved by a whole number of pixels from -`pixels` to `pixels` along both sides; black moves in.

    Example:
        >>> shift(torch.ones(1, 1, 4, 4), 1, torch.Generator().manual_seed(0)).sum() in (16, 12, 9)
        True
    """
    batch, _, height, width = x.shape
    start = torch.randint(2 * pixels + 1, (2, batch, 1), generator=generator).to(x.device)
    rows, columns = (first + torch.arange(n, device=x.device) for first, n in zip(start, (height, width), strict=True))
    image = torch.arange(batch, device=x.device)[:, None, None]
    return F.pad(x, [pixels] * 4)[image, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


@versioned(1)
def flip(x: Images, pixels: int, generator: torch.Generator) -> Images:
    """Each image mirrored left to right with probability one half."""
    mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(mirrored[:, None, None, None], x.flip(-1), x)


Augmentation = Callable[[Tensor, int, torch.Generator], Tensor]
AUGMENTATIONS: dict[str, Augmentation | None] = {"none": None, "shift": shift, "flip": flip}
