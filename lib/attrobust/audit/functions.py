"""A network from a function of the reader's own, in a module or a file: the one place where foreign code runs."""

import hashlib
import importlib
import importlib.util
import inspect
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from attrobust.models import watched

#: Names that a sentence tells before it counts the rest.
TOLD = 3

#: What may be named as a model.
FORMS = (
    "it must be package.module:function, path/to/file.py:function, or a folder in which transformers saved an image"
    " classifier (config.json)"
)

#: Modules that files of readers imported from their own folders.
_BROUGHT: set[str] = set()


def called(place: str | Path, function: str, said: str) -> nn.Module:
    """What the function of a module, or of a file, returns: a network."""
    with _beside(place):
        return _returned(_imported(place, said), function, said)


def _returned(module: ModuleType, name: str, said: str) -> nn.Module:
    try:
        build = getattr(module, name)
    except AttributeError as error:
        own = [other for other, value in vars(module).items() if callable(value) and not other.startswith("_")]
        found = f"it has {names(own)}" if own else "it has no function"
        raise ValueError(f"{said}, in which there is no {name!r}; {found}") from error
    if isinstance(build, nn.Module) or not callable(build):
        raise ValueError(f"{said}, which is a {type(build).__name__}; it must be a function that returns an nn.Module")
    try:
        takes = inspect.signature(build).parameters.values()
    except (TypeError, ValueError):  # some builtins do not tell
        takes = ()
    needed = [p.name for p in takes if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise ValueError(f"{said}, which needs arguments ({names(needed)}); it must be callable without any")
    with told(said):
        model = build()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{said}, which returned a {type(model).__name__}; it must return an nn.Module")
    return model.module if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else model


def _imported(place: str | Path, said: str) -> ModuleType:
    """A module by its name, or a file as one."""
    if isinstance(place, str):
        try:
            with told(said):
                return importlib.import_module(place)
        except ImportError as error:
            lacks = getattr(error.__cause__, "name", None)
            if lacks and f"{place}.".startswith(f"{lacks}."):
                raise ValueError(f"{said}, but there is no module {lacks!r}; {FORMS}") from error
            raise
    name = f"audited_{hashlib.sha256(str(place).encode()).hexdigest()[:8]}_{place.stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with told(said):
            spec.loader.exec_module(module)
    except (ImportError, ValueError):
        del sys.modules[name]
        raise
    return module


@contextmanager
def _beside(place: str | Path) -> Iterator[None]:
    """Within, a file finds its neighbours: not those that another file brought, by the same names; leaves no caches."""
    if isinstance(place, str):
        yield
        return
    folder, known, quiet = place.parent, set(sys.modules), sys.dont_write_bytecode
    importlib.invalidate_caches()
    for name in [name for name in _BROUGHT if any(path.exists() for path in _neighbours(folder, name))]:
        sys.modules.pop(name, None)
        _BROUGHT.discard(name)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = quiet
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        for name, module in [(name, module) for name, module in sys.modules.items() if name not in known]:
            file = Path(getattr(module, "__file__", None) or "")
            if any(file.is_relative_to(path) for path in _neighbours(folder, name)):
                _BROUGHT.add(name)


def _neighbours(folder: Path, name: str) -> tuple[Path, Path]:
    """Where a module, or the package that holds it, lies if it lies in a folder."""
    top = name.partition(".")[0]
    return folder / f"{top}.py", folder / top


@contextmanager
def told(said: str) -> Iterator[None]:
    """What code of the reader's own raises, in one sentence."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f"{said}, which needs a package that is not installed: {watched.said(error)}") from error
    except SystemExit as error:  # a script that parses its arguments, say
        raise ValueError(f"{said}, which raises SystemExit: {error}") from error
    except Exception as error:
        raise ValueError(f"{said}, which raises {type(error).__name__}: {watched.said(error)}") from error


@contextmanager
def undisturbed(place: torch.device) -> Iterator[None]:
    """Within, random numbers start from the same seed; the states of all generators come back as they were."""
    numbers, plain = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        cards = range(torch.cuda.device_count()) if place.type == "cuda" else ()
        with torch.random.fork_rng(devices=cards):
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002
            random.seed(0)
            yield
    finally:
        np.random.set_state(numbers)  # noqa: NPY002
        random.setstate(plain)


def names(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = [str(name) for name in names]
    rest = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return ", ".join(map(repr, names[:TOLD])) + rest
