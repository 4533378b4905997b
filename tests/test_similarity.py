import cases
import numpy as np
import pytest
import torch
from attrobust import similarity
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

TWO_MAPS = (
    "topk_intersection",
    "spearman",
    "pearson",
    "cosine",
    "displacement",
    "relative_displacement",
    "center_shift",
)
SIGNED = ("cosine", "displacement", "relative_displacement")


def maps(name, seed, n=5):
    signed = torch.randn(n, *cases.SHAPE, generator=cases.generator(seed), dtype=torch.float64)
    return signed if name in SIGNED else signed.abs().sum(1)


def compare(name, a, b, k=3):
    options = {"k": k} if name == "topk_intersection" else {}
    return getattr(similarity, name)(a, b, **options)


@pytest.mark.parametrize("name", TWO_MAPS)
def test_identical_maps_have_similarity_one_and_distance_zero(name):
    a = maps(name, 0)
    same = 0.0 if name in ("displacement", "relative_displacement", "center_shift") else 1.0
    assert torch.allclose(compare(name, a, a), torch.full((5,), same, dtype=torch.float64))


@pytest.mark.parametrize("name", [n for n in TWO_MAPS if not n.endswith("displacement")])
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 100))
def test_similarity_ignores_positive_scaling(name, scale, seed):
    a, b = maps(name, seed), maps(name, seed + 1)
    assert torch.allclose(compare(name, a, b), compare(name, a, scale * b), atol=1e-9)
    assert torch.allclose(compare(name, a, b), compare(name, scale * a, b), atol=1e-9)


@pytest.mark.parametrize("name", [n for n in TWO_MAPS if n != "relative_displacement"])
def test_comparison_is_symmetric(name):
    a, b = maps(name, 0), maps(name, 1)
    assert torch.allclose(compare(name, a, b), compare(name, b, a))


def test_topk_counts_shared_pixels_as_a_naive_loop_does():
    a, b = maps("topk_intersection", 0), maps("topk_intersection", 1)
    for k in range(1, 10):
        leaders = [[set(np.argsort(-m.flatten().numpy())[:k]) for m in side] for side in (a, b)]
        naive = [len(first & second) / k for first, second in zip(*leaders, strict=True)]
        assert similarity.topk_intersection(a, b, k=k).tolist() == pytest.approx(naive)


def test_topk_of_independent_maps_is_at_chance():
    a, b = torch.rand(2, 4000, 4, 5, generator=cases.generator())
    share = similarity.topk_intersection(a, b, k=6)
    assert abs(share.mean() - 6 / 20) < 4 * share.std() / 4000**0.5


@pytest.mark.parametrize(("shape", "k"), [((4, 5), 6), ((4, 5), 19), ((8, 8), 1), ((8, 8), 60)])
def test_topk_above_chance_is_zero_for_independent_maps_and_one_for_the_same(shape, k):
    a, b = torch.rand(2, 4000, *shape, generator=cases.generator(), dtype=torch.float64)
    corrected = similarity.topk_above_chance(a, b, k=k)
    assert abs(corrected.mean()) < 4 * corrected.std() / 4000**0.5
    assert corrected.std() > 0
    assert similarity.topk_above_chance(a, a, k=k).tolist() == pytest.approx([1.0] * 4000)
    n = shape[0] * shape[1]
    raw = similarity.topk_intersection(a, b, k=k)
    assert corrected.tolist() == pytest.approx(((raw * n - k) / (n - k)).tolist(), abs=1e-12)


@pytest.mark.parametrize("k", [0, 9])
def test_chance_cannot_be_taken_out_where_every_pixel_leads(k):
    a = maps("topk_intersection", 0)
    with pytest.raises(ValueError, match=f"k is {k}; it must be a whole number from 1 to 8"):
        similarity.topk_above_chance(a, a, k=k)


