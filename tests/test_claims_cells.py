"""The rule of the second protocol, against computations that share nothing with it."""

import math

import numpy as np
import pandas as pd
import pytest
from attrobust import claims
from attrobust.claims.cells import pattern_sums
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

STEPS = (0.003, 0.01, 0.06)
HEADLINE = {"by": "step_size", "arm": ["dataset", "map"], "family": [("digits", "saliency")]}


def runs(change=0.0, *, scatter=0.04, seeds=10, steps=STEPS, start=0.5, draw=0, by="step_size", **columns):
    """One cell: linear in the log of the axis from start to start + change, which differs by seed."""
    normal = np.random.default_rng(draw).normal(size=(seeds, 2))
    share = np.log(np.array(steps) / steps[0]) / np.log((steps[-1] if len(steps) > 1 else 2) / steps[0])
    table = [
        {"seed": seed, by: step, "value": start + 0.05 * level + at * (change + scatter * own)}
        for seed, (level, own) in enumerate(normal)
        for step, at in zip(steps, share, strict=True)
    ]
    return pd.DataFrame(table).assign(**({"comparable": True, "dataset": "digits", "map": "saliency"} | columns))


def of_effects(changes, *, start=0.5, **columns):
    """One cell of two steps whose effects are given."""
    rows = [(s, step, start + at * c) for s, c in enumerate(changes) for step, at in ((0.01, 0), (0.1, 1))]
    table = pd.DataFrame(rows, columns=["seed", "step_size", "value"])
    return table.assign(**({"comparable": True, "dataset": "digits", "map": "saliency"} | columns))


def scattered(center, half, seeds):
    """Effects with this mean and this half-width of the 95 % interval, to the last digit."""
    draws = np.linspace(-1, 1, seeds)
    return center + half * math.sqrt(seeds) / stats.t.ppf(0.975, seeds - 1) * draws / draws.std(ddof=1)


def cell(rows, **how):
    return claims.cells(rows, **(HEADLINE | how)).iloc[0]


def word(center, half, *, seeds=10, **columns):
    return cell(of_effects(scattered(center, half, seeds), **columns))["word"]


# ------------------------------------------------------------------ numbers


