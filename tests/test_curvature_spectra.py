"""Recursions, quadratures and estimates from products, written out a second time by plain loops."""

import math

import cases
import pytest
import torch
from attrobust import curvature
from attrobust.curvature import spectra
from cases import draw

EPS = torch.finfo(torch.float64).eps


def symmetric(n, seed=0):
    m = draw(n, n, seed=seed)
    return (m + m.T) / 2


@pytest.mark.parametrize("steps", [1, 2, 5, 16, 17, 32, 33, 40])
def test_every_state_of_the_recursion_is_that_of_a_plain_loop(steps):
    a = torch.stack([symmetric(40), symmetric(40, 1)])
    start = draw(2, 40, seed=2)
    calls = []
    states = list(spectra.krylov(lambda v: calls.append(1) or cases.matvec(a)(v), start, steps=steps))
    assert len(states) == len(calls) == steps
    for i in range(2):
        q = [start[i] / start[i].norm()]
        diagonal, off = [], []
        for step in range(steps):
            w = a[i] @ q[-1]
            diagonal.append(float(w @ q[-1]))
            for _ in range(3):
                for old in q:
                    w = w - (w @ old) * old
            off.append(float(w.norm()))
            q.append(w / w.norm())
            state = states[step]
            assert state.diagonal[i].tolist() == pytest.approx(diagonal, abs=1e-7)
            assert state.off[i].tolist() == pytest.approx(off[:-1], abs=1e-7)
            if step + 1 < 40:
                assert state.beta[i].item() == pytest.approx(off[-1], abs=1e-7)
            assert state.basis.shape == (2, step + 1, 40)
        assert torch.allclose(states[-1].basis[i], torch.stack(q[:-1]), atol=1e-6)
    values, s = states[-1].ritz()
    t = torch.diag_embed(states[-1].diagonal) + torch.diag_embed(states[-1].off, 1) + torch.diag_embed(
        states[-1].off, -1
    )  # fmt: skip
    assert torch.allclose(s @ torch.diag_embed(values) @ s.mT, t, atol=1e-10)


