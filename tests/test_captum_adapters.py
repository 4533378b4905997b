"""Our attributions under captum's names; and captum's own objects, as attributions of ours."""

import inspect
import subprocess
import sys
from functools import partial

import captum.attr
import cases
import numpy as np
import pytest
import torch
from attrobust import attacks, attributions, faithfulness, robustness
from attrobust import captum as ours
from attrobust.balls import Ball
from attrobust.captum import of_captum
from torch import nn
from torch.nn import functional as F

quiet = pytest.mark.filterwarnings("ignore:Input Tensor|Setting")  # captum announces its hooks
X, Y = cases.images(4), cases.labels(4)


@cases.isolated
def plain(activation=nn.ReLU):
    """One module for each call, as captum wants it."""
    layers = [nn.Conv2d(2, 4, 2), activation(), nn.Flatten(), nn.Linear(16, 7), activation()]
    return cases.filled(nn.Sequential(*layers, nn.Linear(7, cases.CLASSES)), 3)


def tanh():
    return plain(nn.Tanh)


def softplus():
    return plain(nn.Softplus)


def winners():
    return stacked("pooled")


class Shaped(nn.Module):
    """A network whose pixels are laid out without a module, as captum's LRP wants it."""

    def __init__(self, model):
        super().__init__()
        self.convolution, self.first, _, self.hidden, self.second, self.head = model

    def forward(self, x):
        h = self.first(self.convolution(x)).flatten(1)
        return self.head(self.second(self.hidden(h)))


#: name -> (networks, (library, network) -> adapter, options)
CALLS = {
    "saliency": ((plain, tanh), lambda lib, net: lib.Saliency(net), {}),
    "signed": ((plain, tanh), lambda lib, net: lib.Saliency(net), {"abs": False}),
    "input x gradient": ((plain, tanh), lambda lib, net: lib.InputXGradient(net), {}),
    "left": (
        (plain, tanh),
        lambda lib, net: lib.IntegratedGradients(net),
        {"method": "riemann_left", "n_steps": 8, "baselines": 0.25},
    ),
    "middle": (
        (plain, tanh),
        lambda lib, net: lib.IntegratedGradients(net),
        {"method": "riemann_middle", "n_steps": 4},
    ),
    "right": (
        (plain, tanh),
        lambda lib, net: lib.IntegratedGradients(net),
        {"method": "riemann_right", "n_steps": 8, "baselines": X.mean(0, keepdim=True)},
    ),
    "deep lift": ((plain, tanh, softplus), lambda lib, net: lib.DeepLift(net), {}),
    "deep lift of an image": ((plain, tanh), lambda lib, net: lib.DeepLift(net), {"baselines": X.flip(0)}),
    "deep lift of a number": ((plain, tanh), lambda lib, net: lib.DeepLift(net), {"baselines": 0.1}),
    "guided": ((plain, winners), lambda lib, net: lib.GuidedBackprop(net), {}),
    "grad-cam": ((plain, tanh), lambda lib, net: lib.LayerGradCam(net, net[0]), {}),
    "positive grad-cam": ((plain, tanh), lambda lib, net: lib.LayerGradCam(net, net[1]), {"relu_attributions": True}),
    "windows": (
        (plain, tanh),
        lambda lib, net: lib.Occlusion(net),
        {"sliding_window_shapes": (2, 2, 2), "baselines": 0.3, "perturbations_per_eval": 3},
    ),
    "cut windows": (
        (plain, tanh),
        lambda lib, net: lib.Occlusion(net),
        {"sliding_window_shapes": (1, 2, 2), "strides": (1, 2, 1), "baselines": X.flip(0)},
    ),
}
BOTH = [(name, network) for name, (networks, _, _) in CALLS.items() for network in networks]
SMOOTH = [(name, network) for name, network in BOTH if network not in (plain, winners)]


@pytest.mark.parametrize(("name", "network"), BOTH)
@quiet
def test_values_are_captums(name, network):
    _, make, options = CALLS[name]
    theirs = make(captum.attr, network()).attribute(X.clone().requires_grad_(), target=Y, **options)
    found = make(ours, network()).attribute(X, target=Y, **options)
    assert found.shape == theirs.shape
    rounding = {torch.float64: 1e-9, torch.float32: 1e-4}[theirs.dtype]  # captum's windows are of single precision
    assert torch.allclose(found, theirs.to(found), rtol=rounding, atol=rounding / 1000)


