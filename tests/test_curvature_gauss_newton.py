"""Gauss-Newton's trace by hand, for networks that are no chain, and what of it is refused."""

import cases
import pytest
import torch
from attrobust import curvature
from attrobust.curvature import factored, gauss_newton
from torch import nn


class Forked(nn.Module):
    """No chain: two ways that meet, a buffer that scales one, and a parameter that nothing reads."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.spare = cases.mlp(), cases.linear(seed=1), nn.Parameter(torch.zeros(2).double())
        self.register_buffer("scale", torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64))

    def forward(self, x):
        return self.left(x) + self.scale * self.right(x).tanh()


class Numbered(Forked):
    """One that cannot be batched."""

    def forward(self, x):
        return super().forward(x) * (1 + 0 * x.sum().item())


class Off(torch.autograd.Function):
    """The identity, whose derivative torch's batching sees as larger."""

    generate_vmap_rule = False
    more = 0.0

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g

    @staticmethod
    def vmap(info, in_dims, x):
        return x * (1 + Off.more), in_dims[0]


def rows_by_hand(model, x, names):
    """The Jacobian of each example's logits in the parameters named."""
    parts = [p for name, p in model.named_parameters() if name in names]
    found = []
    for image in x:
        logits = model(image[None])[0]
        rows = [torch.autograd.grad(z, parts, retain_graph=True, allow_unused=True) for z in logits]
        rows = [[torch.zeros_like(p) if g is None else g for g, p in zip(row, parts, strict=True)] for row in rows]
        found.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]))
    return torch.stack(found)


@pytest.mark.parametrize("make", [Forked, Numbered])
@pytest.mark.parametrize("block", ["", "left.", "right.0", "right.1.bias"])
@pytest.mark.parametrize("n", [1, 3])
def test_each_examples_trace_is_that_of_its_jacobian(make, block, n):
    model, x, y = make(), cases.images(n), cases.labels(n)
    names = [name for name, _ in model.named_parameters() if name.startswith(block)]
    if not names:
        with pytest.raises(ValueError, match=f"block is '{block}'; no parameter name starts with it"):
            curvature.gauss_newton_trace(curvature.GaussNewton(model, x), block=block)
        return
    j = rows_by_hand(model, x, names)
    p = model(x).softmax(1).detach()
    exact = [float(torch.trace(j[i].T @ (torch.diag(p[i]) - torch.outer(p[i], p[i])) @ j[i])) for i in range(n)]
    _, factor = factored.logit_factor(gauss_newton.LOSSES["cross_entropy"], model(x), y)
    found = gauss_newton._by_jacobians(model, x, factor, names)
    assert found.tolist() == pytest.approx(exact, rel=1e-8, abs=1e-14)
    assert found.dtype == torch.float64
    whole = curvature.gauss_newton_trace(curvature.GaussNewton(model, x), block=block)
    assert whole.value == pytest.approx(sum(exact) / n, rel=1e-8, abs=1e-14)
    assert (whole.error, whole.products) == (0.0, cases.CLASSES)
    with torch.no_grad():
        assert gauss_newton._by_jacobians(model, x, factor, names).tolist() == found.tolist()
    assert all(q.requires_grad and q.grad is None for q in model.parameters())


@pytest.mark.parametrize(("more", "kept"), [(0.9, True), (1.1, False)])
def test_batching_is_believed_while_its_first_example_is_right_to_the_root_of_the_rounding(more, kept, monkeypatch):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = cases.linear()

        def forward(self, x):
            return Off.apply(self.body(x))

    model, x, calls = Linear(), cases.images(3), []
    monkeypatch.setattr(Off, "more", 0.0)
    rows = torch.ones(3, 4, dtype=torch.float64)
    factor = [(rows, torch.ones(3, dtype=torch.float64))]
    names = [name for name, _ in model.named_parameters()]
    exact = gauss_newton._by_jacobians(model, x, factor, names)

    def jacobians(function, **how):
        def off(weights, images):
            calls.append(1)
            j = rows_by_hand(model, images, names) * (1 + more * torch.finfo(torch.float64).eps ** 0.5)
            sizes = [p.numel() for p in model.parameters()]
            return dict(zip(names, j.split(sizes, 2), strict=True))

        return off

    monkeypatch.setattr(gauss_newton, "vmap", jacobians)
    found = gauss_newton._by_jacobians(model, x, factor, names)
    assert calls == [1]
    relative = float(found.sum() / exact.sum()) - 1
    assert relative == pytest.approx(2 * more * 2.0**-26 if kept else 0.0, rel=0.05, abs=1e-13)


