"""The parts of the theory against closed forms, dense matrices and refusals."""

import math

import cases
import numpy as np
import pytest
import torch
from attrobust import curvature, models
from attrobust.theory import (
    certificates,
    draws,
    duality,
    kernels,
    path_norm,
    stability,
    traps,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import nn

seeds = st.integers(0, 10**6)


# ---------------------------------------------------------------------- duality


def test_a_network_whose_first_layer_is_shared_is_refused():
    x, y = torch.rand(2, 1, 8, 8, generator=cases.generator()), torch.tensor([0, 1])
    conv = models.build("convnet", input_shape=(1, 8, 8), classes=10, seed=0)
    with torch.random.fork_rng(devices=[]):
        tokens = nn.Sequential(nn.Flatten(2), nn.Linear(64, 3), nn.Flatten(), nn.Linear(3, 2))
        bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
    for bound in (duality.input_gradient_bound, duality.input_curvature_bound):
        with pytest.raises(ValueError, match="the first layer is Conv2d; the transfer needs a dense first layer"):
            bound(conv, x, y)
    with pytest.raises(ValueError, match="or its weights are shared"):
        duality.input_gradient_bound(tokens, x, y)
    with pytest.raises(ValueError, match="Linear without a bias"):
        duality.input_gradient_bound(bare, x, y)
    with pytest.raises(ValueError, match="dense first layer"):
        duality.ordering(conv, x)


def test_bounds_are_in_pixel_units_when_the_network_standardises():
    model = models.build("mlp", input_shape=(1, 2, 2), classes=3, seed=0, width=4, depth=2, mean=0.3, std=0.2).double()
    x, y = torch.rand(5, 1, 2, 2, generator=cases.generator(), dtype=torch.float64), torch.arange(5) % 3
    first = duality.first_dense(model, x)
    assert first.spectral == pytest.approx(5 * float(torch.linalg.matrix_norm(first.matrix[:, :-1], ord=2)))
    exact = curvature.input_gradient_norm(model, x, y)
    assert (exact <= duality.input_gradient_bound(model, x, y) * (1 + 1e-9)).all()
    step = 0.1 * torch.randn(5, 4, generator=cases.generator(1), dtype=torch.float64)
    moved = duality.with_change(model, x, y, duality.weight_change(first, step))
    assert torch.allclose(moved, models.readouts.logit(model, x + step.view_as(x), y), atol=1e-12)


@given(seed=seeds)
def test_the_smallest_weight_change_is_the_smallest(seed):
    """Adding anything that does not act on the image can only make it longer."""
    model, x, _ = draws.network(seed, images=1)
    first = duality.first_dense(model, x)
    step = torch.randn(1, x.numel(), generator=cases.generator(seed), dtype=x.dtype)
    change = duality.weight_change(first, step)[0]
    other = torch.randn(change.shape, generator=cases.generator(seed + 1), dtype=x.dtype)
    silent = other - torch.outer(other @ first.extended[0], first.extended[0]) / first.extended[0].square().sum()
    assert (change + silent).norm() >= change.norm() - 1e-12
    assert change.norm() <= first.spectral * step.norm() / first.extended.norm() + 1e-12


def test_finding_the_first_layer_leaves_no_trace():
    model, x, _ = draws.network(0)
    duality.first_dense(model, x)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


# ---------------------------------------------------------------------- positions, penalty, blind unit


@given(seed=seeds)
def test_moving_a_patch_is_moving_its_position_embedding(seed):
    g = cases.generator(seed)
    model = duality.TinyTransformer(4, patch=2, dim=3, classes=3, generator=g)
    x, step = (torch.rand(1, 1, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    moved = model(x + step)
    with torch.no_grad():
        model.position += model.tokens(step)[0] @ model.embedding.T
    assert torch.allclose(moved, model(x), atol=1e-12)


def test_a_patch_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="patch is 3; it must divide side, 4"):
        duality.TinyTransformer(4, patch=3, dim=2, classes=2, generator=cases.generator())


@given(seed=seeds)
def test_the_penalty_is_the_top_eigenvalue_of_the_gauss_newton_matrix(seed):
    g = cases.generator(seed)
    j = torch.randn(2, 4, 5, generator=g, dtype=torch.float64)
    z = 3 * torch.randn(2, 4, generator=g, dtype=torch.float64)
    p = z.softmax(1)
    dense = j.mT @ (torch.diag_embed(p) - torch.einsum("bc,bd->bcd", p, p)) @ j
    assert torch.allclose(duality.top_curvature(j, z), torch.linalg.eigvalsh(dense)[:, -1], atol=1e-10)


def test_a_blind_unit_needs_a_free_direction():
    model, x, _ = draws.network(0, images=10)
    with pytest.raises(ValueError, match=f"x holds 10 images; it must hold fewer than {x[0].numel() + 1}"):
        traps.BlindUnit(model, x, strength=1.0)


# ---------------------------------------------------------------------- stability


def per_sample(seed, n=7, size=3):
    j = np.random.default_rng(seed).standard_normal((n, size))
    return j[:, :, None] * j[:, None]


@given(seed=seeds, batch=st.integers(1, 7), replacement=st.booleans())
def test_the_threshold_is_the_generalised_eigenvalue(seed, batch, replacement):
    """Stable iff eta drift >= eta^2 noise on symmetric matrices: the largest eta solves an eigenvalue problem."""
    each, rho = per_sample(seed), stability.sampling(7, batch, replacement=replacement)
    h, eye = each.mean(0), np.eye(3)
    drift = np.kron(h, eye) + np.kron(eye, h)
    noise = (1 - rho) * np.kron(h, h) + rho * np.mean([np.kron(a, a) for a in each], axis=0)
    root = np.linalg.inv(np.linalg.cholesky(drift))
    exact = 1 / np.linalg.eigvalsh(root @ noise @ root.T)[-1]
    assert stability.largest_stable_step(each, rho=rho) == pytest.approx(exact, rel=1e-9)


@given(seed=seeds)
def test_the_operator_is_the_mean_over_all_batches(seed):
    each, m = per_sample(seed, n=4), np.random.default_rng(seed + 1).standard_normal((3, 3))
    step, pairs = 0.1, [(a, b) for a in range(4) for b in range(4)]
    hats = [(each[a] + each[b]) / 2 for a, b in pairs]
    exact = np.mean([(np.eye(3) - step * h) @ m @ (np.eye(3) - step * h) for h in hats], axis=0)
    operator = stability.second_moment_operator(each, step_size=step, rho=stability.sampling(4, 2))
    assert np.allclose((operator @ m.ravel()).reshape(3, 3), exact)
    squares = np.mean([np.square(h).sum() for h in hats])
    assert stability.batch_norm_squared(each, rho=0.5) == pytest.approx(squares)


def test_full_batches_have_the_classical_threshold():
    each = per_sample(0)
    top = np.linalg.eigvalsh(each.mean(0))[-1]
    assert stability.largest_stable_step(each, rho=0.0) == pytest.approx(2 / top)
    assert stability.trace_bound(step_size=0.1, rho=0.0) == math.inf


def test_a_flat_direction_has_no_threshold():
    with pytest.raises(ValueError, match="it must be positive definite"):
        stability.largest_stable_step(per_sample(0, n=2), rho=1.0)


# ---------------------------------------------------------------------- path norms and descent


@given(seed=seeds)
def test_no_rescaling_goes_below_the_balanced_trace(seed):
    net, x = path_norm.draw(seed)
    least = path_norm.trace(path_norm.balanced(net, x), x)
    rng = np.random.default_rng(seed)
    for _ in range(10):
        other = path_norm.rescaled(net, np.exp(rng.normal(size=len(net.readout))))
        assert np.allclose(other(x), net(x))
        assert path_norm.trace(other, x) >= least - 1e-9
    assert np.allclose(path_norm.path_norms(other), path_norm.path_norms(net))


@given(seed=seeds)
def test_the_jacobian_is_the_derivative_in_every_parameter(seed):
    net, x = path_norm.draw(seed, points=3)
    flat = np.concatenate([np.column_stack([net.weights, net.biases]).ravel(), net.readout, [net.offset]])

    def value(flat):
        units, inputs = net.weights.shape
        first = flat[: units * (inputs + 1)].reshape(units, inputs + 1)
        return path_norm.TwoLayer(first[:, :-1], first[:, -1], flat[-units - 1 : -1], float(flat[-1]))(x)

    steps = 1e-6 * np.eye(len(flat))
    slopes = np.stack([(value(flat + s) - value(flat - s)) / 2e-6 for s in steps], axis=1)
    assert np.allclose(path_norm.jacobian(net, x), slopes, atol=1e-6)
    assert path_norm.trace(net, x, block="first") + path_norm.trace(net, x, block="rest") == pytest.approx(
        path_norm.trace(net, x)
    )


def test_the_total_variation_needs_one_input():
    net, _ = path_norm.draw(0, inputs=2)
    with pytest.raises(ValueError, match="net has 2 inputs"):
        path_norm.total_variation(net)


def test_one_update_of_descent_is_one_step_along_the_gradient():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 2)), rng.standard_normal(6)
    (far,), _ = path_norm.descend(x, y, [(0.1, 0, 0)], units=5, updates=1)
    (near,), _ = path_norm.descend(x, y, [(1e-12, 0, 0)], units=5, updates=1)
    pull = path_norm.jacobian(near, x).T @ (near(x) - y) / 6
    units, inputs = near.weights.shape
    first = pull[: units * (inputs + 1)].reshape(units, inputs + 1)
    assert np.allclose(far.weights, near.weights - 0.1 * first[:, :-1], atol=1e-9)
    assert np.allclose(far.readout, near.readout - 0.1 * pull[-units - 1 : -1], atol=1e-9)
    assert far.offset == pytest.approx(near.offset - 0.1 * pull[-1], abs=1e-9)


