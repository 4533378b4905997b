"""Where things are: absolute locations, the same from any working directory; and how a file comes there whole.

The root is the checkout (it holds ``notebooks/`` and ``lib/``), or the working directory of an installed package.
"""

import os
import platform
from pathlib import Path

import psutil

_checkout = Path(__file__).resolve().parents[2]

root = _checkout if (_checkout / "notebooks").is_dir() and (_checkout / "lib").is_dir() else Path.cwd()
notebooks, figures, data, build = (root / name for name in ("notebooks", "figures", "data", "build"))


#: What stands in the name of a half written file between that of the file and the number of the process.
_MARK = f".{platform.node()}."


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by atomic rename: readers see all of it or nothing; nothing half written stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{_MARK}{os.getpid()}")
    try:
        partial.write_bytes(content)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # or a machine that loses power may keep the name and not what it holds
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what processes of this machine that are gone have left half written in a folder and those in it."""
    for partial in folder.glob(f"**/.*{_MARK}*"):
        number = partial.name.rpartition(".")[2]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            partial.unlink(missing_ok=True)
