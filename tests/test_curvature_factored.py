"""Traces of chains from factors, against dense Hessians in float64; and what counts as a chain."""

import itertools

import cases
import pytest
import torch
from attrobust import curvature, models
from attrobust.curvature import factored
from attrobust.curvature.chain import HELD, layers_of, walks
from attrobust.curvature.spectra import signs
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


# ------------------------------------------------------------------ the parts, written out by hand


def walked(model, n=4):
    x, y = cases.images(n), cases.labels(n)
    return next(walks(list(model), x, y))[0], x, y


def diagonal_loss(weights):
    return lambda logits, y: 0.5 * (logits.square() * weights.to(logits)).sum(1)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_and_signs_make_up_the_hessian_of_each_examples_loss_the_smallest_first(name):
    logits, y = 3 * cases.images(5).flatten(1)[:, : cases.CLASSES].requires_grad_(), cases.labels(5)
    slope, factor = factored.logit_factor(LOSSES[name], logits.float(), y)
    at = logits.detach().float().double()
    whole = sum(sign[:, None, None] * rows[:, :, None] * rows[:, None] for rows, sign in factor)
    for i, row in enumerate(at):
        gradient, hessian = (
            way(lambda z, i=i: LOSSES[name](z[None], y[i : i + 1])[0], row)
            for way in (torch.autograd.functional.jacobian, torch.autograd.functional.hessian)
        )
        assert torch.allclose(slope[i], gradient, rtol=1e-10, atol=1e-12)
        assert torch.allclose(whole[i], hessian, rtol=1e-9, atol=1e-11)
    values = torch.stack([sign * rows.square().sum(1) for rows, sign in factor])
    assert (values.diff(dim=0) >= -1e-12).all()
    assert not slope.requires_grad
    assert not whole.requires_grad


