"""Which tests concern a notebook: `make test ONLY=06`.

A notebook's rooms are the modules of the package that its cells name in imports. Its tests are those that take it as
a parameter, and of the others those whose file imports one of its rooms, with the doctests of the rooms themselves.
All of this is read from the sources, so a new notebook, module or test needs no entry anywhere.
"""

import ast
import functools
import json
from pathlib import Path

from attrobust import paths


def rooms(source):
    """Top-level modules of the package that a Python source imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("attrobust.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "attrobust":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("attrobust."):
            found.add(node.module.split(".")[1])
    return found


@functools.cache
def rooms_of_notebook(path):
    """Top-level modules of the package that a notebook's cells import."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    return set().union(*(rooms("".join(cell["source"])) for cell in cells))


@functools.cache
def rooms_of_file(path):
    """Rooms that a test file imports, or the one room that a file of the package belongs to."""
    package = paths.root / "lib" / "attrobust"
    if path.is_relative_to(package):
        return {path.relative_to(package).parts[0].removesuffix(".py")}
    return rooms(path.read_text())


@functools.cache
def books():
    """Every notebook, by its stem."""
    return {path.stem: path for path in sorted(paths.notebooks.glob("*.ipynb"))}


@functools.cache
def books_of_file(file):
    """Stems of the notebooks one of whose rooms a file imports, or is a part of."""
    return {stem for stem, path in books().items() if rooms_of_file(file) & rooms_of_notebook(path)}


def books_of(file, parameters):
    """Stems of the notebooks that a test concerns.

    `file` is the file it stands in, `parameters` are the values of its parametrisation, by name.
    """
    if file.suffix == ".ipynb":
        return {file.stem} & books().keys()
    named = {Path(value).stem for value in parameters.values() if isinstance(value, str | Path)} & books().keys()
    return named or books_of_file(file)


def concerns(file, parameters, chosen):
    """Whether a test concerns one of the chosen notebooks; arguments as in `books_of`."""
    return bool(books_of(file, parameters) & {path.stem for path in chosen})
