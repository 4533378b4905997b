"""Entropy of attention rows against automatic differentiation, dense eigenvalues, scipy and closed forms."""

import itertools
import math

import cases
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from attrobust.theory import draws, entropy, tally, traps
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

seeds = st.integers(0, 10**6)
UNIFORM = torch.full((5,), 0.2, dtype=torch.float64)
ONE_HOT = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
TIE = torch.tensor([0.5, 0.0, 0.5, 0.0], dtype=torch.float64)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def jacobian(s):
    return torch.autograd.functional.jacobian(lambda t: t.softmax(0), s)


# ---------------------------------------------------------------------- entropy and mass


@given(seed=seeds)
def test_row_entropy_agrees_with_scipy_for_any_mass(seed):
    p = draws.scores(seed).softmax(1)
    mass = 10 ** torch.randn(len(p), 1, generator=torch.Generator().manual_seed(seed), dtype=p.dtype)
    expected = scipy.stats.entropy(p.numpy(), axis=1)
    assert np.allclose(entropy.row_entropy(mass * p).numpy(), expected, atol=1e-12)
    assert torch.allclose(entropy.row_mass(mass * p), mass[:, 0])
    assert np.allclose(entropy.effective_keys(p).numpy(), np.exp(expected))


@given(seed=seeds)
def test_entropy_of_scores_is_the_entropy_of_their_softmax(seed):
    s = draws.scores(seed)
    h = entropy.softmax_entropy(s)
    assert torch.allclose(h, entropy.row_entropy(s.softmax(1)), atol=1e-12)
    assert torch.allclose(entropy.entropy_deficit(s), math.log(s.shape[1]) - h, atol=1e-12)


def test_a_peaked_row_keeps_its_small_entropy_and_a_flat_row_its_small_deficit():
    t = 60.0
    assert entropy.softmax_entropy(tensor(t, 0)).item() == pytest.approx((1 + t) * math.exp(-t), rel=1e-12)
    t = 1e-6
    assert entropy.entropy_deficit(tensor(t, -t)).item() == pytest.approx(t**2 / 2, rel=1e-9)


@pytest.mark.parametrize("row", [ONE_HOT, tensor(3.0), tensor(0.0, 7.0)])
def test_one_key_with_everything_has_entropy_zero_and_never_moves(row):
    assert entropy.row_entropy(row).item() == 0
    assert entropy.effective_keys(row).item() == 1
    assert entropy.softmax_jacobian_norm(row).item() == 0
    assert [side.item() for side in entropy.jacobian_bounds(row)] == [0, 0]


def test_a_uniform_row_has_the_entropy_of_its_keys():
    assert entropy.row_entropy(UNIFORM).item() == pytest.approx(math.log(5), rel=1e-15)
    assert entropy.softmax_jacobian_norm(UNIFORM).item() == pytest.approx(0.2, rel=1e-15)
    assert entropy.softmax_entropy(torch.full((7,), 3.3)).item() == pytest.approx(math.log(7), rel=1e-6)
    assert entropy.entropy_deficit(torch.full((7,), 3.3)).item() == 0


def test_a_masked_key_counts_as_absent():
    functions = (entropy.softmax_entropy, entropy.entropy_deficit, entropy.oscillation, entropy.centred_norm)
    for function, scale in itertools.product(functions, (1.0, 0.1)):
        open_row, masked = scale * tensor(1.0, 0.3, -2.0), scale * tensor(1.0, -math.inf, 0.3, -2.0)
        assert function(masked).item() == pytest.approx(function(open_row).item(), rel=1e-14)
        s = masked.clone().requires_grad_()
        function(s).backward()
        assert s.grad[1] == 0
        assert torch.isfinite(s.grad).all()


def test_a_row_without_mass_has_no_entropy_and_can_be_counted():
    dead = torch.tensor([[0.0, 0.0], [0.2, 0.2]])
    assert entropy.row_mass(dead).tolist() == pytest.approx([0, 0.4])
    for function in (entropy.row_entropy, entropy.effective_keys, entropy.softmax_jacobian_norm):
        assert function(dead).isnan().tolist() == [True, False]


def test_the_gradient_of_the_entropy_is_finite_at_zero_weights():
    s = torch.tensor([0.0, -800.0], dtype=torch.float64, requires_grad=True)
    entropy.row_entropy(s.softmax(0)).backward()
    assert torch.isfinite(s.grad).all()


