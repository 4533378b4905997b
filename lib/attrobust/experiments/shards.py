"""Which part of every sweep is this machine's, in a job array whose machines share no folder: shard 2 of 8, say.

Arms are dealt like cards, the longest first, so that every shard of the same grid gets as much. What a sweep lacks
afterwards lies with the others: it returns no part of a table that could be taken for the whole, but a value that is an
error wherever it is used.
"""

import os
import re
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, NoReturn, TypeVar

Arm = TypeVar("Arm", bound=Hashable)

#: The variable that names a shard, such as 2/8: notebooks run in processes of their own.
SHARD = "ATTROBUST_SHARD"


class Shard(NamedTuple):
    """Part `index` of `of`, counted from 1."""

    index: int
    of: int


def asked() -> Shard | None:
    """The shard that the environment names, if any; a ValueError unless it is i/n with i from 1 to n.

    Example:
        >>> os.environ[SHARD] = "2/8"
        >>> asked()
        Shard(index=2, of=8)
        >>> del os.environ[SHARD]
    """
    text = os.environ.get(SHARD, "")
    if not text:
        return None
    parts = re.fullmatch(r"([1-9]\d{0,8})/([1-9]\d{0,8})", text)
    shard = Shard(*map(int, parts.groups())) if parts else None
    if shard is None or shard.index > shard.of:
        raise ValueError(f"shard is {text!r}; it must be i/n, such as 2/8: part i of n, counted from 1")
    return shard


def dealt(arms: Sequence[Arm], shard: Shard, *, sweep: str) -> set[Arm]:
    """Those of the arms that are a shard's; where a sweep begins to deal depends on its hexadecimal name.

    Example:
        >>> sorted(dealt(["a", "b", "c", "d", "e"], Shard(1, 2), sweep="0"))
        ['a', 'c', 'e']
    """
    first = int(sweep, 16) + shard.index - 1
    return {arm for place, arm in enumerate(dict.fromkeys(arms)) if (place - first) % shard.of == 0}


class ElsewhereError(ValueError):
    """Rows were asked for that other shards have."""


class Elsewhere:
    """Stands where a sweep's rows would be; whatever is asked of it is an ElsewhereError."""

    _what = ""

    def __init__(self, what: str) -> None:
        self._what = what

    def _refuse(self, *_: object) -> NoReturn:
        raise ElsewhereError(f"{self._what} with other shards; merge them, and run the whole")

    __getattr__: Callable[..., NoReturn] = _refuse
    __getitem__: Callable[..., NoReturn] = _refuse
    __iter__: Callable[..., NoReturn] = _refuse
    __len__: Callable[..., NoReturn] = _refuse
    __bool__: Callable[..., NoReturn] = _refuse
    __eq__: Callable[..., NoReturn] = _refuse  # which takes away the hash, too


def waits(name: str, message: str) -> bool:
    """Whether an error, by its class and text, says that rows are elsewhere, or that what stands for them is no table.

    Example:
        >>> waits("ElsewhereError", "1 of 2 runs are with other shards"), waits("OSError", "/Elsewhere is full")
        (True, False)
    """
    return name == ElsewhereError.__name__ or (name == "TypeError" and f"{__name__}.{Elsewhere.__name__}" in message)
