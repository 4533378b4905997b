"""Sensitivity and stability of maps against closed forms, and each image by itself."""

from functools import partial

import cases
import numpy as np
import pytest
import torch
from attrobust import attacks, attributions, sensitivity
from attrobust.balls import Ball

BALL = Ball("linf", 0.1)
MEASURES = list(sensitivity.COLUMNS)


def table(model, attribution, x, **changes):
    how = {"ball": BALL, "draws": 6, "generator": cases.generator()} | changes
    return sensitivity.sensitivities(model, attribution, x, **how)


def moves(x, draws=6, ball=BALL):
    return sensitivity.perturbed(x, ball, draws, attacks.Streams(x, generator=cases.generator())) - x[:, None]


@pytest.mark.parametrize("ball", [BALL, Ball("l2", 0.3)])
def test_every_measure_of_a_quadratic_network_is_known_in_closed_form(ball):
    """The map is A x + b: under a perturbation d it changes by A d. Image by image, draw by draw, in numpy."""
    model, x = cases.quadratic(), cases.images(5)
    found = table(model, attributions.saliency, x, ball=ball)
    every = moves(x, ball=ball).flatten(2).numpy()
    assert len(np.unique(every)) > every.size / 2
    matrices, vectors = model.matrices.detach().numpy(), model.vectors.detach().numpy()

    def answer(pixels):
        return np.array([pixels @ a @ pixels / 2 + b @ pixels for a, b in zip(matrices, vectors, strict=True)])

    for i, pixels in enumerate(x.flatten(1).numpy()):
        c = answer(pixels).argmax()
        clean = matrices[c] @ pixels + vectors[c]
        shares, slopes, ris, ros = [], [], [], []
        for d in every[i]:
            change, there = matrices[c] @ d, answer(pixels + d)
            shares.append(np.sqrt((change**2).sum() / (clean**2).sum()))
            slopes.append(np.sqrt((change**2).sum() / (d**2).sum()))
            if there.argmax() == c:
                relative = np.sqrt(((change / clean) ** 2).sum())
                ris.append(relative / np.sqrt(((d / pixels) ** 2).sum()))
                ros.append(relative / np.sqrt(((there - answer(pixels)) ** 2).sum()))
        row = found.iloc[i]
        assert row["max_sensitivity"] == pytest.approx(max(shares), rel=1e-10)
        assert row["avg_sensitivity"] == pytest.approx(sum(shares) / len(shares), rel=1e-10)
        assert row["lipschitz"] == pytest.approx(max(slopes), rel=1e-10)
        assert row["ris"] == pytest.approx(max(ris), rel=1e-9)
        assert row["ros"] == pytest.approx(max(ros), rel=1e-9)
        assert row["kept"] == len(ris) / 6


def test_the_lipschitz_estimate_of_a_quadratic_network_lies_below_its_largest_singular_value():
    model, x = cases.quadratic(), cases.images(5)
    most = torch.linalg.matrix_norm(model.matrices[model(x).argmax(1)], 2).detach().numpy()
    few, many = (table(model, attributions.saliency, x, draws=n)["lipschitz"].to_numpy() for n in (2, 400))
    assert (many < most).all()
    assert (many > 0.3 * most).all()
    assert few.mean() < many.mean()


def test_a_constant_map_is_perfectly_stable():
    found = table(cases.linear(), attributions.saliency, cases.images())
    assert (found[MEASURES] == 0).all(axis=None)


def test_the_image_as_its_own_map_moves_as_it_does():
    """Both numerators and denominators of ris are then the same."""
    x = cases.images(4)
    found = table(cases.linear(), lambda model, at, target: at * 1.0, x)
    assert np.allclose(found["lipschitz"], 1)
    assert np.allclose(found.loc[found["kept"] > 0, "ris"], 1)
    share = (moves(x).flatten(2).norm(dim=2) / x.flatten(1).norm(dim=1)[:, None]).numpy()
    assert np.allclose(found["max_sensitivity"], share.max(1))
    assert np.allclose(found["avg_sensitivity"], share.mean(1))


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_only_the_lipschitz_estimate_knows_the_scale_of_a_map(factor):
    model, x = cases.mlp(), cases.images()
    plain, scaled = (
        table(model, lambda model, at, y, f=f: f * attributions.saliency(model, at, y), x) for f in (1.0, factor)
    )
    assert np.allclose(scaled["lipschitz"], factor * plain["lipschitz"])
    others = [name for name in MEASURES if name != "lipschitz"]
    assert np.allclose(scaled[others], plain[others])


