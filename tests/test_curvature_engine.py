"""Every route of the curvature engine against dense float64 matrices, and every refusal in one sentence."""

import dataclasses
import gc
import itertools
import math
import weakref

import cases
import numpy as np
import pytest
import torch
from attrobust import curvature
from attrobust.models import readouts
from cases import draw
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.nn import functional as F

LOSS = cases.per_example_cross_entropy
READOUTS = {"logit": readouts.logit, "margin": readouts.margin, "loss": readouts.cross_entropy}


@cases.isolated
def transformer(*, fused=False):
    """Attention over nine patches of two channels; written out, or torch's fused layer."""

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(2, 4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.out = nn.Linear(36, cases.CLASSES)

        def forward(self, x):
            tokens = self.embed(x.flatten(2).mT)
            mixed, _ = self.attention(tokens, tokens, tokens, need_weights=not fused)
            return self.out((tokens + mixed).flatten(1))

    return cases.filled(Attending(), 0)


NETWORKS = {"dense": cases.mlp, "convolutional": cases.conv, "transformer": transformer}


def setting(name="dense", n=5):
    return NETWORKS[name](), cases.images(n), cases.labels(n)


# ------------------------------------------------------------------ products


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("how", [{"keep_graph": True}, {"keep_graph": False}, {"chunk": 2}, {"chunk": 2, "memory": 0}])
def test_every_way_to_a_parameter_product_is_the_dense_hessian(network, how):
    model, x, y = setting(network)
    dense = cases.parameter_hessian(model, LOSS, x, y)
    hessian = curvature.ParameterHessian(model, LOSS, x, y, **how)
    v = draw(3, hessian.size)
    assert torch.allclose(hessian.matvec(v), v @ dense, rtol=1e-9, atol=1e-11)
    exact = torch.autograd.grad(LOSS(model(x), y).mean(), hessian.parameters)
    assert torch.allclose(hessian.gradient, torch.cat([g.flatten() for g in exact]))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("how", [{}, {"keep_graph": False}, {"chunk": 2}])
def test_every_way_to_a_product_in_the_pixels_is_the_dense_hessian(network, readout, how):
    model, x, y = setting(network)
    dense = cases.input_hessians(lambda image, i: READOUTS[readout](model, image, y[i : i + 1]), x)
    hessian = curvature.InputHessian(model, x, y, readout=READOUTS[readout], **how)
    v = draw(5, cases.PIXELS)
    assert torch.allclose(hessian.matvec(v), torch.einsum("bij,bj->bi", dense, v), rtol=1e-9, atol=1e-11)


def test_graphs_are_kept_as_long_as_memory_lasts():
    model, x, y = setting(n=8)
    whole = curvature.ParameterHessian(model, LOSS, x, y, chunk=2)
    assert whole.kept == 4
    kept = [curvature.ParameterHessian(model, LOSS, x, y, chunk=2, memory=m).kept for m in (0, 6_000, 12_000, 10**9)]
    assert kept == sorted(kept)
    assert kept[0] == 0
    assert kept[-1] == 4
    assert 0 < kept[1] < 4
    assert curvature.ParameterHessian(model, LOSS, x, y, keep_graph=False).kept == 0
    assert curvature.ParameterHessian(model, LOSS, x, y, chunk=2, keep_graph=True, memory=0).kept == 4


def test_several_directions_share_the_graphs_that_are_built_again():
    model, x, y = setting(n=8)
    hessian = curvature.ParameterHessian(model, LOSS, x, y, chunk=2, keep_graph=False)
    hessian.matvec(draw(1, hessian.size))  # the first also audits
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    before = hessian.products
    found = hessian.matvec(draw(5, hessian.size))
    assert len(calls) == 4
    assert hessian.products == before + 5
    assert torch.equal(found, curvature.ParameterHessian(model, LOSS, x, y, chunk=2).matvec(draw(5, hessian.size)))
    assert hessian.matvec(draw(5, hessian.size)[:0]).shape == (0, hessian.size)


def test_the_bytes_of_a_graph_grow_with_its_images():
    model, x, y = setting(n=8)

    def least_memory(chunk):
        sizes = range(0, 60_000, 200)
        return next(
            m for m in sizes if curvature.ParameterHessian(model, LOSS, x[:chunk], y[:chunk], memory=m).kept == 1
        )

    small, large = least_memory(2), least_memory(8)
    assert 2 * small < large < 6 * small


def test_a_kept_graph_is_freed_with_its_hessian():
    model, x, y = setting()
    hessian = curvature.ParameterHessian(model, LOSS, x, y)
    graph = weakref.ref(hessian._graphs[0].gradients[0])
    hessian.matvec(draw(1, hessian.size))
    del hessian
    gc.collect()
    assert graph() is None


def test_scipy_sees_the_same_matrix():
    model, x, y = setting()
    dense = cases.parameter_hessian(model, LOSS, x, y)
    operator = curvature.ParameterHessian(model, LOSS, x, y).to_scipy()
    assert operator.shape == dense.shape
    assert operator.dtype == np.float64
    assert np.allclose(operator @ np.eye(len(dense)), dense)
    values = eigsh(operator, k=2, which="BE", return_eigenvectors=False, rng=np.random.default_rng(0))
    exact = torch.linalg.eigvalsh(dense)
    assert sorted(values) == pytest.approx([exact[0].item(), exact[-1].item()])


def test_a_parameter_the_loss_does_not_use_has_no_curvature():
    model, x, y = setting()
    model.spare = nn.Parameter(torch.ones(3, dtype=torch.float64))
    hessian = curvature.ParameterHessian(model, lambda z, c: LOSS(z, c), x, y)
    dense = cases.parameter_hessian(cases.mlp(), LOSS, x, y)
    v = draw(2, hessian.size)
    order = [name for name, _ in model.named_parameters()]
    assert order[0] == "spare"
    assert torch.allclose(hessian.matvec(v)[:, 3:], v[:, 3:] @ dense)
    assert not hessian.matvec(v)[:, :3].any()


def test_a_loss_that_is_linear_in_the_parameters_has_no_curvature():
    x, y = cases.images(), cases.labels()
    hessian = curvature.ParameterHessian(cases.linear(), lambda z, c: z.sum(1), x, y)
    assert not hessian.matvec(draw(2, hessian.size)).any()
    constant = curvature.ParameterHessian(cases.linear(), lambda z, c: torch.ones(len(z), dtype=z.dtype), x, y)
    assert not constant.matvec(draw(2, constant.size)).any()
    assert not constant.gradient.any()


# ------------------------------------------------------------------ eigenvalues


def test_the_top_eigenvalue_lies_within_the_stated_error_in_200_of_200_random_cases():
    for seed in range(200):
        model, x, y = cases.mlp(seed=seed, width=3), cases.images(4, seed), cases.labels(4)
        exact = torch.linalg.eigvalsh(cases.parameter_hessian(model, LOSS, x, y))
        found = curvature.sharpness(curvature.ParameterHessian(model, LOSS, x, y), generator=cases.generator(seed))
        assert abs(found.value - exact[-1].item()) <= found.error + 1e-12
        assert found.error <= 1e-3 * exact.abs().max()


def test_some_eigenvalue_lies_within_the_error_at_every_tolerance():
    for seed in range(50):
        model, x, y = cases.mlp(seed=seed, width=4), cases.images(6, seed), cases.labels(6)
        exact = torch.linalg.eigvalsh(cases.parameter_hessian(model, LOSS, x, y))
        hessian = curvature.ParameterHessian(model, LOSS, x, y)
        for tolerance in (1e-1, 1e-2, 1e-3, 1e-5):
            found = curvature.extremes(hessian, generator=cases.generator(seed), tolerance=tolerance, steps=200)
            for end in found:
                assert (exact - end.value).abs().min() <= end.error + 1e-12
                assert end.error <= tolerance * exact.abs().max()


def test_both_ends_reach_the_tolerance():
    for seed in range(20):
        model, x, y = cases.mlp(seed=seed), cases.images(6, seed), cases.labels(6)
        exact = torch.linalg.eigvalsh(cases.parameter_hessian(model, LOSS, x, y))
        low, high = curvature.extremes(
            curvature.ParameterHessian(model, LOSS, x, y), generator=cases.generator(seed), tolerance=1e-3, steps=200
        )
        for found, value in ((low, exact[0]), (high, exact[-1])):
            assert abs(found.value - value.item()) <= found.error + 1e-12
            assert found.error <= 1e-3 * exact.abs().max()
        assert low.products == high.products


@pytest.mark.parametrize("network", NETWORKS)
def test_ritz_vectors_are_eigenvectors(network):
    model, x, y = setting(network)
    dense = cases.parameter_hessian(model, LOSS, x, y)
    for found in curvature.extremes(
        curvature.ParameterHessian(model, LOSS, x, y), generator=cases.generator(), tolerance=1e-7, steps=500
    ):
        assert found.vector.norm().item() == pytest.approx(1)
        assert (dense @ found.vector - found.value * found.vector).norm() <= found.error + 1e-10


def test_a_long_search_keeps_its_basis_orthogonal():
    a = cases.with_spectrum(torch.linspace(-3, 5, 70).tolist())[None]
    low, high = curvature.lanczos(cases.matvec(a), draw(1, 70), steps=70)
    assert (low.value.item(), high.value.item()) == pytest.approx((-3, 5), abs=1e-10)


def test_a_warm_start_saves_products_and_finds_the_same_value():
    model, x, y = cases.mlp(width=12), cases.images(12), cases.labels(12)
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    cold, warm, last = [], [], None
    for step in range(60):
        optimizer.zero_grad()
        LOSS(model(x), y).mean().backward()
        optimizer.step()
        if step % 5:
            continue
        hessian = curvature.ParameterHessian(model, LOSS, x, y)
        generator = cases.generator(step)
        first = curvature.sharpness(hessian, generator=generator)
        last = curvature.sharpness(hessian, generator=generator, start=last and last.vector)
        assert last.value == pytest.approx(first.value, rel=1e-3)
        cold.append(first.products)
        warm.append(last.products)
    assert sum(warm[1:]) < 0.75 * sum(cold[1:])
    with pytest.raises(ValueError, match=r"start has shape \(3,\); it must be one vector of"):
        curvature.sharpness(
            curvature.ParameterHessian(model, LOSS, x, y), generator=cases.generator(), start=torch.ones(3)
        )


def test_a_warm_start_on_the_wrong_eigenvector_still_finds_the_top():
    model, x, y = setting()
    values, vectors = torch.linalg.eigh(cases.parameter_hessian(model, LOSS, x, y))
    for wrong in (0, 10, len(values) - 3):
        found = curvature.sharpness(
            curvature.ParameterHessian(model, LOSS, x, y), generator=cases.generator(), start=vectors[:, wrong]
        )
        assert found.value == pytest.approx(values[-1].item(), rel=1e-3)


# ------------------------------------------------------------------ trace, Frobenius norm, density


@pytest.mark.parametrize("which", [0, 1])
def test_trace_and_norm_lie_within_three_standard_errors_in_985_of_1000_cases(which):
    hits, n = 0, 0
    for network, seed in itertools.product((cases.mlp, cases.conv), range(4)):
        model, x, y = network(seed=seed), cases.images(6, seed), cases.labels(6)
        dense = cases.parameter_hessian(model, LOSS, x, y)
        exact = (dense.trace(), torch.linalg.matrix_norm(dense))[which].item()
        for draw_seed in range(125):
            found = curvature.moments(
                lambda v, dense=dense: v @ dense, dense[:1], products=60, generator=cases.generator(draw_seed)
            )[which]
            hits += abs(found.value.item() - exact) <= 3 * found.error.item()
            n += 1
    assert n == 1000
    assert hits >= 985


def test_the_norm_has_no_visible_bias_and_an_honest_error():
    m = draw(40, 40)
    a = (m + m.T) / 2
    exact = torch.linalg.matrix_norm(a).item()
    draws = map(cases.generator, range(400))
    found = [curvature.moments(lambda v: v @ a, a[:1], products=30, generator=g)[1] for g in draws]
    values = torch.cat([f.value for f in found])
    assert abs(values.mean().item() - exact) < 0.02 * exact
    stated = torch.cat([f.error for f in found]).square().mean().sqrt().item()
    assert stated == pytest.approx(values.std().item(), rel=0.25)


def test_moments_of_a_batch_are_those_of_its_matrices():
    a = torch.stack([cases.with_spectrum([*range(i, i + 4), *[0.0] * 20], i) for i in range(3)])
    trace, norm = curvature.moments(cases.matvec(a), a[:, 0], products=18, generator=cases.generator())
    assert trace.value.tolist() == pytest.approx(a.diagonal(dim1=1, dim2=2).sum(1).tolist())
    assert norm.value.tolist() == pytest.approx(torch.linalg.matrix_norm(a).tolist())
    assert trace.error.max() < 1e-12
    assert trace.products == 18


def test_frobenius_norm_of_the_parameter_hessian_agrees_with_the_dense_one():
    model, x, y = setting()
    exact = torch.linalg.matrix_norm(cases.parameter_hessian(model, LOSS, x, y)).item()
    found = curvature.frobenius(curvature.ParameterHessian(model, LOSS, x, y), generator=cases.generator(), products=60)
    assert abs(found.value - exact) <= 4 * found.error
    assert found.error < 0.05 * exact


def test_a_full_order_density_is_the_dense_spectrum():
    values = [-2.0, -0.5, 0.0, 1.0, 4.0, 9.0]
    a = cases.with_spectrum(values)
    found = curvature.slq(lambda v: v @ a, draw(1, 6), steps=6)
    assert found.nodes[0].tolist() == pytest.approx(values, abs=1e-9)
    assert found.weights.sum().item() == pytest.approx(1)


def test_each_probe_reads_its_own_quadratic_forms():
    m = draw(30, 30)
    a = (m + m.T) / 2
    z = draw(5, 30, seed=1)
    unit = z / z.norm(dim=1, keepdim=True)
    found = curvature.slq(lambda v: v @ a, z, steps=2)
    first = (unit * (unit @ a)).sum(1) * 30
    assert found.trace.value == pytest.approx(first.mean().item())
    assert found.trace.error == pytest.approx((first.std() / 5**0.5).item())
    second = ((unit @ a) ** 2).sum(1) * 30
    assert found.frobenius.value == pytest.approx(second.mean().sqrt().item())
    assert found.products == 10


def test_the_densitys_norm_has_an_honest_error():
    m = draw(40, 40)
    a = (m + m.T) / 2
    found = [curvature.slq(lambda v: v @ a, draw(8, 40, seed=s), steps=3).frobenius for s in range(300)]
    values = torch.tensor([f.value for f in found])
    stated = torch.tensor([f.error for f in found]).square().mean().sqrt().item()
    assert stated == pytest.approx(values.std().item(), rel=0.2)
    assert values.mean().item() == pytest.approx(torch.linalg.matrix_norm(a).item(), rel=0.02)


@pytest.mark.parametrize("found", [curvature.Density(draw(1, 3), draw(1, 3), 3, 3), curvature.Estimate(1.0, 0.0, 3)])
def test_what_was_found_cannot_be_changed_by_who_reads_it(found):
    for field in dataclasses.fields(found):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(found, field.name, 0)


def test_estimates_are_the_same_whatever_vector_the_next_search_starts_from():
    plain, other = (curvature.Estimate(1.0, 0.5, 3, vector) for vector in (None, torch.ones(2)))
    assert plain == other
    assert repr(plain) == repr(other)


def test_the_density_integrates_to_one_and_follows_the_spectrum():
    model, x, y = setting()
    exact = torch.linalg.eigvalsh(cases.parameter_hessian(model, LOSS, x, y))
    found = curvature.spectral_density(
        curvature.ParameterHessian(model, LOSS, x, y), generator=cases.generator(), probes=20, steps=40
    )
    width = 0.05 * float(exact[-1] - exact[0])
    grid = torch.linspace(float(exact[0]) - 8 * width, float(exact[-1]) + 8 * width, 2000, dtype=torch.float64)
    density = found.at(grid, width=width)
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, rel=1e-6)
    dense = curvature.Density(exact[None], torch.full_like(exact, 1 / len(exact))[None], len(exact), 0)
    assert torch.trapezoid((density - dense.at(grid, width=width)).abs(), grid) < 0.2
    assert abs(found.trace.value - exact.sum().item()) <= 4 * found.trace.error
    with pytest.raises(ValueError, match=r"width is 0; it must be a finite number above 0"):
        found.at(grid, width=0)
    with pytest.raises(ValueError, match="steps is 1; it must be a whole number of at least 2"):
        curvature.slq(lambda v: v, draw(1, 4), steps=1)