@given(seed=seeds, c=st.floats(0.05, 2))
def test_the_slope_of_the_entropy_in_the_factor_is_minus_c_times_the_variance(seed, c):
    s, step = draws.scores(seed), 1e-5
    p = (c * s).softmax(1)
    variance = (p * (s - (p * s).sum(1, keepdim=True)).square()).sum(1)
    measured = (entropy.softmax_entropy((c + step) * s) - entropy.softmax_entropy((c - step) * s)) / (2 * step)
    assert torch.allclose(measured, -c * variance, rtol=1e-5, atol=1e-5)


def test_any_batch_axes_and_float32_go_through():
    s = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    p = s.softmax(-1)
    for value in (
        entropy.row_entropy(p), entropy.softmax_entropy(s), entropy.softmax_jacobian_norm(p), entropy.topk_gap(s, k=2),
        entropy.margin_ceiling(entropy.row_entropy(p), keys=6, k=2), entropy.jacobian_bounds(p).upper,
        entropy.hilbert_distance(p, p.roll(1, -1)), entropy.relative_score_change(s, s.roll(1, -1)),
    ):  # fmt: skip
        assert value.shape == (2, 3, 4)
        assert value.dtype == torch.float32
    assert torch.allclose(entropy.row_entropy(p), entropy.row_entropy(p.double()).float(), atol=1e-6)


# ---------------------------------------------------------------------- the Jacobian


@given(seed=seeds)
def test_the_jacobian_norm_is_the_top_eigenvalue_of_the_jacobian_by_autograd(seed):
    s = draws.scores(seed, rows=5)
    exact = torch.stack([torch.linalg.eigvalsh(jacobian(row))[-1] for row in s])
    assert torch.allclose(entropy.softmax_jacobian_norm(s.softmax(1)), exact, atol=1e-13)


@given(seed=seeds)
def test_the_jacobian_norm_of_any_kernel_is_that_of_softmax_for_softmax_and_the_top_slope_for_one_to_one_kernels(seed):
    s = draws.scores(seed, rows=5)
    found = entropy.row_jacobian_norm(lambda row: row.softmax(-1), s)
    assert torch.allclose(found, entropy.softmax_jacobian_norm(s.softmax(1)), atol=1e-12)
    slopes = s.sigmoid() * (1 - s.sigmoid())
    assert torch.allclose(entropy.row_jacobian_norm(torch.sigmoid, s[None]), slopes.amax(1)[None], rtol=1e-10)


@given(seed=seeds)
def test_the_bounds_enclose_the_dense_eigenvalue(seed):
    s = draws.scores(seed)
    p = s.softmax(1)
    top = torch.linalg.eigvalsh(torch.diag_embed(p) - p[:, :, None] * p[:, None])[:, -1]
    for bounds in (
        entropy.jacobian_bounds(p), entropy.sensitivity_envelope(entropy.softmax_entropy(s), keys=s.shape[1]),
    ):  # fmt: skip
        assert (bounds.lower <= top + 1e-12).all()
        assert (top <= bounds.upper + 1e-12).all()
    assert (entropy.jacobian_bounds(p).upper <= 2 * entropy.jacobian_bounds(p).lower * (1 + 1e-12)).all()


def test_two_keys_that_share_everything_are_the_most_sensitive():
    assert entropy.softmax_jacobian_norm(TIE).item() == 0.5
    assert [side.item() for side in entropy.jacobian_bounds(TIE)] == [0.5, 0.5]


@given(share=st.floats(1e-12, 0.5))
def test_two_keys_alone_have_twice_the_product_and_lie_on_the_envelope(share):
    p = tensor(1 - share, share)
    exact = 2 * share * (1 - share)
    assert entropy.softmax_jacobian_norm(p).item() == pytest.approx(exact, rel=1e-12)
    assert entropy.jacobian_bounds(p).lower.item() == pytest.approx(exact, rel=1e-12)
    upper = entropy.sensitivity_envelope(entropy.row_entropy(p), keys=9).upper
    assert upper.item() == pytest.approx(exact, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("h", "keys"), [(0.75, 3), (1.0, 3), (2.0, 9)])