@given(st.lists(st.floats(-1, 1).map(lambda v: round(v, 3)), min_size=2, max_size=10))
def test_p_is_that_of_the_exact_paired_permutation_test_of_scipy(changes):
    exact = stats.permutation_test((changes,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert claims.sign_flip(changes) == pytest.approx(exact.pvalue, abs=1e-12)


def test_sixteen_seeds_are_enumerated_and_patterns_that_tie_up_to_rounding_count():
    assert claims.sign_flip(0.1 * np.arange(1, 17)) == 2 / 2**16
    assert claims.sign_flip([0.1, 0.2, -0.3]) == 1  # in floats the three do not sum to zero
    assert claims.sign_flip([0.1, 0.2, 0.3, -0.6]) == 1
    assert claims.sign_flip([0.0, 0.0]) == 1
    with pytest.raises(ValueError, match="21 seeds; all patterns of signs are counted for at most 20"):
        claims.sign_flip([0.1] * 21)


def test_the_row_of_a_cell_is_that_done_by_hand():
    table = runs(0.1, seeds=7)
    wide = table.pivot(index="seed", columns="step_size", values="value")
    changes = wide[0.06] - wide[0.003]
    found = cell(table)
    half = stats.t.ppf(0.975, 6) * changes.std(ddof=1) / math.sqrt(7)
    assert found["effect"] == pytest.approx(changes.mean())
    assert (found["low"], found["high"]) == pytest.approx((changes.mean() - half, changes.mean() + half))
    assert found["half"] == pytest.approx(half)
    assert (found["first"], found["last"]) == pytest.approx((wide[0.003].mean(), wide[0.06].mean()))
    assert found["seeds"] == 7
    assert [float(v) for v in found["per_seed"].split()] == pytest.approx(changes.tolist(), rel=1e-5)
    lacking = cell(table[(table["seed"] != 2) | (table["step_size"] != 0.06)])
    assert lacking["of_seeds"] == "0 1 3 4 5 6"
    assert lacking["per_seed"].split() == [v for seed, v in enumerate(found["per_seed"].split()) if seed != 2]
    slopes = [np.polyfit(np.log(STEPS), run, 1)[0] * math.log(20) for run in wide.to_numpy()]
    assert found["slope"] == pytest.approx(np.mean(slopes))
    assert (found["start"], found["end"]) == (0.003, 0.06)


def test_the_slope_uses_steps_between_the_ends_and_the_effect_does_not():
    table = runs(0.1, scatter=0.0)
    bent = table.assign(value=table["value"] + 0.3 * (table["step_size"] == 0.01))
    assert cell(bent)["effect"] == pytest.approx(0.1)
    assert cell(bent)["slope"] != pytest.approx(0.1, abs=0.01)
    assert cell(table)["slope"] == pytest.approx(0.1)
    assert bool(cell(table)["monotone"])
    assert not cell(bent)["monotone"]
    assert bool(cell(runs(-0.1, scatter=0.0))["monotone"])
    for rows in (runs(0.1, scatter=0.0), runs(-0.1, scatter=0.0)):  # level for a while, then up or down
        level = rows["value"].where(rows["step_size"] != STEPS[1], rows["value"].shift(1))
        assert bool(cell(rows.assign(value=level))["monotone"])
    lost = table.assign(value=table["value"].mask(table["step_size"] == 0.01))
    assert cell(lost)["slope"] == pytest.approx(0.1)


def test_holm_is_that_done_by_hand():
    parts = [runs(c, draw=i, map=f"m{i}", scatter=0.1) for i, c in enumerate((0.3, 0.08, 0.05, 0.4))]
    family = [("digits", f"m{i}") for i in range(3)]
    table = claims.cells(pd.concat(parts), **(HEADLINE | {"family": family}))
    p, by_hand, largest = table["p"][:3].to_numpy(), {}, 0.0
    for rank, i in enumerate(np.argsort(p)):
        largest = max(largest, (3 - rank) * p[i])
        by_hand[i] = min(largest, 1)
    assert table["p_holm"][:3].tolist() == pytest.approx([by_hand[i] for i in range(3)])
    assert np.isnan(table["p_holm"][3])
    assert table["word"][3] == "leans up"  # outside the family, whatever its p
    assert table["word"][0] == "up"


def test_a_family_is_corrected_whole_even_if_cells_of_it_have_no_runs():
    alone = cell(runs(0.1))
    family = [("digits", "saliency"), *[("digits", f"m{i}") for i in range(40)]]
    table = claims.cells(runs(0.1), **(HEADLINE | {"family": family}))
    assert table["p_holm"][0] == pytest.approx(41 * alone["p"])
    assert (alone["word"], table["word"][0]) == ("up", "leans up")
    assert len(table) == 41
    empty = {"seeds": 0, "monotone": False, "word": "no pair", "censored": False, "left_out": 0, "without_pair": 0}
    assert all(set(table[name][1:]) == {value} for name, value in empty.items())


def test_one_family_may_span_two_axes():
    step = runs(0.1)
    batch = runs(-0.1, steps=(50, 500), by="batch_size")
    tables = [claims.cells(rows, **(HEADLINE | {"by": by, "family": []})) for rows, by in
              ((step, "step_size"), (batch, "batch_size"))]  # fmt: skip
    assert [t["word"][0] for t in tables] == ["leans up", "leans up"]
    arm = ["by", "dataset", "map"]
    both = claims.holm(pd.concat(tables), arm=arm, family=[(by, "digits", "saliency") for by in
                       ("step_size", "batch_size")])  # fmt: skip
    assert both["word"].tolist() == ["up", "up"]
    assert both["p_holm"].tolist() == pytest.approx((2 * both["p"]).tolist())
    assert claims.holm(both, arm=arm, family=[])["word"].tolist() == ["leans up", "leans up"]


def test_the_family_may_be_a_column_of_the_rows():
    rows = pd.concat([runs(0.1), runs(0.1, map="raw")]).assign(headline=lambda t: t["map"] == "saliency")
    by_column = claims.cells(rows, **(HEADLINE | {"family": "headline"}))
    pd.testing.assert_frame_equal(by_column, claims.cells(rows, **HEADLINE))
    with pytest.raises(ValueError, match="'headline' says of one cell that it is in the family and that it is not"):
        claims.cells(rows.assign(headline=rows["seed"] > 2), **(HEADLINE | {"family": "headline"}))


def test_batch_sizes_run_the_other_way():
    rows = runs(-0.2, steps=(16, 64, 512), by="batch_size")
    found = cell(rows, by="batch_size")
    assert (found["start"], found["end"], found["word"]) == (512, 16, "up")
    assert found["effect"] == pytest.approx(found["last"] - found["first"])
    assert found["effect"] == pytest.approx(found["slope"]) == pytest.approx(0.2, abs=0.05)


@settings(max_examples=8)
@given(unit=st.floats(1e-3, 1e3), shift=st.floats(-0.1, 0.1))
def test_units_of_the_step_and_the_level_of_the_metric_do_not_matter(unit, shift):
    table = runs(0.1)
    plain, moved = cell(table), cell(table.assign(step_size=table["step_size"] * unit, value=table["value"] + shift))
    numbers = ["effect", "low", "high", "p", "slope"]
    assert moved[numbers].tolist() == pytest.approx(plain[numbers].tolist(), rel=1e-6)


def test_the_order_of_rows_does_not_matter():
    rows = pd.concat([runs(0.1), runs(0.0, map="raw", draw=1)], ignore_index=True)
    one = claims.cells(rows, **HEADLINE)
    for draw in range(3):
        other = claims.cells(rows.sample(frac=1, random_state=draw), **HEADLINE)
        pd.testing.assert_frame_equal(one, other.sort_values("map", ascending=False, ignore_index=True))


def test_log_ratios_have_their_own_margin_and_no_room():
    rng = np.random.default_rng(0)
    measure = runs(0.0).assign(value=np.exp(rng.normal(size=30)))
    found = cell(measure, log=True)
    wide = measure.pivot(index="seed", columns="step_size", values="value")
    assert found["effect"] == pytest.approx(np.log(wide[0.06] / wide[0.003]).mean())
    assert found["last"] / found["first"] == pytest.approx(math.exp(found["effect"]))
    by_seed = claims.effects(measure, by="step_size", arm=["map"], log=True)
    assert by_seed["effect"].to_numpy() == pytest.approx(np.log(by_seed["last"] / by_seed["first"]))
    for ratio, said in ((1.08, "no change"), (1.12, "up"), (1 / 1.08, "no change"), (1 / 1.12, "down")):
        rows = of_effects([5 * (ratio - 1)] * 10, start=5.0)
        assert cell(rows, log=True)["word"] == said
        assert cell(rows, log=True, margin=0.2)["word"] == "no change"
        assert not cell(rows, log=True)["censored"]
    assert cell(of_effects([-1.0] * 10, start=1.0), log=True)["word"] == "no pair"  # a ratio with nothing


# ------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("center", "half", "said"),
    [
        (0.0, 0.049, "no change"), (0.0, 0.051, "unclear"), (0.02, 0.029, "no change"), (0.02, 0.031, "unclear"),
        (0.02, 0.019, "no change"), (0.06, 0.04, "up"), (0.06, 0.061, "unclear"), (0.2, 0.1, "up"),
        (-0.06, 0.04, "down"), (-0.06, 0.061, "unclear"), (-0.04, 0.009, "no change"), (-0.04, 0.011, "down"),
    ],
)  # fmt: skip
def test_words_follow_the_interval(center, half, said):
    assert word(center, half) == said
    assert word(center, half, map="raw") == said.replace("up", "leans up").replace("down", "leans down")


def test_an_interval_on_one_side_leans_where_p_is_not_below_five_percent():
    found = cell(of_effects(scattered(0.06, 0.0599, 10)))
    assert found["low"] > 0
    assert found["p"] > 0.05
    assert found["word"] == "leans up"
    assert word(-0.06, 0.0599) == "leans down"
    assert word(0.06, 0.0601) == "unclear"


def test_a_planted_trend_is_found_and_an_opposite_one_told_as_loudly():
    assert [cell(runs(c, draw=d))["word"] for d in range(5) for c in (0.1, -0.1)] == ["up", "down"] * 5


def test_a_planted_null_with_few_seeds_is_unclear_and_never_no_change():
    said = [word(center, half, seeds=5) for center in (-0.02, 0.0, 0.03) for half in (0.0801, 0.1, 0.3)]
    assert set(said) == {"unclear"}
    rows = pd.concat([runs(0.0, scatter=0.15, seeds=5, draw=d, map=d) for d in range(100)])
    found = claims.cells(rows, **(HEADLINE | {"family": []}))
    assert set(found[found["half"] > 0.05]["word"]) <= {"unclear", "leans up", "leans down"}
    assert (found["word"] == "unclear").sum() >= 90


@settings(max_examples=15)
@given(center=st.floats(-1, 1), half=st.floats(0, 1), seeds=st.integers(1, 9))
def test_fewer_than_ten_seeds_never_say_up_or_down(center, half, seeds):
    said = word(center, half, seeds=max(seeds, 2)) if seeds > 1 else cell(of_effects([center]))["word"]
    assert said not in ("up", "down")
    assert (said == "too few seeds") == (seeds < 5)


def test_a_cell_without_a_pair_of_ends_says_so():
    assert cell(runs(0.1, steps=(0.01,)))["word"] == "no pair"
    rows = runs(0.1)
    assert cell(rows.assign(value=rows["value"].where(rows["step_size"] < 0.06)))["word"] == "no pair"
    lost = rows.assign(value=rows["value"].where((rows["step_size"] < 0.06) | (rows["seed"] > 0)))
    found = cell(lost)
    assert (found["seeds"], found["without_pair"], found["word"]) == (9, 1, "leans up")


def test_an_empty_table_gives_the_family_and_no_word():
    table = claims.cells(runs(0.1).iloc[:0], **HEADLINE)
    assert table["word"].tolist() == ["no pair"]
    assert claims.cells(runs(0.1).iloc[:0], **(HEADLINE | {"family": []})).empty


@pytest.mark.parametrize(
    ("start", "change", "said", "censored"),
    [
        (0.92, 0.05, "no room", False), (0.05, 0.1, "no room", False), (0.05, 0.2, "up", True),
        (0.85, 0.1, "up", True), (0.85, -0.1, "down", False), (0.95, -0.1, "down", True), (0.1, 0.85, "up", True),
        (0.95, 0.0, "no room", False), (0.89, 0.02, "no change", True), (0.21, 0.68, "up", False),
    ],
)  # fmt: skip
def test_both_ends_beyond_one_limit_are_no_room_and_one_end_is_censored(start, change, said, censored):
    found = cell(of_effects([change] * 10, start=start))
    assert (found["word"], found["censored"]) == (said, censored)
    assert cell(of_effects([change] * 10, start=start), room=None)["word"] != "no room"


@pytest.mark.parametrize(
    "how", [{"room": (0.9, 0.2)}, {"room": (0.5, 0.5)}, {"room": (0.2, np.nan)}, {"margin": -0.05}, {"margin": np.nan}]
)
def test_a_margin_below_zero_and_limits_of_room_that_do_not_rise_are_refused(how):
    with pytest.raises(ValueError, match=r"^margin is .*, room is .*; margin must be at least 0, and room must rise$"):
        cell(of_effects([0.1] * 10), **how)
    assert cell(of_effects([0.1] * 10), margin=0.0)["word"] == "up"


def test_a_corrected_effect_of_another_sign_makes_a_cell_unclear_by_control():
    rows = of_effects(scattered(0.1, 0.02, 10))
    rows["between"] = 0.1
    assert cell(rows)["word"] == "up"
    assert cell(rows)["corrected"] == pytest.approx(0.1 / 0.9)
    flat = rows.assign(between=np.where(rows["step_size"] > 0.05, 0.5, 0.1))
    assert cell(flat)["corrected"] == pytest.approx(0.1 / 0.5 - 0.4 / 0.9)
    assert cell(flat)["word"] == "unclear (control)"
    assert cell(flat.assign(map="raw"), family=[])["word"] == "unclear (control)"
    assert cell(rows.assign(between=1.0))["word"] == "unclear (control)"  # a constant map has no corrected similarity
    assert cell(rows.assign(between=np.where(rows["step_size"] > 0.05, 0.2, np.nan)))["word"] == "unclear (control)"
    lost = (rows["seed"] == 3) & (rows["step_size"] > 0.05)
    assert cell(rows.assign(between=rows["between"].mask(lost)))["word"] == "unclear (control)"  # not of nine seeds
    still = of_effects(scattered(0.0, 0.04, 10)).assign(between=flat["between"])
    assert cell(still)["word"] == "no change"
    assert cell(of_effects(scattered(0.0, 0.2, 10)).assign(between=flat["between"]))["word"] == "unclear"
    assert cell(rows.assign(between=np.nan))["word"] == "up"


# ------------------------------------------------------------------ images and runs that do not count


def test_an_image_that_did_not_count_at_one_end_leaves_both():
    rows = pd.DataFrame(
        {"step_size": [0.1, 0.2, 0.4], "images": ["0.2 0.4 0.9", "0.5 nan 0.1", "0.6 0.7 nan"],
         "value": [0.5, 0.3, 0.65], "between": 0.1, "n": 1, "n_attacked": 3}
    ).assign(seed=0, comparable=True, map="saliency")  # fmt: skip
    found = claims.effects(rows, by="step_size", arm=["map"]).iloc[0]
    assert (found["first"], found["last"]) == pytest.approx((0.3, 0.65))
    assert found["counted"] == pytest.approx(2 / 3)
    assert found["corrected"] == pytest.approx(0.35 / 0.9)
    logs = np.log([0.1, 0.2, 0.4])
    assert found["slope"] == pytest.approx(np.polyfit(logs, [0.3, 0.5, 0.65], 1)[0] * math.log(4))
    with pytest.raises(ValueError, match="seed 0: 'value' is not the mean of 'images'"):
        claims.effects(rows.assign(value=0.5), by="step_size", arm=["map"])
    with pytest.raises(ValueError, match="seed 0: its runs must tell of the same images"):
        claims.effects(rows.assign(images=["0.5", "0.3 0.3", "0.65"]), by="step_size", arm=["map"])
    with pytest.raises(ValueError, match="seed 0: its runs must tell of the same images"):
        claims.effects(rows.assign(images=["0.5", None, "0.65"]), by="step_size", arm=["map"])


def with_images(lost):
    """A cell that gains .1 in all of ten images; the first `lost` of them did not count at the larger step."""
    rows = of_effects(scattered(0.1, 0.02, 10))
    texts = [" ".join(["nan"] * (lost * (s > 0.05)) + [repr(v)] * (10 - lost * (s > 0.05))) for v, s in
             zip(rows["value"], rows["step_size"], strict=True)]  # fmt: skip
    return rows.assign(images=texts)


def test_under_ninety_percent_of_counted_images_say_nothing():
    assert [cell(with_images(lost))["word"] for lost in (0, 1, 2)] == ["up", "up", "unclear (counted)"]
    gone = with_images(10).assign(value=lambda t: t["value"].where(t["step_size"] < 0.05))
    some = pd.concat([with_images(0)[lambda t: t["seed"] > 1], gone[gone["seed"] <= 1]])
    found = cell(some)
    assert (found["counted"], found["seeds"], found["word"]) == (pytest.approx(0.8), 8, "unclear (counted)")


def test_a_value_may_differ_from_the_mean_of_its_images_by_what_rounding_takes_and_no_more():
    rows = with_images(0)
    near = rows["value"] + 9e-4 * (1 + rows["value"])
    assert cell(rows.assign(value=near))["effect"] == pytest.approx(cell(rows)["effect"])
    with pytest.raises(ValueError, match="seed 0: 'value' is not the mean of 'images'"):
        cell(rows.assign(value=rows["value"] + 1.05e-3 * (1 + rows["value"])))


def test_counts_alone_tell_the_least_share_that_both_ends_can_have():
    rows = of_effects(scattered(0.1, 0.02, 10)).assign(n_attacked=100)
    assert cell(rows.assign(n=95))["counted"] == pytest.approx(0.9)
    assert cell(rows.assign(n=95))["word"] == "up"
    assert cell(rows.assign(n=94))["word"] == "unclear (counted)"
    assert cell(rows.assign(n=10))["counted"] == 0


def test_runs_that_are_not_comparable_are_left_out_and_told_with_and_without():
    rows = runs(0.1)
    spoiled = rows.assign(comparable=(rows["seed"] > 0) | (rows["step_size"] < 0.06))
    spoiled.loc[~spoiled["comparable"], "value"] = 9.0
    found, kept = cell(spoiled), cell(rows[rows["seed"] > 0])
    assert (found["left_out"], found["without_pair"], found["seeds"]) == (1, 1, 9)
    assert found["effect"] == kept["effect"]
    whole = cell(spoiled.assign(comparable=True))
    assert found[["effect_all", "low_all", "high_all"]].tolist() == whole[["effect", "low", "high"]].tolist()
    assert np.isnan(cell(rows)["effect_all"])
    every = rows.assign(comparable=rows["step_size"] < 0.06)
    assert cell(every)["word"] == "no pair"  # the next step is not taken for the largest


def test_rows_that_would_be_misread_are_refused():
    rows = runs(0.1)
    with pytest.raises(ValueError, match="do not name a cell: it has two runs of one seed at one step_size"):
        cell(pd.concat([rows.assign(readout="logit"), rows.assign(readout="log_probability")]))
    with pytest.raises(ValueError, match="rows have no column 'radius'; they have seed, step_size"):
        claims.cells(rows, by="step_size", arm=["radius"], family=[])
    with pytest.raises(ValueError, match="'comparable' must be True or False"):
        cell(rows.assign(comparable="False"))
    with pytest.raises(ValueError, match="'penalty' is no axis of numbers above 0; its two ends must be named"):
        cell(rows.assign(penalty="ssr"), by="penalty")
    with pytest.raises(ValueError, match="'step_size' is no axis of numbers above 0; its two ends must be named"):
        cell(rows.assign(step_size=rows["step_size"] - rows["step_size"].min()))
    with pytest.raises(ValueError, match="it must name each cell once, by dataset, map"):
        cell(rows, family=["saliency"])


def test_a_map_without_readout_is_not_lost():
    rows = pd.concat([runs(0.1, readout="logit"), runs(0.1, map="raw", readout=None)])
    table = claims.cells(rows, by="step_size", arm=["map", "readout"], family=[("raw", "")])
    assert table[["map", "readout", "word"]].to_numpy().tolist() == [
        ["saliency", "logit", "leans up"], ["raw", "", "up"],
    ]  # fmt: skip


def test_named_ends_take_the_place_of_an_axis():
    parts = [runs(0.0, scatter=0.0, steps=(1,), start=level, penalty=name) for name, level in
             (("ssr", 0.7), ("natural", 0.5), ("ir", 0.1))]  # fmt: skip
    found = cell(pd.concat(parts), by="penalty", ends=("natural", "ssr"))
    assert (found["first"] < found["last"], found["start"], found["word"]) == (True, "natural", "up")
    assert found["effect"] == pytest.approx(0.2)
    assert np.isnan(found["slope"])
    back = cell(pd.concat(parts), by="penalty", ends=("ssr", "natural"))
    assert (back["word"], back["effect"]) == ("down", pytest.approx(-0.2))
    inner = cell(runs(0.1, scatter=0.0), ends=(0.003, 0.01))
    assert inner["effect"] == pytest.approx(0.1 * math.log(10 / 3) / math.log(20))


# ------------------------------------------------------------------ two cells


def two(first, second, **columns):
    return pd.concat([of_effects(first, map="saliency", **columns), of_effects(second, map="raw", **columns)])


def gap(rows, **how):
    how = {"of": {"map": "saliency"}, "minus": {"map": "raw"}, "family": [("digits", "saliency - raw")]} | how
    return claims.contrast(rows, by="step_size", arm=["dataset", "map"], **how).iloc[0]


def test_a_contrast_is_the_paired_test_of_scipy():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=10)
    first, second = 0.1 + 0.3 * shared + 0.02 * rng.normal(size=10), 0.3 * shared
    found = gap(two(first, second))
    interval = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx(tuple(interval))
    assert (found["first"], found["last"]) == pytest.approx((second.mean(), first.mean()))
    assert (found["map"], found["word"]) == ("saliency - raw", "up")
    assert found["p"] == stats.permutation_test((first - second,), np.mean, permutation_type="samples").pvalue


