"""DeepLIFT, layer-wise relevance, guided backpropagation, and the averaged gradient beside SmoothGrad."""

import itertools
import math
from functools import partial

import captum.attr
import cases
import pytest
import torch
from attrobust import attributions, models
from attrobust.attributions.rerun import ACTIVATIONS
from attrobust.balls import Ball
from attrobust.models import guards
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule
from torch import nn
from torch.nn import functional as F

quiet = pytest.mark.filterwarnings("ignore:Input Tensor|Setting")  # captum announces its hooks

RULES = {
    "deep_lift": partial(attributions.deep_lift, baseline=0.1),
    "lrp": partial(attributions.lrp, epsilon=0.0),
    "lrp_damped": partial(attributions.lrp, epsilon=0.1),
    "z_plus": partial(attributions.lrp, rule="z_plus"),
    "guided_backprop": attributions.guided_backprop,
}


class Residual(nn.Module):
    """Functional activation, a sum in place, an average pool and a shift of the pixels; no module says so."""

    def __init__(self, activation=F.gelu):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(2, 3, 2), nn.Conv2d(3, 3, 1), nn.Linear(3, cases.CLASSES)
        self.activation = activation

    def forward(self, x):
        h = self.activation(self.first((x - 0.4) / 0.3))
        inner = self.second(h)
        inner += h
        return self.last(F.avg_pool2d(self.activation(inner), 2).flatten(1))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(cases.PIXELS, 8), nn.Linear(8, cases.CLASSES)

    def forward(self, x):
        h = self.first(x.flatten(1))
        h.relu_()
        return self.second(h)


@cases.isolated
def residual(activation=F.gelu):
    return cases.filled(Residual(activation), 1)


@cases.isolated
def pooled(activation=nn.GELU, *, bias=True):
    layers = [nn.Conv2d(2, 4, 2, padding=1, bias=bias), activation(), nn.MaxPool2d(2), nn.Flatten()]
    return cases.filled(nn.Sequential(*layers, nn.Linear(16, cases.CLASSES, bias=bias)), 2)


@cases.isolated
def plain(activation=nn.ReLU, *, bias=True):
    """One module for each call, as captum wants it."""
    layers = [nn.Conv2d(2, 4, 2, bias=bias), activation(), nn.Flatten(), nn.Linear(16, 7, bias=bias), activation()]
    return cases.filled(nn.Sequential(*layers, nn.Linear(7, cases.CLASSES, bias=bias)), 3)


SMOOTH = {"mlp": cases.mlp, "conv": cases.conv, "residual": residual, "pooled": pooled}
BENT = {
    "plain": plain,
    "pooled": partial(pooled, nn.ReLU),
    "residual": partial(residual, F.relu),
    "leaky": partial(residual, F.leaky_relu),
    "capped": partial(plain, nn.ReLU6),
}
#: A tighter range than the activations' own kinks leave: the pixels stay positive.
X, Y = cases.images(4), cases.labels(4)


def totals(maps):
    return maps.sum((1, 2, 3))


def chosen(model, x=X):
    return model(x).gather(1, Y[:, None])[:, 0]


# ------------------------------------------------------------------ values: captum, closed forms, sums


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Softplus, nn.Tanh, nn.ELU, nn.LeakyReLU])
@quiet
def test_deep_lift_agrees_with_captum(activation):
    model = plain(activation)
    theirs = captum.attr.DeepLift(model, eps=1e-12).attribute(X.clone().requires_grad_(), 0 * X + 0.1, target=Y)
    assert torch.allclose(attributions.deep_lift(model, X, Y, baseline=0.1), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU])
@quiet
def test_deep_lift_through_a_max_pool_agrees_with_captum(activation):
    """Captum is not complete where an activation comes before; it answers for what is behind, the rest by hand."""
    model = pooled(activation)
    here, there = model[0](X).detach(), model[0](0 * X + 0.1).detach()
    after, before = model[1](here), model[1](there)
    behind = captum.attr.DeepLift(model[2:]).attribute(after.clone().requires_grad_(), before, target=Y)
    apart = (after - before).abs() > 1e-12
    secants = torch.where(apart, behind / torch.where(apart, here - there, 1), 0)
    multipliers = F.conv_transpose2d(secants, model[0].weight, padding=1)
    ours = attributions.deep_lift(model, X, Y, baseline=0.1)
    assert torch.allclose(ours, (X - 0.1) * multipliers, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("digits", range(4, 50, 3))
def test_a_secant_and_its_derivative_are_right_at_every_gap(digits):
    """(tanh h - tanh h0) / gap = sinh(gap) / (gap cosh h cosh h0), a form in which nothing cancels."""
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    gap = 2.0**-digits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.ndim == 2 else 0.0)
    x = torch.tensor([0.75, 0.25 + gap], dtype=torch.float64).view(1, 1, 1, 2).requires_grad_()
    share = attributions.deep_lift(model, x, torch.tensor([0]), baseline=0.5)[0, 0, 0, 0]  # (x - 1/2) times the secant
    (slope,) = torch.autograd.grad(share, x)
    secant = math.sinh(gap) / gap / (math.cosh(1 + gap) * math.cosh(1))
    bend = secant * (gap / 3 - gap**3 / 45 - math.tanh(1 + gap))
    assert share.item() == pytest.approx(secant / 4, rel=2e-9)
    assert slope[0, 0, 0, 0].item() == pytest.approx(secant + bend / 4, rel=1e-4)


@pytest.mark.parametrize("network", [*SMOOTH.values(), *BENT.values()])
@pytest.mark.parametrize("baseline", [0.0, 0.3])
def test_deep_lift_sums_to_the_change_of_the_logit(network, baseline):
    model = network()
    change = chosen(model) - chosen(model, torch.full_like(X, baseline))
    maps = attributions.deep_lift(model, X, Y, baseline=baseline)
    assert torch.allclose(totals(maps), change, rtol=1e-12, atol=1e-12)
    short = attributions.deep_lift(model.float(), X.float(), Y, baseline=baseline)
    assert torch.allclose(totals(short).double(), change, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [*SMOOTH.values(), *BENT.values()])
