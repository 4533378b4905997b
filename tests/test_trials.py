"""Every inequality of notebooks 02, 06 and 07 on random cases they have not seen, and every equality exactly."""

import sys

import numpy as np
import pytest
import torch
from attrobust.studies import kernel_attention, softmax_entropy, two_curvatures
from attrobust.theory import (
    certificates,
    duality,
    entropy,
    kernels,
    path_norm,
    stability,
    tally,
    traps,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st

#: Trial -> random cases to try.
TRIALS = {
    duality.identities: 3,
    duality.transfer: 4,
    duality.transformers: 4,
    duality.radii: 6,
    path_norm.rescaling: 20,
    duality.surfaces: 10,
    stability.stable: 20,
    stability.batches: 8,
    path_norm.paths: 20,
    path_norm.angles: 20,
    certificates.turning: 15,
    certificates.metrics: 10,
    traps.loss_gradients: 10,
    certificates.smoothed: 20,
    entropy.hump: 10,
    kernels.rank_orders: 5,
    entropy.distances: 10,
    entropy.scaled: 10,
    entropy.ceilings: 10,
    entropy.floors: 10,
    traps.readouts: 10,
    kernels.rescaled: 10,
    kernels.nudged: 10,
    kernels.shared_maps: 10,
    kernels.one_score: 10,
    kernels.swapped: 10,
    kernels.same_ranks: 5,
}


def name(thing):
    return getattr(thing, "__name__", None)


@pytest.mark.parametrize("trial", TRIALS, ids=name)
def test_the_statement_holds_on_random_cases(trial):
    @settings(max_examples=TRIALS[trial])
    @given(seed=st.integers(10_000, 10**6))
    def holds(seed):
        table = trial(1, seed)
        broken = table[table["holds"] & tally.violated(table)]
        assert broken.empty, broken.to_string()

    holds()


@pytest.mark.in_turn(9)
@pytest.mark.parametrize("trial", TRIALS, ids=name)
def test_every_wrong_variant_breaks(trial):
    tallied = tally.tally(trial(20, 0))
    assert (tallied["violations"][~tallied["holds"]] > 0).all()


@pytest.mark.parametrize(
    ("trial", "variants"),
    [
        (duality.transformers, 1), (duality.radii, 1), (entropy.distances, 1), (entropy.ceilings, 1),
        (kernels.rank_orders, 2), (entropy.scaled, 2), (traps.readouts, 3), (kernels.rescaled, 6), (kernels.nudged, 3),
        (kernels.shared_maps, 2), (kernels.one_score, 2), (kernels.swapped, 6), (kernels.same_ranks, 3),
    ],
    ids=name,
)  # fmt: skip
def test_a_trial_carries_its_wrong_variants(trial, variants):
    assert len(tally.variants(trial(1, 3))) == variants


def broken_by(monkeypatch, trial, place, function, fault):
    """Violations of the true statements of a trial while a function is faulty wherever the package knows it."""
    right = getattr(place, function)
    for module in [m for n, m in sys.modules.items() if n.startswith("attrobust.")]:
        if vars(module).get(function) is right:
            monkeypatch.setattr(module, function, lambda *given, **options: fault(right, *given, **options))
    table = trial(20, 0)
    return int((table["holds"] & tally.violated(table)).sum())


@pytest.mark.parametrize(
    ("trial", "function", "factor"),
    [
        (entropy.hump, "softmax_jacobian_norm", 1.001),
        (entropy.distances, "hilbert_distance", 1.001),
        (entropy.distances, "total_variation_bound", 0.99),
        (entropy.scaled, "deficit_bound", 0.9),
        (entropy.scaled, "softmax_entropy", 0.99),
        (entropy.ceilings, "margin_ceiling", 0.99),
        (entropy.floors, "entropy_floor", 1.01),
    ],
    ids=name,
)
def test_a_planted_fault_breaks_the_statement(trial, function, factor, monkeypatch):
    assert broken_by(monkeypatch, trial, entropy, function, lambda right, *a, **o: factor * right(*a, **o))


@pytest.mark.parametrize(
    ("trial", "function", "fault"),
    [
        (kernels.rescaled, "weight", lambda right, s, kind: right(s, kind=kind) + 1e-6),
        (kernels.rescaled, "log_weight", lambda right, s, kind: right(s, kind=kind) + 0.01 * s.sin()),
        (kernels.rescaled, "elasticity", lambda right, s, kind: 0.9 * right(s, kind=kind)),
        (kernels.nudged, "log_weight", lambda right, s, kind: 1.05 * right(s, kind=kind)),
        (kernels.nudged, "slope", lambda right, s, kind: 0.9 * right(s, kind=kind)),
        (kernels.shared_maps, "shared_map", lambda right, s, kind: right(1.001 * s, kind=kind)),
        (kernels.shared_maps, "log_weight", lambda right, s, kind: 1.01 * right(s, kind=kind)),
        (kernels.one_score, "log_weight", lambda right, s, kind: right(s, kind=kind) - 0.01 * s.mean(-1, keepdim=True)),
        (kernels.same_ranks, "weight", lambda right, s, kind: right(s, kind=kind).round(decimals=1)),
    ],
    ids=name,
)
def test_a_planted_fault_in_a_kernel_breaks_the_statement(trial, function, fault, monkeypatch):
    assert broken_by(monkeypatch, trial, kernels, function, fault)


def test_a_radius_that_is_too_large_breaks_the_statement(monkeypatch):
    right = kernels.radius
    monkeypatch.setattr(kernels, "radius", lambda pair, score: 1.01 * right(pair, score))
    tallied = tally.tally(kernels.swapped(5, 0)).set_index("arm")["violations"]
    for score in ("dot", "distance"):
        assert tallied[f"{score}: the radius is attained"] == 5
        assert tallied[f"{score}: order within the radius"] > 0


def test_every_equality_case_is_attained():
    ratios = tally.ratio(two_curvatures.attained())
    assert np.allclose(ratios, 1, rtol=0, atol=1e-9)


def test_every_equality_case_about_rows_is_attained():
    cases = softmax_entropy.attained_by_rows()
    assert not tally.violated(cases).any()
    assert np.allclose(tally.ratio(cases), 1, rtol=0, atol=1e-6)  # P22.3 is attained in the limit only


def test_every_equality_case_about_kernels_is_attained():
    cases = kernel_attention.attained_by_kernels()
    assert not tally.violated(cases).any()
    assert np.allclose(tally.ratio(cases), 1, rtol=0, atol=1e-6)  # P27 is attained in the limit only


def test_only_powers_of_the_score_keep_their_entropy_over_the_scale():
    spread = (
        kernel_attention.scale_sweep([0.01, 1, 100], 20, [0, 1])
        .groupby(["kernel", "seed"])["value"]
        .agg(np.ptp)
        .unstack()
    )
    assert (spread.loc[["ReLU", "ReLU²"]] < 1e-12).all(axis=None)
    assert (spread.loc[list(kernels.SMOOTH)] > 0.1).all(axis=None)


def test_the_elasticity_is_constant_for_powers_and_rises_where_it_should():
    curves = kernel_attention.link_curves(8, 201)
    elastic = dict(list(curves[curves.name == "elasticity"].groupby("kernel")["value"]))
    for kind, power in kernels.POWERS.items():
        assert np.allclose(elastic[kind], power, rtol=0, atol=1e-12)
    for kind in kernels.SHARPENING:
        assert (elastic[kind].diff().dropna() > 0).all()
    assert not elastic["sigmoid"].is_monotonic_increasing


def test_softmax_is_deaf_to_evidence_and_kernels_are_not():
    heard = kernel_attention.evidence_sweep([0, 4], 49, list(range(30)))
    means = heard.groupby(["name", "kernel", "shift"])["value"].mean().unstack("shift")
    gain = means[4] - means[0]
    assert np.allclose(gain.xs("softmax", level="kernel"), 0, rtol=0, atol=1e-12)
    for kind in ("exp", "sigmoid", "ReLU"):
        assert gain["top-5", kind] > 0.05
        assert gain["Spearman", kind] > 0.05
    assert gain["plain cosine", "exp"] < 0  # the metrics disagree


def test_the_radii_of_keys_of_one_length_have_the_stated_ratio():
    radii = kernel_attention.swap_radii(50, 3)
    even = radii[radii.name == "keys of the query's length"]
    assert np.allclose(even.x * even.y, 1, rtol=1e-6, atol=0)
    assert not np.allclose(*(radii[radii.name == "keys of any length"][c] for c in ("x", "y")), rtol=0.1)


def test_ranks_are_flat_over_temperatures_and_what_depends_on_scale_is_not():
    heat = softmax_entropy.temperatures([0.01, 1, 10], 20, [0, 1, 2])
    spread = heat.groupby(["name", "seed"])["value"].agg(np.ptp).unstack("name")
    assert (spread[["Spearman of log p", "top-8"]] == 0).all(axis=None)
    assert np.allclose(spread["R_s of the scores"], 0, atol=1e-12)
    assert (spread[["entropy / log n", "absolute change", "cosine of p"]] > 1e-3).all(axis=None)
    small = heat[heat.factor == 0.01].pivot(index="seed", columns="name", values="value")
    assert np.allclose(small["relative change"], small["R_s of the scores"], rtol=0.05)


def test_the_measured_slope_of_the_entropy_is_the_formula():
    table = softmax_entropy.slopes([0.1, 1, 5], 20, [0, 1]).pivot(
        index=["seed", "factor"], columns="name", values="value"
    )
    assert np.allclose(table["central differences"], table["-c Var(s)"], rtol=1e-4, atol=1e-6)
    assert (table["-c Var(s)"] < 0).all()


def test_no_row_of_the_landscape_crosses_a_curve():
    rows = softmax_entropy.landscape(3, 20, 8)
    h, norm, span = (torch.tensor(rows[name].to_numpy(copy=True)) for name in ("entropy", "norm", "span"))
    envelope = entropy.sensitivity_envelope(h, keys=20)
    assert (rows.sensitivity <= envelope.upper.numpy() + 1e-9).all()
    assert (rows.sensitivity >= envelope.lower.numpy() - 1e-9).all()
    assert (rows.entropy >= entropy.entropy_floor(norm, keys=20).numpy() - 1e-9).all()
    assert (rows.entropy >= np.log(20) - entropy.deficit_bound(span).numpy() - 1e-9).all()
    assert (rows.gap <= entropy.margin_ceiling(h, keys=20, k=8).numpy() + 1e-9).all()


def test_the_curves_of_the_landscape_rise_and_fall_as_the_statements_say():
    curves = dict(list(softmax_entropy.landscape_limits(20, 8).groupby("name")["y"]))
    assert curves["ceiling"].is_monotonic_decreasing
    assert curves["floor"].is_monotonic_decreasing
    hump = curves["envelope, above"].diff().dropna()
    assert (hump > 0).any()
    assert (hump < 0).any()
    assert hump[hump < 0].index.min() > hump[hump > 0].index.max()  # up, then down, once


def test_alike_tokens_are_unseen_by_the_key_matrix_under_softmax_only():
    table = softmax_entropy.diversities([0.0, 1e-3], [0, 1]).pivot(
        index=["kind", "seed"], columns=["diversity", "name"], values="value"
    )
    key, tokens = "gradient in the key matrix", "gradient in the tokens"
    assert (table.loc["softmax", (0.0, key)] < 1e-12).all()
    assert (table.loc["softmax", (1e-3, key)] < 0.01 * table.loc["softmax", (1e-3, tokens)]).all()
    assert (table.loc["sigmoid", (0.0, key)] > 1e-3).all()
    assert (table.loc[:, (0.0, tokens)] > 1e-3).all()


def test_a_table_of_cases_is_the_tables_of_its_parts():
    whole, last = path_norm.rescaling(3, 5), path_norm.rescaling(1, 7)
    assert whole.groupby("arm")["left"].last().tolist() == last.set_index("arm").sort_index()["left"].tolist()


def test_the_shared_kernel_has_no_gradient_and_the_pixels_have():
    table = duality.detector([1.7]).set_index("name")["value"]
    assert table["gradient in the kernel"] == 0
    assert table["gradient in the pixels"] == pytest.approx(0.3005, abs=5e-5)
    assert table["Hessian in the pixels"] == pytest.approx(0.676, abs=5e-4)


def test_step_errors_fall_by_four_and_by_eight_per_halving():
    table = stability.orders([0], [0.001, 0.0005]).pivot(index="name", columns="step_size", values="value")
    ratio = table[0.001] / table[0.0005]
    assert ratio["flow of the loss"] == pytest.approx(4, rel=0.02)
    assert ratio["flow of the modified loss"] == pytest.approx(8, rel=0.02)


def test_the_second_moment_decays_below_the_threshold_and_grows_above_it():
    ends = two_curvatures.stability_sides(0, [0.9, 1.1], 200).groupby("name")["value"].last()
    assert ends["0.9 × threshold"] < 1e-5
    assert ends["1.1 × threshold"] > 1e5


def test_a_blind_unit_leaves_flatness_alone_and_bends_the_logit():
    table = two_curvatures.blind_unit(30, 10, 0, [0.0, 50.0]).pivot(index="strength", columns="name", values="value")
    for name in ("Gauss-Newton trace", "invariant flatness", "input gradient"):
        assert table[name].iloc[1] == pytest.approx(table[name].iloc[0], rel=1e-10)
    assert table["input curvature"].iloc[1] > 30 * table["input curvature"].iloc[0]


def test_settled_runs_of_sgd_stay_under_what_their_step_allows():
    runs = path_norm.sweep(6000, [3])
    settled = runs[runs.settled]
    assert len(settled) >= 4
    assert (settled.trace <= settled.limit).all()
    assert (settled.gradients <= settled.flatness).all()
    assert (settled.flatness <= settled.allowed).all()
    assert (settled.path <= settled.path_limit).all()
