"""What the import hook puts around every function of the package: its annotations become checks.

A check sees types, shapes and dtypes alone. So a call goes without if its arguments have those of an earlier one that
passed, and are the same numbers, words, networks and functions: that is most calls, and a check takes longer than a
small network. What it takes to check a function is made at its first call. A function inside another one is made at
every call of that one, which costs a hundred times what a check does: it is checked as it is made first.
"""

from collections.abc import Mapping, Sequence, Set
from functools import wraps
from itertools import count
from types import CodeType, FunctionType
from weakref import WeakKeyDictionary

import jaxtyping
import numpy as np
import torch
from beartype import BeartypeConf, beartype

# A whole number is accepted where a float is asked for, as everywhere in Python.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

#: Containers of up to so many items, and so deep, are looked through; a call with others is always checked.
MOST, DEEPEST = 16, 4

_jaxtyped, _made = jaxtyping.jaxtyped, set[CodeType]()

#: Calls that passed; and the number of every network that was part of one, which no later network has.
_passed, _numbers, _next = set(), WeakKeyDictionary(), count()
#: Type -> how its values are told.
_ways = dict[type, str]()


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
    whole = None

    @wraps(function)
    def called(*arguments, **named):
        nonlocal whole
        if jaxtyping.config.jaxtyping_disable:
            return function(*arguments, **named)
        try:
            call = (called, *map(_form, arguments), None, *named, None, *map(_form, named.values()))
        except (_Unlike, RuntimeError):  # the latter of parameters without a shape
            call = None
        if call in _passed:
            return function(*arguments, **named)
        whole = whole or _jaxtyped(function, typechecker=typechecker)
        answer = whole(*arguments, **named)
        if call is not None:
            _passed.add(call)
        return answer

    return called


class _Unlike(Exception):
    """A value of which too little is seen to say that two are alike."""


def _form(value, depth=0):
    """All that a check sees of a value, and what an answer's shape may depend on: a flag, a network, a function."""
    kind = type(value)
    way = _ways.get(kind) or _way(kind)
    if way == "as it is":
        return kind, value
    if way == "sized":
        for side in value.shape:
            if type(side) is not int:
                raise _Unlike
        return kind, *value.shape, value.dtype
    if way == "held":
        if len(value) > MOST or depth == DEEPEST:
            raise _Unlike
        parts = tuple([_form(part, depth + 1) for part in (value.values() if kind is dict else value)])
        if kind is not tuple and len({*parts}) > 1:  # a check draws one item to look at
            raise _Unlike
        return kind, *(value if kind is dict else ()), *parts
    if way == "function":
        return kind, value.__code__
    if way == "network":
        if value not in _numbers:
            _numbers[value] = next(_next)
        return kind, _numbers[value]
    if way == "unlike":
        raise _Unlike
    return kind


def _way(kind):
    """How values of a type are told: asked of the type once, since `isinstance` takes longer than all else here."""
    if kind in (bool, int, float, str):
        way = "as it is"
    elif issubclass(kind, torch.Tensor | np.ndarray):
        way = "sized"
    elif kind in (tuple, list, dict):
        way = "held"
    elif issubclass(kind, Mapping | Set | Sequence) and not issubclass(kind, tuple):
        way = "unlike"
    elif kind is FunctionType:
        way = "function"
    else:
        way = "network" if issubclass(kind, torch.nn.Module) else "kind alone"
    _ways[kind] = way
    return way
