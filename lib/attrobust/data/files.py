"""Find a data set's files on this machine, check them, or fetch them when asked to.

Nothing is downloaded unless the caller says so. A file is read only after its SHA-256 has been compared with
the pinned one; every way it can be wrong is told in one sentence with the remedy.
"""

import hashlib
import os
from pathlib import Path
from urllib.error import URLError

from sklearn.datasets import fetch_file

from attrobust import paths
from attrobust.data.sources import File, Source


class DataError(RuntimeError):
    """A data set is not there, or is not what it should be; the message says how to mend it."""


def places(data_dir: str | Path | None = None) -> list[Path]:
    """Folders searched, in order: `data_dir`, $ATTROBUST_DATA, the checkout's data/, scikit-learn's data home."""
    asked = [Path(data_dir)] if data_dir else []
    environment = [Path(os.environ["ATTROBUST_DATA"])] if os.environ.get("ATTROBUST_DATA") else []
    home = Path(os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")).expanduser()
    return [*asked, *environment, paths.data, home]


def find(file: File, source: Source, *, data_dir: str | Path | None = None) -> Path | None:
    """First existing copy of `file`, packed or (for .gz) unpacked; None where there is none."""
    for place in places(data_dir):
        for folder in (*source.folders, "."):
            for name in (file.name, file.name.removesuffix(".gz")):
                candidate = place / folder / name
                if candidate.is_file():
                    return candidate
    return None


def locate(name: str, source: Source, *, data_dir: str | Path | None = None, verify: bool = True) -> dict[str, Path]:
    """Paths of all files of a data set, checked; an unpacked copy of a packed file has no pinned digest.

    Raises:
        DataError: if a file is missing, truncated, a placeholder, or has another digest.
    """
    found = {file.name: find(file, source, data_dir=data_dir) for file in source.files}
    missing = [file for file in source.files if found[file.name] is None]
    if missing:
        raise DataError(_not_found(name, missing, data_dir))
    for file in source.files:
        path = found[file.name]
        if verify and path.name == file.name:
            check(path, file)
    return found


def check(path: Path, file: File) -> None:
    """Compare a file with its pinned digest.

    Raises:
        DataError: if they differ, with the likely cause and the remedy.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest == file.sha256:
        return
    size = len(content)
    if content.startswith(b"version https://git-lfs"):
        cause = "it is a git-LFS pointer, not the data: run `git lfs pull`, or delete it and run `make data`"
    elif content[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        cause = "it is an HTML page, probably a download's error page: delete it and run `make data`"
    elif size < file.size:
        cause = f"it is truncated ({size:,} of {file.size:,} bytes): delete it and run `make data`"
    else:
        cause = f"its SHA-256 is {digest[:12]}..., not {file.sha256[:12]}...: delete it and run `make data`"
    raise DataError(f"{path} cannot be used because {cause}.")


def download(name: str, source: Source, *, data_dir: str | Path | None = None) -> Path:
    """Fetch the files that are missing into `data_dir` (default: the checkout's data/), verified.

    Returns:
        The folder that now holds them.

    Raises:
        DataError: if no address answers, or what comes has another digest; nothing half-written stays.
    """
    folder = (Path(data_dir) if data_dir else paths.data) / source.folders[0]
    for file in source.files:
        if find(file, source, data_dir=data_dir) is not None:
            continue
        if not file.urls:
            raise DataError(
                f"{file.name} of {name} has no download address: get cifar10 instead (`make data DATASETS=cifar10`)"
                " and cifar10_4k is cut from it."
            )
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(file, folder)
    return folder


def _fetch(file: File, folder: Path) -> None:
    failures = []
    for url in file.urls:
        try:
            fetch_file(url, folder=folder, sha256=file.sha256, n_retries=1, delay=0)
            return
        except (URLError, OSError, ValueError) as error:
            failures.append(f"{url} ({error})")
    raise DataError(
        f"{file.name} could not be fetched from {' or '.join(failures)}: check the network, or copy the file"
        f" into {folder} by hand."
    )


def _not_found(name: str, missing: list[File], data_dir: str | Path | None) -> str:
    wanted = ", ".join(f"{file.name} ({file.size / 1e6:.1f} MB)" for file in missing)
    looked = ", ".join(str(place) for place in places(data_dir))
    return (
        f"data set {name!r} is not on this machine: {wanted} not found in {looked};"
        f" run `make data DATASETS={name}` to download it, or set ATTROBUST_DATA to the folder that holds it."
    )
