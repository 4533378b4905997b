"""What holds on one processor holds on others: the laws of the library under another one's instructions.

Settings of torch, oneDNN and MKL emulate them: vector units stay idle, sums are taken in another order, and every
trained network gets other weights. A setting that this machine's libraries do not know is ignored.
"""

import os
import subprocess
import sys

import pytest
from attrobust import paths
from by_day import due

#: Portable kernels throughout: the farthest from a processor with wide vectors.
PORTABLE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}

#: Tests that train or take derivatives, which is where rounding grows; the runner and the notebooks train by these.
PRONE = [
    "training", "collapsed_runs", "experiments", "kernel_experiments", "theory", "trials", "curvature",
    "curvature_engine", "attributions", "attributions_attention", "attributions_cam", "attributions_propagation",
    "models", "attention", "entropy",
]  # fmt: skip
PARTS = [*(f"tests/test_{name}.py" for name in PRONE), "lib"]


@pytest.mark.slow
@pytest.mark.parametrize("slot", range(2))
@pytest.mark.timeout(5400)
def test_the_laws_hold_under_another_processors_instructions(slot):
    """A part a slot and day; all with `EVERY=1`, or by the whole suite under `ATEN_CPU_CAPABILITY=default`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    for part in due(PARTS, slot, 2):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short", "-m",
             "not slow and not browser and not gpu", str(paths.root / part)],
            cwd=paths.root, env=environment | PORTABLE, capture_output=True, text=True, timeout=850,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_the_setting_takes_hold():
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | PORTABLE, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in ("DEFAULT", "NO AVX")
