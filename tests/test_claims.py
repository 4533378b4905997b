import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from attrobust import claims
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

STEPS = (0.01, 0.03, 0.1, 0.3)
RANGE = np.log(30)


def runs(slope=0.0, *, noise=0.1, seeds=10, steps=STEPS, draw=0, **columns):
    """Long rows of one arm: value = seed's level + slope log(step size) + noise."""
    rng = np.random.default_rng(draw)
    table = [
        {
            "key": f"{draw} {seed} {step}",
            "seed": seed,
            "step_size": step,
            "value": level + slope * np.log(step) + noise * rng.normal(),
        }
        for seed in range(seeds)
        for level in [rng.normal()]
        for step in steps
    ]
    return pd.DataFrame(table).assign(comparable=True, reason="", metric="metric", **columns)


def permuted(table, draw):
    """The same runs with the step labels of every seed shuffled."""
    rng = np.random.default_rng(draw)
    shuffled = table.groupby("seed")["step_size"].transform(lambda s: rng.permutation(s.to_numpy()))
    return table.assign(step_size=shuffled)


def judged(table, claimed="up"):
    t = claims.trend(table, metric="value", by="step_size")
    return claims.verdict(t.low, t.high, claimed=claimed)


# ------------------------------------------------------------------ one arm


def test_an_exact_trend_is_its_slope_times_the_log_of_the_range():
    t = claims.trend(runs(0.7, noise=0.0, seeds=3), metric="value", by="step_size")
    assert t.change == pytest.approx(0.7 * RANGE)
    assert (t.low, t.high) == pytest.approx((t.change, t.change))
    assert t.seeds == 3
    assert t.last - t.first == pytest.approx(t.change)


def test_a_trend_agrees_with_slopes_and_interval_done_by_hand():
    table = runs(0.2, noise=0.5, seeds=7)
    slopes = [np.polyfit(np.log(r["step_size"]), r["value"], 1)[0] * RANGE for _, r in table.groupby("seed")]
    t = claims.trend(table, metric="value", by="step_size")
    half = stats.t.ppf(0.975, 6) * np.std(slopes, ddof=1) / np.sqrt(7)
    assert t.per_seed == pytest.approx(slopes)
    assert t.change == pytest.approx(np.mean(slopes))
    assert (t.low, t.high) == pytest.approx((np.mean(slopes) - half, np.mean(slopes) + half))
    assert t.first == pytest.approx(table[table["step_size"] == 0.01]["value"].mean())
    assert t.last == pytest.approx(table[table["step_size"] == 0.3]["value"].mean())


@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10), unit=st.floats(1e-3, 1e3))
def test_a_trend_follows_the_units_of_the_metric_and_ignores_those_of_the_step(scale, shift, unit):
    table = runs(0.2, seeds=4)
    plain = claims.trend(table, metric="value", by="step_size")
    other = table.assign(value=scale * table["value"] + shift, step_size=unit * table["step_size"])
    moved = claims.trend(other, metric="value", by="step_size")
    assert moved.change == pytest.approx(scale * plain.change, rel=1e-6)
    assert moved.low == pytest.approx(scale * plain.low, rel=1e-6, abs=1e-6)


def test_the_order_of_rows_does_not_matter():
    table = runs(0.2)
    t, u = (
        claims.trend(rows, metric="value", by="step_size") for rows in (table, table.sample(frac=1, random_state=1))
    )
    assert t.change == pytest.approx(u.change)
    assert (t.low, t.high) == pytest.approx((u.low, u.high))


@pytest.mark.parametrize(("slope", "found"), [(0.1, claims.SUPPORTED), (-0.1, claims.OPPOSITE)])
def test_a_planted_trend_is_found(slope, found):
    verdicts = [judged(runs(slope, draw=draw)) for draw in range(20)]
    assert verdicts == [found] * 20
    turned = [judged(runs(-slope, draw=draw), "down") for draw in range(20)]
    assert turned == [found] * 20


def test_a_planted_null_with_few_seeds_is_undecided():
    assert judged(runs(0.0, seeds=3)) == claims.UNDECIDED
    verdicts = [judged(runs(0.0, seeds=3, draw=draw)) for draw in range(60)]
    assert verdicts.count(claims.UNDECIDED) >= 52


