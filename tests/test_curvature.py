import itertools
import math

import cases
import pytest
import torch
from attrobust import curvature, models, training
from attrobust.curvature import gauss_newton
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

LOSSES = {"cross_entropy": cases.per_example_cross_entropy, "squared": cases.half_squared}
SPECTRA = {
    "two-sided": [-7.0, -3.0, -0.5, 0.1, 2.0, 5.0],
    "lowest is largest in size": [-9.0, -1.0, 0.0, 1.0, 2.0, 3.0],
    "positive": [0.5, 1.0, 2.0, 3.0, 4.0, 8.0],
    "negative": [-8.0, -4.0, -3.0, -2.0, -1.0, -0.5],
    "degenerate": [-2.0, -2.0, 1.0, 3.0, 3.0, 3.0],
    "one value": [4.0] * 6,
    "low rank": [0.0, 0.0, 0.0, 0.0, 0.0, 6.0],
    "zero": [0.0] * 6,
    "tiny": [-3e-9, 1e-9, 2e-9, 3e-9, 4e-9, 5e-9],
    "wide": [-1e6, 1e-6, 1.0, 1e2, 1e4, 1e8],
}


def start(batch, n, seed=0):
    return torch.randn(batch, n, generator=cases.generator(seed), dtype=torch.float64)


# ------------------------------------------------------------------ lanczos


@pytest.mark.parametrize("name", SPECTRA)
def test_full_order_reproduces_both_ends_of_a_prescribed_spectrum(name):
    values = SPECTRA[name]
    a = cases.with_spectrum(values)[None]
    low, high = curvature.lanczos(cases.matvec(a), start(1, 6), steps=6)
    size = max(map(abs, values))
    assert low.value.item() == pytest.approx(min(values), abs=1e-12 * size)
    assert high.value.item() == pytest.approx(max(values), abs=1e-12 * size)
    assert high.error.item() <= 1e-7 * size
    assert low.error.item() <= 1e-7 * size


@pytest.mark.parametrize("name", [n for n in SPECTRA if n not in ("zero", "tiny")])
def test_the_highest_ritz_vector_is_an_eigenvector(name):
    a = cases.with_spectrum(SPECTRA[name])[None]
    _, high = curvature.lanczos(cases.matvec(a), start(1, 6), steps=6)
    y = high.vector
    assert y.norm().item() == pytest.approx(1)
    residual = (cases.matvec(a)(y) - high.value[:, None] * y).norm()
    assert residual <= 1e-7 * max(map(abs, SPECTRA[name]))


def test_a_batch_gives_what_its_matrices_give_one_by_one():
    a = torch.stack([cases.with_spectrum(v, seed) for seed, v in enumerate(SPECTRA.values())])
    q = start(len(a), 6)
    for steps in (1, 3, 6):
        together = curvature.lanczos(cases.matvec(a), q, steps=steps)
        for i in range(len(a)):
            alone = curvature.lanczos(cases.matvec(a[i : i + 1]), q[i : i + 1], steps=steps)
            scale = a[i].abs().max().item()
            for one, other in zip(together, alone, strict=True):
                assert one.value[i].item() == pytest.approx(other.value[0].item(), abs=1e-12 * scale), list(SPECTRA)[i]
                assert one.error[i].item() == pytest.approx(other.error[0].item(), abs=1e-12 * scale), list(SPECTRA)[i]


def test_an_invariant_subspace_ends_the_recursion_early_with_a_zero_bound():
    a = torch.diag(torch.tensor([5.0, 2.0, -3.0, 9.0], dtype=torch.float64))[None]
    q = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    low, high = curvature.lanczos(cases.matvec(a), q, steps=4)
    assert high.products == 2
    assert (low.value.item(), high.value.item()) == pytest.approx((-3.0, 5.0))
    assert high.error.item() == 0
    assert low.error.item() == 0


