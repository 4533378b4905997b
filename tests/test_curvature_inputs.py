"""Curvature in the pixels, each measure against its formula on dense matrices."""

import math

import cases
import pytest
import torch
from attrobust import curvature
from attrobust.curvature import inputs
from attrobust.curvature.spectra import normal
from attrobust.models import readouts
from cases import draw
from torch import nn


def quadratic(values, slope, n=2):
    """The Hessian with these eigenvalues and this gradient at 0, alike for every class."""
    matrix = cases.with_spectrum(values)
    model = cases.Quadratic(matrix.repeat(4, 1, 1), slope.repeat(4, 1))
    x = torch.zeros(n, *cases.SHAPE, dtype=torch.float64)
    return matrix, curvature.InputHessian(model, x, cases.labels(n))


VALUES = [-6.0, *torch.linspace(-3, 4, 16).tolist(), 5.0]


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_input_curvature_is_the_larger_end_with_its_own_error(steps, sign):
    _, hessian = quadratic([sign * v for v in VALUES], draw(18))
    low, high = curvature.input_extremes(hessian, generator=cases.generator(), steps=steps)
    found = curvature.input_curvature(hessian, generator=cases.generator(), steps=steps)
    for i in range(2):
        end = high if abs(high.value[i]) >= abs(low.value[i]) else low
        assert found.value[i] == abs(end.value[i])
        assert found.error[i] == end.error[i]
    assert found.products == steps


@pytest.mark.parametrize("size", [1.0, 0.01])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_relative_curvature_is_the_root_of_lanczos_on_the_square_over_the_gradients_length(steps, size):
    slope = 3 * size * draw(18, seed=1)
    matrix, hessian = quadratic([size * v for v in VALUES], slope)
    unit = slope / slope.norm()
    turning = matrix @ (torch.eye(18, dtype=torch.float64) - torch.outer(unit, unit)) @ matrix
    start = normal(hessian.gradient.flatten(1), cases.generator())
    _, high = curvature.lanczos(lambda v: v @ turning, start, steps=steps)
    found = curvature.relative_curvature(hessian, generator=cases.generator(), steps=steps)
    length = slope.norm()
    assert torch.allclose(found.value, high.value.sqrt() / length, rtol=1e-9, atol=0)
    assert torch.allclose(found.error, high.error / high.value.sqrt() / length, rtol=1e-6, atol=1e-12)
    assert found.products == hessian.products == 2 * steps


def test_a_flat_image_among_others_has_no_relative_curvature_and_one_without_gradient_an_infinite_one():
    """Per image: x' A x / 2 times y, so one is flat; and one whose gradient is 0."""
    matrix = cases.with_spectrum(VALUES)
    x = draw(3, *cases.SHAPE, seed=3)  # not the numbers from which the search starts
    x[2] = 0

    def readout(model, x, y):
        x = x.flatten(1)
        return y * 0.5 * ((x @ matrix) * x).sum(1)

    hessian = curvature.InputHessian(nn.Flatten(), x, torch.tensor([0, 2, 2]), readout=readout)
    found = curvature.relative_curvature(hessian, generator=cases.generator(), steps=18)
    g = 2 * x[1].flatten() @ matrix
    unit = g / g.norm()
    exact = torch.linalg.matrix_norm(2 * (matrix - torch.outer(unit, unit @ matrix)), ord=2) / g.norm()
    assert found.value.tolist() == pytest.approx([0.0, exact.item(), math.inf], rel=1e-8)
    assert found.error[0] == 0
    assert found.error[1] < 1e-3


