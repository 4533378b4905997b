"""What holds in every test: shapes are checked at each call, and the global random state stays as found."""

import os

# Tiny networks lose more time than they win on several threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import jaxtyping
import numpy as np
import pytest

# Before anything imports the package: its annotations become checks.
jaxtyping.install_import_hook("attrobust", "shapes.checked")

hypothesis.settings.register_profile("laws", deadline=None, derandomize=True, database=None, max_examples=20)
hypothesis.settings.load_profile("laws")


@pytest.fixture
def unchecked():
    """Shape checks off, so that a wrong argument reaches the library's own sentence."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def global_state_stays_as_found():
    """No library function may touch the global generators, the thread count or autograd's mode."""
    import torch

    def state():
        numbers = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().numpy().tobytes(), numbers[1].tobytes(), numbers[2]

    before, threads = state(), torch.get_num_threads()
    yield
    assert state() == before, "a global random generator was used"
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