@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e-8, 1e-5, 1e-3])
def test_deep_lift_near_its_baseline_is_the_gradient_times_the_way(network, distance):
    model = network()
    x = torch.full_like(X, 0.4) + distance * (X - 0.5)
    gradient = attributions.saliency(model, torch.full_like(X, 0.4), Y)
    maps = attributions.deep_lift(model, x, Y, baseline=0.4)
    assert torch.isfinite(maps).all()
    assert torch.allclose(maps, (x - 0.4) * gradient, rtol=0, atol=10 * distance**2 + 1e-15)


@cases.isolated
def one_unit(pixels, *units):
    layers = [nn.Linear(pixels, units[0], bias=False), *[nn.Linear(units[0], n, bias=False) for n in units[1:]]]
    return [layer.double() for layer in layers]


def test_deep_lift_of_one_activation_is_known_in_closed_form():
    weight = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    (layer,) = one_unit(3, 1)
    layer.weight.data = weight
    model = nn.Sequential(nn.Flatten(), layer, nn.Tanh())
    x = torch.tensor([0.9, 0.2, 0.4], dtype=torch.float64).view(1, 1, 1, 3)
    h = (weight * x.flatten()).sum()
    shares = weight * x.flatten() * h.tanh() / h
    assert torch.allclose(attributions.deep_lift(model, x, torch.tensor([0])).flatten(), shares.flatten())


@pytest.mark.parametrize(
    "name", sorted(ACTIVATIONS - {"prelu", "rrelu", "threshold", "clamp", "clamp_min", "clamp_max"})
)
def test_every_activation_on_the_list_is_elementwise_and_keeps_deep_lift_complete(name):
    if name == "clip":
        activation = partial(torch.clip, min=-0.1, max=0.2)
    else:
        activation = getattr(F, name.replace("log_s", "logs"), None) or getattr(torch, name)
    h = torch.randn(5, 7, generator=cases.generator(), dtype=torch.float64)
    assert torch.allclose(activation(h)[:2, 3:], activation(h[:2, 3:].clone()), rtol=1e-14)
    model = residual(activation)
    change = chosen(model) - chosen(model, torch.zeros_like(X))
    assert torch.allclose(totals(attributions.deep_lift(model, X, Y)), change, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "activation",
    [
        nn.PReLU(init=0.3).double(),
        nn.Threshold(0.05, -0.2),
        lambda h: h.clamp(-0.1, 0.3),
        lambda h: torch.clamp_min(h, 0.02),
        lambda h: h.clamp_max(0.1),
        lambda h: F.relu(input=h),
        lambda h: h.tanh(),
        nn.Hardtanh(inplace=True),
    ],
)
def test_arguments_of_an_activation_are_kept(activation):
    model = residual(activation)
    change = chosen(model) - chosen(model, torch.zeros_like(X))
    assert torch.allclose(totals(attributions.deep_lift(model, X, Y)), change, rtol=1e-10, atol=1e-12)


class Functional(nn.Module):
    """Convolution, tanh, whatever pools, and the mean over places of what is left."""

    def __init__(self, pool):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, cases.CLASSES, 2, padding=1), pool

    def forward(self, x):
        return self.pool(self.conv(x).tanh()).flatten(2).mean(2)


POOLINGS = {
    "overlapping": nn.MaxPool2d(3, stride=1),
    "padded": lambda h: F.max_pool2d(h, 3, stride=2, padding=1, ceil_mode=True),
    "dilated": lambda h: F.max_pool2d(input=h, kernel_size=2, dilation=2),
    "adaptive": nn.AdaptiveMaxPool2d(3),
    "adaptive function": lambda h: F.adaptive_max_pool2d(h, (2, 1)),
    "method": lambda h: torch.max_pool2d(h, 2, 1),
    "lines": lambda h: F.max_pool1d(h.flatten(2), 3),
    "volumes": lambda h: F.max_pool3d(h[:, :, None], (1, 2, 2)),
}


@pytest.mark.parametrize("pool", POOLINGS)
def test_every_max_pool_is_complete_under_deep_lift_and_a_gradient_under_the_others(pool):
    with torch.random.fork_rng(devices=[]):
        model = cases.filled(Functional(POOLINGS[pool]), 0)
    change = chosen(model) - chosen(model, torch.full_like(X, 0.2))
    assert torch.allclose(totals(attributions.deep_lift(model, X, Y, baseline=0.2)), change)
    with torch.no_grad():
        model.conv.bias.zero_()
    assert torch.allclose(totals(attributions.lrp(model, X, Y, epsilon=0.0)), chosen(model))
    # The signal at the tanh is the mean's, everywhere positive: nothing for guided backpropagation to cut.
    assert torch.allclose(attributions.guided_backprop(model, X, Y), attributions.saliency(model, X, Y))


def test_where_nothing_moved_a_max_pool_has_its_derivative():
    """Two pixels rise together, their difference stays: a multiplier of 0 would hide that each of them counts."""
    model = nn.Sequential(nn.MaxPool2d(1), nn.Flatten())
    difference = torch.tensor([[[[1.0, -1.0]]]], dtype=torch.float64)
    pair = Between(lambda x: model(F.conv2d(x, difference)))
    x = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    shares = attributions.deep_lift(pair, x, torch.tensor([0]), baseline=0.25)
    assert shares.flatten().tolist() == [0.25, -0.25]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("network", [plain, pooled])
@pytest.mark.parametrize("epsilon", [1e-9, 0.1])
@quiet
def test_lrp_with_epsilon_agrees_with_captum(network, epsilon, bias):
    if network is pooled and epsilon > 1e-3:
        pytest.skip("captum damps at the max-pool too")
    ours = attributions.lrp(network(nn.ReLU, bias=bias), X, Y, epsilon=epsilon)
    model = network(nn.ReLU, bias=bias)
    for layer in model:
        if not isinstance(layer, nn.ReLU):
            layer.rule = EpsilonRule(1e-30 if isinstance(layer, nn.Flatten) else epsilon)
    theirs = captum.attr.LRP(model).attribute(X.clone().requires_grad_(), target=Y)
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("network", [plain, pooled])
@quiet
def test_lrp_with_z_plus_agrees_with_captum(network, bias):
    ours = attributions.lrp(network(nn.ReLU, bias=bias), X, Y, rule="z_plus", epsilon=1e-9)
    model = network(nn.ReLU, bias=bias)
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.rule = Alpha1_Beta0_Rule(set_bias_to_zero=True)
        elif not isinstance(layer, nn.ReLU):
            layer.rule = EpsilonRule(1e-12)
    theirs = captum.attr.LRP(model).attribute(X.clone().requires_grad_(), target=Y)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("network", [*BENT.values(), partial(plain, bias=False)])