@pytest.mark.parametrize("n", [2, 5])
def test_jacobians_gram_spectra_and_norms_are_told_by_hand_in_chunks(n):
    model, x = cases.conv(), cases.images(n)
    j = torch.func.vmap(torch.func.jacrev(lambda image: model(image[None])[0]))(x).flatten(2).detach()
    p = model(x).softmax(1).detach()
    seen = []
    model.register_forward_hook(lambda module, args, out: seen.append((len(args[0]), args[0].requires_grad)))
    for chunk in (2, 256):
        seen.clear()
        assert torch.allclose(curvature.input_jacobian(model, x, chunk=chunk), j, atol=1e-12)
        assert seen[-1] == ((n - 1) % chunk + 1, True)
        gram = curvature.gram_spectrum(model, x, chunk=chunk)
        for i in range(n):
            hessian = j[i].T @ (torch.diag(p[i]) - torch.outer(p[i], p[i])) @ j[i]
            exact = torch.linalg.eigvalsh(hessian)[-cases.CLASSES :]
            assert torch.allclose(gram.value[i], exact, atol=1e-10)
        assert not gram.error.any()
        assert gram.error.shape == gram.value.shape
        assert gram.products == cases.CLASSES
    spectral, frobenius = (curvature.input_jacobian_norm(model, x, norm=norm) for norm in ("spectral", "frobenius"))
    assert torch.allclose(spectral.value, torch.linalg.svdvals(j)[:, 0], rtol=1e-9)
    assert torch.allclose(frobenius.value, j.square().sum((1, 2)).sqrt(), rtol=1e-12)
    for found in (spectral, frobenius):
        assert not found.error.any()
        assert found.error.shape == found.value.shape
        assert found.products == cases.CLASSES
    assert torch.equal(curvature.input_jacobian_norm(model, x).value, spectral.value)


def test_a_batch_above_256_is_run_in_chunks_of_it(monkeypatch):
    model, x = cases.linear(), cases.images(2).repeat(130, 1, 1, 1)
    seen = []
    monkeypatch.setattr(inputs, "jacobian_of", lambda z, at, **how: seen.append(len(z)) or draw(len(z), 4, 18))
    for run in (curvature.input_jacobian, curvature.gram_spectrum, curvature.input_jacobian_norm):
        seen.clear()
        run(model, x)
        assert seen == [256, 4]


def test_jacobians_take_no_integers_no_empty_chunk_and_no_outputs_from_elsewhere(unchecked):
    model, x = cases.linear(), cases.images()
    with pytest.raises(ValueError, match="chunk is 0; it must be a whole number of at least 1"):
        curvature.input_jacobian(model, x, chunk=0)
    with pytest.raises(ValueError, match=r"x has dtype torch.int64; it must be floating-point"):
        curvature.input_jacobian(model, x.long())
    at = x.clone().requires_grad_()
    outputs = at.flatten(1)[:, :2].square()
    for z, where in ((outputs.detach(), at), (outputs, x), (outputs, x.clone().requires_grad_())):
        with pytest.raises(ValueError, match="outputs have no graph that leads to x"):
            curvature.jacobian_of(z, where)
        assert not curvature.jacobian_of(z, where, constant=True).any()
        assert curvature.jacobian_of(z, where, constant=True).shape == (3, 2, 18)
    half = torch.stack([outputs[:, 0], torch.ones(3, dtype=x.dtype)], 1)
    found = curvature.jacobian_of(half, at, constant=True)
    assert torch.allclose(found[:, 0, 0], 2 * x[:, 0, 0, 0])
    assert not found[:, 1].any()
    assert torch.equal(curvature.jacobian_of(half, at, constant=True), found)  # the graph is still there
    with torch.no_grad():
        assert torch.equal(curvature.jacobian_of(half, at, constant=True), found)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"torch.inference_mode is on"):
        curvature.jacobian_of(half, at)


def test_the_audit_of_a_jacobian_weighs_the_logits_by_the_same_normal_numbers():
    logits = draw(3, 4)
    weights = torch.randn(4, generator=cases.generator(), dtype=torch.float64)
    assert torch.allclose(inputs.weighted(logits, 3), logits @ weights, rtol=1e-12)
    assert torch.allclose(inputs.weighted(logits[:1].requires_grad_(), 1).detach(), (logits @ weights)[:1], rtol=1e-12)
    with pytest.raises(ValueError, match="model"):
        inputs.weighted(logits, 2)


