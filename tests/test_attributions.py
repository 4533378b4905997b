import copy
import math
import weakref
from functools import partial

import captum.attr
import cases
import pytest
import torch
from attrobust import attributions, models
from attrobust.attacks import Effort, Streams, auto, explain
from attrobust.balls import Ball
from attrobust.models import guards, readouts
from torch import nn


def smooth_grad(model, x, target):
    """SmoothGrad under common noise: the generator starts anew at every call."""
    return attributions.smooth_grad(model, x, target, sigma=0.1, samples=4, generator=cases.generator(5))


MAPS = {
    "saliency": attributions.saliency,
    "input_x_gradient": attributions.input_x_gradient,
    "integrated_gradients": partial(attributions.integrated_gradients, baseline=0.1, steps=6),
    "smooth_grad": smooth_grad,
}
NETWORKS = {"mlp": cases.mlp, "conv": cases.conv, "quadratic": cases.quadratic, "linear": cases.linear}
BENDING = [name for name in NETWORKS if name != "linear"]


@pytest.mark.parametrize("network", [*NETWORKS, "relu"])
def test_saliency_agrees_with_captum(network):
    model = cases.mlp(nn.ReLU()) if network == "relu" else NETWORKS[network]()
    x, y = cases.images(), cases.labels()
    theirs = captum.attr.Saliency(model).attribute(x.clone().requires_grad_(), target=y, abs=False)
    assert torch.allclose(attributions.saliency(model, x, y), theirs, rtol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_input_x_gradient_agrees_with_captum(network):
    model, x, y = NETWORKS[network](), cases.images(), cases.labels()
    theirs = captum.attr.InputXGradient(model).attribute(x.clone().requires_grad_(), target=y)
    assert torch.allclose(attributions.input_x_gradient(model, x, y), theirs, rtol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("steps", [2, 8])  # captum keeps its path in float32: exact for powers of two
def test_integrated_gradients_agree_with_captum(network, steps):
    model, x, y = NETWORKS[network](), cases.images(), cases.labels()
    theirs = captum.attr.IntegratedGradients(model).attribute(
        x, baselines=0.2, target=y, n_steps=steps, method="riemann_middle"
    )
    ours = attributions.integrated_gradients(model, x, y, baseline=0.2, steps=steps)
    assert torch.allclose(ours, theirs, rtol=1e-10)


def test_smooth_grad_approaches_captums_noise_tunnel():
    model, x, y = cases.mlp(), cases.images(1), cases.labels(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
        theirs = tunnel.attribute(
            x.requires_grad_(), nt_type="smoothgrad", nt_samples=4000, stdevs=0.5, target=y, abs=False
        )
    ours = attributions.smooth_grad(model, x, y, sigma=0.5, samples=4000, generator=cases.generator())
    plain = attributions.saliency(model, x, y)
    assert (ours - theirs).norm() < 0.25 * (plain - theirs).norm()
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_maps_of_a_linear_network_are_its_weights():
    model, x, y = cases.linear(), cases.images(), cases.labels()
    rows = model[1].weight[y].view_as(x)
    assert torch.allclose(attributions.saliency(model, x, y), rows)
    assert torch.allclose(attributions.input_x_gradient(model, x, y), x * rows)
    assert torch.allclose(attributions.integrated_gradients(model, x, y, baseline=0.3, steps=3), (x - 0.3) * rows)
    noisy = attributions.smooth_grad(model, x, y, sigma=3.0, samples=2, generator=cases.generator())
    assert torch.allclose(noisy, rows)


def test_maps_of_a_quadratic_are_known_in_closed_form():
    model, x, y = cases.quadratic(), cases.images(), cases.labels()
    a, b, flat = model.matrices[y], model.vectors[y], x.flatten(1)
    gradient = torch.einsum("nij,nj->ni", a, flat) + b
    halfway = torch.einsum("nij,nj->ni", a, flat / 2) + b
    assert torch.allclose(attributions.saliency(model, x, y).flatten(1), gradient)
    assert torch.allclose(attributions.integrated_gradients(model, x, y, steps=1).flatten(1), flat * halfway)
    draw = cases.generator(9)
    noise = sum(torch.randn(x.shape, generator=draw, dtype=x.dtype) for _ in range(5)).flatten(1) / 5
    noisy = attributions.smooth_grad(model, x, y, sigma=0.2, samples=5, generator=cases.generator(9))
    assert torch.allclose(noisy.flatten(1), gradient + 0.2 * torch.einsum("nij,nj->ni", a, noise))


@pytest.mark.parametrize("network", BENDING)
@pytest.mark.parametrize("name", MAPS)
def test_the_derivative_of_a_map_agrees_with_finite_differences(network, name):
    model, x, y = NETWORKS[network](), cases.images(), cases.labels()
    weights, direction = torch.randn(2, *x.shape, generator=cases.generator(1), dtype=x.dtype)

    def score(images):
        return (MAPS[name](model, images, y) * weights).sum()

    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(at), at)
    assert (gradient * direction).sum().item() == pytest.approx(cases.slope(score, x, direction).item(), rel=1e-7)


@pytest.mark.parametrize("name", MAPS)
def test_maps_of_a_batch_are_the_maps_of_its_images(name):
    model, x, y = cases.conv(), cases.images(), cases.labels()
    if name == "smooth_grad":
        model, whole = cases.linear(), None
    whole = MAPS[name](model, x, y)
    for i in range(len(x)):
        assert torch.allclose(whole[i : i + 1], MAPS[name](model, x[i : i + 1], y[i : i + 1]), rtol=1e-12)


NOISY = {
    "smooth": partial(attributions.smooth_grad, sigma=0.2, samples=3),
    "uniform": partial(attributions.uniform_grad, ball=Ball("linf", 0.2), samples=3),
}


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("name", NOISY)
def test_with_a_stream_for_each_image_its_map_does_not_depend_on_the_others(name, chunk):
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    streams = [cases.generator(i) for i in range(len(x))]
    whole = NOISY[name](model, x, y, generator=streams, chunk=chunk)
    for i in range(len(x)):
        alone = NOISY[name](model, x[i : i + 1], y[i : i + 1], generator=cases.generator(i))
        assert torch.allclose(whole[i : i + 1], alone, rtol=1e-10)
    assert not torch.allclose(whole, NOISY[name](model, x, y, generator=cases.generator(0)))
    with pytest.raises(ValueError, match=f"generator is a list of 1; it must hold one for each of the {len(x)} images"):
        NOISY[name](model, x, y, generator=streams[:1])
    with pytest.raises(ValueError, match="generator holds one stream twice; each image must have a stream of its own"):
        NOISY[name](model, x, y, generator=[cases.generator()] * len(x))


@pytest.mark.parametrize("name", NOISY)
def test_streams_of_each_image_are_drawn_again_for_the_gradient_of_a_map_made_in_chunks(name):
    model, x, y = cases.mlp(), cases.images().requires_grad_(), cases.labels()
    slopes = []
    for chunk in (None, 2):
        maps = NOISY[name](model, x, y, generator=[cases.generator(i) for i in range(len(x))], chunk=chunk)
        slopes.append(torch.autograd.grad(maps.square().sum(), x)[0])
    assert slopes[0].any()
    assert torch.allclose(*slopes, rtol=1e-9, atol=1e-12)


def test_a_map_that_draws_for_each_and_mixes_its_images_is_not_attacked():
    @attributions.draws_for_each
    def mixed(model, x, target, *, generator):
        maps = attributions.smooth_grad(model, x, target, sigma=0.1, samples=2, generator=generator)
        return maps + maps.mean(0)

    how = {"k": 2, "generator": cases.generator(), "effort": Effort(steps=1, restarts=1)}
    with pytest.raises(ValueError, match="attribution mixed"):
        auto(mixed, cases.mlp(), cases.images(), Ball("linf", 0.1), **how)


@pytest.mark.parametrize("together", [1, 10**6], ids=["one by one", "side by side"])
@pytest.mark.parametrize("name", NOISY)
def test_stochastic_maps_of_an_attack_are_those_of_each_image_under_its_own_stream(name, together, monkeypatch):
    monkeypatch.setattr("attrobust.attacks.streams.TOGETHER", together)
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    streams = Streams(x, generator=cases.generator())
    found = explain(NOISY[name], model, x, y, streams.common())
    expected = [NOISY[name](model, x[i : i + 1], y[i : i + 1], generator=streams(i, "judge")) for i in range(len(x))]
    assert torch.allclose(found, torch.cat(expected), rtol=1e-10)


def test_stochastic_maps_of_small_images_are_made_side_by_side_and_those_of_photographs_one_by_one():
    numbers = []

    @attributions.draws_for_each
    def counted(model, x, target, *, generator):
        numbers.append(len(x))
        return x

    for x, expected in ((torch.ones(300, 1, 8, 8), [256, 44]), (torch.ones(2, 3, 128, 128), [1, 1])):
        explain(counted, nn.Identity(), x, torch.zeros(len(x)).long(), [cases.generator()] * len(x))
        assert numbers == expected
        numbers.clear()


def test_smooth_grad_without_noise_is_saliency():
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    plain = attributions.saliency(model, x, y)
    errors = []
    for sigma in (1e-2, 1e-4, 0.0):
        noisy = attributions.smooth_grad(model, x, y, sigma=sigma, samples=3, generator=cases.generator())
        errors.append((noisy - plain).norm().item())
    assert errors[1] < errors[0] / 50
    assert errors[2] < 1e-14


def test_integrated_gradients_of_a_cube_are_those_of_the_midpoint_rule_to_the_last_digits():
    """The mean of a^2 over n midpoints of [0, 1] is 1/3 - 1/(12 n^2)."""
    cube, x = cases.Called(lambda x: x.flatten(1) ** 3), cases.images()[:, :1, :1, :1]
    maps = attributions.integrated_gradients(cube, x, torch.zeros(3, dtype=torch.long), steps=7)
    assert torch.allclose(maps, x**3 * (1 - 1 / (4 * 7**2)), rtol=1e-14, atol=0)


def test_integrated_gradients_sum_to_the_logit_difference_as_steps_grow():
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    whole = (model(x) - model(torch.full_like(x, 0.1))).gather(1, y[:, None])[:, 0]
    gaps = []
    for steps in (8, 16, 32):
        m = attributions.integrated_gradients(model, x, y, baseline=0.1, steps=steps)
        gaps.append((m.sum((1, 2, 3)) - whole).abs().max().item())
    # The midpoint rule errs with the square of the step.
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.05)
    assert gaps[1] / gaps[2] == pytest.approx(4, rel=0.05)


def test_pixelwise_drops_signs_and_sums_channels():
    m = torch.randn(3, 2, 4, 5, generator=cases.generator())
    assert torch.equal(attributions.pixelwise(m), m[:, 0].abs() + m[:, 1].abs())


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("training", [True, False])
def test_attribution_leaves_model_and_images_as_found(name, training):
    model, x, y = cases.conv().train(training), cases.images(), cases.labels()
    model[1].train(not training)
    flags, weights = [m.training for m in model.modules()], [p.clone() for p in model.parameters()]
    kept = x.clone()
    MAPS[name](model, x, y)
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert x.grad is None
    for p, before in zip(model.parameters(), weights, strict=True):
        assert p.grad is None
        assert p.requires_grad
        assert torch.equal(p, before)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


@pytest.mark.parametrize("name", MAPS)
def test_maps_can_be_drawn_without_gradient_mode_and_of_frozen_networks(name):
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    expected = MAPS[name](model, x, y)
    with torch.no_grad():
        assert torch.equal(MAPS[name](model, x, y), expected)
    assert torch.equal(MAPS[name](model.requires_grad_(False), x, y), expected)


def test_a_relu_networks_map_does_not_bend_but_its_twins_does():
    relu, x, y = cases.mlp(nn.ReLU()), cases.images(), cases.labels()
    for model, bends in ((relu, False), (models.smooth_twin(relu, x, beta=5.0), True)):
        at = x.clone().requires_grad_()
        m = attributions.saliency(model, at, y)
        (through,) = torch.autograd.grad(m.square().sum(), at, allow_unused=True, materialize_grads=True)
        assert bool(through.any()) == bends


@pytest.mark.parametrize("steps", [0, -1])
def test_integrated_gradients_need_a_step(steps):
    with pytest.raises(ValueError, match=f"steps is {steps}; it must be a whole number of at least 1"):
        attributions.integrated_gradients(cases.mlp(), cases.images(), cases.labels(), steps=steps)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sigma": -0.1}, "sigma is -0.1; it must be a finite number of at least 0"),
        ({"sigma": math.nan}, "sigma is nan; it must be a finite number of at least 0"),
        ({"samples": 0}, "samples is 0; it must be a whole number of at least 1"),
    ],
)
def test_smooth_grad_refuses_bad_noise(change, sentence):
    asked = {"sigma": 0.1, "samples": 2, "generator": cases.generator()} | change
    with pytest.raises(ValueError, match=sentence):
        attributions.smooth_grad(cases.mlp(), cases.images(), cases.labels(), **asked)