@pytest.mark.parametrize("seeds", [0, 1])
def test_fewer_than_two_seeds_decide_nothing(seeds):
    t = claims.trend(runs(5.0, noise=0.0, seeds=2).query("seed < @seeds"), metric="value", by="step_size")
    assert (t.low, t.high) == (-np.inf, np.inf)
    assert claims.verdict(t.low, t.high, claimed="up") == claims.UNDECIDED


def test_permuted_step_labels_get_a_verdict_in_about_five_percent_of_arms():
    arms = 300
    verdicts = [judged(permuted(runs(0.1, draw=draw), draw)) for draw in range(arms)]
    wrong = arms - verdicts.count(claims.UNDECIDED)
    low, high = stats.binom.interval(0.999, arms, 0.05)
    assert low <= wrong <= high


def test_seeds_that_lost_their_runs_are_left_out():
    table = runs(0.7, noise=0.0, seeds=4)
    few = table[(table["seed"] != 2) | (table["step_size"] == 0.1)]
    t = claims.trend(few, metric="value", by="step_size")
    assert t.seeds == 3
    assert t.change == pytest.approx(0.7 * RANGE)


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


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.04, 0.04, claims.SUPPORTED),
        (-0.06, 0.04, claims.UNDECIDED),
        (0.01, 0.2, claims.UNDECIDED),
        (0.06, 0.2, claims.OPPOSITE),
        (-0.2, -0.06, claims.OPPOSITE),
        (-np.inf, np.inf, claims.UNDECIDED),
        (-0.04, 0.05, claims.UNDECIDED),
        (-0.05, 0.04, claims.UNDECIDED),
        (0.05, 0.2, claims.UNDECIDED),
        (-0.2, -0.05, claims.UNDECIDED),
    ],
)
def test_no_gain_asks_for_the_whole_interval_inside_its_margin(low, high, expected):
    assert claims.no_gain(low, high, margin=0.05) == expected


def test_bad_questions_are_refused():
    with pytest.raises(ValueError, match="claimed is 'more'; it must be 'up' or 'down'"):
        claims.verdict(0.1, 0.2, claimed="more")
    with pytest.raises(ValueError, match="rows have no column 'sharpnes'; a trend needs 'seed', 'step_size' and"):
        claims.trend(runs(), metric="sharpnes", by="step_size")


def test_a_seed_that_lost_an_end_is_told_over_the_whole_range_of_the_arm():
    """The slope is the seed's; the range it is told over is the arm's, not what is left of the seed."""
    table = runs(0.7, noise=0.0, seeds=4)
    short = table[(table["seed"] != 2) | (table["step_size"] < 0.2)]
    t = claims.trend(short, metric="value", by="step_size")
    assert t.per_seed == pytest.approx([0.7 * RANGE] * 4)
    halved = table.assign(value=table["value"].where(~((table["seed"] == 2) & (table["step_size"] > 0.2))))
    assert claims.trend(halved, metric="value", by="step_size").per_seed == pytest.approx([0.7 * RANGE] * 4)


def test_every_seed_enters_the_mean():
    table = runs(0.0, noise=0.0, seeds=5)
    table["value"] = table["seed"] * np.log(table["step_size"])
    t = claims.trend(table, metric="value", by="step_size")
    assert t.per_seed == pytest.approx([seed * RANGE for seed in range(5)])
    assert t.change == pytest.approx(2 * RANGE)


# ------------------------------------------------------------------ many arms


def two_arms():
    up = runs(0.3, dataset="digits", protocol="matched", activation="gelu")
    down = runs(-0.3, draw=1, dataset="digits", protocol="plateau", activation="gelu")
    return pd.concat([up, down], ignore_index=True)


def test_every_arm_and_metric_gets_its_own_verdict():
    table = two_arms()
    table = pd.concat([table, table.assign(metric="mirror", value=-table["value"])], ignore_index=True)
    found = claims.judge(table, {"metric": "up", "mirror": "up"}, by="step_size").set_index(["protocol", "metric"])
    assert found["verdict"].to_dict() == {
        ("matched", "metric"): claims.SUPPORTED,
        ("matched", "mirror"): claims.OPPOSITE,
        ("plateau", "metric"): claims.OPPOSITE,
        ("plateau", "mirror"): claims.SUPPORTED,
    }
    for protocol, rows in two_arms().groupby("protocol"):
        t = claims.trend(rows, metric="value", by="step_size")
        assert found.loc[(protocol, "metric"), "change"] == t.change


