"""Traces of chains from factors, against dense Hessians in float64; and what counts as a chain."""

import itertools

import cases
import pytest
import torch
from attrobust import curvature, models
from attrobust.curvature.chain import HELD, layers_of, walks
from torch import nn
from torch.nn import functional as F

LOSS = cases.per_example_cross_entropy


def crooked(logits, y):
    """A loss that is neither convex nor a sum over classes."""
    return logits.sin().prod(1) + (1 + y) * logits[:, 0] * logits[:, 1]


LOSSES = {"cross_entropy": LOSS, "squared": cases.half_squared, "crooked": crooked}


@cases.isolated
def dense(depth, activation, *, bias=True, seed=0):
    widths = [cases.PIXELS, 5, 4, 6, 3][: depth + 1]
    layers = [models.Standardize(0.4, 0.3), nn.Flatten()]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), activation]
    return cases.filled(nn.Sequential(*layers, nn.Linear(widths[-1], cases.CLASSES)), seed)


@cases.isolated
def deep(seed=0, activation=None):
    act = activation or nn.Softplus()
    layers = [nn.Conv2d(2, 3, 2, padding=1), act, nn.Conv2d(3, 3, 2, stride=2), act, nn.AvgPool2d(2), nn.Flatten()]
    return cases.filled(nn.Sequential(*layers, nn.Linear(3, 5), act, nn.Linear(5, cases.CLASSES)), seed)


def exact_trace(model, loss, x, y):
    return cases.parameter_hessian(model, loss, x, y).trace().item()


def estimate(model, loss, x, y, *, seed=0, **options):
    return curvature.trace(curvature.ParameterHessian(model, loss, x, y), generator=cases.generator(seed), **options)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("activation", [nn.GELU(), nn.Softplus(), nn.ReLU(), nn.Tanh()])
def test_the_trace_of_a_chain_of_dense_layers_is_exact(loss, depth, activation):
    model, x, y = dense(depth, activation, bias=depth != 2), cases.images(5), cases.labels(5)
    found = estimate(model, LOSSES[loss], x, y)
    assert found.value == pytest.approx(exact_trace(model, LOSSES[loss], x, y), rel=1e-9)
    assert found.error == 0
    assert estimate(model, LOSSES[loss], x, y, seed=1).value == found.value


def test_frozen_parameters_do_not_enter_the_trace():
    x, y = cases.images(4), cases.labels(4)
    for frozen in ("1.weight", "1.bias", "3.weight", "3.bias", "1."):
        model = cases.mlp()
        for name, p in model.named_parameters():
            p.requires_grad_(not name.startswith(frozen))
        diagonal = cases.parameter_hessian(model, LOSS, x, y).diagonal()
        counts = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in model.parameters()])
        assert estimate(model, LOSS, x, y).value == pytest.approx(diagonal[counts].sum().item(), rel=1e-9)


def test_a_convolution_right_below_the_last_bend_leaves_nothing_to_chance():
    model, x, y = cases.conv(), cases.images(5), cases.labels(5)
    found = estimate(model, LOSS, x, y)
    assert found.value == pytest.approx(exact_trace(model, LOSS, x, y), rel=1e-9)
    assert found.error == 0


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_trace_of_a_convolutional_chain_has_no_bias_and_an_honest_error(loss):
    model, x, y = deep(), cases.images(4), cases.labels(4)
    exact = exact_trace(model, LOSSES[loss], x, y)
    found = [estimate(model, LOSSES[loss], x, y, seed=s) for s in range(150)]
    values, errors = torch.tensor([[f.value, f.error] for f in found], dtype=torch.float64).T
    assert abs(values.mean() - exact) <= 4 * values.std() / len(values) ** 0.5
    assert errors.square().mean().sqrt().item() == pytest.approx(values.std().item(), rel=0.25)
    assert errors.min() > 0


def test_the_trace_lies_within_three_standard_errors_in_985_of_1000_cases():
    hits = 0
    for seed, n in ((0, 1), (1, 3), (2, 6), (3, 20)):
        model, x, y = deep(seed), cases.images(n, seed), cases.labels(n)
        exact = exact_trace(model, LOSS, x, y)
        hessian = curvature.ParameterHessian(model, LOSS, x, y)
        for draw in range(250):
            found = curvature.trace(hessian, generator=cases.generator(draw), products=6)
            hits += abs(found.value - exact) <= 3 * found.error
    assert hits >= 985


def test_more_products_leave_a_smaller_error():
    model, x, y = deep(), cases.images(150), cases.labels(150)
    few, many = (estimate(model, LOSS, x, y, products=p) for p in (20, 320))
    assert many.error < 0.5 * few.error


