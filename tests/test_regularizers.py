"""Laws of penalties: one number per example, its slope in the weights, and what each is, by dense computation."""

import copy
import itertools
from functools import partial

import cases
import pytest
import torch
from attrobust import attributions, curvature, models, regularizers, training
from attrobust.attacks.streams import stochastic
from attrobust.balls import Ball
from attrobust.curvature.spectra import signs
from attrobust.regularizers import alignment, along_path
from attrobust.regularizers.interpretation import permuted
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, vmap
from torch.nn import functional as F

SHAPE = (2, 1, 3)
NAMES = [name for name in regularizers.PENALTIES if name != "none"]


def examples(n=4):
    x = torch.rand(n, *SHAPE, generator=cases.generator(), dtype=torch.float64)
    return x, torch.arange(n) % 3


@cases.isolated
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()


def network(activation="tanh", classes=3):
    how = {"activation": activation, "width": 5, "depth": 2, "seed": 0}
    return models.build("mlp", input_shape=SHAPE, classes=classes, **how).double()


def penalty(name, seed=0):
    """A penalty as training calls it, under a stream of its own; Lanczos goes to its end, of six pixels."""
    known = regularizers.PENALTIES[name]
    if name == "interpretation":
        return lambda model, x, y: known(model, x, y, wanted=wanted(x))
    how = {"steps": 6} if name == "ssr_lanczos" else {}
    return partial(known, generator=cases.generator(seed), **how) if stochastic(known) else known


def wanted(x):
    """A map of each image that depends on no other image."""
    return torch.cos(7 * x)


def of_one(model, of, *arguments):
    """A function of one image and one label, for torch.func, and the weights that it is a function of."""
    weights = {n: w.detach() for n, w in model.named_parameters()}
    return weights, lambda w, x, y: of(functional_call(model, w, (x[None],))[0], y, *arguments)


def loss(logits, y):
    return F.cross_entropy(logits, y)


def per_image(function, weights, x, y):
    return vmap(lambda a, b: function(weights, a, b), chunk_size=1)(x, y)


def slopes_agree(model, found, function, x, y):
    """Whether the weights' slopes of a penalty are those of an independent one, summed over the images."""
    weights = {n: w.detach() for n, w in model.named_parameters()}
    expected = grad(lambda w: torch.stack([function(w, a, b) for a, b in zip(x, y, strict=True)]).sum())(weights)
    own = torch.autograd.grad(found.sum(), list(model.parameters()), allow_unused=True)
    pairs = zip(own, expected.values(), strict=True)
    return all(torch.allclose(torch.zeros_like(b) if a is None else a, b, rtol=1e-6, atol=1e-9) for a, b in pairs)


# ------------------------------------------------------------------ of every penalty


@pytest.mark.parametrize("name", NAMES)
def test_a_penalty_is_one_number_per_example_whatever_its_companions_and_leaves_everything_as_found(name):
    model, (x, y) = linear(), examples()
    kept, whole, alone = x.clone(), penalty(name)(model, x, y), penalty(name)
    assert whole.shape == (4,)
    assert regularizers.PENALTIES[name] in regularizers.MOVING or (whole >= -1e-12).all()
    one_by_one = torch.cat([alone(model, x[i : i + 1], y[i : i + 1]) for i in range(4)])
    assert torch.allclose(whole, one_by_one, rtol=1e-10, atol=1e-14)
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_penaltys_gradient_in_the_weights_agrees_with_finite_differences(name):
    model, (x, y) = network(), examples()
    weights = list(model.parameters())
    slopes = torch.autograd.grad(penalty(name)(model, x, y).sum(), weights, allow_unused=True)
    draw = cases.generator(1)
    directions = [torch.randn(w.shape, generator=draw, dtype=w.dtype) for w in weights]
    along = sum((s * d).sum() for s, d in zip(slopes, directions, strict=True) if s is not None)

    def moved(step):
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w += step * d
        value = penalty(name)(model, x, y).sum().detach()
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w -= step * d
        return value

    assert torch.allclose((moved(1e-5) - moved(-1e-5)) / 2e-5, along, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e3, 0.0], ids=["saturated", "constant"])
def test_a_penalty_and_its_slopes_are_finite_where_the_softmax_is_saturated_or_the_network_constant(name, scale):
    model, (x, y) = network().float(), examples()
    with torch.no_grad():
        for w in list(model.parameters())[-2:]:
            w.mul_(scale)
    values = penalty(name)(model, x.float(), y)
    assert values.isfinite().all()
    slopes = torch.autograd.grad(values.sum(), list(model.parameters()), allow_unused=True)
    assert all(s is None or s.isfinite().all() for s in slopes)


