"""What products cost, what memory keeps, and what is refused, each told by hand."""

from types import SimpleNamespace

import cases
import numpy as np
import psutil
import pytest
import torch
from attrobust import curvature
from attrobust.curvature import products
from attrobust.models.derivatives import behind
from cases import draw
from torch import nn

LOSS = cases.per_example_cross_entropy


def setting(n=5):
    return cases.mlp(), cases.images(n), cases.labels(n)


def test_the_bytes_of_a_graph_are_those_of_what_it_holds_once_without_the_inputs():
    x, w = draw(6).requires_grad_(), draw(3, 2).requires_grad_()
    grown = (x * w.view(6)).exp()  # holds x, which is an input, w through a view, and the result
    assert products._saved_bytes(behind([grown]), [x]) == (6 + 6) * 8
    assert products._saved_bytes(behind([grown]), [x, w]) == 6 * 8
    assert products._saved_bytes(behind([grown]), []) == 3 * 6 * 8
    both = torch.cat([grown, grown]) * draw(12)
    assert products._saved_bytes(behind([both]), [x, w]) == 6 * 8 + 12 * 8
    picked = x[torch.tensor([0, 1, 2])]  # holds a tuple
    assert products._saved_bytes(behind([picked]), [x]) == 3 * 8
    assert "_saved_result" in products._saved_names(type(grown.grad_fn))
    assert all(name.startswith("_saved_") for name in products._saved_names(type(grown.grad_fn)))


def bytes_of(hessian):
    graphs = [hessian._built(pair) for pair in hessian._pairs]
    return [products._saved_bytes(behind(graph.gradients), graph.inputs) for graph in graphs]


def test_graphs_are_kept_up_to_the_very_byte():
    model, x, y = setting(7)
    first, second, third = bytes_of(curvature.ParameterHessian(model, LOSS, x, y, chunk=3))
    assert first == second > third > 0
    for memory, kept in ((first - 1, 0), (first, 1), (2 * first - 1, 1), (2 * first, 2), (2 * first + third - 1, 2),
                         (2 * first + third, 3)):  # fmt: skip
        assert curvature.ParameterHessian(model, LOSS, x, y, chunk=3, memory=memory).kept == kept


def test_half_of_the_free_memory_is_filled_unless_said(monkeypatch):
    model, x, y = setting(6)
    each = sum(bytes_of(curvature.ParameterHessian(model, LOSS, x, y, chunk=3)))
    for free, kept in ((2 * each, 2), (2 * each - 2, 1)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        assert curvature.ParameterHessian(model, LOSS, x, y, chunk=3).kept == kept
        assert curvature.ParameterHessian(model, LOSS, x, y, chunk=3, keep_graph=True).kept == 2
        assert curvature.ParameterHessian(model, LOSS, x, y, chunk=3, keep_graph=False, memory=10**9).kept == 0
        # What is free is asked once, at the first chunk.
        assert curvature.ParameterHessian(model, LOSS, x, y, chunk=3, memory=10**9).kept == 2


def passes(model, use):
    seen = []
    hook = model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    use()
    hook.remove()
    return seen


@pytest.mark.parametrize("keep", [True, False])
def test_the_audit_runs_once_for_each_order_and_a_lower_one_not_after_a_higher(keep):
    model, x, y = setting(7)
    for make in (
        lambda: curvature.ParameterHessian(model, LOSS, x, y, chunk=3, keep_graph=keep),
        lambda: curvature.InputHessian(model, x, y, chunk=3, keep_graph=keep),
    ):
        hessian, calls = make(), []
        audit = hessian._audit
        hessian._audit = lambda *, order, audit=audit, calls=calls: calls.append(order) or audit(order=order)
        hessian.gradient  # noqa: B018
        hessian.gradient  # noqa: B018
        assert calls == [1]
        size = hessian.size if isinstance(hessian, curvature.ParameterHessian) else 18
        for _ in range(2):
            hessian.matvec(draw(7, size))
            hessian.gradient  # noqa: B018
        assert calls == [1, 2]
        assert passes(model, lambda hessian=hessian: hessian.gradient) == ([] if keep else [3, 3, 1])
        hessian = make()
        hessian.matvec(draw(7, size))
        assert passes(model, lambda hessian=hessian: hessian.gradient) == ([] if keep else [3, 3, 1])


def test_products_are_counted_by_the_row_of_weights_and_by_the_batch_of_images():
    model, x, y = setting(5)
    weights, pixels = curvature.ParameterHessian(model, LOSS, x, y), curvature.InputHessian(model, x, y)
    assert weights.products == pixels.products == 0
    for i in (1, 2):
        weights.matvec(draw(3, weights.size))
        pixels.matvec(draw(5, 18))
        assert (weights.products, pixels.products) == (3 * i, i)
    none = weights.matvec(draw(3, weights.size)[:0])
    assert none.shape == (0, weights.size)
    assert weights.products == 6


def test_vectors_of_another_shape_or_precision_are_refused(unchecked):
    model, x, y = setting(2)
    weights, pixels = curvature.ParameterHessian(model, LOSS, x, y), curvature.InputHessian(model, x, y)
    n = weights.size
    for v in (draw(n), draw(1, n + 1), draw(1, n).float(), draw(1, 1, n)):
        with pytest.raises(
            ValueError, match=rf"v has shape .* and dtype .*; it must be \(any, {n}\), of torch.float64"
        ):
            weights.matvec(v)
    for v in (draw(2, 17), draw(2, 18).float(), draw(1, 18)):
        with pytest.raises(ValueError, match=r"v has shape .* and dtype .*; it must be \(2, 18\), of torch.float64"):
            pixels.matvec(v)
    assert weights.products == pixels.products == 0


def test_scipys_operator_takes_columns_rows_and_other_precisions():
    model, x, y = setting(3)
    model = model.float()
    hessian = curvature.ParameterHessian(model, LOSS, x.float(), y)
    operator = hessian.to_scipy()
    assert operator.shape == (hessian.size, hessian.size)
    assert operator.dtype == np.float32
    assert hessian.products == 0  # which none was spent on
    v = draw(1, hessian.size)
    expected = hessian.matvec(v.float())[0]
    for given in (v[0].numpy(), v.T.numpy(), np.asfortranarray(v.T.numpy())):
        for multiply in (operator.matvec, operator.rmatvec):
            assert np.allclose(multiply(given).ravel(), expected.numpy(), rtol=1e-4, atol=1e-6)


def test_weights_of_two_precisions_or_none_that_is_free_are_refused():
    x, y = cases.images(2), cases.labels(2)
    mixed = cases.mlp()
    mixed.spare = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"^model has parameters of torch.float32, torch.float64$"):
        curvature.ParameterHessian(mixed, LOSS, x, y)
    mixed.spare.requires_grad_(False)
    hessian = curvature.ParameterHessian(mixed, LOSS, x, y)
    assert (hessian.dtype, hessian.device.type) == (torch.float64, "cpu")
    assert hessian.size == sum(p.numel() for p in mixed.parameters()) - 2