def test_gauss_newton_trace_takes_any_loss(monkeypatch):
    model, x, y = setting()
    for name, loss in (("cross_entropy", LOSS), ("squared", cases.half_squared)):
        known = curvature.gauss_newton_trace(curvature.GaussNewton(model, x, loss=name))
        for chunk in (2, 64):
            monkeypatch.setattr(curvature.GaussNewton, "chunk", chunk)
            found = curvature.gauss_newton_trace(curvature.GaussNewton(model, x, y, loss=loss))
            assert found.value == pytest.approx(known.value, rel=1e-9)
        assert (known.error, known.products) == (0.0, cases.CLASSES)
    linear = cases.linear()
    exact = cases.parameter_hessian(linear, lambda z, c: z.cosh().sum(1), x, y).trace().item()
    found = curvature.gauss_newton_trace(curvature.GaussNewton(linear, x, y, loss=lambda z, c: z.cosh().sum(1)))
    assert found.value == pytest.approx(exact)
    assert curvature.gauss_newton_trace(curvature.GaussNewton(linear, x, y, loss=lambda z, c: z.sum(1))).value == 0

    def weighted(z, c):
        return (1 + c) * z.cosh().sum(1)

    exact = cases.parameter_hessian(linear, weighted, x, y).trace().item()
    assert curvature.gauss_newton_trace(curvature.GaussNewton(linear, x, y, loss=weighted)).value == pytest.approx(
        exact
    )
    with pytest.raises(ValueError, match="y is None; a callable loss needs the labels"):
        curvature.gauss_newton_trace(curvature.GaussNewton(model, x, loss=LOSS))