def test_every_seed_that_both_cells_have_enters_their_contrast():
    rows = two(np.arange(10.0), -np.arange(10.0))
    lost = rows[(rows["map"] == "saliency") | (rows["seed"] < 7)]
    found = gap(lost, room=None)
    assert (found["seeds"], found["without_pair"], found["effect"]) == (7, 3, 6.0)
    ends = (found["start"], found["end"])
    for name in ("raw", "saliency"):  # the first seeds of a side are lacking
        late = gap(rows[(rows["map"] != name) | (rows["seed"] > 2)], room=None)
        assert (late["seeds"], late["without_pair"], late["start"], late["end"]) == (7, 3, *ends)
    assert gap(rows[rows["map"] == "saliency"])["word"] == "no pair"
    assert gap(rows[rows["map"] == "raw"])["word"] == "no pair"
    of, minus = {"map": "saliency"}, {"map": "raw"}
    nothing = claims.contrast(rows[:0], by="step_size", arm=["map"], of=of, minus=minus, family=[])
    whole = claims.contrast(rows, by="step_size", arm=["map"], of=of, minus=minus, family=[])
    assert (len(nothing), [*nothing]) == (0, [*whole])


def test_a_contrast_with_a_cell_without_room_has_none_and_one_end_censors():
    gains = of_effects([0.2] * 10)
    assert gap(pd.concat([gains, of_effects([0.02] * 10, start=0.93, map="raw")]))["word"] == "no room"
    assert gap(pd.concat([gains, of_effects([0.02] * 10, start=0.1, map="raw")]))["word"] == "no room"
    found = gap(pd.concat([gains, of_effects([0.02] * 10, start=0.89, map="raw")]))
    assert (found["word"], found["censored"]) == ("up", True)
    assert not gap(two([0.2] * 10, [0.0] * 10))["censored"]