@pytest.mark.parametrize("make", [cases.conv, deep])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("block", ["", "0.", "0.weight", "0.bias", "3."])
def test_gauss_newton_from_factors_is_that_of_the_jacobians(make, loss, block):
    x, y = cases.images(5), cases.labels(5)
    model = make(activation=nn.ReLU())  # without second derivatives Hessian and Gauss-Newton agree
    block = "2." if (block == "3." and make is deep) else block
    names = [name for name, p in model.named_parameters() for _ in range(p.numel())]
    diagonal = cases.parameter_hessian(model, LOSSES[loss], x, y).diagonal()
    exact = sum(d.item() for name, d in zip(names, diagonal, strict=True) if name.startswith(block))
    matrix = curvature.GaussNewton(model, x, y, loss=LOSSES[loss])
    assert curvature.gauss_newton_trace(matrix, block=block).value == pytest.approx(exact, rel=1e-9, abs=1e-12)
    model.extra = nn.Parameter(torch.zeros(1, dtype=x.dtype))  # no chain any more
    assert layers_of(model, x) is None
    assert curvature.gauss_newton_trace(matrix, block=block).value == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_float32_agrees_with_float64_where_the_network_is_sure():
    model, x, y = cases.mlp(width=12), cases.images(20), cases.labels(20)
    with torch.no_grad():
        model[-1].weight *= 200
        y = model(x).argmax(1)
        assert model(x).softmax(1).amax(1).median() > 1 - 1e-6
    whole = estimate(model, LOSS, x, y).value
    assert estimate(model.float(), LOSS, x.float(), y).value == pytest.approx(whole, rel=1e-3)


# ------------------------------------------------------------------ what is a chain


class Skipping(nn.Module):
    """A chain but for one thing."""

    def __init__(self, how):
        super().__init__()
        self.layers, self.how = cases.mlp(), how

    def forward(self, x):
        if self.how == "a sum before":
            return self.layers(x + 0)
        h = self.layers[:3](x)
        if self.how == "a skip":
            h = h + self.layers[1](x.flatten(1))
        if self.how == "a function":
            h = F.relu(h)
        if self.how == "in place":
            h.mul_(2)
        z = self.layers[3:](h)
        return z if self.how != "a sum behind" else z.sum(1, keepdim=True)


@pytest.mark.parametrize("how", ["a sum before", "a skip", "a function", "in place", "a sum behind"])
def test_a_network_that_is_more_than_its_layers_is_no_chain(how):
    x = cases.images()
    assert layers_of(Skipping("nothing"), x) is not None
    with torch.no_grad():
        assert layers_of(Skipping(how), x) is None


@cases.isolated
def test_chains_are_seen_and_others_are_not():
    x = cases.images()
    yes = [cases.linear(), cases.mlp(), cases.conv(), deep(), cases.mlp(nn.ReLU(inplace=True))]
    tied = cases.mlp(width=cases.PIXELS)
    tied[3].weight = tied[1].weight
    grouped = cases.filled(nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten()), 0)
    normed = cases.filled(nn.Sequential(nn.Flatten(), nn.Linear(cases.PIXELS, 4), nn.LayerNorm(4)), 0)
    pooled = cases.filled(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 4)), 0)
    twin = models.smooth_twin(cases.mlp(nn.ReLU()), x, beta=5)
    for model in yes:
        assert layers_of(model, x) is not None
    for model in (tied, grouped, normed, pooled, twin, cases.quadratic()):
        assert layers_of(model, x) is None
    built = models.build("convnet", input_shape=(1, 8, 8), classes=3, seed=0, width=2).eval()
    assert layers_of(built, torch.rand(1, 1, 8, 8)) is not None


def test_every_activation_bends_as_its_second_derivative_says():
    x, y = cases.images(4), cases.labels(4)
    for activation in (nn.ReLU(inplace=True), nn.SiLU(), nn.ELU(), nn.Sigmoid(), nn.LeakyReLU(0.2), nn.Mish()):
        model = cases.mlp(activation)
        assert layers_of(model, x) is not None
        smooth = cases.mlp(nn.ReLU()) if isinstance(activation, nn.ReLU) else model
        assert estimate(model, LOSS, x, y).value == pytest.approx(exact_trace(smooth, LOSS, x, y), rel=1e-9)


def test_the_trace_of_any_other_network_is_multiplied():
    model, x, y = cases.quadratic(), cases.images(5), cases.labels(5)
    hessian = curvature.ParameterHessian(model, LOSS, x, y)
    found = curvature.trace(hessian, generator=cases.generator(), products=12)
    assert hessian.products == found.products == 12
    like = torch.empty(1, hessian.size, dtype=hessian.dtype)
    same, _ = curvature.moments(hessian.matvec, like, products=12, generator=cases.generator())
    assert found.value == same.value.item()


