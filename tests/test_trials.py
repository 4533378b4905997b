"""Every inequality of notebooks 02, 06 and 07 on random cases they have not seen, and every equality exactly."""

import numpy as np
import pytest
import torch
from attrobust import entropy, statements, trials
from attrobust.theory import kernels
from attrobust.trials import swaps
from hypothesis import given, settings
from hypothesis import strategies as st

TRUE = {
    "identities": 3,
    "transfer": 4,
    "transformers": 4,
    "radii": 6,
    "rescaling": 20,
    "surfaces": 10,
    "stable": 20,
    "batches": 8,
    "paths": 20,
    "angles": 20,
    "turning": 15,
    "metrics": 10,
    "loss_gradients": 10,
    "smoothed": 20,
    "hump": 10,
    "rank_orders": 5,
    "distances": 10,
    "scaled": 10,
    "ceilings": 10,
    "floors": 10,
    "readouts": 10,
    "rescaled": 10,
    "nudged": 10,
    "shared_maps": 10,
    "one_score": 10,
    "swapped": 10,
    "same_ranks": 5,
}


@pytest.mark.parametrize("name", TRUE)
def test_the_statement_holds_on_random_cases(name):
    @settings(max_examples=TRUE[name])
    @given(seed=st.integers(10_000, 10**6))
    def holds(seed):
        table = getattr(trials, name)(1, seed)
        table = table[table["statement"] != "wrong"]
        broken = table[statements.violated(table)]
        assert broken.empty, broken.to_string()

    holds()


@pytest.mark.parametrize("name", ["radii", "transformers", "rank_orders", "distances", "ceilings"])
def test_the_misused_statement_breaks(name):
    table = getattr(trials, name)(10, 0)
    misused = table[table["statement"] == "wrong"]
    assert statements.violated(misused).sum() >= 9


@pytest.mark.parametrize(
    "name", ["scaled", "readouts", "rescaled", "nudged", "shared_maps", "one_score", "swapped", "same_ranks"]
)
def test_every_misused_statement_about_rows_breaks(name):
    table = getattr(trials, name)(20, 0)
    misused = statements.tally(table[table["statement"] == "wrong"])
    assert len(misused) >= 2
    assert (misused["violations"] > 0).all()


@pytest.mark.parametrize(
    ("name", "function", "factor"),
    [
        ("hump", "softmax_jacobian_norm", 1.001),
        ("distances", "hilbert_distance", 1.001),
        ("distances", "total_variation_bound", 0.99),
        ("scaled", "deficit_bound", 0.9),
        ("scaled", "softmax_entropy", 1.01),
        ("ceilings", "margin_ceiling", 0.99),
        ("floors", "entropy_floor", 1.01),
    ],
)
def test_a_planted_fault_breaks_the_statement(name, function, factor, monkeypatch):
    right = getattr(entropy, function)
    monkeypatch.setattr(entropy, function, lambda *given, **options: factor * right(*given, **options))
    table = getattr(trials, name)(20, 0)
    assert statements.violated(table[table["statement"] != "wrong"]).any()


@pytest.mark.parametrize(
    ("name", "function", "fault"),
    [
        ("rescaled", "weight", lambda right, s, kind: right(s, kind=kind) + 1e-6),
        ("rescaled", "log_weight", lambda right, s, kind: right(s, kind=kind) + 0.01 * s.sin()),
        ("rescaled", "elasticity", lambda right, s, kind: 0.9 * right(s, kind=kind)),
        ("nudged", "log_weight", lambda right, s, kind: 1.05 * right(s, kind=kind)),
        ("nudged", "slope", lambda right, s, kind: 0.9 * right(s, kind=kind)),
        ("shared_maps", "shared_map", lambda right, s, kind: right(1.001 * s, kind=kind)),
        ("shared_maps", "log_weight", lambda right, s, kind: 1.01 * right(s, kind=kind)),
        ("one_score", "log_weight", lambda right, s, kind: right(s, kind=kind) - 0.01 * s.mean(-1, keepdim=True)),
        ("same_ranks", "weight", lambda right, s, kind: right(s, kind=kind).round(decimals=1)),
    ],
)
def test_a_planted_fault_in_a_kernel_breaks_the_statement(name, function, fault, monkeypatch):
    right = getattr(kernels, function)
    monkeypatch.setattr(kernels, function, lambda s, *, kind: fault(right, s, kind))
    table = getattr(trials, name)(20, 0)
    assert statements.violated(table[table["statement"] != "wrong"]).any()


