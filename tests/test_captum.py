"""Adapters with captum's signatures: captum's values, a derivative that is right, and no silent other answer."""

import captum.attr
import cases
import pytest
import torch
from attrobust import attacks, attributions, faithfulness, robustness
from attrobust import captum as ours
from attrobust.balls import Ball
from torch import nn

X, Y = cases.images(3), torch.tensor([2, 0, 3])
BALL = Ball("linf", 0.05)
NETWORKS = {"smooth": cases.conv, "relu": lambda: cases.conv(nn.ReLU())}

#: Each adapter as captum's user writes it: how it is made, by which module, and what it is asked.
CALLS = {
    "Saliency": (lambda m, of: of.Saliency(m), {}),
    "Saliency, signed": (lambda m, of: of.Saliency(m), {"abs": False}),
    "InputXGradient": (lambda m, of: of.InputXGradient(m), {}),
    "IntegratedGradients": (lambda m, of: of.IntegratedGradients(m), {"n_steps": 9}),
    "IntegratedGradients, from grey": (lambda m, of: of.IntegratedGradients(m), {"baselines": 0.3, "n_steps": 5}),
    "IntegratedGradients, in parts": (
        lambda m, of: of.IntegratedGradients(m), {"n_steps": 8, "internal_batch_size": 6},
    ),
    **{
        f"IntegratedGradients, {rule}": (lambda m, of: of.IntegratedGradients(m), {"n_steps": 8, "method": rule})
        for rule in ("riemann_left", "riemann_middle", "riemann_right")
    },
    "Occlusion": (lambda m, of: of.Occlusion(m), {"sliding_window_shapes": (2, 1, 1), "strides": (2, 1, 1)}),
    "Occlusion, whole": (
        lambda m, of: of.Occlusion(m),
        {"sliding_window_shapes": (2, 3, 3), "strides": (2, 3, 3), "baselines": 0.2},
    ),
    "LayerGradCam": (lambda m, of: of.LayerGradCam(m, m[0]), {}),
    "LayerGradCam, positive": (lambda m, of: of.LayerGradCam(m, m[1]), {"relu_attributions": True}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # captum announces that it sets gradients
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", CALLS)
def test_an_adapter_has_captums_values(name, network):
    make, options = CALLS[name]
    model = NETWORKS[network]()
    theirs = make(model, captum.attr).attribute(X.clone(), target=Y, **options).detach()
    own = make(model, ours).attribute(X.clone(), target=Y, **options)
    assert not own.requires_grad
    single = any(word in name for word in ("IntegratedGradients", "Occlusion"))  # captum's are of single precision
    torch.testing.assert_close(own, theirs.double(), rtol=1e-5 if single else 1e-9, atol=1e-6 if single else 1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["DeepLift", "GuidedBackprop"])
def test_rules_of_propagation_have_captums_values_on_relus(name):
    model = cases.conv(nn.ReLU())
    theirs = getattr(captum.attr, name)(model).attribute(X.clone(), target=Y).detach()
    own = getattr(ours, name)(model).attribute(X.clone(), target=Y)
    torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in CALLS if name != "LayerGradCam, positive"])
def test_the_derivative_of_an_adapters_map_is_that_of_differences(name):
    make, options = CALLS[name]
    explainer = make(cases.conv(), ours)
    x = X.clone().requires_grad_()
    weights = torch.randn(explainer.attribute(X, target=Y, **options).shape, generator=cases.generator()).double()

    def number(at):
        return (explainer.attribute(at, target=Y, **options) * weights).sum()

    (slope,) = torch.autograd.grad(number(x), x)
    way = torch.randn(X.shape, generator=cases.generator(1), dtype=X.dtype)
    step = 1e-6
    with torch.no_grad():
        difference = (number(X + step * way) - number(X - step * way)) / (2 * step)
    assert float((slope * way).sum()) == pytest.approx(float(difference), rel=1e-5)


