"""Objectives are functions of two maps: what they say, where they begin, and their derivative through a map."""

from functools import partial

import cases
import numpy as np
import pytest
import torch
from attrobust import attacks, attributions, similarity
from attrobust.attacks import Clean
from attrobust.attributions import pixelwise
from scipy.stats import rankdata, spearmanr


def smooth_grad(model, x, target):
    """SmoothGrad under common noise: the generator starts anew at every call."""
    return attributions.smooth_grad(model, x, target, sigma=0.05, samples=3, generator=cases.generator(5))


MAPS = {
    "saliency": attributions.saliency,
    "input_x_gradient": attributions.input_x_gradient,
    "integrated_gradients": partial(attributions.integrated_gradients, steps=4),
    "smooth_grad": smooth_grad,
}


def beside(goal, k=3, **wanted):
    """An objective as a function of two maps."""
    return lambda clean, there: goal(Clean(clean, k=k, **wanted), there)


OBJECTIVES = {name: beside(objective) for name, objective in attacks.CLIMBABLE.items()}
OBJECTIVES["match"] = beside(attacks.match_map, wanted=attacks.frame(cases.images()))
RANKS = beside(attacks.lower_spearman)


def noise(seed, like, scale=0.05):
    return scale * torch.randn(like.shape, generator=cases.generator(seed), dtype=like.dtype)


