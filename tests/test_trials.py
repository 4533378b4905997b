"""Every inequality of notebook 02 on random networks that the notebook has not seen, and every equality exactly."""

import numpy as np
import pytest
from attrobust import statements, trials
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
}


@pytest.mark.parametrize("name", TRUE)
def test_the_statement_holds_on_random_networks(name):
    @settings(max_examples=TRUE[name])
    @given(seed=st.integers(10_000, 10**6))
    def holds(seed):
        table = getattr(trials, name)(1, seed)
        table = table[table["statement"] != "wrong"]
        broken = table[statements.violated(table)]
        assert broken.empty, broken.to_string()

    holds()


@pytest.mark.parametrize("name", ["radii", "transformers"])
def test_the_misused_statement_breaks(name):
    table = getattr(trials, name)(10, 0)
    misused = table[table["statement"] == "wrong"]
    assert statements.violated(misused).sum() >= 9


def test_every_equality_case_is_attained():
    ratios = statements.ratio(trials.attained())
    assert np.allclose(ratios, 1, rtol=0, atol=1e-9)


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
