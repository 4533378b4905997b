"""Find a data set's files on this machine, check them, or fetch them when asked to.

Nothing is downloaded unless the caller says so. Files are told apart by what they hold, packed or not: MNIST and
Fashion-MNIST are published under the same names. One that holds something else than the pinned content is passed
over while another may be found, and else named in one sentence with the remedy.
"""

import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn
from urllib.error import URLError

from sklearn.datasets import fetch_file

from attrobust import paths
from attrobust.data.sources import SOURCES, File, Source

#: What reading a damaged packed file ends in.
DAMAGE = (OSError, EOFError, lzma.LZMAError, zlib.error)


class DataError(RuntimeError):
    """A data set is not there, or is not what it should be; the message says how to mend it."""


def places(data_dir: str | Path | None = None) -> list[Path]:
    """Folders searched, in order: `data_dir`, $ATTROBUST_DATA, the checkout's data/, scikit-learn's data home."""
    home = Path(os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")).expanduser()
    return [*(Path(asked) for asked in (data_dir, os.environ.get("ATTROBUST_DATA")) if asked), paths.data, home]


def candidates(file: File, source: Source, data_dir: str | Path | None = None) -> list[Path]:
    """Files that may be `file`, packed or unpacked; in every folder those of its published name first.

    Further names that contain the published one count too ("train-images.idx3-ubyte", "train-images-idx3-ubyte (1).gz",
    "fashion-train-images-idx3-ubyte.gz"), so that data sets of the same names can share a folder.
    """
    plain = file.name.removesuffix(".gz").removesuffix(".xz")
    found = {}
    for folder in (place / name for place in places(data_dir) for name in (*source.folders, ".")):
        others = sorted(folder.glob(f"*{plain.replace('-idx', '?idx')}*"))
        found |= dict.fromkeys(path for path in (folder / file.name, folder / plain, *others) if path.is_file())
    return list(found)


def unpack(raw: bytes) -> bytes:
    """What a file holds, unpacked if its first bytes say gzip or xz; one of `DAMAGE` is raised if it is damaged."""
    if raw.startswith(b"\x1f\x8b"):
        return gzip.decompress(raw)
    return lzma.decompress(raw) if raw.startswith(b"\xfd7zXZ\0") else raw


def digests(path: Path) -> Iterator[str]:
    """SHA-256 of a file, then of what it unpacks to, if it is packed and sound."""
    raw = path.read_bytes()
    yield hashlib.sha256(raw).hexdigest()
    with suppress(*DAMAGE):
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
    content, known = path.read_bytes(), set(digests(path))
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
    """Fetch the files that are missing, verified, into a folder of `data_dir` (default: the checkout's data/).

    Nothing half-written stays, and nothing is overwritten.
    """
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
                fetch_file(url, folder=folder, sha256=file.sha256, n_retries=1, delay=0)
                break
            except (URLError, OSError, ValueError) as error:
                failures.append(f"{url} ({error})")
        else:
            remedy = f"check the network, or copy the file into {folder} by hand"
            raise DataError(f"{file.name} could not be fetched from {' or '.join(failures)}: {remedy}.")
    return folder


def not_found(name: str, missing: Iterable[File], data_dir: str | Path | None) -> str:
    """That files are missing, where they were looked for, and what to do."""
    wanted = ", ".join(f"{file.name} ({file.size / 1e6:.1f} MB)" for file in missing)
    looked = ", ".join(map(str, places(data_dir)))
    remedy = f"run `make data DATASETS={name}` to download it, or set ATTROBUST_DATA to the folder that holds it"
    return f"data set {name!r} is not on this machine: {wanted} not found in {looked}; {remedy}."
