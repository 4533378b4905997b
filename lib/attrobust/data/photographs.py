"""Photographs, out of packages that carry them, as an ImageNet network sees them: seven to show, twenty to count with.

Each is read from the installed package, cut to a centred square and resized; nothing is downloaded.
"""

from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from attrobust import checks
from attrobust.shapes import Images, Labels


class Photograph(NamedTuple):
    """Where a photograph lies, what it shows, and whose it is."""

    package: str  # that holds it, as pip calls it,
    place: str  # and as Python does, with the folders below
    file: str
    label: int  # class of ImageNet-1k that fits it
    shows: str  # that class in words
    credit: str  # who made it, under which licence


_EXTRA = "pip install attrobust[photos]"
_CC_BY, _UNSTATED = "CC BY 2.0", "Nera Nesic and others, Middlebury 2014 stereo benchmark, no licence stated"
PHOTOGRAPHS: dict[str, Photograph] = {
    "cat": Photograph("scikit-image", "skimage/data", "chelsea.png", 285, "Egyptian cat", "Stefan van der Walt, CC0"),
    "coffee": Photograph("scikit-image", "skimage/data", "coffee.png", 967, "espresso", "Rachel Michetti, CC0"),
    "rocket": Photograph("scikit-image", "skimage/data", "rocket.jpg", 657, "missile", "SpaceX, public domain"),
    "motorcycle": Photograph("scikit-image", "skimage/data", "motorcycle_left.png", 665, "moped", _UNSTATED),
    "flower": Photograph("scikit-learn", "sklearn/datasets/images", "flower.jpg", 985, "daisy", f"vultilion, {_CC_BY}"),
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

    Raises:
        ImportError: with the name of the package that lacks.

    Example:
        >>> photographs(["flower", "palace"], side=32).shape
        torch.Size([2, 3, 32, 32])
    """
    checks.count("side", side)
    if not len(names):
        raise ValueError(f"names is empty; it must hold some of {', '.join(PHOTOGRAPHS)}")
    for name in names:
        checks.one_of("a name of names", name, PHOTOGRAPHS)
    return torch.stack([_square(_file(PHOTOGRAPHS[name]), side) for name in names])


def labelled_photographs(*, side: int = 224) -> tuple[Images, Labels]:
    """Twenty photographs of ImageNet that come with foolbox, cut and resized alike, and their classes of ImageNet-1k.

    They say whether a network sees photographs as it should; they belong to their photographers and are shown nowhere.
    An ImportError says if foolbox lacks.

    Example:
        >>> x, y = labelled_photographs(side=32)
        >>> tuple(x.shape), len(y)
        ((20, 3, 32, 32), 20)
    """
    checks.count("side", side)
    found = find_spec("foolbox")  # its data alone: none of its code is run
    if found is None:
        raise ImportError(f"labelled photographs come with foolbox; install it by {_EXTRA}")
    paths = sorted(Path(found.submodule_search_locations[0], "data").glob("imagenet_*_*.jpg"))
    labels = torch.tensor([int(path.stem.split("_")[2]) for path in paths])
    return torch.stack([_square(path, side) for path in paths]), labels


def _file(photograph: Photograph) -> Traversable:
    package, *folders = photograph.place.split("/")
    try:
        return resources.files(package).joinpath(*folders, photograph.file)
    except ModuleNotFoundError as error:
        raise ImportError(f"{photograph.file} comes with {photograph.package}; install it by {_EXTRA}") from error


def _square(path: Traversable, side: int) -> torch.Tensor:
    with path.open("rb") as file, Image.open(file) as opened:
        image = opened.convert("RGB")
    edge, (width, height) = min(image.size), image.size
    left, top = (width - edge) // 2, (height - edge) // 2
    square = image.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
