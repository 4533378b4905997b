"""Where things are: absolute locations, the same from any working directory; and how a file comes there whole.

The root is the checkout (it holds ``notebooks/`` and ``lib/``) of this file, or of the working directory or the folder
around it, where kernels of its notebooks start; of an installed package elsewhere it is the working directory.
"""

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

_places = Path(__file__).resolve().parents[2], Path.cwd(), Path.cwd().parent

root: Path = next((p for p in _places if (p / "notebooks").is_dir() and (p / "lib").is_dir()), Path.cwd())
notebooks: Path = root / "notebooks"
figures: Path = root / "figures"
data: Path = root / "data"
build: Path = root / "build"


#: How the name of a half written file ends, and after how many seconds it is one that nobody writes any more.
_PARTIAL, _OLD = ".partial", 3600


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by atomic rename: readers see all of it or nothing; nothing half written stays.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_bytes(Path(folder, "new", "a.txt"), b"whole")
        ...     Path(folder, "new", "a.txt").read_bytes()
        b'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{_PARTIAL}")
    try:
        partial.write_bytes(content)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # or a machine that loses power may keep the name and not what it holds
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what was left half written in a folder and those in it: what is unfinished and an hour old.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     fresh = Path(folder, ".a.txt.0.partial")
        ...     _ = fresh.write_bytes(b"half")
        ...     sweep(Path(folder))
        ...     fresh.exists()  # it may still be written
        True
    """
    for partial in folder.glob(f"**/.*{_PARTIAL}"):
        with suppress(OSError):  # another sweep was faster
            if partial.stat().st_mtime < time.time() - _OLD:
                partial.unlink()
