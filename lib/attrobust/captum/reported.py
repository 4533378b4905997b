"""The way back: an attribution object of captum's as one of our attributions, to be measured."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attrobust import checks
from attrobust.models import guards
from attrobust.shapes import Attribution, Inputs, Labels


def of_captum(explainer: object, **options: object) -> Attribution:
    """An attribution object, of captum's or of the same form, as (model, x, target) -> map.

    It can be compared, measured and attacked like any other. What it explains is fixed: a map of another network than
    that of its `forward_func` is refused, a smooth twin too. A derivative that is missing or wrong is found before an
    attack climbs on it (`attacks.BlindError`), so no map counts as robust because it was detached. One that draws from
    a global generator, or of which the map of an image depends on its company, is refused.

    Args:
        explainer: an object with `forward_func` and `attribute(inputs, target=...)`, as captum.attr.Saliency(model) is.
        options: handed to `attribute`.

    Example:
        >>> from attrobust.captum import Saliency
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
        >>> signed = of_captum(Saliency(linear), abs=False)
        >>> m = signed(linear, torch.rand(1, 1, 2, 2), torch.tensor([2]))
        >>> torch.equal(m.flatten(), linear[1].weight[2])
        True
    """
    name = type(explainer).__name__
    checks.function("explainer.attribute", getattr(explainer, "attribute", None))
    function = _explained_by(explainer)
    for option in {"inputs", "target"} & {*options}:
        raise ValueError(f"options have {option!r}, which the caller of the attribution gives; leave it out")

    def raw(model: Callable[[Tensor], Tensor], x: Inputs, target: Labels) -> Tensor:
        keep = torch.is_grad_enabled()
        at = x.clone() if x.requires_grad else x.detach().clone().requires_grad_()
        with torch.enable_grad():
            found = explainer.attribute(at, target=target, **options)
        checks.floating(f"the map of {name}", found)
        return found if keep and x.requires_grad else found.detach()

    def attribution(model: nn.Module, x: Inputs, target: Labels) -> Tensor:
        if hasattr(model, "stands_for"):
            raise ValueError(
                f"model is a smooth twin, and {name} explains nothing but the network that it was made of; attack an"
                " attribution of attrobust, or search without gradients by Effort(steps=0)"
            )
        if not _is(function, model):
            raise ValueError(
                f"model is {type(model).__name__}, not the network that {name} was made of,"
                f" {type(getattr(function, '__self__', function)).__name__}; its maps are of that one alone"
            )
        guards.classifier(model, x, target)
        guards.each(f"explainer {name}", raw, model, x, target)
        return raw(model, x, target)

    attribution.__name__ = name
    return attribution


def _explained_by(explainer: object) -> Callable:
    """The function that an explainer explains, also of one around another."""
    inner = explainer
    while not callable(getattr(inner, "forward_func", None)) and hasattr(inner, "attribution_method"):
        inner = inner.attribution_method
    function = getattr(inner, "forward_func", None)
    if not callable(function):
        raise ValueError(f"explainer is a {type(explainer).__name__} without forward_func; it must name its network")
    return function


def _is(function: Callable, model: object) -> bool:
    """Whether a function is the network, or its forward pass."""
    if getattr(function, "__name__", "") in ("forward", "__call__", "_wrapped_call_impl"):
        function = getattr(function, "__self__", function)
    return function is model
