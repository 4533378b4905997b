"""What is said of tables: lines that lack numbers, second computations at the very limit, and the order of both."""

import math

import numpy as np
import pandas as pd
import pytest
from attrobust import claims

CELL = {
    "map": "m", "by": "h", "start": 0.1, "end": 0.2, "seeds": 10, "first": 0.5, "last": 0.6, "effect": 0.1, "low": 0.05,
    "high": 0.15, "half": 0.05, "p": 0.002, "p_holm": 0.004, "word": "up", "censored": False, "left_out": 0,
    "without_pair": 0, "effect_all": np.nan, "low_all": np.nan, "high_all": np.nan,
}  # fmt: skip


def table_of(*changes):
    return pd.DataFrame([CELL | change for change in changes])


def test_every_line_of_a_page_is_as_written_out():
    table = table_of(
        {"left_out": 2, "effect_all": 0.2, "low_all": -0.1, "high_all": 0.5},
        {"map": "lost", "word": "no pair", "seeds": 0, "without_pair": 3},
        {"map": None, "word": "unclear (control)", "censored": True, "p": 0.0001, "p_holm": np.nan},
        {"map": "few", "word": "too few seeds", "seeds": 4, "left_out": np.nan, "without_pair": np.nan},
        {
            "map": "z",
            "word": "leans down",
            "left_out": np.nan,
            "without_pair": 1,
            "effect": -0.1,
            "p": 0.5,
            "p_holm": 1.0,
        },
        {"map": "more"},
        {"map": "full", "word": "no room"},
        {"map": "c", "word": "unclear (counted)"},
    )
    numbers = "h 0.1 -> 0.2  0.500 -> 0.600  +0.100 [+0.050, +0.150]"
    assert claims.page(table).splitlines()[1:] == [
        f"m {numbers}  p .002, Holm .004  n = 10  up; 2 runs left out, with them +0.200 [-0.100, +0.500]",
        f"{numbers}  p <.001  n = 10  unclear (control) (sees 0.050) (censored)",
        f"z {numbers.replace('+0.100', '-0.100')}  p .500, Holm 1.000  n = 10  leans down;"
        " 1 seeds without a pair of ends",
        f"more {numbers}  p .002, Holm .004  n = 10  up",
        f"full {numbers}  p .002, Holm .004  n = 10  no room",
        f"c {numbers}  p .002, Holm .004  n = 10  unclear (counted) (sees 0.050)",
        "no verdict: lost h: no pair, n = 0; 3 seeds without a pair of ends",
        "no verdict: few h: too few seeds, n = 4",
        "1 of 8 cells lean; 0.2 would by chance (5 % of the 4 that could: 5 seeds or more, room, images counted)",
    ]
    both = claims.page(table_of({}, {"left_out": 1, "without_pair": 2}).drop(columns="p_holm")).splitlines()
    assert both[1] == f"m {numbers}  p .002  n = 10  up"
    assert both[2].endswith("up; 2 seeds without a pair of ends; 1 runs left out, with them none [none, none]")


def judged(one, other):
    return claims.agrees(table_of(one), table_of(other))["judged"].item()


@pytest.mark.parametrize("effect", [0.1, -0.01])
def test_two_draws_agree_up_to_the_interval_and_the_sixth_digit_and_no_farther(effect):
    allowed = math.sqrt(2) * 0.05 + 1e-5 * abs(effect)
    for side in (1, -1):
        for share, said in ((0.999999, "agrees"), (1.000001, "differs")):
            assert judged({"effect": effect}, {"effect": effect + side * share * allowed}) == said
            exact = effect + side * share * 1e-5 * abs(effect)
            assert judged({"effect": effect, "half": 0.0}, {"effect": exact}) == said
    assert judged({"effect": 0.0, "half": 0.0}, {"effect": 0.0}) == "agrees"


def test_what_only_one_computation_has_is_no_pair_and_other_ends_differ():
    assert judged({}, {"effect": np.nan}) == judged({"effect": np.nan}, {}) == "differs"
    assert judged({"effect": np.nan}, {"effect": np.nan}) == "no pair"
    assert judged({"half": np.inf}, {}) == judged({"half": np.nan}, {}) == "no pair"
    assert judged({"half": np.inf, "effect": np.nan}, {}) == "differs"
    assert judged({"start": "0.10", "end": 0.2}, {"end": "0.2000"}) == "agrees"
    one = table_of({"map": "a"}, {"map": "b"}, {"map": "c"}, {"map": "d", "effect": 0.3})
    other = table_of({"map": "b", "end": 0.3}, {"map": "a"}, {"map": "c", "start": 0.05}, {"map": "e"})
    found = claims.agrees(one, other).set_index("map")
    assert found["judged"].to_dict() == {"a": "agrees", "b": "differs", "c": "differs", "d": "no pair", "e": "no pair"}
    assert found["allowed"].dropna().tolist() == pytest.approx([math.sqrt(2) * 0.05] * 4)
    assert found.loc["a", "gap"] == 0
    assert [*found] == [
        "by",
        "start",
        "end",
        "effect",
        "effect_other",
        "gap",
        "allowed",
        "word",
        "word_other",
        "judged",
    ]


def test_a_second_computation_is_told_with_its_words_where_they_are_others():
    own = claims.record({"C": table_of({"map": "a"}, {"map": "b"}, {"map": "out", "p_holm": np.nan}, {"map": "mine"})})
    other = own[own["arm"] != "mine"].assign(effect=[0.12, 0.05, 0.9], word=["up", "unclear", "up"])
    assert claims.elsewhere(own, other).splitlines() == [
        "C a h: +0.100 and +0.120, apart 0.020, allowed 0.071: agrees",
        "C b h: +0.100 and +0.050, apart 0.050, allowed 0.071: agrees (up, unclear)",
        "2 of 2 cells of the families agree; the largest gap is 0.71 of what two draws may differ by",
    ]