@pytest.mark.parametrize("name", NAMES)
def test_a_penalty_of_a_network_that_diverged_is_no_number_and_no_error(name):
    model, (x, y) = network(), examples()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    assert not penalty(name)(model, x, y).isfinite().any()


@pytest.mark.parametrize("name", NAMES)
def test_a_penalty_of_no_strength_is_plain_sgd_bit_for_bit(name):
    plain, weightless = (models.build("mlp", input_shape=SHAPE, classes=3, seed=0, width=5) for _ in range(2))
    x, y = (part.float() if part.is_floating_point() else part for part in examples(12))
    for net, fields in ((plain, {}), (weightless, {"penalty": name})):
        recipe = training.Recipe(step_size=0.1, batch_size=4, epochs=3, momentum=0.9, **fields)
        training.fit([net], x, y, recipe, generators=[cases.generator()])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), weightless.parameters(), strict=True))


@cases.isolated
def normed(seed=0):
    """A network with BatchNorm whose statistics have moved."""
    net = cases.filled(
        nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)), seed
    )
    net[2].running_mean.copy_(cases.draw(5))
    return net


@pytest.mark.parametrize("name", NAMES)
def test_a_penalty_of_each_example_is_not_told_where_its_companions_enter_its_gradient(name):
    net, (x, y) = normed(), examples()
    whole, alone = penalty(name)(net, x, y), penalty(name)
    one_by_one = torch.cat([alone(net, x[i : i + 1], y[i : i + 1]) for i in range(4)])
    assert torch.allclose(whole, one_by_one, rtol=1e-10, atol=1e-14)
    loose = copy.deepcopy(net)
    loose[2].running_mean = loose[2].running_var = None
    for coupled in (net.train(), loose):
        with pytest.raises(
            ValueError, match=r"^model normalises by its batch; call model.eval\(\), and let BatchNorm track"
        ):
            penalty(name)(coupled, x, y)
    assert torch.equal(net[2].running_mean, normed()[2].running_mean)


# ------------------------------------------------------------------ what each is


def test_the_input_gradient_of_a_linear_softmax_network_has_its_closed_form():
    model, (x, y) = linear(), examples()
    residual = model(x).softmax(1) - torch.eye(3, dtype=torch.float64)[y]
    expected = (residual @ model[1].weight).square().sum(1)
    assert torch.allclose(regularizers.input_gradient(model, x, y), expected, rtol=1e-12)


def dense_loss_hessian(model):
    weights, one = of_one(model, loss)
    return weights, lambda w, x, y: hessian(one, argnums=1)(w, x, y).reshape(6, 6)


def test_ssr_of_a_relu_network_is_the_top_eigenvalue_of_the_dense_hessian_and_so_are_its_slopes():
    model, (x, y) = network("relu"), examples()
    _, dense = dense_loss_hessian(model)

    def top(w, a, b):
        return torch.linalg.eigvalsh(dense(w, a, b))[-1]

    found = regularizers.ssr(model, x, y)
    weights = {n: w.detach() for n, w in model.named_parameters()}
    expected = torch.stack([top(weights, a, b) for a, b in zip(x, y, strict=True)])
    assert (expected > 1e-3).all()
    assert torch.allclose(found, expected, rtol=1e-9)
    assert slopes_agree(model, found, top, x, y)


@pytest.mark.parametrize("channels", ["all", "mean"])
def test_ssr_is_the_top_eigenvalue_of_the_gauss_newton_matrix_of_all_channels_or_of_their_mean(channels):
    model, (x, y) = network(), examples()

    def top(w, a, b):
        jacobian = jacrev(lambda image: functional_call(model, w, (image[None],))[0])(a)
        jacobian = jacobian.mean(1).flatten(1) if channels == "mean" else jacobian.flatten(1)
        p = functional_call(model, w, (a[None],))[0].softmax(0)
        return torch.linalg.eigvalsh(jacobian.T @ (p.diag() - p.outer(p)) @ jacobian)[-1]

    found = regularizers.ssr(model, x, y, channels=channels)
    weights = {n: w.detach() for n, w in model.named_parameters()}
    assert torch.allclose(found, torch.stack([top(weights, a, b) for a, b in zip(x, y, strict=True)]), rtol=1e-9)
    assert slopes_agree(model, found, top, x, y)


