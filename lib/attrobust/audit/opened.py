"""What is to be audited, by its names: a network and pictures that fit each other, and images to train copies on."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from attrobust import checks, data
from attrobust.audit import examples
from attrobust.audit.images import Pictures, load_images
from attrobust.audit.model import Classifier, check_classes, load_model
from attrobust.models.readouts import predictions
from attrobust.precision import whole_products

#: How the name of an example begins.
EXAMPLE = "example:"


class Opened(NamedTuple):
    """A classifier in eval mode and its pictures, on one device.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 1, 1, 2)
        >>> Opened(nn.Flatten(), Pictures(x, torch.tensor([0, 0]), ["a", "b"], None), "").accuracy
        0.5
    """

    model: nn.Module
    pictures: Pictures
    named: str  # of an example, whose weights say all of it; else ""
    training: Pictures | None = None  # labelled images to train copies on, if there are any

    @property
    def accuracy(self) -> float:
        """Share of pictures that are classified rightly; NaN without labels."""
        x, y = self.pictures.x, self.pictures.y
        return float("nan") if y is None else float((predictions(self.model, x) == y).double().mean())


@whole_products()
def opened(
    model: str, *, pictures: str = "", weights: str = "", n: int = 256, size: int = 0, channels: int = 0,
    mean: Sequence[float] = (), std: Sequence[float] = (), device: str = "cpu", seed: int = 0,
    train: str = "", n_train: int = 1000,
) -> Opened:  # fmt: skip
    """Load a network and pictures, and see that they fit.

    Args:
        model, weights: as in `load_model`; or "example:" and a name out of `examples.EXAMPLES`.
        pictures, n, seed: as in `load_images`; "" takes those of the example.
        size, channels: of the pictures; 0 leaves them as they are.
        mean, std: one number a channel, which the network expects taken off and divided by; none for a network that
            takes pixels in [0, 1].
        device: "cpu" or "cuda".
        train: images with labels, as `pictures`, to train copies on, at most `n_train`; "" takes those that an example
            has learnt from, where training takes seconds.

    Raises:
        ValueError: for what cannot be loaded, for a network and pictures that do not fit, and for a `mean` and `std`
            that are no numbers, or stand beside those of a folder of transformers.

    Example:
        >>> found = opened("example:digits", n=20)
        >>> found.pictures.x.shape
        torch.Size([20, 1, 8, 8])
    """
    checks.count("n", n, least=2)
    if len(mean) != len(std):
        raise ValueError(f"mean has {len(mean)} numbers and std {len(std)}; each needs one a channel, or none")
    mean, std = [checks.number("mean", value) for value in mean], [checks.positive("std", value) for value in std]
    of_example = model.startswith(EXAMPLE)
    if of_example:
        if weights:
            raise ValueError(f"weights is {weights!r} beside {model!r}; an example has its own")
        network, own = examples.example(model.removeprefix(EXAMPLE))
    elif not pictures:
        raise ValueError("pictures is ''; it must name a file .npz, a folder of pictures, or a data set, to audit on")
    else:
        network, own = load_model(model, weights=weights), None
        if len(mean) and len(network.mean):
            beside = f"beside that of preprocessor_config.json, {network.mean.flatten().tolist()}"
            raise ValueError(f"mean is {checks.short(mean)}, {beside}; pixels are standardised once, leave one out")
    if len(mean):
        network = Classifier(network, mean=mean, std=std)
    how = {"size": size or None, "channels": channels or None}
    shown = load_images(pictures, n=n, seed=seed, **how) if pictures else _first(own, n, seed)
    if checks.one_of("device", device, ("cpu", "cuda")) == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', of which torch finds none on this machine; take 'cpu'")
    network = network.to(device).eval().requires_grad_(False)
    shown = _fitting(network, shown, device)
    named, training = model if of_example and not len(mean) else "", None
    train = train or (examples.TRAINED_ON.get(model.removeprefix(EXAMPLE), "") if of_example else "")
    if train:
        training = _fitting(network, load_images(train, n=n_train, seed=seed, train=True, **how), device)
        if training.y is None or (shown.classes and training.classes and shown.classes != training.classes):
            what = "pictures of other classes than `pictures`" if training.classes else "pictures without labels"
            raise ValueError(f"train is {train!r}, {what}; it must hold one folder per class, or `y`")
    return Opened(network, shown, named, training)


def _fitting(network: nn.Module, pictures: Pictures, device: str) -> Pictures:
    """Pictures on a device, on which the network runs."""
    y = None if pictures.y is None else pictures.y.to(device)
    pictures = pictures._replace(x=pictures.x.to(device), y=y)
    check_classes(network, pictures.x, y)
    return pictures


def _first(own: Pictures, n: int, seed: int) -> Pictures:
    """At most n pictures of an example, class-balanced where there are as many."""
    if n >= len(own.x):
        return own
    chosen = torch.from_numpy(data.balanced(own.y.numpy(), n, seed).copy())
    return Pictures(own.x[chosen], own.y[chosen], [own.names[i] for i in chosen.tolist()], own.classes)
