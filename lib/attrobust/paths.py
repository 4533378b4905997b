"""Where things are: absolute locations, the same from any working directory.

In a checkout the root is the folder that holds ``notebooks/`` and ``lib/``; an installed package without
a checkout falls back to the working directory.
"""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[2]

root = _checkout if (_checkout / "notebooks").is_dir() and (_checkout / "lib").is_dir() else Path.cwd()
notebooks = root / "notebooks"
figures = root / "figures"
data = root / "data"
build = root / "build"