def test_a_matrix_that_ends_early_waits_for_the_others_unharmed():
    early = torch.diag(torch.tensor([5.0, 2.0, 4.0, 3.0], dtype=torch.float64))
    late = cases.with_spectrum([-1.0, 0.5, 2.0, 7.0])
    q = torch.stack([torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64), start(1, 4)[0]])
    low, high = curvature.lanczos(cases.matvec(torch.stack([early, late])), q, steps=4)
    assert low.value.tolist() == pytest.approx([3.0, -1.0])
    assert high.value.tolist() == pytest.approx([4.0, 7.0])
    assert high.error[0].item() == 0


def test_an_exact_eigenvalue_lies_within_the_residual_bound():
    for seed in range(40):
        m = torch.randn(12, 12, generator=cases.generator(seed), dtype=torch.float64)
        a = (m + m.T) / 2
        exact = torch.linalg.eigvalsh(a)
        for steps in (1, 2, 4, 8):
            low, high = curvature.lanczos(cases.matvec(a[None]), start(1, 12, seed), steps=steps)
            rounding = 1e-12 * exact.abs().max()
            assert (exact - high.value).abs().min() <= high.error + rounding
            assert (exact - low.value).abs().min() <= low.error + rounding
            # Ritz values lie inside the spectrum.
            assert exact[0] - rounding <= low.value
            assert high.value <= exact[-1] + rounding


def test_more_steps_never_worsen_an_end():
    a = cases.with_spectrum(list(torch.linspace(-3, 5, 12).tolist()))[None]
    found = [curvature.lanczos(cases.matvec(a), start(1, 12), steps=s) for s in range(1, 13)]
    lows, highs = ([f[end].value.item() for f in found] for end in (0, 1))
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(highs))
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(lows))
    assert [high.products for _, high in found] == list(range(1, 13))


def test_tolerance_stops_as_soon_as_the_residual_allows():
    values = [*torch.linspace(-1, 1, 30).tolist(), 20.0]
    a = cases.with_spectrum(values)[None]
    _, high = curvature.lanczos(cases.matvec(a), start(1, 31), steps=31, tolerance=1e-3)
    assert high.products < 12
    assert high.error.item() <= 1e-3 * 20
    assert high.value.item() == pytest.approx(20, rel=1e-5)
    _, shorter = curvature.lanczos(cases.matvec(a), start(1, 31), steps=high.products - 1)
    assert shorter.error.item() > 1e-3 * 20


