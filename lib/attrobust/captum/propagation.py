"""Maps with rules of their own: DeepLIFT, layer-wise relevance, guided backpropagation.

Captum's rules are hooks of modules: an activation that is called as a function, or is of a kind that has no rule, keeps
its gradient there, and the number is no longer the method's. Ours watch calls and miss none. So a network on which the
two differ is refused here.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attrobust import attributions, checks
from attrobust.attributions import rerun
from attrobust.attributions.rerun import POOLS
from attrobust.captum.adapter import Adapter, Target, classes, graph, images, only
from attrobust.models import guards
from attrobust.shapes import Inputs

#: Activations for which captum has a rule.
SECANT = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus)
PASSED_ON = (nn.ReLU, nn.Tanh)
GUIDED = (nn.ReLU,)

#: Captum's epsilon of LRP.
EPSILON = 1e-9


class _OfModules(Adapter):
    """An adapter whose network is made of modules."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(checks.kind("model", model, nn.Module))
        self.model = model


class DeepLift(_OfModules):
    """Shares of the logit's change from a baseline, by the rescale rule.

    Max-pools are refused: behind an activation captum's shares do not sum to the change. Ours do
    (`attributions.deep_lift`).

    Args:
        model: network whose activations are modules, each run once.
        multiply_by_inputs: True alone is supported.
        eps: below such a change captum takes the derivative; ours decides by the rounding, 1e-10 alone is supported.
    """

    def __init__(self, model: nn.Module, multiply_by_inputs: bool = True, eps: float = 1e-10) -> None:
        super().__init__(model)
        only("multiply_by_inputs", multiply_by_inputs, True)
        only("eps", eps, 1e-10)

    def attribute(
        self, inputs: Inputs, baselines: float | Tensor | None = None, target: Target = None,
        additional_forward_args: object = None, return_convergence_delta: bool = False,
        custom_attribution_func: Callable | None = None,
    ) -> Inputs:  # fmt: skip
        """Map of each image.

        Args:
            inputs, target: images and explained classes.
            baselines: a number, or a tensor that spreads over the images; 0 if None.
            additional_forward_args, return_convergence_delta, custom_attribution_func: captum's defaults alone are
                supported.
        """
        x, labels = images(inputs), classes(target, inputs)
        only("additional_forward_args", additional_forward_args, None)
        only("return_convergence_delta", return_convergence_delta, False)
        only("custom_attribution_func", custom_attribution_func, None)
        guards.once(_as_captum_sees, self.model, x, SECANT, False, True, given=("DeepLift",))
        with graph(x):
            start = 0.0 if baselines is None else baselines
            return attributions.deep_lift(self.model, x, labels, baseline=start)


class GuidedBackprop(_OfModules):
    """Gradient whose negative signals end at every ReLU that they meet."""

    def attribute(self, inputs: Inputs, target: Target = None, additional_forward_args: object = None) -> Inputs:
        """Map of each image, of a network whose activations are modules nn.ReLU."""
        x, labels = images(inputs), classes(target, inputs)
        only("additional_forward_args", additional_forward_args, None)
        guards.once(_as_captum_sees, self.model, x, GUIDED, True, False, given=("GuidedBackprop",))
        with graph(x):
            return attributions.guided_backprop(self.model, x, labels)


class LRP(_OfModules):
    """Layer-wise relevance under the epsilon rule that captum gives to every layer, epsilon = 1e-9."""

    def attribute(
        self, inputs: Inputs, target: Target = None, additional_forward_args: object = None,
        return_convergence_delta: bool = False, verbose: bool = False,
    ) -> Inputs:  # fmt: skip
        """Map of each image, of a network whose activations are modules nn.ReLU or nn.Tanh, without rules of its own.

        `additional_forward_args`, `return_convergence_delta` and `verbose` keep captum's defaults.
        """
        x, labels = images(inputs), classes(target, inputs)
        only("additional_forward_args", additional_forward_args, None)
        only("return_convergence_delta", return_convergence_delta, False)
        only("verbose", verbose, False)
        for name, module in self.model.named_modules():
            only(f"the rule of {name!r}", getattr(module, "rule", None), None)
        guards.once(_as_captum_sees, self.model, x, PASSED_ON, True, False, given=("LRP",))
        with graph(x):
            return attributions.lrp(self.model, x, labels, epsilon=EPSILON)


def _as_captum_sees(model: nn.Module, x: Inputs, kinds: tuple[type, ...], pools: bool, once: bool, name: str) -> None:
    """Refuse a network with a nonlinear call that is no module of these kinds, or is one that runs twice."""
    guards.classifier(model, x)
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: ran.append(module))
        for module in model.modules()
        if type(module) in kinds
    ]
    try:
        with torch.enable_grad():
            _, calls = rerun.record(model, x[:1].detach().requires_grad_(), method=name)
    finally:
        for hook in hooks:
            hook.remove()
    ours = f"call attributions.{OURS[name]}, which has a rule for every call"
    called = [call.name for call in calls if not (pools and call.name in POOLS)]
    if len(called) != len(ran):
        known = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(
            f"model runs {', '.join(sorted(set(called)))}, not each as a module {known}, and captum's {name} has rules"
            f" for these alone; {ours}"
        )
    if once and len({*ran}) < len(ran):
        raise ValueError(f"model runs a {type(ran[0]).__name__} more than once, which captum's {name} errs on; {ours}")


#: Names of our attributions.
OURS = {"DeepLift": "deep_lift", "GuidedBackprop": "guided_backprop", "LRP": "lrp"}