def test_runs_that_are_not_comparable_leave_their_arm_and_are_counted():
    table = two_arms()
    gone = (table["protocol"] == "matched") & (table["step_size"] == 0.3)
    spoilt = table.assign(
        comparable=~gone, reason=np.where(gone, "diverged", ""), value=table["value"].where(~gone, 1e9)
    )
    found = claims.judge(spoilt, {"metric": "up"}, by="step_size").set_index("protocol")
    clean = claims.judge(table[~gone], {"metric": "up"}, by="step_size").set_index("protocol")
    assert found.loc["matched", "change"] == clean.loc["matched", "change"]
    assert (found.loc["matched", "runs"], found.loc["matched", "left_out"]) == (30, 10)
    counted = claims.left_out(spoilt)
    assert counted.to_dict("records") == [
        {"dataset": "digits", "protocol": "matched", "step_size": 0.3, "reason": "diverged", "runs": 10}
    ]


def test_a_metric_that_no_row_holds_is_refused():
    with pytest.raises(ValueError, match="rows hold no metric 'metrik'; they hold metric"):
        claims.judge(two_arms(), {"metrik": "up"}, by="step_size")


def test_an_arm_without_runs_is_undecided():
    table = two_arms()
    found = claims.judge(table.assign(comparable=table["protocol"] == "plateau"), {"metric": "up"}, by="step_size")
    assert found.set_index("protocol").loc["matched", "verdict"] == claims.UNDECIDED


def test_directions_turn_round_over_batch_size():
    step = two_arms()
    batch = step.rename(columns={"step_size": "batch_size"}).assign(step_size=0.1, key="batch " + step["key"])
    table = pd.concat([step.assign(batch_size=32), batch], ignore_index=True)
    inside = table.index < len(step)
    found = claims.assess(
        table, {"C1": {"metric": "up"}}, step=table["key"][inside], batch=table["key"][~inside]
    ).set_index(["by", "protocol"])
    assert found.loc[("step_size", "matched"), "verdict"] == claims.SUPPORTED
    assert found.loc[("batch_size", "matched"), "verdict"] == claims.OPPOSITE
    assert found.loc[("batch_size", "matched"), "claimed"] == "down"
    assert found.loc[("step_size", "matched"), "arm"] == "metric | step_size | digits | gelu | matched"
    assert found.loc[("step_size", "matched"), "change"] == found.loc[("batch_size", "matched"), "change"]
    page = claims.overview(found.reset_index())
    for change, mark in ((found.iloc[0]["change"], "+"), (found.iloc[1]["change"], "-")):
        assert f"{change:+.3g} [{mark}]" in page
    assert "C1, by step size: supported in 1, opposite in 1, undecided in 0 of 2 arms" in page
    assert "metric / batch" in page


def test_a_page_has_one_column_per_arm_activations_included():
    tables = [two_arms(), two_arms().assign(activation="relu")]
    table = pd.concat(tables, ignore_index=True).assign(batch_size=32)
    found = claims.assess(table, {"C1": {"metric": "up"}}, step=table["key"], batch=table["key"])
    page = claims.overview(found)
    assert page.count("[+]") == 1 + 2
    assert page.count("[-]") == 1 + 2
    assert "relu" in page


def test_arms_of_a_page_stand_in_the_order_of_the_table_data_sets_first():
    parts = [two_arms().assign(dataset=name, batch_size=32) for name in ("mnist", "digits")]
    table = pd.concat(parts, ignore_index=True).sort_values("protocol", kind="stable")
    page = claims.overview(claims.assess(table, {"C1": {"metric": "up"}}, step=table["key"], batch=table["key"]))
    datasets, protocols = (line.split() for line in page.splitlines()[2:4])
    assert datasets == ["mnist", "digits"]
    assert protocols == ["matched", "plateau"] * 2
    assert page.index("C1, by step size") < page.index("C1, by batch size")


def test_the_corruption_of_one_row_changes_the_stated_change():
    table = two_arms()
    before = claims.judge(table, {"metric": "up"}, by="step_size")
    table.loc[5, "value"] += 1e-3
    after = claims.judge(table, {"metric": "up"}, by="step_size")
    assert (before["change"] != after["change"]).tolist() == [True, False]


# ------------------------------------------------------------------ pooling


