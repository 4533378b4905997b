"""What all adapters share: the network, the classes that are meant, the options that keep their default."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from attrobust import checks
from attrobust.models import guards
from attrobust.shapes import Inputs, Labels

#: One class for all images, or one for each.
Target = int | Tensor | list[int] | None


class Adapter:
    """An attribution of one network, under captum's name.

    Args:
        forward_func: images -> logits, as a rule a network in eval mode.
    """

    network: nn.Module

    def __init__(self, forward_func: Callable[[Tensor], Tensor]) -> None:
        checks.function("forward_func", forward_func)
        self.forward_func = forward_func
        self.network = forward_func if isinstance(forward_func, nn.Module) else _Network(forward_func).eval()


class _Network(nn.Module):
    """A function in the place of a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def only(name: str, value: object, accepted: object) -> None:
    """Refuse an option that does not keep its default.

    Example:
        >>> only("device_ids", None, None)
    """
    if value is not accepted and (isinstance(value, Tensor) or value != accepted):
        raise ValueError(f"{name} is {checks.short(value)}; it must be {accepted!r}, no other value is supported")


def images(inputs: Tensor) -> Inputs:
    """The inputs, if they are one batch that can be explained."""
    if isinstance(inputs, tuple | list):
        raise ValueError(f"inputs is a {type(inputs).__name__}; it must be one tensor, a batch of images")
    return guards.batch("inputs", inputs)


def classes(target: Target, x: Inputs) -> Labels:
    """The explained class of each image, of one int for all or of one for each.

    Example:
        >>> classes(3, torch.zeros(2, 4)).tolist(), classes([0, 1], torch.zeros(2, 4)).tolist()
        ([3, 3], [0, 1])
    """
    found = target
    if isinstance(target, list) and all(_whole(label) for label in target):
        found = torch.tensor(target, dtype=torch.int64)
    if isinstance(found, Tensor) and not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
        shared = found.numel() == 1 and found.ndim <= 1 and not isinstance(target, list)
        if shared or found.shape == (len(x),):
            return found.to(x.device, torch.int64).expand(len(x)).clone()
    if _whole(found):
        return torch.full((len(x),), found, device=x.device)
    said = f"of shape {tuple(target.shape)} and dtype {target.dtype}" if isinstance(target, Tensor) else ""
    raise ValueError(
        f"target is {said or checks.short(target)}; it must be an int, or a tensor or list of {len(x)} ints, one for"
        " each image"
    )


def asked(inputs: Tensor, target: Target, additional_forward_args: object) -> tuple[Inputs, Labels]:
    """What every adapter is asked: images, and the explained class of each; there are no further arguments."""
    x, labels = images(inputs), classes(target, inputs)
    only("additional_forward_args", additional_forward_args, None)
    return x, labels


def graph(x: Inputs) -> AbstractContextManager[object]:
    """A mode in which a map has a graph exactly if its images are part of one."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