def test_topk_and_spearman_see_order_only():
    a, b = maps("spearman", 0), maps("spearman", 1)
    for name in ("topk_intersection", "spearman"):
        assert torch.allclose(compare(name, a, b), compare(name, a.exp(), b**3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_ranks_agree_with_scipy_for_every_sign_precision_and_tie(dtype):
    signed = torch.randn(20, 5, 7, generator=cases.generator())
    zeros = torch.tensor([0.0, -0.0, 1e-40, 1e-38, 0.0]).repeat(20, 7).view(20, 5, 7)
    for m in (signed, signed.abs(), (2 * signed).round(), (2 * signed).round().abs(), zeros, -zeros, zeros - 1):
        m = m.to(dtype)
        expected = [stats.rankdata(one.float()) for one in m.flatten(1)]
        assert np.array_equal(similarity.ranks(m), expected)
        _, chosen = similarity.ranks_and_leaders(m, k=4)
        assert torch.equal(similarity.leaders(m, k=4), torch.zeros(20, 35, dtype=torch.bool).scatter(1, chosen, True))


@pytest.mark.parametrize("pixels", [2**16, 2**16 + 1])
def test_ranks_of_a_map_of_more_pixels_than_sixteen_bits_number_agree_with_scipy(pixels):
    m = (torch.rand(2, 1, pixels, generator=cases.generator()) * 2**15).round()
    m[0, 0, [0, 2**16 - 1]] = 2.0**15 + 1  # a tie of two whose places differ in every bit
    assert np.array_equal(similarity.ranks(m), stats.rankdata(m.flatten(1), axis=1))


@pytest.mark.parametrize(
    ("values", "packed"),
    [
        (torch.tensor([[0.0, 0.5, 0.25]]), True),
        (torch.rand(1, 2**16, generator=cases.generator()), True),
        (torch.rand(1, 2**16 + 1, generator=cases.generator()), False),
        (torch.tensor([[0.5, -1e-3, 0.25]]), False),
        (torch.tensor([[0.0, 0.5, 0.25]], dtype=torch.float64), False),
        (torch.zeros(0, 3), False),
    ],
)
def test_what_can_be_sorted_several_times_faster_is(values, packed, monkeypatch):
    slow, argsort = [], torch.Tensor.argsort
    monkeypatch.setattr(torch.Tensor, "argsort", lambda of: slow.append(of) or argsort(of))
    similarity.ascending(values)
    assert (not slow) == packed


@pytest.mark.parametrize("name", ["spearman", "pearson", "cosine"])
def test_rounding_takes_no_similarity_out_of_its_range(name):
    m = maps(name, 0, n=2000)
    assert compare(name, m, m).max() <= 1
    assert compare(name, m, -m).min() >= -1


@pytest.mark.parametrize("levels", [1000, 3])
def test_spearman_agrees_with_scipy_with_and_without_ties(levels):
    a, b = ((maps("spearman", s) * levels / 10).round() for s in (0, 1))
    expected = [stats.spearmanr(m.flatten(), n.flatten()).statistic for m, n in zip(a, b, strict=True)]
    assert similarity.spearman(a, b).tolist() == pytest.approx(expected)


def test_pearson_agrees_with_scipy():
    a, b = maps("pearson", 0), maps("pearson", 1)
    expected = [stats.pearsonr(m.flatten(), n.flatten()).statistic for m, n in zip(a, b, strict=True)]
    assert similarity.pearson(a, b).tolist() == pytest.approx(expected)


def test_cosine_is_the_cosine_of_the_angle():
    angle = torch.tensor([0.0, 0.3, 1.5, 3.0], dtype=torch.float64)
    a = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(4, 1).view(4, 1, 1, 2)
    b = 7 * torch.stack([angle.cos(), angle.sin()], 1).view(4, 1, 1, 2)
    assert torch.allclose(similarity.cosine(a, b), angle.cos())


def test_absolute_maps_are_always_alike_under_cosine_but_not_under_pearson():
    a, b = (maps("cosine", s, n=200).abs() for s in (0, 1))
    assert similarity.cosine(a, b).mean() > 0.5
    assert abs(similarity.pearson(a.sum(1), b.sum(1)).mean()) < 0.1


def test_displacement_is_the_euclidean_length_of_the_change():
    a, b = maps("displacement", 0), maps("displacement", 1)
    naive = [np.sqrt(((n - m).numpy() ** 2).sum()) for m, n in zip(a, b, strict=True)]
    assert similarity.displacement(a, b).tolist() == pytest.approx(naive)
    lengths = np.array([np.sqrt((m.numpy() ** 2).sum()) for m in a])
    assert similarity.relative_displacement(a, b).tolist() == pytest.approx(list(naive / lengths))


def test_relative_displacement_of_a_zero_map_is_infinite_unless_nothing_moves():
    zero, one = torch.zeros(1, *cases.SHAPE), torch.ones(1, *cases.SHAPE)
    assert similarity.relative_displacement(zero, one).item() == np.inf
    assert similarity.relative_displacement(zero, zero).item() == 0


def test_center_of_mass_agrees_with_a_naive_loop():
    m = torch.rand(3, 4, 6, generator=cases.generator(), dtype=torch.float64)
    for center, one in zip(similarity.center_of_mass(m), m.numpy(), strict=True):
        total = sum(one[i, j] * np.array([i, j]) for i in range(4) for j in range(6))
        assert center.tolist() == pytest.approx(list(total / one.sum()))


def test_moving_one_bright_pixel_shifts_the_center_by_its_way():
    a, b = torch.zeros(2, 1, 5, 5, dtype=torch.float64)
    a[0, 1, 1], b[0, 4, 3] = 1, 1
    assert similarity.center_shift(a, b).item() == pytest.approx((3**2 + 2**2) ** 0.5)


def test_a_zero_map_has_its_center_in_the_middle():
    assert similarity.center_of_mass(torch.zeros(1, 3, 5)).flatten().tolist() == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize("value", [0.1, 1 / 3, 7.7, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_maps_are_at_chance_whatever_the_rounding_of_their_mean(value, dtype):
    for pixels in (7, 10, 49, 784, 1000):
        constant, other = torch.full((1, 1, pixels), value, dtype=dtype), cases.draw(1, 1, pixels, seed=0).to(dtype)
        assert similarity.pearson(constant, 3 * constant).item() == 0
        assert similarity.pearson(constant, other).item() == similarity.pearson(other, constant).item() == 0


def test_of_infinite_entries_no_mean_is_taken():
    assert similarity.centred(torch.full((1, 3), torch.inf)).isnan().all()


def test_constant_and_zero_maps_are_at_chance():
    constant, other = torch.ones(1, 3, 3), torch.rand(1, 3, 3, generator=cases.generator())
    assert similarity.spearman(constant, other).item() == 0
    assert similarity.pearson(constant, other).item() == 0
    assert similarity.cosine(torch.zeros(1, 1, 3, 3), other[None]).item() == 0


def test_a_vector_of_zero_has_cosine_zero_and_the_slope_of_the_scalar_product():
    direction = similarity.unit(maps("cosine", 0).flatten(1))
    zero = torch.zeros_like(direction).requires_grad_()
    found = similarity.along(direction, zero)
    assert not found.any()
    (slope,) = torch.autograd.grad(found.sum(), zero)
    assert torch.equal(slope, direction)


def test_similarity_keeps_dtype_and_differentiates_where_an_attack_needs_it():
    a, b = maps("pearson", 0), maps("pearson", 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: similarity.pearson(a, m), b)
    assert torch.autograd.gradcheck(lambda m: similarity.center_of_mass(m), b)
    c, d = maps("cosine", 0), maps("cosine", 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: similarity.cosine(c, m), d)
    assert similarity.spearman(a.float(), b.detach().float()).dtype == torch.float32


@pytest.mark.parametrize("name", TWO_MAPS)
def test_maps_of_different_shapes_are_refused(name, unchecked):
    a = maps(name, 0)
    with pytest.raises(ValueError, match=r"perturbed has shape .*; it must match reference, \(5,"):
        compare(name, a, a[:, :-1])


@pytest.mark.parametrize("k", [0, 10])
def test_k_outside_the_image_is_refused(k):
    a = maps("topk_intersection", 0)
    with pytest.raises(ValueError, match=f"k is {k}; it must be a whole number from 1 to 9"):
        similarity.topk_intersection(a, a, k=k)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30, 2e38])
@pytest.mark.parametrize("name", [*TWO_MAPS, "topk_above_chance"])
def test_maps_of_any_scale_are_compared_as_in_double_precision(name, scale):
    a, b = ((scale * m / m.abs().max()).float() for m in (maps(name, 0), maps(name, 1)))
    k = {"k": 3} if name.startswith("topk") else {}
    found, exact = (getattr(similarity, name)(*pair, **k) for pair in ((a, b), (a.double(), b.double())))
    finite = exact < torch.finfo(torch.float32).max
    rtol, atol = 1e-4 if scale > 1e-38 else 2e-3, 0 if name == "displacement" else 2e-6
    assert torch.allclose(found.double()[finite], exact[finite], rtol=rtol, atol=atol)
    assert (getattr(similarity, name)(a, a, **k) <= 1).all()


@pytest.mark.parametrize("shape", [(6, 1, 9, 8), (6, 40)])
def test_scaling_by_a_power_of_two_changes_no_bit(shape):
    a, b = (torch.randn(shape, generator=cases.generator(s)).flatten(1) for s in (0, 1))
    assert torch.equal(similarity.unit(a), a / a.norm(dim=1, keepdim=True))
    assert torch.equal(similarity.length(a), a.norm(dim=1))
    assert torch.equal(similarity.along(similarity.unit(a), b), (similarity.unit(a) * b).sum(1) / b.norm(dim=1))


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30])
def test_lengths_are_those_of_single_rows_and_maps_of_ordinary_size_stay_as_they_are(scale):
    m = (scale * torch.randn(4, 9, generator=cases.generator(), dtype=torch.float64)).float()
    exact = m.double().norm(dim=1)
    assert torch.allclose(similarity.length(m).double(), exact, rtol=1e-6, atol=1e-45)
    assert (similarity.level(m) is m) == (scale == 1)