# ------------------------------------------------------------------ pixels


@cases.isolated
def wide():
    """A network of so many inputs and units that no budget covers its curvature."""
    return cases.filled(nn.Sequential(nn.Flatten(), nn.Linear(49, 60), nn.Softplus(), nn.Linear(60, 3)), 0)


def test_a_budget_left_open_is_fifteen_steps_for_an_end_and_thirty_products_for_a_trace_or_a_norm():
    x, y, how = draw(2, 1, 7, 7), torch.tensor([0, 1]), {"generator": cases.generator()}
    pixels = curvature.InputHessian(wide(), x, y)
    assert [end.products for end in curvature.input_extremes(pixels, **how)] == [15, 15]
    assert [found.products for found in curvature.input_moments(pixels, **how)] == [30, 30]
    assert curvature.relative_curvature(pixels, **how).products == 2 * 15  # two at each step
    weights = curvature.ParameterHessian(wide(), LOSS, x, y)
    assert curvature.frobenius(weights, **how).products == 30
    assert curvature.spectral_density(weights, **how).products == 4 * 30


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("readout", READOUTS)
def test_ends_trace_and_norm_in_the_pixels_agree_with_the_dense_hessians(network, readout):
    model, x, y = setting(network)
    dense = cases.input_hessians(lambda image, i: READOUTS[readout](model, image, y[i : i + 1]), x)
    values = torch.linalg.eigvalsh(dense)
    hessian = curvature.InputHessian(model, x, y, readout=READOUTS[readout])
    how = {"generator": cases.generator()}
    low, high = curvature.input_extremes(hessian, **how, steps=cases.PIXELS)
    assert torch.allclose(low.value, values[:, 0], atol=1e-9)
    assert torch.allclose(high.value, values[:, -1], atol=1e-9)
    short_low, short_high = curvature.input_extremes(hessian, **how, tolerance=0.1, steps=cases.PIXELS)
    size = values.abs().amax(1)
    for end in (short_low, short_high):
        assert ((values - end.value[:, None]).abs().amin(1) <= end.error + 1e-12).all()
    assert (torch.maximum(short_low.error, short_high.error) <= 0.1 * size + 1e-12).all()
    trace, norm = curvature.input_moments(hessian, **how, products=3 * cases.PIXELS)
    assert torch.allclose(trace.value, dense.diagonal(dim1=1, dim2=2).sum(1))
    assert torch.allclose(norm.value, torch.linalg.matrix_norm(dense))
    trace, norm = curvature.input_moments(hessian, **how, products=15)
    assert ((trace.value - dense.diagonal(dim1=1, dim2=2).sum(1)).abs() <= 6 * trace.error + 1e-9).all()


