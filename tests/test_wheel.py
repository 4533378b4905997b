"""Laws about the wheel: what is in it, and that it works in an environment and a folder of its own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml
from attrobust import __version__, paths
from attrobust.notebook import reproduce
from trees import contents

pytestmark = pytest.mark.slow

BOOK = reproduce.numbered("03")[0]


def clean():
    """The environment's variables without any that say where the library or data are."""
    hidden = ("ATTROBUST", "PYTEST", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    beside = {"JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter")}  # the templates of nbconvert
    return kept | {"OMP_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1"} | beside


def run(command, cwd):
    done = subprocess.run(command, cwd=cwd, env=clean(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built of a copy of the sources, links as they are, by what is installed here."""
    tree, dist = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("dist")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", ".ipynb_*")
    for part in ("lib", "notebooks", "tests"):
        shutil.copytree(paths.root / part, tree / part, symlinks=True, ignore=ignore)
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(paths.root / part, tree)
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(dist)]
    run([sys.executable, "-m", "pip", "wheel", "-q", *offline, str(tree)], dist)
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of a fresh environment with the wheel, and beside it what else is installed here."""
    home = tmp_path_factory.mktemp("fresh") / "env"
    run([sys.executable, "-m", "venv", "--without-pip", str(home)], home.parent)
    own = home / "bin" / "python"
    options = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    run([sys.executable, "-m", "pip", "-q", "--python", str(own), "install", *options, str(wheel)], home.parent)
    (Path(site(own)) / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return own


def site(python):
    """The folder that packages of an environment lie in."""
    return run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], "/").strip()


@pytest.fixture
def package(python):
    """The installed package, which nothing may write to."""
    folder = Path(site(python)) / "attrobust"

    def files():
        return {path: content for path, content in contents(folder).items() if "__pycache__" not in path.parts}

    before = files()
    yield folder
    assert files() == before


def test_the_wheel_holds_the_package_with_its_types_networks_and_notebook_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        book = json.loads(archive.read("attrobust/notebook/09_audit_your_model.ipynb"))
    assert {name.split("/")[0] for name in names} == {"attrobust", f"attrobust-{__version__}.dist-info"}
    sources = {path.relative_to(paths.root / "lib") for path in (paths.root / "lib" / "attrobust").rglob("*.py")}
    stored = {path.relative_to(paths.root / "lib") for path in (paths.root / "lib").rglob("*.safetensors")}
    assert len(stored) >= 4
    assert {"attrobust/py.typed", *map(str, sources | stored)} <= names
    assert book["cells"] == json.loads(reproduce.AUDIT.read_text())["cells"]


def test_it_is_imported_and_answers_from_any_folder(python, package, tmp_path):
    program = "import attrobust, attrobust.audit, attrobust.captum; print(attrobust.__file__, attrobust.__version__)"
    file, version = run([python, "-c", program], tmp_path).split()
    assert (Path(file).parent, version) == (package, __version__)
    assert "audit" in run([python, "-m", "attrobust", "--help"], tmp_path)
    assert not [*tmp_path.iterdir()]


def test_it_audits_its_own_example_into_the_folder_at_hand(python, package, tmp_path):
    quick = {"attack_steps": "2", "curve_radii": "[4]", "n_curve": "4", "maps": "[saliency]", "n_pictures": "6"}
    options = [word for name, value in quick.items() for word in ("-p", name, value)]
    run([python, "-m", "attrobust", "audit", "--example", "digits", *options], tmp_path)
    assert json.loads((tmp_path / "audit" / "report.json").read_text())["advice"]
    assert (tmp_path / "audit" / "report.html").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"audit"}


def test_it_runs_a_single_notebook_without_a_checkout(python, package, tmp_path):
    shutil.copy(BOOK, tmp_path)
    smoke = yaml.safe_load((paths.notebooks / "smoke.yaml").read_text())
    asked = {name: value for name, value in smoke.items() if name in reproduce.parameters_of(BOOK)}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(asked | {"jobs": 1}))
    how = ["-f", "small.yaml", "--no-progress-bar"]
    run([python, "-m", "papermill", *how, BOOK.name, "answer.ipynb"], tmp_path)
    out = tmp_path / "build" / BOOK.stem
    assert (out / "runs.csv").is_file() and (out / "claims.csv").is_file()
    drawn = {path.name for path in (out / "figures").glob("*.png")}
    assert drawn == {path.name for path in (paths.figures / BOOK.stem).glob("*.png")}
    assert {path.name for path in tmp_path.iterdir()} == {BOOK.name, "small.yaml", "answer.ipynb", "build"}