def test_a_contrast_is_monotone_if_the_difference_of_both_curves_is():
    rows = runs(0.3, scatter=0, steps=(0.01, 0.1, 1.0))
    bent = rows.assign(value=rows["value"] + 0.3 * (rows["step_size"] == 0.1), map="raw")
    assert gap(pd.concat([rows, rows.assign(value=0.5, map="raw")]), room=None)["monotone"]
    assert not gap(pd.concat([rows, bent]), room=None)["monotone"]
    assert gap(pd.concat([bent.assign(map="saliency"), bent.assign(value=bent["value"] - rows["value"])]),
               room=None)["monotone"]  # fmt: skip


def test_a_contrast_has_control_and_counts_of_both_sides():
    rows = two([0.2] * 10, [0.1] * 10).assign(between=0.1)
    assert gap(rows)["corrected"] == pytest.approx(0.1 / 0.9)
    assert gap(rows)["word"] == "up"
    flat = rows.assign(between=np.where((rows["map"] == "saliency") & (rows["step_size"] > 0.05), 0.6, 0.1))
    assert gap(flat)["word"] == "unclear (control)"
    half = rows.assign(between=rows["between"].where(rows["map"] == "raw"))
    assert gap(half)["word"] == "unclear (control)"
    few = rows.assign(n_attacked=10, n=np.where(rows["map"] == "raw", 9, 10))
    assert (gap(few)["counted"], gap(few)["word"]) == (pytest.approx(0.8), "unclear (counted)")
    lost = rows.assign(comparable=rows["seed"] > 0)
    assert (gap(lost)["left_out"], gap(lost)["effect_all"]) == (4, pytest.approx(0.1))