def relu(seed=0):
    return cases.mlp(nn.ReLU(), seed=seed, width=12)


def test_the_gram_matrix_holds_the_whole_spectrum_of_a_relu_network():
    for seed in range(20):
        model, x, y = relu(seed), cases.images(4, seed), cases.labels(4)
        dense = cases.input_hessians(lambda image, i, m=model, y=y: LOSS(m(image), y[i : i + 1]), x)
        values = torch.linalg.eigvalsh(dense)
        found = curvature.gram_spectrum(model, x, chunk=3)
        rest = cases.PIXELS - cases.CLASSES
        assert torch.allclose(found.value, values[:, rest:], atol=1e-10)
        assert values[:, :rest].abs().max() < 1e-10
        assert found.products == cases.CLASSES


def test_the_gram_matrix_of_a_smooth_network_is_only_its_gauss_newton_part():
    model, x, y = setting()
    dense = cases.input_hessians(lambda image, i: LOSS(model(image), y[i : i + 1]), x)
    found = curvature.gram_spectrum(model, x).value[:, -1]
    assert not torch.allclose(found, torch.linalg.eigvalsh(dense)[:, -1], rtol=1e-3)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda image: model(image[None])[0]))(x).flatten(2)
    p = model(x).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    exact = torch.linalg.eigvalsh(jacobian.mT @ inner @ jacobian)[:, -1]
    assert torch.allclose(found, exact.detach())


