"""Trained networks with BatchNorm, explained, attacked and measured in eval mode, where it is affine."""

import math
from functools import cache, partial

import captum.attr
import cases
import pytest
import torch
from attrobust import attacks, attributions, curvature, faithfulness, models, robustness, training
from attrobust.balls import Ball
from torch import nn
from torch.nn import functional as F

SHAPE, CLASSES = (1, 8, 8), 3
NAMES = ("convnet_bn", "resnet")
TINY = {"convnet_bn": 2, "resnet": 1}
EFFORT = attacks.Effort(steps=3, restarts=1, draws=0, walk=0, betas=(5.0,), objectives=("pearson",))
LOSS = cases.per_example_cross_entropy


def examples(n=40):
    """Which third of the columns, of an image of noise, is the brightest."""
    x = cases.images(n, shape=SHAPE)
    return x, torch.stack([part.mean((1, 2, 3)) for part in x.tensor_split(3, dim=3)]).argmax(0)


@cache
def trained(name, activation="gelu", width=None):
    """A few updates of SGD, so that running statistics are those of the network."""
    how = {"input_shape": SHAPE, "classes": CLASSES, "activation": activation, "mean": 0.5, "std": 0.15}
    how["width"] = width or TINY[name]
    model = models.build(name, seed=0, **how).double()
    recipe = training.Recipe(step_size=0.05, batch_size=10, epochs=10, momentum=0.9)
    training.fit([model], *examples(), recipe, generators=[cases.generator()])
    return model


def few(n=4):
    x = examples()[0][:n]
    return x, torch.arange(n) % CLASSES


def folded(model):
    """The same function of an image with every BatchNorm multiplied into its convolution: no norm is left."""
    layers = []
    for layer in model.layers:
        if isinstance(layer, nn.BatchNorm2d):
            scale = layer.weight / (layer.running_var + layer.eps).sqrt()
            weight, bias = scale[:, None, None, None] * layers[-1].weight, layer.bias - scale * layer.running_mean
            layers[-1] = cases.Called(partial(F.conv2d, weight=weight, bias=bias, stride=2, padding=1))
        else:
            layers.append(layer)
    return nn.Sequential(*layers).eval()


def by_differences(model, x, y, step=1e-5):
    """Hessian of the mean loss in all parameters, by central differences of the plain gradient."""
    named = dict(model.named_parameters())
    sizes, flat = [p.numel() for p in named.values()], torch.cat([p.detach().flatten() for p in named.values()])

    def gradient(at):
        parts = zip(named.items(), at.split(sizes), strict=True)
        moved = {name: part.view_as(p).clone().requires_grad_() for (name, p), part in parts}
        loss = LOSS(torch.func.functional_call(model, moved, (x,)), y).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(moved.values()))])

    moves = step * torch.eye(len(flat), dtype=flat.dtype)
    rows = torch.stack([(gradient(flat + v) - gradient(flat - v)) / (2 * step) for v in moves])
    return (rows + rows.T) / 2