def test_contrasts_of_other_ends_or_other_columns_are_refused():
    rows = pd.concat([runs(0.1), runs(0.1, steps=(0.003, 0.01), map="raw")])
    with pytest.raises(ValueError, match=r"must have the same ends; they have 0.003 -> 0.06 and 0.003 -> 0.01"):
        gap(rows)
    assert gap(rows, ends=(0.003, 0.01))["seeds"] == 10
    with pytest.raises(ValueError, match="both must give the same columns"):
        gap(rows, minus={"dataset": "digits"})


def test_contrasts_may_differ_in_two_columns():
    rows = pd.concat([runs(0.3, readout="logit"), runs(0.0, map="raw", readout=None)])
    table = claims.contrast(
        rows, by="step_size", arm=["map", "readout"], family=[],
        of={"map": "saliency", "readout": "logit"}, minus={"map": "raw", "readout": ""},
    )  # fmt: skip
    assert table[["map", "readout", "word"]].to_numpy().tolist() == [["saliency - raw", "logit - none", "leans up"]]


# ------------------------------------------------------------------ is it restored?


def attentions(bell, softmax, divided, **columns):
    """Two maps under three kernels that gain what is given; raw attention first."""
    kinds = {"bell": bell, "softmax": softmax, "divided": divided}
    parts = [runs(change, scatter=0.02, draw=i, map=name, attention=kind) for kind, both in kinds.items()
             for i, (name, change) in enumerate(zip(("raw", "rollout"), both, strict=True))]  # fmt: skip
    return pd.concat(parts).assign(**({"between": 0.1} | columns))


def restored(rows, **how):
    how = {"twins": {"bell": "divided"}, "maps": ["raw", "rollout"]} | how
    return claims.restoration(rows, by="step_size", arm=["dataset", "attention", "map"], **how)


def test_restored_needs_all_three_gains():
    for others, said in (
        (((0, 0), (0, 0)), "restored"), (((0.15, 0), (0, 0)), "not restored"), (((0, 0), (0.15, 0)), "not restored"),
        (((0.3, 0), (0, 0)), "not restored"),
    ):  # fmt: skip
        table = restored(attentions((0.15, 0.15), *others))
        assert table[table["map"] == "raw"]["restored"].tolist() == [said] * 3
        assert table[table["map"] == "rollout"]["restored"].tolist() == ["restored"] * 3
    assert table["says"].unique().tolist() == ["gains", "gains more than softmax", "gains more than divided"]
    losing = restored(attentions((-0.1, 0.0), (-0.3, -0.3), (-0.3, -0.3)))
    assert losing[losing["map"] == "raw"]["word"].tolist() == ["down", "up", "up"]
    assert set(losing["restored"]) == {"not restored"}


def test_what_is_restored_is_told_with_every_column_of_its_cells():
    rows, arm = attentions((0.15, 0.15), (0, 0), (0, 0)), ["dataset", "attention", "map"]
    told = claims.cells(rows, by="step_size", arm=arm, family=[]).columns
    assert restored(rows).columns.tolist() == [*arm, "says", *told[len(arm) :], "restored"]
    nothing = restored(rows, twins={})
    assert (len(nothing), nothing.columns.tolist()) == (0, [*arm, "says", "restored"])


def test_holm_goes_over_the_deciding_maps_of_one_test():
    table = restored(attentions((0.15, 0.15), (0, 0), (0, 0)))
    assert table["p_holm"].tolist() == pytest.approx((2 * table["p"]).tolist())
    alone = restored(attentions((0.15, 0.15), (0, 0), (0, 0)), maps=["raw"])
    assert alone[alone["map"] == "rollout"]["p_holm"].isna().all()
    assert alone.groupby("map")["restored"].first().to_dict() == {"raw": "restored", "rollout": "leans restored"}