@pytest.mark.parametrize("network", NETWORKS)
def test_the_jacobian_and_its_norms_agree_with_torch_func(network):
    model, x, _ = setting(network)
    exact = torch.func.vmap(torch.func.jacrev(lambda image: model(image[None])[0]))(x).flatten(2).detach()
    assert torch.allclose(curvature.input_jacobian(model, x, chunk=2), exact)
    for norm, order in (("spectral", 2), ("frobenius", "fro")):
        found = curvature.input_jacobian_norm(model, x, norm=norm)
        assert torch.allclose(found.value, torch.linalg.matrix_norm(exact, ord=order))
        assert not found.error.any()
    with pytest.raises(ValueError, match="norm is 'nuclear'; it must be one of spectral, frobenius"):
        curvature.input_jacobian_norm(model, x, norm="nuclear")


def test_margin_is_the_logit_minus_the_best_of_the_others():
    logits = torch.tensor([[1.0, 5.0, 3.0], [4.0, 2.0, 0.5]])
    found = readouts.margin(lambda x: logits, logits, torch.tensor([2, 0]))
    assert found.tolist() == [-2.0, 2.0]


# ------------------------------------------------------------------ found as left, refused in one sentence


def everything(model, x, y):
    generator = cases.generator()
    curvature.extremes(curvature.ParameterHessian(model, LOSS, x, y), generator=generator)
    curvature.frobenius(curvature.ParameterHessian(model, LOSS, x, y), generator=generator)
    curvature.spectral_density(curvature.ParameterHessian(model, LOSS, x, y), generator=generator, probes=2, steps=4)
    curvature.gauss_newton_trace(curvature.GaussNewton(model, x, y, loss=LOSS))
    curvature.input_extremes(curvature.InputHessian(model, x, y), generator=generator)
    curvature.input_moments(curvature.InputHessian(model, x, y), generator=generator)
    curvature.gram_spectrum(model, x)
    curvature.input_jacobian_norm(model, x)