def test_an_image_whose_logits_are_no_numbers_leaves_ssr_of_the_others_as_it_is():
    model, (x, y) = network(), examples()
    x[1] = torch.nan
    found = regularizers.ssr(model, x, y)
    assert found.isnan().tolist() == [False, True, False, False]
    kept = ~found.isnan()
    assert torch.allclose(found[kept], regularizers.ssr(model, x[kept], y[kept]), rtol=1e-12)


def test_channels_that_agree_or_cancel_make_the_averaged_ssr_a_half_of_one_eigenvalue_or_nothing():
    model, (x, y) = linear(), examples()
    for sign, share in ((1, 0.5), (-1, 0.0)):
        with torch.no_grad():
            model[1].weight[:, 3:] = sign * model[1].weight[:, :3]
        both, mean = (regularizers.ssr(model, x, y, channels=channels) for channels in ("all", "mean"))
        assert torch.allclose(mean, share * both, rtol=1e-9, atol=1e-12)


def test_ssr_by_lanczos_is_the_largest_absolute_eigenvalue_of_the_dense_hessian_and_so_are_its_slopes():
    model, (x, y) = network(), examples()
    _, dense = dense_loss_hessian(model)

    def largest(w, a, b):
        return torch.linalg.eigvalsh(dense(w, a, b)).abs().amax()

    found = regularizers.ssr_lanczos(model, x, y, generator=cases.generator(), steps=6)
    weights = {n: w.detach() for n, w in model.named_parameters()}
    assert torch.allclose(found, torch.stack([largest(weights, a, b) for a, b in zip(x, y, strict=True)]), rtol=1e-7)
    assert slopes_agree(model, found, largest, x, y)


def test_ssr_by_lanczos_finds_eigenvalues_from_below_and_agrees_with_the_closed_form_on_relu_networks():
    model, (x, y) = network("relu"), examples()
    exact = regularizers.ssr(model, x, y)
    few, all_steps = (
        regularizers.ssr_lanczos(model, x, y, generator=cases.generator(), steps=steps) for steps in (1, 6)
    )
    assert (few <= exact * (1 + 1e-9)).all()
    assert torch.allclose(all_steps, exact, rtol=1e-7)


def cost(of, classes):
    """Floating-point operations of a penalty and its slopes in the weights."""
    model = models.build("mlp", input_shape=(1, 8, 8), classes=classes, seed=0)
    with training.Operations() as counted:
        values = of(model, torch.rand(4, 1, 8, 8, generator=cases.generator()), torch.arange(4))
        torch.autograd.grad(values.sum(), list(model.parameters()), allow_unused=True)
    return counted.total


def test_ssr_by_lanczos_costs_alike_for_ten_classes_and_for_a_hundred_and_the_closed_form_does_not():
    lanczos = [cost(partial(regularizers.ssr_lanczos, generator=cases.generator()), classes) for classes in (10, 100)]
    closed = [cost(penalty("ssr"), classes) for classes in (10, 100)]
    assert lanczos[1] < 1.5 * lanczos[0]
    assert closed[1] > 5 * closed[0]


@pytest.mark.parametrize("seen", [1, 2, 6], ids=lambda n: f"network that sees {n} of 6 pixels")
def test_cure_is_the_squared_change_of_the_dense_gradient_along_its_signs(seen):
    model, (x, y) = network(), examples()
    with torch.no_grad():
        next(m for m in model.modules() if isinstance(m, nn.Linear)).weight[:, seen:] = 0
    weights, one = of_one(model, loss)
    slope = vmap(grad(one, argnums=1), in_dims=(None, 0, 0))
    here = slope(weights, x, y)
    way = here.sign() / here.sign().flatten(1).norm(dim=1)[:, None, None, None]
    change = slope(weights, x + 0.3 * way, y) - here
    found = regularizers.cure(model, x, y, length=0.3)
    assert torch.allclose(found, change.flatten(1).square().sum(1), rtol=1e-9)


