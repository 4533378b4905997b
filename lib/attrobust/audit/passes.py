"""What is sent through a network, counted as it passes: images forward, gradients back to where they came in."""

from collections.abc import Iterator
from contextlib import contextmanager
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
    attention is read without its head is counted, too; a network without such a layer is met at its own call.

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

    def enter(module: nn.Module, inputs: tuple) -> tuple | None:
        if module is not door or not inputs or not isinstance(inputs[0], Tensor):
            return None
        passes.forward += len(inputs[0])
        return _Mark.apply(inputs[0], passes), *inputs[1:]

    hook = register_module_forward_pre_hook(enter)
    try:
        yield passes
    finally:
        hook.remove()


class _Mark(torch.autograd.Function):
    """The same numbers; what comes back to them is counted, gradients of gradients too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, passes: Counted) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
        ctx.passes = inputs[1]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.passes.backward += len(gradient)
        return gradient, None


def _first(model: nn.Module, x: Images) -> nn.Module:
    """The first module without parts that is called once for all images; the network itself if there is none."""
    calls: list[nn.Module] = []

    def note(module: nn.Module, inputs: tuple) -> None:
        if not [*module.children()] and inputs and isinstance(inputs[0], Tensor) and len(inputs[0]) == len(x):
            calls.append(module)

    hook = register_module_forward_pre_hook(note)
    try:
        with torch.no_grad():
            model(x)
    finally:
        hook.remove()
    return next((module for module in calls if calls.count(module) == 1), model)