def paule_mandel(effects, variances):
    """Random effects by hand: the between-variance at which Cochran's Q equals its degrees of freedom."""
    effects, variances, free = np.array(effects), np.array(variances), len(effects) - 1

    def excess(between):
        weights = 1 / (variances + between)
        center = (weights * effects).sum() / weights.sum()
        return (weights * (effects - center) ** 2).sum() - free

    between = optimize.brentq(excess, 0, 1e4) if excess(0) > 0 else 0.0
    weights = 1 / (variances + between)
    center = (weights * effects).sum() / weights.sum()
    scale = (weights * (effects - center) ** 2).sum() / free
    half = stats.t.ppf(0.975, free) * np.sqrt(scale / weights.sum())
    return center, center - half, center + half


def clusters(slopes, *, arms=("matched", "plateau"), seeds=6):
    parts = [
        runs(s, draw=10 * i + j, seeds=seeds, dataset=f"set {i}", protocol=arm)
        for i, s in enumerate(slopes)
        for j, arm in enumerate(arms)
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("slopes", [(0.1, 0.2, 0.5), (0.1, 0.1, 0.1), (-0.3, 0.4)])
def test_pooling_agrees_with_random_effects_done_by_hand(slopes):
    table = clusters(slopes)
    effects, variances = [], []
    for _, inside in table.groupby("dataset"):
        per_seed = [claims.trend(r, metric="value", by="step_size").per_seed for _, r in inside.groupby("protocol")]
        mean = np.mean(per_seed, axis=0)
        effects.append(mean.mean())
        variances.append(mean.var(ddof=1) / len(mean))
    center, low, high = paule_mandel(effects, variances)
    found = claims.pooled(table, metric="metric", by="step_size", cluster=["dataset"], arm=["protocol"])
    assert found.per_seed == pytest.approx(effects)
    assert found.change == pytest.approx(center, rel=1e-4)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)
    assert found.seeds == 6 * len(slopes)


def test_a_single_cluster_keeps_its_own_interval():
    table = clusters([0.2], arms=("matched",))
    alone = claims.trend(table, metric="value", by="step_size")
    found = claims.pooled(table, metric="metric", by="step_size", cluster=["dataset"], arm=["protocol"])
    assert (found.change, found.low, found.high) == pytest.approx((alone.change, alone.low, alone.high))


def test_arms_are_averaged_seed_by_seed_even_where_one_lost_a_seed():
    table = clusters([0.2])
    # Seeds have opposite noise in the two arms, so that only pairs of one seed cancel.
    sign = np.where(table["protocol"] == "matched", 1, -1)
    slope = 0.2 + sign * 0.1 * (table["seed"] - 2.5)
    table = table.assign(value=slope * np.log(table["step_size"]))
    lost = table[(table["protocol"] == "plateau") | (table["seed"] != 0)]
    found = claims.pooled(lost, metric="metric", by="step_size", cluster=["dataset"], arm=["protocol"])
    assert found.change == pytest.approx(0.2 * RANGE)
    assert found.high - found.low < 1e-9
    assert found.seeds == 5


def test_nothing_to_pool_decides_nothing():
    table = clusters([0.2]).assign(comparable=False)
    found = claims.pooled(table, metric="metric", by="step_size", cluster=["dataset"], arm=["protocol"])
    assert (found.low, found.high, found.seeds) == (-np.inf, np.inf, 0)


def test_conditions_tell_each_protocols_pooled_change():
    table = clusters([0.1, 0.2, 0.3])
    page = claims.conditions(table, metric="metric", by="step_size", cluster=["dataset"])
    for protocol, inside in table.groupby("protocol"):
        t = claims.pooled(inside, metric="metric", by="step_size", cluster=["dataset"], arm=["protocol"])
        line = next(line for line in page.splitlines() if line.strip().startswith(protocol))
        assert f"{t.change:+.3f}  95 % interval [{t.low:+.3f}, {t.high:+.3f}]  from 3 clusters" in line


# ------------------------------------------------------------------ tables


def test_means_come_with_their_interval_and_number():
    table = runs(seeds=5, dataset="digits")
    table = table.drop(columns="metric").rename(columns={"value": "accuracy"})
    found = claims.means(table, ["accuracy"], by=["dataset", "step_size"])
    assert found[["dataset", "step_size", "metric", "n"]].to_numpy().tolist() == [
        ["digits", step, "accuracy", 5] for step in STEPS
    ]
    for row in found.itertuples():
        values = table[table["step_size"] == row.step_size]["accuracy"]
        assert row.mean == pytest.approx(values.mean())
        assert (row.low, row.high) == pytest.approx(claims.interval(values))


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
    found = claims.judge(two_arms(), {"metric": "up"}, by="step_size")
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