@pytest.mark.parametrize("name", ["jacobian", "hessian"])
def test_probes_of_a_norm_are_products_with_the_dense_matrix_and_right_on_average(name):
    model, (x, y) = network(), examples()
    weights, one = of_one(model, lambda logits, label: logits.gather(0, label[None])[0])
    if name == "hessian":
        dense = torch.stack([hessian(one, argnums=1)(weights, a, b).reshape(6, 6) for a, b in zip(x, y, strict=True)])
    else:
        dense = curvature.input_jacobian(model, x)
    rows = dense.shape[1]
    found = getattr(regularizers, name)(model, x, y, generator=cases.generator(), probes=1)
    shape = (4, 1, *x.shape[1:]) if name == "hessian" else (4, 1, rows)
    draws = signs(shape, x, cases.generator()).view(4, rows)
    assert torch.allclose(found, torch.einsum("bij,bi->bj", dense, draws).square().sum(1), rtol=1e-9)
    many = torch.stack([getattr(regularizers, name)(model, x, y, generator=cases.generator(s)) for s in range(400)])
    error = many.std(0) / 20
    assert ((many.mean(0) - dense.square().sum((1, 2))).abs() < 5 * error + 1e-12).all()


def test_the_logits_of_a_relu_network_have_no_hessian_to_be_punished():
    model, (x, y) = network("relu"), examples()
    assert (regularizers.hessian(model, x, y, generator=cases.generator()) == 0).all()


def by_points(model, x, end, y, points):
    """Integrated gradients of the loss, point by point."""
    weights, one = of_one(model, loss)
    slope = vmap(grad(one, argnums=1), in_dims=(None, 0, 0))
    path = [slope(weights, x + k / points * (end - x), y) for k in range(1, points + 1)]
    return (end - x) * torch.stack(path).mean(0)


def test_integrated_gradients_of_the_loss_are_those_point_by_point_and_sum_to_its_change():
    model, (x, y) = network(), examples()
    end = (x + 0.2).clamp(0, 1)
    found = along_path.loss_path(model, x, end, y, points=7)
    assert torch.allclose(found, by_points(model, x, end, y, 7), rtol=1e-9, atol=1e-13)
    fine = along_path.loss_path(model, x, end, y, points=4000).flatten(1).sum(1)
    change = F.cross_entropy(model(end), y, reduction="none") - F.cross_entropy(model(x), y, reduction="none")
    assert torch.allclose(fine, change, rtol=1e-3, atol=1e-5)


def test_the_norm_along_the_path_is_taken_to_an_image_of_the_ball_that_raises_it_and_the_sum_moves_the_loss():
    model, (x, y) = network(), examples(8)
    how = {"radius": 0.1, "steps": 5, "points": 6, "inner_points": 3}

    def size(at):
        return along_path.loss_path(model, x, at, y, points=3).flatten(1).abs().sum(1)

    start = (x + Ball("linf", 0.1).sample(x, generator=cases.generator())).clamp(0, 1)
    end = regularizers.ascend(size, x, ball=Ball("linf", 0.1), steps=5, generator=cases.generator())
    assert (end - x).abs().max() <= 0.1 + 1e-12
    assert 0 <= end.min() <= end.max() <= 1
    assert size(end).sum() > 1.2 * size(start).sum()
    norm = regularizers.ig_norm(model, x, y, generator=cases.generator(), **how)
    assert torch.allclose(norm, by_points(model, x, end, y, 6).flatten(1).abs().sum(1), rtol=1e-9)

    def loss_at(at):
        return F.cross_entropy(model(at), y, reduction="none")

    def harm(at):
        return loss_at(at) + 0.3 * size(at)

    end = regularizers.ascend(harm, x, ball=Ball("linf", 0.1), steps=5, generator=cases.generator())
    expected = 0.3 * by_points(model, x, end, y, 6).flatten(1).abs().sum(1) + loss_at(end) - loss_at(x)
    moved = regularizers.ig_sum_norm(model, x, y, generator=cases.generator(), size=0.3, **how)
    assert torch.allclose(moved, expected, rtol=1e-9)


def test_the_sum_without_a_norm_is_adversarial_training():
    x, y = examples(12)
    nets = [copy.deepcopy(network()) for _ in range(2)]
    without = partial(regularizers.ig_sum_norm, radius=0.1, steps=7, size=0.0)
    for net, how in zip(
        nets, ({"penalty": without, "strength": 1.0}, {"trainer": "adversarial", "radius": 0.1}), strict=True
    ):
        recipe = training.Recipe(step_size=0.1, batch_size=4, epochs=2, **how)
        training.fit([net], x, y, recipe, generators=[cases.generator()])
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(*(net.parameters() for net in nets), strict=True))