def test_rows_are_left_out_below_a_hundredth_of_the_rounding_and_a_constant_loss_has_none():
    logits = torch.ones(2, 4)
    for size in (1.0, 100.0):
        weights = size * torch.tensor([1.0, 1.05e-14, 0.95e-14, 0.0], dtype=torch.float64)
        _, factor = factored.logit_factor(diagonal_loss(weights), logits, cases.labels(2))
        assert [float(rows.abs().max()) ** 2 / size for rows, _ in factor] == pytest.approx([1.05e-14, 1.0], rel=1e-6)
    # One example is enough.
    uneven = torch.tensor([[0.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    slope, factor = factored.logit_factor(diagonal_loss(uneven), logits[:, :2], cases.labels(2))
    assert len(factor) == 1
    assert torch.equal(slope, uneven)
    slope, factor = factored.logit_factor(lambda z, y: torch.ones(len(z)), logits, cases.labels(2))
    assert factor == []
    assert not slope.any()
    slope, factor = factored.logit_factor(lambda z, y: z.sum(1), logits, cases.labels(2))
    assert factor == []
    assert torch.equal(slope, torch.ones(2, 4, dtype=torch.float64))


@pytest.mark.parametrize("largest", [0.5, 40.0])
def test_a_loss_is_audited_at_logits_of_size_one_at_most_and_with_targets_in_double_precision(largest):
    logits, seen = torch.linspace(-1, 1, 24).view(6, 4), []
    logits = largest * logits / logits.abs().max()

    def loss(z, y):
        seen.append((z.detach().clone(), y))
        return (z - y).square().sum(1)

    factored.audit_loss(loss, logits, torch.zeros(6, 4))
    assert torch.allclose(seen[0][0], 1.01 * logits[:4].double() / max(1.0, largest), rtol=1e-6)
    assert {(len(z), len(y), z.dtype, y.dtype) for z, y in seen} == {
        (n, n, torch.float64, torch.float64) for n in (1, 4)
    }
    factored.audit_loss(lambda z, y: seen.append(y) or z.sum(1), logits, torch.zeros(6, dtype=torch.long))
    assert seen[-1].dtype == torch.long


@pytest.mark.parametrize(("n", "probes", "least"), [(4, 1, 33), (1, 3, 129), (200, 1, 2), (200, 7, 7), (63, 2, 4)])
def test_probes_go_where_the_loss_is_steep_and_give_mean_and_variance_of_each_example(n, probes, least, monkeypatch):
    slope = torch.rand(n, 4, generator=cases.generator(), dtype=torch.float64)
    slope[0] = 0
    steep, asked = slope.norm(dim=1), []
    remainder = factored.Remainder(walked(cases.conv(), n)[0], slope, set())
    draw = cases.generator(1)

    def probe(rows, generator):
        asked.append(rows)
        return rows + torch.rand(len(rows), generator=draw, dtype=torch.float64)

    monkeypatch.setattr(remainder, "_probe", probe)
    mean, variance = remainder.sampled(probes=probes, generator=cases.generator())
    total = float(steep.sum()) or 1.0
    counts = [2 + int((least - 2) * n * float(s) / total) for s in steep]
    rows = torch.cat(asked)
    draw = cases.generator(1)
    found = torch.cat([part + torch.rand(len(part), generator=draw, dtype=torch.float64) for part in asked])
    assert torch.bincount(rows, minlength=n).tolist() == counts
    assert max(map(len, asked)) <= factored.ROWS
    assert all(len(part) == factored.ROWS for part in asked[:-1])
    for i in range(n):
        own = found[rows == i]
        assert mean[i].item() == pytest.approx(own.mean().item(), rel=1e-10)
        assert variance[i].item() == pytest.approx(own.var(correction=1).item() / len(own), rel=1e-9)


@cases.isolated
def crossed(*between):
    """A convolution, something between, and two more layers."""
    layers = [nn.Conv2d(2, 3, 2, padding=1), *between, nn.Flatten(), nn.Linear(3 * 16, 5), nn.Tanh()]
    return cases.filled(nn.Sequential(*layers, nn.Linear(5, cases.CLASSES)), 0)


CROSSED = {
    "no bend": [],
    "one": [nn.Softplus()],
    "two": [nn.Softplus(), nn.Tanh()],
    "one behind a plain layer": [nn.Dropout(), nn.Softplus(), nn.Identity(), nn.Sigmoid()],
}


@pytest.mark.parametrize("name", CROSSED)
def test_a_probe_is_the_second_derivative_along_a_change_of_the_weights_less_what_is_exact(name):
    model = crossed(*CROSSED[name])
    links, x, y = walked(model)
    slope, _ = factored.logit_factor(LOSS, links[-1].leaving, y)
    remainder = factored.Remainder(links, slope, set(model[:1].parameters()))
    rows = torch.tensor([2, 0, 0, 3])
    found = remainder._probe(rows, cases.generator(5))
    patches = torch.cat([F.unfold(x, 2, padding=1), torch.ones(4, 1, 16, dtype=x.dtype)], 1)[rows]
    e = signs((4, 3, 9), patches, cases.generator(5))
    v = (e @ patches).unflatten(2, (4, 4))
    here = list(itertools.takewhile(lambda a: type(a) in (nn.Softplus, nn.Tanh), model[1:]))
    start = links[0].leaving.detach()[rows]
    whole_back = torch.autograd.grad(links[-1].leaving, links[len(here)].leaving, slope)[0]
    back = whole_back[rows]

    def twice(function, i):
        def along(t):
            return function(start[i : i + 1] + t * v[i : i + 1], i)

        return torch.func.grad(torch.func.grad(along))(torch.zeros((), dtype=x.dtype)).item()

    for i in range(len(rows)):
        whole = twice(lambda h, i: (model[1:](h) * slope[rows[i]]).sum(), i)
        exact = twice(lambda h, i: (nn.Sequential(*here)(h) * back[i]).sum(), i) if here else 0.0
        assert found[i].item() == pytest.approx(whole - exact, rel=1e-8, abs=1e-12)
    assert remainder.random
    # What is exact: the same for every patch and unit by itself.
    lengths = torch.cat([F.unfold(x, 2, padding=1), torch.ones(4, 1, 16, dtype=x.dtype)], 1).square().sum(1)

    def bends(h):
        return torch.func.vmap(torch.func.grad(torch.func.grad(lambda z: nn.Sequential(*here)(z))))(h.flatten())

    whole_start = links[0].leaving.detach()
    exact = (bends(whole_start).view_as(whole_back) * whole_back).sum(1).flatten(1) * lengths if here else 0 * lengths
    assert torch.allclose(remainder.exact(), exact.sum(1), rtol=1e-9, atol=1e-12)


PLAIN_BETWEEN = {
    "nothing": lambda: [nn.Linear(18, 5), nn.Softplus(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4)],
    "identities": lambda: [nn.Linear(18, 5), nn.Identity(), nn.Softplus(), nn.Dropout(), nn.Linear(5, 4), nn.Identity(),
                           nn.Tanh(), nn.Identity(), nn.Linear(4, 4), nn.Identity()],
    "two bends": lambda: [nn.Linear(18, 5), nn.Softplus(), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid(), nn.Tanh(),
                          nn.Linear(4, 4), nn.Tanh()],
    "no bend between": lambda: [nn.Linear(18, 5), nn.Linear(5, 6), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4)],
    "a bend at the end": lambda: [nn.Linear(18, 5), nn.Linear(5, 6), nn.Identity(), nn.Tanh()],
}  # fmt: skip


@pytest.mark.parametrize("asked", ["", "1.", "1.weight", "1.bias"])
@pytest.mark.parametrize("name", PLAIN_BETWEEN)
def test_the_remainder_of_dense_layers_is_the_hessian_less_gauss_newtons_matrix(name, asked):
    model = cases.filled(nn.Sequential(nn.Flatten(), *cases.isolated(PLAIN_BETWEEN[name])()), 0)
    links, x, y = walked(model)
    parts = {p for n, p in model.named_parameters() if n.startswith(asked)}
    slope, factor = factored.logit_factor(LOSS, links[-1].leaving, y)
    remainder, outer = factored.Remainder(links, slope, parts), factored.gauss_newton(links, factor, parts)
    inside = torch.cat([torch.full((p.numel(),), p in parts) for p in model.parameters()])
    for i in range(len(x)):
        dense = cases.parameter_hessian(model, LOSS, x[i : i + 1], y[i : i + 1]).diagonal()[inside].sum().item()
        assert (remainder.exact() + outer)[i].item() == pytest.approx(dense, rel=1e-9)
    matrix = curvature.GaussNewton(model, x, y, loss=LOSS)
    assert outer.mean().item() == pytest.approx(curvature.gauss_newton_trace(matrix, block=asked).value, rel=1e-9)
    assert not remainder.random


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 7, 6)])
@pytest.mark.parametrize("asked", [("weight", "bias"), ("weight",), ("bias",)])
def test_the_length_of_a_convolutions_gradient_is_that_of_autograd(shape, asked):
    layer = cases.filled(cases.isolated(nn.Conv2d)(2, 3, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(1, 2)), 0)
    x = cases.images(3, shape=shape)
    (link,) = next(walks([layer], x, cases.labels()))[0]
    parts = [getattr(layer, name) for name in asked]
    meets = factored._Meets.of(link, set(parts))
    entries = 12 * ("weight" in asked) + ("bias" in asked)
    assert (meets.gram is None) == (link.leaving[0, 0].numel() >= entries)
    delta = torch.randn(link.leaving.shape, generator=cases.generator(), dtype=x.dtype)
    found = meets.gradient_norm(delta)
    for i in range(3):
        grads = torch.autograd.grad((layer(x[i : i + 1]) * delta[i]).sum(), parts)
        assert found[i].item() == pytest.approx(sum(g.square().sum().item() for g in grads), rel=1e-10)
    assert torch.allclose(meets.size.flatten(1), meets.patches.square().sum(1))


@cases.isolated
def test_a_chain_without_bends_has_no_remainder():
    straight = [nn.Conv2d(2, 3, 2), nn.Identity(), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, cases.CLASSES)]
    for model in (cases.linear(), cases.filled(nn.Sequential(*straight), 0)):
        links, x, y = walked(model)
        slope, _ = factored.logit_factor(LOSS, links[-1].leaving, y)
        remainder = factored.Remainder(links, slope, set(model.parameters()))
        assert not remainder.random
        assert remainder.exact().tolist() == [0.0] * len(x)
        assert all(after == [] == here for _, _, after, here in remainder.layers)
