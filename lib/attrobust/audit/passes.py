"""What is sent through a network, counted as it passes: images forward, gradients back to where they came in."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from attrobust.shapes import Images


@dataclass
class Counted:
    """Images that went forward through a network, and gradients that came back, one for each image."""

    forward: int = 0
    backward: int = 0


@contextmanager
def counted(model: nn.Module, x: Images) -> Iterator[Counted]:
    """Count, within, what passes a network, its smooth twins, and its `attend`; x are two images or more.

    They are met where they enter the first layer of which one call sees each image once, so that a network whose
    attention is read without its head is counted, too; a network without such a layer is met at its own call. What
    `torch.func` batches by itself (vmap) counts as one image. No number of the network is touched.

    Example:
        >>> from attrobust import attributions, models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x = torch.rand(2, 1, 4, 4)
        >>> with counted(model, x) as passes:
        ...     _ = model(x)
        >>> passes
        Counted(forward=2, backward=0)
    """
    door, passes = _first(model, x[:2]), Counted()

    def back(gradient: Tensor) -> None:
        passes.backward += len(gradient)

    def enter(module: nn.Module, inputs: tuple) -> None:
        if module is not door or not inputs or not isinstance(inputs[0], Tensor):
            return
        passes.forward += len(inputs[0])
        if inputs[0].requires_grad and getattr(inputs[0], "counted", None) is not passes:
            inputs[0].counted = passes  # a hook fires once for each gradient, however often the tensor enters
            with suppress(RuntimeError):  # within a transform of torch.func
                inputs[0].register_hook(back)

    with register_module_forward_pre_hook(enter):
        yield passes


def _first(model: nn.Module, x: Images) -> nn.Module:
    """The first module without parts that is called once for all images; the network itself if there is none."""
    calls: list[nn.Module] = []

    def note(module: nn.Module, inputs: tuple) -> None:
        if not [*module.children()] and inputs and isinstance(inputs[0], Tensor) and len(inputs[0]) == len(x):
            calls.append(module)

    with register_module_forward_pre_hook(note), torch.no_grad():
        model(x)
    return next((module for module in calls if calls.count(module) == 1), model)