def test_the_length_of_the_start_vector_does_not_matter():
    a = cases.with_spectrum(SPECTRA["two-sided"])[None]
    once, again = (curvature.lanczos(cases.matvec(a), s * start(1, 6), steps=3) for s in (1, 1e5))
    assert once[1].value.item() == pytest.approx(again[1].value.item())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number of at least 1"),
        ({"tolerance": -1e-3}, "tolerance is -0.001; it must be a finite number of at least 0"),
    ],
)
def test_lanczos_refuses_bad_budgets(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        curvature.lanczos(cases.matvec(torch.eye(3)[None]), torch.ones(1, 3), **({"steps": 2} | change))


# ------------------------------------------------------------------ hutch++


def hutchpp(a, products, seed):
    how = {"products": products, "generator": cases.generator(seed)}
    return curvature.moments(lambda v: v @ a, a[:1], **how)[0].single()


def test_the_trace_estimate_covers_the_exact_trace_within_three_standard_errors():
    hits, n = 0, 200
    for seed in range(n):
        draw = cases.generator(seed)
        m = torch.randn(30, 30, generator=draw, dtype=torch.float64)
        a = (m + m.T) / 2 + torch.diag(10 * torch.rand(30, generator=draw, dtype=torch.float64))
        estimate = hutchpp(a, 24, seed)
        assert estimate.error > 0
        hits += abs(estimate.value - a.trace().item()) <= 3 * estimate.error
    # Eight probes make a Student t with seven degrees of freedom: 98 % lie within three standard errors.
    assert hits >= 0.95 * n


def test_the_trace_estimate_has_no_bias_and_an_honest_error():
    m = torch.randn(20, 20, generator=cases.generator(), dtype=torch.float64)
    a = (m + m.T) / 2
    found = [hutchpp(a, 15, seed) for seed in range(600)]
    values = torch.tensor([f.value for f in found])
    assert abs(values.mean() - a.trace()) < 4 * values.std() / 600**0.5
    stated = torch.tensor([f.error for f in found]).square().mean().sqrt()
    assert stated == pytest.approx(values.std().item(), rel=0.15)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_trace_of_a_small_matrix_is_exact(size):
    a = cases.with_spectrum(SPECTRA["two-sided"][:size])
    estimate = hutchpp(a, 12, 0)
    assert estimate.value == pytest.approx(sum(SPECTRA["two-sided"][:size]))
    assert estimate.error == 0
    assert estimate.products == size


def test_the_trace_of_a_low_rank_matrix_is_exact():
    a = cases.with_spectrum([*[0.0] * 20, 3.0, 5.0, -4.0])
    estimate = hutchpp(a, 18, 0)
    assert estimate.value == pytest.approx(4.0)
    assert estimate.error < 1e-12


@given(products=st.integers(6, 40))
def test_the_trace_estimate_spends_its_budget(products):
    spent = []

    def matvec(v):
        spent.append(len(v))
        return 2 * v

    how = {"products": products, "generator": cases.generator()}
    estimate = curvature.moments(matvec, torch.empty(1, 50), **how)[0].single()
    assert sum(spent) == estimate.products == products
    assert estimate.value == pytest.approx(100, rel=0.3)


def test_fewer_than_six_products_are_refused():
    with pytest.raises(ValueError, match="products is 5; it must be a whole number of at least 6"):
        curvature.moments(lambda v: v, torch.empty(1, 10), products=5, generator=cases.generator())


# ------------------------------------------------------------------ parameters


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk", [1, 3, 7, 256])
def test_hessian_products_agree_with_the_dense_hessian_with_ragged_chunks(loss, chunk):
    model, x, y = cases.mlp(width=3), cases.images(7), cases.labels(7)
    dense = cases.parameter_hessian(model, LOSSES[loss], x, y)
    hessian = curvature.ParameterHessian(model, LOSSES[loss], x, y, chunk=chunk)
    assert hessian.size == len(dense)
    v = start(4, hessian.size)
    assert torch.allclose(hessian.matvec(v), v @ dense, rtol=1e-9, atol=1e-12)
    assert hessian.products == 4


@pytest.mark.parametrize("make", [cases.mlp, cases.conv, cases.quadratic])
def test_top_eigenvalue_matches_the_dense_hessian(make):
    model, x, y = make(), cases.images(5), cases.labels(5)
    exact = torch.linalg.eigvalsh(cases.parameter_hessian(model, cases.per_example_cross_entropy, x, y))
    found = curvature.sharpness(
        curvature.ParameterHessian(model, cases.per_example_cross_entropy, x, y),
        generator=cases.generator(),
        steps=60,
        tolerance=0.0,
    )
    assert found.value == pytest.approx(exact[-1].item(), rel=1e-8)
    loose = curvature.sharpness(
        curvature.ParameterHessian(model, cases.per_example_cross_entropy, x, y), generator=cases.generator()
    )
    assert (exact - loose.value).abs().min() <= loose.error
    assert loose.error <= 1e-3 * exact.abs().max()
    assert loose.products <= 40


def test_sharpness_is_the_highest_eigenvalue_even_where_the_lowest_is_larger_in_size():
    model, x, y = cases.quadratic(), cases.images(4), cases.labels(4)

    def concave(logits, labels):
        return -LOSSES["squared"](logits, labels)

    exact = torch.linalg.eigvalsh(cases.parameter_hessian(model, concave, x, y))
    assert abs(exact[0]) > 10 * abs(exact[-1])
    found = curvature.sharpness(
        curvature.ParameterHessian(model, concave, x, y), generator=cases.generator(), steps=80, tolerance=0.0
    )
    assert found.value == pytest.approx(exact[-1].item(), abs=1e-8 * abs(exact[0].item()))


@pytest.mark.parametrize("make", [cases.mlp, cases.conv])
def test_trace_agrees_with_the_dense_hessian(make):
    model, x, y = make(), cases.images(5), cases.labels(5)
    exact = cases.parameter_hessian(model, cases.per_example_cross_entropy, x, y).trace().item()
    hessian = curvature.ParameterHessian(model, cases.per_example_cross_entropy, x, y)
    hits = []
    for seed in range(10):
        found = curvature.trace(hessian, generator=cases.generator(seed))
        hits.append(abs(found.value - exact) <= 3 * found.error + 1e-9)
    assert sum(hits) >= 9
    whole = curvature.trace(
        curvature.ParameterHessian(model, cases.per_example_cross_entropy, x, y),
        generator=cases.generator(),
        products=3 * hessian.size,
    )
    assert whole.value == pytest.approx(exact, rel=1e-9)


def test_frozen_parameters_are_left_out_of_the_hessian():
    model, x, y = cases.mlp(width=3), cases.images(4), cases.labels(4)
    model[1].requires_grad_(False)
    dense = cases.parameter_hessian(model, LOSSES["cross_entropy"], x, y)
    skip = sum(p.numel() for p in model[1].parameters())
    hessian = curvature.ParameterHessian(model, LOSSES["cross_entropy"], x, y)
    assert hessian.size == len(dense) - skip
    v = start(2, hessian.size)
    assert torch.allclose(hessian.matvec(v), v @ dense[skip:, skip:], atol=1e-12)


def test_curvature_leaves_the_model_as_found():
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    model[3].train()
    flags, weights = [m.training for m in model.modules()], [p.clone() for p in model.parameters()]
    curvature.sharpness(curvature.ParameterHessian(model, LOSSES["squared"], x, y), generator=cases.generator())
    curvature.trace(curvature.ParameterHessian(model, LOSSES["squared"], x, y), generator=cases.generator())
    curvature.input_curvature(curvature.InputHessian(model, x, y), generator=cases.generator())
    curvature.relative_curvature(curvature.InputHessian(model, x, y), generator=cases.generator())
    curvature.gauss_newton_trace(curvature.GaussNewton(model, x))
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not x.requires_grad


@cases.isolated
def coupled(layer):
    return nn.Sequential(nn.Flatten(), nn.Linear(cases.PIXELS, 4), layer).double()


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.Dropout(0.5)])
def test_batch_coupling_in_train_mode_is_refused_and_in_eval_mode_is_not(layer):
    model, x, y = coupled(layer), cases.images(), cases.labels()
    for build in (
        lambda: curvature.ParameterHessian(model, LOSSES["squared"], x, y),
        lambda: curvature.InputHessian(model, x, y),
    ):
        model.train()
        before = [b.clone() for b in model.buffers()]
        with pytest.raises(
            ValueError, match=r"model (answers .*; .*call model.eval\(\)|does not run on x of shape \(n,)"
        ):
            build()
        assert all(torch.equal(b, old) for b, old in zip(model.buffers(), before, strict=True))
        model.eval()
        build()


