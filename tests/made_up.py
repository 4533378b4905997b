"""Data sets of made-up pictures, in a copied tree, in the formats and sizes of the real ones: ten blurred patterns.

They stand for files that a machine may not have, where it matters that something runs, not what it finds.
"""

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
from attrobust.data.sources import SOURCES

TRAIN, TEST = 1000, 500


def data_sets(tree, folder, names=("mnist", "fashion_mnist", "cifar10")):
    """Put data sets of these names into a folder, and have the tree's table of digests know them."""
    table, draw = tree / "lib" / "attrobust" / "data" / "sources.py", np.random.default_rng(0)
    text = table.read_text()
    for name in names:
        source = SOURCES[name]
        patterns = draw.integers(0, 256, (10, *source.size))
        parts = [_examples(patterns, n, draw) for n in (TRAIN, TEST)]
        for file, content in zip(source.files, (_archive if name == "cifar10" else _idx)(parts), strict=True):
            packed = gzip.compress(content, mtime=0)
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / file.name).write_bytes(packed)
            text = text.replace(file.sha256, hashlib.sha256(packed).hexdigest())
            text = text.replace(file.content, hashlib.sha256(content).hexdigest()) if file.content else text
    table.write_text(text)


def idx(array):
    """An array of bytes as a file of MNIST's format, unpacked."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def _examples(patterns, n, draw):
    labels = np.arange(n) % 10
    noise = draw.integers(0, 256, (n, *patterns.shape[1:]))
    return (0.6 * patterns[labels] + 0.4 * noise).astype(np.uint8), labels.astype(np.uint8)


def _idx(parts):
    for pictures, labels in parts:
        yield from (idx(pictures[:, 0]), idx(labels))


def _archive(parts):
    train, test = (
        np.concatenate([labels[:, None], pictures.reshape(len(labels), -1)], axis=1) for pictures, labels in parts
    )
    batches = {f"data_batch_{i + 1}.bin": batch for i, batch in enumerate(np.split(train, 5))} | {
        "test_batch.bin": test
    }
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, batch in batches.items():
            told = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            told.size = batch.size
            archive.addfile(told, io.BytesIO(batch.astype(np.uint8).tobytes()))
    yield file.getvalue()