def test_above_the_entropy_of_two_keys_the_envelope_is_that_of_a_first_weight_of_at_least_exp_minus_h(h, keys):
    most, least = entropy.leading_mass(tensor(h), keys=keys, k=1).item(), math.exp(-h)
    lower, upper = entropy.sensitivity_envelope(tensor(h), keys=keys)
    assert lower.item() == pytest.approx(min(most * (1 - most), least * (1 - least)), rel=1e-12)
    assert upper.item() == pytest.approx(min(0.5, most), rel=1e-12)


@given(seed=seeds)
def test_the_derivative_of_the_jacobian_norm_agrees_with_finite_differences(seed):
    g = torch.Generator().manual_seed(seed)
    s, way = (torch.randn(6, generator=g, dtype=torch.float64) for _ in range(2))
    at = s.clone().requires_grad_()
    (slope,) = torch.autograd.grad(entropy.softmax_jacobian_norm(at.softmax(0)), at)
    ends = [entropy.softmax_jacobian_norm((s + h * way).softmax(0)) for h in (1e-6, -1e-6)]
    assert (slope @ way).item() == pytest.approx(((ends[0] - ends[1]) / 2e-6).item(), abs=1e-6)


def test_at_a_tie_the_derivative_is_that_of_the_two_leaders():
    p = tensor(0.4, 0.4, 0.2).requires_grad_()
    (slope,) = torch.autograd.grad(entropy.softmax_jacobian_norm(p), p)
    assert (slope @ tensor(1.0, 1.0, -2.0)).item() == pytest.approx(1.0)


def test_second_derivatives_of_the_jacobian_norm_are_right():
    s = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    with torch.random.fork_rng(devices=[]):
        assert torch.autograd.gradgradcheck(lambda t: entropy.softmax_jacobian_norm(t.softmax(1)), s)


# ---------------------------------------------------------------------- floor, deficit, margin


@given(seed=seeds)
def test_no_softmax_row_goes_below_the_floor_or_its_deficit_above_the_bound(seed):
    s = draws.scores(seed)
    h, keys = entropy.softmax_entropy(s), s.shape[1]
    assert (entropy.entropy_floor(entropy.centred_norm(s), keys=keys) <= h + 1e-12).all()
    assert (entropy.entropy_deficit(s) <= entropy.deficit_bound(entropy.oscillation(s)) + 1e-12).all()


@given(raised=st.floats(0, 60), keys=st.integers(2, 60))
def test_one_raised_score_lies_on_the_floor(raised, keys):
    s = torch.zeros(keys, dtype=torch.float64)
    s[0] = raised
    floor = entropy.entropy_floor(entropy.centred_norm(s), keys=keys)
    assert floor.item() == pytest.approx(entropy.softmax_entropy(s).item(), rel=1e-9, abs=1e-15)