def test_what_has_no_hessian_is_refused_in_one_sentence(unchecked):
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    loss = LOSSES["cross_entropy"]
    with pytest.raises(ValueError, match=r"x has shape \(0, 2, 3, 3\).*not empty"):
        curvature.ParameterHessian(model, loss, x[:0], y[:0])
    with pytest.raises(ValueError, match="x holds 1 values that are NaN or infinite"):
        broken = x.clone()
        broken[0, 0, 0, 0] = math.nan
        curvature.ParameterHessian(model, loss, broken, y)
    with pytest.raises(ValueError, match="loss is inf on an example; curvature needs a finite loss"):
        curvature.ParameterHessian(model, lambda z, c: loss(z, c) / 0, x, y).gradient  # noqa: B018
    with pytest.raises(ValueError, match="loss is inf on an example; curvature needs a finite loss"):
        curvature.trace(
            curvature.ParameterHessian(model, lambda z, c: loss(z, c) / 0, x, y), generator=cases.generator()
        )
    with pytest.raises(ValueError, match="chunk is 0; it must be a whole number of at least 1"):
        curvature.ParameterHessian(model, loss, x, y, chunk=0)
    with pytest.raises(ValueError, match="model has no parameter that requires a gradient"):
        curvature.ParameterHessian(cases.mlp().requires_grad_(False), loss, x, y)


