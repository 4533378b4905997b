import numpy as np
import pandas as pd
import pytest
from attrobust import claims
from attrobust.theory import tally
from hypothesis import given
from hypothesis import strategies as st


def test_a_bound_counts_what_exceeds_it_beyond_rounding():
    cases = tally.bound("S", "arm", [1.0, 2.0, 2.0 + 1e-12, 2.1], 2.0)
    assert tally.violated(cases).tolist() == [False, False, False, True]
    (row,) = tally.tally(cases).to_dict("records")
    assert (row["cases"], row["violations"], row["word"]) == (4, 1, "fails (4 cases, 1 violations)")
    assert row["ratio"] == pytest.approx(1.05)


def test_an_identity_is_judged_by_its_residual_alone():
    good, bad = (tally.identity("S", "arm", 1.0 + d, 1.0) for d in (1e-12, 1e-8))
    assert not tally.violated(good).any()
    assert tally.violated(bad).all()
    assert "residual below 1e-10" in tally.summary(good)
    assert "largest residual 1.0e-08" in tally.summary(bad)


def test_a_statement_nobody_tried_is_said_to_be_so():
    empty = tally.bound("S", "arm", [], [])
    assert tally.word(len(empty), 0) == "not tried"
    assert len(tally.tally(empty)) == 0


def test_a_case_that_cannot_be_computed_does_not_pass():
    with pytest.raises(ValueError, match=r"S \(arm\) has NaN on one side"):
        tally.bound("S", "arm", [np.nan], [1.0])


def test_ratios_of_nothing_over_nothing_are_zero_and_of_something_over_nothing_infinite():
    cases = tally.bound("S", "arm", [0.0, 1e-16, 1.0], [0.0, 0.0, 0.0])
    assert tally.ratio(cases).tolist() == [0.0, 0.0, np.inf]
    assert tally.violated(cases).tolist() == [False, False, True]


@given(factor=st.floats(1.001, 100))
def test_a_smaller_constant_breaks_what_is_attained(factor):
    attained = tally.bound("S", "arm", [1.0, 2.0], [1.0, 2.0])
    assert not tally.violated(attained).any()
    assert tally.violated(attained.assign(right=attained.right / factor)).all()


def test_statements_are_sorted_by_side_and_one_without_a_side_is_refused():
    cases = tally.join([tally.bound("A", "x", 1, 2), tally.bound("B", "y", 3, 2), tally.identity("A", "z", 1, 1)])
    table = tally.statements(cases, sides={"B": "gradient", "A": "curvature"})
    assert claims.record({"C1": table})["arm"].tolist() == ["gradient, B, y", "curvature, A, x", "curvature, A, z"]
    assert table["word"].str.split().str[0].tolist() == ["fails", "holds", "holds"]
    page = tally.page(table)
    assert "gradient: 0 of 1 statements hold (1 cases, 1 violations)" in page
    assert [line.split()[3:5] for line in page.splitlines() if line.startswith("  ")] == [
        ["ratio", "1.50"], ["ratio", "0.50"], ["identity", "holds"]
    ]  # fmt: skip
    with pytest.raises(ValueError, match="sides says nothing about B"):
        tally.statements(cases, sides={"A": "curvature"})


def test_a_wrong_variant_is_counted_and_is_no_part_of_a_claim():
    right, wrong = tally.bound("S", "arm", 1, 2), tally.bound("S", "halved", [1, 3], 2, holds=False)
    cases = tally.join([tally.bound("S", "empty", [], []), right, wrong])
    assert tally.tally(cases).set_index("arm")["violations"].to_dict() == {"arm": 0, "halved": 1}
    assert {name: len(table) for name, table in tally.variants(cases).items()} == {"S halved": 2}
    assert tally.statements(cases)["trial"].tolist() == ["arm"]
    assert "halved" not in tally.summary(cases)


def test_every_line_of_a_box_is_as_wide_as_asked():
    text = tally.box("Title", ["word " * 30, "two"], width=40)
    assert {len(line) for line in text.splitlines()} == {40}


def test_statements_are_lines_beside_cells_and_each_says_in_how_many_cases_it_held(tmp_path):
    good, bad, none = (
        tally.bound("P1", "a", [1, 2], 3),
        tally.bound("P1", "b", [1, 4], 3),
        tally.bound("P2", "a", [], 3),
    )
    table = tally.statements(tally.join([good, bad, none, tally.bound("P1", "half", [2], 1, holds=False)]))
    words = ["holds (2 cases, 0 violations)", "fails (2 cases, 1 violations)"]
    assert table["word"].tolist() == words
    assert tally.word(0, 0) == "not tried"
    assert tally.sentence(table) == "1 of 2 statements hold (4 cases, 1 violations)"
    rows = pd.DataFrame([(s, h, 0.4 + h) for s in range(5) for h in (0.1, 0.2)], columns=["seed", "step_size", "value"])
    cells = claims.cells(rows.assign(comparable=True, map="raw"), by="step_size", arm=["map"], family=[])
    record = claims.record({"C6": cells, "C5": table})
    assert record["arm"].tolist() == ["raw", "P1, a", "P1, b"]
    claims.save(record, tmp_path)
    back = pd.read_csv(tmp_path / "claims.csv")
    assert back["word"].tolist() == ["leans up", *words]
    assert sorted(claims.agrees(back, record)["judged"]) == ["agrees", "no pair", "no pair"]