# ------------------------------------------------------------------ does a gain reach another explanation?


def two_explanations(first, second, *, seeds=5, noise=0.005):
    draw = np.random.default_rng(0)
    steps = [0.01, 0.03, 0.1]
    rows = []
    for seed in range(seeds):
        for step in steps:
            at = np.log(step / steps[0]) / np.log(steps[-1] / steps[0])
            run = {"dataset": "digits", "seed": seed, "step_size": step, "comparable": True, "metric": "worst_spearman"}
            for name, start, change in (("a", 0.5, first), ("b", 0.7, second)):
                rows.append(run | {"map": name, "value": start + change * at + noise * draw.standard_normal()})
    return pd.DataFrame(rows)


def verdicts_of(rows):
    table = claims.reach(rows, ["worst_spearman"], claim="C6", gaining="a", others=["b"], by="step_size")
    assert table.claim.eq("C6").all()
    return dict(zip(table.says, table.verdict, strict=True)), table


def test_a_gain_that_does_not_reach_the_other_is_seen():
    found, table = verdicts_of(two_explanations(0.2, 0.0))
    assert found == {"gains": "supported", "gains less than a": "supported", "does not gain": "supported"}
    assert table.change.round(1).tolist() == [0.2, 0.2, 0.0]
    assert table["first"].round(1).tolist() == [0.5, 0.7, 0.7]
    assert "C6: supported in 3, opposite in 0, undecided in 0 of 3 arms" in claims.reached(table)


def test_a_gain_that_reaches_the_other_is_seen_too():
    found, _ = verdicts_of(two_explanations(0.2, 0.2))
    assert (found["gains less than a"], found["does not gain"]) == ("undecided", "opposite")
    found, _ = verdicts_of(two_explanations(0.1, 0.3))
    assert (found["gains"], found["gains less than a"]) == ("supported", "opposite")


def test_every_seed_that_both_explanations_have_enters_their_comparison():
    """One seed more or less changes the mean of the paired differences: none may be dropped, none counted twice."""
    rows = two_explanations(0.0, 0.0, seeds=5, noise=0.0)
    own = np.log(rows["step_size"] / 0.01) / np.log(10)
    rows["value"] = np.where(rows["map"] == "a", rows["seed"] ** 2, -rows["seed"]) * own
    table = verdicts_of(rows)[1].set_index("says")
    assert table["seeds"].tolist() == [5, 5, 5]
    assert table["change"].tolist() == pytest.approx([6, 8, -2])
    lost = rows[(rows["map"] == "a") | (rows["seed"] != 4)]
    table = verdicts_of(lost)[1].set_index("says")
    assert table["seeds"].tolist() == [5, 4, 4]
    assert table["change"].tolist() == pytest.approx([6, 5, -1.5])


def test_too_few_seeds_are_undecided_and_never_no_gain():
    found, _ = verdicts_of(two_explanations(0.2, 0.0, seeds=1))
    assert set(found.values()) == {"undecided"}


def test_incomparable_runs_do_not_count():
    rows = two_explanations(0.2, 0.0)
    spoiled = rows.assign(comparable=rows.step_size < 0.1)
    spoiled.loc[~spoiled.comparable & (spoiled["map"] == "b"), "value"] = 9.0
    assert verdicts_of(spoiled)[0]["does not gain"] == "supported"


# ------------------------------------------------------------------ is it restored?


def two_attentions(reference, other, **options):
    """Runs of two attentions; each explanation's change over the range of step sizes is given."""
    parts = [two_explanations(*change, **options).assign(attention=name) for name, change in
             (("softmax", reference), ("gaussian", other))]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def restored(rows, explanation="b"):
    how = {"claim": "C7", "explanations": [explanation], "by": "step_size", "reference": "softmax"}
    table = claims.restored(rows, ["worst_spearman"], **how)
    assert table.claim.eq("C7").all()
    assert table.attention.eq("gaussian").all()
    return dict(zip(table.says, table.verdict, strict=True)), table


