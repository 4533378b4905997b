"""Copies of the tree for tests that run notebooks or break evidence."""

import os
import shutil
import subprocess

from attrobust import paths


def copy_tree(target, *, only=None, parts=("lib", "notebooks", "figures")):
    """A copy of what the notebooks need, or of other folders and files, in which anything may be broken.

    Bytecode comes with it, but for what another process is just writing: it stays good for files that nobody changes.
    """
    ignore = shutil.ignore_patterns("*.pyc.*", "*.egg-info", ".ipynb_*")
    for part in parts:
        if (paths.root / part).is_dir():
            shutil.copytree(paths.root / part, target / part, ignore=ignore)
        else:
            shutil.copy(paths.root / part, target / part)
    for book in (target / "notebooks").glob("*.ipynb"):
        if only and book.stem != only:
            book.unlink()
    return target


def run(command, cwd, *, check=False, data=None):
    """Run in a copied tree: its own library comes first, the checkout's data folder is out of sight."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ATTROBUST", "PYTEST"))}
    environment |= {"PYTHONPATH": str(cwd / "lib"), "OMP_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
    environment |= {"ATTROBUST_DATA": str(data or cwd / "nothing"), "SCIKIT_LEARN_DATA": str(cwd / "nothing")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200)
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