NOISY = partial(attributions.smooth_grad, sigma=0.1, samples=3)
MAPS = {"saliency": attributions.saliency, "smooth_grad": NOISY, "coarse": partial(attributions.occlusion, patch=3)}


@pytest.mark.parametrize("name", MAPS)
def test_the_row_of_an_image_does_not_depend_on_its_companions_or_on_the_order(name):
    model, x = cases.mlp(), cases.images(5)
    whole = table(model, MAPS[name], x)
    alone = [table(model, MAPS[name], one) for one in x.split(1)]
    turned = table(model, MAPS[name], x.flip(0))
    for column in (*MEASURES, "kept"):
        assert np.allclose(whole[column], [one[column].item() for one in alone], rtol=1e-9)
        assert np.allclose(whole[column], turned[column][::-1], rtol=1e-9)
    assert whole["max_sensitivity"].nunique() == 5


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("chunk", [1, 4, 7, 1000])
def test_a_batch_in_parts_gives_what_it_gives_in_one(name, chunk):
    model, x = cases.mlp(), cases.images(3)
    found = table(model, MAPS[name], x, chunk=chunk)
    assert np.allclose(found, table(model, MAPS[name], x), rtol=1e-9)


def test_each_image_is_explained_once_for_every_draw_and_once_as_it_is_and_all_in_one_batch():
    model, x, seen = cases.mlp(), cases.images(3), []

    def counted(model, at, target):
        seen.append(len(at))
        return attributions.saliency(model, at, target)

    table(model, counted, x)
    seen.clear()
    table(model, counted, x)  # the first call looked at the attribution, too
    assert seen == [3 * 7]


def test_perturbed_images_are_images_inside_the_ball_and_differ():
    x = torch.rand(4, 2, 3, 3, generator=cases.generator(), dtype=torch.float64).round(decimals=1)
    for ball in (BALL, Ball("l2", 0.5)):
        moved = x[:, None] + moves(x, 20, ball)
        assert moved.min() >= -1e-15 and moved.max() <= 1 + 1e-15
        way = (moved - x[:, None]).flatten(2)
        sizes = way.abs().amax(2) if ball.norm == "linf" else way.norm(dim=2)
        assert sizes.max() <= ball.radius * (1 + 1e-9)
        assert sizes.flatten().unique().numel() > 70


def test_draws_that_lose_the_prediction_count_for_the_first_three_measures_alone():
    """One logit is constant, the other 10 (mean - 1/2): half of the draws around 1/2 lose the class."""
    model = cases.Called(lambda x: torch.stack([x.flatten(1).mean(1) * 10 - 5, 0 * x.flatten(1).sum(1)], 1)).eval()
    x = torch.full((1, 2, 3, 3), 0.501, dtype=torch.float64)
    drawn = moves(x, 40)
    up = (x[:, None] + drawn).flatten(2).mean(2)[0] > 0.5
    assert 5 < up.sum() < 35

    def brighter(model, at, target):  # moves a hundred times as much where the class is lost
        return at * torch.where(at.mean((1, 2, 3), keepdim=True) > 0.5, 1.0, 100.0)

    row = table(model, brighter, x, draws=40).iloc[0]
    assert row["kept"] == up.double().mean().item()
    assert row["ris"] == pytest.approx(1)
    assert row["lipschitz"] > 100


def test_where_no_draw_keeps_the_prediction_relative_stability_is_not_a_number():
    """The clean image alone is given the second class."""
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    w = torch.tensor([1.0, -2.0, 0.5, 0.3], dtype=torch.float64)
    bump = cases.Called(
        lambda at: torch.stack(
            [at.flatten(1) @ w * 1e-3, 1 - 1e6 * (at.flatten(1) - 0.5).square().sum(1) + at.flatten(1) @ w], 1
        )
    ).eval()
    row = table(bump, lambda model, at, target: at * 1.0, x).iloc[0]
    assert row["kept"] == 0
    assert np.isnan([row["ris"], row["ros"]]).all()
    assert row["lipschitz"] == pytest.approx(1)


