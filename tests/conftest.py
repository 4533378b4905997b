"""What holds in every test: shapes are checked at each call, and the global random state stays as found.

Tests run on several cores (`make test`), those marked `long` first, so that no core ends with a long one alone.
"""

import gc
import os
import shutil
from pathlib import Path

# Tiny networks lose more time than they win on several threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import by_day
import hypothesis
import jaxtyping
import numpy as np
import pytest
import shapes

# Before anything imports the package: its annotations become checks.
jaxtyping.jaxtyped = shapes.made_once
jaxtyping.install_import_hook("attrobust", "shapes.checked")

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"

hypothesis.settings.register_profile("laws", deadline=None, derandomize=True, database=None, max_examples=20)
hypothesis.settings.load_profile("laws")


def pytest_addoption(parser):
    parser.addoption("--only", default="", help="numbers of notebooks: only the tests that concern them")


def pytest_configure(config):
    by_day.began()  # before there are workers, to which the environment hands it on
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        told = f"concerns notebook {path.stem} (-m 'nb{path.stem[:2]} and not slow' leaves out what is minutes long)"
        config.addinivalue_line("markers", f"nb{path.stem[:2]}: {told}")
    if config.getoption("only"):
        chosen(config)


def chosen(config):
    """Notebooks that `--only` names, all without it."""
    from attrobust.notebook import reproduce

    try:
        return reproduce.numbered(config.getoption("only"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def put_off(items):
    """Of tests in turn, those that are not due today are marked, which leaves them out of `make test`."""
    groups = {}
    for item in items:
        if turn := item.get_closest_marker("in_turn"):
            group = turn.kwargs.get("of", item.nodeid.partition("[")[0]), turn.args[0]
            groups.setdefault(group, []).append(item)
    for (_, turns), own in groups.items():
        for item in by_day.put_off(own, turns):
            item.add_marker("another_day")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(config, items):
    import selection

    if not (config.getoption("only") or config.option.keyword):  # which ask for tests by their names
        put_off(items)
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        for stem in sorted(selection.books_of(item.path, parameters)):
            item.add_marker(f"nb{stem[:2]}")
    if not config.getoption("only"):
        return
    books, kept, left = chosen(config), [], []
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        (kept if selection.concerns(item.path, parameters, books) else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_collection_finish():
    import torch  # noqa: F401

    what_is_there_by_now_stays()


def what_is_there_by_now_stays():
    """Nor is it looked through again: up to half a second at each full collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def what_a_file_leaves_behind_stays():
    yield
    what_is_there_by_now_stays()


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


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium, which remembers what its console said and what it asked for."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium and ChromeDriver on this machine")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
                 "disable-background-networking",
                 "disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={profile}",
                 "window-size=1200,900"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(90)
    yield driver
    driver.quit()