def test_flat_maps_few_seeds_and_no_room_restore_nothing():
    rows = attentions((0.15, 0.15), (0, 0), (0, 0))
    flat = rows.assign(between=np.where((rows["attention"] == "bell") & (rows["step_size"] > 0.05), 0.6, 0.1))
    assert set(restored(flat)["restored"]) == {"unclear"}
    assert set(restored(rows[rows["seed"] < 5])["restored"]) == {"leans restored"}
    assert set(restored(rows[rows["seed"] < 4])["restored"]) == {"unclear"}
    nine = restored(rows[(rows["attention"] != "softmax") | (rows["seed"] < 9)])
    assert nine[nine["map"] == "raw"]["word"].tolist() == ["up", "leans up", "up"]
    assert set(nine["restored"]) == {"leans restored"}
    full = rows.assign(value=rows["value"] + 0.45 * (rows["attention"] == "softmax"))
    assert set(restored(full)["restored"]) == {"no room"}
    with pytest.raises(ValueError, match="rows need the control 'between'"):
        restored(rows.drop(columns="between"))
    with pytest.raises(ValueError, match="rows have no attention divided"):
        restored(rows[rows["attention"] != "divided"])


# ------------------------------------------------------------------ the rule itself, the page, another processor


def interval_misses_zero(changes):
    return stats.ttest_1samp(changes, 0).pvalue < 0.05


@pytest.mark.parametrize("seeds", [10, 12, 16])
def test_permuted_step_labels_give_three_to_seven_percent_verdicts(seeds):
    rows = pd.concat([runs(0.1 * d, seeds=seeds, draw=d, map=f"m{d}") for d in range(6)])
    table = claims.permuted(rows, by="step_size", arm=["map"])
    assert table["share"].between(0.03, 0.07).all()
    assert table["verdicts"].between(0.03, 0.05).all()
    assert set(table["patterns"]) == {2**seeds}


def test_permuted_labels_are_counted_as_by_exchanging_them():
    """Every pattern is made by exchanging the labels of the ends, and judged by `cells`."""
    table = runs(0.1, seeds=6, steps=(0.01, 0.1))
    parts = []
    for pattern in range(2**6):
        swap = np.array([pattern >> seed & 1 for seed in table["seed"]], dtype=bool)
        other = np.where(swap, 0.11 - table["step_size"], table["step_size"]).round(3)
        parts.append(table.assign(step_size=other, map=pattern))
    said = claims.cells(pd.concat(parts), **(HEADLINE | {"family": [], "margin": 0.0}))["word"]
    share = claims.permuted(table, by="step_size", arm=["map"])["share"][0]
    assert share == said.str.startswith("leans").mean()
    changes = claims.effects(table, by="step_size", arm=["map"])["effect"].to_numpy()
    signs = 1 - 2 * (np.arange(64)[:, None] >> np.arange(6) & 1)
    assert share == np.mean([interval_misses_zero(changes * s) for s in signs])
    firm = [interval_misses_zero(changes * s) and claims.sign_flip(changes * s) < 0.05 for s in signs]
    assert claims.permuted(table, by="step_size", arm=["map"])["verdicts"][0] == np.mean(firm)


def test_of_no_cells_the_permuted_table_has_its_columns():
    nothing = claims.permuted(runs()[:0], by="step_size", arm=["map"])
    assert (len(nothing), [*nothing]) == (0, ["map", "seeds", "patterns", "share", "verdicts"])


def test_all_patterns_of_signs_are_counted_of_twenty_seeds_and_no_more():
    """Sums of n ones under all signs are n - 2 k, as often as k can be chosen from n."""
    sums, often = np.unique(pattern_sums([1.0] * 20), return_counts=True)
    assert dict(zip(sums, often, strict=True)) == {20 - 2 * k: math.comb(20, k) for k in range(21)}
    with pytest.raises(ValueError, match="21 seeds; all patterns of signs are counted for at most 20"):
        pattern_sums([1.0] * 21)


def test_a_rule_that_looks_at_one_side_too_many_is_caught_by_permuted_labels(monkeypatch):
    monkeypatch.setattr("attrobust.claims.permutation.ALPHA", 0.1)  # a 90 % interval for a 95 % one
    assert claims.permuted(runs(0.1), by="step_size", arm=["map"])["share"][0] > 0.07


def chance_curve(rows, *, seed=0, arm=("map",), draws=2000):
    table = claims.cells(rows, by="step_size", arm=list(arm), family=[])
    return claims.chance_curve(table, generator=np.random.default_rng(seed), draws=draws)


def test_the_curve_under_exchanged_labels_is_that_of_all_patterns_in_which_whole_seeds_are_exchanged():
    rows = pd.concat([runs(0.1 * d, seeds=6, steps=(0.01, 0.1), draw=d, map=f"m{d}") for d in range(4)])
    changes = claims.effects(rows, by="step_size", arm=["map"]).pivot(index="map", columns="seed", values="effect")
    signs = 1 - 2 * (np.arange(64)[:, None] >> np.arange(6) & 1)
    every = np.sort(changes.to_numpy() @ signs.T / 6, axis=0)
    table = chance_curve(rows)
    assert table["effect"].to_numpy() == pytest.approx(np.sort(changes.mean(axis=1)), abs=1e-6)
    for place, found in enumerate(table.itertuples()):
        near = np.quantile(every[place], [0.01, 0.04, 0.96, 0.99])
        assert near[0] - 1e-6 <= found.low <= near[1] + 1e-6
        assert near[2] - 1e-6 <= found.high <= near[3] + 1e-6
        share = min(np.mean(side * (every[place] - found.effect) >= -1e-6) for side in (1, -1))
        assert found.p == pytest.approx(min(1, 2 * share), abs=10 * (share * (1 - share) / 2000) ** 0.5 + 1e-3)


def test_an_effect_in_all_cells_leaves_the_band_and_one_in_none_stays_inside():
    effect, none = (
        pd.concat([runs(slope, seeds=10, steps=(0.01, 0.1), draw=d, map=f"m{d}") for d in range(5)])
        for slope in (0.2, 0.0)
    )
    assert (chance_curve(effect)["p"] < 0.01).all()
    table = chance_curve(none)
    assert table["effect"].between(table["low"], table["high"]).sum() >= 4


def test_a_place_above_its_band_has_a_small_p_however_small_its_effect():
    """Cells of very unequal effects, all positive: at low places exchanged labels give negative effects."""
    slopes = np.linspace(0.02, 0.4, 12)
    rows = pd.concat([runs(s, seeds=10, steps=(0.01, 0.1), draw=d, map=f"m{d}") for d, s in enumerate(slopes)])
    table = chance_curve(rows)
    outside = (table["effect"] < table["low"]) | (table["effect"] > table["high"])
    assert outside.iloc[0]
    assert (table["p"] <= 0.0501)[outside].all()
    assert (table["p"] >= 0.0499)[~outside].all()