def test_flags_hooks_gradients_and_the_global_generator_are_left_as_found():
    model, x, y = setting()
    model[3].train()
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = [m.training for m in model.modules()], [p.clone() for p in model.parameters()], torch.get_rng_state()
    everything(model, x, y)
    assert [m.training for m in model.modules()] == before[0]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before[1], strict=True))
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before[2])
    assert len(model[1]._forward_hooks) == 1
    assert calls
    assert not x.requires_grad


def test_fused_attention_is_refused_and_works_written_out():
    model, x, y = transformer(fused=True), cases.images(), cases.labels()
    sentence = r"model uses fused attention \(ScaledDotProduct\w+\) without a second derivative; write the attention"
    with pytest.raises(ValueError, match=sentence):
        curvature.sharpness(curvature.ParameterHessian(model, LOSS, x, y), generator=cases.generator())
    with pytest.raises(ValueError, match=sentence):
        curvature.InputHessian(model, x, y)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        under = curvature.sharpness(curvature.ParameterHessian(model, LOSS, x, y), generator=cases.generator())
    written = curvature.sharpness(curvature.ParameterHessian(transformer(), LOSS, x, y), generator=cases.generator())
    assert under.value == pytest.approx(written.value)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 3)
        self.out = nn.Linear(3, cases.CLASSES)

    def forward(self, tokens):
        return self.out(self.table(tokens).tanh().mean(1))


