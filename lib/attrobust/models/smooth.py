"""Kinks and the smooth twin: why a ReLU network cannot be attacked through its own gradient.

Between its kinks a ReLU network is linear, so its saliency map is locally constant and an attack that climbs on it
moves nothing and would report "robust". It climbs on a twin with the same weights instead, in which every ReLU is a
softplus, and is judged on the original network:

    softplus_beta(h) = log(1 + exp(beta h)) / beta  ->  relu(h)  as  beta -> infinity

Both functions watch what the network *does*, not which modules it lists.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from attrobust import checks
from attrobust.shapes import Images

#: By name, in place (with an underscore at the end) or not.
_KINKED = {
    "relu", "leaky_relu", "threshold", "hardtanh", "clamp", "clamp_min", "clamp_max", "rrelu_with_noise", "prelu",
    "_prelu_kernel", "maximum", "minimum", "abs", "hardsigmoid", "hardswish", "hardshrink", "softshrink",
}  # fmt: skip

_RELUS_IN_PLACE = {F.relu_, torch.relu_, torch.Tensor.relu_}
_SOFTENED = {F.relu, torch.relu, torch.Tensor.relu, F.leaky_relu} | _RELUS_IN_PLACE
_CLAMPS = {torch.clamp, torch.Tensor.clamp, torch.clamp_min, torch.Tensor.clamp_min}


def kinks(model: nn.Module, x: Images) -> list[str]:
    """Names of the piecewise-linear operations the network runs on `x`, in order, without repeats."""
    with torch.no_grad(), _Watch() as watch:
        model(x[:1])
    return list(dict.fromkeys(watch.seen))


def smooth_twin(model: nn.Module, x: Images, *, beta: float) -> "SmoothTwin":
    """Same network, same weights (shared, not copied, so it follows their changes), softplus in place of every ReLU.

    The network may call ReLU and leaky ReLU as module, function or in place; a ValueError refuses one that runs another
    kink on images `x`. The curvature of the twin grows with `beta`, the sharpness of the softplus. Our attacks use 5,
    10 and 50 and count the worst (Dombrowski et al. 2019, "Explanations can be manipulated and geometry is to blame",
    section 4).

    Example:
        >>> net, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU()), torch.rand(1, 1, 2, 2)
        >>> kinks(smooth_twin(net, x, beta=10.0), x)
        []
    """
    twin = SmoothTwin(model, checks.positive("beta", beta))
    left = kinks(twin, x)
    if left:
        raise ValueError(
            f"model runs {', '.join(left)}, which a smooth twin cannot replace; use ReLU, leaky ReLU or a smooth"
            " activation"
        )
    return twin


class SmoothTwin(nn.Module):
    """A network run with softplus in place of ReLU; shares the weights of `original`."""

    def __init__(self, original: nn.Module, beta: float) -> None:
        super().__init__()
        self.original, self.beta, self.training = original, beta, original.training

    def forward(self, x: Images) -> Tensor:
        """Output of the original network with every ReLU softened."""
        with _Soften(self.beta):
            return self.original(x)

    @property
    def stands_for(self) -> nn.Module:
        """The network whose soundness (see `guards`) is this one's too."""
        return self.original

    @property
    def attend(self) -> Callable:
        """`attend` of the original network with every ReLU softened; missing where the original has none."""
        original = self.original.attend

        def softened(x: Images) -> tuple[Tensor, list[Tensor]]:
            with _Soften(self.beta):
                return original(x)

        return softened


class _Watch(TorchDispatchMode):
    """Notes the kinks that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        name = func.overloadpacket.__name__
        if name.rstrip("_") in _KINKED:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class _Soften(TorchFunctionMode):
    """Runs a softplus where a ReLU is called."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs = kwargs or {}
        if func in _SOFTENED:
            leaky = func is F.leaky_relu
            names = ("input", "negative_slope", "inplace") if leaky else ("input", "inplace")
            call = {"negative_slope": 0.01 if leaky else 0.0, "inplace": func in _RELUS_IN_PLACE}
            call |= dict(zip(names, args, strict=False)) | kwargs
            x, slope = call["input"], call["negative_slope"]
            return x.copy_(self._soft(x.clone(), slope)) if call["inplace"] else self._soft(x, slope)
        if func in _CLAMPS:
            bounds = dict(zip(("min", "max"), args[1:], strict=False)) | kwargs
            low, high = bounds.get("min"), bounds.get("max")
            if isinstance(low, int | float) and low == 0 and high is None:
                return self._soft(args[0], 0.0)
        return func(*args, **kwargs)

    def _soft(self, x: Tensor, slope: float) -> Tensor:
        return slope * x + (1 - slope) * F.softplus(x, self.beta) if slope else F.softplus(x, self.beta)
