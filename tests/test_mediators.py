"""Laws of what goes with robustness: planted relations are found, planted absences are not, arms are drawn whole."""

import numpy as np
import pandas as pd
import pytest
from attrobust import claims
from attrobust.claims import mediators
from scipy import stats


def runs(arms=12, each=10, seed=0, **columns):
    """Runs of some arms; `columns` are functions of (arm, a normal draw per run)."""
    rng = np.random.default_rng(seed)
    arm = np.repeat(np.arange(arms), each)
    table = pd.DataFrame({"arm": arm})
    return table.assign(**{name: make(arm, rng.standard_normal(len(arm))) for name, make in columns.items()})


def associations(rows, *properties, draws=300, seed=0, cluster=("arm",)):
    how = {"properties": list(properties), "cluster": list(cluster), "generator": np.random.default_rng(seed)}
    return claims.associations(rows, draws=draws, **how).set_index("property")


def test_the_correlation_is_scipys_over_all_runs_and_its_interval_holds_it():
    rows = runs(value=lambda arm, noise: arm + noise, size=lambda arm, noise: np.exp(arm + 3 * noise))
    line = associations(rows, "size").loc["size"]
    assert line.correlation == pytest.approx(stats.spearmanr(rows["size"], rows["value"]).statistic)
    assert line.low < line.correlation < line.high
    assert (line.runs, line.clusters) == (120, 12)


def test_arms_are_drawn_whole_so_that_copies_of_a_run_narrow_nothing():
    few = runs(each=1, value=lambda arm, noise: noise, size=lambda arm, noise: noise)
    many = pd.concat([few] * 25, ignore_index=True)
    one, copied = (associations(rows, "size", draws=2000).loc["size"] for rows in (few, many))
    assert copied.correlation == pytest.approx(one.correlation)
    assert (copied.low, copied.high) == pytest.approx((one.low, one.high), abs=0.06)
    alone = associations(many.assign(arm=range(len(many))), "size").loc["size"]
    assert alone.high - alone.low < 0.5 * (copied.high - copied.low)


def test_of_properties_that_go_with_nothing_the_interval_holds_zero_about_nineteen_times_in_twenty():
    held = 0
    for seed in range(60):
        rows = runs(arms=30, each=3, seed=seed, value=lambda arm, noise: noise, size=lambda arm, noise: noise)
        line = associations(rows, "size", draws=200, seed=seed).loc["size"]
        held += line.low <= 0 <= line.high
    assert held >= 50  # 57 expected; the chance of fewer than 50 is below one in a thousand


def test_a_property_that_varies_in_one_arm_alone_has_no_interval():
    """Draws without that arm have no correlation; without them the interval would miss zero half the time."""
    rows = runs(arms=8, each=6, value=lambda arm, noise: noise, size=lambda arm, noise: noise * (arm == 0))
    line = associations(rows, "size").loc["size"]
    assert np.isfinite(line.correlation)
    assert np.isnan([line.low, line.high]).all()


def test_any_rising_map_of_a_property_changes_nothing():
    rows = runs(value=lambda arm, noise: arm + noise, size=lambda arm, noise: arm + noise)
    one, other = (associations(rows.assign(size=change(rows["size"])), "size") for change in (np.exp, lambda v: 3 * v))
    pd.testing.assert_frame_equal(one, other)


def test_runs_without_the_property_do_not_enter_its_line_and_four_arms_have_no_interval():
    rows = runs(arms=6, value=lambda arm, noise: noise, size=lambda arm, noise: noise, other=lambda arm, noise: noise)
    rows.loc[rows.arm >= 4, "size"] = np.nan
    rows.loc[0, "other"] = np.inf
    table = associations(rows, "size", "other")
    assert table["runs"].tolist() == [40, 59]
    assert table["clusters"].tolist() == [4, 6]
    assert np.isnan(table.loc["size", ["low", "high"]]).all()
    assert np.isfinite(table.loc["other", ["low", "high"]].astype(float)).all()
    assert np.isnan(associations(rows.assign(size=1.0), "size").loc["size", "correlation"])
    assert associations(rows.assign(size=np.nan), "size").loc["size", "clusters"] == 0