def test_a_run_does_not_depend_on_its_companions():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 2)), rng.standard_normal(6)
    how = {"units": 4, "updates": 700}
    (alone,), _ = path_norm.descend(x, y, [(0.05, 2, 1)], **how)
    nets, losses = path_norm.descend(x, y, [(0.01, 1, 0), (0.05, 2, 1), (50.0, 1, 2)], **how)
    assert np.allclose(nets[1].weights, alone.weights, rtol=1e-12)
    assert losses[2] == math.inf
    with pytest.raises(ValueError, match=r"step_size is 0\.0; it must be a finite number above 0"):
        path_norm.descend(x, y, [(0.0, 1, 0)], **how)


# ---------------------------------------------------------------------- smoothing


@pytest.mark.parametrize("dimensions", [1, 2, 3, 10, 64])
def test_the_ball_constant_is_twice_the_density_of_a_coordinate_at_zero(dimensions):
    mass = quad(lambda s: (1 - s * s) ** ((dimensions - 1) / 2), -1, 1)[0]
    assert certificates.ball_constant(slope=1.0, radius=1.0, dimensions=dimensions) == pytest.approx(2 / mass)


@given(seed=seeds, sigma=st.floats(0.1, 3))
def test_the_smoothed_derivatives_of_folds_match_finite_differences(seed, sigma):
    rng = np.random.default_rng(seed)
    folds = certificates.Folds(rng.standard_normal(3), rng.normal(size=3))
    x, nodes = np.array([0.3]), np.polynomial.hermite_e.hermegauss(1)
    assert len(nodes) == 2
    noise = np.linspace(-8, 8, 160001)
    density = np.exp(-(noise**2) / 2) / math.sqrt(2 * math.pi) * (noise[1] - noise[0])

    def smoothed(at):
        return float(density @ folds.derivative(at + sigma * noise))

    slope = (smoothed(x + 1e-3 * sigma) - smoothed(x - 1e-3 * sigma)) / (2e-3 * sigma)
    assert float(folds.gaussian_bend(x, sigma)[0]) == pytest.approx(slope, rel=0.05, abs=0.05 * folds.slope() / sigma)