@pytest.mark.parametrize(("side", "step"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 3)])
def test_occlusion_is_the_mean_fall_over_the_windows_that_hold_a_pixel(side, step):
    """Window by window and pixel by pixel, in double precision; a last window ends where the image does."""
    model, falls, count = tanh(), torch.zeros_like(X), torch.zeros(3, 3)
    before = model(X).gather(1, Y[:, None])[:, 0].detach()
    last = {(1, 1): 3, (2, 1): 2, (2, 2): 2, (3, 1): 1, (3, 3): 1}[side, step]
    for i in range(last):
        for j in range(last):
            place = (..., slice(i * step, i * step + side), slice(j * step, j * step + side))
            covered = X.clone()
            covered[place] = 0.3
            falls[place] += (before - model(covered).gather(1, Y[:, None])[:, 0].detach())[:, None, None, None]
            count[place] += 1
    found = ours.Occlusion(model).attribute(X, (2, side, side), (2, step, step), 0.3, Y)
    assert torch.allclose(found, falls / count, rtol=1e-10)


@pytest.mark.parametrize("network", [plain, tanh])
def test_integrated_gradients_as_called_without_options_are_captums_to_single_precision(network):
    """Captum's weights are numbers of single precision."""
    theirs = captum.attr.IntegratedGradients(network()).attribute(X, target=Y)
    assert torch.allclose(ours.IntegratedGradients(network()).attribute(X, target=Y), theirs, rtol=1e-5, atol=1e-8)


def test_a_gauss_legendre_path_of_n_points_is_exact_for_logits_of_degree_2n():
    """Logit w'x + sum of x^6: the map is x w + x^6, of a gradient of degree five, which three points integrate."""
    w = torch.randn(cases.CLASSES, cases.PIXELS, generator=cases.generator(), dtype=torch.float64)
    model = cases.Called(lambda x: x.flatten(1) @ w.T + x.flatten(1).pow(6).sum(1, keepdim=True)).eval()
    exact = (X.flatten(1) * w[Y] + X.flatten(1).pow(6)).view_as(X)
    adapter = ours.IntegratedGradients(model)
    assert torch.allclose(adapter.attribute(X, target=Y, n_steps=3), exact, rtol=1e-12)
    assert not torch.allclose(adapter.attribute(X, target=Y, n_steps=2), exact, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 4, 9, 100])
def test_integrated_gradients_in_parts_are_those_in_one(size):
    adapter = ours.IntegratedGradients(tanh())
    whole = adapter.attribute(X, target=Y, n_steps=5)
    assert torch.allclose(adapter.attribute(X, target=Y, n_steps=5, internal_batch_size=size), whole, rtol=1e-12)


@pytest.mark.parametrize("network", [plain, tanh])
@quiet
def test_relevance_is_captums_under_its_own_rules(network):
    theirs = captum.attr.LRP(Shaped(network())).attribute(X.clone().requires_grad_(), target=Y)
    found = ours.LRP(Shaped(network())).attribute(X, target=Y)
    assert torch.allclose(found, theirs, rtol=1e-6, atol=1e-9)


def normed():
    norm = nn.BatchNorm2d(3)
    with torch.random.fork_rng(devices=[]):
        norm.running_mean, norm.running_var = torch.randn(2, 3, generator=cases.generator(5)).abs()
    return norm


LAYERS = {
    "normed": lambda: [nn.Conv2d(2, 3, 2), normed(), nn.ReLU()],
    "averaged": lambda: [nn.Conv2d(2, 4, 2), nn.Tanh(), nn.AvgPool2d(2)],
    "averaged to size": lambda: [nn.Conv2d(2, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)],
    "pooled": lambda: [nn.Conv2d(2, 4, 2), nn.ReLU(), nn.MaxPool2d(2)],
    "with dropout": lambda: [nn.Conv2d(2, 4, 2), nn.ReLU(), nn.Dropout(0.5)],
    "two layers": lambda: [nn.Conv2d(2, 4, 2), nn.Conv2d(4, 3, 2), nn.Tanh()],
    "reused": lambda: [nn.Conv2d(2, 4, 2), relu := nn.ReLU(), nn.Conv2d(4, 3, 2), relu],
}


