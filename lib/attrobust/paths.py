"""Where things are: absolute locations, the same from any working directory; and how a file comes there whole.

The root is the checkout (it holds ``notebooks/`` and ``lib/``), or the working directory of an installed package.
"""

import os
from pathlib import Path

_checkout = Path(__file__).resolve().parents[2]

root = _checkout if (_checkout / "notebooks").is_dir() and (_checkout / "lib").is_dir() else Path.cwd()
notebooks, figures, data, build = (root / name for name in ("notebooks", "figures", "data", "build"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by atomic rename: readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