@pytest.mark.parametrize("name", [*TWO_MAPS, "topk_above_chance"])
def test_a_map_with_a_nan_is_alike_no_other_by_no_measure(name):
    a, b = maps(name, 0), maps(name, 1)
    b.view(5, -1)[1, 2] = torch.nan
    k = {"k": 3} if name.startswith("topk") else {}
    for pair in ((a, b), (b, a)):
        assert getattr(similarity, name)(*pair, **k).isnan().tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_similarities_in_range_and_near_those_of_single_precision(dtype):
    a, b = (torch.rand(50, 1, 28, 28, generator=cases.generator(s)).to(dtype) for s in (0, 1))
    assert (similarity.cosine(a, a) == 1).all()
    for name in ("cosine", "pearson", "spearman", "center_shift"):
        pair = (a, b) if name == "cosine" else (a[:, 0], b[:, 0])
        found, exact = (getattr(similarity, name)(*(m.to(d) for m in pair)) for d in (dtype, torch.float64))
        assert torch.allclose(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize("name", [*TWO_MAPS, "topk_above_chance"])
def test_a_single_row_is_no_batch_of_maps(name, unchecked):
    k, row = {"k": 3} if name.startswith("topk") else {}, torch.ones(9)
    with pytest.raises(ValueError, match=r"reference has shape \(9,\); it must be a batch of maps"):
        getattr(similarity, name)(row, row, **k)


def test_maps_without_pixels_are_refused_and_a_batch_without_maps_is_compared(unchecked):
    for shape in ((2, 0, 3), (2, 3, 0)):
        with pytest.raises(ValueError, match=r"it must be a batch of maps, \(batch, ...\)"):
            similarity.spearman(torch.ones(shape), torch.ones(shape))
    assert similarity.spearman(torch.ones(0, 3, 3), torch.ones(0, 3, 3)).shape == (0,)


def test_a_row_that_is_not_finite_has_no_size():
    rows = torch.tensor([[1.0, torch.nan], [1.0, torch.inf], [1.0, -torch.inf], [0.0, 0.0], [1.0, -4.0]])
    assert similarity.exponent(rows).flatten().tolist() == [0, 0, 0, 0, 3]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 149), (torch.float64, 1074)])
