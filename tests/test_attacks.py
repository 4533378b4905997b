import itertools
import math
from functools import partial

import cases
import pytest
import torch
from attrobust import attacks, attributions, models, similarity
from attrobust.attributions import pixelwise
from attrobust.balls import Ball
from benchmarks.suite import Counting
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

EPS = torch.finfo(torch.float64).eps
NORMS = ("linf", "l2")


def smooth_grad(model, x, target):
    """SmoothGrad under common noise: the generator starts anew at every call."""
    return attributions.smooth_grad(model, x, target, sigma=0.05, samples=3, generator=cases.generator(5))


MAPS = {
    "saliency": attributions.saliency,
    "input_x_gradient": attributions.input_x_gradient,
    "integrated_gradients": partial(attributions.integrated_gradients, steps=4),
    "smooth_grad": smooth_grad,
}
OBJECTIVES = {
    "shift_topk": partial(attacks.shift_topk, k=3),
    "shift_center": attacks.shift_center,
    "lower_cosine": attacks.lower_cosine,
    "lower_pearson": attacks.lower_pearson,
}


def length(perturbation, norm):
    flat = perturbation.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def noise(seed, like, scale=0.05):
    return scale * torch.randn(like.shape, generator=cases.generator(seed), dtype=like.dtype)


# ------------------------------------------------------------------ objectives


@pytest.mark.parametrize("network", [cases.mlp, cases.conv])
@pytest.mark.parametrize("goal", OBJECTIVES)
@pytest.mark.parametrize("name", MAPS)
def test_the_gradient_an_attack_climbs_agrees_with_finite_differences(network, goal, name):
    model, x, y = network(), cases.images(), cases.labels()
    objective = OBJECTIVES[goal](MAPS[name], model, x, y)
    at, direction = x + noise(1, x), noise(2, x, 1.0)
    leaf = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(leaf).sum(), leaf)
    slopes = cases.slope(objective, at, direction, step=1e-6)
    climbed = (gradient * direction).flatten(1).sum(1)
    assert torch.allclose(climbed, slopes, rtol=1e-5, atol=1e-7)
    assert climbed.abs().max() > 1e-3


@pytest.mark.parametrize("name", MAPS)
def test_objectives_are_what_their_names_say(name):
    model, x, y = cases.conv(), cases.images(), cases.labels()
    moved = x + noise(1, x)
    clean, there = (MAPS[name](model, im, y).detach() for im in (x, moved))
    a, b = pixelwise(clean), pixelwise(there)
    values = {goal: OBJECTIVES[goal](MAPS[name], model, x, y)(moved).detach() for goal in OBJECTIVES}
    assert torch.allclose(values["lower_cosine"], 1 - similarity.cosine(clean, there))
    assert torch.allclose(values["lower_pearson"], 1 - similarity.pearson(a, b))
    assert torch.allclose(values["shift_center"], similarity.center_shift(a, b), atol=1e-7)
    for i in range(len(x)):
        leaders = a[i].flatten().argsort(descending=True)[:3]
        assert values["shift_topk"][i].item() == pytest.approx(-(b[i].flatten()[leaders].sum() / b[i].sum()).item())


@pytest.mark.parametrize("goal", OBJECTIVES)
def test_no_image_has_a_larger_objective_than_its_own_clean_map_allows(goal):
    model, x, y = cases.conv(), cases.images(), cases.labels()
    objective = OBJECTIVES[goal](attributions.saliency, model, x, y)
    clean = objective(x)
    if goal == "shift_topk":
        maps = pixelwise(attributions.saliency(model, x, y)).flatten(1)
        assert torch.allclose(clean, -maps.topk(3).values.sum(1) / maps.sum(1))
    else:
        assert torch.allclose(clean, torch.zeros(3, dtype=torch.float64), atol=1e-7)


@pytest.mark.parametrize("goal", OBJECTIVES)
def test_an_objective_accepts_whole_repeats_of_its_batch(goal):
    model, x, y = cases.conv(), cases.images(), cases.labels()
    objective = OBJECTIVES[goal](attributions.saliency, model, x, y)
    first, second = x + noise(1, x), x + noise(2, x)
    both = objective(torch.cat([first, second]))
    assert torch.allclose(both, torch.cat([objective(first), objective(second)]))