@given(seed=seeds)
def test_the_two_layer_constant_bounds_the_hessian_everywhere(seed):
    g = cases.generator(seed)
    w, v = torch.randn(4, 3, generator=g, dtype=torch.float64), torch.randn(4, generator=g, dtype=torch.float64)
    x = 3 * torch.randn(20, 3, generator=g, dtype=torch.float64)
    s = torch.sigmoid(x @ w.T)
    hessians = torch.einsum("bu,ui,uj->bij", s * (1 - s) * v, w, w)
    limit = certificates.two_layer_constant(w.numpy(), v.numpy())
    assert float(torch.linalg.matrix_norm(hessians, ord=2).max()) <= limit * (1 + 1e-9)


def test_bad_numbers_are_refused(unchecked):
    with pytest.raises(ValueError, match="sigma is 0"):
        certificates.gaussian_constant(slope=1.0, sigma=0)
    with pytest.raises(ValueError, match="dimensions is 0"):
        certificates.ball_constant(slope=1.0, radius=1.0, dimensions=0)
    with pytest.raises(ValueError, match="batch_size is 9; it must be a whole number from 1 to 8"):
        stability.sampling(8, 9, replacement=False)
    with pytest.raises(ValueError, match="block is 'second'"):
        path_norm.trace(*path_norm.draw(0), block="second")