def test_lrp_without_epsilon_is_input_times_gradient_on_a_relu_network(network):
    model = network()
    if isinstance(model, nn.Sequential) and isinstance(model[1], nn.ReLU6):
        pytest.skip("ReLU6 is not positively homogeneous")
    expected = attributions.input_x_gradient(model, X, Y)
    errors = [(attributions.lrp(model, X, Y, epsilon=e) - expected).abs().max() for e in (1e-2, 1e-6, 0.0)]
    assert errors[0] > 100 * errors[1] > 0
    assert errors[2] < 1e-12


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU])
@pytest.mark.parametrize("network", [plain, pooled])
def test_relevance_is_conserved_where_nothing_adds_a_constant(network, activation):
    model = network(activation, bias=False)
    assert torch.allclose(totals(attributions.lrp(model, X, Y, epsilon=0.0)), chosen(model))


def lively(model):
    """Every feature has a weight above 0 from something positive, so none is left without a share to hand on."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.abs() * torch.where(torch.arange(p.numel()).view(p.shape) % 3 == 2, -0.2, 1.0))
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh, nn.Softplus])
@pytest.mark.parametrize("network", [plain, pooled])
def test_z_plus_conserves_relevance_past_biases_and_epsilon_does_not(network, activation, bias):
    model = lively(network(activation, bias=bias))
    ours = attributions.lrp(model, X, Y, rule="z_plus", epsilon=0.0)
    assert torch.allclose(totals(ours), chosen(model))
    lost = (totals(attributions.lrp(model, X, Y, epsilon=0.0)) - chosen(model)).abs().max()
    assert (lost > 1e-2) == (bias or activation is nn.Softplus)


def test_relevance_of_a_feature_without_positive_contributions_is_lost():
    model = cases.linear()
    with torch.no_grad():
        model[1].weight[2] = -model[1].weight[2].abs()
    assert not attributions.lrp(model, X, Y, rule="z_plus")[2].any()


def test_epsilon_takes_relevance_away_and_the_more_the_larger():
    model = plain(bias=False)
    kept = [attributions.lrp(model, X, Y, epsilon=e).abs().sum().item() for e in (0.0, 1e-3, 1e-1, 10.0)]
    assert kept == sorted(kept, reverse=True)
    assert kept[3] < kept[0] / 10


def test_z_plus_shares_are_positive_and_follow_the_equation():
    model = cases.linear()
    with torch.no_grad():
        model[1].weight[1] = model[1].weight[1].abs()
    x = X[:1].clone()
    x[0, 0, 0] = -x[0, 0, 0]  # a standardised pixel may be negative
    for target in range(cases.CLASSES):
        weight, logit = model[1].weight[target], model(x)[0, target]
        positive = (weight * x.flatten()).clamp_min(0)
        ours = attributions.lrp(model, x, torch.tensor([target]), rule="z_plus", epsilon=0.0).flatten()
        assert torch.allclose(ours, positive / positive.sum() * logit)


def test_batch_norm_is_a_linear_layer_for_epsilon_and_must_be_folded_for_z_plus():
    with torch.random.fork_rng(devices=[]):
        conv, norm, head = nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d(3), nn.Linear(12, cases.CLASSES)
    model = cases.filled(nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), head), 4)
    norm.running_mean, norm.running_var = torch.randn(2, 3, generator=cases.generator()).double().abs()
    folded = nn.Sequential(torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm), *model[2:])
    for name in ("deep_lift", "lrp", "lrp_damped", "guided_backprop"):
        assert torch.allclose(RULES[name](model, X, Y), RULES[name](folded, X, Y), atol=1e-10)
    with pytest.raises(ValueError, match="model runs batch_norm, for which lrp with rule='z_plus' has no rule"):
        RULES["z_plus"](model, X, Y)
    lively(folded)
    assert torch.allclose(totals(RULES["z_plus"](folded, X, Y)), chosen(folded), rtol=1e-4)


@pytest.mark.parametrize("network", [plain, partial(pooled, nn.ReLU)])
@quiet
def test_guided_backprop_agrees_with_captum(network):
    theirs = captum.attr.GuidedBackprop(network()).attribute(X.clone().requires_grad_(), target=Y)
    assert torch.allclose(attributions.guided_backprop(network(), X, Y), theirs, rtol=1e-12)


def test_guided_backprop_of_a_smooth_network_is_its_equation():
    model = cases.mlp(nn.Softplus())
    hidden = [model[1](X.flatten(1))]
    hidden.append(model[3](F.softplus(hidden[0])))
    signal = model[5].weight[Y]
    for h, layer in ((hidden[1], model[3]), (hidden[0], model[1])):
        signal = (signal.clamp_min(0) * h.sigmoid()) @ layer.weight
    assert torch.allclose(attributions.guided_backprop(model, X, Y), signal.view_as(X))


# ------------------------------------------------------------------ however the network calls it


def modules_of(model):
    """The same two dense layers with an ordinary module between."""
    return nn.Sequential(nn.Flatten(), model.first, nn.ReLU(), model.second)


@pytest.mark.parametrize("name", RULES)
def test_an_in_place_relu_gives_the_map_of_an_ordinary_one(name):
    with torch.random.fork_rng(devices=[]):
        model = cases.filled(InPlace(), 5)
    assert torch.allclose(RULES[name](model, X, Y), RULES[name](modules_of(model), X, Y))
    again = nn.Sequential(nn.Flatten(), model.first, nn.ReLU(inplace=True), model.second)
    assert torch.allclose(RULES[name](again, X, Y), RULES[name](modules_of(model), X, Y))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("call", [F.relu, torch.relu, torch.Tensor.relu, lambda h: h.clamp(min=0), F.relu_])
def test_a_hidden_functional_relu_gives_the_map_of_a_module(name, call):
    assert torch.allclose(RULES[name](residual(call), X, Y), RULES[name](residual(nn.ReLU()), X, Y))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("network", [plain, partial(residual, F.relu), partial(pooled, nn.ReLU)])
def test_the_map_of_a_twin_tends_to_that_of_its_relu_network(name, network):
    relu = network()
    errors = []
    for beta in (10.0, 1000.0, 1e6):
        twin = models.smooth_twin(relu, X, beta=beta)
        errors.append((RULES[name](twin, X, Y) - RULES[name](relu, X, Y)).norm().item())
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-3 * RULES[name](relu, X, Y).norm().item()


class Between(cases.Called):
    """A function in the place of a network."""


@pytest.mark.parametrize("name", RULES)
def test_an_activation_of_a_constant_is_a_constant(name):
    inner, scale = cases.conv().requires_grad_(False), torch.tensor(0.7, dtype=torch.float64)
    scaled, plainly = Between(lambda x: inner(x) * F.softplus(scale)), Between(lambda x: inner(x) * 1.1031860488854579)
    assert torch.allclose(RULES[name](scaled, X, Y), RULES[name](plainly, X, Y))


@pytest.mark.parametrize("name", ["lrp", "guided_backprop"])
def test_a_network_that_is_not_a_number_elsewhere_is_refused(name):
    with pytest.raises(ValueError, match="has no rule"):
        RULES[name](Between(lambda x: (0.5 - x).log().flatten(1)), 0.5 * X, Y)


class Shifted(nn.Module):
    """Changes in place what an activation returned."""

    def __init__(self, model, in_place):
        super().__init__()
        self.model, self.in_place = model, in_place

    def forward(self, x):
        h = self.model[1](self.model[0](x))
        if self.in_place:
            h *= 2.0
            h += 0.5
        else:
            h = 2 * h + 0.5
        return self.model[2:](h)


@pytest.mark.parametrize("name", RULES)
def test_what_an_activation_returned_may_be_changed_in_place(name):
    maps = [RULES[name](Shifted(cases.conv(), in_place), X, Y) for in_place in (True, False)]
    assert torch.allclose(*maps)


@pytest.mark.parametrize("name", RULES)
def test_a_deep_network_in_single_precision_is_not_mistaken_for_a_bent_one(name):
    with torch.random.fork_rng(devices=[]):
        layers = [m for n in range(12) for m in (nn.Linear(18 if n == 0 else 30, 30), nn.ReLU())]
        layers.append(nn.Linear(30, cases.CLASSES))
    model = cases.filled(nn.Sequential(nn.Flatten(), *layers), 0)
    x = cases.images(64)
    y = cases.labels(64)
    double = RULES[name](model, x, y)
    single = RULES[name](model.float(), x.float(), y)
    assert torch.allclose(single.double(), double, rtol=1e-2, atol=1e-3 * double.abs().max().item())


class Gated(nn.Module):
    def forward(self, x):
        return (x * x.mean((2, 3), keepdim=True)).flatten(1)[:, : cases.CLASSES]


class Spectrum(nn.Module):
    """Absolute values of complex numbers."""

    def __init__(self):
        super().__init__()
        self.head = cases.isolated(nn.Linear)(12, cases.CLASSES).double()

    def forward(self, x):
        return self.head(torch.fft.rfft2(x).abs().flatten(1))


def refused_networks():
    with torch.random.fork_rng(devices=[]):
        normed = nn.Sequential(nn.Flatten(), nn.LayerNorm(cases.PIXELS), nn.Linear(cases.PIXELS, cases.CLASSES))
        stirred = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, cases.CLASSES))
    return {
        "layer norm": cases.filled(normed, 0),
        "a product": Gated(),
        "a hand-written kink": cases.Folded(cases.mlp(nn.ReLU())),
        "a softmax": nn.Sequential(cases.mlp(), nn.Softmax(1)),
        "quadratic": cases.quadratic(),
        "a spectrum": Spectrum(),
        "batch norm in train mode": cases.filled(stirred, 0).train(),
    }


@pytest.mark.parametrize("network", refused_networks())
@pytest.mark.parametrize("name", RULES)
def test_a_network_with_anything_else_in_it_is_refused(name, network):
    sentence = (
        r"for which (deep_lift|lrp with rule='\w+'|guided_backprop) has no rule|model runs .*, for which lrp|eval"
    )
    with pytest.raises(ValueError, match=sentence):
        RULES[name](refused_networks()[network], X, Y)


class Around(nn.Module):
    """What a convolution of its own makes of the features, worked on by a function; the weights are drawn here."""

    def __init__(self, function, channels=6, out=6):
        super().__init__()
        self.inner, self.function = nn.Conv2d(channels, out, 1), function

    def forward(self, h):
        return self.function(h, self.inner(h))


def attention(h, inner):
    keys, values = (F.adaptive_avg_pool2d(t, 2).flatten(2) for t in (inner, h))
    seen = (values @ (keys.mT @ keys / 2).softmax(-1)).unflatten(2, (2, 2))
    return h + F.interpolate(seen, size=h.shape[2:])


#: What bends between the convolutions of a network; some of it hardly, or not at all where the features are all 0.
BENDING = {
    "layer norm": lambda: nn.GroupNorm(1, 6),
    "group norm": lambda: nn.GroupNorm(2, 6),
    "instance norm": lambda: nn.InstanceNorm2d(6),
    "batch norm of the batch": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    "local response norm": lambda: nn.LocalResponseNorm(3),
    "division by the norm": lambda: Around(lambda h, inner: F.normalize(inner)),
    "division by the spread": lambda: Around(lambda h, inner: inner / (0.1 + h.std((1, 2, 3), keepdim=True))),
    "squeeze and excitation": lambda: Around(lambda h, inner: h * inner.mean((2, 3), keepdim=True).sigmoid()),
    "a gate of relus": lambda: Around(lambda h, inner: h * F.relu6(inner.mean((2, 3), keepdim=True) + 3) / 6),
    "glu": lambda: Around(lambda h, inner: F.glu(inner, 1), out=12),
    "swiglu": lambda: Around(lambda h, inner: h * F.silu(inner)),
    "a product": lambda: Around(lambda h, inner: h * inner),
    "attention": lambda: Around(attention),
    "weak attention": lambda: Around(lambda h, inner: h + 1e-5 * (attention(h, inner) - h)),
    "a softmax": lambda: nn.Softmax(1),
    "a maximum": lambda: Around(lambda h, inner: torch.maximum(h, inner)),
    "a bound made of features": lambda: Around(lambda h, inner: h.clamp(max=inner)),
    "a square root": lambda: Around(lambda h, inner: (1 + h * h).sqrt()),
}
PICTURES = {"black": 0.0, "grey": 0.5, "white": 1.0, "random": None}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@cases.isolated
def bending(kind, seed=0, *, bias=False):
    """Drawn as torch does it, small, so that nothing bends by much."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 6, 3, 2, 1, bias=bias), BENDING[kind](), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(24, cases.CLASSES)).eval()


