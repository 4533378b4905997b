"""Maps with rules of their own: DeepLIFT, layer-wise relevance, guided backpropagation.

Captum's rules are hooks of modules: what is called as a function, or is of a kind that has no rule, keeps its gradient
there, and the number is no longer the method's. Ours watch calls and miss none. So a network on which the two differ is
refused here (`captum.hooked`).
"""

from collections.abc import Callable

from torch import Tensor, nn

from attrobust import attributions, checks
from attrobust.captum.adapter import Adapter, Target, asked, graph, only
from attrobust.captum.hooked import activations_are, all_are
from attrobust.models import guards
from attrobust.shapes import Inputs

#: Activations for which captum has a rule.
SECANT = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus)
GUIDED = (nn.ReLU,)
#: Modules that captum's LRP takes and whose relevance ours gives, too.
SHARING = (
    nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.ReLU, nn.Tanh, nn.Dropout,
)  # fmt: skip

#: Captum's epsilon of LRP.
EPSILON = 1e-9


class _OfModules(Adapter):
    """An adapter whose network is made of modules."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(checks.kind("model", model, nn.Module))
        self.model = model


class DeepLift(_OfModules):
    """Shares of the logit's change from a baseline, by the rescale rule.

    Max-pools are refused: captum hands their changes on by another rule, after which the map need not sum to the
    change of the logit. That of `attributions.deep_lift` does.

    Args:
        model: network whose activations are modules, each run once.
        multiply_by_inputs: True alone is supported.
        eps: below such a change captum takes the derivative; ours decides by the rounding, 1e-10 alone is supported.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> relu = nn.Sequential(nn.Flatten(), nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
        >>> x = torch.full((1, 1, 2, 2), 0.5)
        >>> torch.allclose(DeepLift(relu).attribute(x, target=2).sum(), relu(x)[0, 2], atol=1e-5)
        True
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
        x, labels = asked(inputs, target, additional_forward_args)
        only("return_convergence_delta", return_convergence_delta, False)
        only("custom_attribution_func", custom_attribution_func, None)
        guards.classifier(self.model, x, labels)
        guards.once(activations_are, self.model, x, SECANT, True, given=("DeepLift", "deep_lift"))
        with graph(x):
            return attributions.deep_lift(self.model, x, labels, baseline=0.0 if baselines is None else baselines)


class GuidedBackprop(_OfModules):
    """Gradient whose negative signals end at every ReLU that they meet.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> relu = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> relu[1].weight.data, relu[3].weight.data = torch.eye(2), torch.tensor([[1.0, -1.0]])
        >>> GuidedBackprop(relu).attribute(torch.ones(1, 1, 1, 2), target=0).flatten().tolist()
        [1.0, 0.0]
    """

    def attribute(self, inputs: Inputs, target: Target = None, additional_forward_args: object = None) -> Inputs:
        """Map of each image, of a network whose activations are modules nn.ReLU."""
        x, labels = asked(inputs, target, additional_forward_args)
        guards.classifier(self.model, x, labels)
        guards.once(activations_are, self.model, x, GUIDED, False, given=("GuidedBackprop", "guided_backprop"))
        with graph(x):
            return attributions.guided_backprop(self.model, x, labels)


class LRP(_OfModules):
    """Layer-wise relevance under the epsilon rule that captum gives to every layer, epsilon = 1e-9.

    Of a network of `SHARING` modules alone, between which features are laid out anew at most; values are captum's but
    for what 1e-9 takes of features that all but vanish between two linear layers.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> relu = nn.Sequential(nn.Flatten(), nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
        >>> x = torch.full((1, 1, 2, 2), 0.5)
        >>> torch.allclose(LRP(relu).attribute(x, target=2).sum(), relu(x)[0, 2], atol=1e-5)
        True
    """

    def attribute(
        self, inputs: Inputs, target: Target = None, additional_forward_args: object = None,
        return_convergence_delta: bool = False, verbose: bool = False,
    ) -> Inputs:  # fmt: skip
        """Map of each image; no module may have a `rule`, and the other options keep captum's defaults."""
        x, labels = asked(inputs, target, additional_forward_args)
        only("return_convergence_delta", return_convergence_delta, False)
        only("verbose", verbose, False)
        for name, module in self.model.named_modules():
            only(f"the rule of {name!r}", getattr(module, "rule", None), None)
        guards.classifier(self.model, x, labels)
        guards.once(all_are, self.model, x, SHARING, given=("LRP", "lrp"))
        with graph(x):
            return attributions.lrp(self.model, x, labels, epsilon=EPSILON)