def maps(n=3, seed=0, side=3):
    return torch.randn(n, 1, side, side, generator=cases.generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("network", [cases.mlp, cases.conv])
@pytest.mark.parametrize("goal", OBJECTIVES)
@pytest.mark.parametrize("name", MAPS)
def test_the_gradient_an_attack_climbs_agrees_with_finite_differences(network, goal, name):
    model, x, y = network(), cases.images(), cases.labels()
    clean = MAPS[name](model, x, y).detach()

    def climbed(images):
        return OBJECTIVES[goal](clean, MAPS[name](model, images, y))

    at, direction = x + noise(1, x), noise(2, x, 1.0)
    leaf = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(climbed(leaf).sum(), leaf)
    slopes = cases.slope(climbed, at, direction, step=1e-6)
    found = (gradient * direction).flatten(1).sum(1)
    assert torch.allclose(found, slopes, rtol=1e-5, atol=1e-7)
    assert found.abs().max() > 1e-3


@pytest.mark.parametrize("side", [3, 9])
def test_the_slope_of_the_rank_objective_is_right_for_small_and_for_large_maps(side):
    clean, at, direction = (maps(seed=seed, side=side) for seed in (0, 1, 2))
    leaf = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(RANKS(clean, leaf).sum(), leaf)
    slopes = cases.slope(partial(RANKS, clean), at, direction, step=1e-6)
    assert torch.allclose((gradient * direction).flatten(1).sum(1), slopes, rtol=1e-5, atol=1e-9)


def test_objectives_are_what_their_names_say():
    clean, there = maps(), maps(seed=1)
    a, b = pixelwise(clean), pixelwise(there)
    values = {goal: OBJECTIVES[goal](clean, there) for goal in OBJECTIVES}
    assert torch.allclose(values["cosine"], 1 - similarity.cosine(clean, there))
    assert torch.allclose(values["pearson"], 1 - similarity.pearson(a, b))
    assert torch.allclose(values["center"], similarity.center_shift(a, b), atol=1e-7)
    for i in range(len(clean)):
        leaders = a[i].flatten().argsort(descending=True)[:3]
        assert values["top_k"][i].item() == pytest.approx(-(b[i].flatten()[leaders].sum() / b[i].sum()).item())


@pytest.mark.parametrize("goal", ["center", "cosine", "pearson", "match"])
def test_an_objective_is_zero_where_the_map_is_the_clean_one(goal):
    assert OBJECTIVES[goal](maps(), maps()).tolist() == pytest.approx([0.0] * 3, abs=1e-7)


@pytest.mark.parametrize("goal", ["center", "cosine", "pearson"])
def test_no_map_is_more_like_the_clean_one_than_itself(goal):
    begin = OBJECTIVES[goal](maps(), maps())
    for seed in range(1, 30):
        assert (OBJECTIVES[goal](maps(), maps(seed=seed)) >= begin - 1e-12).all()


def test_soft_ranks_approach_the_true_ones_where_importances_are_far_apart():
    far = torch.tensor([1.0, 4, 9, 0, 6, 7.5, 2.5, 11, 13], dtype=torch.float64).view(1, 1, 3, 3)
    clean = maps(1)
    exact = spearmanr(pixelwise(clean).flatten(), far.flatten()).statistic
    assert RANKS(clean, far).item() == pytest.approx(1 - exact, abs=0.02)


@pytest.mark.parametrize("side", [4, 12])
def test_the_rank_objective_orders_maps_as_the_rank_correlation_does(side):
    # One clean map and a way from it to its reverse: the soft correlation falls with the true one.
    importances = torch.rand(1, 1, side, side, generator=cases.generator(), dtype=torch.float64)
    reverse = 1 - importances
    way = torch.cat([(1 - t) * importances + t * reverse for t in (0.0, 0.2, 0.8, 1.0)])
    climbed = RANKS(importances.expand_as(way), way)
    assert (climbed.diff()[[0, 2]].abs() < 0.1).all()
    assert climbed[2] - climbed[1] > 1.5
    assert climbed[0].item() == pytest.approx(0, abs=0.06)
    assert climbed[3].item() == pytest.approx(2, abs=0.06)


def test_ranks_are_those_of_scipy_ties_included():
    values = torch.rand(40, 5, 7, generator=cases.generator()).round(decimals=1)
    assert torch.equal(similarity.ranks(values), torch.from_numpy(rankdata(values.flatten(1).numpy(), axis=1)))


def test_unseating_counts_leaders_that_still_lead():
    there = torch.tensor([[9.0, 8.0, 1.0, 0.0], [0.0, 1.0, 8.0, 9.0], [9.0, 0.0, 8.0, 1.0]]).view(3, 1, 2, 2)
    still, gone, half = (-beside(attacks.unseat_topk, k=2)(there[:1].expand(3, -1, -1, -1), there)).tolist()
    assert still > 0.95
    assert gone < 0.05
    assert half == pytest.approx(0.5, abs=0.05)


def test_matching_starts_at_zero_and_ends_at_one():
    clean, wanted = maps(), maps(seed=1)
    match = beside(attacks.match_map, wanted=3 * wanted)
    assert match(clean, clean).tolist() == pytest.approx([0.0] * 3, abs=1e-12)
    assert match(clean, wanted).tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("goal", OBJECTIVES)
def test_a_map_that_is_zero_everywhere_has_a_finite_objective_and_slope(goal):
    clean, leaf = maps(), torch.zeros(3, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    value = OBJECTIVES[goal](clean, leaf)
    assert torch.isfinite(value).all()
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.isfinite(gradient.nan_to_num()).all()


@pytest.mark.parametrize("k", [0, 9])
def test_k_outside_the_map_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}; it must be a whole number from 1 to 8"):
        Clean(maps(), k=k)


@pytest.mark.parametrize("wanted", ["zero", "wide", "infinite"])
def test_maps_that_cannot_be_wanted_are_refused(wanted):
    bad = {"zero": torch.zeros(3, 1, 3, 3), "wide": torch.ones(3, 1, 3, 4), "infinite": maps() * torch.inf}
    with pytest.raises(ValueError, match=r"wanted has shape .*; it must hold, for each of 3 images, a finite map of 3"):
        Clean(maps(), k=2, wanted=bad[wanted].double())


def test_chosen_rows_of_clean_maps_are_the_clean_maps_of_the_chosen_rows():
    clean, rows = Clean(maps(5), k=3, wanted=maps(5, seed=1)), torch.tensor([4, 0, 4])
    alone, chosen = Clean(maps(5)[rows], k=3, wanted=maps(5, seed=1)[rows]), clean[rows]
    for name, value in vars(alone).items():
        assert torch.equal(torch.as_tensor(getattr(chosen, name)), torch.as_tensor(value)), name


def test_one_sorting_gives_the_ranks_and_the_leaders_that_each_alone_gives_ties_included():
    values = torch.rand(40, 5, 7, generator=cases.generator())
    values[::2] = values[::2].round(decimals=1)
    ranks, leaders = similarity.ranks_and_leaders(values, k=6)
    assert torch.equal(ranks.double(), similarity.ranks(values))
    assert torch.equal(torch.zeros(40, 35).bool().scatter(1, leaders, True), similarity.leaders(values, k=6))


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


@pytest.mark.parametrize("k", [1, 3, 6])
def test_unseating_is_written_out_pair_by_pair_whether_few_lead_or_most(k):
    clean, there = maps(), maps(seed=1)
    found = beside(attacks.unseat_topk, k=k)(clean, there).tolist()
    for i in range(3):
        p, q = (pixelwise(m)[i].flatten().numpy() for m in (clean, there))
        leaders = np.argsort(-p)[:k]
        leading, others = np.sort(q[leaders])[::-1], np.sort(np.delete(q, leaders))[::-1]
        spread = q.std(ddof=1)
        # The r-th leader beside the (k - r + 1)-th other one; without such a one it leads.
        values = [
            sigmoid((leading[r - 1] - others[k - r]) / (spread / 8)) if k - r < len(others) else 1.0
            for r in range(1, k + 1)
        ]
        assert found[i] == pytest.approx(-np.mean(values))


@pytest.mark.parametrize("side", [3, 4, 5, 9])
def test_the_rank_objective_is_written_out_for_small_maps_and_for_large_ones(side):
    clean, there = maps(side=side), maps(seed=1, side=side)
    for i, found in enumerate(RANKS(clean, there).tolist()):
        p, q = (pixelwise(m)[i].flatten().numpy() for m in (clean, there))
        if side <= 4:
            ranks = sigmoid((q[:, None] - q[None]) / (q.std(ddof=1) / 6)).sum(1)
        else:
            ranks = np.log(0.5 + q / q.mean())
        assert found == pytest.approx(1 - np.corrcoef(rankdata(p), ranks)[0, 1])


def test_a_frame_is_as_wide_as_asked():
    for width in (1, 2):
        framed = attacks.frame(torch.zeros(2, 3, 6, 5), width=width)
        inside = [[width <= r < 6 - width and width <= c < 5 - width for c in range(5)] for r in range(6)]
        assert framed.shape == (2, 1, 6, 5)
        assert torch.equal(framed[0, 0] == 0, torch.tensor(inside))
        assert framed.unique().tolist() == [0, 1]
    for width in (0, 3):
        with pytest.raises(ValueError, match=f"width is {width}; it must be a whole number from 1 to 2"):
            attacks.frame(torch.zeros(2, 3, 6, 5), width=width)
    with pytest.raises(ValueError, match=r"^width is 2; it must be a whole number from 1 to 1"):
        attacks.frame(torch.zeros(1, 1, 4, 7), width=2)  # nothing would be left inside of an even side
