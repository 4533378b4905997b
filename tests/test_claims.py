import gc
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from attrobust import claims
from attrobust.claims import rule
from scipy import stats
from statsmodels.stats import multitest


def test_the_interval_covers_the_true_mean_in_95_percent_of_samples():
    rng = np.random.default_rng(0)
    hits = sum(low <= 1.0 <= high for low, high in (claims.interval(rng.normal(1, 2, 5)) for _ in range(2000)))
    assert abs(hits / 2000 - 0.95) < 4 * (0.95 * 0.05 / 2000) ** 0.5


@pytest.mark.parametrize("values", [[], [0.3]])
def test_fewer_than_two_values_have_no_interval(values):
    assert claims.interval(values) == (-np.inf, np.inf)


def test_p_after_holm_is_that_of_statsmodels_bit_for_bit(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: None)  # multipletests calls it: a third of a second each time
    rng = np.random.default_rng(0)
    for size in range(1, 30):
        p = rng.random(size) ** 3
        for family in (p, p.round(1), np.zeros(size), np.ones(size)):
            assert np.array_equal(rule.after_holm(family), multitest.multipletests(family, method="holm")[1])
    assert rule.after_holm([]).tolist() == []


def test_runs_that_are_not_comparable_leave_their_arm_and_are_counted():
    runs = pd.DataFrame(
        {"dataset": "digits", "protocol": ["matched"] * 3 + ["plateau"], "step_size": [0.1, 0.3, 0.3, 0.3]}
    )
    runs = runs.assign(comparable=[True, False, False, True], reason=["", "diverged", "diverged", ""])
    assert claims.comparable(runs).index.tolist() == [0, 3]
    assert claims.left_out(runs).to_dict("records") == [
        {"dataset": "digits", "protocol": "matched", "step_size": 0.3, "reason": "diverged", "runs": 2}
    ]
    unsaid = claims.left_out(runs.assign(step_size=[0.1, 0.3, 0.2, 0.3], reason=["", "stopped", None, ""]))
    assert unsaid[["step_size", "runs"]].to_numpy().tolist() == [[0.3, 1], [0.2, 1]]  # as they came, with no reason too


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


COMPARED = {"of": "attack", "minus": ["noise"], "arm": "map", "metric": "cosine"}


