import itertools
import math

import cases
import pytest
import torch
from attrobust import similarity
from attrobust.theory import certificates
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

seeds = st.integers(0, 10**6)


def scores(seed, pixels=8):
    return torch.rand(1, pixels, generator=cases.generator(seed), dtype=torch.float64)


def one(value):
    return torch.tensor([value], dtype=torch.float64)


def kept(a, e, k):
    return float(similarity.topk_intersection(a[:, None], (a + e)[:, None], k=k))


# ---------------------------------------------------------------------- top-k


@given(seed=seeds, k=st.integers(1, 7))
def test_the_topk_certificate_is_attained_by_its_cheapest_swap(seed, k):
    a = scores(seed)
    for swaps in range(1, min(k, 8 - k) + 1):
        e = certificates.swap(a, k=k, swaps=swaps)
        assert torch.allclose(e.square().sum(1), certificates.swap_costs(a, k=k)[:, swaps - 1], atol=1e-14)
        beyond, within = (1 + 1e-7) * e, (1 - 1e-7) * e
        assert kept(a, beyond, k) == pytest.approx(float(certificates.topk(a, beyond.norm(dim=1), k=k)))
        assert kept(a, within, k) >= float(certificates.topk(a, within.norm(dim=1), k=k)) > 1 - (swaps + 0.5) / k


@given(seed=seeds, k=st.integers(1, 7), size=st.floats(0, 1))
def test_no_random_change_beats_the_topk_certificates(seed, k, size):
    a, g = scores(seed), cases.generator(seed + 1)
    for _ in range(20):
        e = torch.randn(a.shape, generator=g, dtype=a.dtype)
        e = size * e / e.norm()
        assert kept(a, e, k) >= float(certificates.topk(a, e.norm(dim=1), k=k)) - 1e-12
        assert kept(a, e, k) >= float(certificates.topk_within(a, e.abs().amax(1), k=k)) - 1e-12


@given(seed=seeds, k=st.integers(1, 7))
def test_swap_costs_are_the_least_over_all_ways_to_swap(seed, k):
    """Against brute force: choose who leaves, who enters, and the level by a fine grid around the best."""
    a = scores(seed)
    order = a[0].argsort(descending=True)
    inner, outer = order[:k].tolist(), order[k:].tolist()
    costs = certificates.swap_costs(a, k=k)[0]
    for swaps in range(1, min(k, 8 - k, 2) + 1):
        least = math.inf
        for out, into in itertools.product(itertools.combinations(inner, swaps), itertools.combinations(outer, swaps)):
            levels = torch.linspace(float(a.min()), float(a.max()), 2001, dtype=a.dtype)[:, None]
            down = (a[0, list(out)] - levels).clamp_min(0).square().sum(1)
            up = (levels - a[0, list(into)]).clamp_min(0).square().sum(1)
            least = min(least, float((down + up).min()))
        assert float(costs[swaps - 1]) <= least + 1e-12
        assert float(costs[swaps - 1]) == pytest.approx(least, abs=1e-5)


@given(seed=seeds, k=st.integers(1, 7))
def test_more_swaps_cost_more_and_at_least_half_the_squared_gaps(seed, k):
    a = scores(seed)
    costs = certificates.swap_costs(a, k=k)[0]
    assert (costs.diff() >= 0).all()
    ordered = a[0].sort(descending=True).values
    gaps = torch.stack([ordered[k - 1 - i] - ordered[k + i] for i in range(len(costs))])
    assert (costs >= gaps.square().cumsum(0) / 2 - 1e-12).all()


