"""What the import hook puts around every function of the package: its annotations become checks.

A check sees types, shapes and dtypes alone, so that a call goes without whose arguments have those of an earlier one
that passed, with the same flags, whole numbers, words and other objects: that is most calls, and a check takes longer
than a small network. What it takes to check a function is made at its first call. A function inside another one is
made at every call of that one, which costs a hundred times what a check does: it is checked as it is made first.
"""

from functools import wraps
from types import CodeType, FunctionType

import jaxtyping
import numpy as np
import torch
from beartype import BeartypeConf, beartype

# A whole number is accepted where a float is asked for, as everywhere in Python.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

#: Containers of up to so many items, and so deep, are looked through; a call with others is always checked.
MOST, DEEPEST = 16, 4

_jaxtyped, _made = jaxtyping.jaxtyped, set[CodeType]()


def made_once(*, typechecker):
    """`jaxtyping.jaxtyped`, which the hook calls by its name, for functions that are not made again and again."""

    def around(function):
        if not isinstance(function, FunctionType):
            return _jaxtyped(function, typechecker=typechecker)
        if "<locals>" in function.__qualname__:
            if function.__code__ in _made:
                return function
            _made.add(function.__code__)
        return _checked_anew(function, typechecker)

    return around


def _checked_anew(function, typechecker):
    """The function, checked at every call that is unlike those which passed."""
    passed, whole = set(), None

    @wraps(function)
    def called(*arguments, **named):
        nonlocal whole
        try:
            call = (*map(_form, arguments), None, *named, None, *map(_form, named.values()))
        except _TooLarge:
            call = None
        if call in passed:
            return function(*arguments, **named)
        whole = whole or _jaxtyped(function, typechecker=typechecker)
        answer = whole(*arguments, **named)
        if call is not None:
            passed.add(call)
        return answer

    return called


class _TooLarge(Exception):
    """A container with more in it than is looked through."""


def _form(value, depth=0):
    """All that a check sees of a value, and what an answer's shape may depend on: a flag, a network, a function."""
    kind = type(value)
    if kind in (bool, int, str):
        return kind, value
    if kind in (float, torch.Generator):
        return kind
    if isinstance(value, torch.Tensor | np.ndarray):
        return kind, tuple(value.shape), value.dtype
    if isinstance(value, tuple | list | dict):
        if len(value) > MOST or depth == DEEPEST:
            raise _TooLarge
        parts = [*value, *value.values()] if kind is dict else value
        return kind, *(_form(part, depth + 1) for part in parts)
    return kind, id(value)
