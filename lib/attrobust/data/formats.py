"""Read image files into uint8 arrays: idx (MNIST family) and the CIFAR-10 binary layout. No pickle."""

import hashlib
import math
import struct
import tarfile
from pathlib import Path

import numpy as np

from attrobust.data.files import DAMAGE, DataError, unpack
from attrobust.data.sources import CIFAR10_4K_RECORDS

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
RECORD = 1 + 3 * 32 * 32
_DAMAGE = (*DAMAGE, tarfile.TarError)


def read_idx_set(found: dict[str, Path]) -> Arrays:
    """Train and test images (n, channels, height, width) and labels of an MNIST-like data set."""
    train_x, train_y = (read_idx(found[f"train-{part}-ubyte.gz"]) for part in ("images-idx3", "labels-idx1"))
    test_x, test_y = (read_idx(found[f"t10k-{part}-ubyte.gz"]) for part in ("images-idx3", "labels-idx1"))
    return train_x[:, None], train_y, test_x[:, None], test_y


def read_idx(path: Path) -> np.ndarray:
    """Array of one idx file, packed with gzip or not.

    Raises:
        DataError: if the header is not idx or the length does not fit it.
    """
    raw = path.read_bytes()
    try:
        raw = unpack(raw)
    except _DAMAGE as error:
        raise DataError(f"{path} is damaged ({error}): delete it and run `make data`.") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or raw[3] not in (1, 3) or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path} is not an idx file of bytes: delete it and run `make data`.")
    axes = raw[3]
    shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
    if len(raw) - 4 - 4 * axes != math.prod(shape):
        raise DataError(
            f"{path} holds {len(raw) - 4 - 4 * axes:,} bytes where its header promises {math.prod(shape):,}:"
            " delete it and run `make data`."
        )
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def read_cifar_archive(found: dict[str, Path]) -> Arrays:
    """Train and test arrays straight out of the archive of the binary version.

    Raises:
        DataError: if the archive is damaged or holds something else.
    """
    path, batches = next(iter(found.values())), {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".bin"):
                    batches[Path(member.name).name] = archive.extractfile(member).read()
    except _DAMAGE as error:
        raise DataError(f"{path} is damaged ({error}): delete it and run `make data DATASETS=cifar10`.") from error
    wanted = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    if any(len(batches.get(name, b"")) == 0 or len(batches[name]) % RECORD for name in wanted):
        raise DataError(f"{path} does not hold CIFAR-10's six batches: delete it and run `make data DATASETS=cifar10`.")
    train = b"".join(batches[f"data_batch_{i}.bin"] for i in range(1, 6))
    return *read_cifar_records(train), *read_cifar_records(batches["test_batch.bin"])


def read_cifar_slice(path: Path) -> Arrays:
    """Records 0 to 2,999 (train) and 3,000 to 3,999 (test) of CIFAR-10's first training batch.

    Raises:
        DataError: if the file is damaged, or the pixels are not the original ones.
    """
    try:
        if path.name.endswith((".tar.gz", ".tar")):
            with tarfile.open(path) as archive:
                members = [m for m in archive if m.name.endswith("data_batch_1.bin")]
                records = archive.extractfile(members[0]).read(4000 * RECORD) if members else b""
        else:
            records = unpack(path.read_bytes())[: 4000 * RECORD]
    except _DAMAGE as error:
        raise DataError(f"{path} is damaged ({error}): delete it and run `make data DATASETS=cifar10`.") from error
    if hashlib.sha256(records).hexdigest() != CIFAR10_4K_RECORDS:
        raise DataError(
            f"{path} does not hold the original first 4,000 CIFAR-10 images (a lossy copy, perhaps):"
            " delete it and run `make data DATASETS=cifar10`."
        )
    images, labels = read_cifar_records(records)
    return images[:3000], labels[:3000], images[3000:], labels[3000:]


def read_cifar_records(records: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) and labels from the binary layout: one label byte, 3,072 pixel bytes, repeated."""
    table = np.frombuffer(records, np.uint8).reshape(-1, RECORD)
    return table[:, 1:].reshape(-1, 3, 32, 32), table[:, 0]