def test_the_floor_agrees_with_a_search_over_rows_of_one_norm():
    s = torch.randn(20000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = 2 * (s - s.mean(1, keepdim=True)) / (s - s.mean(1, keepdim=True)).norm(dim=1, keepdim=True)
    floor = entropy.entropy_floor(tensor(2.0), keys=4).item()
    assert floor <= entropy.softmax_entropy(s).min().item() <= floor + 1e-3


def test_floors_at_the_ends():
    assert entropy.entropy_floor(tensor(0.0, math.inf), keys=9).tolist() == [math.log(9), 0]
    assert entropy.entropy_floor(tensor(0.0, 4.0), keys=1).tolist() == [0, 0]


@given(keys=st.integers(2, 40), k=st.integers(1, 39), gap=st.floats(1e-3, 25))
def test_the_ceiling_of_a_two_level_row_is_its_gap(keys, k, gap):
    k = min(k, keys - 1)
    s = gap * (torch.arange(keys) < k).double()
    ceiling = entropy.margin_ceiling(entropy.softmax_entropy(s), keys=keys, k=k).item()
    assert ceiling == pytest.approx(gap, rel=1e-4)
    assert ceiling >= gap * (1 - 1e-12)
    assert entropy.topk_gap(s, k=k).item() == gap


@pytest.mark.parametrize(("keys", "k", "share"), [(49, 8, 0.7), (49, 1, 0.1), (5, 4, 0.95), (100, 10, 0.999)])
def test_the_ceiling_agrees_with_a_root_of_the_entropy_of_two_levels(keys, k, share):
    h = share * math.log(keys)

    def psi(m):
        return scipy.special.entr(m) + scipy.special.entr(1 - m) + m * math.log(k) + (1 - m) * math.log(keys - k)

    m = brentq(lambda m: psi(m) - h, k / keys, 1 - 1e-15, xtol=1e-15)
    expected = math.log(m * (keys - k) / (k * (1 - m)))
    assert entropy.margin_ceiling(tensor(h), keys=keys, k=k).item() == pytest.approx(expected, rel=1e-9)
    assert entropy.leading_mass(tensor(h), keys=keys, k=k).item() == pytest.approx(m, rel=1e-9)


def test_the_ceiling_is_open_where_k_keys_can_hold_everything_and_closed_at_uniform():
    at = tensor(0.0, math.log(3), math.log(3) + 1e-9, math.log(9), math.nan)
    values = entropy.margin_ceiling(at, keys=9, k=3)
    assert values[:2].tolist() == [math.inf, math.inf]
    assert 15 < values[2] < math.inf
    assert 0 <= values[3] < 1e-6
    assert values[4].isnan()


@given(seed=seeds)
def test_the_gap_never_exceeds_its_ceiling_and_a_lower_one_is_caught(seed):
    s = draws.scores(seed)
    gap = entropy.topk_gap(s, k=1)
    ceiling = entropy.margin_ceiling(entropy.softmax_entropy(s), keys=s.shape[1], k=1)
    assert not tally.violated(tally.bound("P24", "gap", gap, ceiling)).any()
    raised = torch.zeros(s.shape[1], dtype=s.dtype)
    raised[0] = 2.0
    planted = 0.99 * entropy.margin_ceiling(entropy.softmax_entropy(raised), keys=s.shape[1], k=1)
    assert tally.violated(tally.bound("P24", "gap", 2.0, planted)).all()


def test_gaps_at_masked_keys_are_open_or_closed():
    s = tensor(2.0, 1.0, -math.inf, -math.inf)
    assert [entropy.topk_gap(s, k=k).item() for k in (1, 2, 3)] == [1, math.inf, 0]


# ---------------------------------------------------------------------- distances


@given(seed=seeds)
def test_hilbert_distance_is_the_range_of_the_score_change_and_bounds_total_variation(seed):
    s = draws.scores(seed)
    t = draws.moved(s, seed=seed)
    p, q = s.softmax(1), t.softmax(1)
    span = entropy.oscillation(t - s)
    assert torch.allclose(entropy.hilbert_distance(5 * p, q), span, rtol=1e-9, atol=1e-9)
    assert torch.allclose(entropy.total_variation(3 * p, q), (p - q).clamp(min=0).sum(1), atol=1e-12)
    assert (entropy.total_variation(p, q) <= entropy.total_variation_bound(span) + 1e-12).all()


@given(t=st.floats(0, 15))
def test_two_keys_that_swap_attain_the_tanh_bound(t):
    p, q = tensor(t, -t).softmax(0), tensor(-t, t).softmax(0)
    limit = entropy.total_variation_bound(tensor(4 * t))[0]
    assert entropy.total_variation(p, q).item() == pytest.approx(limit.item(), rel=1e-12, abs=1e-15)


def test_hilbert_distance_at_zeros():
    assert entropy.hilbert_distance(tensor(1, 1, 0), tensor(1, 2, 0)).item() == pytest.approx(math.log(2))
    assert entropy.hilbert_distance(tensor(1, 1, 0), tensor(1, 1, 1)).item() == math.inf
    assert entropy.hilbert_distance(tensor(0, 0), tensor(1, 1)).isnan().item()


@given(seed=seeds, factor=st.floats(0.01, 100), shift=st.floats(-5, 5))
def test_the_relative_score_change_ignores_scale_and_shift(seed, factor, shift):
    s = draws.scores(seed)
    t = draws.moved(s, seed=seed)
    change = entropy.relative_score_change(s, t)
    centred = [u - u.mean(1, keepdim=True) for u in (s, t)]
    assert torch.allclose(change, (centred[1] - centred[0]).norm(dim=1) / centred[0].norm(dim=1))
    again = entropy.relative_score_change(factor * s + shift, factor * t - shift)
    assert torch.allclose(again, change, rtol=1e-6, atol=1e-9)


def test_the_bound_of_the_curvature_of_a_mass_is_the_largest_third_moment_of_a_coin():
    """Of numbers in [0, 1] a coin's third central moment, p (1 - p) (1 - 2 p), is the largest."""
    p = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    assert pytest.approx((p * (1 - p) * (1 - 2 * p)).max().item(), rel=1e-8) == entropy.SKEW


def test_the_relative_score_change_of_equal_scores():
    flat = torch.zeros(3, dtype=torch.float64)
    assert entropy.relative_score_change(flat, flat).item() == 0
    assert entropy.relative_score_change(flat, tensor(1.0, 0.0, 0.0)).item() == math.inf


# ---------------------------------------------------------------------- rows of every size

HEAVY = [(torch.float16, 4e4), (torch.float32, 2e38), (torch.float64, 1e308), (torch.float64, 5e-324)]


@pytest.mark.parametrize(("dtype", "size"), HEAVY)
def test_measures_of_a_row_are_those_of_a_row_of_mass_one_however_heavy_it_is(dtype, size):
    first, second = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]), torch.tensor([[0, 1, 1, 1], [1, 1, 0, 1]])
    heavy = [(size * row.double()).to(dtype) for row in (first, second)]
    for row, found in zip((first, second), heavy, strict=True):
        keys = row.sum(1).tolist()
        assert entropy.row_entropy(found).tolist() == pytest.approx([math.log(n) for n in keys], rel=2e-3)
        assert entropy.effective_keys(found).tolist() == pytest.approx(keys, rel=5e-3)
        assert entropy.softmax_jacobian_norm(found).tolist() == pytest.approx([(n > 1) / n for n in keys], rel=2e-3)
    assert entropy.total_variation(*heavy).tolist() == pytest.approx([1 / 4, 2 / 3], rel=2e-3)