@pytest.mark.parametrize("readout", [readouts.logit, readouts.margin, readouts.cross_entropy])
def test_the_length_of_the_gradient_is_of_the_readout_that_is_asked_for(readout):
    model, x, y = cases.conv(), cases.images(4), cases.labels(4)
    at = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(readout(model, at, y).sum(), at)
    found = curvature.input_gradient_norm(model, x, y, readout=readout)
    assert torch.allclose(found, g.square().sum((1, 2, 3)).sqrt(), rtol=1e-10)


@pytest.mark.parametrize("measure", [curvature.input_extremes, curvature.input_moments, curvature.input_curvature,
                                     curvature.relative_curvature])  # fmt: skip
def test_what_is_no_hessian_in_the_pixels_is_refused(measure, unchecked):
    with pytest.raises(ValueError, match="hessian is a Tensor"):
        measure(torch.eye(2), generator=cases.generator())


def test_a_jacobian_is_audited_by_first_derivatives_of_a_few_images():
    model, x, seen = cases.conv(), cases.images(9), []
    model.register_forward_hook(lambda module, args, out: seen.append((len(args[0]), torch.is_grad_enabled())))
    curvature.input_jacobian(model, x)
    assert seen[-5:] == [(4, True), (1, False), (4, False), (4, False), (9, True)]


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-12, 1e-3, 1.0, 1e12, 1e20])
def test_curvatures_of_a_readout_of_any_size_are_right_in_single_precision(scale):
    bent = lambda model, x, y: scale * (x[:, 0] + 3 * x[:, 1].square() / 2 + x[:, 2].square() / 2)  # noqa: E731
    x = torch.tensor([[1.0, 0.0, 0.5], [0.3, 0.0, 0.0]])
    hessian = curvature.InputHessian(nn.Flatten(), x, torch.tensor([0, 0]), readout=bent)
    length = math.sqrt(1.25)
    gradients = (curvature.input_gradient_norm(nn.Flatten(), x, torch.tensor([0, 0]), readout=bent) / scale).tolist()
    assert gradients == pytest.approx([length, 1], rel=1e-5)
    found = curvature.relative_curvature(hessian, generator=cases.generator())
    assert found.value.tolist() == pytest.approx([3 / length, 3], rel=1e-5)
    assert found.error.max() <= 1e-3
    bend = curvature.input_curvature(hessian, generator=cases.generator())
    assert (bend.value / scale).tolist() == pytest.approx([3, 3], rel=1e-5)


@cases.isolated
def test_relative_curvature_of_a_very_sure_network_in_single_precision_is_that_in_double():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    net, x = cases.filled(layers, 0), torch.rand(20, 6, generator=cases.generator(), dtype=torch.float64)
    with torch.no_grad():
        net[3].weight.mul_(150)
    y, readout = net(x).argmax(1), readouts.log_probability

    def turning(dtype):
        hessian = curvature.InputHessian(net.to(dtype), x.to(dtype), y, readout=readout)
        return curvature.relative_curvature(hessian, generator=cases.generator()).value.double()

    assert (readout(net, x, y).abs() < 1e-11).sum() > 3
    right = turning(torch.float64)
    assert torch.allclose(turning(torch.float32), right, rtol=1e-2, atol=0)


def test_where_the_gradient_vanishes_the_relative_curvature_and_its_error_are_infinite():
    bent = lambda model, x, y: x.square().sum(1)  # noqa: E731
    hessian = curvature.InputHessian(nn.Flatten(), torch.zeros(1, 3), torch.tensor([0]), readout=bent)
    found = curvature.relative_curvature(hessian, generator=cases.generator(), steps=3)
    assert (found.value.item(), found.error.item()) == (math.inf, math.inf)
