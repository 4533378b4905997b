"""Names of what a number depends on: every value by name, every function by its version. Keys are made here.

    key(config) = first 16 hex digits of SHA-256(canonical(config))

No source text enters: a change of the numbers is said by raising a version. That this is not forgotten is a test's
work: every versioned function has a golden row (see tests/golden_rows.py).
"""

import dataclasses
import enum
import functools
import hashlib
import json
import math
import numbers
from collections.abc import Callable, Mapping, Set
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable)

#: Every versioned function of the library, by name.
VERSIONED: dict[str, Callable[..., Any]] = {}


def versioned(version: int) -> Callable[[Function], Function]:
    """Mark a function whose numbers are stored, under a name of its own; a change of its numbers raises the version.

    Raises:
        ValueError: a version that is no whole number of at least 1, or the name of another versioned function.

    Example:
        >>> @versioned(2)
        ... def doubled_here(x):
        ...     return 2 * x
        >>> version_of(doubled_here)
        2
        >>> del VERSIONED["doubled_here"]
    """
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"version is {version!r}; it must be a whole number of at least 1")

    def mark(function: Function) -> Function:
        known = VERSIONED.setdefault(function.__name__, function)
        if (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise ValueError(f"{function.__name__!r} is versioned in {known.__module__} too; names in keys must differ")
        function.version = version
        return function

    return mark


def version_of(function: Callable) -> int:
    """Version of a function whose numbers are stored; a ValueError if it has none.

    Example:
        >>> from attrobust.attributions import saliency
        >>> version_of(saliency)
        1
    """
    version = getattr(function, "version", None)
    if not isinstance(version, int):
        raise ValueError(
            f"{getattr(function, '__name__', function)!r} has no version; write @versioned(1) above a function of the"
            " library, or give version=1 where a notebook's own is stored, and raise it when its numbers change"
        )
    return version


def canonical(value: object) -> str:
    """What a value is, as JSON with sorted names; a TypeError where its text would not say that.

    Numbers are compared by value (1 and 1.0 are one number), tuples and lists by their entries in order, sets by their
    entries, dataclasses and enums by class name and every field, functions by name and version. A field that came later
    says in its metadata, by `since`, what held before there was one; at that value, whatever its default, it stays out.

    Example:
        >>> canonical({"b": (1, 2.0), "a": True})
        '{"a": true, "b": [1, 2]}'
    """
    return json.dumps(_plain(value), sort_keys=True)


def digest(*values: object) -> str:
    """Sixteen hex digits that name the values in their order.

    Example:
        >>> len(digest(1, "a")), digest(1) == digest(1.0)
        (16, True)
    """
    return hashlib.sha256(canonical(values).encode()).hexdigest()[:16]


def since(before: object) -> dict[str, object]:
    """Metadata of a dataclass's field that came later than its first keys: the value that all had `before`.

    Example:
        >>> Old = dataclasses.make_dataclass("Fit", [("steps", int)])
        >>> New = dataclasses.make_dataclass("Fit", [("steps", int), ("held", bool, dataclasses.field(
        ...     default=True, metadata=since(False)))])
        >>> digest(New(3, False)) == digest(Old(3)), digest(New(3)) == digest(Old(3))
        (True, False)
    """
    return {"before": before}


def as_before(value: object) -> list[str]:
    """Names of a dataclass's later fields (`since`) that say what held before they were there.

    Example:
        >>> held = dataclasses.field(default=True, metadata=since(False))
        >>> New = dataclasses.make_dataclass("New", [("held", bool, held)])
        >>> as_before(New(False)), as_before(New(True))
        (['held'], [])
    """
    return [field.name for field in dataclasses.fields(value) if _old(field, value)]


def _old(field: dataclasses.Field, value: object) -> bool:
    return "before" in field.metadata and canonical(getattr(value, field.name)) == canonical(field.metadata["before"])


def _plain(value: object) -> object:
    """A value in the words of JSON."""
    if isinstance(value, enum.Enum):
        return {"enum": type(value).__name__, "member": value.name}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return int(number) if math.isfinite(number) and number.is_integer() else number
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if not _old(field, value)]
        return {"class": type(value).__name__, "fields": _plain({name: getattr(value, name) for name in names})}
    if isinstance(value, Mapping):
        return {k if isinstance(k, str) else f"<{canonical(k)}>": _plain(v) for k, v in value.items()}
    if isinstance(value, Set):
        return {"set": sorted(map(canonical, value))}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, functools.partial):
        return {"partial": _plain(value.func), "args": _plain(value.args), "keywords": _plain(value.keywords)}
    if callable(value) and hasattr(value, "__name__"):
        return {"function": value.__name__, "version": version_of(value)}
    raise TypeError(
        f"{value!r} of type {type(value).__name__} cannot enter a key; accepted are numbers, texts, lists, sets,"
        " mappings, dataclasses, enums and functions with a version"
    )