@pytest.mark.parametrize("k", [0, 10])
def test_k_outside_the_image_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}; it must be a whole number from 1 to 9"):
        attacks.shift_topk(attributions.saliency, cases.mlp(), cases.images(), cases.labels(), k=k)


# ------------------------------------------------------------------ pgd


def brightness(weights):
    return lambda im: (im * weights).sum((1, 2, 3))


@pytest.mark.parametrize("norm", NORMS)
@given(radius=st.floats(0, 0.7), seed=st.integers(0, 1000), restarts=st.integers(1, 3), step=st.floats(0.01, 4))
def test_pgd_never_leaves_the_ball_nor_the_unit_box(norm, radius, seed, restarts, step):
    x = torch.rand(3, *cases.SHAPE, generator=cases.generator(seed), dtype=torch.float64)
    x = torch.where(x < 0.1, 0.0, torch.where(x > 0.9, 1.0, x))
    seen, _draw = [], cases.generator(seed)

    def objective(im):
        seen.append(im.detach().clone())
        return brightness(noise(seed, x[:1]))(im)

    found = attacks.pgd(
        objective,
        x,
        Ball(norm, radius),
        steps=3,
        restarts=restarts,
        relative_step=step,
        generator=cases.generator(seed),
    )
    for at in [*seen[1:], found.x.repeat(restarts, 1, 1, 1)]:
        assert 0 <= at.min() <= at.max() <= 1
        assert (length(at - x.repeat(restarts, 1, 1, 1), norm) <= radius * (1 + 8 * EPS) + 4 * EPS).all()


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_reaches_the_top_of_a_linear_function(norm):
    x = cases.images()
    weights = noise(3, x, 1.0)
    found = attacks.pgd(brightness(weights), x, Ball(norm, 0.1), steps=40, generator=cases.generator())
    flat = weights.flatten(1)
    gain = 0.1 * (flat.abs().sum(1) if norm == "linf" else flat.norm(dim=1))
    reached = brightness(weights)(found.x) - brightness(weights)(x)
    assert (reached >= (1 - 1e-3) * gain).all()
    assert torch.allclose(found.objective, brightness(weights)(found.x))


