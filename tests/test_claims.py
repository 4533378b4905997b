import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from attrobust import claims
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats


def test_the_interval_covers_the_true_mean_in_95_percent_of_samples():
    rng = np.random.default_rng(0)
    hits = sum(low <= 1.0 <= high for low, high in (claims.interval(rng.normal(1, 2, 5)) for _ in range(2000)))
    assert abs(hits / 2000 - 0.95) < 4 * (0.95 * 0.05 / 2000) ** 0.5


@given(a=st.floats(-5, 5), b=st.floats(-5, 5))
def test_verdicts_depend_on_the_side_of_zero_alone(a, b):
    low, high = min(a, b), max(a, b)
    up, down = (claims.verdict(low, high, claimed=c) for c in ("up", "down"))
    expected = (
        (claims.SUPPORTED, claims.OPPOSITE) if low > 0 else (claims.OPPOSITE, claims.SUPPORTED) if high < 0 else None
    )
    assert (up, down) == (expected or (claims.UNDECIDED, claims.UNDECIDED))


def test_bad_questions_are_refused():
    with pytest.raises(ValueError, match="claimed is 'more'; it must be 'up' or 'down'"):
        claims.verdict(0.1, 0.2, claimed="more")


@pytest.mark.parametrize("values", [[], [0.3]])
def test_fewer_than_two_values_have_no_interval(values):
    assert claims.interval(values) == (-np.inf, np.inf)


def test_runs_that_are_not_comparable_leave_their_arm_and_are_counted():
    runs = pd.DataFrame(
        {"dataset": "digits", "protocol": ["matched"] * 3 + ["plateau"], "step_size": [0.1, 0.3, 0.3, 0.3]}
    )
    runs = runs.assign(comparable=[True, False, False, True], reason=["", "diverged", "diverged", ""])
    assert claims.comparable(runs).index.tolist() == [0, 3]
    assert claims.left_out(runs).to_dict("records") == [
        {"dataset": "digits", "protocol": "matched", "step_size": 0.3, "reason": "diverged", "runs": 2}
    ]


def test_means_come_with_their_interval_and_number():
    steps = (0.01, 0.1, 1.0)
    table = pd.DataFrame({"step_size": steps * 5, "accuracy": np.random.default_rng(0).normal(size=15)})
    table = table.assign(dataset="digits")
    found = claims.means(table, ["accuracy"], by=["dataset", "step_size"])
    assert found[["dataset", "step_size", "metric", "n"]].to_numpy().tolist() == [
        ["digits", step, "accuracy", 5] for step in steps
    ]
    for row in found.itertuples():
        values = table[table["step_size"] == row.step_size]["accuracy"]
        assert row.mean == pytest.approx(values.mean())
        assert (row.low, row.high) == pytest.approx(claims.interval(values))
    named = table.rename(columns={"accuracy": "value"})
    assert claims.means(named, ["value"], by=["step_size"])["mean"].tolist() == found["mean"].tolist()


def pairs(gap, draw=0):
    rng = np.random.default_rng(draw)
    index = pd.MultiIndex.from_product([["saliency", "ig"], range(8)], names=["map", "image"])
    base = rng.normal(size=16)
    return pd.DataFrame({"attack": base, "noise": base + gap + 0.1 * rng.normal(size=16)}, index=index)


def test_paired_differences_agree_with_scipy():
    table = pairs(0.5)
    found = claims.paired(table, claim="C1", larger=["noise"], smaller="attack", arm="map", metric="cosine")
    assert found["arm"].tolist() == [f"cosine | {name} | noise above attack" for name in ("saliency", "ig")]
    for name, row in zip(("saliency", "ig"), found.itertuples(), strict=True):
        mine = table.loc[name]
        interval = stats.ttest_rel(mine["noise"], mine["attack"]).confidence_interval(0.95)
        assert (row.low, row.high) == pytest.approx(tuple(interval))
        assert row.change == pytest.approx((mine["noise"] - mine["attack"]).mean())
        assert row.n == 8
    assert (found["verdict"] == claims.SUPPORTED).all()
    reverse = claims.paired(pairs(-0.5), claim="C1", larger=["noise"], smaller="attack", arm="map", metric="cosine")
    assert (reverse["verdict"] == claims.OPPOSITE).all()


def test_pairs_with_a_missing_side_do_not_count():
    table = pairs(0.5)
    table.iloc[0, 0] = np.nan
    found = claims.paired(table, claim="C1", larger=["noise"], smaller="attack", arm="map", metric="cosine")
    assert found["n"].tolist() == [7, 8]


def test_differences_are_told_line_by_line():
    found = claims.paired(pairs(0.5), claim="C1", larger=["noise"], smaller="attack", arm="map", metric="cosine")
    page = claims.differences(found).splitlines()
    assert len(page) == 3
    assert all(
        f"= {row.change:+.2f}  [{row.low:+.2f}" in line for row, line in zip(found.itertuples(), page, strict=False)
    )
    assert page[-1] == "C1: supported in 2, opposite in 0, undecided in 0 of 2 arms"


def test_saved_claims_read_back_to_six_digits(tmp_path):
    found = claims.paired(pairs(0.5), claim="C1", larger=["noise"], smaller="attack", arm="map", metric="cosine")
    claims.save(found, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["claims.csv"]
    back = pd.read_csv(tmp_path / "claims.csv")
    assert back["change"].tolist() == pytest.approx(found["change"].tolist(), rel=1e-5)
    assert back["verdict"].tolist() == found["verdict"].tolist()
    assert [*back] == [*found]
    claims.save(found, tmp_path, name="strength")
    assert (tmp_path / "strength.csv").read_text() == (tmp_path / "claims.csv").read_text()


def test_drawing_and_judging_never_import_torch():
    code = "import sys, attrobust.claims, attrobust.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0