def test_paired_differences_agree_with_scipy():
    table = pairs(0.5)
    found = claims.paired(table, **COMPARED)
    assert found[["measured", "map", "by"]].to_numpy().tolist() == [
        ["cosine", name, "noise to attack"] for name in ("saliency", "ig")
    ]
    for name, row in zip(("saliency", "ig"), found.itertuples(), strict=True):
        mine = table.loc[name]
        test = stats.ttest_rel(mine["attack"], mine["noise"])
        assert (row.low, row.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
        assert row.effect == pytest.approx((mine["attack"] - mine["noise"]).mean())
        assert row.p == pytest.approx(test.pvalue)
        assert row.half == pytest.approx((row.high - row.low) / 2)
        assert row.units == 8
    assert (found["word"] == "down").all()
    assert (claims.paired(pairs(-0.5), **COMPARED)["word"] == "up").all()


def test_paired_differences_are_words_only_after_holm_and_unclear_where_the_interval_holds_zero():
    draw = np.random.default_rng(3)
    index = pd.MultiIndex.from_product([[f"m{i}" for i in range(30)], range(6)], names=["map", "image"])
    table = pd.DataFrame({"noise": 0.0, "attack": draw.normal(0.6, 1, size=len(index))}, index=index)
    found = claims.paired(table, **COMPARED)
    p = found["p"].to_numpy()
    order = np.argsort(p)
    by_hand = np.empty(len(p))
    by_hand[order] = np.minimum(1, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
    assert found["p_holm"].to_numpy() == pytest.approx(by_hand)
    beside = (found["low"] > 0) | (found["high"] < 0)
    assert (beside == (found["p"] < 0.05)).all()
    assert set(found["word"][~beside]) == {"unclear"}
    assert set(found["word"][beside & (found["p_holm"] >= 0.05)]) <= {"leans up", "leans down"}
    assert beside.any()
    assert not (beside & (found["p_holm"] < 0.05)).all()


def test_pairs_with_a_missing_side_do_not_count():
    table = pairs(0.5)
    table.iloc[0, 0] = np.nan
    assert claims.paired(table, **COMPARED)["units"].tolist() == [7, 8]
    lone = claims.paired(table.iloc[:2], **COMPARED)
    assert (lone["units"].item(), lone["word"].item()) == (1, "unclear")


@pytest.mark.parametrize("changed", [{"of": "search"}, {"minus": ["noise", "search"]}, {"arm": "search"}])
def test_a_comparison_of_what_is_not_there_is_refused(changed):
    with pytest.raises(ValueError, match="the table has no 'search'; it has map, image, attack, noise"):
        claims.paired(pairs(0.5), **COMPARED | changed)


def test_differences_are_told_line_by_line():
    found = claims.record({"F1": claims.paired(pairs(0.5), **COMPARED)})
    page = claims.differences(found).splitlines()
    assert len(page) == 3
    assert all(
        f"{row.effect:+.2f}  [{row.low:+.2f}" in line for row, line in zip(found.itertuples(), page, strict=False)
    )
    assert page[-1] == "F1: down in 2 of 2 comparisons"


def test_a_second_draw_of_a_comparison_agrees_if_its_effect_is_near():
    found = claims.record({"F1": claims.paired(pairs(0.5), **COMPARED)})
    again = claims.record({"F1": claims.paired(pairs(0.5, draw=1), **COMPARED)})
    other = claims.record({"F1": claims.paired(pairs(0.9), **COMPARED)})
    assert (claims.agrees(found, again)["judged"] == "agrees").all()
    assert (claims.agrees(found, other)["judged"] == "differs").all()


def test_saved_claims_read_back_to_six_digits(tmp_path):
    found = claims.paired(pairs(0.5), **COMPARED)
    claims.save(found, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["claims.csv"]
    back = pd.read_csv(tmp_path / "claims.csv")
    assert back["effect"].tolist() == pytest.approx(found["effect"].tolist(), rel=1e-5)
    assert back["word"].tolist() == found["word"].tolist()
    assert [*back] == [*found]
    claims.save(found, tmp_path, name="strength")
    assert (tmp_path / "strength.csv").read_text() == (tmp_path / "claims.csv").read_text()


def test_drawing_and_judging_never_import_torch():
    code = "import sys, attrobust.claims, attrobust.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------ was the attack strong enough?


def judged_images(shift, networks=5, draw=0, scatter=0.02):
    """Two tables of networks whose images lie lower by `shift` under the second attack."""
    rng = np.random.default_rng(draw)
    records = []
    for seed in range(networks):
        one = rng.uniform(0.2, 0.8, 64)
        other = one + shift + scatter * rng.normal(size=64)
        records.append((seed, *(" ".join(f"{v:.4f}" for v in values) for values in (one, other))))
    tables = [pd.DataFrame({"map": "raw", "step_size": 0.1, "seed": [r[0] for r in records]}) for _ in range(2)]
    return [table.assign(images=[r[i] for r in records]) for i, table in enumerate(tables, start=1)]


@pytest.mark.parametrize(
    ("shift", "word"), [(0.0, "strong enough"), (-0.015, "strong enough"), (-0.03, "upper bound"), (0.03, "unclear")]
)
def test_an_attack_was_strong_enough_if_the_heavy_one_gets_hardly_lower(shift, word):
    usual, heavy = judged_images(shift)
    (line,) = claims.strength(usual, heavy, arm=["map", "step_size"]).to_dict("records")
    gaps = np.concatenate(
        [
            np.subtract(*(np.array(t.split(), float) for t in pair))
            for pair in zip(heavy.images, usual.images, strict=True)
        ]
    )
    assert line["effect"] == pytest.approx(gaps.mean())
    assert (line["low"], line["high"]) == pytest.approx(claims.interval(gaps))
    assert line["worst"] == pytest.approx(gaps.reshape(5, 64).mean(1).min())
    assert (line["seeds"], line["images"], line["word"]) == (5, 320, word)
    assert line["last"] - line["first"] == pytest.approx(line["effect"])


def test_few_images_do_not_make_an_attack_strong_enough_and_unpaired_ones_do_not_count():
    usual, heavy = judged_images(0.0, networks=1, scatter=0.2)
    assert claims.strength(usual, heavy, arm=["map"])["word"].tolist() == ["unclear"]
    nothing = claims.strength(usual, heavy[:0], arm=["map"])
    assert (len(nothing), [*nothing]) == (0, [*claims.strength(usual, heavy, arm=["map"])])
    blind = heavy.assign(images=" ".join(["nan"] * 64))
    assert claims.strength(usual, blind, arm=["map"])[["images", "word"]].to_numpy().tolist() == [[0, "unclear"]]
    with pytest.raises(ValueError, match="seed 0: 64 images under one attack, 2 under another"):
        claims.strength(usual, heavy.assign(images="0.1 0.2"), arm=["map"])


def test_means_tell_of_the_values_there_are_and_of_names_that_are_missing():
    table = pd.DataFrame({"map": ["a", "a", "a", None, None], "v": [1.0, 2.0, np.nan, 4.0, 6.0]})
    found = claims.means(table, ["v"], by=["map"])
    assert found["n"].tolist() == [2, 2]
    assert found["mean"].tolist() == [1.5, 5.0]
    assert np.isfinite(found[["low", "high"]]).all(axis=None)
    nothing = claims.means(table[:0], ["v"], by=["map"])
    assert (len(nothing), [*nothing]) == (0, [*found])


def test_a_mark_that_is_a_text_is_refused():
    runs = pd.DataFrame(
        {"comparable": ["True", "False"], "reason": "", "step_size": 0.1, "dataset": "d", "protocol": "m"}
    )
    for judge in (claims.comparable, claims.left_out):
        with pytest.raises(ValueError, match="column 'comparable' must be True or False in every row"):
            judge(runs)


def test_two_cells_of_one_name_are_refused():
    found = claims.paired(pairs(0.5), **COMPARED)
    with pytest.raises(ValueError, match="two cells have one name: F1, cosine, saliency, noise to attack"):
        claims.record({"F1": pd.concat([found, found])})


# ------------------------------------------------------------------ whether a gain reaches a map


def reached(saliency, difference, attention):
    arm = {"dataset": "digits", "initial": "wide", "arm": ""}
    ends = {"by": "step_size", "start": 0.1, "end": 1.0}
    effects = [
        arm | {"map": "saliency", "readout": "logit", "radius": "4/255"} | ends | {"word": saliency},
        arm | {"map": "rollout", "readout": "none", "radius": "4/255"} | ends | {"word": "no room"},
        arm | {"map": "rollout", "readout": "none", "radius": "24/255"} | ends | {"word": attention},
    ]
    gap = arm | {"map": "saliency - rollout", "readout": "logit - none", "radius": "4/255"} | ends
    radii = {"digits": {"saliency": "4/255", "rollout": "24/255"}}
    gaps = pd.DataFrame([gap | {"word": difference}])
    return claims.reach(pd.DataFrame(effects), gaps, radii=radii)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("up", "up", "unclear"), "not reached"),
        (("up", "up", "down"), "not reached"),
        (("up", "leans up", "no change"), "leans not reached"),
        (("leans up", "up", "unclear"), "leans not reached"),
        (("up", "up", "leans up"), "leans reached"),
        (("up", "no room", "up"), "reached"),
        (("up", "no room", "unclear"), "no room"),
        (("up", "up", "no room"), "no room"),
        (("up", "unclear", "no change"), "unclear"),
        (("unclear", "up", "no change"), "unclear"),
        (("up", "up", "unclear (control)"), "not reached"),
        (("up", "up", "unclear (counted)"), "unclear"),
        (("unclear", "unclear", "up"), "unclear"),
        (("leans up", "unclear", "up"), "reached"),
        (("no change", "up", "unclear"), "no gain"),
        (("down", "no room", "unclear"), "no gain"),
        (("up", "too few seeds", "unclear"), "too few seeds"),
        (("up", "up", "no pair"), "no pair"),
    ],
)
def test_a_gain_does_not_reach_a_map_only_if_saliency_gains_and_gains_more_and_the_map_does_not(words, said):
    found = reached(*words)
    assert found["word"].tolist() == [said]
    assert found[["map", "readout", "attention"]].to_numpy().tolist() == [["rollout", "logit", words[2]]]


def test_a_map_is_judged_at_its_own_radius_and_the_words_can_be_recorded():
    found = reached("up", "up", "unclear")
    assert found["attention"].tolist() == ["unclear"]  # "no room" at the common radius
    assert claims.record({"C6 reach": found})["arm"].tolist() == ["digits, wide, rollout, logit, 4/255"]
