"""What a map explains: readouts against float64, and attributions of each against their definition."""

import copy
import gc
import weakref
from functools import partial

import captum.attr
import cases
import pytest
import torch
from attrobust import attributions, curvature
from attrobust.balls import Ball
from attrobust.models import readouts
from torch import nn
from torch.nn import functional as F

READOUTS = {name: getattr(readouts, name) for name in ("logit", "log_probability", "margin", "cross_entropy")}


def identity(x):
    return x


def gradients(value, x):
    """First derivative, and the second along it."""
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return first.detach(), second


def test_log_probability_is_that_of_the_softmax():
    logits, y = torch.randn(50, 7, dtype=torch.float64, generator=cases.generator()), torch.arange(50) % 7
    exact = logits.log_softmax(1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(readouts.log_probability(identity, logits, y), exact, rtol=1e-12)
    assert torch.allclose(readouts.cross_entropy(identity, logits, y), -exact, rtol=1e-12)


@pytest.mark.parametrize("gap", [-200.0, -70.0, -55.0, -5.0, 0.0, 5.0, 17.0, 20.0, 28.0, 40.0, 55.0, 65.0, 80.0])
def test_log_probability_is_exact_where_the_complement_is_not_a_float(gap):
    logits = torch.tensor([[gap, 0.0, -1.0, -3.0]])
    y = torch.tensor([0])
    single, double = logits.clone().requires_grad_(), logits.double().requires_grad_()
    value = readouts.log_probability(identity, single, y)
    # In float64, by hand: p_j of the other classes from the gap to them, never as 1 - p_y.
    others = double[:, 1:].logsumexp(1) - double[:, 0]
    exact = torch.where(others < 0, -torch.log1p(others.exp()), -others - torch.log1p((-others).exp()))
    assert value.item() == pytest.approx(exact.item(), rel=2e-6)
    (first,) = torch.autograd.grad(value.sum(), single, create_graph=True)
    complement = torch.sigmoid(others).detach()
    p = complement[:, None] * double[:, 1:].softmax(1).detach()
    assert first[0, 1:].tolist() == pytest.approx((-p[0]).tolist(), rel=2e-5)
    assert first[0, 0].item() == pytest.approx(complement.item(), rel=2e-5)
    (second,) = torch.autograd.grad(first[0, 0], single)
    assert torch.isfinite(second).all()
    bend = (complement * torch.sigmoid(-others)).item()
    assert second[0, 0].item() == pytest.approx(-bend, rel=2e-5, abs=1e-7 * complement.item())


@pytest.mark.parametrize("sure", [1.0, 10.0, 100.0])
def test_its_map_is_the_probabilities_times_the_differences_of_the_logits_maps(sure):
    model, x = cases.mlp(), cases.images(4)
    with torch.no_grad():
        model[-1].weight *= sure
        model[-1].bias *= sure
        y = model(x).argmax(1)
    jacobian = curvature.input_jacobian(model, x)
    own = jacobian[torch.arange(4), y]
    logits = model(x).detach()
    gaps = logits - logits.gather(1, y[:, None])
    p = gaps.exp() / gaps.exp().sum(1, keepdim=True)
    exact = torch.einsum("bc,bcn->bn", p, own[:, None] - jacobian)
    found = attributions.saliency(model, x, y, readout=readouts.log_probability).detach().flatten(1)
    assert torch.allclose(found, exact, rtol=1e-9, atol=0)
    single = attributions.saliency(copy.deepcopy(model).float(), x.float(), y, readout=readouts.log_probability)
    error = (single.detach().flatten(1).double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < 1e-3  # float32 logits of size `sure` leave this much of a gap


def test_of_two_classes_it_is_the_logits_difference_alone():
    x, y = torch.randn(20, 2, dtype=torch.float64, generator=cases.generator()), torch.arange(20) % 2
    gap = x.gather(1, y[:, None]) - x.gather(1, 1 - y[:, None])
    assert torch.allclose(readouts.log_probability(identity, x, y), F.logsigmoid(gap)[:, 0])
    assert torch.allclose(readouts.margin(identity, x, y), gap[:, 0])


class Wrapped(nn.Module):
    """A network whose outputs are the readouts of all classes, for captum, which explains an output."""

    def __init__(self, model, readout):
        super().__init__()
        self.model, self.readout = model, readout

    def forward(self, x):
        logits = self.model(x)
        classes = range(logits.shape[1])
        return torch.stack([self.readout(lambda _: logits, x, torch.full((len(x),), c)) for c in classes], 1)


@pytest.mark.parametrize("name", READOUTS)
def test_gradient_attributions_of_a_readout_agree_with_captum(name):
    model, x, y = cases.mlp(), cases.images(4).requires_grad_(), cases.labels(4)
    readout, wrapped = READOUTS[name], Wrapped(model, READOUTS[name])
    theirs = captum.attr.Saliency(wrapped).attribute(x, target=y, abs=False)
    assert torch.allclose(attributions.saliency(model, x, y, readout=readout), theirs)
    theirs = captum.attr.InputXGradient(wrapped).attribute(x, target=y)
    assert torch.allclose(attributions.input_x_gradient(model, x, y, readout=readout), theirs)
    theirs = captum.attr.IntegratedGradients(wrapped).attribute(x, target=y, n_steps=16, method="riemann_middle")
    assert torch.allclose(attributions.integrated_gradients(model, x, y, steps=16, readout=readout), theirs)
    network = cases.conv()
    theirs = captum.attr.LayerGradCam(Wrapped(network, readout), network[0]).attribute(x, target=y)
    found = attributions.grad_cam(network, x, y, layer=network[0], readout=readout)
    assert torch.allclose(found, F.interpolate(theirs, size=(3, 3), mode="bilinear", align_corners=False))


def averaged(attribution, model, x, y, readout, **options):
    generator = cases.generator(3)
    return attribution(model, x, y, samples=5, generator=generator, readout=readout, **options)


@pytest.mark.parametrize("name", READOUTS)
def test_averaged_gradients_of_a_readout_are_those_of_the_wrapped_network(name):
    model, x, y = cases.mlp(), cases.images(4), cases.labels(4)
    for attribution, options in (
        (attributions.smooth_grad, {"sigma": 0.1}),
        (attributions.uniform_grad, {"ball": Ball("linf", 0.1)}),
    ):
        found = averaged(attribution, model, x, y, READOUTS[name], **options)
        alone = averaged(attribution, Wrapped(model, READOUTS[name]), x, y, readouts.logit, **options)
        assert torch.allclose(found, alone)


class Attending(nn.Module):
    """A transformer that hands out readouts instead of logits."""

    def __init__(self, model, readout):
        super().__init__()
        self.model, self.readout = model, readout

    def forward(self, x):
        return self.attend(x)[0]

    def attend(self, x):
        logits, maps = self.model.attend(x)
        classes = range(logits.shape[1])
        return torch.stack([self.readout(lambda _: logits, x, torch.full((len(x),), c)) for c in classes], 1), maps


@pytest.mark.parametrize("name", READOUTS)
def test_attention_weighed_by_gradients_takes_a_readout(name):
    model, x, y = cases.vit(), cases.images(3, shape=cases.VIT_SHAPE), cases.labels(3)
    for attribution in (attributions.gradient_attention, attributions.relevance):
        found = attribution(model, x, y, readout=READOUTS[name])
        assert torch.allclose(found, attribution(Attending(model, READOUTS[name]), x, y))
    if name in ("log_probability", "margin"):
        assert not torch.allclose(found, attributions.relevance(model, x, y))


@pytest.mark.parametrize("name", ["log_probability", "margin", "cross_entropy"])
def test_maps_of_a_readout_can_be_differentiated(name):
    model, x, y = cases.mlp(), cases.images(2), cases.labels(2)
    way = torch.randn(x.shape, dtype=x.dtype, generator=cases.generator(1))
    for attribution in (attributions.saliency, partial(attributions.integrated_gradients, steps=4)):
        weight = torch.randn(x.shape, dtype=x.dtype, generator=cases.generator(2))

        def value(at, attribution=attribution, weight=weight):
            return (weight * attribution(model, at, y, readout=READOUTS[name])).sum((1, 2, 3))

        at = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(value(at).sum(), at)
        measured = cases.slope(lambda at, value=value: value(at).detach(), x, way)
        assert torch.allclose((slope * way).sum((1, 2, 3)), measured, rtol=1e-6, atol=1e-9)


def test_curvature_in_the_pixels_is_of_the_same_readouts():
    model, x, y = cases.mlp(), cases.images(3), cases.labels(3)
    for readout in READOUTS.values():
        hessian = curvature.InputHessian(model, x, y, readout=readout)
        assert torch.allclose(hessian.gradient, attributions.saliency(model, x, y, readout=readout).detach())
    dense = cases.input_hessians(lambda im, i: readouts.log_probability(model, im, y[i : i + 1]), x)
    found = curvature.input_curvature(
        curvature.InputHessian(model, x, y, readout=readouts.log_probability),
        generator=cases.generator(),
        steps=cases.PIXELS,
    )
    assert torch.allclose(found.value, torch.linalg.matrix_norm(dense, ord=2))


def test_a_readout_of_another_shape_is_refused(unchecked):
    model, x, y = cases.mlp(), cases.images(3), cases.labels(3)
    sentence = r"readout has shape \(2, 4\); it must be one number per image, shape \(2,\)"
    network = cases.conv()
    for refuse in (
        lambda r: attributions.saliency(model, x, y, readout=r),
        lambda r: attributions.grad_cam(network, x, y, layer=network[0], readout=r),
    ):
        with pytest.raises(ValueError, match=sentence):
            refuse(lambda model, x, y: model(x))
    for readout in READOUTS.values():
        with pytest.raises(ValueError, match="model returned a tuple; wrap it to return logits"):
            readout(lambda x: (x,), x, y)


@pytest.mark.parametrize(
    ("readout", "sentence"),
    [
        ("logit", "readout is 'logit'; it must be a function"),
        ((1,), r"readout is \(1,\); it must be a function"),
        (3, "readout is 3; it must be a function"),
        (None, "readout is None; it must be a function"),
        (lambda m, x, y: 1.0, "readout gives a float; it must give a tensor"),
        (lambda m, x, y: m(x).sum(), r"readout has shape \(\)"),
        (lambda m, x, y: m(x).argmax(1), "readout has dtype torch.int64"),
        (lambda m, x, y: {}["z"], "readout does not run on x of shape .*: 'z'"),
        (lambda m, x, y: m(x)[:, 0] + torch.rand(len(x)), "readout answers the same images differently.*it is random"),
        (lambda m, x, y: m(x)[:, 0] - m(x)[:, 0].mean(), "readout answers an image differently alone and in company"),
        (lambda m, x, y: m(x)[:, 0].detach(), "readout cuts the gradient off"),
        (lambda m, x, y: m(x)[:, 0] + m(x)[:, 0].detach().square(), "readout cuts the gradient off"),
    ],
)
def test_a_readout_that_is_no_differentiable_number_of_each_image_is_refused(readout, sentence, unchecked):
    model, network, x, y = cases.mlp(), cases.conv(), cases.images(), cases.labels()
    for way in (
        lambda: attributions.saliency(model, x, y, readout=readout),
        lambda: attributions.integrated_gradients(model, x, y, steps=2, chunk=2, readout=readout),
        lambda: attributions.grad_cam(network, x, y, layer=network[0], readout=readout),
        lambda: curvature.input_gradient_norm(model, x, y, readout=readout),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            way()


def test_a_readout_of_the_readers_own_is_looked_at_once_and_forgotten_with_it():
    seen, model, x, y = [], cases.mlp(), cases.images(), cases.labels()

    def own(model, x, y):
        seen.append(len(x))
        return model(x).square().sum(1)

    first = attributions.saliency(model, x, y, readout=own)
    met = len(seen)
    assert torch.equal(first, attributions.saliency(model, x, y, readout=own)) and len(seen) == met + 1
    gone = weakref.ref(own)
    del own
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("y", "sentence"),
    [
        (torch.tensor([0, 1, 9]), r"y spans \[0, 9\]"),
        (torch.tensor([0, 1, -100]), r"y spans \[-100, 1\]"),  # torch's cross-entropy ignores it: 0
        (torch.tensor([1]), r"y has shape \(1,\)"),
        (torch.tensor([0.0, 1.0, 2.0]), "y has shape .* dtype torch.float32"),
        ([0, 1, 2], "y is a list"),
        (torch.tensor([0, 1, 2], device="meta"), "y lies on the device meta"),
    ],
)
@pytest.mark.parametrize("readout", readouts.OF_LOGITS)
def test_labels_of_a_readout_that_is_called_itself_are_looked_at(readout, y, sentence, unchecked):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        readout(cases.mlp(), cases.images(), y)
