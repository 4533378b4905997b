"""Grad-CAM; and the derivative of every attribution."""

import inspect
import math
from functools import partial

import captum.attr
import cases
import pytest
import torch
from attrobust import attacks, attributions, models, robustness, similarity
from attrobust.balls import Ball
from torch import nn

X, Y = cases.images(3), cases.labels(3)


def first(model, x, target, **options):
    """Grad-CAM of the convolution, found on a twin as on the network itself."""
    layer = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    return attributions.grad_cam(model, x, target, layer=layer, **options)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU()])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("positive", [True, False])
def test_grad_cam_agrees_with_captum(activation, place, positive):
    whole = cases.conv(activation)
    model = nn.Sequential(nn.AvgPool2d(2), *whole)  # six by ten pixels are seen as three by five, hence two by four
    with torch.random.fork_rng(devices=[]):
        model[4] = cases.filled(nn.Linear(24, cases.CLASSES), 1)
    x = cases.images(3, shape=(2, 6, 10))
    small = captum.attr.LayerGradCam(model, model[1 + place]).attribute(x, target=Y, relu_attributions=positive)
    theirs = captum.attr.LayerAttribution.interpolate(small, (6, 10), "bilinear")
    ours = attributions.grad_cam(model, x, Y, layer=model[1 + place], positive=positive)
    assert ours.shape == (3, 1, 6, 10)
    assert torch.allclose(ours, theirs, rtol=1e-12)


def test_grad_cam_sees_a_layer_before_the_next_one_overwrites_it():
    kept, overwritten = cases.conv(nn.ReLU()), cases.conv(nn.ReLU(inplace=True))
    assert torch.allclose(first(overwritten, X, Y), first(kept, X, Y))
    at = X.clone().requires_grad_()
    torch.autograd.grad(first(overwritten, at, Y).square().sum(), at)


def test_grad_cam_of_a_smooth_network_bends_as_finite_differences_say():
    model = cases.conv()
    weights, direction = torch.randn(2, *X.shape, generator=cases.generator(1), dtype=X.dtype)

    def score(images):
        return (first(model, images, Y) * weights[:, :1]).sum()

    at = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(at), at)
    slope = cases.slope(score, X, direction).item()
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-7)


def test_grad_cam_composes_with_attacks_and_similarities():
    model = cases.conv()
    effort = attacks.Effort(steps=3, restarts=1, draws=0, walk=0, objectives=("pearson",))
    found = attacks.auto(first, model, X, Ball("linf", 0.1), k=3, effort=effort, generator=cases.generator())
    target = model(X).argmax(1)
    clean, moved = (attributions.pixelwise(first(model, im, target)) for im in (X, found.x["pearson"]))
    worst = found.table[found.table["part"] == "worst"]["pearson"]
    assert worst.to_numpy() == pytest.approx(similarity.pearson(clean, moved).detach().numpy())
    assert (worst < 1).all()


def test_grad_cam_runs_the_same_layer_under_a_twin():
    relu = cases.conv(nn.ReLU())
    maps = [first(models.smooth_twin(relu, X, beta=b), X, Y) for b in (10.0, 1000.0)]
    errors = [(m - first(relu, X, Y)).norm() for m in maps]
    assert errors[1] < errors[0] / 10


class Idle(nn.Module):
    """A layer that does not run, one that runs twice, one that returns two tensors, one without a say."""

    def __init__(self):
        super().__init__()
        self.model, self.idle, self.twice, self.split = cases.conv(), nn.Conv2d(1, 1, 1), nn.Identity(), Halves()
        self.aside = nn.Conv2d(2, 2, 1).double()

    def forward(self, x):
        self.aside(x)
        return self.model(torch.cat(self.split(self.twice(self.twice(x))), 2))


class Halves(nn.Module):
    def forward(self, x):
        return x[:, :, :1], x[:, :, 1:]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("idle", "layer is a Conv2d that ran 0 times; it must be a module that the model runs once"),
        ("twice", "layer is a Identity that ran 2 times"),
        ("split", "layer is a Halves that returned tuple; it must return"),
        ("model.3", r"layer is a Linear that returned \(3, 4\); it must return \(batch, channels, rows, columns\)"),
    ],
)
def test_a_layer_that_has_no_map_is_refused_and_no_hook_stays(name, sentence):
    with torch.random.fork_rng(devices=[]):
        model = Idle()
    layer = model.get_submodule(name)
    with pytest.raises(ValueError, match=sentence):
        attributions.grad_cam(model, X, Y, layer=layer)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_layer_without_a_say_has_a_zero_map():
    with torch.random.fork_rng(devices=[]):
        model = Idle()
    assert not attributions.grad_cam(model, X, Y, layer=model.aside).any()