# ---------------------------------------------------------------------- kernels


LINKS = {
    "exp": lambda s: math.exp(s),
    "sigmoid": lambda s: 1 / (1 + math.exp(-s)),
    "softplus": lambda s: math.log1p(math.exp(s)),
    "elu + 1": lambda s: math.exp(s) if s < 0 else 1 + s,
    "ReLU": lambda s: max(s, 0.0),
    "ReLU²": lambda s: max(s, 0.0) ** 2,
}


@pytest.mark.parametrize("kind", kernels.KINDS)
def test_a_link_is_its_closed_form(kind):
    s = torch.linspace(-20, 20, 81, dtype=torch.float64)
    told = torch.tensor([LINKS[kind](float(v)) for v in s], dtype=torch.float64)
    assert torch.allclose(kernels.weight(s, kind=kind), told, rtol=1e-12, atol=0)
    assert torch.allclose(kernels.log_weight(s, kind=kind), told.log(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", kernels.KINDS)
def test_slope_and_elasticity_are_derivatives(kind):
    s = torch.linspace(0.1 if kind in kernels.POWERS else -50, 30, 77, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(kernels.log_weight(s, kind=kind).sum(), s)
    assert torch.allclose(kernels.slope(s, kind=kind), slope, rtol=1e-9, atol=1e-15)
    assert torch.allclose(kernels.elasticity(s, kind=kind), s * slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", kernels.SMOOTH)
def test_smooth_links_rise_with_a_slope_of_at_most_one(kind):
    slope = kernels.slope(torch.linspace(-700, 700, 1401, dtype=torch.float64), kind=kind)
    assert (slope > 0).all()
    assert (slope <= 1 + 1e-15).all()


def test_a_silent_key_has_no_slope_and_no_logarithm():
    s = torch.tensor([-1.0, 0.0])
    for kind in kernels.POWERS:
        assert (kernels.log_weight(s, kind=kind) == -torch.inf).all()
        assert kernels.slope(s, kind=kind).isnan().all()


def test_a_shared_map_of_one_exp_row_is_its_softmax_and_a_silent_one_is_refused():
    s = 300 * torch.randn(4, 1, 6, generator=cases.generator(), dtype=torch.float64)
    assert torch.allclose(kernels.shared_map(s, kind="exp"), s[:, 0].softmax(-1), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="no weight above 0 under ReLU"):
        kernels.shared_map(-s.abs(), kind="ReLU")


@pytest.mark.parametrize("function", ["weight", "log_weight", "slope", "elasticity", "shared_map"])
def test_an_unknown_link_is_refused(function):
    with pytest.raises(ValueError, match="did you mean 'sigmoid'"):
        getattr(kernels, function)(torch.zeros(2, 3), kind="sigmod")