@cases.isolated
def tokens():
    return cases.filled(Tokens(), 0)


def test_integers_are_fine_where_an_embedding_reads_them_and_refused_elsewhere(unchecked):
    model, x, y = tokens(), torch.arange(12).view(3, 4) % 7, cases.labels()
    hessian = curvature.ParameterHessian(model, LOSS, x, y)
    dense = cases.parameter_hessian(model, LOSS, x, y)
    v = draw(2, hessian.size)
    assert torch.allclose(hessian.matvec(v), v @ dense)
    pixels = (255 * cases.images()).to(torch.uint8)
    sentence = r"x has dtype torch.uint8; it must be floating-point, such as pixels in \[0, 1\]"
    for refuse in (
        lambda: curvature.ParameterHessian(cases.mlp(), LOSS, pixels, y),
        lambda: curvature.InputHessian(cases.mlp(), pixels, y),
        lambda: curvature.gram_spectrum(cases.mlp(), pixels),
    ):
        with pytest.raises(ValueError, match=sentence):
            refuse()


@cases.isolated
def layered(layer):
    return nn.Sequential(nn.Flatten(), nn.Linear(cases.PIXELS, 4), layer).double()


def test_layers_that_couple_the_batch_or_draw_numbers_are_refused():
    x, y = cases.images(), cases.labels()
    alone = layered(nn.BatchNorm1d(4, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match=r"model does not run on x of shape \(n,"):
        curvature.ParameterHessian(alone, LOSS, x, y)
    for model, said in (
        (layered(nn.BatchNorm1d(4)), r"does not run on x of shape \(n,"),
        (layered(nn.Dropout(0.1)), "answers .*: it is random"),
        (transformer(), "answers .*: it is random"),
    ):
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.1
        model.train()
        for refuse in (
            lambda m=model: curvature.ParameterHessian(m, LOSS, x, y),
            lambda m=model: curvature.InputHessian(m, x, y),
            lambda m=model: curvature.input_jacobian(m, x),
            lambda m=model: curvature.gauss_newton_trace(curvature.GaussNewton(m, x)),
        ):
            with pytest.raises(ValueError, match=rf"model {said}.*call model.eval\(\)"):
                refuse()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"loss": lambda z, c: F.cross_entropy(z, c)}, r"loss has shape \(\); it must be one number per example"),
        ({"loss": lambda z, c: LOSS(z, c) * math.nan}, "loss is nan on an example; curvature needs a finite loss"),
        ({"y": torch.tensor([0, 1])}, "y has 2 entries for 3 examples; give one label per example"),
        ({"x": cases.images()[:0]}, r"x has shape \(0, 2, 3, 3\); it must be a batch and not empty"),
        ({"keep_graph": "sometimes"}, "keep_graph is 'sometimes'; it must be True, False or 'auto'"),
        ({"memory": -1}, "memory is -1; it must be a whole number of at least 0"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, sentence, unchecked):
    whole = {"model": cases.mlp(), "loss": LOSS, "x": cases.images(), "y": cases.labels()} | change
    with pytest.raises(ValueError, match=sentence):
        curvature.ParameterHessian(**whole).gradient  # noqa: B018


