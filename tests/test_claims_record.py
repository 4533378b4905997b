"""One table of cells, its lines told apart again, and what each says in Markdown, written out."""

import math

import numpy as np
import pandas as pd
import pytest
from attrobust import claims
from attrobust.claims.record import family, lines_of, markdown, place

LINE = {
    "claim": "C1", "arm": "raw_map, l2", "by": "step_size", "start": 0.1, "end": 256.0, "first": 0.25, "last": 0.5,
    "effect": 0.25, "low": 0.125, "high": 0.375, "half": 0.125, "word": "up", "censored": False, "margin": 0.05,
    "p_holm": 0.01,
}  # fmt: skip


def told(**changed):
    return markdown(pd.DataFrame([LINE | changed])).splitlines()[-1]


def test_a_line_in_markdown_is_as_written_out():
    axis, ends = "raw map, l2 | step size 0.1 → 256", "0.250 → 0.500 | +0.250 [+0.125, +0.375]"
    assert told() == f"| {axis} | {ends} | up |"
    assert told(word="unclear (control)") == f"| {axis} | {ends} | unclear (control) (sees 0.125) |"
    assert told(censored=True) == f"| {axis} | {ends} | up (censored) |"
    assert told(censored="True", word="unclear") == f"| {axis} | {ends} | unclear (sees 0.125) (censored) |"
    assert told(censored="False") == told(censored=np.nan) == told()
    assert told(start=np.nan) == told(by=np.nan) == f"| raw map, l2 |  | {ends} | up |"
    assert told(low=-math.inf, high=np.nan).endswith("+0.250 [none, none] | up |")
    lines = markdown(pd.DataFrame([LINE])).splitlines()
    assert lines[:2] == ["| cell | axis | ends | change [95 % interval] | word |", "|---|---|---|---|---|"]
    assert len(lines) == 3


def test_a_line_of_ratios_tells_factors():
    ratio = {"margin": math.log(1.1), "effect": math.log(2), "low": 0.0, "high": math.log(4), "half": math.log(2)}
    ends = "raw map, l2 | step size 0.1 → 256 | 0.250 → 0.500"
    for margin in (math.log(1.1), 0.0953, math.log(1.1) * 1.0005):
        assert told(**ratio | {"margin": margin}) == f"| {ends} | × 2.00 [1.00, 4.00] | up |"
    assert told(**ratio, word="unclear").endswith("| unclear (sees × 2.00) |")
    assert "×" not in told(margin=math.log(1.1) * 1.01)


def test_an_end_reads_as_a_number_where_it_is_one():
    assert [place(v) for v in (256.0, "256", 0.125, "adam", np.float64(2))] == [
        "256",
        "256",
        "0.125",
        "adam",
        "2",
    ]


def test_a_family_are_the_lines_with_a_p_after_holm():
    table = pd.DataFrame([LINE, LINE | {"arm": "other", "p_holm": np.nan}])
    assert family(table) == markdown(table[:1])


def tables():
    ends = {"start": 1.0, "end": 2.0}
    first = pd.DataFrame([{"map": "z", "by": "h", **ends, "seeds": 5}, {"map": "a", "by": "h", **ends, "seeds": 6}])
    second = pd.DataFrame([{"map": "m", "size": 3, "radius": None, "by": "h", **ends, "seeds": 7}])
    return {"C2": first, "C1": second}


def test_recorded_lines_keep_their_order_and_are_counted_through():
    whole = claims.record(tables())
    assert [*whole] == ["claim", "arm", "by", "start", "end", "seeds"]
    assert whole.index.tolist() == [0, 1, 2]
    assert whole[["claim", "arm", "seeds"]].to_numpy().tolist() == [["C2", "z", 5], ["C2", "a", 6], ["C1", "m, 3", 7]]


def test_parts_of_an_arm_stand_in_columns_again_and_their_number_is_checked():
    whole = claims.record(tables())
    found = lines_of(whole, "C1", ["map", "size"])
    assert found.index.tolist() == [0]
    assert found[["map", "size", "seeds"]].to_numpy().tolist() == [["m", "3", 7]]
    assert lines_of(whole, "C2", ["map"])["map"].tolist() == ["z", "a"]
    for none in (lines_of(whole, "C9", ["map"]), lines_of(whole[:0], "C1", ["map"])):
        assert (len(none), [*none]) == (0, [*whole, "map"])
        assert none["map"].dtype == object
    for names in (["map"], ["map", "size", "radius"]):
        with pytest.raises(ValueError, match="arm is 'm, 3'; it must have a part for each of map"):
            lines_of(whole, "C1", names)


def test_what_is_beyond_is_told_without_columns_that_say_nothing():
    stored = claims.record(tables()).assign(empty=np.nan, some=[np.nan, 1.0, np.nan]).set_axis([7, 8, 9])
    own = stored[["claim", "arm", "by"]].assign(seeds=[5, 5, 8])
    found = claims.beyond(stored, own)
    assert found[["claim", "arm", "seeds"]].to_numpy().tolist() == [["C2", "a", 6]]
    assert [*found] == ["claim", "arm", "by", "start", "end", "seeds", "some"]
    assert found.index.tolist() == [0]
    lacks = claims.beyond(stored, own[1:])
    assert lacks["arm"].tolist() == ["z", "a"]
    assert lacks.index.tolist() == [0, 1]
    assert len(claims.beyond(stored[:0], own)) == 0