def test_pgd_finds_the_best_corner_of_the_cube_for_a_convex_function():
    shape, radius = (1, 3, 3), 0.1
    x = cases.images(1, shape=shape)
    a = cases.with_spectrum([0.1, 0.2, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
    b = torch.linspace(-0.2, 0.3, 9, dtype=torch.float64)

    def bowl(im):
        d = (im - x[:1]).flatten(1)
        return ((d @ a) * d).sum(1) + d @ b

    corners = radius * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=9)), dtype=torch.float64)
    best = bowl(x + corners.view(-1, *shape)).max()
    found = attacks.pgd(bowl, x, Ball("linf", radius), steps=20, restarts=300, generator=cases.generator())
    assert found.objective.item() == pytest.approx(best.item(), rel=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("goal", OBJECTIVES)
def test_every_attack_beats_noise_of_its_size(norm, goal):
    model, x, y = cases.conv(), cases.images(8), cases.labels(8)
    objective = OBJECTIVES[goal](attributions.saliency, model, x, y)
    ball = Ball(norm, 0.05 if norm == "linf" else 0.15)
    found = attacks.pgd(objective, x, ball, steps=20, restarts=3, generator=cases.generator())
    searched = attacks.noise_search(objective, x, ball, draws=63, generator=cases.generator())
    assert (found.objective >= searched.objective - 1e-9).all()
    assert (found.objective - objective(x)).mean() > 1.2 * (searched.objective - objective(x)).mean()


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_with_zero_radius_returns_the_clean_images(norm):
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    objective = attacks.lower_cosine(attributions.saliency, model, x, y)
    found = attacks.pgd(objective, x, Ball(norm, 0.0), steps=3, generator=cases.generator())
    assert torch.equal(found.x, x)
    assert torch.allclose(found.objective, objective(x))


def test_a_larger_ball_never_makes_a_weaker_attack_of_a_linear_function():
    x = cases.images()
    gains = [
        attacks.pgd(brightness(noise(3, x)), x, Ball("linf", r), steps=10, generator=cases.generator()).objective
        for r in (0.0, 0.05, 0.1, 0.2)
    ]
    assert all((b > a).all() for a, b in itertools.pairwise(gains))


@pytest.mark.parametrize("goal", OBJECTIVES)
def test_more_restarts_never_weaken_an_attack(goal):
    model, x, y = cases.conv(), cases.images(2), cases.labels(2)
    objective = OBJECTIVES[goal](attributions.saliency, model, x, y)
    # Starts are drawn side by side, so the first ones are the same whatever their number.
    reached = [
        attacks.pgd(objective, x, Ball("linf", 0.1), steps=5, restarts=r, generator=cases.generator()).objective
        for r in (1, 2, 5, 10)
    ]
    assert all((b >= a - 1e-9).all() for a, b in itertools.pairwise(reached))
    assert (reached[-1] > reached[0]).any()


def test_the_best_counted_iterate_under_the_judge_is_returned_not_the_last():
    x, trail = cases.images(2), []

    def judge(im):
        return -(im - x.repeat(len(im) // 2, 1, 1, 1) - 0.02).abs().sum((1, 2, 3))

    def keep(im):
        trail.append(im.clone())
        return im.mean((1, 2, 3)) < 0.55

    found = attacks.pgd(
        brightness(torch.ones_like(x[:1])), x, Ball("linf", 0.1), steps=8, restarts=2, keep=keep, judge=judge,
        generator=cases.generator(),
    )  # fmt: skip
    assert len(trail) == 9
    for i in range(2):
        visited = [x[i], *(at[j] for at in trail for j in (i, i + 2) if at[j].mean() < 0.55)]
        scores = torch.stack([judge(torch.stack([im, im]))[i] for im in visited])
        assert found.objective[i].item() == pytest.approx(scores.max().item())
        assert torch.equal(found.x[i], visited[scores.argmax()])


def test_where_no_iterate_counts_the_clean_image_is_returned():
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    objective = attacks.lower_cosine(attributions.saliency, model, x, y)
    picky = torch.tensor([True, False, True])
    found = attacks.pgd(
        objective, x, Ball("linf", 0.1), steps=3, restarts=2, generator=cases.generator(),
        keep=lambda im: picky.repeat(len(im) // 3),
    )  # fmt: skip
    assert found.counted.tolist() == picky.tolist()
    assert torch.equal(found.x[1], x[1])
    assert not torch.equal(found.x[0], x[0])
    assert found.objective[1].item() == pytest.approx(objective(x)[1].item())


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_keeps_the_prediction_and_never_scores_below_the_clean_image(norm):
    model, x = cases.mlp(seed=5), cases.images(20)
    y = model(x).argmax(1)
    keep = attacks.same_prediction(model, x)
    ball = Ball(norm, 0.25 if norm == "linf" else 1.0)
    for goal in OBJECTIVES.values():
        objective = goal(attributions.saliency, model, x, y)
        found = attacks.pgd(objective, x, ball, steps=10, restarts=2, keep=keep, generator=cases.generator())
        assert torch.equal(model(found.x).argmax(1), y)
        free = attacks.pgd(objective, x, ball, steps=10, restarts=2, generator=cases.generator())
        assert not torch.equal(model(free.x).argmax(1), y)
        assert (found.objective >= objective(x)).all()
        assert torch.allclose(found.objective, objective(found.x))


def test_the_same_seed_gives_the_same_attack_and_another_seed_another():
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    objective = attacks.lower_cosine(attributions.saliency, model, x, y)
    runs = [attacks.pgd(objective, x, Ball("l2", 0.3), steps=4, generator=cases.generator(s)).x for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_an_attack_leaves_model_and_images_as_found():
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    model[1].train()
    flags, kept = [m.training for m in model.modules()], x.clone()
    objective = attacks.shift_topk(attributions.saliency, model, x, y, k=2)
    keep = attacks.same_prediction(model, x)
    attacks.pgd(objective, x, Ball("linf", 0.1), steps=3, keep=keep, generator=cases.generator())
    attacks.noise_search(objective, x, Ball("linf", 0.1), draws=3, keep=keep, generator=cases.generator())
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(x, kept)
    assert not x.requires_grad


def test_attacks_run_where_gradients_are_switched_off():
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    objective = attacks.lower_cosine(attributions.saliency, model, x, y)
    expected = attacks.pgd(objective, x, Ball("linf", 0.1), steps=3, generator=cases.generator()).x
    with torch.no_grad():
        found = attacks.pgd(objective, x, Ball("linf", 0.1), steps=3, generator=cases.generator())
    assert torch.equal(found.x, expected)


def test_a_gradient_that_is_not_a_number_stops_its_own_image_only():
    x = cases.images(2)

    def objective(im):
        broken = torch.sqrt(0 * im[:1].sum((1, 2, 3)))
        return torch.cat([broken, im[1:].sum((1, 2, 3))])

    found = attacks.pgd(objective, x, Ball("linf", 0.1), steps=10, generator=cases.generator())
    assert torch.isfinite(found.x).all()
    assert torch.allclose(found.x[1], x[1] + 0.1)


@pytest.mark.parametrize("goal", OBJECTIVES)
def test_a_piecewise_linear_network_in_disguise_is_refused_by_the_dead_gradient(goal):
    model, x, y = cases.Folded(cases.mlp(nn.ReLU())), cases.images(), cases.labels()
    assert models.kinks(model, x) == []
    objective = OBJECTIVES[goal](attributions.saliency, model, x, y)
    with pytest.raises(ValueError, match=r"exactly zero gradient at every image.*models\.smooth_twin"):
        attacks.pgd(objective, x, Ball("linf", 0.1), steps=3, generator=cases.generator())


def test_a_relu_network_climbed_on_its_twin_and_judged_itself_is_moved():
    relu, x = cases.mlp(nn.ReLU(), width=16), cases.images(8)
    y = relu(x).argmax(1)
    judge = attacks.lower_cosine(attributions.saliency, relu, x, y)
    twin = models.smooth_twin(relu, x, beta=20.0)
    ball, keep = Ball("linf", 0.1), attacks.same_prediction(relu, x)
    found = attacks.pgd(
        attacks.lower_cosine(attributions.saliency, twin, x, y), x, ball, steps=20, restarts=3, keep=keep, judge=judge,
        generator=cases.generator(),
    )  # fmt: skip
    assert torch.allclose(found.objective, judge(found.x))
    searched = attacks.noise_search(judge, x, ball, draws=63, keep=keep, generator=cases.generator())
    assert found.objective.mean() > searched.objective.mean() > 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number of at least 1"),
        ({"restarts": 0}, "restarts is 0; it must be a whole number of at least 1"),
        ({"relative_step": 0.0}, "relative_step is 0.0; it must be a finite number above 0"),
        ({"relative_step": math.nan}, "relative_step is nan"),
        ({"x": 2 * cases.images()}, r"x spans .*; pixels must lie in \[0, 1\]"),
        ({"x": cases.images()[:0]}, r"x has shape \(0, 2, 3, 3\).*not empty"),
    ],
)
def test_pgd_refuses_bad_arguments(change, sentence):
    asked = {"x": cases.images(), "ball": Ball("linf", 0.1), "steps": 2, "generator": cases.generator()} | change
    with pytest.raises(ValueError, match=sentence):
        attacks.pgd(lambda im: im.sum((1, 2, 3)), asked.pop("x"), asked.pop("ball"), **asked)


# ------------------------------------------------------------------ noise search


@pytest.mark.parametrize("norm", NORMS)
def test_noise_search_is_the_best_of_its_draws(norm):
    x, ball = cases.images(), Ball(norm, 0.1)
    objective = brightness(noise(3, x, 1.0))
    draw = cases.generator(7)
    tries = torch.stack([x, *[(x + ball.boundary(x, generator=draw)).clamp(0, 1) for _ in range(6)]])
    scores = torch.stack([objective(t) for t in tries])
    found = attacks.noise_search(objective, x, ball, draws=6, generator=cases.generator(7))
    assert torch.equal(found.objective, scores.amax(0))
    assert torch.equal(found.x, tries[scores.argmax(0), torch.arange(3)])
    assert found.counted.all()


def test_more_draws_never_weaken_a_noise_search():
    x = cases.images()
    objective = brightness(noise(3, x, 1.0))
    reached = [
        attacks.noise_search(objective, x, Ball("linf", 0.1), draws=n, generator=cases.generator()).objective
        for n in (1, 3, 10, 30)
    ]
    assert all((b >= a).all() for a, b in itertools.pairwise(reached))


def test_noise_that_changes_the_prediction_does_not_count():
    x = cases.images()
    found = attacks.noise_search(
        brightness(noise(3, x)), x, Ball("linf", 0.1), draws=5, generator=cases.generator(),
        keep=lambda im: torch.tensor([True, False, True]),
    )  # fmt: skip
    assert found.counted.tolist() == [True, False, True]
    assert torch.equal(found.x[1], x[1])


def test_noise_search_refuses_bad_arguments():
    x, ball = cases.images(), Ball("linf", 0.1)
    with pytest.raises(ValueError, match="draws is 0; it must be a whole number of at least 1"):
        attacks.noise_search(brightness(x), x, ball, draws=0, generator=cases.generator())
    with pytest.raises(ValueError, match="x spans"):
        attacks.noise_search(brightness(x), -x, ball, draws=1, generator=cases.generator())


# ------------------------------------------------------------------ prediction and kinks


def test_same_prediction_compares_every_repeat_with_its_own_clean_image():
    model, x = cases.mlp(seed=5), cases.images(20)
    keep = attacks.same_prediction(model, x)
    assert keep(x).all()
    moved = torch.cat([x, x.roll(1, 0), x + noise(1, x, 0.3)])
    naive = [int(model(im[None]).argmax()) == int(model(x[i % 20][None]).argmax()) for i, im in enumerate(moved)]
    assert keep(moved).tolist() == naive
    assert 20 < sum(naive) < 60


def test_an_overheard_model_is_asked_again_only_about_other_images():
    model, x = Counting(cases.mlp(seed=5)), cases.images(4)
    overheard = attacks.Overheard(model)
    keep = attacks.same_prediction(overheard, x)
    for images in (x, x.roll(1, 0), torch.cat([x, x.flip(0)])):
        expected = attacks.same_prediction(model, x)(images)
        overheard(images)
        before = model.forwards
        assert torch.equal(keep(images.clone()), expected)
        assert model.forwards == before
        assert keep(1 - images).shape == expected.shape
        assert model.forwards == before + len(images)
    overheard(x)
    x.zero_()  # the memory is of what was shown, not of where it lay
    assert overheard.recalled(x) is None


def test_an_overheard_transformer_shows_its_attention_and_hides_that_of_a_network_without():
    model, x = cases.vit(), cases.images(2, shape=cases.VIT_SHAPE)
    overheard = attacks.Overheard(model)
    logits, maps = overheard.attend(x)
    assert torch.equal(overheard.recalled(x), logits)
    assert all(torch.equal(a, b) for a, b in zip(maps, model.attend(x)[1], strict=True))
    assert not hasattr(attacks.Overheard(cases.mlp()), "attend")
    assert overheard.training is model.training


@pytest.mark.parametrize("relu", [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.1), nn.ReLU6(), nn.Hardtanh()])
def test_kinks_are_refused_with_the_remedy(relu):
    model, x = cases.mlp(relu), cases.images()
    found = models.kinks(model, x)[0]
    with pytest.raises(ValueError, match=rf"model runs {found}, so .*pass ascend_on=\[models\.smooth_twin\("):
        attacks.refuse_kinks(model, x)


def test_smooth_networks_and_twins_are_not_refused():
    x = cases.images()
    attacks.refuse_kinks(cases.mlp(nn.GELU()), x)
    attacks.refuse_kinks(models.smooth_twin(cases.mlp(nn.ReLU()), x, beta=5.0), x)


def test_a_twin_that_kept_a_kink_is_refused_too():
    half_way = models.SmoothTwin(cases.mlp(nn.ReLU6()), 5.0)
    with pytest.raises(ValueError, match="model runs hardtanh"):
        attacks.refuse_kinks(half_way, cases.images())


class Functional(nn.Module):
    """A dense layer, F.relu that no list of modules shows, and a dense layer."""

    def __init__(self, original):
        super().__init__()
        self.original = original

    def forward(self, x):
        return self.original[3](F.relu(self.original[1](x.flatten(1))))


def test_a_functional_relu_is_refused():
    model, x = Functional(cases.mlp()), cases.images()
    with pytest.raises(ValueError, match="model runs relu"):
        attacks.refuse_kinks(model, x)
