"""What the slider shows: two photographs and four garments, their networks and maps, and the radii of their attacks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from attrobust import attacks, audit, data, experiments
from attrobust.experiments.store import Store
from attrobust.shapes import Attribution, Images
from torch import nn

#: Share of a map's places that lead, seed of all draws, and levels of grey of a map that is shown.
LEADING, SEED, GREYS = 0.1, 0, 16

#: The network of notebook 01, sections 2 to 9.
SMALL = experiments.Experiment(
    "fashion_mnist", step_size=0.05, batch_size=64, epochs=12, seed=0, n_train=4000, architecture="convnet",
    protocol="standard",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """Pictures of one kind: what explains them, how far and how hard they are attacked, and how they are shown."""

    network: str  # in words
    maps: tuple[str, ...]
    radii: tuple[int, ...]  # in 1/255 of the pixel range: grey levels
    effort: attacks.Effort
    every: int  # so many-th pixel is shown


_BLIND = {"draws": 0, "walk": 0}
PHOTOGRAPH = Kind(
    "EfficientNet-Lite0, 1,000 classes of ImageNet", ("saliency", "input_x_gradient", "grad_cam", "deep_lift"),
    (0, 1, 2, 3, 4, 6, 8),
    attacks.Effort(steps=30, restarts=1, objectives=("unseat",), betas=(10.0,), **_BLIND), every=2,
)  # fmt: skip
GARMENT = Kind(
    "the small convolutional network of notebook 01, 10 classes of Fashion-MNIST",
    ("saliency", "input_x_gradient", "integrated_gradients", "smooth_grad"),
    (0, 1, 2, 4, 6, 8, 12, 16),
    attacks.Effort(steps=60, objectives=("unseat", "top_k"), **_BLIND), every=1,
)  # fmt: skip

#: Pictures by name; a garment is called by its class, and is the first test image that is rightly given this class.
SUBJECTS: dict[str, Kind] = dict.fromkeys(["coffee", "cat"], PHOTOGRAPH)
SUBJECTS |= dict.fromkeys(["ankle boot", "pullover", "trouser", "coat"], GARMENT)


def credit(name: str) -> str:
    """Whose picture it is, and under which licence."""
    return data.PHOTOGRAPHS[name].credit if SUBJECTS[name] is PHOTOGRAPH else "Fashion-MNIST, Zalando SE, MIT"


def opened(name: str, kind: str, store: Store) -> tuple[nn.Module, Images, Attribution, list[str]]:
    """Network, the one picture, its map and the names of the classes."""
    if SUBJECTS[name] is PHOTOGRAPH:
        model, seven = _photo()
        x = data.photographs([name, *(other for other in ("coffee", "cat") if other != name)])
        return model, x[:1], audit.maps_of(model, x, [kind])[0][kind], seven.classes
    model, classes = experiments.trained(SMALL, store=store), [*data.classes(SMALL.dataset)]
    x, y = experiments.dataset(SMALL.dataset, None, SMALL.n_train, None, "cpu").test
    with torch.no_grad():
        right = (model(x[:200]).argmax(1) == y[:200]) & (y[:200] == [c.lower() for c in classes].index(name))
    return model, x[int(right.nonzero()[0])][None], experiments.of_pixels()[kind], classes


_photo: Callable = cache(lambda: audit.example("photo"))
