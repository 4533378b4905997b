"""Seven photographs, out of packages that carry them, as an ImageNet network sees them.

Each is read from the installed package, cut to a centred square and resized; nothing is downloaded.
"""

from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from attrobust import checks
from attrobust.shapes import Images


class Photograph(NamedTuple):
    """Where a photograph lies, what it shows, and whose it is."""

    package: str  # that holds it, as pip calls it,
    place: str  # and as Python does, with the folders below
    file: str
    label: int  # class of ImageNet-1k that fits it
    shows: str  # that class in words
    credit: str  # who made it, under which licence


_CC_BY, _UNSTATED = "CC BY 2.0", "Nera Nesic and others, Middlebury 2014 stereo benchmark, no licence stated"
PHOTOGRAPHS: dict[str, Photograph] = {
    "cat": Photograph(
        "scikit-image", "skimage/data", "chelsea.png", 285, "Egyptian cat", "Stefan van der Walt, CC0"
    ),
    "coffee": Photograph(
        "scikit-image", "skimage/data", "coffee.png", 967, "espresso", "Rachel Michetti, CC0"
    ),
    "rocket": Photograph(
        "scikit-image", "skimage/data", "rocket.jpg", 657, "missile", "SpaceX, public domain"
    ),
    "motorcycle": Photograph(
        "scikit-image", "skimage/data", "motorcycle_left.png", 665, "moped", _UNSTATED
    ),
    "flower": Photograph(
        "scikit-learn", "sklearn/datasets/images", "flower.jpg", 985, "daisy", f"vultilion, {_CC_BY}"
    ),
    "palace": Photograph(
        "scikit-learn", "sklearn/datasets/images", "china.jpg", 698, "palace", f"danielbuechele, {_CC_BY}"
    ),
    "uniform": Photograph(
        "matplotlib", "matplotlib/mpl-data/sample_data", "grace_hopper.jpg", 652, "military uniform",
        "U.S. Navy, public domain",
    ),
}  # fmt: skip


def photographs(names: Sequence[str] = tuple(PHOTOGRAPHS), *, side: int = 224) -> Images:
    """Photographs by name, each a centred square of so many pixels a side, in [0, 1] (float32).

    An ImportError names the package that lacks. Example:
        >>> photographs(["flower", "palace"], side=32).shape
        torch.Size([2, 3, 32, 32])
    """
    checks.count("side", side)
    if not len(names):
        raise ValueError(f"names is empty; it must hold some of {', '.join(PHOTOGRAPHS)}")
    for name in names:
        checks.one_of("a name of names", name, PHOTOGRAPHS)
    return torch.stack([_square(PHOTOGRAPHS[name], side) for name in names])


def _square(photograph: Photograph, side: int) -> torch.Tensor:
    package, *folders = photograph.place.split("/")
    try:
        path = resources.files(package).joinpath(*folders, photograph.file)
    except ModuleNotFoundError as error:
        extra = "pip install attrobust[photos]"
        raise ImportError(f"{photograph.file} comes with {photograph.package}; install it by {extra}") from error
    with path.open("rb") as file, Image.open(file) as opened:
        image = opened.convert("RGB")
    edge, (width, height) = min(image.size), image.size
    left, top = (width - edge) // 2, (height - edge) // 2
    square = image.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