def test_half_of_two_equal_gaps_swaps_nothing():
    a = torch.tensor([[3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    assert certificates.swap_costs(a, k=2)[0].tolist() == [0.5, 5.0]
    assert certificates.topk_within(a, one(0.49), k=2).item() == 1
    assert certificates.topk_within(a, one(0.5), k=2).item() == 0.5
    assert certificates.topk(a, one(math.inf), k=2).item() == 0


def test_a_change_that_just_reaches_is_conceded():
    """At the very edge pixels may tie, and whoever breaks the tie decides: no certificate may count on it."""
    a = torch.tensor([[3.0, 3.0, 1.0, 1.0]], dtype=torch.float64)  # two swaps cost 4 exactly, ranks tie at 1 per pixel
    assert certificates.swap_costs(a, k=2)[0].tolist() == [2.0, 4.0]
    for least, beyond in ((0.5, 2 * (1 - 1e-9)), (0.0, 2.0)):
        assert certificates.topk(a, one(beyond), k=2).item() == least
    apart = torch.tensor([[4.0, 2.0, 0.0]], dtype=torch.float64)
    for certificate in (certificates.kendall, certificates.spearman, lambda s, e: certificates.topk_within(s, e, k=1)):
        assert certificate(apart, one(1 - 1e-9)).item() == 1
        assert certificate(apart, one(1.0)).item() < 1
    assert certificates.change_of_turn(one(math.pi / 2)).item() == math.inf
    assert certificates.change_of_turn(one(math.pi / 2 - 1e-9)).item() == pytest.approx(1)


def test_when_all_pixels_lead_nothing_can_be_lost():
    assert certificates.topk(scores(0), one(100.0), k=8).item() == 1


# ---------------------------------------------------------------------- ranks and cosine


@given(seed=seeds, size=st.floats(0, 0.5), pixels=st.integers(2, 12))
def test_no_change_within_the_pixel_bound_beats_the_rank_certificates(seed, size, pixels):
    a, g = scores(seed, pixels), cases.generator(seed + 1)
    fold = torch.where(a >= a.median(), -1.0, 1.0).to(a)
    draws = [torch.randn(a.shape, generator=g, dtype=a.dtype).sign() for _ in range(5)]
    for direction in [fold, *draws]:
        moved = a + size * direction
        assert kendalltau(a[0], moved[0]).statistic >= float(certificates.kendall(a, one(size))) - 1e-12
        assert spearmanr(a[0], moved[0]).statistic >= float(certificates.spearman(a, one(size))) - 1e-12


def test_certificates_without_a_change_are_perfect_and_with_a_huge_one_empty():
    a = scores(1)
    for certificate in (certificates.kendall, certificates.spearman):
        assert certificate(a, one(0.0)).item() == 1
        assert certificate(a, one(10.0)).item() == -1
    assert certificates.cosine(one(0.0)).item() == 1
    assert certificates.cosine(one(1.0)).item() == -1


@given(seed=seeds, relative=st.floats(0, 0.999))
def test_the_cosine_certificate_is_attained(seed, relative):
    a, across = scores(seed), torch.randn(1, 8, generator=cases.generator(seed + 1), dtype=torch.float64)
    across = across - (across * a).sum() / a.square().sum() * a
    e = certificates.worst_cosine(a, across, one(relative))
    assert float(e.norm() / a.norm()) == pytest.approx(relative, abs=1e-12)
    reached = similarity.cosine(a[:, None, None], (a + e)[:, None, None])
    assert torch.allclose(reached, certificates.cosine(one(relative)), atol=1e-12)


@given(seed=seeds, scale=st.floats(0.01, 100), size=st.floats(0, 0.3))
def test_every_certificate_is_free_of_scale(seed, scale, size):
    a = scores(seed)
    for certificate in (
        lambda s, e: certificates.topk(s, e, k=3),
        lambda s, e: certificates.topk_within(s, e, k=3),
        certificates.kendall,
        certificates.spearman,
    ):
        assert torch.equal(certificate(a, one(size)), certificate(scale * a, one(scale * size * (1 + 1e-14))))


# ---------------------------------------------------------------------- angles


@given(angle=st.floats(1e-9, math.pi))
def test_angles_are_exact_even_when_tiny(angle):
    first = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    second = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    assert certificates.angle(first, second).item() == pytest.approx(angle, rel=1e-7)


@given(seed=seeds)
def test_a_gradient_turns_at_most_by_the_integrated_relative_curvature(seed):
    g = cases.generator(seed)
    a, b = (torch.randn(3, 3, generator=g, dtype=torch.float64) for _ in range(2))
    start, step = (torch.randn(3, generator=g, dtype=torch.float64) for _ in range(2))

    def value(x):
        return (torch.tanh(a @ x) * torch.softmax(b @ x, 0)).sum()

    first, last = (torch.func.grad(value)(start + t * step)[None] for t in (0, 1))
    assert float(certificates.angle(first, last)) <= certificates.turn(value, start, step, nodes=200) + 1e-6


def test_a_straight_valley_does_not_turn_and_a_sign_change_gives_no_guarantee():
    start, step = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert certificates.turn(lambda x: x[0].exp(), start, step) == pytest.approx(0, abs=1e-12)
    assert certificates.turn(lambda x: (x[0] - 0.5).square(), start, step) == math.inf


# ---------------------------------------------------------------------- refusals


def test_bad_arguments_are_refused_with_one_sentence(unchecked):
    with pytest.raises(ValueError, match=r"change holds .*; every entry must be at least 0"):
        certificates.topk(scores(0), one(-1.0), k=2)
    with pytest.raises(ValueError, match="k is 9; it must be a whole number from 1 to 8"):
        certificates.topk(scores(0), one(1.0), k=9)
    with pytest.raises(ValueError, match="scores has 1 pixels; a rank correlation needs at least 2"):
        certificates.kendall(scores(0, 1), one(1.0))
    with pytest.raises(ValueError, match=r"relative holds .*; every entry must be at least 0"):
        certificates.cosine(one(math.nan))
    with pytest.raises(ValueError, match="nodes is 0"):
        certificates.turn(lambda x: x.sum(), torch.zeros(2), torch.ones(2), nodes=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "certificate",
    [
        lambda s, e: certificates.topk(s, e, k=2),
        lambda s, e: certificates.topk_within(s, e, k=2),
        lambda s, e: certificates.swap_costs(s, k=2),
        lambda s, e: certificates.swap(s, k=2, swaps=1),
        certificates.kendall,
        certificates.spearman,
    ],
)
def test_scores_that_are_no_numbers_certify_nothing(certificate, bad):
    given = scores(0)
    given[0, 3] = bad
    with pytest.raises(ValueError, match="scores holds 1 entries that are NaN or infinite; all must be finite"):
        certificate(given, one(0.1))