class Stacked(nn.Module):
    """Layers, and a head over their features laid out in a row; what stands before or after a layer may be changed."""

    def __init__(self, layers, change=lambda h, layer: layer(h)):
        super().__init__()
        self.layers, self.change = nn.ModuleList(layers), change
        self.head = nn.Linear(self.features(torch.zeros(1, 2, 3, 3)).shape[1], cases.CLASSES)

    def features(self, x):
        for layer in self.layers:
            x = self.change(x, layer)
        return x.flatten(1)

    def forward(self, x):
        return self.head(self.features(x))


@cases.isolated
def stacked(name, **changes):
    return cases.filled(Stacked(LAYERS[name](), **changes).eval(), 2)


@pytest.mark.parametrize("name", LAYERS)
@quiet
def test_relevance_is_captums_through_every_kind_of_layer_that_is_taken(name):
    theirs = captum.attr.LRP(stacked(name)).attribute(X.clone().requires_grad_(), target=Y)
    assert torch.allclose(ours.LRP(stacked(name)).attribute(X, target=Y), theirs, rtol=1e-5, atol=1e-8)


CHANGES = {
    "normalised pixels": (lambda h, layer: layer((h - 0.3) / 0.2 if h.shape[1] == 2 else h), "div, sub"),
    "a skip": (lambda h, layer: h + layer(h) if isinstance(layer, nn.Dropout) else layer(h), "add"),
    "a layer as a function": (
        lambda h, layer: F.conv2d(h, layer.weight) if isinstance(layer, nn.Conv2d) else layer(h),
        "conv2d",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@quiet
def test_relevance_of_what_captum_would_pass_on_as_a_gradient_is_refused(change):
    function, names = CHANGES[change]
    model = stacked("with dropout", change=function)
    theirs = captum.attr.LRP(model).attribute(X.clone().requires_grad_(), target=Y)
    own = attributions.lrp(model, X, Y, epsilon=1e-9)
    assert not torch.allclose(theirs, own, rtol=0.01)
    with pytest.raises(ValueError, match=rf"model runs {names}, not each as a module .* captum's LRP"):
        ours.LRP(model).attribute(X, target=Y)


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noisy_maps_are_captums_if_both_generators_start_alike(kind):
    how = {"nt_type": kind, "nt_samples": 5, "stdevs": 0.2, "target": Y, "abs": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        theirs = captum.attr.NoiseTunnel(captum.attr.Saliency(tanh())).attribute(X.clone().requires_grad_(), **how)
    found = ours.NoiseTunnel(ours.Saliency(tanh()), generator=cases.generator(7)).attribute(X, **how)
    assert torch.allclose(found, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_the_derivative_of_noisy_maps_under_one_draw_agrees_with_finite_differences(kind):
    weights, direction = torch.randn(2, *X.shape, generator=cases.generator(1), dtype=X.dtype)

    def score(images):
        noisy = ours.NoiseTunnel(ours.Saliency(tanh()), generator=cases.generator(3))
        return (noisy.attribute(images, kind, 3, stdevs=0.1, target=Y, abs=False) * weights).sum()

    at = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(score(at), at)
    assert (slope * direction).sum().item() == pytest.approx(cases.slope(score, X, direction).item(), rel=1e-6)


@pytest.mark.parametrize(("name", "network"), SMOOTH)
def test_the_derivative_of_a_map_agrees_with_finite_differences(name, network):
    _, make, options = CALLS[name]
    adapter, weights = make(ours, network()), torch.randn(4, 2, 3, 3, generator=cases.generator(1), dtype=X.dtype)
    direction = torch.randn(X.shape, generator=cases.generator(2), dtype=X.dtype)

    def score(images):
        maps = adapter.attribute(images, target=Y, **options)
        return (maps * weights[:, : maps.shape[1], : maps.shape[2], : maps.shape[3]]).sum()

    at = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(score(at), at)
    assert slope.any()
    assert (slope * direction).sum().item() == pytest.approx(cases.slope(score, X, direction).item(), rel=1e-6)


def test_relevance_and_guided_signals_have_a_derivative_where_the_network_is_smooth_and_captums_takes_it():
    adapter, direction = ours.LRP(tanh()), torch.randn(X.shape, generator=cases.generator(2), dtype=X.dtype)
    at = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(adapter.attribute(at, target=Y).square().sum(), at)
    finite = cases.slope(lambda x: adapter.attribute(x, target=Y).square().sum(), X, direction)
    assert (slope * direction).sum().item() == pytest.approx(finite.item(), rel=1e-6)


@pytest.mark.parametrize(("name", "network"), BOTH)
def test_a_map_has_a_graph_exactly_if_the_inputs_ask_for_one(name, network):
    _, make, options = CALLS[name]
    adapter, at = make(ours, network()), X.clone().requires_grad_()
    assert adapter.attribute(at, target=Y, **options).requires_grad
    assert at.grad is None
    assert not adapter.attribute(X, target=Y, **options).requires_grad
    assert not X.requires_grad
    with torch.no_grad():
        assert not adapter.attribute(at, target=Y, **options).requires_grad
    assert all(p.grad is None for p in adapter.network.parameters())


@pytest.mark.parametrize("name", ["signed", "deep lift", "windows", "grad-cam"])
@quiet
@pytest.mark.parametrize(
    "target", [2, torch.tensor(2), torch.tensor([2]), [2, 2, 2, 2], torch.tensor([2, 2, 2, 2], dtype=torch.int32)]
)
def test_one_class_may_be_said_once_or_for_each_image(name, target):
    _, make, options = CALLS[name]
    adapter, each = make(ours, tanh()), torch.full((4,), 2)
    found = adapter.attribute(X, target=target, **options)
    assert torch.equal(found, adapter.attribute(X, target=each, **options))
    theirs = make(captum.attr, tanh()).attribute(X.clone().requires_grad_(), target=2, **options)
    assert torch.allclose(found, theirs.to(found), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "target",
    [None, True, 1.0, (1,), [(1,)] * 4, [0, 1], [True] * 4, torch.tensor([0.0] * 4), torch.tensor([[0]]), "3",
     torch.tensor([True] * 4), [0]],
)  # fmt: skip
def test_any_other_target_is_refused_in_a_sentence(target, unchecked):
    with pytest.raises(
        ValueError, match=r"target is .*; it must be an int, or a tensor or list of 4 ints, one for each"
    ):
        ours.Saliency(tanh()).attribute(X, target=target)


@pytest.mark.parametrize("target", [-1, 4, [0, 1, 2, 4]])
def test_a_class_that_the_network_does_not_have_is_refused(target):
    with pytest.raises(ValueError, match=r"target spans .*; class indices must lie in \[0, 3\]"):
        ours.Saliency(tanh()).attribute(X, target=target)


REFUSED = [
    (lambda net: ours.Saliency(net).attribute((X, X), target=0), "inputs is a tuple; it must be one tensor"),
    (lambda net: ours.Saliency(net).attribute(X, 0, True, (3,)), "additional_forward_args is "),
    (lambda net: ours.InputXGradient(net).attribute(X, 0, (3,)), "additional_forward_args is "),
    (lambda net: ours.IntegratedGradients(net, False), "multiply_by_inputs is False; it must be True"),
    (lambda net: ours.IntegratedGradients(net).attribute(X, None, 0, 3), "additional_forward_args is 3"),
    (lambda net: ours.IntegratedGradients(net).attribute(X, target=0, method="riemann_trapezoid"), "method is "),
    (lambda net: ours.IntegratedGradients(net).attribute(X, target=0, return_convergence_delta=True), "return_conv"),
    (lambda net: ours.IntegratedGradients(net).attribute(X, target=0, n_steps=0), "n_steps is 0"),
    (lambda net: ours.IntegratedGradients(net).attribute(X, (0, 1), target=0), "baselines is "),
    (lambda net: ours.IntegratedGradients(net).attribute(X, X[:2], target=0), "baselines has shape"),
    (lambda net: ours.DeepLift(net, eps=1e-3), "eps is 0.001; it must be 1e-10"),
    (lambda net: ours.DeepLift(net.forward), "model is a method; it must be a Module"),
    (lambda net: ours.DeepLift(net).attribute(X, target=0, custom_attribution_func=max), "custom_attribution_func is"),
    (lambda net: ours.LayerGradCam(net, net[0], [0]), "device_ids is "),
    (lambda net: ours.LayerGradCam(net, net[0]).attribute(X, 0, attr_dim_summation=False), "attr_dim_summation is"),
    (lambda net: ours.LayerGradCam(net, net[0]).attribute(X, 0, attribute_to_layer_input=True), "attribute_to_layer"),
    (lambda net: ours.Occlusion(net).attribute(X, (2, 2), target=0), r"sliding_window_shapes is \(2, 2\)"),
    (lambda net: ours.Occlusion(net).attribute(X, (2, 2, 4), target=0), "a side of sliding_window_shapes is 4"),
    (lambda net: ours.Occlusion(net).attribute(X, (1, 1, 1), 2, target=0), "a stride is 2"),
    (lambda net: ours.Occlusion(net).attribute(X, (1, 1, 1), target=0, show_progress=True), "show_progress is True"),
    (lambda net: ours.NoiseTunnel(max, generator=cases.generator()), "attribution_method is a builtin"),
    (lambda net: tunnel(net).attribute(X, nt_samples_batch_size=2, target=0), "nt_samples_batch_size is 2"),
    (lambda net: tunnel(net).attribute(X, draw_baseline_from_distrib=True, target=0), "draw_baseline_from_distrib is"),
    (lambda net: tunnel(net).attribute(X, "other", target=0), "nt_type is 'other'"),
    (lambda net: tunnel(net).attribute(X, stdevs=-1.0, target=0), "stdevs is -1.0"),
    (lambda net: tunnel(net).attribute(X, target=0, baselines=X), "baselines is a tensor"),
    (lambda net: ours.LRP(net).attribute(X, 0, verbose=True), "verbose is True"),
]


def tunnel(net):
    return ours.NoiseTunnel(ours.Saliency(net), generator=cases.generator())


@pytest.mark.parametrize(("call", "sentence"), REFUSED)
def test_what_is_not_supported_is_refused_in_a_sentence_and_no_number_is_given(call, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        call(tanh())


def test_captums_trapezoid_is_left_out_because_its_weights_do_not_sum_to_one():
    rows = cases.linear()[1].weight[Y].view_as(X)
    theirs = captum.attr.IntegratedGradients(cases.linear()).attribute(
        X, target=Y, method="riemann_trapezoid", n_steps=4
    )
    assert torch.allclose(theirs, 0.75 * X * rows, rtol=1e-6)


class Functions(nn.Module):
    """A network that calls its activations as functions."""

    def __init__(self, activation):
        super().__init__()
        self.layers, self.activation = plain(), activation

    def forward(self, x):
        for layer in self.layers:
            x = self.activation(x) if isinstance(layer, nn.ReLU) else layer(x)
        return x


UNLIKE = [
    (ours.GuidedBackprop, lambda: Functions(F.relu)),
    (ours.GuidedBackprop, tanh),
    (ours.DeepLift, lambda: Functions(F.relu)),
    (ours.DeepLift, partial(plain, nn.GELU)),
    (ours.DeepLift, partial(stacked, "pooled")),
    (ours.DeepLift, partial(cases.mlp, nn.ReLU())),
    (ours.LRP, softplus),
    (ours.LRP, lambda: Functions(F.relu)),
]


@pytest.mark.parametrize(("adapter", "network"), UNLIKE)
def test_a_network_for_which_captums_hooks_give_another_number_is_refused_and_our_own_named(adapter, network):
    with pytest.raises(ValueError, match=rf"model runs .* captum's {adapter.__name__} .*; call attributions\.\w+"):
        adapter(network()).attribute(X, target=Y)
    assert not any(module._forward_hooks for module in adapter(network()).model.modules())


@pytest.mark.parametrize(
    ("name", "network"), [("GuidedBackprop", lambda: Functions(F.relu)), ("DeepLift", partial(plain, nn.GELU))]
)
@quiet
def test_on_such_a_network_captum_silently_gives_the_number_of_another_method(name, network):
    theirs = getattr(captum.attr, name)(network()).attribute(X.clone().requires_grad_(), target=Y)
    own = getattr(attributions, {"GuidedBackprop": "guided_backprop", "DeepLift": "deep_lift"}[name])
    assert not torch.allclose(theirs, own(network(), X, Y), rtol=0.01)


@cases.isolated
def pooled():
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, cases.CLASSES)]
    return cases.filled(nn.Sequential(*layers), 0)


@quiet
def test_captums_shares_behind_a_max_pool_need_not_sum_to_the_change_of_the_logit_and_ours_do():
    model, x = pooled(), cases.images(4, shape=(2, 6, 6))
    change = (model(x) - model(x.flip(0))).gather(1, Y[:, None])[:, 0]
    theirs = captum.attr.DeepLift(model).attribute(x.clone().requires_grad_(), x.flip(0), target=Y)
    own = attributions.deep_lift(model, x, Y, baseline=x.flip(0))
    assert torch.allclose(own.sum((1, 2, 3)), change, rtol=1e-10)
    assert not torch.allclose(theirs.sum((1, 2, 3)), change, rtol=0.01)


def test_relevance_by_rules_of_the_callers_own_is_refused():
    model = plain()
    model[0].rule = object()
    with pytest.raises(ValueError, match=r"the rule of '0' is .*; it must be None"):
        ours.LRP(model).attribute(X, target=0)


@pytest.mark.parametrize("name", ["saliency", "middle", "windows"])
def test_a_function_is_explained_like_the_network_behind_it(name):
    _, make, options = CALLS[name]
    model = tanh()
    found = make(ours, lambda x: model(x)).attribute(X, target=Y, **options)
    assert torch.equal(found, make(ours, model).attribute(X, target=Y, **options))


@pytest.mark.parametrize("name", [name for name in ours.__all__ if name != "of_captum"])
def test_signatures_are_captums_and_only_the_generator_of_noise_is_added(name):
    for function in ("__init__", "attribute"):
        mine, theirs = (
            inspect.signature(getattr(getattr(lib, name), function)).parameters for lib in (ours, captum.attr)
        )
        added = {"generator", "target", "options"} if name == "NoiseTunnel" else set()
        shared = [n for n in mine if n not in added]
        assert shared == [n for n in theirs if n != "kwargs"]
        assert [mine[n].default for n in shared] == [theirs[n].default for n in shared]


def test_the_module_is_imported_without_captum():
    program = "import sys; sys.modules['captum'] = None; import attrobust.captum; attrobust.captum.Saliency"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# ---------------------------------------------------------------------- captum's own objects

EXPLAINERS = {
    "saliency": lambda net: of_captum(captum.attr.Saliency(net), abs=False),
    "input x gradient": lambda net: of_captum(captum.attr.InputXGradient(net)),
    "deep lift": lambda net: of_captum(captum.attr.DeepLift(net), baselines=0.1),
    "deconvolution": lambda net: of_captum(captum.attr.Deconvolution(net)),
    "shap-like": lambda net: of_captum(captum.attr.FeatureAblation(net)),
    "grad-cam": lambda net: of_captum(captum.attr.LayerGradCam(net, net[0])),
    "forward": lambda net: of_captum(captum.attr.Saliency(net.forward), abs=False),
    "ours": lambda net: of_captum(ours.Saliency(net), abs=False),
}


@pytest.mark.parametrize("name", EXPLAINERS)
@quiet
def test_an_object_of_captums_is_compared_and_measured_as_any_attribution(name):
    model = plain()
    attribution = EXPLAINERS[name](model)
    moved = (X + 0.05 * torch.randn(X.shape, generator=cases.generator(), dtype=X.dtype)).clamp(0, 1)
    table = robustness.compare(model, attribution, X, moved, k=2)
    assert table["cosine"].between(-1, 1).all()
    if name in ("saliency", "forward", "ours"):
        same = robustness.compare(model, attributions.saliency, X, moved, k=2)
        assert np.allclose(table.to_numpy(float), same.to_numpy(float))
    how = {"attributions": {"theirs": attribution}, "generator": cases.generator()}
    if name != "grad-cam":  # two rows are no part of three
        areas = faithfulness.insertion_deletion(model, X, **how, steps=3)
        assert areas[areas["attribution"] == "theirs"]["deletion"].between(0, 1).all()


@pytest.mark.parametrize("name", EXPLAINERS)
@quiet
def test_the_map_leaves_the_images_and_the_network_as_found(name):
    model, x, at = plain(), X.clone(), X.clone().requires_grad_()
    attribution = EXPLAINERS[name](model)
    assert torch.equal(attribution(model, at, Y).detach(), attribution(model, x, Y))
    assert not x.requires_grad and at.grad is None and torch.equal(x, X)
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        assert not attribution(model, at, Y).requires_grad


@pytest.mark.parametrize("network", [plain, tanh])
@pytest.mark.parametrize("name", ["saliency", "shap-like"])
@quiet
def test_a_map_without_a_derivative_is_not_climbed_and_never_counts_as_robust(name, network):
    model = network()
    how = {"k": 2, "generator": cases.generator(), "effort": attacks.Effort(steps=2, restarts=1)}
    ball = Ball("linf", 0.1)
    with pytest.raises(attacks.BlindError, match=r"model is a smooth twin, and .* explains nothing but the network"):
        attacks.auto(EXPLAINERS[name](model), model, X, ball, **how)
    table = robustness.attribution_robustness(
        model, X, attributions={"theirs": EXPLAINERS[name](model)}, ball=ball, refuse=False, **how
    )
    worst = table[table["attack"] == "worst"]
    assert worst[list(robustness.COLUMNS)].isna().all(axis=None)
    assert (worst["counted"] == 0).all()
    blind = attacks.Effort(steps=0, draws=5, walk=0)
    searched = attacks.auto(EXPLAINERS[name](model), model, X, ball, **how | {"effort": blind})
    assert not searched.climbed.any() and searched.counted.all()


@quiet
def test_input_times_a_detached_gradient_is_refused_where_the_gradient_bends():
    """Its derivative is there and wrong: that of the gradient is missing."""
    model, how = (
        cases.quadratic(),
        {"k": 2, "generator": cases.generator(), "effort": attacks.Effort(steps=2, restarts=1)},
    )
    with pytest.raises(attacks.BlindError):
        attacks.auto(EXPLAINERS["input x gradient"](model), model, X, Ball("linf", 0.1), **how)


def test_an_adapter_of_ours_is_climbed_where_captums_own_is_not():
    model, how = tanh(), {"k": 2, "generator": cases.generator(), "effort": attacks.Effort(steps=2, restarts=1)}
    found = attacks.auto(EXPLAINERS["ours"](model), model, X, Ball("linf", 0.1), **how)
    assert found.climbed.all()


@pytest.mark.parametrize("name", ["saliency", "ours", "forward"])
def test_a_map_of_another_network_than_the_explainers_is_refused(name):
    model, other = plain(), plain()
    with pytest.raises(ValueError, match="model is Sequential, not the network that Saliency was made of"):
        robustness.compare(other, EXPLAINERS[name](model), X, X.flip(0), k=2)


def test_what_is_another_function_of_the_network_is_refused():
    model = plain()
    with pytest.raises(ValueError, match="model is Sequential, not the network that Saliency was made of, function"):
        of_captum(captum.attr.Saliency(lambda x: 2 * model(x)))(model, X, Y)


def test_an_explainer_that_draws_from_the_global_generator_is_refused():
    model = plain()
    noisy = of_captum(captum.attr.NoiseTunnel(captum.attr.Saliency(model)))
    with pytest.raises(ValueError, match=r"explainer NoiseTunnel answers the same images differently.*it is random"):
        noisy(model, X, Y)


@pytest.mark.parametrize(
    ("explainer", "options", "sentence"),
    [
        (object(), {}, "explainer.attribute is None; it must be a function"),
        (captum.attr.Saliency(plain()), {"target": 0}, "options have 'target'"),
        (captum.attr.Saliency(plain()), {"inputs": 0}, "options have 'inputs'"),
    ],
)
def test_what_is_no_explainer_is_refused(explainer, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        of_captum(explainer, **options)


def test_an_explainer_that_does_not_say_what_it_explains_is_refused():
    class Nameless:
        def attribute(self, inputs, target):
            return inputs

    with pytest.raises(ValueError, match="explainer is a Nameless without forward_func"):
        of_captum(Nameless())


def test_an_explainer_that_returns_more_than_a_map_is_refused(unchecked):
    model = plain()
    both = of_captum(captum.attr.IntegratedGradients(model), n_steps=2, return_convergence_delta=True)
    with pytest.raises(ValueError, match="the map of IntegratedGradients is a tuple"):
        both(model, X, Y)