def test_a_planted_gain_under_another_attention_is_restored():
    found, table = restored(two_attentions((0.2, 0.0), (0.2, 0.15)))
    assert set(found.values()) == {"supported"}
    assert table.change.to_numpy() == pytest.approx([0.15, 0.15], abs=0.02)
    assert "restored, n = 5" in claims.kernel_by_kernel(table)


def test_data_sets_stand_in_the_order_of_the_rows():
    rows = two_attentions((0.2, 0.0), (0.2, 0.15))
    both = pd.concat([rows.assign(dataset="mnist"), rows.assign(dataset="digits")], ignore_index=True)
    assert restored(both)[1].dataset.unique().tolist() == ["mnist", "digits"]


def test_a_gain_that_softmax_has_too_is_not_restored():
    found, table = restored(two_attentions((0.2, 0.15), (0.2, 0.15)))
    assert found == {"gains": "supported", "gains more than softmax": "undecided"}
    assert "not shown" in claims.kernel_by_kernel(table)


def test_less_loss_than_under_softmax_is_not_a_gain():
    found, _ = restored(two_attentions((0.0, -0.3), (0.0, -0.1)))
    assert found == {"gains": "opposite", "gains more than softmax": "supported"}


def test_a_kernel_at_few_steps_and_seeds_is_paired_with_softmax_there():
    rows = two_attentions((0.2, 0.0), (0.2, 0.15))
    ends = rows.step_size.isin([rows.step_size.min(), rows.step_size.max()]) & (rows.seed < 3)
    few = rows[(rows.attention == "softmax") | ends]
    bent = few.copy()  # softmax elsewhere must not matter
    bent.loc[(bent.attention == "softmax") & ~ends & (bent["map"] == "b"), "value"] = 9.0
    assert restored(bent)[1].change.to_numpy() == pytest.approx(restored(few)[1].change.to_numpy())
    assert restored(few)[1].seeds.eq(3).all()


def test_parity_needs_the_whole_interval_inside_the_margin():
    rows = two_attentions((0.0, 0.0), (0.0, 0.0), noise=0.001)
    rows = rows[rows["map"] == "b"].rename(columns={"value": "accuracy"})
    rows["accuracy"] += 0.001 * np.random.default_rng(1).standard_normal(len(rows))
    how = {"metric": "accuracy", "reference": "softmax"}
    same = claims.parity(rows, margin=0.01, **how)
    assert same["within 0.01"].tolist() == ["supported"]
    assert same.pairs.tolist() == [15]
    assert claims.parity(rows, margin=1e-4, **how)["within 0.0001"].tolist() == ["undecided"]
    lower = rows.assign(accuracy=rows.accuracy - 0.1 * (rows.attention == "gaussian"))
    assert claims.parity(lower, margin=0.01, **how)["within 0.01"].tolist() == ["opposite"]


# ------------------------------------------------------------------ strength of an attack


def efforts(**strong):
    rows = [{"map": m, "steps": 20, "spearman": 0.5, "top_k": 0.75} for m in ("a", "b")]
    rows += [{"map": m, "steps": 200, "spearman": strong.get(m, 0.5), "top_k": 0.75} for m in ("b", "a")]
    return pd.DataFrame(rows)


def strength(table):
    found = claims.strong_enough(table, claim="C", by=["map"], metrics=["spearman", "top_k"], default=20)
    return found.set_index(["map", "metric"])


def test_an_attack_is_strong_enough_if_a_far_stronger_one_takes_off_no_more_than_the_margin():
    found = strength(efforts(a=0.4805, b=0.4795))
    assert found.loc[("a", "spearman"), "change"] == pytest.approx(0.0195)
    assert found["verdict"].to_dict() == {
        ("a", "spearman"): "supported", ("a", "top_k"): "supported",
        ("b", "spearman"): "opposite", ("b", "top_k"): "supported",
    }  # fmt: skip
    assert found.loc[("b", "spearman"), "arm"] == "b | spearman"


def test_a_default_attack_that_is_the_stronger_one_leaves_nothing_on_the_table():
    assert strength(efforts(a=0.9)).loc[("a", "spearman"), ["change", "verdict"]].tolist() == [-0.4, "supported"]


@pytest.mark.parametrize("lost", [0, 3])
def test_a_map_without_one_of_two_efforts_is_refused(lost):
    table = efforts()
    for broken in (table.drop(index=lost), pd.concat([table, table.iloc[[lost]]])):
        with pytest.raises(ValueError, match="efforts must hold every map once with steps 20 and once with other"):
            strength(broken)