def picture(kind, size):
    if PICTURES[kind] is None:
        return torch.rand(2, 3, size, size, generator=cases.generator())
    return torch.full((2, 3, size, size), PICTURES[kind])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", BENDING)
def test_what_bends_is_refused_in_every_precision_and_on_every_image(kind, dtype):
    settings = [
        (8, "black", False),
        (33, "black", True),
        (33, "grey", False),
        (8, "white", False),
        (33, "random", True),
    ]
    for (size, seen, bias), rule in zip(settings, RULES.values(), strict=True):
        model = bending(kind, bias=bias).to(dtype)
        for draw in (rule, attributions.deep_lift):
            with pytest.raises(ValueError, match=r"^model (is Sequential, for which|answers|does not run|cuts)"):
                draw(model, picture(seen, size).to(dtype), torch.tensor([0, 1]))


@pytest.mark.parametrize("kind", ["squeeze and excitation", "attention", "local response norm", "instance norm"])
def test_what_bends_is_refused_on_large_images(kind):
    for seen in PICTURES:
        with pytest.raises(ValueError, match="has no rule"):
            attributions.deep_lift(bending(kind), picture(seen, 224), torch.tensor([0, 1]))


class Doubling(nn.Module):
    def forward(self, x):
        return torch.where(x.abs() > 20, 2 * x, x)


