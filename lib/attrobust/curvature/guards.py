"""Inputs that have no curvature, or a wrong one, refused in one sentence before any work: ValueError each."""

import torch
from torch import Tensor, nn

from attrobust.models.derivatives import twice_differentiable as twice_differentiable

COUPLED = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def model(network: nn.Module) -> None:
    """Refuse layers, also inside attention and recurrent ones, that couple the images of a batch or draw numbers."""
    for name, module in network.named_modules():
        kind = type(module).__name__
        random = isinstance(module, COUPLED) or float(getattr(module, "dropout", 0) or 0) > 0
        if module.training and random:
            raise ValueError(f"model is in train mode and holds {kind} ({name}); call model.eval()")
        if isinstance(module, COUPLED[0]) and module.running_mean is None:
            raise ValueError(f"model holds {kind} ({name}) without running statistics, which couples the images")


def batch(x: Tensor, y: Tensor | None = None) -> None:
    """Refuse an empty batch, values that are not finite, and labels of another length."""
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be a batch and not empty")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise ValueError(f"x holds {int((~torch.isfinite(x)).sum())} values that are NaN or infinite")
    if y is not None and len(y) != len(x):
        raise ValueError(f"y has {len(y)} entries for {len(x)} examples; give one label per example")


def floating(x: Tensor) -> None:
    """Refuse inputs that cannot be differentiated."""
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}; it must be floating-point, such as pixels in [0, 1]")


def values(name: str, numbers: Tensor, x: Tensor) -> Tensor:
    """Return `numbers` if they are finite, one per example."""
    if numbers.shape != (len(x),):
        hint = "a loss such as F.cross_entropy does so with reduction='none'"
        raise ValueError(f"{name} has shape {tuple(numbers.shape)}; it must be one number per example; {hint}")
    if not bool(torch.isfinite(numbers).all()):
        worst = numbers.detach()[~torch.isfinite(numbers)][0].item()
        raise ValueError(f"{name} is {worst} on an example; curvature needs a finite {name}")
    return numbers
