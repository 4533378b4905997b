import math

import cases
import pytest
import torch
from attrobust.balls import Ball
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

NORMS = ("linf", "l2")
EPS = torch.finfo(torch.float64).eps


def length(perturbation, norm):
    flat = perturbation.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def normal(seed, n=6):
    return torch.randn(n, *cases.SHAPE, generator=cases.generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS)
@given(radius=st.floats(0, 10), seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
def test_projection_is_the_nearest_point_of_the_ball(norm, radius, seed, scale):
    ball, outside = Ball(norm, radius), scale * normal(seed)
    inside = ball.project(outside)
    assert (length(inside, norm) <= radius * (1 + 4 * EPS)).all()
    assert torch.allclose(ball.project(inside), inside, rtol=4 * EPS, atol=0)
    away = (outside - inside).flatten(1).norm(dim=1)
    for other in range(5):
        rival = ball.sample(outside, generator=cases.generator(other))
        assert (away <= (outside - rival).flatten(1).norm(dim=1) * (1 + 8 * EPS)).all()


def test_largest_change_is_clipped_pixel_by_pixel_not_rescaled():
    perturbation = torch.tensor([2.0, 0.5, -3.0, -0.1], dtype=torch.float64).view(1, 1, 2, 2)
    assert Ball("linf", 1.0).project(perturbation).flatten().tolist() == [1.0, 0.5, -1.0, -0.1]


@pytest.mark.parametrize("norm", NORMS)
def test_points_of_the_ball_stay_where_they_are(norm):
    ball = Ball(norm, 0.3)
    inside = ball.sample(cases.images(), generator=cases.generator()) * 0.99
    assert torch.equal(ball.project(inside), inside)


@pytest.mark.parametrize("norm", NORMS)
def test_samples_lie_in_the_ball_and_reach_near_its_boundary(norm):
    draws = Ball(norm, 0.3).sample(cases.images(400), generator=cases.generator())
    sizes = length(draws, norm)
    assert sizes.max() <= 0.3 * (1 + 4 * EPS)
    assert sizes.max() > 0.29


def test_samples_of_the_cube_are_uniform_in_every_pixel():
    draws = Ball("linf", 0.3).sample(cases.images(400), generator=cases.generator())
    assert kstest(((draws / 0.3 + 1) / 2).flatten().numpy(), "uniform").pvalue > 0.01


def test_samples_of_the_sphere_fill_its_volume_evenly():
    draws = Ball("l2", 0.3).sample(cases.images(2000), generator=cases.generator())
    volume = (length(draws, "l2") / 0.3) ** cases.PIXELS
    assert kstest(volume.numpy(), "uniform").pvalue > 0.01
    directions = draws.flatten(1) / draws.flatten(1).norm(dim=1, keepdim=True)
    # In a uniform direction every coordinate has mean 0 and variance 1/d.
    assert directions.mean(0).abs().max() < 4 / math.sqrt(2000 * cases.PIXELS)
    assert (directions.square().mean(0) * cases.PIXELS - 1).abs().max() < 0.2


@pytest.mark.parametrize("norm", NORMS)
def test_boundary_draws_have_full_size(norm):
    draws = Ball(norm, 0.3).boundary(cases.images(20), generator=cases.generator())
    assert torch.allclose(length(draws, norm), torch.full((20,), 0.3, dtype=torch.float64), rtol=4 * EPS)
    assert not torch.equal(draws[0], draws[1])
    if norm == "linf":
        assert set(draws.abs().flatten().tolist()) == {0.3}


@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 1000))
def test_no_step_of_unit_size_climbs_faster_than_the_steepest(norm, seed):
    ball, gradient = Ball(norm, 1.0), normal(seed)
    step = ball.steepest(gradient)
    assert torch.allclose(length(step, norm), torch.ones(6, dtype=torch.float64))
    climb = (step * gradient).flatten(1).sum(1)
    dual = gradient.flatten(1).norm(p=1 if norm == "linf" else 2, dim=1)
    assert torch.allclose(climb, dual)


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_no_step(norm):
    zero = torch.zeros(2, *cases.SHAPE, dtype=torch.float64)
    assert torch.equal(Ball(norm, 1.0).steepest(zero), zero)
    assert torch.equal(Ball(norm, 1.0).project(zero), zero)


@pytest.mark.parametrize("norm", NORMS)
def test_a_ball_of_radius_zero_is_a_point(norm):
    ball = Ball(norm, 0.0)
    for perturbation in (
        ball.sample(cases.images(), generator=cases.generator()),
        ball.boundary(cases.images(), generator=cases.generator()),
        ball.project(normal(0)),
    ):
        assert not perturbation.any()


@pytest.mark.parametrize("norm", NORMS)
def test_the_same_seed_draws_the_same_perturbations(norm):
    ball, x = Ball(norm, 0.1), cases.images()
    first, again, other = (ball.sample(x, generator=cases.generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("radius", [-0.1, math.nan, math.inf])
def test_a_radius_below_zero_or_infinite_is_refused(radius):
    with pytest.raises(ValueError, match=r"radius is .*; it must be a finite number of at least 0"):
        Ball("linf", radius)


def test_an_unknown_norm_is_refused(unchecked):
    with pytest.raises(ValueError, match="norm is 'l1'; it must be one of linf, l2"):
        Ball("l1", 0.1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 20), (4, 3, 2, 5), (4, 1, 3, 2, 2)])
def test_examples_of_any_rank_have_the_ball_of_their_numbers_in_a_row(norm, shape):
    ball, outside = Ball(norm, 0.3), torch.randn(shape, generator=cases.generator(), dtype=torch.float64)
    flat = outside.view(4, 1, 1, -1)
    for move in (ball.project, ball.steepest):
        assert torch.equal(move(outside), move(flat).view(shape))
    for draw in (ball.sample, ball.boundary):
        one, other = (draw(like, generator=cases.generator(1)) for like in (outside, flat))
        assert torch.equal(one, other.view(shape))
        assert (length(one, norm) <= 0.3 * (1 + 4 * EPS)).all()


@pytest.mark.parametrize("scale", [1e-300, 1e-42, 1e-30, 1e30, 1e300])
def test_steps_of_any_scale_have_unit_size(scale):
    step = Ball("l2", 1.0).steepest((scale * normal(0)).to(torch.float32 if 1e-50 < scale < 1e38 else torch.float64))
    assert length(step, "l2").tolist() == pytest.approx([1.0] * 6, abs=1e-2 if scale == 1e-42 else 1e-6)


def test_a_single_row_has_no_length_of_its_own():
    with pytest.raises(ValueError, match=r"perturbation has shape \(4,\); it must be a batch of examples"):
        Ball("l2", 1.0).project(torch.ones(4))