def test_a_readout_that_is_not_one_number_per_image_is_refused():
    x, y = cases.images(), cases.labels()
    with pytest.raises(ValueError, match=r"readout has shape \(2, 4\); it must be one number per image"):
        curvature.InputHessian(cases.mlp(), x, y, readout=lambda model, x, y: model(x))


# ------------------------------------------------------------------ peers


def test_curvlinops_gives_the_same_products():
    curvlinops = pytest.importorskip("curvlinops", reason="make bench installs it; the tests' environment does not")
    model, x, y = setting("convolutional", n=7)
    parts = list(zip(x.split(3), y.split(3), strict=True))
    theirs = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), parts)
    ours = curvature.ParameterHessian(model, LOSS, x, y, chunk=4)
    v = draw(ours.size)
    assert torch.allclose(ours.matvec(v[None])[0], theirs @ v, rtol=1e-5, atol=1e-9)


class Matrix:
    """A symmetric matrix as an operator."""

    def __init__(self, matrix):
        self.matrix, self.size, self.dtype, self.device = matrix, len(matrix), matrix.dtype, matrix.device

    def matvec(self, v):
        return v @ self.matrix


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_search_for_both_ends_goes_on_until_the_slower_one_has_settled(sign):
    crowded = torch.linspace(-19.9, -19, cases.PIXELS - 6).tolist()
    values = [sign * v for v in [*crowded, -3.0, -1.0, 0.5, 1.0, 2.0, 20.0]]
    a = cases.with_spectrum(values)
    begin = draw(1, cases.PIXELS)
    allowed = 1e-4 * 20

    early, late = (1, 0) if sign > 0 else (0, 1)
    both = curvature.lanczos(cases.matvec(a[None]), begin, steps=cases.PIXELS, tolerance=1e-4, both=True)
    before = curvature.lanczos(cases.matvec(a[None]), begin, steps=both[0].products - 1)
    assert max(end.error for end in both) <= allowed
    assert before[late].error > allowed >= before[early].error  # one end alone would have stopped earlier
    ends = curvature.extremes(Matrix(a), generator=cases.generator(), steps=cases.PIXELS, tolerance=1e-4)
    assert max(end.error for end in ends) <= allowed
    model = cases.Quadratic(a.repeat(4, 1, 1), torch.ones(4, cases.PIXELS, dtype=torch.float64))
    hessian = curvature.InputHessian(model, cases.images(2), cases.labels(2))
    ends = curvature.input_extremes(hessian, generator=cases.generator(), steps=cases.PIXELS, tolerance=1e-4)
    assert max(end.error.max() for end in ends) <= allowed


def test_estimators_take_any_symmetric_operator():
    a = cases.with_spectrum([-2.0, -0.5, 0.0, 1.0, 4.0, 9.0])
    generator = cases.generator()
    assert curvature.sharpness(Matrix(a), generator=generator, tolerance=0).value == pytest.approx(9)
    assert curvature.frobenius(Matrix(a), generator=generator).value == pytest.approx(torch.linalg.norm(a).item())
    density = curvature.spectral_density(Matrix(a), generator=generator, probes=3, steps=6)
    assert density.nodes[0].tolist() == pytest.approx([-2.0, -0.5, 0.0, 1.0, 4.0, 9.0], abs=1e-9)