def test_a_heavy_row_changes_no_bit_of_the_rows_beside_it_and_has_a_derivative_of_its_own():
    light = cases.draw(5, 4).square().float()
    both = torch.cat([light, torch.full((1, 4), 2e38)])
    assert torch.equal(entropy.row_entropy(both)[:5], entropy.row_entropy(light))
    slopes = []
    for size in (1.0, 4e307):
        row = tensor(1, 2, 3, 4).mul(size).requires_grad_()
        slopes.append(size * torch.autograd.grad(entropy.row_entropy(row), row)[0])
    assert slopes[0].any()
    assert torch.allclose(slopes[1], slopes[0], rtol=1e-12)


@pytest.mark.parametrize(("dtype", "power"), [(torch.float32, 100), (torch.float32, -80), (torch.float64, 1000),
                                              (torch.float64, -1000), (torch.bfloat16, 120)])  # fmt: skip
def test_lengths_of_scores_do_not_depend_on_their_unit(dtype, power):
    s, t = cases.draw(20, 5, seed=1).to(dtype), cases.draw(20, 5, seed=2).to(dtype)
    unit, rel = 2.0**power, 4 * torch.finfo(dtype).eps ** 0.5 if dtype == torch.bfloat16 else 1e-5
    a, b = (row.double() - row.double().mean(1, keepdim=True) for row in (s, t))
    norm = entropy.centred_norm(unit * s).double() / unit
    assert norm.tolist() == pytest.approx(a.square().sum(1).sqrt().tolist(), rel=rel)
    change = (b - a).square().sum(1).sqrt() / a.square().sum(1).sqrt()
    assert entropy.relative_score_change(unit * s, unit * t).tolist() == pytest.approx(change.tolist(), rel=rel)


@pytest.mark.parametrize("unit", [1.0, 2.0**-60, 2.0**100])
def test_a_length_has_the_derivatives_of_a_length_in_every_unit(unit):
    row = (unit * cases.draw(1, 5).float()).requires_grad_()
    (slope,) = torch.autograd.grad(entropy.centred_norm(row), row)
    centred = row.detach().double() - row.detach().double().mean()
    assert torch.allclose(slope.double(), centred / centred.norm(), atol=1e-6)


def test_equal_scores_lack_nothing_to_the_uniform_row_however_large_they_are():
    large = torch.tensor([[1e38, 1e38, 1e38, 1e38], [-2e38, -2e38, -2e38, -math.inf], [1e38, 2e38, 3e38, 2e38]])
    assert entropy.entropy_deficit(large)[:2].tolist() == [0, 0]
    assert entropy.centred(large)[2].tolist() == pytest.approx([-1e38, 0, 1e38, 0], abs=1e32)