@pytest.mark.parametrize("value", [None, 1, 0, "always", torch.tensor(True)])
def test_a_graph_is_kept_by_true_false_or_auto_and_nothing_else(value, unchecked):
    model, x, y = setting(2)
    with pytest.raises(ValueError, match=r"keep_graph is .*; it must be True, False or 'auto'"):
        curvature.ParameterHessian(model, LOSS, x, y, keep_graph=value)
    with pytest.raises(ValueError, match="memory is True; it must be a whole number of at least 0"):
        curvature.ParameterHessian(model, LOSS, x, y, memory=True)


class Held(nn.Module):
    """A network that keeps its last answer."""

    def __init__(self):
        super().__init__()
        self.body = cases.mlp()

    def forward(self, x):
        self.last = self.body(x)
        return self.last


def test_a_loss_is_of_outputs_unless_it_meets_a_parameter_elsewhere_by_its_gradient():
    model, x, y = Held(), cases.images(6), cases.labels(6)

    def of(loss):
        return curvature.ParameterHessian(model, loss, x, y).of_outputs

    assert of(LOSS)
    assert of(lambda z, c: LOSS(z, c) + model.body[1].weight.detach().sum())
    assert not of(lambda z, c: LOSS(z, c) + 0 * model.body[1].weight.sum())
    assert not of(lambda z, c: LOSS(z, c) + model.last.sum(1)[: len(z)])
    assert not of(
        lambda z, c: torch.autograd.grad(z.sum(), model.body[1].weight, create_graph=True)[0].sum() + LOSS(z, c)
    )
    with torch.no_grad():
        assert not of(lambda z, c: LOSS(z, c) + model.body[1].weight.sum())
    few = []
    of(lambda z, c: few.append(len(z)) or LOSS(z, c))
    assert few == [4]


def test_a_weight_is_the_same_while_it_is_itself_with_its_value():
    p = nn.Parameter(torch.tensor([1.0, float("nan"), 2.0]))
    value = p.detach().clone()
    assert products._same(p, p, value)
    assert not products._same(nn.Parameter(value.clone()), p, value)
    assert not products._same(p, p, value.double())
    assert not products._same(p, p, value[:2])
    other = value.clone()
    other[2] = torch.nextafter(other[2], torch.tensor(3.0))
    assert not products._same(p, p, other)
    whole = nn.Parameter(torch.ones(2))
    assert products._same(whole, whole, torch.ones(2))


def test_a_network_with_a_weight_more_or_less_is_another():
    for change in (lambda m: m.append(nn.Identity()), lambda m: setattr(m, "extra", nn.Parameter(torch.zeros(1)))):
        model, x, y = setting(2)
        hessian = curvature.ParameterHessian(model, LOSS, x, y)
        count = len(list(model.parameters()))
        change(model)
        if len(list(model.parameters())) == count:
            hessian.unchanged()
        else:
            with pytest.raises(ValueError, match="model's weights changed"):
                hessian.unchanged()


def test_labels_are_read_as_classes_by_readouts_of_logits_alone():
    model, x = cases.mlp(), cases.images(3)
    far = torch.tensor([0, 9, 1])
    with pytest.raises(ValueError, match=r"^y "):
        curvature.InputHessian(model, x, far)
    own = curvature.InputHessian(model, x, far, readout=lambda model, x, y: y * model(x)[:, 0].square())
    at = x.clone().requires_grad_()
    (exact,) = torch.autograd.grad((far * model(at)[:, 0].square()).sum(), at)
    assert torch.allclose(own.gradient, exact, atol=1e-12)
    assert own.gradient.shape == x.shape
    assert not own.gradient.requires_grad
