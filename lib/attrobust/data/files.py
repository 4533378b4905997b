"""Find a data set's files on this machine, check them, fetch them when asked to, and read them (without pickle).

Files are told apart by what they hold, packed or not: MNIST and Fashion-MNIST are published under the same names. One
that holds something else is passed over while another may be found, and else named with the remedy.
"""

import gzip
import hashlib
import io
import lzma
import math
import os
import struct
import tarfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
from sklearn.datasets import load_digits

from attrobust import paths
from attrobust.data.sources import CIFAR10_4K_RECORDS, DIGITS_PIXELS, SOURCES, File, Source

#: Bytes that a file may hold, packed or not: more than any pinned one does.
LARGEST = 1 << 28

#: Seconds that a server may be silent, and that a download may take in all beside a second for every 20 kB.
SILENCE, PATIENCE = 30, 60

#: What reading a damaged packed file ends in.
DAMAGE = (OSError, EOFError, lzma.LZMAError, zlib.error)


class DataError(RuntimeError):
    """A data set is not there, or is not what it should be; the message says how to mend it.

    Example:
        >>> str(DataError("mnist is not here; run `make data`"))
        'mnist is not here; run `make data`'
    """


def places(data_dir: str | Path | None = None) -> list[Path]:
    """Folders searched, in order: `data_dir`, $ATTROBUST_DATA, the checkout's data/, scikit-learn's data home.

    Example:
        >>> places("my_folder")[0]
        PosixPath('my_folder')
    """
    home = Path(os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")).expanduser()
    return [*(Path(asked) for asked in (data_dir, os.environ.get("ATTROBUST_DATA")) if asked), paths.data, home]


def candidates(file: File, source: Source, data_dir: str | Path | None = None) -> list[Path]:
    """Files that may be `file`, packed or unpacked; in every folder those of its published name first.

    Further names that contain the published one count too, such as "fashion-train-images.idx3-ubyte (1).gz".
    """
    plain = file.name.removesuffix(".gz").removesuffix(".xz")
    found = {}
    for folder in (place / name for place in places(data_dir) for name in (*source.folders, ".")):
        others = sorted(folder.glob(f"*{plain.replace('-idx', '?idx')}*"))
        found |= dict.fromkeys(path for path in (folder / file.name, folder / plain, *others) if path.is_file())
    return list(found)


def read(path: Path) -> bytes:
    """Bytes of a file; an OSError if they are more than any data set's file holds."""
    with path.open("rb") as file:
        return _bounded(file)


def unpack(raw: bytes) -> bytes:
    """What a file holds, unpacked if its first bytes say gzip or xz; one of `DAMAGE` is raised if it is damaged."""
    if raw.startswith(b"\x1f\x8b"):
        return _bounded(gzip.GzipFile(fileobj=io.BytesIO(raw)))
    return _bounded(lzma.LZMAFile(io.BytesIO(raw))) if raw.startswith(b"\xfd7zXZ\0") else raw


def _bounded(file: io.IOBase) -> bytes:
    content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(f"it holds more than {LARGEST:,} bytes")
    return content


def digests(path: Path) -> Iterator[str]:
    """SHA-256 of a file, then of what it unpacks to, if it is packed and sound; none of one that is too large."""
    with suppress(*DAMAGE):
        raw = read(path)
        yield hashlib.sha256(raw).hexdigest()
        if (content := unpack(raw)) is not raw:
            yield hashlib.sha256(content).hexdigest()


def holds(path: Path, file: File) -> bool:
    """Whether a file holds the pinned content of `file`: in its published packing, in another one, or unpacked."""
    return any(digest in (file.sha256, file.content) for digest in digests(path))


def find(file: File, source: Source, data_dir: str | Path | None = None) -> Path | None:
    """First copy that holds the pinned content; None where there is none."""
    return next((path for path in candidates(file, source, data_dir) if holds(path, file)), None)


def locate(name: str, source: Source, data_dir: str | Path | None = None, *, verify: bool = True) -> dict[str, Path]:
    """Paths of all files of a data set, checked; unchecked where `verify` is False and none has the pinned content."""
    found = {file: find(file, source, data_dir) for file in source.files}
    there = {file: candidates(file, source, data_dir) for file, path in found.items() if path is None}
    missing = [file for file, others in there.items() if not others]
    if missing:
        raise DataError(not_found(name, missing, data_dir))
    for file, others in there.items():
        if verify:
            refuse(name, others[0], file)
        found[file] = others[0]
    return {file.name: path for file, path in found.items()}


def refuse(name: str, path: Path, file: File) -> NoReturn:
    """Say why a file does not serve as `file` of the data set `name`, and what to do."""
    with _undamaged(path, f"delete it and run `make data DATASETS={name}`"):
        content, known = read(path), set(digests(path))
    pinned = [(f.name, other) for other, s in SOURCES.items() for f in s.files if known & {f.sha256, f.content}]
    remedy = f"run `make data DATASETS={name}`"
    if pinned:
        cause = f"it holds {pinned[0][0]} of {pinned[0][1]!r}: move it elsewhere and {remedy}"
    elif content.startswith(b"version https://git-lfs"):
        cause = f"it is a git-LFS pointer, not the data: run `git lfs pull`, or delete it and {remedy}"
    elif content[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        cause = f"it is an HTML page, probably a download's error page: delete it and {remedy}"
    elif path.name == file.name and len(content) < file.size:
        cause = f"it is truncated ({len(content):,} of {file.size:,} bytes): delete it and {remedy}"
    else:
        wanted = file.sha256 if path.name == file.name or not file.content else file.content
        digest = hashlib.sha256(content).hexdigest()
        cause = f"its SHA-256 is {digest[:12]}..., not {wanted[:12]}...: delete it and {remedy}"
    raise DataError(f"{path} cannot be used because {cause}.")


def download(name: str, source: Source, data_dir: str | Path | None = None) -> Path:
    """Fetch the missing files, verified, into a folder of `data_dir` (default: data/); nothing is overwritten."""
    folder = (Path(data_dir) if data_dir else paths.data) / source.folders[0]
    for file in source.files:
        if find(file, source, data_dir) is not None:
            continue
        if not file.urls:
            remedy = "get cifar10 instead (`make data DATASETS=cifar10`) and cifar10_4k is cut from it"
            raise DataError(f"{file.name} of {name} has no download address: {remedy}.")
        if (folder / file.name).exists():
            refuse(name, folder / file.name, file)
        folder.mkdir(parents=True, exist_ok=True)
        failures = []
        for url in file.urls:
            try:
                paths.write_bytes(folder / file.name, fetched(url, file))
                break
            except (OSError, ValueError, HTTPException) as error:
                failures.append(f"{url} ({error})")
        else:
            remedy = f"check the network, or copy the file into {folder} by hand"
            raise DataError(f"{file.name} could not be fetched from {' or '.join(failures)}: {remedy}.")
    return folder


def fetched(url: str, file: File) -> bytes:
    """Content of a file's address, by https (http from this machine alone), no longer than pinned and as pinned."""
    until, parts, left = time.monotonic() + PATIENCE + file.size / 20_000, [], file.size + 1
    _trusted(url)
    with urlopen(url, timeout=SILENCE) as answer:
        _trusted(answer.geturl())
        while left > 0 and (part := answer.read1(min(left, 1 << 16))):
            parts.append(part)
            left -= len(part)
            if time.monotonic() > until:
                raise OSError("it takes too long")
    content = b"".join(parts)
    if len(content) > file.size:
        raise OSError(f"it is longer than {file.size:,} bytes")
    if (digest := hashlib.sha256(content).hexdigest()) != file.sha256:
        raise OSError(f"its SHA-256 is {digest[:12]}..., which differs from expected {file.sha256[:12]}...")
    return content


def _trusted(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "localhost")):
        raise OSError("it is not an https address")


def not_found(name: str, missing: Iterable[File], data_dir: str | Path | None) -> str:
    """That files are missing, where they were looked for, and what to do."""
    wanted = ", ".join(f"{file.name} ({file.size / 1e6:.1f} MB)" for file in missing)
    looked = ", ".join(map(str, places(data_dir)))
    remedy = f"run `make data DATASETS={name}` to download it, or set ATTROBUST_DATA to the folder that holds it"
    return f"data set {name!r} is not on this machine: {wanted} not found in {looked}; {remedy}."


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
        raw = unpack(read(path))
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
    with _undamaged(path, _CIFAR), tarfile.open(fileobj=io.BytesIO(unpack(read(path)))) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".bin"):
                batches[Path(member.name).name] = archive.extractfile(member).read(10_000 * RECORD + 1)
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    if any(len(batches.get(name, b"")) == 0 or len(batches[name]) % RECORD for name in (*train, "test_batch.bin")):
        raise DataError(f"{path} does not hold CIFAR-10's six batches: {_CIFAR}.")
    return *_records(b"".join(batches[name] for name in train)), *_records(batches["test_batch.bin"])


def read_cifar_slice(path: Path) -> Arrays:
    """Records 0 to 2,999 (train) and 3,000 to 3,999 (test) of CIFAR-10's first training batch, exact or refused."""
    with _undamaged(path, _CIFAR):
        if path.name.endswith((".tar.gz", ".tar")):
            with tarfile.open(fileobj=io.BytesIO(unpack(read(path)))) as archive:
                members = [m for m in archive if m.name.endswith("data_batch_1.bin")]
                records = archive.extractfile(members[0]).read(4000 * RECORD) if members else b""
        else:
            records = unpack(read(path))[: 4000 * RECORD]
    if hashlib.sha256(records).hexdigest() != CIFAR10_4K_RECORDS:
        cause = "does not hold the original first 4,000 CIFAR-10 images (a lossy copy, perhaps)"
        raise DataError(f"{path} {cause}: {_CIFAR}.")
    images, labels = _records(records)
    return images[:3000], labels[:3000], images[3000:], labels[3000:]


def _records(records: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) and labels from the binary layout: one label byte, 3,072 pixel bytes, repeated."""
    table = np.frombuffer(records, np.uint8).reshape(-1, RECORD)
    return table[:, 1:].reshape(-1, 3, 32, 32), table[:, 0]