# ------------------------------------------------------------------ Gauss-Newton


def dense_gauss_newton(model, x, loss, block=""):
    """Mean of J' H J with the dense Jacobian of the logits and the dense Hessian of the loss in the logits."""
    names = [n for n, _ in model.named_parameters() if n.startswith(block)]
    rest = dict(model.named_parameters())
    total = 0
    for image in x:

        def logits(*parts, image=image):
            return torch.func.functional_call(model, rest | dict(zip(names, parts, strict=True)), (image[None],))[0]

        parts = tuple(dict(model.named_parameters())[n].detach() for n in names)
        jacobians = torch.autograd.functional.jacobian(logits, parts)
        j = torch.cat([part.reshape(cases.CLASSES, -1) for part in jacobians], 1)
        p = model(image[None])[0].softmax(0).detach()
        inner = torch.eye(cases.CLASSES, dtype=j.dtype) if loss == "squared" else torch.diag(p) - torch.outer(p, p)
        total = total + j.T @ inner @ j
    return total / len(x)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("make", [cases.mlp, cases.conv])
@pytest.mark.parametrize("block", ["", "layer"])
def test_gauss_newton_trace_agrees_with_the_dense_matrix(loss, make, block, monkeypatch):
    model, x = make(), cases.images(5)
    block = block and curvature.first_layer(model)[0] + "."
    exact = dense_gauss_newton(model, x, loss, block).trace().item()
    for chunk in (2, 64):
        monkeypatch.setattr(curvature.GaussNewton, "chunk", chunk)
        found = curvature.gauss_newton_trace(curvature.GaussNewton(model, x, loss=loss), block=block).value
        assert found == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_that_gauss_newton_knows_by_name_are_those_that_networks_are_trained_with(name):
    logits, y = cases.mlp()(cases.images()).detach(), cases.labels()
    assert torch.allclose(gauss_newton.LOSSES[name](logits, y), getattr(training, name)(logits, y), rtol=1e-12)


@pytest.mark.parametrize("make", [cases.mlp, cases.conv])
def test_gauss_newton_counts_frozen_parameters_too(make):
    model, x = make(), cases.images()
    exact = curvature.gauss_newton_trace(curvature.GaussNewton(model, x)).value
    for parameter in model.parameters():  # the first alone, and so on to all of them
        parameter.requires_grad_(False)
        assert curvature.gauss_newton_trace(curvature.GaussNewton(model, x)).value == pytest.approx(exact, rel=1e-12)


def test_gauss_newton_and_hessian_agree_where_the_logits_are_linear_in_the_weights():
    model, x, y = cases.linear(), cases.images(5), cases.labels(5)
    for loss in LOSSES:
        exact = cases.parameter_hessian(model, LOSSES[loss], x, y).trace().item()
        assert curvature.gauss_newton_trace(curvature.GaussNewton(model, x, loss=loss)).value == pytest.approx(
            exact, rel=1e-9
        )


@cases.isolated
def standardised(seed=0):
    net = models.build(
        "mlp", input_shape=cases.SHAPE, classes=3, seed=seed, activation="relu", width=5, mean=0.5, std=0.3
    )
    return net.double()