# ---------------------------------------------------------------------- the read-out


@pytest.mark.parametrize("kind", traps.KINDS)
def test_readout_gradients_are_their_closed_forms(kind):
    row = traps.draw(3)
    a = traps.weights(traps.scores(row), kind=kind)
    xi = a * (row.values - a @ row.values) if kind == "softmax" else a * (1 - a) * row.values
    found = traps.gradients(row, kind=kind)
    assert torch.allclose(found.scores, xi)
    assert torch.allclose(found.key, torch.outer(row.query, row.tokens.T @ xi))
    assert torch.allclose(found.tokens, torch.outer(xi, row.key.T @ row.query))


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: entropy.row_entropy(tensor(0.5, -0.1)), "weights holds 1 entries that are negative, infinite or NaN"),
        (lambda: entropy.row_mass(tensor(0.5, math.nan)), "weights holds 1 entries"),
        (lambda: entropy.softmax_jacobian_norm(tensor(math.inf, 1)), "weights must be at least 0"),
        (lambda: entropy.row_entropy(torch.zeros(3, 0)), r"weights has shape \(3, 0\); its last axis must hold one"),
        (lambda: entropy.softmax_entropy(tensor(1.0, math.nan)), "scores holds NaN or"),
        (lambda: entropy.oscillation(tensor(-math.inf, -math.inf)), "scores has a row of -inf only"),
        (lambda: entropy.topk_gap(tensor(1.0, 0.0), k=2), "k is 2; it must be a whole number from 1 to 1"),
        (lambda: entropy.margin_ceiling(tensor(2.0), keys=4, k=1), r"entropy spans \[2, 2\]; it must lie in \[0, 1.38"),
        (lambda: entropy.margin_ceiling(tensor(-1e-3), keys=4, k=1), r"entropy spans \[-0.001, -0.001\]; it must lie"),
        (lambda: entropy.margin_ceiling(tensor(0.1), keys=4, k=4), "k is 4; it must be a whole number from 1 to 3"),
        (
            lambda: entropy.margin_ceiling(tensor(0.0), keys=1, k=1),
            "keys is 1; it must be a whole number of at least 2",
        ),
        (lambda: entropy.entropy_floor(tensor(-1.0), keys=3), "norm holds -1; every entry must be at least 0"),
        (lambda: entropy.deficit_bound(tensor(math.nan)), "oscillation holds nan; every entry must be at least 0"),
        (lambda: entropy.total_variation_bound(tensor(-1.0)), "oscillation holds -1; every entry must be at least 0"),
        (
            lambda: entropy.relative_score_change(tensor(1.0, -math.inf), tensor(1.0, 2.0)),
            "moved masks other keys than scores",
        ),
        (lambda: traps.draw(0, diversity=-1.0), "diversity is -1.0"),
        (lambda: traps.weights(tensor(1.0), kind="relu"), "kind is 'relu'; it must be one of softmax, sigmoid"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_rows_of_different_shapes_are_refused(unchecked):
    for function in (entropy.hilbert_distance, entropy.total_variation, entropy.relative_score_change):
        with pytest.raises(ValueError, match="the rows have shapes"):
            function(tensor(1.0, 2.0), tensor(1.0, 2.0, 3.0))


def test_scores_that_are_whole_numbers_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"scores has dtype torch.int64; it must hold floating-point numbers"):
        entropy.softmax_entropy(torch.tensor([1, 2]))


@pytest.mark.parametrize("keys", [2, 5, 6, 9])
def test_the_likeness_of_two_rows_orders_is_scipys_correlation_and_the_share_of_keys_that_lead_in_both(keys):
    first, second = torch.randn(2, 20, keys, generator=torch.Generator().manual_seed(keys), dtype=torch.float64)
    for a, b, found in zip(first.numpy(), second.numpy(), entropy.rank_similarity(first, second), strict=True):
        leading = [{int(i) for i in (-row).argsort()[: keys // 2]} for row in (a, b)]
        assert found.tolist() == pytest.approx(
            [scipy.stats.spearmanr(a, b).statistic, len(leading[0] & leading[1]) / keys]
        )