def test_a_missing_column_is_named_and_so_is_a_number_of_draws_that_is_none():
    table = runs(value=lambda arm, noise: noise).assign(word="x")
    for how, sentence in (
        ({"cluster": ()}, r"cluster is \[\]; it must be a list of columns"),
        ({"properties": ["word"]}, "column 'word' holds .*; it must hold numbers"),
    ):
        with pytest.raises(ValueError, match=sentence):
            associations(table, *how.pop("properties", []), **how)
    with pytest.raises(ValueError, match="cluster is 'arm'; it must be a list of columns"):
        claims.associations(table, properties=[], cluster="arm", draws=1, generator=np.random.default_rng(0))
    for draws in (0, -1):
        with pytest.raises(ValueError, match=r"draws is .*; it must be a whole number of at least 1"):
            associations(runs(value=lambda arm, noise: noise), draws=draws)
    with pytest.raises(ValueError, match="rows have no column 'size'; they have arm, value"):
        associations(runs(value=lambda arm, noise: noise), "size")
    with pytest.raises(ValueError, match="rows have no column 'kind'"):
        claims.carried_over(runs(value=lambda arm, noise: noise), properties=[], by="kind")


# ------------------------------------------------------------------ carried over


def kinds(shift=0.0, sign=1.0, n=40, seed=0):
    """Three kinds of run whose robustness falls with a size; in kind "c" it is shifted, or turned round."""
    rng, tables = np.random.default_rng(seed), []
    for kind in "abc":
        size = rng.uniform(0, 1, n)
        value = 0.8 - 0.5 * (sign if kind == "c" else 1.0) * size + (shift if kind == "c" else 0.0)
        tables.append(pd.DataFrame({"kind": kind, "size": size, "value": value}))
    return pd.concat(tables, ignore_index=True)


def carried(rows):
    return claims.carried_over(rows, properties=["size"], by="kind").set_index("left_out")


def test_what_holds_in_every_kind_is_predicted_on_the_one_left_out():
    table = carried(kinds())
    assert (table["correlation"] == 1).all()
    assert table["r2"].between(0.9, 1).all()
    assert table["runs"].tolist() == [40] * 3


def test_another_level_keeps_the_order_and_loses_the_fit():
    line = carried(kinds(shift=0.6)).loc["c"]
    assert line.correlation == 1
    assert line.r2 < -5


def test_a_relation_that_turns_round_is_told_by_the_sign():
    line = carried(kinds(sign=-1.0)).loc["c"]
    assert line.correlation == -1
    assert line.r2 < 0


def test_the_prediction_is_that_of_a_line_through_the_ranks_of_the_others():
    rows = kinds(seed=3)
    rows["value"] += np.random.default_rng(5).normal(0, 0.2, len(rows))
    fitted, left = rows[rows.kind != "b"], rows[rows.kind == "b"]
    rank = [np.mean((fitted["size"].to_numpy() < s) + 0.5 * (fitted["size"].to_numpy() == s)) for s in fitted["size"]]
    slope, start = np.polyfit(rank, fitted["value"], 1)
    new = np.array([np.mean(fitted["size"].to_numpy() < s) for s in left["size"]])
    residual = left["value"] - (start + slope * new)
    expected = 1 - (residual**2).sum() / ((left["value"] - left["value"].mean()) ** 2).sum()
    assert carried(rows).loc["b", "r2"] == pytest.approx(expected)


def test_what_does_not_vary_is_neither_predicted_nor_predicts():
    rows = kinds()
    flat = carried(rows.assign(value=rows["value"].where(rows.kind != "a", 0.1))).loc["a"]
    assert np.isnan([flat.r2, flat.correlation]).all()
    blank = carried(rows.assign(size=rows["size"].where(rows.kind == "b", 0.5))).loc["b"]
    assert np.isnan(blank.correlation)
    assert carried(rows.assign(kind=rows.kind.where(rows.kind != "c"))).index.tolist() == ["a", "b", ""]


def test_a_kind_without_the_property_has_no_prediction():
    rows = kinds()
    rows.loc[rows.kind == "a", "size"] = np.nan
    table = carried(rows)
    assert np.isnan(table.loc["a", "r2"])
    assert np.isfinite(table.loc["b", "r2"])
    assert carried(rows[rows.kind == "b"])["r2"].isna().all()