def test_a_radius_that_is_too_large_breaks_the_statement(monkeypatch):
    right = swaps.radius
    monkeypatch.setattr(swaps, "radius", lambda pair, score: 1.01 * right(pair, score))
    tally = statements.tally(trials.swapped(5, 0)).set_index("arm")["violations"]
    for score in ("dot", "distance"):
        assert tally[f"{score}: the radius is attained"] == 5
        assert tally[f"{score}: order within the radius"] > 0


def test_every_equality_case_is_attained():
    ratios = statements.ratio(trials.attained())
    assert np.allclose(ratios, 1, rtol=0, atol=1e-9)


def test_every_equality_case_about_rows_is_attained():
    cases = trials.attained_by_rows()
    assert not statements.violated(cases).any()
    assert np.allclose(statements.ratio(cases), 1, rtol=0, atol=1e-6)  # P23.3 is attained in the limit only


def test_every_equality_case_about_kernels_is_attained():
    cases = trials.attained_by_kernels()
    assert not statements.violated(cases).any()
    assert np.allclose(statements.ratio(cases), 1, rtol=0, atol=1e-6)  # P26 is attained in the limit only


def test_only_powers_of_the_score_keep_their_entropy_over_the_scale():
    spread = trials.scale_sweep([0.01, 1, 100], 20, [0, 1]).groupby(["kernel", "seed"])["value"].agg(np.ptp).unstack()
    assert (spread.loc[["ReLU", "ReLU²"]] < 1e-12).all(axis=None)
    assert (spread.loc[list(kernels.SMOOTH)] > 0.1).all(axis=None)


def test_the_elasticity_is_constant_for_powers_and_rises_where_it_should():
    curves = trials.link_curves(8, 201)
    elastic = dict(list(curves[curves.name == "elasticity"].groupby("kernel")["value"]))
    for kind, power in kernels.POWERS.items():
        assert np.allclose(elastic[kind], power, rtol=0, atol=1e-12)
    for kind in kernels.SHARPENING:
        assert (elastic[kind].diff().dropna() > 0).all()
    assert not elastic["sigmoid"].is_monotonic_increasing


def test_softmax_is_deaf_to_evidence_and_kernels_are_not():
    heard = trials.evidence_sweep([0, 4], 49, list(range(30)))
    means = heard.groupby(["name", "kernel", "shift"])["value"].mean().unstack("shift")
    gain = means[4] - means[0]
    assert np.allclose(gain.xs("softmax", level="kernel"), 0, rtol=0, atol=1e-12)
    for kind in ("exp", "sigmoid", "ReLU"):
        assert gain["top-5", kind] > 0.05
        assert gain["Spearman", kind] > 0.05
    assert gain["plain cosine", "exp"] < 0  # the metrics disagree


def test_the_radii_of_keys_of_one_length_have_the_stated_ratio():
    radii = trials.swap_radii(50, 3)
    even = radii[radii.name == "keys of the query's length"]
    assert np.allclose(even.x * even.y, 1, rtol=1e-6, atol=0)
    assert not np.allclose(*(radii[radii.name == "keys of any length"][c] for c in ("x", "y")), rtol=0.1)


def test_ranks_are_flat_over_temperatures_and_what_depends_on_scale_is_not():
    heat = trials.temperatures([0.01, 1, 10], 20, [0, 1, 2])
    spread = heat.groupby(["name", "seed"])["value"].agg(np.ptp).unstack("name")
    assert (spread[["Spearman of log p", "top-8"]] == 0).all(axis=None)
    assert np.allclose(spread["R_s of the scores"], 0, atol=1e-12)
    assert (spread[["entropy / log n", "absolute change", "cosine of p"]] > 1e-3).all(axis=None)
    small = heat[heat.factor == 0.01].pivot(index="seed", columns="name", values="value")
    assert np.allclose(small["relative change"], small["R_s of the scores"], rtol=0.05)


def test_the_measured_slope_of_the_entropy_is_the_formula():
    table = trials.slopes([0.1, 1, 5], 20, [0, 1]).pivot(index=["seed", "factor"], columns="name", values="value")
    assert np.allclose(table["central differences"], table["-c Var(s)"], rtol=1e-4, atol=1e-6)
    assert (table["-c Var(s)"] < 0).all()