@pytest.mark.parametrize("readout", [readouts.logit, readouts.log_probability, lambda model, x, y: model(x)[:, 0]])
def test_logits_that_a_map_brings_along_are_those_of_the_model_and_the_map_stays_the_same(readout):
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    alone = attributions.saliency(model, x, y, readout=readout)
    found, logits = attributions.saliency(model, x, y, readout=readout, logits=True)
    assert torch.equal(found, alone)
    known = readout in readouts.OF_LOGITS
    assert torch.equal(logits, model(x)) if known else logits is None


AVERAGES = {
    "integrated": lambda n, m, x, y, **how: attributions.integrated_gradients(m, x, y, steps=n, **how),
    "smooth": lambda n, m, x, y, **how: attributions.smooth_grad(
        m, x, y, sigma=0.1, samples=n, generator=cases.generator(), **how
    ),
    "uniform": lambda n, m, x, y, **how: attributions.uniform_grad(
        m, x, y, ball=Ball("l2", 0.3), samples=n, generator=cases.generator(), **how
    ),
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_in_chunks_is_that_of_all_at_once_and_so_are_its_gradients(name, chunk):
    model, x, y = cases.conv(), cases.images(), cases.labels()
    found = []
    for how in ({}, {"chunk": chunk}):
        at = x.clone().requires_grad_()
        maps = AVERAGES[name](5, model, at, y, **how)
        found.append([maps, *torch.autograd.grad((maps * x).sum(), [at, *model.parameters()], allow_unused=True)])
    for whole, parts in zip(*found, strict=True):
        whole, parts = (torch.zeros(()) if part is None else part for part in (whole, parts))  # an unused bias
        assert torch.allclose(whole + 0 * parts, parts, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("steps", [4, 40])
def test_an_average_in_chunks_holds_the_graph_of_one_chunk_whatever_its_steps(name, steps):
    model, x, y, alive, seen = cases.conv(), cases.images(), cases.labels(), [], []

    def look(module, inputs, output):
        alive.append(weakref.ref(output))
        seen.append((len(output), sum(ref() is not None for ref in alive)))

    with model[1].register_forward_hook(look):
        guards.classifier(model, x, y)
        seen.clear()
        at = x.clone().requires_grad_()
        maps = AVERAGES[name](steps, model, at, y, chunk=2)
        maps.sum().backward()
    assert len(seen) == 2 * 2 * steps + 2  # and a look at what the maps depend on, chunk by chunk
    assert max(images for images, _ in seen) == 2 and max(held for _, held in seen) <= 2


def test_the_gradient_of_an_average_in_chunks_is_not_differentiated_in_silence():
    model, x, y = cases.mlp(), cases.images().requires_grad_(), cases.labels()
    maps = attributions.integrated_gradients(model, x, y, steps=3, chunk=2)
    (slope,) = torch.autograd.grad(maps.sum(), x, create_graph=True)
    with pytest.raises(ValueError, match="made in chunks cannot be differentiated once more"):
        torch.autograd.grad(slope.sum(), x)


def test_chunks_take_noise_from_the_generator_as_all_at_once_do():
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    draws = [cases.generator(3) for _ in range(2)]
    for draw, how in zip(draws, ({}, {"chunk": 2}), strict=True):
        attributions.smooth_grad(model, x, y, sigma=0.1, samples=4, generator=draw, **how).sum().backward()
    assert torch.equal(draws[0].get_state(), draws[1].get_state())


@pytest.mark.parametrize("shape", [(6,), (2, 8), (1, 2, 3, 2)])
def test_examples_of_any_shape_have_maps_of_that_shape(shape):
    dense = cases.isolated(nn.Linear)(math.prod(shape), 4)
    model = cases.filled(nn.Sequential(nn.Flatten(), dense, nn.Tanh()), 0)
    x, y = torch.rand(3, *shape, generator=cases.generator(), dtype=torch.float64), cases.labels()
    for name in ("integrated", "smooth"):
        assert AVERAGES[name](3, model, x, y).shape == x.shape
        assert torch.allclose(AVERAGES[name](3, model, x, y), AVERAGES[name](3, model, x, y, chunk=2))
    total = attributions.integrated_gradients(model, x, y, steps=400).flatten(1).sum(1)
    change = (model(x) - model(0 * x)).gather(1, y[:, None])[:, 0]
    assert torch.allclose(total, change, atol=1e-4)


@pytest.mark.parametrize("name", ["saliency", "integrated", "smooth"])
def test_maps_under_no_grad_hold_no_graph(name):
    make = AVERAGES.get(name, lambda n, m, x, y: attributions.saliency(m, x, y))
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    live = make(3, model, x, y)
    with torch.no_grad():
        dead = make(3, model, x, y)
    assert live.requires_grad and not dead.requires_grad and torch.equal(live, dead)


def test_chunks_hand_gradients_to_weights_that_the_network_hides_and_to_those_of_a_readout():
    net, x, y = cases.mlp(), cases.images(), cases.labels()

    class Hiding(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = [net]

        def forward(self, x):
            return self.hidden[0](x)

    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)

    def weighed(model, x, target):
        return model(x) @ weight

    for model, how, leaf in ((Hiding(), {}, net[1].weight), (net, {"readout": weighed}, weight)):
        found = []
        for chunk in (None, 2):
            maps = attributions.integrated_gradients(model, x, y, steps=3, chunk=chunk, **how)
            found.append(torch.autograd.grad(maps.square().sum(), leaf)[0])
        assert torch.allclose(*found) and found[0].any()


@cases.isolated
def test_chunks_know_the_weights_that_only_some_of_the_images_reach():
    class Route(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(cases.filled(nn.Linear(18, 4), seed=seed) for seed in range(3))

        def forward(self, x):
            h, out = x.flatten(1), x.new_zeros(len(x), 4)
            for i, expert in enumerate(self.experts):
                rows = (h.mean(1) > 0.5).long().eq(i).nonzero()[:, 0]
                out = out.index_put((rows,), torch.tanh(expert(h[rows])))
            return out

    model, dark = Route().eval(), cases.images(4) * 0.4
    x, y = torch.cat([dark, dark + 0.6]), torch.arange(8) % 4
    whole, parts = (
        torch.autograd.grad(
            attributions.integrated_gradients(model, x, y, steps=3, chunk=c).square().sum(),
            list(model.parameters()), allow_unused=True,
        )
        for c in (None, 2)
    )  # fmt: skip
    for one, other in zip(whole, parts, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_chunks_lose_no_more_of_half_precision_than_the_whole_does(dtype):
    net, y = cases.mlp(), cases.labels()
    x = cases.images().to(dtype)
    half = copy.deepcopy(net).to(dtype)
    exact = attributions.integrated_gradients(copy.deepcopy(half).double(), x.double(), y, steps=600)
    for chunk in (None, len(x)):
        at = x.clone().requires_grad_()
        maps = attributions.integrated_gradients(half, at, y, steps=600, chunk=chunk)
        assert maps.dtype == dtype
        assert (maps.double() - exact).norm() < 0.02 * exact.norm(), chunk
        assert torch.autograd.grad(maps.sum(), at)[0].dtype == dtype


def test_a_baseline_whose_gradient_is_wanted_is_refused_in_chunks(unchecked):
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    baseline = torch.zeros_like(x[:1]).requires_grad_()
    with pytest.raises(ValueError, match=r"baseline requires a gradient, .*; detach it"):
        attributions.integrated_gradients(model, x, y, steps=3, baseline=baseline, chunk=2)
    assert torch.equal(
        attributions.integrated_gradients(model, x, y, steps=3, baseline=baseline.detach(), chunk=len(x)),
        attributions.integrated_gradients(model, x, y, steps=3, baseline=0.0, chunk=len(x)),
    )
