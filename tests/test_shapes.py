"""Laws of the checks around every function: that they are seldom made hides nothing."""

import inspect
import sys
from collections import OrderedDict
from types import FunctionType

import jaxtyping
import numpy as np
import pytest
import shapes
import torch
from jaxtyping import Float
from torch import Tensor


@pytest.fixture
def checked():
    """Puts checks around a function as the import hook does."""

    def around(function):
        function.__qualname__ = function.__name__
        return shapes.made_once(typechecker=shapes.checked)(function)

    return around


@pytest.fixture
def counted(monkeypatch):
    """Names of functions, one for each time that a check was made."""
    checks, made = [], shapes._jaxtyped

    def jaxtyped(function, *, typechecker):
        whole = made(function, typechecker=typechecker)
        return lambda *arguments, **named: (checks.append(function.__name__), whole(*arguments, **named))[1]

    monkeypatch.setattr(shapes, "_jaxtyped", jaxtyped)
    return checks


def outer(a: Float[Tensor, " n"], b: Float[Tensor, " m"], *, turned: bool = False) -> Float[Tensor, "n m"]:
    return torch.outer(b, a) if turned else torch.outer(a, b)


def test_a_call_like_one_that_passed_is_not_checked_again(checked, counted):
    function = checked(outer)
    for _ in range(5):
        assert function(torch.ones(2), torch.ones(3)).shape == (2, 3)
    assert counted == ["outer"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((torch.ones(2, 1), torch.ones(3)), {}),
        ((torch.ones(2, dtype=torch.long), torch.ones(3)), {}),
        ((np.ones(2, np.float32), torch.ones(3)), {}),
        ((torch.ones(2), torch.ones(3)), {"turned": 1.5}),
        ((torch.ones(2), torch.ones(3)), {"turned": True}),  # the answer has the wrong shape
        ((torch.ones(2), None), {}),
    ],
)
def test_a_wrong_call_is_refused_each_time_however_many_have_passed(checked, arguments, named):
    function = checked(outer)
    function(torch.ones(2), torch.ones(3))
    function(torch.ones(3), torch.ones(3), turned=True)
    for _ in range(2):
        with pytest.raises(jaxtyping.TypeCheckError):
            function(*arguments, **named)


def test_an_error_of_the_function_itself_is_no_pass(checked, counted):
    def fails(n: int) -> int:
        raise ValueError(n)

    function = checked(fails)
    for _ in range(2):
        with pytest.raises(ValueError, match="3"):
            function(3)
    assert counted == ["fails", "fails"]


def test_what_stands_in_containers_is_looked_at(checked):
    def first(parts: list[Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
        return parts[0]

    function = checked(first)
    function([torch.ones(2)])
    with pytest.raises(jaxtyping.TypeCheckError):
        function([torch.ones(2, 2)])


def test_containers_with_more_in_them_than_is_looked_through_are_checked_at_every_call(checked, counted):
    def size(parts: object) -> int:
        return len(parts)

    within, deep, function = [], [[[[[[1]]]]]], checked(size)
    within.append(within)
    for value in (within, deep, [0] * (shapes.MOST + 1), dict.fromkeys(range(shapes.MOST + 1))):
        function(value), function(value)
    assert len(counted) == 8


def test_another_network_is_another_call(checked, counted):
    def applied(network: torch.nn.Module, x: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        return network(x)

    function, x = checked(applied), torch.ones(3, 2)
    function(torch.nn.Identity(), x)
    with pytest.raises(jaxtyping.TypeCheckError):
        function(torch.nn.Flatten(0), x)
    kept = torch.nn.Identity()
    function(kept, x), function(kept, x)
    assert len(counted) == 3


def test_a_network_that_is_gone_lends_its_place_to_no_other(checked):
    def applied(network: torch.nn.Module, x: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        return network(x)

    function = checked(applied)
    for _ in range(20):
        function(torch.nn.Flatten(1), torch.ones(3, 2))
        with pytest.raises(jaxtyping.TypeCheckError):
            function(torch.nn.Flatten(0), torch.ones(3, 2))


def test_what_passed_while_checks_are_off_is_checked_when_they_are_on(checked):
    function = checked(outer)
    jaxtyping.config.update("jaxtyping_disable", True)
    function(torch.ones(2), torch.ones(3), turned=True)
    jaxtyping.config.update("jaxtyping_disable", False)
    with pytest.raises(jaxtyping.TypeCheckError):
        function(torch.ones(2), torch.ones(3), turned=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([torch.ones(2)], [torch.ones(2, 2)]),
        ({"a": torch.ones(2)}, {"a": None}),
        (OrderedDict(a=torch.ones(2)), OrderedDict(a=None)),
        (0.5, 0.25),
        (1, True),
        (1, 1.0),
        ({1, 2}, {1, 2}),
        ([torch.ones(2), None], [torch.ones(2), None]),  # one of them is drawn and looked at
        (torch.nn.parameter.UninitializedParameter(), torch.nn.parameter.UninitializedParameter()),
    ],
)
def test_calls_that_a_check_may_tell_apart_are_both_checked(checked, counted, one, other):
    def same(value: object) -> object:
        return value

    function = checked(same)
    function(one), function(other)
    assert len(counted) == 2


def test_every_check_of_the_package_can_be_made():
    """They are made at the first call, so that an annotation which cannot be checked would be seen late."""
    modules = [module for name, module in sys.modules.items() if name.startswith("attrobust.")]
    values = [value for module in modules for value in vars(module).values() if isinstance(value, FunctionType)]
    made = [
        inspect.unwrap(value)
        for value in values
        if value.__module__.startswith("attrobust.") and value.__name__ != "<lambda>"
    ]
    assert made
    for function in made:
        shapes._jaxtyped(function, typechecker=shapes.checked)