def test_no_row_of_the_landscape_crosses_a_curve():
    rows = trials.landscape(3, 20, 8)
    h, norm, span = (torch.tensor(rows[name].to_numpy(copy=True)) for name in ("entropy", "norm", "span"))
    envelope = entropy.sensitivity_envelope(h, keys=20)
    assert (rows.sensitivity <= envelope.upper.numpy() + 1e-9).all()
    assert (rows.sensitivity >= envelope.lower.numpy() - 1e-9).all()
    assert (rows.entropy >= entropy.entropy_floor(norm, keys=20).numpy() - 1e-9).all()
    assert (rows.entropy >= np.log(20) - entropy.deficit_bound(span).numpy() - 1e-9).all()
    assert (rows.gap <= entropy.margin_ceiling(h, keys=20, k=8).numpy() + 1e-9).all()


def test_the_curves_of_the_landscape_rise_and_fall_as_the_statements_say():
    curves = dict(list(trials.landscape_limits(20, 8).groupby("name")["y"]))
    assert curves["ceiling"].is_monotonic_decreasing
    assert curves["floor"].is_monotonic_decreasing
    hump = curves["envelope, above"].diff().dropna()
    assert (hump > 0).any()
    assert (hump < 0).any()
    assert hump[hump < 0].index.min() > hump[hump > 0].index.max()  # up, then down, once


def test_alike_tokens_are_unseen_by_the_key_matrix_under_softmax_only():
    table = trials.diversities([0.0, 1e-3], [0, 1]).pivot(
        index=["kind", "seed"], columns=["diversity", "name"], values="value"
    )
    key, tokens = "gradient in the key matrix", "gradient in the tokens"
    assert (table.loc["softmax", (0.0, key)] < 1e-12).all()
    assert (table.loc["softmax", (1e-3, key)] < 0.01 * table.loc["softmax", (1e-3, tokens)]).all()
    assert (table.loc["sigmoid", (0.0, key)] > 1e-3).all()
    assert (table.loc[:, (0.0, tokens)] > 1e-3).all()


def test_a_table_of_cases_is_the_tables_of_its_parts():
    whole, last = trials.rescaling(3, 5), trials.rescaling(1, 7)
    assert whole.groupby("arm")["left"].last().tolist() == last.set_index("arm").sort_index()["left"].tolist()


def test_the_shared_kernel_has_no_gradient_and_the_pixels_have():
    table = trials.detector([1.7]).set_index("name")["value"]
    assert table["gradient in the kernel"] == 0
    assert table["gradient in the pixels"] == pytest.approx(0.3005, abs=5e-5)
    assert table["Hessian in the pixels"] == pytest.approx(0.676, abs=5e-4)


def test_step_errors_fall_by_four_and_by_eight_per_halving():
    table = trials.orders([0], [0.001, 0.0005]).pivot(index="name", columns="step_size", values="value")
    ratio = table[0.001] / table[0.0005]
    assert ratio["flow of the loss"] == pytest.approx(4, rel=0.02)
    assert ratio["flow of the modified loss"] == pytest.approx(8, rel=0.02)


def test_the_second_moment_decays_below_the_threshold_and_grows_above_it():
    ends = trials.stability_sides(0, [0.9, 1.1], 200).groupby("name")["value"].last()
    assert ends["0.9 × threshold"] < 1e-5
    assert ends["1.1 × threshold"] > 1e5


def test_a_blind_unit_leaves_flatness_alone_and_bends_the_logit():
    table = trials.blind_unit(30, 10, 0, [0.0, 50.0]).pivot(index="strength", columns="name", values="value")
    for name in ("Gauss-Newton trace", "invariant flatness", "input gradient"):
        assert table[name].iloc[1] == pytest.approx(table[name].iloc[0], rel=1e-10)
    assert table["input curvature"].iloc[1] > 30 * table["input curvature"].iloc[0]


def test_settled_runs_of_sgd_stay_under_what_their_step_allows():
    runs = trials.sweep(6000, [3])
    settled = runs[runs.settled]
    assert len(settled) >= 4
    assert (settled.trace <= settled.limit).all()
    assert (settled.gradients <= settled.flatness).all()
    assert (settled.flatness <= settled.allowed).all()
    assert (settled.path <= settled.path_limit).all()
