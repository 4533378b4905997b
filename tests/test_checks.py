import math

import pytest
import torch
from attrobust import checks
from hypothesis import given
from hypothesis import strategies as st

NOT_NUMBERS = [math.nan, math.inf, -math.inf, None, "1", True]


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_positive_numbers_pass_unchanged(value):
    assert checks.positive("a", value) == value


@pytest.mark.parametrize("value", [0, -1.5, *NOT_NUMBERS])
def test_anything_else_is_not_positive(value, unchecked):
    with pytest.raises(ValueError, match=f"^step_size is {value!r}; it must be a finite number above 0$"):
        checks.positive("step_size", value)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_at_least_accepts_exactly_the_numbers_not_below(value, least):
    if value >= least:
        assert checks.at_least("a", value, least) == value
    else:
        with pytest.raises(ValueError, match="at least"):
            checks.at_least("a", value, least)


@pytest.mark.parametrize("value", [-0.1, *NOT_NUMBERS])
def test_at_least_names_argument_value_and_bound(value, unchecked):
    with pytest.raises(ValueError, match=f"^radius is {value!r}; it must be a finite number of at least 0$"):
        checks.at_least("radius", value, 0)


@given(st.integers(-5, 15), st.integers(-3, 5), st.none() | st.integers(5, 10))
def test_count_accepts_exactly_its_range(value, least, most):
    if least <= value <= (math.inf if most is None else most):
        assert checks.count("k", value, least=least, most=most) == value
    else:
        with pytest.raises(ValueError, match=f"^k is {value}; it must be a whole number"):
            checks.count("k", value, least=least, most=most)


@pytest.mark.parametrize("value", [2.0, "2", None, True, math.nan])
def test_only_whole_numbers_count(value, unchecked):
    with pytest.raises(ValueError, match=f"^steps is {value!r}; it must be a whole number of at least 1$"):
        checks.count("steps", value)
    with pytest.raises(ValueError, match=r"a whole number from 1 to 9$"):
        checks.count("steps", value, most=9)


def test_an_unknown_name_gets_the_list_and_the_nearest_name():
    assert checks.one_of("norm", "l2", ("linf", "l2")) == "l2"
    with pytest.raises(ValueError, match=r"^norm is 'lnf'; it must be one of linf, l2; did you mean 'linf'\?$"):
        checks.one_of("norm", "lnf", ("linf", "l2"))
    with pytest.raises(ValueError, match=r"one of linf, l2$"):
        checks.one_of("norm", "euclid", ("linf", "l2"))


def test_an_iterator_of_names_is_as_good_as_a_list():
    with pytest.raises(ValueError, match="one of b, a"):
        checks.one_of("name", "c", iter(["b", "a"]))


def test_images_in_the_unit_box_pass_unchanged():
    x = torch.tensor([0.0, 0.5, 1.0, 0.25]).view(1, 1, 2, 2)
    assert checks.images("x", x) is x


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (torch.rand(2, 3, generator=torch.Generator()), r"x has shape \(2, 3\); it must be \(batch, channels"),
        (torch.zeros(0, 1, 2, 2), r"x has shape \(0, 1, 2, 2\).*not empty"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "x has dtype torch.uint8; it must be floating-point"),
        (torch.tensor([math.nan, math.inf, 0, 1]).view(1, 1, 2, 2), "x holds 2 pixels that are NaN or infinite"),
        (torch.tensor([-0.5, 0, 0, 1]).view(1, 1, 2, 2), r"x spans \[-0.5, 1\]; pixels must lie in \[0, 1\]"),
        (torch.tensor([0.5, 0, 0, 255]).view(1, 1, 2, 2), r"x spans \[0, 255\]; pixels must lie in \[0, 1\]"),
    ],
)
def test_bad_images_are_told_apart(value, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        checks.images("x", value)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (torch.zeros(3), r"y has shape \(3,\) and dtype torch.float32; it must hold 3 class indices"),
        (torch.zeros(2, dtype=torch.int64), r"y has shape \(2,\).*it must hold 3 class indices"),
        (torch.zeros(3, 1, dtype=torch.int64), r"y has shape \(3, 1\)"),
        (torch.tensor([0, 4, 1]), r"y spans \[0, 4\]; class indices must lie in \[0, 3\]"),
        (torch.tensor([0, -1, 1]), r"y spans \[-1, 1\]"),
    ],
)
def test_bad_labels_are_told_apart(value, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        checks.labels("y", value, batch=3, classes=4)


def test_good_labels_pass_unchanged():
    y = torch.tensor([0, 3, 1])
    assert checks.labels("y", y, batch=3, classes=4) is y


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ((torch.zeros(2, 3), torch.zeros(2)), r"^model returned a tuple; wrap it to return logits"),
        ({"logits": torch.zeros(2, 3)}, "^model returned a dict; wrap it"),
        (torch.zeros(2), "^model returned one logit an image, whose sign is no argmax; wrap it in models.TwoLogits"),
        (torch.zeros(3, 4), r"^model returned shape \(3, 4\)"),
        (torch.zeros(2, 3, 1, 1), r"^model returned shape \(2, 3, 1, 1\)"),
        (torch.zeros(2, 3, dtype=torch.int64), "dtype torch.int64; it must return floating-point logits"),
    ],
)
def test_anything_but_logits_is_refused(value, sentence):
    with pytest.raises(ValueError, match=sentence):
        checks.logits("model", value, batch=2)


def test_logits_and_finite_tensors_pass_unchanged():
    z = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    assert checks.logits("model", z, batch=2) is z
    assert checks.finite("maps", z) is z


def test_entries_that_are_not_finite_are_counted():
    with pytest.raises(ValueError, match=r"^maps holds 2 entries that are NaN or infinite; all must be finite$"):
        checks.finite("maps", torch.tensor([math.nan, 1.0, -math.inf]))
