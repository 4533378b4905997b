"""Means and paired differences at the edges of their rules: equal columns, single units, lines in their own order."""

import numpy as np
import pandas as pd
import pytest
from attrobust import claims
from scipy import stats

COMPARED = {"of": "attack", "arm": "map", "metric": "cosine"}


def table_of(**units):
    """Maps with their units' noise and attack."""
    rows = [(name, i, *pair) for name, pairs in units.items() for i, pair in enumerate(pairs)]
    return pd.DataFrame(rows, columns=["map", "image", "noise", "attack"]).set_index(["map", "image"])


def test_equal_columns_are_unclear_and_a_line_without_p_counts_for_holm():
    pairs = [(0.5, 0.6), (0.4, 0.51), (0.6, 0.72), (0.3, 0.4)]
    table = table_of(same=[(0.5, 0.5)] * 4, lone=[(0.5, 0.9)], two=[(0.1, 0.3), (0.2, 0.5)], z=pairs, a=pairs)
    found = claims.paired(table, minus=["noise"], **COMPARED).set_index("map")
    assert [*found.index] == ["same", "lone", "two", "z", "a"]
    assert found["word"].to_dict() == {"same": "unclear", "lone": "unclear", "two": "unclear", "z": "up", "a": "up"}
    assert found.loc[["same", "lone", "two"], "p_holm"].tolist() == [1, 1, pytest.approx(3 * found.loc["two", "p"])]
    exact = stats.ttest_1samp([0.1, 0.11, 0.12, 0.1], 0).pvalue
    assert found.loc["z", "p_holm"] == pytest.approx(5 * exact)
    assert found.loc["two", "p"] == pytest.approx(stats.ttest_1samp([0.2, 0.3], 0).pvalue)
    assert np.isnan(found.loc["lone", "p"])
    assert found.loc["z", ["first", "last", "effect"]].tolist() == pytest.approx([0.45, 0.5575, 0.1075])
    half = stats.t.ppf(0.975, 3) * np.std([0.1, 0.11, 0.12, 0.1], ddof=1) / 2
    assert found.loc["z", ["low", "high", "half"]].tolist() == pytest.approx([0.1075 - half, 0.1075 + half, half])
    assert found.loc["z", ["measured", "by", "start", "end"]].tolist() == [
        "cosine",
        "noise to attack",
        "noise",
        "attack",
    ]


def test_an_interval_below_zero_leans_down_where_holm_says_no_more():
    down = [(0.6, 0.55), (0.6, 0.4), (0.7, 0.6), (0.9, 0.6), (0.8, 0.65)]
    found = claims.paired(table_of(**{f"m{i}": down for i in range(9)}), minus=["noise"], **COMPARED)
    assert (found["high"] < 0).all()
    assert found["p_holm"].tolist() == pytest.approx(np.minimum(1, found["p"] * 9).tolist())
    assert set(found["word"]) == {"leans down"}
    alone = claims.paired(table_of(m=down), minus=["noise"], **COMPARED)
    assert alone["word"].tolist() == ["down"]


def test_every_column_is_compared_with_in_the_order_that_is_asked():
    table = table_of(z=[(0.1, 0.3), (0.2, 0.5), (0.1, 0.2)], a=[(0.3, 0.3), (0.2, 0.1), (0.4, 0.4)])
    found = claims.paired(table.assign(best=[0.4, np.nan, 0.2, 0.1, 0.5, 0.3]), minus=["noise", "best"], **COMPARED)
    assert found[["map", "start", "units"]].to_numpy().tolist() == [
        ["z", "noise", 3], ["z", "best", 2], ["a", "noise", 3], ["a", "best", 3],
    ]  # fmt: skip
    assert found["effect"].tolist() == pytest.approx([0.2, -0.05, -0.1 / 3, -0.1 / 3])
    assert found["first"].tolist() == pytest.approx([0.4 / 3, 0.3, 0.3, 0.3])
    assert found["last"].tolist() == pytest.approx([1 / 3, 0.25, 0.8 / 3, 0.8 / 3])


def test_a_unit_that_is_there_twice_is_refused():
    table = table_of(saliency=[(0.9, 0.6), (0.8, 0.3)], raw=[(0.9, 0.6), (0.8, 0.3)])
    assert set(claims.paired(table, minus=["noise"], **COMPARED)["units"]) == {2}
    with pytest.raises(ValueError, match="the table has saliency, 1 twice; each unit of 'map' must be one row"):
        claims.paired(pd.concat([table, table[1:2]]), minus=["noise"], **COMPARED)


def test_rows_that_are_indexed_by_what_is_judged_alone_are_units_without_a_name():
    table = table_of(a=[(0.5, 0.6), (0.4, 0.51), (0.6, 0.72)], b=[(0.3, 0.2), (0.5, 0.38)])
    named = claims.paired(table, minus=["noise"], **COMPARED)
    pd.testing.assert_frame_equal(claims.paired(table.droplevel("image"), minus=["noise"], **COMPARED), named)


def test_claims_are_told_in_the_order_of_their_lines():
    found = claims.paired(table_of(m=[(0.1, 0.3), (0.2, 0.5)]), minus=["noise"], **COMPARED)
    page = claims.differences(claims.record({"F2": found, "F1": found})).splitlines()
    assert page[-2:] == ["F2: unclear in 1 of 1 comparisons", "F1: unclear in 1 of 1 comparisons"]


def test_means_are_of_the_metrics_that_are_asked_in_the_order_of_the_table():
    table = pd.DataFrame({"map": ["z", "a", "z"], "w": [3.0, 4.0, 5.0], "v": [1.0, 2.0, 2.0], "other": 7.0})
    found = claims.means(table, ["w", "v"], by=["map"])
    assert found[["map", "metric", "mean", "n"]].to_numpy().tolist() == [
        ["z", "w", 4.0, 2], ["a", "w", 4.0, 1], ["z", "v", 1.5, 2], ["a", "v", 2.0, 1],
    ]  # fmt: skip
    half = stats.t.ppf(0.975, 1) * 0.5
    assert found.loc[2, ["low", "high"]].tolist() == pytest.approx([1.5 - half, 1.5 + half])