def test_a_map_that_is_zero_everywhere_says_nothing():
    model, x = cases.mlp(), cases.images(4)

    def some(model, at, target):
        return torch.where(target[:, None, None, None] >= 0, 0.0, 0.0) * at

    assert table(model, some, x)[MEASURES].isna().all(axis=None)


def test_where_nothing_moves_there_is_no_quotient():
    row = table(cases.mlp(), attributions.saliency, cases.images(1), ball=Ball("linf", 0.0)).iloc[0]
    assert (row[["max_sensitivity", "avg_sensitivity"]] < 1e-14).all()  # rounding of batches
    assert (row[["ris", "ros"]] < 1e-7).all()  # the same, over epsilon
    assert np.isnan(row["lipschitz"])


def test_entries_of_zero_are_divided_by_epsilon_and_denominators_do_not_fall_below_it():
    x = cases.images(2).clone()
    x[:, :, 0] = 0
    found = table(cases.linear(), lambda model, at, y: at * 1.0, x, eps_min=0.5)
    by = torch.where(x == 0, 0.5, x)[:, None]
    relative = (moves(x) / by).flatten(2).norm(dim=2)
    model = cases.linear()
    said = (model((x[:, None] + moves(x)).flatten(0, 1)).unflatten(0, (2, 6)) - model(x)[:, None]).norm(dim=2).detach()
    kept = model((x[:, None] + moves(x)).flatten(0, 1)).unflatten(0, (2, 6)).argmax(2) == model(x).argmax(1)[:, None]
    for i in range(2):
        own = kept[i].nonzero().flatten()
        assert found["ris"][i] == pytest.approx((relative / relative.clamp_min(0.5))[i, own].max().item())
        assert found["ros"][i] == pytest.approx((relative / said.clamp_min(0.5))[i, own].max().item())
    assert (said < 0.5).any() and (relative > 0.5).any()


def test_a_generator_in_the_same_state_gives_the_same_table_and_in_another_another():
    model, x = cases.mlp(), cases.images()
    first, again = (table(model, attributions.saliency, x) for _ in range(2))
    assert first.equals(again)
    assert not first.equals(table(model, attributions.saliency, x, generator=cases.generator(1)))


def test_every_attribution_sees_the_same_perturbations():
    model, x, seen = cases.mlp(), cases.images(), []

    def watched(model, at, target, scale=1.0):
        seen.append(at)
        return attributions.saliency(model, at, target) * scale

    table(model, watched, x)
    table(model, partial(watched, scale=2.0), x)
    assert torch.equal(seen[-1], next(at for at in seen if len(at) == len(seen[-1])))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"draws": 0}, "draws is 0; it must be a whole number of at least 1"),
        ({"eps_min": 0.0}, "eps_min is 0.0; it must be a finite number above 0"),
        ({"chunk": 0}, "chunk is 0; it must be a whole number of at least 1"),
        ({"ball": 0.1}, "ball is a float; it must be a Ball"),
        ({"generator": 0}, "generator is a int; it must be a Generator"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(change, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        table(cases.mlp(), attributions.saliency, cases.images(), **change)


def test_a_map_that_mixes_images_or_is_not_finite_is_refused():
    model, x = cases.mlp(), cases.images()
    with pytest.raises(ValueError, match="attribution mixed"):
        table(model, partial(mixed), x)
    with pytest.raises(ValueError, match="attribution <lambda> gives NaN or infinity"):
        table(model, lambda model, at, y: at / torch.where(at > 0.7, 0, 1), x)


def mixed(model, x, target):
    return attributions.saliency(model, x, target) + x.mean(0)


def test_images_and_network_stay_as_found():
    model, x = cases.conv(), cases.images()
    before, flags = x.clone(), [m.training for m in model.modules()]
    table(model, attributions.saliency, x)
    assert torch.equal(x, before) and not x.requires_grad
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
