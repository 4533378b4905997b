"""Real images as tensors in [0, 1] on one device: digits (embedded), MNIST, Fashion-MNIST, CIFAR-10.

Normalisation is never applied here: it is the first layer of a model, so that an attack radius always means
pixel units. Subsets are class-balanced and seeded. Used by every notebook.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from torch import Tensor

from attrobust import checks
from attrobust.data import formats
from attrobust.data.files import DataError, candidates, download, find, holds, locate, not_found, places
from attrobust.data.sources import DIGITS_PIXELS, SOURCES, Source, fingerprint
from attrobust.versions import versioned

__all__ = [
    "NAMES",
    "DataError",
    "Dataset",
    "Examples",
    "available",
    "download_size",
    "fetch",
    "fingerprint",
    "image_shape",
    "load",
    "places",
]

NAMES = ("digits", *SOURCES)


class Examples(NamedTuple):
    """Images with their labels."""

    x: Float[Tensor, "batch channels height width"]
    y: Int[Tensor, " batch"]


class Dataset(NamedTuple):
    """Training and test examples with the names of the classes; `verified` is False for content that is not pinned."""

    name: str
    train: Examples
    test: Examples
    classes: tuple[str, ...]
    verified: bool


@versioned(1)
def load(
    name: str,
    *,
    n_train: int | None = None,
    n_test: int | None = None,
    side: int | None = None,
    data_dir: str | Path | None = None,
    verify: bool = True,
    device: str = "cpu",
    seed: int = 0,
) -> Dataset:
    """Load a data set, or a class-balanced subset of it, from this machine. Never downloads.

    Args:
        name: one of `NAMES`; "digits" ships inside scikit-learn and needs no file.
        n_train: number of training images; all if None. For digits the default split is 1,000 / 797.
        n_test: number of test images; all if None.
        side: height and width after average pooling; must divide the original side. None keeps the images.
        data_dir: folder searched before $ATTROBUST_DATA, the checkout's data/ and scikit-learn's data home.
        verify: False accepts files of the right names that hold something else; the result then says `verified=False`.
        device: where the tensors are put.
        seed: chooses the subset.

    Returns:
        A Dataset with pixels in [0, 1] (float32) and int64 labels.

    Raises:
        ValueError: for an unknown name or sizes outside what the data set holds.
        DataError: if files are missing or damaged.

    Example:
        >>> digits = load("digits", n_train=100, n_test=50)
        >>> digits.train.x.shape, digits.train.y.bincount().tolist()[:3]
        (torch.Size([100, 1, 8, 8]), [10, 10, 10])
    """
    checks.one_of("name", name, NAMES)
    arrays, classes, scale, pinned = _digits() if name == "digits" else _from_files(name, data_dir, verify)
    train_x, train_y, test_x, test_y = arrays
    parts = []
    for argument, x, y, n in (("n_train", train_x, train_y, n_train), ("n_test", test_x, test_y, n_test)):
        if n is not None:
            checks.count(argument, n, most=len(y))
            x, y = _balanced(x, y, n, seed)
        parts.append(Examples(_pixels(x, scale, side, device), torch.as_tensor(y.astype(np.int64), device=device)))
    return Dataset(name, *parts, classes, pinned)


def available(name: str, *, data_dir: str | Path | None = None) -> bool:
    """Whether `load(name)` would find its files, by what they hold (digits always)."""
    checks.one_of("name", name, NAMES)
    if name == "digits":
        return True
    if name == "cifar10_4k":
        try:
            return _slice(data_dir) is not None
        except DataError:
            return False
    return all(find(file, SOURCES[name], data_dir=data_dir) is not None for file in SOURCES[name].files)


def image_shape(name: str) -> tuple[int, int, int]:
    """Channels, height and width of a data set's images."""
    checks.one_of("name", name, NAMES)
    return (1, 8, 8) if name == "digits" else SOURCES[name].size


def download_size(name: str) -> int:
    """Bytes that `fetch` would download at most."""
    checks.one_of("name", name, NAMES)
    return 0 if name == "digits" else sum(file.size for file in SOURCES[name].files)


def fetch(name: str, *, data_dir: str | Path | None = None) -> None:
    """Download the missing files of a data set, with pinned digests.

    Raises:
        ValueError: for an unknown name.
        DataError: if they cannot be had; nothing half-written stays.
    """
    checks.one_of("name", name, NAMES)
    if not available(name, data_dir=data_dir):
        download(name, SOURCES[name], data_dir=data_dir)
    load(name, data_dir=data_dir)


def _digits() -> tuple[formats.Arrays, tuple[str, ...], float, bool]:
    bunch = load_digits()
    pixels = bunch.images.astype(np.uint8)[:, None]
    if hashlib.sha256(pixels.tobytes()).hexdigest() != DIGITS_PIXELS:
        raise DataError("scikit-learn's digits are not the pinned ones: reinstall scikit-learn.")
    labels = bunch.target.astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1000], order[1000:]
    return (pixels[train], labels[train], pixels[test], labels[test]), SOURCES["mnist"].classes, 16.0, True


def _from_files(
    name: str, data_dir: str | Path | None, verify: bool
) -> tuple[formats.Arrays, tuple[str, ...], float, bool]:
    source: Source = SOURCES[name]
    if source.reader == "cifar_slice":
        arrays, pinned = _slice(data_dir), True
    else:
        found = locate(name, source, data_dir=data_dir, verify=verify)
        arrays = {"idx": formats.read_idx_set, "cifar_archive": formats.read_cifar_archive}[source.reader](found)
        pinned = verify or all(holds(found[file.name], file) for file in source.files)
    for x, y in (arrays[:2], arrays[2:]):
        if x.shape[1:] != source.size or len(x) != len(y) or y.max() >= len(source.classes):
            raise DataError(f"the files of {name!r} hold images {x.shape[1:]} or labels that do not belong to it.")
    return arrays, source.classes, 255.0, pinned


def _slice(data_dir: str | Path | None) -> formats.Arrays:
    """CIFAR-10's first 4,000 images, out of the first file that holds them: the whole archive, or the slice."""
    sources = [SOURCES["cifar10"], SOURCES["cifar10_4k"]]
    there = [path for source in sources for path in candidates(source.files[0], source, data_dir=data_dir)]
    refusals = []
    for path in there:
        try:
            return formats.read_cifar_slice(path)
        except DataError as error:
            refusals.append(error)
    raise refusals[0] if refusals else DataError(not_found("cifar10_4k", [sources[1].files[0]], data_dir))


def _balanced(x: np.ndarray, y: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` examples with class counts as equal as the data allows, in a seeded order."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(y))
    turn = np.empty(len(y), dtype=np.int64)
    for label in np.unique(y):
        members = shuffled[y[shuffled] == label]
        turn[members] = np.arange(len(members))
    dealt = shuffled[np.argsort(turn[shuffled], kind="stable")][:n]
    chosen = rng.permutation(dealt)
    return x[chosen], y[chosen]


def _pixels(x: np.ndarray, scale: float, side: int | None, device: str) -> Tensor:
    pixels = torch.as_tensor(np.array(x), device=device).float() / scale
    if side is None or side == pixels.shape[-1]:
        return pixels
    checks.count("side", side, most=pixels.shape[-1])
    if pixels.shape[-1] % side:
        raise ValueError(f"side is {side}; it must divide the images' side, {pixels.shape[-1]}")
    return torch.nn.functional.avg_pool2d(pixels, pixels.shape[-1] // side)