def test_an_error_in_the_model_leaves_no_hook():
    model = cases.conv()
    first(model, X, Y)
    model[3].forward = cases.failing
    with pytest.raises((RuntimeError, ValueError), match="on purpose"):
        first(model, X, Y)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("training", [True, False])
def test_grad_cam_leaves_the_model_as_found_and_may_be_drawn_of_a_frozen_one(training):
    model = cases.conv().train(training)
    with torch.no_grad():
        maps = first(model, X, Y)
    assert not maps.requires_grad
    assert all(m.training == training and not m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(first(model.requires_grad_(False), X, Y), maps)


# ------------------------------------------------------------------ derivatives of every attribution


def drawn(method, **options):
    """The method under common noise."""
    return lambda model, x, target: method(model, x, target, generator=cases.generator(5), **options)


HOW = {
    attributions.smooth_grad: drawn(attributions.smooth_grad, sigma=0.1, samples=3),
    attributions.uniform_grad: drawn(attributions.uniform_grad, ball=Ball("linf", 0.1), samples=3),
    attributions.grad_cam: first,
    attributions.occlusion: partial(attributions.occlusion, patch=1),
}
ATTENTIVE = (
    attributions.raw_attention,
    attributions.rollout,
    attributions.gradient_attention,
    attributions.relevance,
    attributions.attention_flow,
)


def ready(method):
    """Method, network and images on which its derivative is tried."""
    if method in ATTENTIVE:
        return method, cases.vit(), cases.images(3, shape=cases.VIT_SHAPE)
    return HOW.get(method, method), cases.conv(), X


def directional(attribution, model, x):
    """Derivative of a weighted sum of the map along a direction: autograd's, and by finite differences."""
    direction = torch.randn(x.shape, generator=cases.generator(1), dtype=x.dtype)
    weights = torch.randn(attribution(model, x, Y).shape, generator=cases.generator(2), dtype=x.dtype)

    def score(images):
        return (attribution(model, images, Y) * weights).sum()

    at = x.clone().requires_grad_()
    value = score(at)
    if not value.requires_grad:
        return 0.0, cases.slope(score, x, direction, step=1e-3).item()
    (gradient,) = torch.autograd.grad(value, at)
    return (gradient * direction).sum().item(), cases.slope(score, x, direction).item()


HELPERS = {"drawn_on_patches", "on_patches", "patches", "pixelwise", "with_logits", "zero_maps"}
HELPERS |= {"brings_logits", "draws_for_each"}
METHODS = [getattr(attributions, name) for name in attributions.__all__ if name not in HELPERS]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_on_a_smooth_network_every_derivative_but_flows_agrees_with_finite_differences(method):
    autograd, finite = directional(*ready(method))
    assert (autograd == pytest.approx(finite, rel=1e-5)) == (method is not attributions.attention_flow)
    assert abs(finite) > 1e-4


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_a_map_knows_no_other_image_of_its_batch_and_leaves_all_as_found(method):
    attribution, model, x = ready(method)
    kept, weights = x.clone(), [p.clone() for p in model.parameters()]
    whole = attribution(model, x, Y).detach()
    assert torch.equal(x, kept)
    assert not x.requires_grad
    for p, before in zip(model.parameters(), weights, strict=True):
        assert p.grad is None
        assert torch.equal(p, before)
    if "generator" in inspect.signature(method).parameters:
        return  # another batch draws other noise
    for i in range(len(x)):
        assert torch.allclose(attribution(model, x[i : i + 1], Y[i : i + 1]), whole[i : i + 1], rtol=1e-10)


def audited(attribution, model, x):
    signs = torch.randn(2, *x.shape, generator=cases.generator(3), dtype=x.dtype).sign()
    return attacks.audit(lambda at: attribution(model, at, Y), x, signs)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_the_audit_passes_true_derivatives_and_refuses_flow(method):
    found = audited(*ready(method))
    assert found.moved.all()
    assert found.refused == (method is attributions.attention_flow)


@pytest.mark.parametrize("method", [attributions.saliency, attributions.guided_backprop], ids=lambda m: m.__name__)
def test_the_audit_refuses_a_network_with_kinks_and_passes_its_twin(method):
    relu, x = cases.mlp(nn.ReLU(), width=40), X
    assert audited(method, relu, x).refused
    assert not audited(method, models.smooth_twin(relu, x, beta=5.0), x).refused


def test_strangers_are_judged_by_their_derivative_and_by_no_list():
    def detached(model, x, target):
        return captum.attr.InputXGradient(model).attribute(x.detach().requires_grad_(), target=target).detach()

    model, effort = cases.conv(), attacks.Effort(steps=2, restarts=1, draws=0, walk=0)
    how = {"k": 3, "effort": effort, "generator": cases.generator()}
    with pytest.raises(ValueError, match="model has a detached map whose derivative does not predict"):
        attacks.auto(detached, model, X, Ball("linf", 0.1), **how)
    pooled = partial(attributions.on_patches, attribution=partial(attributions.integrated_gradients, steps=3), patch=3)
    assert audited(pooled, cases.conv(), X).passed.all()


NEW = {
    "uniform_grad": HOW[attributions.uniform_grad],
    "deep_lift": attributions.deep_lift,
    "lrp": attributions.lrp,
    "z_plus": partial(attributions.lrp, rule="z_plus"),
    "guided_backprop": attributions.guided_backprop,
    "grad_cam": first,
}


@pytest.mark.parametrize("activation", [nn.GELU(), nn.ReLU()])
def test_every_map_can_be_attacked_and_the_attack_beats_noise(activation):
    model, x = cases.conv(activation), cases.images(4)
    effort = attacks.Effort(steps=3, restarts=1, betas=(20.0,))
    how = {"ball": Ball("linf", 0.1), "k": 3, "effort": effort, "generator": cases.generator()}
    waiting = {"uniform_grad": partial(attributions.uniform_grad, ball=Ball("linf", 0.1), samples=3)}
    table = robustness.attribution_robustness(model, x, attributions=NEW | waiting, **how)
    means = table.groupby(["attribution", "attack"])["pearson"].mean().unstack()
    assert (means["worst"] < means["noise"]).all()
    for name, attribution in NEW.items():
        worst = table[(table["attribution"] == name) & (table["attack"] == "worst")].set_index("image")
        empty = attributions.zero_maps(attribution(model, x, model(x).argmax(1)).detach())
        assert (worst.isna().any(axis=1).to_numpy() == empty.numpy()).all()


@pytest.mark.parametrize("patch", [1, 3])
def test_occlusion_is_captums_with_a_window_that_covers_one_patch_after_the_other(patch):
    model, x, window = cases.conv().float(), X.float(), (X.shape[1], patch, patch)
    theirs = captum.attr.Occlusion(model).attribute(
        x, sliding_window_shapes=window, strides=window, target=Y, baselines=0.2
    )
    ours = attributions.occlusion(model, x, Y, patch=patch, baseline=0.2)
    coarse = attributions.patches(theirs[:, :1], patch=patch)
    assert torch.allclose(ours.abs(), coarse, rtol=1e-4)
    assert torch.equal(ours.sign(), theirs[:, :1, ::patch, ::patch].sign())


@pytest.mark.parametrize("baseline", [math.nan, math.inf, torch.zeros(3, 1, 2, 2, dtype=torch.float64)])
def test_occlusion_refuses_a_baseline_that_is_no_finite_number_or_does_not_spread(baseline, unchecked):
    with pytest.raises(ValueError, match="baseline"):
        attributions.occlusion(cases.conv(), X, Y, patch=1, baseline=baseline)


def test_occlusion_needs_no_gradient_of_a_readout_and_refuses_one_of_the_whole_batch():
    model = cases.conv()
    won = attributions.occlusion(model, X, Y, patch=3, readout=lambda m, x, y: (m(x).argmax(1) == y).double())
    assert set(won.unique().tolist()) <= {-1.0, 0.0, 1.0}
    with pytest.raises(ValueError, match="readout"):
        attributions.occlusion(model, X, Y, patch=3, readout=lambda m, x, y: m(x).softmax(0)[:, 0])


def test_grad_cam_is_of_images_alone(unchecked):
    with torch.random.fork_rng():
        flat = nn.Sequential(nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(72, 2))
    with pytest.raises(ValueError, match=r"x has shape \(2, 36\); it must be \(batch, channels, height, width\)"):
        attributions.grad_cam(flat, torch.full((2, 36), 0.5), torch.tensor([0, 1]), layer=flat[1])
