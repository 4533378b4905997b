"""Read image files into uint8 arrays: idx (MNIST family) and the CIFAR-10 binary layout. No pickle."""

import hashlib
import math
import struct
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from attrobust.data.files import DAMAGE, DataError, unpack
from attrobust.data.sources import CIFAR10_4K_RECORDS, DIGITS_PIXELS

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
RECORD = 1 + 3 * 32 * 32
_IDX, _CIFAR = "delete it and run `make data`", "delete it and run `make data DATASETS=cifar10`"


@contextmanager
def _undamaged(path: Path, remedy: str) -> Iterator[None]:
    """Turn what reading a damaged file ends in into one sentence."""
    try:
        yield
    except (*DAMAGE, tarfile.TarError) as error:
        raise DataError(f"{path} is damaged ({error}): {remedy}.") from error


def read_digits(found: dict[str, Path]) -> Arrays:
    """Scikit-learn's own digits, 1,000 for training and 797 for testing; no file is read."""
    bunch = load_digits()
    pixels, labels = bunch.images.astype(np.uint8)[:, None], bunch.target.astype(np.uint8)
    if hashlib.sha256(pixels.tobytes()).hexdigest() != DIGITS_PIXELS:
        raise DataError("scikit-learn's digits are not the pinned ones: reinstall scikit-learn.")
    train, test = np.split(np.random.default_rng(0).permutation(len(labels)), [1000])
    return pixels[train], labels[train], pixels[test], labels[test]


def read_idx_set(found: dict[str, Path]) -> Arrays:
    """Train and test images (n, channels, height, width) and labels of an MNIST-like data set."""
    train_x, train_y, test_x, test_y = (_read_idx(path) for path in found.values())
    return train_x[:, None], train_y, test_x[:, None], test_y


def _read_idx(path: Path) -> np.ndarray:
    """Array of one idx file, packed with gzip or not."""
    with _undamaged(path, _IDX):
        raw = unpack(path.read_bytes())
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or raw[3] not in (1, 3) or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path} is not an idx file of bytes: {_IDX}.")
    start = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        promised = f"holds {len(raw) - start:,} bytes where its header promises {math.prod(shape):,}"
        raise DataError(f"{path} {promised}: {_IDX}.")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def read_cifar_archive(found: dict[str, Path]) -> Arrays:
    """Train and test arrays straight out of the archive of the binary version."""
    path, batches = next(iter(found.values())), {}
    with _undamaged(path, _CIFAR), tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".bin"):
                batches[Path(member.name).name] = archive.extractfile(member).read()
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    if any(len(batches.get(name, b"")) == 0 or len(batches[name]) % RECORD for name in (*train, "test_batch.bin")):
        raise DataError(f"{path} does not hold CIFAR-10's six batches: {_CIFAR}.")
    return *_records(b"".join(batches[name] for name in train)), *_records(batches["test_batch.bin"])


def read_cifar_slice(path: Path) -> Arrays:
    """Records 0 to 2,999 (train) and 3,000 to 3,999 (test) of CIFAR-10's first training batch, exact or refused."""
    with _undamaged(path, _CIFAR):
        if path.name.endswith((".tar.gz", ".tar")):
            with tarfile.open(path) as archive:
                members = [m for m in archive if m.name.endswith("data_batch_1.bin")]
                records = archive.extractfile(members[0]).read(4000 * RECORD) if members else b""
        else:
            records = unpack(path.read_bytes())[: 4000 * RECORD]
    if hashlib.sha256(records).hexdigest() != CIFAR10_4K_RECORDS:
        cause = "does not hold the original first 4,000 CIFAR-10 images (a lossy copy, perhaps)"
        raise DataError(f"{path} {cause}: {_CIFAR}.")
    images, labels = _records(records)
    return images[:3000], labels[:3000], images[3000:], labels[3000:]


def _records(records: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) and labels from the binary layout: one label byte, 3,072 pixel bytes, repeated."""
    table = np.frombuffer(records, np.uint8).reshape(-1, RECORD)
    return table[:, 1:].reshape(-1, 3, 32, 32), table[:, 0]
