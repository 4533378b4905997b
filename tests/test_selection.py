"""Laws about which tests concern a notebook."""

import json
import subprocess
import sys

import pytest
import selection
from attrobust import paths
from attrobust.notebook import reproduce


def test_every_way_to_import_a_module_is_seen_anywhere_in_a_source():
    source = """
import torch, attrobust.claims
from attrobust import data, models as m
from attrobust.theory.links import slope

def later():
    from attrobust.rows import Rows
    from other import attacks
"""
    assert selection.rooms(source) == {"claims", "data", "models", "theory", "rows"}


def test_a_notebook_has_the_rooms_of_all_its_cells(tmp_path):
    cells = [("code", ["from attrobust import data\n", "x = 1"]), ("markdown", ["from attrobust import figures"])]
    cells += [("code", ["from attrobust import claims"])]
    book = {"cells": [{"cell_type": kind, "source": source} for kind, source in cells]}
    (tmp_path / "11_new.ipynb").write_text(json.dumps(book))
    assert selection.rooms_of_notebook(tmp_path / "11_new.ipynb") == {"data", "claims"}


@pytest.fixture
def chosen():
    return reproduce.numbered("06")


def test_a_test_that_takes_a_notebook_concerns_that_one_alone(chosen):
    other, (own,) = reproduce.numbered("03")[0], chosen
    file = paths.root / "tests" / "test_notebooks.py"
    assert selection.concerns(file, {"path": own}, chosen)
    assert selection.concerns(file, {"book": own.stem, "name": "seeds"}, chosen)
    assert not selection.concerns(file, {"path": other}, chosen)
    assert not selection.concerns(file, {"book": other.stem}, chosen)
    assert selection.concerns(file, {"path": other}, [other, own])


def test_any_other_test_concerns_the_notebooks_that_import_what_it_imports(chosen):
    rooms = selection.rooms_of_notebook(chosen[0])
    for file in (paths.root / "tests").glob("test_*.py"):
        assert selection.concerns(file, {"radius": 8}, chosen) == bool(selection.rooms(file.read_text()) & rooms)
    for file in (paths.root / "lib" / "attrobust").rglob("*.py"):
        room = file.relative_to(paths.root / "lib" / "attrobust").parts[0].removesuffix(".py")
        assert selection.concerns(file, {}, chosen) == (room in rooms)


def collected(*arguments):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    return subprocess.run(command, cwd=paths.root, capture_output=True, text=True)


def test_a_notebook_that_is_not_there_is_refused_in_one_sentence():
    done = collected("--only", "99", "tests/test_selection.py")
    numbers = ", ".join(path.stem[:2] for path in reproduce.numbered())
    assert done.returncode == 4
    assert done.stderr.strip() == f"ERROR: only is '99'; it must be one of {numbers}"


def test_the_tests_of_one_notebook_are_its_own_and_those_of_the_modules_it_imports(chosen):
    files = ["tests/test_similarity.py", "tests/test_entropy.py", "tests/test_notebooks.py"]
    files += ["lib/attrobust/faithfulness.py", "lib/attrobust/theory/entropy.py"]
    names = [name for name in collected("--only", "06", *files).stdout.splitlines() if "::" in name]
    seen = {name.split("::")[0] for name in names}
    assert {"tests/test_entropy.py", "tests/test_notebooks.py", "lib/attrobust/theory/entropy.py"} <= seen
    assert not seen & {"tests/test_similarity.py", "lib/attrobust/faithfulness.py"}
    for kind in ("nbval", "smoke_profile", "parameters_stand"):
        assert any(kind in name and chosen[0].stem in name for name in names), kind
    marked = collected("-m", "nb06 and not slow and not browser and not gpu", *files).stdout.splitlines()
    assert [name for name in marked if "::" in name] == names
    for path in reproduce.numbered():
        assert path in chosen or not any(path.stem in name for name in names)


def test_every_notebook_has_a_marker_that_is_announced(request):
    announced = {line.split(":")[0]: line for line in request.config.getini("markers")}
    for path in reproduce.numbered():
        assert path.stem in announced[f"nb{path.stem[:2]}"]
    assert [*filter(request.node.get_closest_marker, announced)] == [
        f"nb{stem[:2]}" for stem in sorted(selection.books_of(request.node.path, {}))
    ]
