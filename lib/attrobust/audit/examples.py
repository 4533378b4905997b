"""Networks and pictures to try an audit on before one's own: nothing is downloaded, and weights are read as data.

`python -c "from attrobust.audit import examples; examples.train_digits()"` trains the small network again.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from attrobust import checks, data, models, training
from attrobust.audit import clothes
from attrobust.audit.images import Pictures
from attrobust.data.photographs import PHOTOGRAPHS
from attrobust.experiments.store import load_weights, write_weights

#: How the small network is trained: on so many images, by which recipe; and where its weights are.
TRAINED, RECIPE = 1000, training.Recipe(step_size=0.03, batch_size=64, epochs=15)
WEIGHTS = Path(__file__).with_name("digits.safetensors")


def _network() -> nn.Module:
    return models.build("convnet", input_shape=(1, 8, 8), classes=10, seed=0)


def train_digits() -> nn.Module:
    """Train the small network, seconds, and write its weights into the package."""
    found, model = data.load("digits", n_train=TRAINED), _network()
    training.fit([model], *found.train, RECIPE, generators=[torch.Generator().manual_seed(0)])
    write_weights(WEIGHTS, model)
    return model


def digits() -> tuple[nn.Module, Pictures]:
    """A small convolutional network and handwritten digits of 8 x 8 pixels, test images."""
    model, found = _network(), data.load("digits", n_train=TRAINED)
    model.load_state_dict(load_weights(WEIGHTS))
    names = [f"picture {i}" for i in range(len(found.test.y))]
    return model.eval().requires_grad_(False), Pictures(*found.test, names, [*found.classes])


def photo() -> tuple[nn.Module, Pictures]:
    """EfficientNet-Lite0 and seven photographs of 224 pixels, out of the packages of the extra `photos`."""
    model, x = models.EfficientNetLite0(), data.photographs()
    words = {photograph.label: photograph.shows for photograph in PHOTOGRAPHS.values()}
    classes = [words.get(label, f"class {label}") for label in range(1000)]
    return model, Pictures(x, torch.tensor([*words]), [*PHOTOGRAPHS], classes)


#: Networks with their pictures by name.
EXAMPLES: dict[str, Callable[[], tuple[nn.Module, Pictures]]] = {
    "digits": digits, "photo": photo, "vit": clothes.vit, "vit-swapped": clothes.swapped,
}  # fmt: skip

#: Parameters of notebook 09 under which an example takes minutes, where the command is given no others.
SUITED: dict[str, dict[str, object]] = {
    "photo": {
        "n_pictures": 4, "maps": ["saliency", "grad_cam"], "radius": 4.0, "curve_radii": [4.0],
        "objectives": ["unseat"], "betas": [10.0], "batch": 1,
    },
}  # fmt: skip

#: Data sets on whose training images copies of an example are trained where none is named: where that takes seconds.
TRAINED_ON = {"digits": "digits"}


def example(name: str) -> tuple[nn.Module, Pictures]:
    """A network and its pictures by name, out of `EXAMPLES`.

    Raises:
        ValueError: a name that is not of `EXAMPLES`.

    Example:
        >>> model, pictures = example("digits")
        >>> pictures.x.shape[1:], len(pictures.y) == len(pictures.x)
        (torch.Size([1, 8, 8]), True)
    """
    return EXAMPLES[checks.one_of("name", name, EXAMPLES)]()
