"""Laws about the Makefile: the lines it runs, with stand-ins for what they call."""

import os
import shutil
import subprocess
import sys

import pytest
from attrobust import paths

STAND_IN = '#!/bin/sh\necho "$(basename "$0") $*" >> "{calls}"\n'


@pytest.fixture(params=["its own environment", "an active one"])
def make(request, tmp_path):
    """Runs make in a folder whose name has a space and returns what it called, in order."""
    tree, calls = tmp_path / "a folder", tmp_path / "calls"
    active = request.param == "an active one"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "CONDA", "MAKE"))}
    environment |= {"VIRTUAL_ENV": str(tmp_path / "an environment")} if active else {}
    programs = (tmp_path / "an environment" if active else tree / ".venv") / "bin"
    programs.mkdir(parents=True)
    tree.mkdir(exist_ok=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(paths.root / name, tree)
    for name in ("python", "lint-imports"):
        (programs / name).write_text(STAND_IN.format(calls=calls))
        (programs / name).chmod(0o755)

    def run(*arguments):
        calls.write_text("")
        command = ["make", f"PYTHON3={sys.executable}", *arguments]
        subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True)
        return calls.read_text().splitlines()

    return run


def test_the_environment_is_built_once_in_a_folder_whose_name_has_a_space(make):
    install, fonts = make("env")
    assert install.startswith("python -m pip install")
    assert install.endswith("-c constraints.txt -e .[notebooks,test,hf,photos,cluster,site]")
    assert fonts == "python -c import matplotlib.font_manager"
    assert make("env") == []
    assert make("parameters") == ["python -m attrobust parameters"]


def test_the_suite_runs_after_lint_and_contract_for_all_notebooks_or_one(make):
    make("env")
    whole, one = make("test"), make("test", "ONLY=06")
    assert [line.split(" -q")[0] for line in whole] == [
        "python -m ruff format --check .",
        "python -m ruff check .",
        "lint-imports ",
        "python -m pytest",
    ]
    assert whole[-1].endswith("--only ")
    assert one == [*whole[:-1], whole[-1] + "06"]
    alone = f"{whole[-1]} -n 0 -m browser".split()
    everything, slow = ([line.split() for line in make(target)] for target in ("test-all", "test-slow"))
    assert everything == [*map(str.split, whole[:-1]), f"{whole[-1]} -m not browser".split(), alone]
    assert slow == [f"{whole[-1]} -m slow or in_turn".split(), alone]


def test_a_reproduction_gets_every_switch(make):
    make("env")
    (line,) = make(
        "reproduce", "PROFILE=smoke", "ONLY=03", "JOBS=2", "CLUSTER=tcp://a:1", "SHARD=1/2", "FRESH=1", "UPDATE=1"
    )
    told = "--profile smoke --only 03 --jobs 2 --cluster tcp://a:1 --shard 1/2 --fresh --update"
    assert line == f"python -m attrobust reproduce {told}"