def test_l2_cosine_is_the_change_of_the_logit_gradient_by_hand():
    model, (x, y) = network(), examples()
    found = regularizers.l2_cosine(model, x, y, generator=cases.generator(), radius=0.2, l2=0.3, cosine=0.7)
    near = x + Ball("linf", 0.2).sample(x, generator=cases.generator())
    weights, one = of_one(model, lambda logits, label: logits.gather(0, label[None])[0])
    a, b = (vmap(grad(one, argnums=1), in_dims=(None, 0, 0))(weights, at, y).flatten(1) for at in (x, near))
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    assert torch.allclose(found, 0.3 * (a - b).square().sum(1) + 0.35 * (1 - cosine), rtol=1e-9)


def test_art_is_the_misalignment_at_both_images_by_hand_and_the_loss_at_the_second(monkeypatch):
    model, (x, y), ends = network(), examples(), []

    def slopes_at(at):
        jacobian, logits = curvature.input_jacobian(model, at), model(at).detach()
        other = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
        return [jacobian[torch.arange(4), k] for k in (y, other)]

    def watched(objective, images, **how):
        start = (images + how["ball"].sample(images, generator=cases.generator())).clamp(0, 1)
        ends.append(regularizers.ascend(objective, images, **how))
        assert objective(ends[0].requires_grad_()).sum() > objective(start.requires_grad_()).sum()
        assert how["length"] == pytest.approx(0.3 * 5 / 8)
        # It looks at a third of the six pixels, those that lead the gradient where it starts.
        seen = torch.zeros(4, 6).double().scatter(1, slopes_at(start.detach())[0].abs().topk(2).indices, 1)
        at = ends[0].detach()
        own, rival = (F.cosine_similarity(seen * at.flatten(1), seen * g) for g in slopes_at(at))
        assert torch.allclose(objective(at), F.softplus(rival - own), rtol=1e-9)
        return ends[0].detach()

    monkeypatch.setattr(alignment, "ascend", watched)
    found = regularizers.art(model, x, y, generator=cases.generator(), radius=0.3, steps=3)
    (end,) = ends

    both = [x, end.detach()]
    slopes, aside = [slopes_at(at) for at in both], 0
    for a in both:
        (own, rival), (moved_own, moved_rival) = (
            [1 - F.cosine_similarity(a.flatten(1), g, dim=1) for g in pair] for pair in slopes
        )
        aside = aside + F.softplus(torch.maximum(own, moved_own) - torch.minimum(rival, moved_rival)) / 4
    here, there = (F.cross_entropy(model(at), y, reduction="none") for at in both)
    assert torch.allclose(found, aside + there - here, rtol=1e-9)


def test_inner_steps_are_signed_stay_in_the_ball_and_reach_its_corner_where_the_objective_is_linear():
    x = torch.rand(3, *SHAPE, generator=cases.generator(), dtype=torch.float64)
    slope = torch.randn(*SHAPE, generator=cases.generator(1), dtype=torch.float64)
    how = {"ball": Ball("linf", 0.25), "steps": 4, "generator": cases.generator()}
    end = regularizers.ascend(lambda at: (at * slope).flatten(1).sum(1), x, **how)
    assert torch.allclose(end, (x + 0.25 * slope.sign()).clamp(0, 1), rtol=1e-12)


def label_slopes(model, x, y):
    """Gradients of the labels' logits, flat, by torch.func, and the function that gives one."""
    weights, one = of_one(model, lambda logits, label: logits.gather(0, label[None])[0])
    slope = grad(one, argnums=1)
    return weights, lambda w, a, b: slope(w, a, b).flatten()


@pytest.mark.parametrize(("direction", "size"), [(3.0, 1.06), (1.0, 0.0), (0.0, 1.0)])
def test_both_terms_of_interpretation_and_their_slopes_are_those_by_dense_computation(direction, size):
    model, (x, y) = network(), examples()
    weights, slope = label_slopes(model, x, y)
    maps = wanted(x)

    def by_hand(w, a, b):
        (place,) = [i for i in range(4) if torch.equal(x[i], a)]
        g, t = slope(w, a, b), maps[place].flatten()
        return direction * (1 - g @ t / (g.norm() * t.norm())) + size * g.norm()

    found = regularizers.interpretation(model, x, y, wanted=maps, direction=direction, size=size)
    expected = torch.stack([by_hand(weights, a, b) for a, b in zip(x, y, strict=True)])
    assert torch.allclose(found, expected, rtol=1e-9)
    assert slopes_agree(model, found, by_hand, x, y)
    if not direction:
        assert torch.equal(found, regularizers.gradient_norm(model, x, y))


