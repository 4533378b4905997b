"""The public interface, walked: what a room exports, and what of a docstring a reader of the reference needs.

A room is a top-level package, whose names are those of `__all__`, or a module of one file, whose names are those that
it defines; a package without `__all__` (theory, studies) has the names of its files.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType

import attrobust


def files(room: ModuleType) -> Iterator[ModuleType]:
    """The modules of a package, one by one."""
    for found in pkgutil.iter_modules(room.__path__):
        if not found.name.startswith("_"):
            yield importlib.import_module(f"{room.__name__}.{found.name}")


def own(module: ModuleType) -> dict[str, Callable]:
    """Functions and classes that a module defines itself, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    }


def public() -> dict[str, Callable]:
    """Every public function and class, by the path under which users reach it."""
    found: dict[str, Callable] = {}
    for room in files(attrobust):
        short = room.__name__.removeprefix("attrobust.")
        if hasattr(room, "__all__"):
            names = {name: getattr(room, name) for name in room.__all__}
            found |= {
                f"{short}.{name}": value
                for name, value in names.items()
                if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__.startswith("attrobust.")
            }
        modules = [room]
        if hasattr(room, "__path__"):
            modules = [room] if short == "notebook" else [] if hasattr(room, "__all__") else list(files(room))
        for module in modules:
            found |= {f"{module.__name__.removeprefix('attrobust.')}.{n}": v for n, v in own(module).items()}
    return found