def test_room_grows_by_doubling_and_no_further_than_there_are_steps():
    a, sizes = symmetric(64), []

    def matvec(v):
        sizes.append(v.untyped_storage().nbytes() // (64 * 8))
        return v @ a

    *_, last = spectra.krylov(matvec, draw(1, 64), steps=50)
    assert sizes == [16] * 16 + [32] * 16 + [50] * 18
    assert last.basis.shape == (1, 50, 64)
    sizes.clear()
    list(spectra.krylov(matvec, draw(1, 64), steps=7))
    assert sizes == [7] * 7


@pytest.mark.parametrize(("much", "steps"), [(8.0, 1), (13.0, 2)])
def test_a_subspace_is_invariant_up_to_ten_roundings_of_what_was_met(much, steps):
    side = much * EPS * 3.0
    a = torch.tensor([[3.0, side], [side, 1.0]], dtype=torch.float64)
    states = list(spectra.krylov(lambda v: v @ a, torch.tensor([[1.0, 0.0]], dtype=torch.float64), steps=2))
    assert len(states) == steps
    assert (states[0].beta == 0).item() == (steps == 1)


def test_the_largest_number_met_counts_however_long_ago():
    side = 5.0
    a = torch.tensor([[0.0, side, 0.0], [side, 0.0, 30 * EPS], [0.0, 30 * EPS, 0.0]], dtype=torch.float64)
    start = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    assert len(list(spectra.krylov(lambda v: v @ a, start, steps=3))) == 2
    a[1, 2] = a[2, 1] = 70 * EPS
    assert len(list(spectra.krylov(lambda v: v @ a, start, steps=3))) == 3


def test_ends_are_those_that_the_start_vector_sees():
    diagonal = torch.tensor([[2.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    basis = torch.eye(4, dtype=torch.float64)[None]
    off = torch.tensor([[0.5, 0.0, 0.0]], dtype=torch.float64)
    state = spectra.Krylov(diagonal, off, torch.tensor([0.25], dtype=torch.float64), basis)
    low, high = state.ends(vectors=True)
    exact = torch.linalg.eigvalsh(torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64))
    assert (low.value.item(), high.value.item()) == pytest.approx(tuple(exact.tolist()))
    assert low.products == high.products == 4
    assert low.error.item() == high.error.item() == 0
    values, s = state.ritz()
    for end in (low, high):
        at = int((values[0] - end.value).abs().argmin())
        assert torch.allclose(end.vector[0], s[0, :, at] @ basis[0])
    assert all(end.vector is None for end in state.ends(vectors=False))
    for weight, seen in ((8.0, False), (13.0, True)):
        small = weight * EPS  # of the first entry of the second eigenvector
        tilted = torch.tensor([[2.0, 9.0]], dtype=torch.float64), torch.tensor([[7.0 * small]], dtype=torch.float64)
        state = spectra.Krylov(*tilted, torch.zeros(1, dtype=torch.float64), torch.eye(2, dtype=torch.float64)[None])
        assert (state.ends(vectors=False)[1].value.item() > 5) == seen


def test_a_residual_is_the_next_beta_times_the_last_entry():
    state = list(spectra.krylov(lambda v: v @ symmetric(12), draw(1, 12), steps=4))[-1]
    values, s = torch.linalg.eigh(torch.diag(state.diagonal[0]) + torch.diag(state.off[0], 1) + torch.diag(
        state.off[0], -1
    ))  # fmt: skip
    low, high = state.ends(vectors=True)
    for end, at in ((low, 0), (high, 3)):
        assert end.value.item() == pytest.approx(values[at].item())
        assert end.error.item() == pytest.approx(float(state.beta) * abs(float(s[-1, at])))
        residual = symmetric(12) @ end.vector[0] - end.value * end.vector[0]
        assert residual.norm().item() == pytest.approx(end.error.item(), rel=1e-8)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("tolerance", [0.3, 0.03, 1e-4])
def test_a_search_ends_at_the_first_state_whose_errors_are_allowed(both, tolerance):
    a, start = torch.stack([symmetric(30), symmetric(30, 1) - 3]), draw(2, 30, seed=2)
    for state in spectra.krylov(cases.matvec(a), start, steps=30):
        ends = state.ends(vectors=True)
        size = torch.maximum(ends[0].value.abs(), ends[1].value.abs())
        if all((end.error <= tolerance * size).all() for end in (ends if both else ends[1:])):
            break
    found = curvature.lanczos(cases.matvec(a), start, steps=30, tolerance=tolerance, both=both)
    for one, other in zip(found, ends, strict=True):
        assert one.products == other.products
        assert torch.equal(one.value, other.value)
        assert torch.equal(one.error, other.error)
        assert torch.equal(one.vector, other.vector)


@pytest.mark.parametrize("products", [6, 7, 8, 9, 14, 29])
def test_trace_and_norm_are_told_by_hand_from_the_same_signs(products):
    n, third = 20, products // 3
    a = torch.stack([symmetric(n), symmetric(n, 1)])
    generator, seen = cases.generator(3), []
    found = curvature.moments(
        lambda v: seen.append(1) or cases.matvec(a)(v), a[:, 0], products=products, generator=cases.generator(3)
    )
    assert len(seen) == products
    sketch = 2 * torch.randint(0, 2, (2, third, n), generator=generator).double() - 1
    probes = 2 * torch.randint(0, 2, (2, products - 2 * third, n), generator=generator).double() - 1
    for i in range(2):
        q, _ = torch.linalg.qr(a[i] @ sketch[i].T)
        away = torch.eye(n, dtype=torch.float64) - q @ q.T
        rest = away @ a[i] @ away
        quadratic = [float(z @ rest @ z) for z in probes[i]]
        squares = [float((rest @ z).square().sum()) for z in probes[i]]

        def mean(numbers):
            return sum(numbers) / len(numbers)

        def error(numbers):
            spread = sum((z - mean(numbers)) ** 2 for z in numbers) / (len(numbers) - 1)
            return math.sqrt(spread / len(numbers))

        trace = float(torch.trace(q.T @ a[i] @ q)) + mean(quadratic)
        outlying = 2 * float((a[i] @ q).square().sum()) - float((q.T @ a[i] @ q).square().sum())
        norm = math.sqrt(outlying + mean(squares))
        assert found[0].value[i].item() == pytest.approx(trace, rel=1e-9)
        assert found[0].error[i].item() == pytest.approx(error(quadratic), rel=1e-7)
        assert found[1].value[i].item() == pytest.approx(norm, rel=1e-9)
        assert found[1].error[i].item() == pytest.approx(error(squares) / (2 * norm), rel=1e-7)
    assert found[0].products == found[1].products == products


@pytest.mark.parametrize("n", [3, 4, 5])
def test_a_third_of_the_budget_that_covers_the_space_makes_both_exact(n):
    a, seen = torch.stack([symmetric(n), symmetric(n, 1)]), []
    found = curvature.moments(
        lambda v: seen.append(1) or cases.matvec(a)(v), a[:, 0], products=12, generator=cases.generator()
    )
    assert len(seen) == (n if n <= 4 else 12)
    if n <= 4:
        assert found[0].value.tolist() == pytest.approx([m.trace().item() for m in a], rel=1e-12)
        assert found[1].value.tolist() == pytest.approx([m.square().sum().sqrt().item() for m in a], rel=1e-12)
        for estimate in found:
            assert estimate.error.tolist() == [0.0, 0.0]
            assert estimate.products == n
    none = torch.zeros(2, n, n, dtype=torch.float64)
    for estimate in curvature.moments(cases.matvec(none), none[:, 0], products=6, generator=cases.generator()):
        assert not estimate.value.any()
        assert not estimate.error.any()


def test_a_density_is_read_off_its_nodes_by_hand():
    nodes, weights = draw(3, 4), draw(3, 4, seed=1).square()
    weights = weights / weights.sum(1, keepdim=True)
    found = curvature.Density(nodes, weights, size=7, products=12)

    def mean_and_error(function):
        samples = [7 * sum(w * function(t) for t, w in zip(*row, strict=True)) for row in zip(
            nodes.tolist(), weights.tolist(), strict=True
        )]  # fmt: skip
        mean = sum(samples) / 3
        return mean, math.sqrt(sum((s - mean) ** 2 for s in samples) / 2 / 3)

    trace, square = mean_and_error(lambda t: t), mean_and_error(lambda t: t * t)
    assert (found.trace.value, found.trace.error) == pytest.approx(trace)
    norm = math.sqrt(square[0])
    assert (found.frobenius.value, found.frobenius.error) == pytest.approx((norm, square[1] / (2 * norm)))
    assert found.trace.products == found.frobenius.products == 12
    grid, width = torch.linspace(-2, 2, 9, dtype=torch.float64), 0.3
    for point, height in zip(grid.tolist(), found.at(grid, width=width).tolist(), strict=True):
        exact = sum(
            float(w) * math.exp(-(((point - float(t)) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi)) / 3
            for t, w in zip(nodes.flatten(), weights.flatten(), strict=True)
        )
        assert height == pytest.approx(exact, rel=1e-10)
    flat = curvature.Density(torch.zeros(2, 1), torch.ones(2, 1), size=3, products=2)
    assert (flat.frobenius.value, flat.frobenius.error) == (0.0, 0.0)
    single = curvature.Density(nodes[:1], weights[:1], size=7, products=4)
    assert single.trace.error == single.frobenius.error == math.inf


@pytest.mark.parametrize("steps", [2, 5, 9])
def test_a_quadrature_has_the_moments_of_its_probe(steps):
    a, start = symmetric(8), draw(3, 8, seed=1)
    found = curvature.slq(lambda v: v @ a, start, steps=steps)
    unit = start / start.norm(dim=1, keepdim=True)
    power = unit
    for k in range(2 * min(steps, 8)):
        exact = (unit * power).sum(1)
        assert torch.allclose((found.weights * found.nodes**k).sum(1), exact, rtol=1e-6, atol=1e-6)
        power = power @ a
    assert found.size == 8
    assert found.products == 3 * min(steps, 8)


def test_a_single_estimate_has_numbers_and_its_own_vector():
    found = curvature.Estimate(torch.tensor([2.0]), torch.tensor([0.5]), 7, torch.tensor([[1.0, 2.0]])).single()
    assert (found.value, found.error, found.products) == (2.0, 0.5, 7)
    assert found.vector.tolist() == [1.0, 2.0]
    assert curvature.Estimate(torch.tensor([2.0]), torch.tensor([0.5]), 7).single().vector is None


def test_random_numbers_come_from_the_generator_that_is_handed_over_alone(unchecked):
    like = torch.empty(3, 5)
    found = spectra.signs((4, 3), like, cases.generator(1))
    assert torch.equal(found, 2.0 * torch.randint(0, 2, (4, 3), generator=cases.generator(1)) - 1)
    assert found.dtype == torch.float32
    assert spectra.signs((2,), like.double(), cases.generator()).dtype == torch.float64
    assert torch.equal(spectra.normal(like, cases.generator(1)), torch.randn(3, 5, generator=cases.generator(1)))
    assert spectra.normal(like.double(), cases.generator()).dtype == torch.float64
    for make in (lambda g: spectra.signs((2,), like, g), lambda g: spectra.normal(like, g)):
        with pytest.raises(ValueError, match="generator is"):
            make(None)


@pytest.mark.parametrize("products", [6, 30, 60])
def test_trace_and_norm_of_a_matrix_of_any_size_are_those_of_an_ordinary_one(products):
    # Squares of 1e-25 vanish in single precision, those of 1e25 are infinite; a power of two rounds nothing.
    matrices = draw(2, 20, 20, seed=0).float()
    matrices += matrices.mT.clone()
    how = {"like": torch.ones(2, 20), "products": products}

    def told(size):
        found = spectra.moments(
            lambda v: torch.einsum("bij,bj->bi", size * matrices, v), generator=cases.generator(), **how
        )
        return [part.double() / size for estimate in found for part in (estimate.value, estimate.error)]

    for size in (2.0**-83, 2.0**83):
        for part, ordinary in zip(told(size), told(1.0), strict=True):
            torch.testing.assert_close(part, ordinary, rtol=1e-12, atol=0)


def test_the_norm_of_a_density_is_that_of_an_ordinary_matrix_at_any_size():
    nodes, weights = torch.tensor([[1.0, -3.0]]), torch.tensor([[0.25, 0.75]])
    for size in (2.0**-83, 1.0, 2.0**83):
        density = spectra.Density(size * nodes, weights, 4, 2)
        assert density.frobenius.value / size == pytest.approx(28**0.5, rel=1e-6)  # 4 (1/4 + 9 * 3/4)