def test_a_wanted_map_that_is_zero_asks_for_no_direction():
    model, (x, y) = network(), examples()
    found = regularizers.interpretation(model, x, y, wanted=torch.zeros_like(x), direction=3.0, size=0.0)
    assert torch.allclose(found, torch.full((4,), 3.0, dtype=torch.float64))
    slopes = torch.autograd.grad(found.sum(), list(model.parameters()), allow_unused=True)
    assert all(s is None or not s.any() for s in slopes)


@pytest.mark.parametrize(("length", "step"), [(None, 2.5 * 0.1 / 7), (0.03, 0.03), (0.0, 0.0)])
def test_the_ascent_starts_in_the_ball_and_takes_steps_of_its_length_down_to_its_edge(length, step):
    """An objective that falls with every pixel: each step is the same way, until the ball ends."""
    (x, _), ball, seen = examples(), Ball("linf", 0.1), []

    def darker(at):
        seen.append(at.detach())
        return -at.flatten(1).sum(1)

    how = {"ball": ball, "steps": 7} | ({} if length is None else {"length": length})
    seen.append(regularizers.ascend(darker, x, generator=cases.generator(), **how))
    assert torch.equal(seen[0], (x + ball.sample(x, generator=cases.generator())).clamp(0, 1))
    for at, following in itertools.pairwise(seen):
        assert torch.allclose(following, (at - step).clamp(x - 0.1, x + 0.1).clamp(0, 1), atol=1e-12)
    assert len(seen) == 8


def test_wanted_maps_are_the_teachers_gradients_or_their_mean_under_noise_without_what_is_near_the_mean():
    model, (x, y) = network(), examples()
    weights, slope = label_slopes(model, x, y)

    def gradients(at):
        return torch.stack([slope(weights, a, b) for a, b in zip(at, y, strict=True)])

    draw = cases.generator()
    noisy = [(x + 0.3 * torch.randn(x.shape, generator=draw, dtype=x.dtype)).clamp(0, 1) for _ in range(4)]
    smooth = (sum(gradients(at) for at in noisy) + gradients(x)) / 5
    for kind, flat in (("gradient", gradients(x)), ("smooth_grad", smooth)):
        away = (flat - flat.mean(1, keepdim=True)).abs() / flat.std(1, correction=0, keepdim=True)
        for threshold in (0.0, 0.8):
            how = {"kind": kind, "generator": cases.generator(), "samples": 4, "sigma": 0.3}
            found = regularizers.wanted_maps(model, x, y, threshold=threshold, **how)
            assert torch.allclose(found.flatten(1), torch.where(away > threshold, flat, 0), rtol=1e-9)
            assert (found == 0).any() == (threshold > 0)
            assert not found.requires_grad


def test_a_gradient_that_is_the_same_everywhere_asks_for_nothing():
    model, (x, y) = linear(), examples()
    nn.init.constant_(model[1].weight, 2.0)
    assert not wanted_by_gradient(model, x, y, threshold=0.0).any()


def test_of_many_images_a_teacher_explains_512_at_a_time():
    model, (x, y), draw = network(), examples(n=513), cases.generator()
    parts = [wanted_under_noise(model, *pair, draw) for pair in zip(x.split(512), y.split(512), strict=True)]
    assert torch.equal(wanted_under_noise(model, x, y, cases.generator()), torch.cat(parts))


def wanted_by_gradient(model, x, y, **how):
    return regularizers.wanted_maps(model, x, y, kind="gradient", generator=cases.generator(), **how)


def wanted_under_noise(model, x, y, generator):
    return regularizers.wanted_maps(model, x, y, kind="smooth_grad", generator=generator, samples=1)


