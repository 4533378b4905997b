"""A law about types: whoever writes against the library is told the type of everything that it shows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from attrobust import paths

pytestmark = pytest.mark.slow


def unknown(package, cwd, folder):
    """How many symbols a typed package shows, and those whose type a checker does not know or has to guess."""
    command = [sys.executable, "-m", "basedpyright", "--verifytypes", package, "--ignoreexternal", "--outputjson"]
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where it looks for packages
    environment = os.environ | {"PYTHONPATH": str(folder), "PATH": beside}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    found = json.loads(done.stdout)["typeCompleteness"]
    counts = found["exportedSymbolCounts"]
    guessed = [
        s["name"] for s in found["symbols"] if s["isExported"] and (s["isTypeAmbiguous"] or not s["isTypeKnown"])
    ]
    assert len(guessed) == counts["withAmbiguousType"] + counts["withUnknownType"]
    return sum(counts.values()), guessed


def test_the_type_of_everything_public_is_known(tmp_path):
    many, guessed = unknown("attrobust", tmp_path, paths.root / "lib")
    assert many > 2000
    assert guessed == []


def test_a_type_that_lacks_is_seen(tmp_path):
    package = tmp_path / "planted"
    package.mkdir()
    (package / "py.typed").touch()
    (package / "__init__.py").write_text("def told(x: int) -> int:\n    return x\n\n\ndef lacks(x):\n    return x\n")
    assert unknown("planted", tmp_path, tmp_path) == (2, ["planted.lacks"])