def test_times_a_power_of_two_is_exact_up_to_what_lifts_the_least_number_to_one(dtype, most):
    third = torch.tensor([1 / 3], dtype=dtype)
    for power in (-7, -1, 0, 1, 3, 60):
        assert similarity.times(third, torch.tensor([power])).item() == third.item() * 2.0**power
    least = torch.tensor([2.0**-most], dtype=dtype)
    assert similarity.times(least, torch.tensor([most])).item() == 1.0


def test_directions_of_large_maps_have_length_one_in_half_precision_too():
    assert similarity.unit(torch.full((1, 1000), 6e4, dtype=torch.float16)).float().norm() == pytest.approx(1, abs=1e-2)


def test_of_two_pixels_chance_finds_the_larger_half_the_time():
    first, second = torch.tensor([[[2.0, 1.0]], [[2.0, 1.0]]]), torch.tensor([[[3.0, 0.0]], [[0.0, 3.0]]])
    assert similarity.topk_above_chance(first, second, k=1).tolist() == [1.0, -1.0]


def test_a_center_needs_rows_and_columns_and_chance_two_pixels(unchecked):
    signed = maps("cosine", 0)
    with pytest.raises(ValueError, match=r"importances has shape \(5, 2, 3, 3\); it must be \(batch, height, width\)"):
        similarity.center_shift(signed, signed)
    with pytest.raises(ValueError, match="its maps must have two pixels or more"):
        similarity.topk_above_chance(torch.ones(3, 1, 1), torch.ones(3, 1, 1), k=1)