@pytest.mark.parametrize("factor", [0.1, 3.0, 100.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_invariant_flatness_ignores_rescaling_of_a_relu_networks_layers(factor, loss):
    model, x = standardised(), cases.images(5)
    logits, before = model(x), curvature.invariant_flatness(curvature.GaussNewton(model, x, loss=loss)).value
    plain = curvature.gauss_newton_trace(curvature.GaussNewton(model, x, loss=loss)).value
    dense = [m for m in model.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        dense[0].weight *= factor
        dense[0].bias *= factor
        dense[1].weight /= factor
    assert torch.allclose(model(x), logits)
    assert curvature.invariant_flatness(curvature.GaussNewton(model, x, loss=loss)).value == pytest.approx(
        before, rel=1e-9
    )
    assert curvature.gauss_newton_trace(curvature.GaussNewton(model, x, loss=loss)).value != pytest.approx(
        plain, rel=0.01
    )


def test_invariant_flatness_is_the_squared_spectral_norm_times_the_trace_of_its_layer():
    model, x = standardised(), cases.images(5)
    name, layer = curvature.first_layer(model)
    assert (name, layer) == ("layers.2", model.layers[2])
    top = torch.linalg.svdvals(layer.weight)[0].item()
    block = curvature.gauss_newton_trace(curvature.GaussNewton(model, x), block="layers.2.").value
    assert curvature.invariant_flatness(curvature.GaussNewton(model, x)).value == pytest.approx(top**2 * block)


def test_flatness_of_layers_that_do_not_carry_it_is_refused():
    x = cases.images()
    with pytest.raises(
        ValueError, match=r"the first layer is Conv2d; this flatness needs a dense \(Linear\) first layer"
    ):
        curvature.invariant_flatness(curvature.GaussNewton(cases.conv(), x))
    with pytest.raises(ValueError, match="model has no layer with weights"):
        curvature.first_layer(nn.Sequential(nn.Flatten(), nn.ReLU()))
    with pytest.raises(ValueError, match="loss is 'hinge'; it must be one of cross_entropy, squared"):
        curvature.gauss_newton_trace(curvature.GaussNewton(cases.mlp(), x, loss="hinge"))
    with pytest.raises(ValueError, match="block is 'nowhere'; no parameter name starts with it"):
        curvature.gauss_newton_trace(curvature.GaussNewton(cases.mlp(), x), block="nowhere")


# ------------------------------------------------------------------ pixels

READOUTS = {"logit": models.readouts.logit, "cross_entropy": models.readouts.cross_entropy}


def dense_input_hessians(model, readout, x, y):
    return cases.input_hessians(lambda image, i: READOUTS[readout](model, image, y[i : i + 1]), x)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("make", [cases.mlp, cases.conv, cases.quadratic])
def test_input_curvature_matches_the_dense_hessians(readout, make):
    model, x, y = make(), cases.images(4), cases.labels(4)
    dense = dense_input_hessians(model, readout, x, y)
    found = curvature.input_curvature(
        curvature.InputHessian(model, x, y, readout=READOUTS[readout]), generator=cases.generator(), steps=cases.PIXELS
    )
    assert torch.allclose(found.value, torch.linalg.matrix_norm(dense, ord=2), rtol=1e-8)
    short = curvature.input_curvature(
        curvature.InputHessian(model, x, y, readout=READOUTS[readout]), generator=cases.generator(), steps=3
    )
    sizes = torch.linalg.eigvalsh(dense).abs()
    assert ((sizes - short.value[:, None]).abs().amin(1) <= short.error + 1e-12).all()
    assert short.products == 3


def test_input_curvature_of_a_quadratic_is_that_of_its_matrix():
    model, x, y = cases.quadratic(), cases.images(4), cases.labels(4)
    found = curvature.input_curvature(
        curvature.InputHessian(model, x, y), generator=cases.generator(), steps=cases.PIXELS
    )
    assert torch.allclose(found.value, torch.linalg.matrix_norm(model.matrices[y], ord=2).detach())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_input_curvature_sees_both_ends_of_the_spectrum(sign):
    spectrum = [sign * v for v in [-9.0, -1.0, *[0.0] * 14, 2.0, 5.0]]
    model = cases.Quadratic(cases.with_spectrum(spectrum).repeat(4, 1, 1), torch.ones(4, 18, dtype=torch.float64))
    found = curvature.input_curvature(
        curvature.InputHessian(model, cases.images(2), cases.labels(2)), generator=cases.generator()
    )
    assert found.value.tolist() == pytest.approx([9.0, 9.0])


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("make", [cases.mlp, cases.conv, cases.quadratic])
def test_relative_curvature_matches_the_dense_hessians(readout, make):
    model, x, y = make(), cases.images(4), cases.labels(4)
    dense = dense_input_hessians(model, readout, x, y)
    at = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(READOUTS[readout](model, at, y).sum(), at)
    g = g.flatten(1)
    length = g.norm(dim=1)
    unit = g / length[:, None]
    turning = dense - unit[:, :, None] * torch.einsum("bi,bij->bj", unit, dense)[:, None]
    exact = torch.linalg.matrix_norm(turning, ord=2) / length
    found = curvature.relative_curvature(
        curvature.InputHessian(model, x, y, readout=READOUTS[readout]), generator=cases.generator(), steps=cases.PIXELS
    )
    assert torch.allclose(found.value, exact, rtol=1e-7)
    assert found.products % 2 == 0
    assert found.products <= 2 * cases.PIXELS
    assert torch.allclose(curvature.input_gradient_norm(model, x, y, readout=READOUTS[readout]), length, rtol=1e-12)


def test_the_gradient_turns_no_faster_than_the_relative_curvature_says():
    model, x, y = cases.mlp(), cases.images(4), cases.labels(4)
    found = curvature.relative_curvature(
        curvature.InputHessian(model, x, y), generator=cases.generator(), steps=cases.PIXELS
    )
    hessian = curvature.InputHessian(model, x, y)
    g = hessian.gradient.detach().flatten(1)
    for seed in range(5):
        d = start(4, cases.PIXELS, seed)
        d = 1e-5 * d / d.norm(dim=1, keepdim=True)
        moved = curvature.InputHessian(model, x + d.view_as(x), y).gradient.detach().flatten(1)
        sine = (moved - (moved * g).sum(1, keepdim=True) / g.square().sum(1, keepdim=True) * g).norm(dim=1)
        assert (sine / moved.norm(dim=1) <= 1e-5 * found.value * (1 + 1e-3)).all()


def test_a_linear_network_has_no_input_curvature():
    model, x, y = cases.linear(), cases.images(), cases.labels()
    for measure in (curvature.input_curvature, curvature.relative_curvature):
        found = measure(curvature.InputHessian(model, x, y), generator=cases.generator())
        assert not found.value.any()
        assert not found.error.any()


def test_relative_curvature_is_infinite_where_the_gradient_vanishes_and_the_hessian_does_not():
    model = cases.quadratic()
    with torch.no_grad():
        model.vectors.zero_()
    x = torch.zeros(1, *cases.SHAPE, dtype=torch.float64)
    found = curvature.relative_curvature(curvature.InputHessian(model, x, cases.labels(1)), generator=cases.generator())
    assert found.value.item() == math.inf


def test_images_do_not_influence_each_others_curvature():
    model, x, y = cases.conv(), cases.images(4), cases.labels(4)
    hessian = curvature.InputHessian(model, x, y)
    v = start(4, cases.PIXELS)
    for i in range(4):
        alone = curvature.InputHessian(model, x[i : i + 1], y[i : i + 1]).matvec(v[i : i + 1])
        assert torch.allclose(hessian.matvec(v)[i], alone[0], rtol=1e-10, atol=1e-14)


def test_a_shared_graph_gives_the_same_answer():
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    kept = curvature.InputHessian(model, x, y)
    for measure in (curvature.input_curvature, curvature.relative_curvature):
        fresh = measure(curvature.InputHessian(model, x, y), generator=cases.generator())
        assert torch.equal(measure(kept, generator=cases.generator()).value, fresh.value)