def test_a_trace_needs_no_gradient_graph_and_leaves_the_network_as_found():
    model, x, y = deep(), cases.images(4), cases.labels(4)
    hessian = curvature.ParameterHessian(model, LOSS, x, y)
    before = torch.get_rng_state()
    curvature.trace(hessian, generator=cases.generator())
    assert "_graphs" not in vars(hessian)
    assert all(not module._forward_hooks for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        again = curvature.trace(hessian, generator=cases.generator())
    assert again.value == curvature.trace(hessian, generator=cases.generator()).value
    with pytest.raises(ValueError, match="products is 5; it must be a whole number of at least 6"):
        curvature.trace(hessian, generator=cases.generator(), products=5)


class Remembering(nn.Module):
    """A chain that keeps what its first half says."""

    def __init__(self):
        super().__init__()
        net = cases.mlp()
        self.lower, self.upper = net[:3], net[3:]

    def forward(self, x):
        self.seen = self.lower(x)
        return self.upper(self.seen)


PENALTIES = {
    "weights": lambda m, held: lambda z: 0.25 * sum(p.square().sum() for p in m.parameters()),
    "held weights": lambda m, held: lambda z: 0.25 * sum(p.square().sum() for p in held),
    "one weight": lambda m, held: lambda z: held[-1][0] ** 2,
    "activations": lambda m, held: lambda z: m.seen[: len(z)].square().sum(1),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_loss_that_reads_more_than_the_logits_has_the_trace_of_its_products(name):
    model, x, y = Remembering(), cases.images(), cases.labels()
    assert layers_of(model, x) is not None
    extra = PENALTIES[name](model, list(model.parameters()))
    hessian = curvature.ParameterHessian(model, lambda z, t: LOSS(z, t) + extra(z), x, y)
    exact = hessian.matvec(torch.eye(hessian.size, dtype=x.dtype)).trace().item()
    assert exact != pytest.approx(estimate(model, LOSS, x, y).value, rel=1e-3)
    found = curvature.trace(hessian, generator=cases.generator(), products=3 * hessian.size)
    assert found.value == pytest.approx(exact, rel=1e-9)
    few = curvature.trace(hessian, generator=cases.generator())
    assert few.error > 0


def test_a_penalty_of_frozen_weights_leaves_the_trace_as_it_is():
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    model[1].requires_grad_(False)
    penalized = estimate(model, lambda z, t: LOSS(z, t) + model[1].weight.square().sum(), x, y)
    assert penalized.value == pytest.approx(estimate(model, LOSS, x, y).value, rel=1e-12)
    assert penalized.error == 0


def test_a_penalty_without_gradient_is_refused_as_sharpness_does():
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    hessian = curvature.ParameterHessian(
        model, lambda z, t: LOSS(z, t) + sum(p.detach().square().sum() for p in model.parameters()), x, y
    )
    for measure in (curvature.trace, curvature.sharpness):
        with pytest.raises(ValueError, match=r"loss changes with .* the path is cut"):
            measure(hessian, generator=cases.generator())


@cases.isolated
def test_activations_before_the_first_weights_bend_no_parameter():
    x, y = cases.images(4), cases.labels(4)
    for body in (cases.mlp, cases.conv, deep, cases.linear):
        for first in ([nn.Sigmoid()], [nn.Tanh(), nn.Identity(), nn.Softplus()]):
            model = nn.Sequential(*first, *body())
            found = estimate(model, LOSS, x, y, products=4000 if body is deep else 30)
            assert layers_of(model, x) is not None
            assert abs(found.value - exact_trace(model, LOSS, x, y)) <= 5 * found.error + 1e-9 * found.value
            assert (found.error == 0) == (body is not deep)


@cases.isolated
def equal(width):
    """Three layers of one width."""
    layers = [nn.Flatten(), nn.Linear(cases.PIXELS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, width)).double()


@pytest.mark.parametrize(("width", "most"), [(5, 512), (60, 512), (90, 244), (400, 64)])
def test_a_chunk_holds_two_million_numbers_with_the_ways_between_two_layers_and_64_to_512_examples(width, most):
    layers = layers_of(equal(width), cases.images(2))
    images, labels = torch.zeros(520, *cases.SHAPE, dtype=torch.float64), torch.arange(520)
    parts = [(len(links[0].leaving), y.tolist()) for links, y in walks(layers, images, labels)]
    assert [at for _, y in parts for at in y] == labels.tolist()
    assert [n for n, _ in parts][:-1] == [most] * (519 // most)
    single = cases.PIXELS + 5 * width + width**2
    assert most == min(512, max(64, HELD // single))