def test_without_a_run_every_property_has_a_line_that_says_nothing():
    none = pd.DataFrame({"arm": ["a"], "sharpness": [1.0], "value": [1.0]})[:0]
    table = claims.associations(none, properties=["sharpness"], cluster=["arm"], generator=np.random.default_rng(0))
    assert table[["property", "runs", "clusters"]].to_numpy().tolist() == [["sharpness", 0, 0]]
    assert table[["correlation", "low", "high"]].isna().all(axis=None)
    assert list(claims.carried_over(none, properties=["sharpness"], by="arm")) == [
        "property", "left_out", "runs", "r2", "correlation",
    ]  # fmt: skip


def test_a_draw_of_arms_is_ranked_as_its_runs_written_out():
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 6, 20).astype(float), draw.normal(size=20).round(1)
    times = draw.integers(0, 4, (30, 20))
    times[0] = 0
    times[0, :3], x[:3] = 1, 2.0  # one side constant: no correlation
    found = mediators._rank_correlations(x, y, times)
    assert np.isnan(found[0])
    for one, row in zip(found[1:], times[1:], strict=True):
        assert one == pytest.approx(stats.spearmanr(np.repeat(x, row), np.repeat(y, row)).statistic, abs=1e-11)


def test_an_interval_is_that_of_the_arms_drawn_and_ranked_one_draw_after_the_other():
    """Five arms, the fewest; of 80 draws the ends are those an eightieth and a fortieth of the way in."""
    rows = runs(arms=5, each=4, value=lambda arm, noise: 0.1 * arm + noise, size=lambda arm, noise: noise + 0.2 * arm)
    line, drawn = associations(rows, "size", draws=80).loc["size"], []
    for arms in np.random.default_rng(0).integers(5, size=(80, 5)):
        whole = pd.concat([rows[rows.arm == arm] for arm in arms])
        drawn.append(stats.spearmanr(whole["size"], whole["value"]).statistic)
    drawn.sort()
    low = drawn[1] + (0.025 * 79 - 1) * (drawn[2] - drawn[1])
    high = drawn[77] + (0.975 * 79 - 77) * (drawn[78] - drawn[77])
    assert (line.low, line.high) == pytest.approx((low, high), abs=1e-10)
    assert drawn[0] < line.low < line.correlation < line.high < drawn[-1]


def test_correlations_are_told_to_twelve_digits():
    x, y = np.random.default_rng(0).normal(size=(2, 30))
    found = mediators._rank_correlations(x, y, np.random.default_rng(1).integers(0, 3, (40, 30)))
    assert np.array_equal(found, found.round(12))
    assert (found != found.round(11)).mean() > 0.5


def test_one_run_elsewhere_predicts_nothing_and_two_runs_of_each_side_are_enough():
    rows = pd.DataFrame({"kind": [*"abbcc"], "size": [1.0, 1, 3, 2, 3], "value": [0.5, 0.1, 0.7, 0.3, 0.9]})
    lone = carried(rows[:3])
    assert np.isnan(lone.loc["b", ["r2", "correlation"]].astype(float)).all()  # one run of "a" is no line
    assert np.isnan(lone.loc["a", ["r2", "correlation"]].astype(float)).all()  # nor is one run a kind
    assert lone["runs"].tolist() == [1, 2]
    line = carried(rows[1:]).loc["c"]  # ranks 1/4 and 3/4 of "b": a line from -0.2 that rises by 1.2
    assert line.r2 == pytest.approx(1 - ((0.3 - 0.4) ** 2 + (0.9 - 0.7) ** 2) / (2 * 0.3**2))
    assert line.correlation == 1


def test_the_correlation_on_another_kind_is_its_own_with_the_sign_of_the_others():
    rows = kinds(seed=1)
    rows["value"] += np.random.default_rng(2).normal(0, 0.2, len(rows))
    for kind, line in carried(rows).iterrows():
        part = rows[rows.kind == kind]
        assert line.correlation == pytest.approx(-stats.spearmanr(part["size"], part["value"]).statistic, abs=1e-11)
        assert 0.2 < line.correlation < 0.9
