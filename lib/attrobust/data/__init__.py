"""Real images as tensors in [0, 1] on one device: digits (embedded), MNIST, Fashion-MNIST, CIFAR-10.

They are not normalised: that is the first layer of a model, so that an attack radius always means pixel units. Of
"two_digits", made of MNIST, it is known which pixels decide (see `two_digits`).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from attrobust import checks
from attrobust.data import files, two_digits
from attrobust.data.files import DataError, candidates, download, find, holds, locate, not_found, places
from attrobust.data.photographs import PHOTOGRAPHS, labelled_photographs, photographs
from attrobust.data.sources import SOURCES, fingerprint
from attrobust.shapes import Images, Labels
from attrobust.versions import versioned

__all__ = [
    "NAMES", "PHOTOGRAPHS", "DataError", "Dataset", "Examples", "available", "balanced", "classes", "download_size",
    "fetch", "fingerprint", "held_out", "image_shape", "labelled_photographs", "load", "photographs", "places",
]  # fmt: skip

NAMES = tuple(SOURCES)


class Examples(NamedTuple):
    """Images with their labels.

    Example:
        >>> Examples(torch.zeros(2, 1, 8, 8), torch.tensor([3, 5])).y.tolist()
        [3, 5]
    """

    x: Images
    y: Labels


class Dataset(NamedTuple):
    """Training and test examples with the names of the classes; `verified` is False for content that is not pinned.

    Example:
        >>> digits = load("digits", n_train=20, n_test=10)
        >>> len(digits.train.x), digits.verified
        (20, True)
    """

    name: str
    train: Examples
    test: Examples
    classes: tuple[str, ...]
    verified: bool


@versioned(1)
def load(
    name: str, *, n_train: int | None = None, n_test: int | None = None, side: int | None = None,
    data_dir: str | Path | None = None, verify: bool = True, device: str = "cpu", seed: int = 0,
) -> Dataset:  # fmt: skip
    """Load a data set, or a class-balanced subset of it, with pixels in [0, 1] (float32). Never downloads.

    `n_train` and `n_test` count the images of a subset that `seed` chooses; None takes all (of digits 1,000 and 797).
    `side` is the height and width after average pooling and must divide the original one. `data_dir` is searched before
    all other `places`; `verify=False` accepts files of the right names that hold something else, and the result then
    says `verified=False`. A DataError says what to do where files are missing or damaged.

    Example:
        >>> digits = load("digits", n_train=100, n_test=50)
        >>> digits.train.x.shape, digits.train.y.bincount().tolist()[:3]
        (torch.Size([100, 1, 8, 8]), [10, 10, 10])
    """
    source, parts = SOURCES[checks.one_of("name", name, NAMES)], []
    (train_x, train_y, test_x, test_y), verified = _read(name, data_dir, verify)
    for argument, x, y, n in (("n_train", train_x, train_y, n_train), ("n_test", test_x, test_y, n_test)):
        if x.shape[1:] != source.size or len(x) != len(y) or y.max() >= len(source.classes):
            raise DataError(f"the files of {name!r} hold images {x.shape[1:]} or labels that do not belong to it.")
        if n is not None:
            checks.count(argument, n, most=len(y))
            chosen = balanced(y, n, seed)
            x, y = x[chosen], y[chosen]
        parts.append(_tensors(x, y, source.scale, side, device))
    return Dataset(name, *parts, source.classes, verified)


def held_out(
    name: str, n: int, *, n_train: int, side: int | None = None, data_dir: str | Path | None = None,
    device: str = "cpu", seed: int = 0,
) -> Examples:  # fmt: skip
    """Validation examples: n training examples, class-balanced, that `load` with this `n_train` and `seed` leaves out.

    What is chosen by them, as the strength of a regulariser, has not seen the test images.

    Raises:
        ValueError: an unknown name, or more examples than there are.
        DataError: where the files are not here.

    Example:
        >>> x, y = held_out("digits", 50, n_train=100)
        >>> seen = load("digits", n_train=100).train.x
        >>> len(y), any(torch.equal(image, other) for image in x for other in seen)
        (50, False)
    """
    (x, y, *_), _ = _read(checks.one_of("name", name, NAMES), data_dir, True)
    checks.count("n_train", n_train, most=len(y) - 1)
    checks.count("n", n, most=len(y) - n_train)
    both, own = (balanced(y, count, seed) for count in (n_train + n, n_train))
    chosen = both[~np.isin(both, own)]
    return _tensors(x[chosen], y[chosen], SOURCES[name].scale, side, device)


def available(name: str, *, data_dir: str | Path | None = None) -> bool:
    """Whether `load(name)` would find its files, by what they hold (digits always).

    Raises:
        ValueError: an unknown name.

    Example:
        >>> available("digits")
        True
    """
    source = SOURCES[checks.one_of("name", name, NAMES)]
    if source.reader == "cifar_slice":
        try:
            return bool(_slice(name, data_dir))
        except DataError:
            return False
    return all(find(file, source, data_dir) is not None for file in source.files)


def classes(name: str) -> tuple[str, ...]:
    """What the labels of a data set stand for, in their order.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> classes("fashion_mnist")[-1]
        'ankle boot'
    """
    return SOURCES[checks.one_of("name", name, NAMES)].classes


def image_shape(name: str) -> tuple[int, int, int]:
    """Channels, height and width of a data set's images.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> image_shape("digits")
        (1, 8, 8)
    """
    return SOURCES[checks.one_of("name", name, NAMES)].size


def download_size(name: str) -> int:
    """Bytes that `fetch` would download at most.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> download_size("digits")
        0
    """
    return sum(file.size for file in SOURCES[checks.one_of("name", name, NAMES)].files)


def fetch(name: str, *, data_dir: str | Path | None = None) -> None:
    """Download the missing files of a data set, with pinned digests; a DataError if they cannot be had."""
    if not available(name, data_dir=data_dir):
        download(name, SOURCES[name], data_dir)
    load(name, data_dir=data_dir)


def _read(name: str, data_dir: str | Path | None, verify: bool) -> tuple[files.Arrays, bool]:
    """Train and test arrays, and whether their content is the pinned one."""
    source = SOURCES[name]
    if source.reader == "cifar_slice":
        return _slice(name, data_dir), True
    found = locate(name, source, data_dir, verify=verify)
    readers = {"digits": files.read_digits, "idx": files.read_idx_set, "two_digits": _two_digits}
    readers |= {"cifar_archive": files.read_cifar_archive}
    return readers[source.reader](found), verify or all(holds(found[file.name], file) for file in source.files)


def _two_digits(found: dict[str, Path]) -> files.Arrays:
    """Pairs made of the digits of each split."""
    train_x, train_y, test_x, test_y = files.read_idx_set(found)
    train_x, test_x = (two_digits.beside(x[:, 0], seed=0)[:, None] for x in (train_x, test_x))
    return train_x, train_y, test_x, test_y


def _slice(name: str, data_dir: str | Path | None) -> files.Arrays:
    """CIFAR-10's first 4,000 images, out of the first file that holds them: the whole archive, or the slice."""
    refusals = []
    for source in (SOURCES["cifar10"], SOURCES[name]):
        for path in candidates(source.files[0], source, data_dir):
            try:
                return files.read_cifar_slice(path)
            except DataError as error:
                refusals.append(error)
    raise refusals[0] if refusals else DataError(not_found(name, SOURCES[name].files, data_dir))


