"""Where things are: absolute locations, the same from any working directory.

The root is the checkout (it holds ``notebooks/`` and ``lib/``), or the working directory of an installed package.
"""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[2]

root = _checkout if (_checkout / "notebooks").is_dir() and (_checkout / "lib").is_dir() else Path.cwd()
notebooks, figures, data, build = (root / name for name in ("notebooks", "figures", "data", "build"))