def test_cells_of_fewer_than_five_seeds_do_not_enter_the_curve_and_missing_pairs_are_left_out_of_their_cell():
    few, many = runs(0.1, seeds=4, map="few"), runs(0.1, seeds=7, steps=(0.01, 0.1), map="many")
    table = chance_curve(pd.concat([few, many.drop(many[many.seed == 3].index[:1])]))
    changes = claims.effects(many[many.seed != 3], by="step_size", arm=["map"])["effect"]
    assert table["effect"].to_numpy() == pytest.approx([changes.mean()], rel=1e-5)
    assert len(chance_curve(few)) == 0
    assert len(chance_curve(many, draws=1)) == 1
    with pytest.raises(ValueError, match="draws is 0; it must be a whole number of at least 1"):
        chance_curve(many, draws=0)


def test_cells_of_other_seeds_are_exchanged_by_seed_and_not_by_place():
    whole = runs(0.1, seeds=10, steps=(0.01, 0.1), scatter=0.1, map="all")
    late = [whole[whole.seed >= first].assign(map=f"from {first}") for first in (1, 5)]
    alike = claims.cells(pd.concat([whole, *late]), by="step_size", arm=["map"], family=[])
    apart = pd.concat([claims.cells(part, by="step_size", arm=["map"], family=[]) for part in (whole, *late)])
    changes = claims.effects(whole, by="step_size", arm=["map"])["effect"].to_numpy()
    signs = np.random.default_rng(5).choice([-1.0, 1.0], size=(10, 4000))
    exact = np.sort([changes[first:] @ signs[first:] / (10 - first) for first in (0, 1, 5)], axis=0)
    for table in (alike, apart):
        found = claims.chance_curve(table, generator=np.random.default_rng(0), draws=4000)
        for place, row in enumerate(found.itertuples()):
            near = np.quantile(exact[place], [0.015, 0.035, 0.965, 0.985])
            assert near[0] - 1e-6 <= row.low <= near[1] + 1e-6
            assert near[2] - 1e-6 <= row.high <= near[3] + 1e-6
    for broken in ({"per_seed": "0.1,0.2"}, {"per_seed": "0.1 inf", "of_seeds": "0 1"}, {"of_seeds": "0 1"}):
        with pytest.raises(ValueError, match="they must be finite numbers, as many seeds"):
            claims.chance_curve(alike.assign(**broken), generator=np.random.default_rng(0))


def test_two_computations_agree_within_the_interval_of_a_difference():
    one = claims.cells(of_effects(scattered(0.1, 0.04, 10)), **HEADLINE)
    allowed = math.sqrt(2) * 0.04
    for gap_, said in ((0.99 * allowed, "agrees"), (-0.99 * allowed, "agrees"), (1.01 * allowed, "differs")):
        other = claims.cells(of_effects(scattered(0.1 + gap_, 0.3, 10)), **HEADLINE)
        found = claims.agrees(one, other)
        assert found["judged"].tolist() == [said]
        assert found["allowed"][0] == pytest.approx(allowed)
        assert found["word_other"].tolist() == ["unclear"]
    assert claims.agrees(one, one.assign(map="raw"))["judged"].tolist() == ["no pair", "no pair"]
    assert claims.agrees(one, one.assign(effect=np.nan))["judged"].tolist() == ["differs"]
    assert claims.agrees(one, one.assign(end=0.2))["judged"].tolist() == ["differs"]
    single = claims.cells(of_effects([0.1]), **HEADLINE)
    assert claims.agrees(single, single)["judged"].tolist() == ["no pair"]


def test_a_table_survives_its_file(tmp_path):
    rows = pd.concat([runs(0.1, readout=None), runs(0.0, map="raw", readout="logit")])
    table = claims.cells(rows, by="step_size", arm=["map", "readout"], family=[("saliency", "")])
    claims.save(table, tmp_path)
    back = pd.read_csv(tmp_path / "claims.csv")
    assert back["word"].tolist() == table["word"].tolist()
    assert claims.agrees(table, back)["judged"].tolist() == ["agrees", "agrees"]
    again = claims.holm(back, arm=["map", "readout"], family=[("saliency", "")])
    assert again["word"].tolist() == table["word"].tolist()
    assert claims.page(back).splitlines()[1:] == claims.page(table).splitlines()[1:]


def test_the_page_tells_every_cell_and_what_chance_would_say():
    changes = {"a": scattered(0.1, 0.02, 10), "b": scattered(0.1, 0.02, 10), "c": scattered(0.0, 0.2, 10)}
    changes |= {"d": [0.1] * 4, "e": [0.02] * 10, "f": [0.1] * 10}
    rows = pd.concat([of_effects(c, map=m, start=0.95 if m == "e" else 0.85 if m == "f" else 0.5) for m, c in
                      changes.items()])  # fmt: skip
    rows["comparable"] = (rows["map"] != "a") | (rows["seed"] > 0)
    rows = pd.concat([rows, of_effects([0.1], map="a").assign(seed=10)])
    table = claims.cells(rows, **(HEADLINE | {"family": [("digits", "a"), ("digits", "lacks")]}))
    page = claims.page(table).splitlines()
    line = {name: next(x for x in page if f"digits {name}" in x) for name in "abcdef"}
    assert line["b"].startswith(
        "digits b step_size 0.01 -> 0.1  0.500 -> 0.600  +0.100 [+0.080, +0.120]  p .002  n = 10"
    )
    assert line["b"].endswith("leans up")
    assert "  up; 1 seeds without a pair of ends; 2 runs left out, with them +0.1" in line["a"]
    assert line["c"].endswith("unclear (sees 0.200)")
    assert line["d"] == "no verdict: digits d step_size: too few seeds, n = 4"
    assert line["e"].endswith("no room")
    assert line["f"].endswith("leans up (censored)")
    assert "no verdict: digits lacks step_size: no pair, n = 0" in page
    assert page[-1].startswith("2 of 7 cells lean; 0.2 would by chance (5 % of the 4 that could")
    assert claims.page(restored(attentions((0.15, 0.15), (0, 0), (0, 0)))).count("| restored") == 6


@pytest.mark.parametrize(("p", "said"), [(0.0005, ".001"), (np.nextafter(0.0005, 0), "<.001"), (0.0499, ".050")])
def test_a_p_value_has_three_decimals_unless_it_rounds_to_none(p, said):
    table = claims.cells(runs(0.2, seeds=10), by="step_size", arm=["map"], family=["saliency"])
    line = claims.page(table.assign(p=p, p_holm=p)).splitlines()[1]
    assert f"  p {said}, Holm {said}  n = 10" in line


# ------------------------------------------------------------------ one file of several claims