@pytest.mark.parametrize("target", [2, [2, 2, 2], torch.tensor(2), torch.tensor([2]), torch.tensor([2, 2, 2])])
def test_a_class_is_named_as_captum_lets_it(target):
    model = cases.conv()
    own = ours.Saliency(model).attribute(X, target=target, abs=False)
    assert torch.equal(own, attributions.saliency(model, X, torch.tensor([2, 2, 2])).detach())


@pytest.mark.parametrize("target", [None, [1, 2], 1.0, torch.tensor([0.0]), [(0, 1)] * 3, True])
def test_a_class_that_is_none_is_refused(target, unchecked):
    with pytest.raises(ValueError, match=r"target is .*; it must be a class index"):
        ours.Saliency(cases.conv()).attribute(X, target=target)


@pytest.mark.parametrize(
    ("explainer", "options", "said"),
    [
        (ours.Saliency, {"additional_forward_args": 1}, "forward_func must take the images alone"),
        (ours.IntegratedGradients, {"method": "riemann_trapezoid"}, "method is 'riemann_trapezoid'"),
        (ours.IntegratedGradients, {"n_steps": 0}, "n_steps is 0"),
        (ours.DeepLift, {"baselines": X}, "baselines holds several values"),
        (ours.Occlusion, {"sliding_window_shapes": (1, 1, 1), "strides": 1}, "the window must be a square"),
        (ours.Occlusion, {"sliding_window_shapes": (2, 2, 2), "strides": (2, 1, 1)}, "the window must be a square"),
    ],
)
def test_what_an_adapter_does_not_know_is_refused(explainer, options, said):
    with pytest.raises(ValueError, match=said):
        explainer(cases.conv()).attribute(X, target=Y, **options)


def test_several_inputs_are_refused(unchecked):
    with pytest.raises(ValueError, match="inputs is a tuple; it must be one tensor"):
        ours.Saliency(cases.conv()).attribute((X, X), target=Y)


@pytest.mark.filterwarnings("ignore")
def test_an_explainer_of_captum_is_reported_on():
    model = cases.conv()
    reported = ours.of_captum(captum.attr.Saliency(model), abs=False)
    assert torch.allclose(reported(model, X, Y), attributions.saliency(model, X, Y))
    found = robustness.compare(model, reported, X, (X + 0.02).clamp(0, 1), k=4)
    assert found["spearman"].notna().all()
    how = {"generator": cases.generator(), "steps": 4}
    assert len(faithfulness.insertion_deletion(model, X, attributions={"theirs": reported}, **how)) >= len(X)


@pytest.mark.filterwarnings("ignore")
def test_an_explainer_without_a_derivative_is_never_called_robust():
    model = cases.conv()
    reported = ours.of_captum(captum.attr.Saliency(model), abs=False)
    with pytest.raises(ValueError):
        attacks.auto(reported, model, X, BALL, k=4, generator=cases.generator(), effort=attacks.Effort(steps=2))


def test_an_adapter_is_attacked_as_our_own_map():
    model, effort = cases.conv(), attacks.Effort(steps=5, restarts=1)
    how = {"k": 4, "effort": effort}
    adapted = ours.of_captum(ours.Saliency(model), abs=False)
    found = attacks.auto(adapted, model, X, BALL, generator=cases.generator(), **how)
    own = attacks.auto(attributions.saliency, model, X, BALL, generator=cases.generator(), **how)
    assert found.table["spearman"].to_numpy() == pytest.approx(own.table["spearman"].to_numpy(), nan_ok=True)


def test_an_explainer_of_another_network_is_refused():
    reported = ours.of_captum(ours.Saliency(cases.conv()))
    with pytest.raises(ValueError, match="of another network, does not explain"):
        reported(cases.conv(seed=1), X, Y)
    with pytest.raises(ValueError, match="explainer is a Sequential; it must have a method attribute"):
        ours.of_captum(cases.conv())