@pytest.mark.parametrize("name", NAMES)
def test_flatness_is_that_of_finite_differences_of_the_gradient(name):
    model, (x, y) = trained(name), few(8)
    kept = [b.clone() for b in model.buffers()]
    hessian = curvature.ParameterHessian(model, LOSS, x, y)
    values = torch.linalg.eigvalsh(by_differences(model, x, y))
    top = curvature.sharpness(hessian, generator=cases.generator(), steps=60, tolerance=1e-8)
    assert math.isfinite(top.value)
    assert top.value == pytest.approx(float(values[-1]), rel=1e-5)
    mass = curvature.trace(hessian, generator=cases.generator(), products=3 * hessian.size)
    assert abs(mass.value - float(values.sum())) <= 6 * mass.error + 1e-5 * float(values.abs().sum())
    assert all(torch.equal(b, before) for b, before in zip(model.buffers(), kept, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_gauss_newton_trace_is_that_of_the_jacobians(name):
    model, (x, _), exact = trained(name), few(3), 0.0
    for image in x:
        logits = model(image[None])[0]
        slopes = [torch.autograd.grad(z, list(model.parameters()), retain_graph=True) for z in logits]
        rows = torch.stack([torch.cat([part.flatten() for part in row]) for row in slopes])
        p = logits.softmax(0).detach()
        exact += ((torch.diag(p) - torch.outer(p, p)) * (rows @ rows.T)).sum().item() / len(x)
    assert curvature.gauss_newton_trace(curvature.GaussNewton(model, x)).value == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("readout", ["logit", "log_probability"])
@pytest.mark.parametrize("name", NAMES)
def test_curvature_in_the_pixels_is_that_of_the_dense_hessian(name, readout):
    model, (x, y) = trained(name), few()
    read = getattr(models.readouts, readout)
    dense = cases.input_hessians(lambda at, i: read(model, at, y[[i]]), x)
    hessian = curvature.InputHessian(model, x, y, readout=read)
    values = torch.linalg.eigvalsh(dense)
    bend = curvature.input_curvature(hessian, generator=cases.generator(), steps=64)
    assert torch.allclose(bend.value, values.abs().amax(1), rtol=1e-6)
    slopes = attributions.saliency(model, x, y, readout=read).detach().flatten(1)
    assert torch.allclose(hessian.gradient.flatten(1), slopes, rtol=1e-10)
    unit = slopes / slopes.norm(dim=1, keepdim=True)
    across = dense - unit[:, :, None] * torch.einsum("bi,bij->bj", unit, dense)[:, None]
    right = torch.linalg.matrix_norm(across, 2) / slopes.norm(dim=1)
    turn = curvature.relative_curvature(hessian, generator=cases.generator(), steps=64)
    assert torch.allclose(turn.value, right, rtol=1e-5)
    # And the map turns as the Hessian says, by finite differences.
    direction = torch.randn(x.shape, generator=cases.generator(1), dtype=x.dtype)
    turned = cases.slope(lambda at: attributions.saliency(model, at, y, readout=read).detach(), x, direction)
    expected = torch.einsum("bij,bj->bi", dense, direction.flatten(1))
    assert torch.allclose(turned.flatten(1), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_a_network_with_its_batch_norm_folded_into_its_convolutions_has_the_same_maps_and_curvature():
    model, (x, y) = trained("convnet_bn"), few()
    plain = folded(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert torch.allclose(plain(x), model(x), rtol=1e-10)
    for method in (attributions.saliency, partial(attributions.integrated_gradients, steps=5)):
        assert torch.allclose(method(plain, x, y), method(model, x, y), rtol=1e-8, atol=1e-12)
    bends = [
        curvature.input_curvature(curvature.InputHessian(net, x, y), generator=cases.generator(), steps=64).value
        for net in (plain, model)
    ]
    assert torch.allclose(*bends, rtol=1e-8)


def seen(model, x, target, *, of):
    return attributions.grad_cam(model, x, target, layer=of.last_maps)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("name", NAMES)
def test_grad_cam_of_the_last_maps_agrees_with_captum(name, activation):
    model, (x, y) = trained(name, activation), few()
    small = captum.attr.LayerGradCam(model, model.last_maps).attribute(x, target=y)
    theirs = captum.attr.LayerAttribution.interpolate(small, SHAPE[1:], "bilinear")
    assert theirs.any()
    assert torch.allclose(seen(model, x, y, of=model), theirs, rtol=1e-10)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("name", NAMES)
def test_maps_are_attacked_and_the_attack_beats_noise(name, activation):
    model, (x, _) = trained(name, activation, width=4), few()
    maps = {"saliency": attributions.saliency, "grad_cam": partial(seen, of=model)}
    how = {"ball": Ball("linf", 0.05), "k": 6, "effort": EFFORT, "generator": cases.generator()}
    table = robustness.attribution_robustness(model, x, attributions=maps, **how)
    means = table.groupby(["attribution", "attack"])["pearson"].mean().unstack()
    assert (means["worst"] < means["noise"]).all()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("name", NAMES)
def test_deep_lift_shares_out_the_whole_change_of_the_logit(name, activation):
    model, (x, y) = trained(name, activation), few()
    change = (model(x) - model(0 * x)).gather(1, y[:, None])[:, 0]
    assert torch.allclose(attributions.deep_lift(model, x, y).flatten(1).sum(1), change, rtol=1e-8)


def test_layers_are_randomised_one_by_one_and_statistics_stay():
    model, (x, _) = trained("resnet"), few()
    kept = {name: part.clone() for name, part in model.state_dict().items()}
    how = {"attributions": {"saliency": attributions.saliency}, "k": 6, "generator": cases.generator()}
    table = faithfulness.randomisation(model, x, **how)
    assert table["layer"].nunique() == 2 * 9 + 1
    assert all(torch.equal(part, kept[name]) for name, part in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_in_train_mode_everything_is_refused_and_nothing_moves(name):
    model, (x, y) = trained(name), few()
    kept = {name: part.clone() for name, part in model.state_dict().items()}
    how = {"k": 6, "effort": EFFORT, "generator": cases.generator()}
    try:
        model.train()
        for asked in (
            lambda: attributions.saliency(model, x, y),
            lambda: seen(model, x, y, of=model),
            lambda: attacks.auto(attributions.saliency, model, x, Ball("linf", 0.05), **how),
            lambda: curvature.ParameterHessian(model, LOSS, x, y),
            lambda: curvature.InputHessian(model, x, y),
        ):
            with pytest.raises(ValueError, match=r"in train mode: call model.eval\(\)"):
                asked()
    finally:
        model.eval()
    assert all(torch.equal(part, kept[name]) for name, part in model.state_dict().items())
