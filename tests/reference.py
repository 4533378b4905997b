"""The public interface, walked: what a room exports, and what of a docstring a reader of the reference needs.

A room is a top-level package, whose names are those of `__all__`, or a module of one file, whose names are those that
it defines; a package without `__all__` (theory, studies) has the names of its files.
"""

import ast
import importlib
import inspect
import pkgutil
import textwrap
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


def signatures(value: Callable) -> list[inspect.Signature]:
    """That of a function; of a class, those of its constructor and its public methods, where it writes them itself."""
    if not inspect.isclass(value):
        return [inspect.signature(value)]
    written = [m for n, m in vars(value).items() if inspect.isfunction(m) and (n == "__init__" or n[0] != "_")]
    return [inspect.signature(m) for m in written if m.__module__ == value.__module__ and "__dataclass" not in str(m)]


def unannotated(value: Callable) -> list[str]:
    """Parameters without a type, "return" included."""
    lacking = []
    for signature in signatures(value):
        parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
        lacking += [p.name for p in parameters if p.annotation is p.empty]
        lacking += ["return"] if signature.return_annotation is signature.empty else []
    return lacking


def refuses(function: Callable) -> bool:
    """Whether a function's own lines raise an error of a bad argument, themselves or by `checks`."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body
    raised = [n for n in ast.walk(node) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
    calls = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
    return bool(raised) or any(
        isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name) and f.value.id == "checks" for f in calls
    )
