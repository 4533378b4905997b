import cases
import pytest
import torch
from attrobust import models, regularizers
from torch import nn

SHAPE = (1, 2, 3)


def examples(n=4):
    x = torch.rand(n, *SHAPE, generator=cases.generator(), dtype=torch.float64)
    return x, torch.arange(n) % 3


@cases.isolated
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()


def test_the_input_gradient_of_a_linear_softmax_network_has_its_closed_form():
    model, (x, y) = linear(), examples()
    residual = model(x).softmax(1) - torch.eye(3, dtype=torch.float64)[y]
    expected = (residual @ model[1].weight).square().sum(1)
    assert torch.allclose(regularizers.input_gradient(model, x, y), expected, rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in regularizers.PENALTIES if name != "none"])
def test_a_penalty_is_one_number_per_example_whatever_its_companions_and_leaves_everything_as_found(name):
    model, (x, y) = linear(), examples()
    penalty, kept = regularizers.PENALTIES[name], x.clone()
    whole = penalty(model, x, y)
    assert whole.shape == (4,)
    assert (whole >= 0).all()
    one_by_one = torch.cat([penalty(model, x[i : i + 1], y[i : i + 1]) for i in range(4)])
    assert torch.allclose(whole, one_by_one, rtol=1e-12)
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", [name for name in regularizers.PENALTIES if name != "none"])
def test_a_penaltys_gradient_in_the_weights_agrees_with_finite_differences(name):
    how = {"activation": "tanh", "width": 5, "depth": 2, "seed": 0}
    model, (x, y) = models.build("mlp", input_shape=SHAPE, classes=3, **how).double(), examples()
    penalty, weights = regularizers.PENALTIES[name], list(model.parameters())
    slopes = torch.autograd.grad(penalty(model, x, y).sum(), weights, allow_unused=True)
    draw = cases.generator(1)
    directions = [torch.randn(w.shape, generator=draw, dtype=w.dtype) for w in weights]
    along = sum((s * d).sum() for s, d in zip(slopes, directions, strict=True) if s is not None)

    def moved(step):
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w += step * d
        value = penalty(model, x, y).sum().detach()
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w -= step * d
        return value

    assert torch.allclose((moved(1e-5) - moved(-1e-5)) / 2e-5, along, rtol=1e-6)