def test_losses_by_name_need_no_labels_and_callables_do(unchecked):
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    matrix = curvature.GaussNewton(model, x)
    assert matrix.y.tolist() == [0, 0, 0]
    assert matrix.y.dtype == torch.long
    assert curvature.GaussNewton(model, x, y).y is y
    assert curvature.GaussNewton(model, x, y).loss is gauss_newton.LOSSES["cross_entropy"]
    logits = torch.randn(3, 4, generator=cases.generator(), dtype=torch.float64)
    half = [
        0.5 * sum((float(z) - (c == int(t))) ** 2 for c, z in enumerate(row)) for row, t in zip(logits, y, strict=True)
    ]
    assert gauss_newton.LOSSES["squared"](logits, y).tolist() == pytest.approx(half)
    entropy = [-float(row.log_softmax(0)[t]) for row, t in zip(logits, y, strict=True)]
    assert gauss_newton.LOSSES["cross_entropy"](logits, y).tolist() == pytest.approx(entropy)
    with pytest.raises(ValueError, match="y is None; a callable loss needs the labels"):
        curvature.GaussNewton(model, x, loss=cases.half_squared)
    with pytest.raises(ValueError, match="y has 2 entries for 3 examples"):
        curvature.GaussNewton(model, x, y[:2])
    for measure in (curvature.gauss_newton_trace, curvature.invariant_flatness):
        with pytest.raises(ValueError, match="gauss_newton is a"):
            measure(model)
    with pytest.raises(ValueError, match="block is a int"):
        curvature.gauss_newton_trace(matrix, block=3)


def test_only_a_loss_of_the_readers_own_is_audited_and_that_once(monkeypatch):
    model, x, y = Forked(), cases.images(5), cases.labels(5)
    monkeypatch.setattr(curvature.GaussNewton, "chunk", 2)
    audited = []
    monkeypatch.setattr(factored, "audit_loss", lambda loss, logits, y: audited.append((len(logits), y.tolist())))
    for loss in gauss_newton.LOSSES:
        curvature.gauss_newton_trace(curvature.GaussNewton(model, x, y, loss=loss))
    assert audited == []
    curvature.gauss_newton_trace(curvature.GaussNewton(model, x, y, loss=cases.half_squared))
    assert audited == [(2, [0, 1])]


def test_the_audit_of_the_logits_is_of_a_few_examples_in_the_block():
    model, x = Forked(), cases.images(9)
    seen = []
    model.register_forward_hook(lambda module, args, out: seen.append((len(args[0]), torch.is_grad_enabled())))
    gauss_newton._audit(model, x, dict(model.left.named_parameters(prefix="left")))
    assert seen == [(4, True), (1, False), (4, False), (4, False)]

    class Cut(Forked):
        def forward(self, x):
            return self.left(x) + self.right(x).detach()

    matrix = curvature.GaussNewton(Cut(), x)
    assert curvature.gauss_newton_trace(matrix, block="left").value > 0
    with pytest.raises(ValueError, match=r"model changes with spare, right.1.weight, right.1.bias and its gradient"):
        curvature.gauss_newton_trace(matrix)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"torch.inference_mode is on"):
        curvature.gauss_newton_trace(matrix)


@cases.isolated
def test_flatness_is_of_the_first_weights_at_any_depth_or_of_the_network_itself():
    x = cases.images(3).flatten(1)
    alone = nn.Linear(18, 4).double()
    assert curvature.first_layer(alone) == ("", alone)
    top = torch.linalg.svdvals(alone.weight.detach())[0].item()
    matrix = curvature.GaussNewton(alone, x)
    found, whole = curvature.invariant_flatness(matrix), curvature.gauss_newton_trace(matrix)
    assert found.value == pytest.approx(top**2 * whole.value, rel=1e-10)
    assert (found.error, found.products) == (0.0, whole.products)
    # A layer "1" and another "10": the block is the first alone.
    long = cases.filled(
        nn.Sequential(nn.Identity(), nn.Linear(18, 4), *[nn.Identity() for _ in range(8)], nn.Linear(4, 4)), 0
    )
    matrix = curvature.GaussNewton(long, x)
    top = torch.linalg.svdvals(long[1].weight.detach())[0].item()
    block = curvature.gauss_newton_trace(matrix, block="1.").value
    assert block < curvature.gauss_newton_trace(matrix, block="1").value
    assert curvature.invariant_flatness(matrix).value == pytest.approx(top**2 * block, rel=1e-10)


def test_a_block_that_no_output_uses_has_no_trace():
    net = cases.isolated(nn.Linear)(2, 2).double()
    net.beside = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    matrix = curvature.GaussNewton(net, torch.ones(4, 2, dtype=torch.float64))
    assert curvature.gauss_newton_trace(matrix, block="beside").value == 0
    assert curvature.gauss_newton_trace(matrix, block="weight").value > 0