def test_permuted_maps_hold_the_same_numbers_in_an_order_of_their_own_and_point_elsewhere():
    model, (x, y) = models.build("mlp", input_shape=(2, 8, 8), classes=3, seed=0).double(), examples()
    x = torch.rand(4, 2, 8, 8, generator=cases.generator(), dtype=torch.float64)
    how = {"samples": 2, "threshold": 0.5}
    smooth, mixed = (
        regularizers.wanted_maps(model, x, y, kind=kind, generator=cases.generator(), **how).flatten(1)
        for kind in ("smooth_grad", "permuted")
    )
    assert torch.equal(smooth.sort(1).values, mixed.sort(1).values)
    assert (F.cosine_similarity(smooth, mixed).abs() < 0.4).all()
    places = torch.arange(128.0).view(1, 2, 64).expand(4, 1, 2, 64)
    orders = permuted(places, generator=cases.generator()).flatten(1)
    assert all(torch.equal(order.sort().values, torch.arange(128.0)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert (orders != torch.arange(128.0)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, x, y: regularizers.interpretation(m, x, y, wanted=x[:2]), "wanted has shape"),
        (lambda m, x, y: regularizers.interpretation(m, x, y, wanted=x, size=-1), "size is -1; it must be"),
        (lambda m, x, y: regularizers.interpretation(m, x, y, wanted=x, direction=-1), "direction is -1; it must"),
        (lambda m, x, y: wanted_by_gradient(m, x, y, sigma=-0.1), "sigma is -0.1; it must be"),
        (lambda m, x, y: wanted_by_gradient(m, x, y, threshold=-0.1), "threshold is -0.1; it must be"),
        (lambda m, x, y: regularizers.wanted_maps(m, x, y, kind="lime", generator=cases.generator()), "kind is 'lime'"),
        (lambda m, x, y: regularizers.ssr(m, x, y, channels="first"), "channels is 'first'; it must be one of"),
        (lambda m, x, y: regularizers.cure(m, x, y, length=0), "length is 0; it must be"),
        (lambda m, x, y: regularizers.ig_norm(m, x, y, generator=cases.generator(), points=0), "points is 0; it must"),
        (lambda m, x, y: regularizers.hessian(m, x, y, generator=cases.generator(), probes=0), "probes is 0; it must"),
        (lambda m, x, y: regularizers.art(m, x, y, generator=cases.generator(), steps=0), "steps is 0; it must be"),
        (lambda m, x, y: regularizers.l2_cosine(m, x, y, generator=cases.generator(), l2=-1), "l2 is -1; it must be"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_in_a_sentence(call, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        call(network(), *examples())


# ------------------------------------------------------------------ in training


@pytest.mark.parametrize(
    ("penalty", "sentence"),
    [
        (lambda m, x, y: m(x).square(), r"penalty has shape \(4, 3\); it must be one number per image"),
        (lambda m, x, y: m(x).square().mean(), r"penalty has shape \(\); it must be one number per image"),
        (lambda m, x, y: 0.0, "penalty gives a float; it must give a tensor of one number per image"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("trainer", ["sgd", "sam"])
def test_a_penalty_of_the_callers_own_that_nothing_would_learn_from_is_refused(penalty, sentence, trainer, unchecked):
    x, y = examples(12)
    net, radius = network(), 0.1 if trainer == "sam" else 0.0
    recipe = training.Recipe(
        step_size=0.1, batch_size=4, epochs=2, penalty=penalty, strength=0.1, trainer=trainer, radius=radius
    )
    with pytest.raises(ValueError, match=f"^{sentence}"):
        training.fit([net], x, y, recipe, generators=[cases.generator()])
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), network().parameters(), strict=True))


@pytest.mark.parametrize("penalty", ["hessian", lambda model, x, y: torch.zeros(len(x))], ids=["named", "given"])
def test_a_penalty_that_is_honestly_zero_trains_as_none(penalty):
    x, y = examples(12)
    nets = [network("relu"), network("relu")]
    for net, fields in zip(nets, ({}, {"penalty": penalty, "strength": 1.0}), strict=True):
        recipe = training.Recipe(step_size=0.1, batch_size=4, epochs=2, **fields)
        training.fit([net], x, y, recipe, generators=[cases.generator()])
    pairs = zip(*(net.parameters() for net in nets), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs)


@pytest.mark.parametrize("name", ["jacobian", "ig_norm"])
def test_what_a_penalty_draws_leaves_batches_and_companions_alone(name):
    x, y = examples(12)
    seen = []

    def spy(model, images, labels, *, generator):
        seen.append((images.clone(), torch.rand(3, generator=generator)))
        return regularizers.PENALTIES[name](model, images, labels, generator=generator)

    def train(penalty, seeds):
        nets = [copy.deepcopy(network()) for _ in seeds]
        recipe = training.Recipe(step_size=0.1, batch_size=4, epochs=2, penalty=penalty, strength=0.1)
        training.fit(nets, x, y, recipe, generators=[cases.generator(s) for s in seeds])
        return nets

    (alone,), first = train(spy, [5]), list(seen)
    seen.clear()
    pair = train(spy, [5, 6])
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), pair[0].parameters(), strict=True))
    draw = cases.generator(5)
    order = [x[batch] for _ in range(2) for batch in torch.randperm(12, generator=draw).split(4)]
    assert all(torch.equal(images, expected) for (images, _), expected in zip(first, order, strict=True))
    own, other = seen[0][1], seen[1][1]
    assert not torch.equal(own, other)
    assert not torch.equal(own, torch.rand(3, generator=cases.generator(5)))  # nor are they the order of the batches


def test_every_example_meets_the_map_that_is_wanted_of_it_in_each_network():
    x, y = examples(12)
    maps = [torch.rand(x.shape, generator=cases.generator(s), dtype=x.dtype) for s in (1, 2)]
    nets, seen = [copy.deepcopy(network()) for _ in range(2)], []

    def spy(model, images, labels, *, wanted):
        seen.append((images.clone(), wanted.clone()))
        return regularizers.interpretation(model, images, labels, wanted=wanted)

    recipe = training.Recipe(step_size=0.1, batch_size=4, epochs=2, penalty=spy, strength=0.1)
    training.fit(nets, x, y, recipe, generators=[cases.generator(s) for s in (5, 6)], wanted=maps)
    assert len(seen) == 12
    for turn, (images, asked) in enumerate(seen):
        for image, one in zip(images, asked, strict=True):
            (place,) = [i for i in range(12) if torch.equal(x[i], image)]
            assert torch.equal(one, maps[turn % 2][place])


def test_training_draws_the_gradient_towards_the_wanted_map():
    x, y = examples(12)
    maps = torch.zeros_like(x)
    maps[:, 0, 0, 0] = 1
    net = network()
    recipe = training.Recipe(step_size=0.1, batch_size=12, epochs=60, penalty="interpretation", strength=1.0)

    def towards():
        slopes = attributions.saliency(net, x, y).detach().flatten(1)
        return F.cosine_similarity(slopes, maps.flatten(1)).mean()

    before = towards()
    training.fit([net], x, y, recipe, generators=[cases.generator()], wanted=[maps])
    assert towards() > before + 0.3


def test_the_price_of_a_penalty_with_maps_is_counted_and_does_not_depend_on_what_is_wanted():
    x, y = examples(8)

    def price(penalty, maps):
        recipe = training.Recipe(step_size=0.1, batch_size=8, epochs=1, penalty=penalty, strength=0.1)
        return training.passes(network(), x, y, recipe, generator=cases.generator(), wanted=maps)

    assert price("interpretation", x) == price("interpretation", 1 - x) == price("gradient_norm", None)
    assert price("interpretation", x) > 3


@pytest.mark.parametrize(
    ("fields", "wanted", "sentence"),
    [
        ({"penalty": "interpretation", "strength": 0.1}, None, "wanted must be a list of 1 tensors"),
        ({"penalty": "interpretation", "strength": 0.1}, 2, "wanted must be a list of 1 tensors"),
        ({"penalty": "interpretation"}, 1, "wanted is given; no penalty of this recipe, at its strength, waits"),
        ({"penalty": "jacobian", "strength": 0.1}, 1, "wanted is given; no penalty"),
        ({"penalty": "interpretation", "strength": 0.1, "augmentation": "shift"}, 1, "augmentation is 'shift'"),
    ],
)
def test_maps_without_a_penalty_and_a_penalty_without_its_maps_are_refused(fields, wanted, sentence):
    x, y = examples(8)
    recipe = training.Recipe(step_size=0.1, batch_size=4, epochs=1, **fields)
    maps = None if wanted is None else [x] * wanted
    with pytest.raises(ValueError, match=sentence):
        training.fit([network()], x, y, recipe, generators=[cases.generator()], wanted=maps)


def test_adversarial_training_in_the_l2_ball_takes_the_loss_at_an_image_of_the_ball_where_it_is_larger():
    x, y = examples(12)
    net, seen = network(), []

    def losses(logits, labels):
        return F.cross_entropy(logits, labels, reduction="none")

    objective = training.ingredients.Objective(
        losses, lambda model, at, labels: seen.append(at) or at.flatten(1)[:, 0], 1
    )
    training.TRAINERS["adversarial_l2"](net, objective, x, y, 0.3, cases.generator())
    (at,) = seen
    assert (at - x).flatten(1).norm(dim=1).max() <= 0.3 + 1e-9
    assert 0 <= at.min() <= at.max() <= 1
    assert losses(net(at), y).sum() > losses(net(x), y).sum() + 0.01