def balanced(y: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Places of `n` examples out of the labels `y`, class counts as equal as these allow, in a seeded order.

    Raises:
        ValueError: `n` below 0 or above the number of labels.

    Example:
        >>> y = np.array([0, 0, 0, 0, 1, 1])
        >>> np.bincount(y[balanced(y, 4, seed=0)]).tolist()
        [2, 2]
    """
    checks.count("n", n, least=0, most=len(y))
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(y))
    turn = np.empty(len(y), dtype=np.int64)
    for label in np.unique(y):
        members = shuffled[y[shuffled] == label]
        turn[members] = np.arange(len(members))
    return rng.permutation(shuffled[np.argsort(turn[shuffled], kind="stable")][:n])


def _tensors(x: np.ndarray, y: np.ndarray, scale: float, side: int | None, device: str) -> Examples:
    """Images with pixels in [0, 1], and their labels."""
    pixels = _pooled(torch.as_tensor(np.array(x), device=device).float() / scale, side)
    return Examples(pixels, torch.as_tensor(y.astype(np.int64), device=device))


def _pooled(pixels: Tensor, side: int | None) -> Tensor:
    whole = pixels.shape[-1]
    if side is None or side == whole:
        return pixels
    checks.count("side", side, most=whole)
    if whole % side:
        raise ValueError(f"side is {side}; it must divide the images' side, {whole}")
    return torch.nn.functional.avg_pool2d(pixels, whole // side)