def test_a_zero_with_a_sign_is_as_small_as_one_without():
    values = torch.tensor([[[0.0, -0.0], [1.0, 0.0]], [[-0.0, -0.0], [-0.0, 2.0]]])
    for dtype in (torch.float32, torch.float64):
        assert similarity.ranks(values.to(dtype)).tolist() == [[2.0, 2.0, 4.0, 2.0], [2.0, 2.0, 2.0, 4.0]]


def test_a_map_without_numbers_leaves_the_ranks_of_its_neighbours_as_they_are():
    a, b = torch.tensor([[[-3.0, -2.0, -1.0, 0.5]]]), torch.tensor([[[-1.0, -3.0, -2.0, 1.0]]])
    none = torch.full_like(a, torch.nan)
    alone = similarity.spearman(a, b)
    assert alone.item() == pytest.approx(0.4)
    both = similarity.spearman(torch.cat([a, none]), torch.cat([b, none]))
    assert both[0] == alone[0]
    assert both[1].isnan()
    three = torch.cat([a, b, 2 * b])
    found = similarity.between(torch.cat([three[:1], none, three[1:]]))
    assert found[1].isnan()
    assert torch.equal(found[[0, 2, 3]], similarity.between(three))


@pytest.mark.parametrize("name", ["spearman", "pearson", "cosine", "center_shift", "displacement"])
def test_maps_of_whole_numbers_are_refused_by_name(name, unchecked):
    whole = torch.tensor([[[1, 2], [9, 4]]])
    with pytest.raises(ValueError, match=r"reference has dtype torch\.int64; it must be floating-point"):
        getattr(similarity, name)(whole, whole)
    with pytest.raises(ValueError, match=r"perturbed has dtype torch\.int64; it must be floating-point"):
        getattr(similarity, name)(whole.float(), whole)
    with pytest.raises(ValueError, match=r"importances has dtype torch\.int64"):
        similarity.between(whole)


@pytest.mark.parametrize(("dtype", "powers"), [(torch.float32, range(-120, 124)), (torch.float16, range(-10, 13))])
def test_the_length_of_a_row_keeps_its_digits_at_every_power_of_two(dtype, powers):
    row = (1 + torch.rand(1, 5, generator=cases.generator())).to(dtype)
    for power in powers:
        scaled = torch.ldexp(row.double(), torch.tensor(power)).to(dtype)
        right = scaled.double().norm(dim=1)
        assert similarity.length(scaled).double() == pytest.approx(right, rel=4 * torch.finfo(dtype).eps, abs=0), power
