"""What has no curvature, or a wrong one, refused in one sentence before any work: ValueError each."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attrobust import checks
from attrobust.models import guards, watched
from attrobust.models.derivatives import twice_differentiable as twice_differentiable
from attrobust.models.watched import said as said


def mode() -> None:
    """Refuse inference mode, in which no graph can be built."""
    if torch.is_inference_mode_enabled():
        raise ValueError("torch.inference_mode is on, which allows no derivative; use torch.no_grad, which is fine")


def usable(model: nn.Module, x: Tensor, y: Tensor | None = None, *, chunk: int) -> None:
    """Refuse a batch or a model without curvature: empty, not finite, elsewhere, low precision, random or coupled.

    The model runs on `chunk` images at a time.
    """
    mode()
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}; curvature needs a torch module, whose weights it can see")
    for name, t in {"x": x, "y": x if y is None else y}.items():
        if not isinstance(t, Tensor):
            raise ValueError(f"{name} is a {type(t).__name__}; it must be a torch tensor")
        if not t.is_meta:
            checks.dense(name, t)
        if not t.ndim:
            raise ValueError(f"{name} has shape (); it must be a batch")
    if x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be a batch and not empty")
    if y is not None and len(y) != len(x):
        raise ValueError(f"y has {len(y)} entries for {len(x)} examples; give one label per example")
    parameters = dict(model.named_parameters())
    for name, t in {"x": x, "y": x if y is None else y, **parameters, **dict(model.named_buffers())}.items():
        if t.is_inference():
            raise ValueError(f"{name} was made under torch.inference_mode and has no derivative; clone it outside")
        if t.is_meta or (t.device != x.device and (name in parameters or name == "y")):
            raise ValueError(f"{name} is on {t.device} and x on {x.device}; both must hold numbers on one device")
        if t.is_floating_point() and t.dtype.itemsize < 4:
            raise ValueError(f"{name} has dtype {t.dtype}; curvature needs float32 or float64, as of model.float()")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise ValueError(f"x holds {int((~torch.isfinite(x)).sum())} values that are NaN or infinite")
    guards.alone(model, x, most=chunk)
    with watched.untouched(model), torch.no_grad(), _Precision() as precision:
        model(x[:1].clone())
    if precision.low:
        raise ValueError(f"model computes in {precision.low}; curvature needs float32 or better all the way")


def values(name: str, numbers: Tensor, x: Tensor) -> Tensor:
    """Return `numbers` if they are finite, one per example."""
    if not isinstance(numbers, Tensor) or not numbers.is_floating_point():
        what = numbers.dtype if isinstance(numbers, Tensor) else type(numbers).__name__
        raise ValueError(f"{name} gives a {what}; it must give a tensor of floating-point numbers, one per example")
    if numbers.shape != (len(x),):
        hint = "a loss such as F.cross_entropy does so with reduction='none'"
        raise ValueError(f"{name} has shape {tuple(numbers.shape)}; it must be one number per example; {hint}")
    if not bool(torch.isfinite(numbers).all()):
        worst = numbers.detach()[~torch.isfinite(numbers)][0].item()
        raise ValueError(f"{name} is {worst} on an example; curvature needs a finite {name}")
    return numbers


def losses(loss: Callable, outputs: object, y: Tensor, x: Tensor) -> Tensor:
    """Loss of each example, of whatever the model returned."""
    try:
        found = loss(outputs, y)
    except Exception as error:  # whatever a loss of the reader's own raises
        raise ValueError(f"loss does not run on what the model returns and y, {y.dtype}: {said(error)}") from error
    return values("loss", found, x)


class _Precision(TorchDispatchMode):
    """Notes a floating-point type below float32 that some operation returns."""

    low: torch.dtype | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for t in tree_leaves(found):
            if isinstance(t, Tensor) and t.is_floating_point() and t.dtype.itemsize < 4:
                self.low = t.dtype
        return found
