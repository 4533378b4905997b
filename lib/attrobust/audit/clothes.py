"""A small ViT of transformers that tells clothes apart, by softmax and with its attention swapped, and 64 pictures.

`python -c "from attrobust.audit import clothes; clothes.train_vit()"` trains both again, in a quarter of an hour on one
core, and cuts the pictures out; it needs Fashion-MNIST (`python -m attrobust data`). The swapped one starts from the
weights of the other and trains on under its own kernel.

The pictures are test images of Fashion-MNIST, as many of each class as 64 allow, unchanged: Copyright (c) 2017 Zalando
SE, under the MIT licence, whose terms are those of LICENSE (Xiao, Rasul, Vollgraf 2017, "Fashion-MNIST").
"""

import copy
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from attrobust import data, paths, swap, training
from attrobust.audit.images import Pictures
from attrobust.data.sources import SOURCES
from attrobust.experiments.measure import small_vit
from attrobust.experiments.store import load_weights, write_weights

#: The data set, how many of its test images are the pictures, and the kernel that takes softmax's place.
DATA_SET, SHOWN, KERNEL = "fashion_mnist", 64, "gaussian"

#: How the network is trained on all training images, and how it trains on under its kernel.
RECIPE = training.Recipe(step_size=0.05, batch_size=64, epochs=4, momentum=0.9, schedule="cosine", warmup_share=0.05)
TUNED = training.Recipe(step_size=0.02, batch_size=64, epochs=2, momentum=0.9, schedule="cosine", warmup_share=0.05)

#: Where weights and pictures are.
WEIGHTS, SWAPPED, PICTURES = (Path(__file__).with_name(f"{n}.safetensors") for n in ("vit", "vit_swapped", "clothes"))


def vit() -> tuple[nn.Module, Pictures]:
    """The ViT with softmax, and pictures of clothes of 28 x 28 pixels."""
    return _loaded(_network(), WEIGHTS), pictures()


def swapped() -> tuple[nn.Module, Pictures]:
    """The ViT whose rows of attention are not divided by their sum, and the same pictures."""
    return _loaded(swap.attention(_network(), KERNEL), SWAPPED), pictures()


def pictures() -> Pictures:
    """The pictures, with their labels, out of the package."""
    held, classes = load_weights(PICTURES), SOURCES[DATA_SET].classes
    names = [f"{classes[label]} {i}" for i, label in enumerate(held["y"].tolist())]
    return Pictures(held["x"].float() / 255, held["y"].long(), names, [*classes])


def train_vit() -> tuple[nn.Module, nn.Module]:
    """Train both networks, and write their weights and the pictures into the package."""
    found, model = data.load(DATA_SET, n_test=SHOWN), _network()
    training.fit([model], *found.train, RECIPE, generators=[torch.Generator().manual_seed(0)])
    other = swap.attention(copy.deepcopy(model), KERNEL)
    training.fit([other], *found.train, TUNED, generators=[torch.Generator().manual_seed(1)])
    for path, network in ((WEIGHTS, model), (SWAPPED, other)):
        write_weights(path, network)
    shown = {"x": (255 * found.test.x).round().byte(), "y": found.test.y.byte()}
    notice = {"copyright": "2017 Zalando SE, MIT licence; test images of Fashion-MNIST"}
    paths.write_bytes(PICTURES, safetensors.torch.save(shown, metadata=notice))
    return model, other


def _network() -> swap.ImageClassifier:
    """The ViT before any training, of drawn weights."""
    return small_vit(DATA_SET, "the example", seed=0, side=28, patch=4, dim=64, spread=0.1)


def _loaded(model: nn.Module, weights: Path) -> nn.Module:
    """A network with its weights, which stay."""
    model.load_state_dict(load_weights(weights))
    return model.eval().requires_grad_(False)