def test_what_bends_among_pixels_of_255_shades_is_refused_there():
    model, x, y = nn.Sequential(Doubling(), *cases.linear()), cases.images(), cases.labels()
    assert torch.isfinite(attributions.deep_lift(model, x, y)).all()
    with pytest.raises(ValueError, match="has no rule"):
        attributions.deep_lift(model, 255 * x, y)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        first, second = (nn.Conv2d(width, width, 3, 1, 1, bias=False) for _ in range(2))
        self.branch = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(inplace=True), second, nn.BatchNorm2d(width))

    def forward(self, h):
        return F.relu(h + self.branch(h))


@cases.isolated
def deep(blocks=25, width=6, classes=100):
    """A residual network of two layers a block, whose batch norms have seen something; signals grow."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    model = nn.Sequential(nn.Conv2d(3, width, 7, 8, 3), *[Block(width) for _ in range(blocks)], *head)
    draw = cases.generator(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(width, generator=draw))
            module.running_var.copy_(0.3 + torch.rand(width, generator=draw))
    return cases.filled(model, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [8, 224])
def test_a_deep_residual_network_is_accepted_in_every_precision_and_shares_out_the_change(size, dtype):
    """Errors in units of all that is added up; what half precision has rounded are the parts of the sum."""
    model, x, y = deep(), picture("random", size), torch.tensor([3, 98])
    model, x = model.to(dtype), x.to(dtype)
    maps = attributions.deep_lift(model, x, y).double()
    double = model.double()(torch.cat([x, 0 * x]).double()).gather(1, y.repeat(2)[:, None])[:, 0]
    change, size = double[:2] - double[2:], maps.abs().sum((1, 2, 3)) + double.abs().unflatten(0, (2, 2)).sum(0)
    assert ((totals(maps) - change).abs() <= 8 * torch.finfo(dtype).eps * size).all()
    for name in ("lrp", "guided_backprop"):
        assert torch.isfinite(RULES[name](model, x.double(), y)).all()


@pytest.mark.parametrize("name", RULES)
def test_half_precision_gives_the_map_of_its_weights_in_single_precision(name):
    model, x = plain().bfloat16(), X.bfloat16()
    short = RULES[name](model, x, Y)
    assert short.dtype == torch.bfloat16
    assert torch.equal(short, RULES[name](model.float(), x.float(), Y).bfloat16())
    x.requires_grad_()
    model = pooled().bfloat16()
    RULES[name](model, x, Y).square().sum().backward()
    assert all(torch.isfinite(t.grad).all() and t.grad.any() for t in (x, model[0].weight))


def test_half_precision_that_cannot_be_run_in_single_precision_is_refused():
    layer = plain().bfloat16()
    with pytest.raises(ValueError, match=r"x has dtype torch.bfloat16, in which rounding hides whether deep_lift"):
        attributions.deep_lift(Between(lambda x: layer(x)), X.bfloat16(), Y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_in_the_midst_of_a_network_is_refused(dtype):
    layer = plain().bfloat16()
    with pytest.raises(ValueError, match="model is Between, for which deep_lift has no rule"):
        attributions.deep_lift(Between(lambda x: layer(x.bfloat16()).to(x.dtype)), X.to(dtype), Y)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_logits_in_half_precision_are_no_excuse(dtype):
    model = plain()
    with pytest.raises(ValueError, match="has no rule"):
        attributions.lrp(Between(lambda x: model(x).to(dtype)), X, Y)


@pytest.mark.parametrize("name", RULES)
def test_a_logit_that_hardly_changes_is_not_mistaken_for_a_bent_one(name):
    model = plain()
    with torch.no_grad():
        model[5].weight.mul_(1e-6)
        model[5].bias.fill_(1e3)
    assert torch.isfinite(RULES[name](model, X, Y)).all()


def test_logits_may_be_handed_out_in_single_precision():
    model = plain()
    assert torch.equal(attributions.deep_lift(Between(lambda x: model(x).float()), X, Y).isfinite(), X > 0)


@pytest.mark.parametrize("name", RULES)
def test_a_network_that_runs_in_single_precision_alone_is_tried_there(name):
    """Its weights stand in no list of parameters."""
    inner, bent = plain().float(), bending("squeeze and excitation")
    assert torch.equal(RULES[name](Between(lambda x: inner(x)), X.float(), Y), RULES[name](inner, X.float(), Y))
    with pytest.raises(ValueError, match="model is Between, for which"):
        RULES[name](Between(lambda x: bent(x)), picture("grey", 8), torch.tensor([0, 1]))


def test_a_network_that_is_another_one_on_the_baseline_is_refused():
    inner = plain()
    model = Between(lambda x: inner(x) if bool((x != 0).any()) else inner(x) + 1)
    with pytest.raises(ValueError, match="model is Between, for which deep_lift has no rule"):
        attributions.deep_lift(model, X, Y)
    model = Between(lambda x: inner(x) if bool((x != 0).any()) else x.flatten(1)[:, : cases.CLASSES])
    with pytest.raises(ValueError, match="model is Between, for which deep_lift has no rule"):
        attributions.deep_lift(model, X, Y)


@pytest.mark.parametrize("name", RULES)
def test_a_linear_network_has_its_own_map(name):
    model = cases.linear()
    weights = model[1].weight[Y].view_as(X)
    expected = {"deep_lift": (X - 0.1) * weights, "lrp": X * weights, "guided_backprop": weights}
    if name in expected:
        assert torch.allclose(RULES[name](model, X, Y), expected[name], rtol=1e-12)
    assert RULES[name](model, X, Y).any()


# ------------------------------------------------------------------ inputs of any rank


#: Shape of an input -> a layer and a pool for it, and how many features are left.
RANKS = {
    (6,): lambda: (nn.Linear(6, 8), nn.MaxPool1d(2), 4),
    (2, 8): lambda: (nn.Conv1d(2, 4, 3), nn.MaxPool1d(2), 12),
    (2, 3, 3, 3): lambda: (nn.Conv3d(2, 4, 2), nn.MaxPool3d(2), 4),
}


@cases.isolated
def ranked(shape):
    layer, pool, left = RANKS[shape]()
    layers = [layer, nn.ReLU(), pool, nn.Flatten(), nn.Linear(left, cases.CLASSES)]
    return cases.filled(nn.Sequential(*layers), 7)


@cases.isolated
def head(features):
    return cases.filled(nn.Linear(features, cases.CLASSES), 8)


@pytest.mark.parametrize("shape", RANKS)
@quiet
def test_inputs_of_any_rank_have_maps_of_their_shape_and_the_right_values(shape):
    model, x = ranked(shape), torch.rand(4, *shape, generator=cases.generator(), dtype=torch.float64)
    start = torch.full_like(x, 0.1)
    for name, rule in RULES.items():
        assert rule(model, x, Y).shape == x.shape, name
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(chosen(model, at).sum(), at)
    assert torch.allclose(RULES["lrp"](model, x, Y), x * gradient, rtol=1e-10, atol=1e-13)
    change = chosen(model, x) - chosen(model, start)
    assert torch.allclose(RULES["deep_lift"](model, x, Y).flatten(1).sum(1), change, rtol=1e-9, atol=1e-13)
    bare = nn.Sequential(model[0], nn.Tanh(), nn.Flatten(), head(model[0](x[:1]).numel()))  # captum's pools err
    theirs = captum.attr.DeepLift(bare, eps=1e-12).attribute(x.clone().requires_grad_(), start, target=Y)
    assert torch.allclose(RULES["deep_lift"](bare, x, Y), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_a_transformer_is_refused(name):
    x = cases.images(2, shape=cases.VIT_SHAPE)
    with pytest.raises(ValueError, match="has no rule"):
        RULES[name](cases.vit(), x, cases.labels(2))


class Pair(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, x):
        return self.inner(x), x


EVERY = {
    **RULES,
    "saliency": attributions.saliency,
    "uniform_grad": lambda model, x, target: attributions.uniform_grad(
        model, x, target, ball=Ball("linf", 0.1), samples=3, generator=cases.generator()
    ),
    "grad_cam": lambda model, x, target: attributions.grad_cam(model, x, target, layer=model.inner[0]),
}


@pytest.mark.parametrize("name", EVERY)
def test_a_model_that_returns_a_tuple_is_refused(name):
    with pytest.raises(ValueError, match="model returned a tuple; wrap it to return logits"):
        EVERY[name](Pair(cases.conv()), X, Y)


@pytest.mark.parametrize("name", RULES)
def test_a_network_that_ignores_the_image_has_a_zero_map(name):
    model = cases.conv(nn.ReLU())
    with torch.no_grad():
        model[3].weight.zero_()
    maps = RULES[name](model, X, Y)
    assert torch.equal(maps, torch.zeros_like(X))
    assert attributions.zero_maps(maps).all()


# ------------------------------------------------------------------ derivatives, batches, traces


@pytest.mark.parametrize("network", SMOOTH)
@pytest.mark.parametrize("name", RULES)
def test_the_derivative_of_a_map_agrees_with_finite_differences(network, name):
    model = SMOOTH[network]()
    weights, direction = torch.randn(2, *X.shape, generator=cases.generator(1), dtype=X.dtype)

    def score(images):
        return (RULES[name](model, images, Y) * weights).sum()

    at = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(at), at)
    slope = cases.slope(score, X, direction, step=1e-6).item()
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-6)
    assert abs(slope) > 1e-3


@pytest.mark.parametrize("name", RULES)
def test_the_derivative_in_the_weights_agrees_with_finite_differences(name):
    model = cases.conv()
    kept, direction = model[0].weight.detach().clone(), torch.randn(3, 2, 2, 2, generator=cases.generator()).double()

    def score(weight):
        model[0].weight.data = weight.detach()
        return RULES[name](model, X, Y).square().sum()

    (gradient,) = torch.autograd.grad(score(kept), model[0].weight)
    slope = cases.slope(score, kept, direction, step=1e-6).item()
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_on_a_twin_the_derivative_adds_up_to_the_change_of_the_map(name):
    """What a ReLU network's derivative misses are the jumps at its gates; the map of a twin has none."""
    relu, weights = plain(), torch.randn(1, *cases.SHAPE, generator=cases.generator(2), dtype=torch.float64)
    ends = X[:2]
    missing = {}
    for kind, model in (("relu", relu), ("twin", models.smooth_twin(relu, X, beta=5.0))):
        places = ((torch.arange(400, dtype=X.dtype) + 0.5) / 400).view(-1, 1, 1, 1)
        way = (ends[:1] + places * (ends[1:] - ends[:1])).requires_grad_()
        score = (RULES[name](model, way, Y[:1].expand(400)) * weights).sum()
        (gradient,) = torch.autograd.grad(score, way, allow_unused=True, materialize_grads=True)
        change = (RULES[name](model, ends, Y[:1].expand(2)) * weights).sum((1, 2, 3)).diff().item()
        added = (gradient * (ends[1:] - ends[:1])).sum().item() / 400
        missing[kind] = abs(added - change) / abs(change)
    assert missing["twin"] < 0.02
    if name in ("lrp", "guided_backprop"):
        assert missing["relu"] > 0.05


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("network", [*SMOOTH.values(), *BENT.values()])
def test_maps_of_a_batch_are_the_maps_of_its_images(name, network):
    model = network()
    whole = RULES[name](model, X, Y)
    assert whole.shape == X.shape
    for i in range(len(X)):
        assert torch.allclose(whole[i : i + 1], RULES[name](model, X[i : i + 1], Y[i : i + 1]), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("training", [True, False])
def test_attribution_leaves_model_and_images_as_found(name, training):
    model, x = cases.conv().train(training), X.clone()
    model[1].train(not training)
    flags, before = [m.training for m in model.modules()], [p.clone() for p in model.parameters()]
    RULES[name](model, x, Y)
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(x, X)
    assert not x.requires_grad
    for p, old in zip(model.parameters(), before, strict=True):
        assert p.grad is None
        assert p.requires_grad
        assert torch.equal(p, old)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks


@pytest.mark.parametrize("name", RULES)
def test_maps_can_be_drawn_without_gradient_mode_and_of_frozen_networks(name):
    model = residual()
    expected = RULES[name](model, X, Y)
    with torch.no_grad():
        maps = RULES[name](model, X, Y)
        assert torch.equal(maps, expected)
    assert not maps.requires_grad
    assert torch.equal(RULES[name](model.requires_grad_(False), X, Y), expected)


@pytest.mark.parametrize("name", RULES)
def test_an_error_inside_the_model_leaves_no_interception_behind(name):
    model = cases.mlp(nn.ReLU())
    RULES[name](model, X, Y)
    model[5].forward = cases.failing
    with pytest.raises((RuntimeError, ValueError), match="on purpose"):
        RULES[name](model, X, Y)
    assert torch.equal(F.relu(torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))


class Counting(nn.Module):
    """Counts the passes of the network it wraps, forwards and backwards."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.forwards, self.backwards = model, 0, 0

    def forward(self, x):
        self.forwards += 1
        logits = self.inner(x)
        logits.register_hook(lambda gradient: setattr(self, "backwards", self.backwards + 1))
        return logits


@pytest.mark.parametrize(
    ("name", "passes"),
    [("deep_lift", (5, 1)), ("lrp", (4, 1)), ("z_plus", (4, 1)), ("guided_backprop", (4, 1)), ("uniform_grad", (1, 1))],
)
def test_a_map_costs_the_passes_that_its_docstring_states(name, passes):
    model = Counting(plain())
    guards.classifier(model, X.repeat(9, 1, 1, 1))  # a batch larger than any before passes once more
    model.forwards = model.backwards = 0
    EVERY[name](model, X, Y)
    assert (model.forwards, model.backwards) == passes
    told = attributions.__dict__[{"z_plus": "lrp"}.get(name, name)].__doc__
    one = (
        "One forward and one backward pass" if passes == (1, 1) else f"{passes[0]} forward passes, {passes[1]} backward"
    )
    assert one in told


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rule": "epsilom"}, "rule is 'epsilom'; it must be one of epsilon, z_plus; did you mean 'epsilon'"),
        ({"epsilon": -1.0}, "epsilon is -1.0; it must be a finite number of at least 0"),
        ({"epsilon": math.nan}, "epsilon is nan"),
    ],
)
def test_lrp_refuses_bad_options(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        attributions.lrp(cases.mlp(), X, Y, **change)


# ------------------------------------------------------------------ gradient averaged over a ball


def averaged(model, x, ball, samples, seed=0):
    how = {"ball": ball, "samples": samples, "generator": cases.generator(seed)}
    return attributions.uniform_grad(model, x, Y, **how)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_uniform_grad_is_the_mean_gradient_over_draws_from_the_ball(norm):
    model, ball = cases.conv(), Ball(norm, 0.2)
    draw = cases.generator()
    moves = [ball.sample(X, generator=draw) for _ in range(5)]
    one_by_one = torch.stack([attributions.saliency(model, X + move, Y) for move in moves])
    assert torch.allclose(averaged(model, X, ball, 5), one_by_one.mean(0))


def test_uniform_grad_of_a_quadratic_averages_to_its_gradient():
    model = cases.quadratic()
    plain_map = attributions.saliency(model, X, Y)
    errors = [(averaged(model, X, Ball("linf", 0.3), n) - plain_map).norm() for n in (10, 4000)]
    assert errors[1] < errors[0] / 5
    assert torch.equal(averaged(model, X, Ball("linf", 0.0), 2), plain_map)


def test_uniform_grad_covers_a_kink_in_proportion():
    """Of |x| over [x - r, x + r] the mean slope is x / r."""
    first, second = one_unit(1, 2, 1)
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)
    model[1].weight.data, model[3].weight.data = torch.tensor([[1.0], [-1.0]]).double(), torch.ones(1, 2).double()
    x = torch.full((1, 1, 1, 1), 0.05, dtype=torch.float64)
    how = {"ball": Ball("linf", 0.2), "samples": 20000, "generator": cases.generator()}
    slope = attributions.uniform_grad(model, x, torch.tensor([0]), **how)
    assert slope.item() == pytest.approx(0.25, abs=4 / 20000**0.5)


def test_uniform_grad_needs_a_sample():
    with pytest.raises(ValueError, match="samples is 0; it must be a whole number of at least 1"):
        averaged(cases.mlp(), X, Ball("linf", 0.1), 0)


@pytest.mark.parametrize("rule", ["epsilon", "z_plus"])
def test_a_larger_epsilon_only_ever_damps_a_map(rule):
    model, x = cases.mlp(nn.ReLU(), width=16), cases.images()
    y = model(x).argmax(1)
    sizes = [attributions.lrp(model, x, y, rule=rule, epsilon=e).abs().sum((1, 2, 3)) for e in (0.0, 0.05, 0.2, 1.0)]
    for less, more in itertools.pairwise(sizes):
        assert (more < less).all()


# ------------------------------------------------------------------ equations, written out


def test_z_plus_with_an_epsilon_is_its_equation_feature_by_feature():
    """Two dense layers; every share is of its own sum of positive contributions plus epsilon, biases in no sum."""
    model, epsilon = cases.isolated(nn.Sequential)(nn.Flatten(), *one_unit(3, 5, 2)), 0.1
    first, second = model[1], model[2]
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)
    draw = cases.generator(3)
    with torch.no_grad():
        for layer in (first, second):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw, dtype=torch.float64))
            layer.bias = nn.Parameter(0.3 * torch.randn(len(layer.weight), generator=draw, dtype=torch.float64))
    x, target = torch.tensor([[0.7, -0.4, 0.2], [0.5, 0.9, -0.6]], dtype=torch.float64), torch.tensor([1, 0])
    ours = attributions.lrp(model, x.view(2, 1, 1, 3), target, rule="z_plus", epsilon=epsilon).view(2, 3)
    for pixels, y, shares in zip(x.tolist(), target.tolist(), ours.tolist(), strict=True):
        v, b, w, c = first.weight.tolist(), first.bias.tolist(), second.weight.tolist(), second.bias.tolist()
        before = [sum(v[j][i] * pixels[i] for i in range(3)) + b[j] for j in range(5)]
        after = [max(h, 0.0) for h in before]
        parts = [max(w[y][j] * after[j], 0.0) for j in range(5)]
        logit = sum(w[y][j] * after[j] for j in range(5)) + c[y]
        expected = [0.0] * 3
        for j in range(5):
            handed = parts[j] * logit / (sum(parts) + epsilon)
            handed *= before[j] ** 2 / (before[j] ** 2 + epsilon**2)
            own = [max(v[j][i] * pixels[i], 0.0) for i in range(3)]
            for i in range(3):
                expected[i] += own[i] * handed / (sum(own) + epsilon)
        assert shares == pytest.approx(expected, rel=1e-10)
        assert any(abs(part) > 0.01 for part in expected)


@pytest.mark.parametrize("activation", [torch.tanh, F.relu])
def test_epsilon_damps_every_input_of_an_activation_and_the_logit(activation):
    model, epsilon = cases.mlp(cases.Called(activation)), 0.2
    first = model[1](X.flatten(1))
    second = model[3](activation(first))
    logit = chosen(model)
    slopes = model[5].weight[Y]
    for h, layer in ((second, model[3]), (first, model[1])):
        slopes = (slopes * activation(h) / h * h.abs() / (h.abs() + epsilon)) @ layer.weight
    expected = X.flatten(1) * slopes * (logit.abs() / (logit.abs() + epsilon))[:, None]
    assert torch.allclose(attributions.lrp(model, X, Y, epsilon=epsilon).flatten(1), expected, rtol=1e-10, atol=1e-13)


def test_deep_lift_hands_a_pools_change_to_the_winner_that_explains_it():
    """Pools of two pixels under distinct weights, before them a baseline whose winner is the other one."""
    model = nn.Sequential(nn.MaxPool2d((1, 2)), nn.Flatten(), *one_unit(4, 1))
    weight = torch.tensor([[2.0, -3.0, 5.0, 7.0]], dtype=torch.float64)
    model[2].weight.data = weight
    x = torch.tensor([[0.9, 0.1], [0.2, 0.4], [0.6, 0.6], [0.3, 0.8]], dtype=torch.float64).view(1, 1, 4, 2)
    start = torch.tensor([[0.2, 0.5], [0.7, 0.1], [0.6, 0.2], [0.3, 0.1]], dtype=torch.float64).view(1, 1, 4, 2)
    maps = attributions.deep_lift(model, x, torch.tensor([0]), baseline=start)
    changes = [[2 * 0.4, 0], [-3 * (0.4 - 0.7), 0], [0, 0], [0, 7 * 0.5]]  # rose, fell, stayed, rose
    assert torch.allclose(maps.view(4, 2), torch.tensor(changes, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_keywords_give_the_map_of_the_same_layers_called_in_order(name):
    first, second = plain()[0], plain()[3]
    bias, weight = torch.tensor([0.1, -0.2, 0.3, 0.05]).double(), second.weight[: cases.CLASSES]

    def named(x):
        h = F.conv2d(stride=1, padding=1, bias=bias, weight=first.weight, input=x)
        h = F.max_pool2d(kernel_size=2, input=F.relu(input=h))
        return F.linear(bias=bias, weight=weight, input=h.flatten(1))

    def placed(x):
        h = F.relu(F.conv2d(x, first.weight, bias, 1, 1))
        return F.linear(F.max_pool2d(h, 2).flatten(1), weight, bias)

    ours, theirs = (RULES[name](Between(call), X, Y) for call in (named, placed))
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    assert ours.any()


def test_a_pixel_at_the_mean_of_a_standardised_network_has_no_part_under_z_plus():
    """The shift hands on what the first layer gives a pixel; one that is 0 there contributed nothing."""
    inner = cases.mlp(nn.ReLU())
    x = X.clone()
    x[:, 0, 1] = 0.5
    maps = attributions.lrp(Between(lambda x: inner(x - 0.5)), x, Y, rule="z_plus")
    assert not maps[:, 0, 1].any()
    assert maps.any()


@pytest.mark.parametrize("name", RULES)
def test_a_map_has_a_finite_derivative_where_nothing_changed_or_nothing_fires(name):
    """An image that is the baseline in one window, ties with it in another, under features that are dead."""
    layers = [nn.MaxPool2d((1, 3)), nn.Flatten(), *one_unit(6, 4), nn.ReLU(), *one_unit(4, cases.CLASSES)]
    model = cases.filled(nn.Sequential(*layers), 3)
    with torch.no_grad():
        model[2].weight[1] = -model[2].weight[1].abs()
        model[4].weight[2] = -model[4].weight[2].abs()
    x = X.clone()
    x[:, 0, 0] = 0.1
    x[:, 1, 1, :2] = 0.9
    x.requires_grad_()
    maps = RULES[name](model, x, Y)
    (gradient,) = torch.autograd.grad(maps.square().sum(), x, allow_unused=True, materialize_grads=True)
    assert torch.isfinite(maps).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("network", [cases.mlp, cases.conv])
def test_at_its_baseline_deep_lift_has_the_gradient_as_its_derivative(network):
    model, direction = network(), torch.randn(X.shape, generator=cases.generator(4), dtype=torch.float64)
    x = torch.full_like(X, 0.4).requires_grad_()
    (slope,) = torch.autograd.grad(totals(attributions.deep_lift(model, x, Y, baseline=0.4)).sum(), x)
    assert torch.allclose(slope, attributions.saliency(model, x.detach(), Y), rtol=1e-9, atol=1e-12)
    rise = cases.slope(lambda at: totals(attributions.deep_lift(model, at, Y, baseline=0.4)), x.detach(), direction)
    assert torch.allclose(rise, totals(slope * direction), rtol=1e-6, atol=1e-9)
