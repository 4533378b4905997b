"""What the import hook puts around every function of the package: its annotations become checks.

A function inside another one is made at every call of that one, which costs a hundred times what a check does: it is
checked as it is made first.
"""

from types import CodeType

import jaxtyping
from beartype import BeartypeConf, beartype

# A whole number is accepted where a float is asked for, as everywhere in Python.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

_jaxtyped, _made = jaxtyping.jaxtyped, set[CodeType]()


def made_once(*, typechecker):
    """`jaxtyping.jaxtyped`, which the hook calls by its name, for functions that are not made again and again."""

    def around(function):
        if "<locals>" in getattr(function, "__qualname__", "") and hasattr(function, "__code__"):
            if function.__code__ in _made:
                return function
            _made.add(function.__code__)
        return _jaxtyped(function, typechecker=typechecker)

    return around