def test_cells_of_several_claims_are_recorded_under_one_name_each_and_are_told_as_before(tmp_path):
    rows = runs(0.2)
    table = claims.cells(rows, by="step_size", arm=["map"], family=["saliency"])
    gaps = claims.cells(rows, by="step_size", arm=["dataset", "map"], family=[])
    found = claims.record({"C2": table, "C6": gaps})
    assert found[["claim", "arm", "by"]].to_numpy().tolist() == [
        ["C2", "saliency", "step_size"], ["C6", "digits, saliency", "step_size"],
    ]  # fmt: skip
    claims.save(found, tmp_path)
    back = pd.read_csv(tmp_path / "claims.csv")
    assert claims.page(back).splitlines()[1] == "C2 " + claims.page(table).splitlines()[1]
    assert claims.agrees(back, found)["judged"].tolist() == ["agrees", "agrees"]


def test_what_is_beyond_a_grid_are_the_lines_that_it_lacks():
    rows = runs(0.2, seeds=5)
    maps = (rows.assign(map=name) for name in ("raw", "rollout"))
    one, two = (claims.cells(part, by="step_size", arm=["map"], family=[]) for part in maps)
    own, stored = claims.record({"C6": one}), claims.record({"C6": pd.concat([one, two])})
    assert claims.beyond(stored, own)["arm"].tolist() == ["rollout"]
    assert not len(claims.beyond(pd.DataFrame(), own))
    few = claims.record({"C6": claims.cells(rows[rows.seed < 2], by="step_size", arm=["map"], family=[])})
    more = claims.record({"C6": claims.cells(rows, by="step_size", arm=["map"], family=[])})
    assert claims.beyond(more, few)["seeds"].tolist() == [5]
    assert not len(claims.beyond(few, more))
    theory = pd.DataFrame([{"claim": "C5", "arm": "P1", "by": "cases", "word": "holds"}])
    assert not len(claims.beyond(theory, theory))
    assert claims.beyond(theory, own)["arm"].tolist() == ["P1"]


def test_stored_lines_outside_every_family_and_beside_lines_of_other_columns_are_told_as_they_were(tmp_path):
    rows = runs(0.2, seeds=6)
    rows.loc[0, "comparable"] = False
    own = claims.record({"C6": claims.cells(rows.assign(map="raw"), by="step_size", arm=["map"], family=["raw"])})
    outside = claims.cells(rows, by="step_size", arm=["map"], family=[])
    other = pd.DataFrame([{"statement": "P1", "by": "cases", "start": "1", "end": "2", "word": "holds"}])
    claims.save(claims.record({"C6": outside, "C5": other}), tmp_path)
    beyond = claims.beyond(pd.read_csv(tmp_path / "claims.csv"), own)
    told = claims.page(beyond[beyond.claim == "C6"]).splitlines()[1]
    assert "p_holm" not in beyond
    assert told == "C6 " + claims.page(outside).splitlines()[1]


def test_a_run_that_collapsed_has_no_images_and_takes_its_seed_out_with_or_without_it():
    rows = runs(0.2, seeds=6).assign(images=lambda t: t["value"].map("{0:.6f} {0:.6f}".format))
    gone = (rows["seed"] == 5) & (rows["step_size"] == STEPS[-1])
    rows.loc[gone, ["value", "images", "comparable"]] = [np.nan, np.nan, False]
    found = cell(rows)
    assert (found["seeds"], found["without_pair"], found["left_out"]) == (5, 1, 1)
    assert found["effect"] == pytest.approx(found["effect_all"])


def test_a_second_computation_is_told_cell_by_cell_of_the_families_alone():
    rows = pd.concat([runs(0.1 * d, seeds=10, draw=d, map=f"m{d}") for d in range(3)])
    one = claims.record({"C": claims.cells(rows, by="step_size", arm=["map"], family=["m0", "m1"])})
    far = one["half"] * np.sqrt(2) * 1.1
    shift = np.where(one["arm"] == "m1", far, 0.0)
    page = claims.elsewhere(one, one.assign(effect=one["effect"] + shift)).splitlines()
    assert [line.split(": ")[-1] for line in page[:-1]] == ["agrees", "differs"]
    assert page[-1].startswith("1 of 2 cells of the families agree; the largest gap is 1.10 of")
    assert claims.elsewhere(one, one[:0]) == "no second computation is stored"
    assert claims.elsewhere(one[:0], one) == "no second computation is stored"


def test_lines_outside_every_family_have_no_second_computation():
    rows = pd.concat([runs(0.2, seeds=6, draw=d, map=f"m{d}") for d in range(3)])
    outside = claims.record({"C": claims.cells(rows, by="step_size", arm=["map"], family=[])})
    assert len(outside) == 3
    for own in (outside.assign(p_holm=np.nan), outside.drop(columns="p_holm", errors="ignore")):
        assert claims.elsewhere(own, outside) == "no second computation is stored"


def test_cells_of_a_family_without_runs_stand_in_its_table():
    rows = runs(0.1, seeds=10, map="m")
    table = claims.record({"C": claims.cells(rows, by="step_size", arm=["map"], family=["m", "lost"])})
    lines = claims.family(table).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| m", "| lost"]
    assert "no pair" in lines[-1]


def test_the_corrected_effect_has_an_interval():
    rows = runs(0.2, seeds=10, map="m").assign(between=0.5)
    (cell,) = claims.cells(rows, by="step_size", arm=["map"], family=[]).to_dict("records")
    assert (cell["corrected"], cell["corrected_low"], cell["corrected_high"]) == pytest.approx(
        (2 * cell["effect"], 2 * cell["low"], 2 * cell["high"])
    )
    (alone,) = claims.cells(rows.drop(columns="between"), by="step_size", arm=["map"], family=[]).to_dict("records")
    assert np.isnan([alone["corrected"], alone["corrected_low"]]).all()


@pytest.mark.parametrize("changes", [[np.nan] * 5, [0.1, np.inf], [1e308, -1e308, 1e308]])
def test_effects_that_are_no_numbers_have_no_p(changes):
    with pytest.raises(ValueError, match=r"per_seed is .*; it must hold finite numbers, below 1e300 in size"):
        claims.sign_flip(changes)


@pytest.mark.parametrize("other", ["False", np.nan, None, 2])
def test_a_column_of_the_family_holds_true_and_false_alone(other):
    rows = of_effects([0.1, 0.12] * 5).assign(headline=other)
    with pytest.raises(ValueError, match="column 'headline' must be True or False in every row"):
        claims.cells(rows, **(HEADLINE | {"family": "headline"}))
