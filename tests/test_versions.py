"""A key says what a number depends on: it changes whenever that does, and never otherwise."""

import dataclasses
import enum
import functools
import math
import struct
import sys

import numpy as np
import pytest
from attrobust import versions
from attrobust.versions import canonical, digest
from hypothesis import given
from hypothesis import strategies as st


@dataclasses.dataclass(frozen=True)
class Penalty:
    strength: float = 0.5
    on: str = "input"


@dataclasses.dataclass(frozen=True)
class Decay:
    strength: float = 0.5
    on: str = "input"


class Loss(enum.Enum):
    SQUARED = 1
    CROSS_ENTROPY = 2


def halves(n):
    return n / 2


def thirds(n):
    return n / 3


halves.version, thirds.version = 1, 1


def test_every_field_enters_by_name_its_default_too():
    changed = dataclasses.make_dataclass("Penalty", [("strength", float, 0.25), ("on", str, "input")])
    renamed = dataclasses.make_dataclass("Penalty", [("weight", float, 0.5), ("on", str, "input")])
    longer = dataclasses.make_dataclass("Penalty", [("strength", float, 0.5), ("on", str, "input"), ("more", int, 0)])
    keys = [digest(made()) for made in (Penalty, Decay, changed, renamed, longer)]
    assert len(set(keys)) == 5
    assert digest(Penalty()) == digest(Penalty(strength=0.5, on="input"))
    assert digest(Penalty(strength=0.6)) != digest(Penalty())


def test_a_later_field_stays_out_at_what_held_before_whatever_its_default_and_by_value():
    def made(default, before):
        held = dataclasses.field(default=default, metadata=versions.since(before))
        return dataclasses.make_dataclass("Fit", [("steps", int), ("held", object, held)])

    old = dataclasses.make_dataclass("Fit", [("steps", int)])(3)
    for default, before, others in ((True, False, (0, None, True)), (1, (1, 2), ((1,), 12)), (0, None, (False, 0))):
        new = made(default, before)
        assert versions.digest(new(3, before)) == versions.digest(old)
        assert len({versions.digest(new(3, other)) for other in (*others, before)}) == len(others) + 1
    assert versions.digest(made(0, (1, 2))(3, [1, 2])) == versions.digest(old)


def test_dataclasses_inside_lists_and_mappings_enter_by_every_field_too():
    assert digest({"penalties": [Penalty()]}) != digest({"penalties": [Penalty(on="output")]})
    assert digest([Penalty()]) == digest((Penalty(),))


def test_enums_enter_by_class_and_name():
    assert digest(Loss.SQUARED) not in (digest(Loss.CROSS_ENTROPY), digest("SQUARED"), digest(1))


def test_functions_enter_by_name_and_version_and_partial_ones_by_their_arguments(monkeypatch):
    before = digest(halves)
    assert before != digest(thirds)
    assert digest(functools.partial(halves, 1)) not in (digest(functools.partial(halves, 2)), before)
    monkeypatch.setattr(halves, "version", 2)
    assert digest(halves) != before


def test_a_function_without_a_version_is_refused_in_one_sentence():
    with pytest.raises(
        ValueError, match=r"'sqrt' has no version; write @versioned\(1\) above a function of the library"
    ):
        digest(math.sqrt)


@pytest.mark.parametrize("value", [object(), b"bytes", 1j, np.zeros(2), Penalty])
def test_what_cannot_say_what_it_is_is_refused(value):
    with pytest.raises((TypeError, ValueError), match=r"cannot enter a key|has no version"):
        digest(value)


def test_the_kind_of_a_number_or_a_sequence_does_not_matter_and_truth_is_no_number():
    assert digest(1) == digest(1.0) == digest(np.float64(1)) == digest(np.int64(1)) == digest(np.float32(1))
    assert digest(True) != digest(1) != digest("1")
    assert digest([1, 2]) == digest((1.0, 2.0)) != digest([2, 1])
    assert digest({1, 2}) == digest(frozenset((2, 1))) != digest([1, 2])
    assert digest({"a": 1, "b": 2}) == digest({"b": 2.0, "a": 1})
    assert digest({1: "a"}) != digest({"1": "a"})
    assert digest(-0.0) == digest(0)
    assert digest(2**53) != digest(2**53 + 1)
    assert digest(None) not in (digest("None"), digest(0), digest([]))


def test_the_order_of_values_matters_and_where_one_ends():
    assert digest("a", "b") != digest("b", "a")
    assert digest("ab") != digest("a", "b")
    assert digest(["a", "b"]) != digest("a", "b")


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_numbers_have_one_key_exactly_if_they_are_equal(a, b):
    assert (digest({"x": a}) == digest({"x": b})) == (a == b)
    nearby = math.nextafter(a, math.inf)
    assert (digest({"x": a}) == digest({"x": nearby})) == (a == nearby)
    assert struct.unpack("<d", struct.pack("<d", a))[0] == a


def test_a_key_is_sixteen_hex_digits():
    assert len(digest("anything")) == 16
    int(digest("anything"), 16)


def test_no_source_text_enters():
    first, second = ({}, {})
    exec("def f(n):\n    return n", first)
    exec("def f(n):\n    # a remark\n    return n + 0", second)
    for space in (first, second):
        space["f"].version = 1
    assert canonical(first["f"]) == canonical(second["f"])


@pytest.mark.parametrize("version", [0, -1, 1.5, "1", True, None])
def test_a_version_is_a_whole_number_of_at_least_one(unchecked, version):
    with pytest.raises(ValueError, match=r"version is .*; it must be a whole number of at least 1"):
        versions.versioned(version)


def test_two_functions_of_one_name_cannot_both_be_versioned(monkeypatch):
    monkeypatch.setattr(versions, "VERSIONED", {})
    versions.versioned(1)(halves)
    versions.versioned(2)(halves)  # the same one again, such as a reloaded module's
    other = type(halves)(halves.__code__, {}, "halves")
    other.__module__ = "elsewhere"
    with pytest.raises(ValueError, match=r"'halves' is versioned in .* too; names in keys must differ"):
        versions.versioned(1)(other)
    halves.version = 1


def test_keys_need_neither_torch_nor_pandas():
    assert not {"torch", "pandas"} & set(vars(sys.modules["attrobust.versions"]))
