"""What captum's hooks of modules would see of a network, and what they would miss."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attrobust.attributions import rerun
from attrobust.attributions.rerun import POOLS
from attrobust.shapes import Inputs

#: Functions that lay features out anew and leave every number as it is.
LAID_OUT = {
    "flatten", "unflatten", "view", "view_as", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous",
    "clone", "__get__",
}  # fmt: skip


def activations_are(model: nn.Module, x: Inputs, kinds: tuple[type, ...], once: bool, name: str, own: str) -> None:
    """Refuse a network with an activation that is no module of these kinds, or with one that runs twice if `once`.

    With `once` a max-pool is refused, too. `name` is captum's of the method, `own` ours.
    """
    ran: list[nn.Module] = []
    with _entered(model, kinds, ran.append, lambda module: None), torch.enable_grad():
        _, calls = rerun.record(model, x[:1].detach().requires_grad_(), method=own)
    called = [call.name for call in calls if once or call.name not in POOLS]
    if len(called) != len(ran):
        raise ValueError(_sentence(set(called), kinds, name, own))
    if once and len({*ran}) < len(ran):
        raise ValueError(
            f"model runs a {type(ran[0]).__name__} more than once, where captum's {name} errs; call attributions.{own}"
        )


def all_are(model: nn.Module, x: Inputs, kinds: tuple[type, ...], name: str, own: str) -> None:
    """Refuse a network that does anything to features outside of modules of these kinds."""
    outside = _Outside()

    def enter(module: nn.Module) -> None:
        outside.depth += 1

    def leave(module: nn.Module) -> None:
        outside.depth -= 1

    at = x[:1].detach().requires_grad_()
    with _entered(model, kinds, enter, leave), torch.enable_grad(), outside:
        model(at)
    if outside.names:
        raise ValueError(_sentence(outside.names, kinds, name, own))


class _Outside(TorchFunctionMode):
    """Notes what is computed of the images while no module is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.names = 0, set()

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        found, name = func(*args, **(kwargs or {})), getattr(func, "__name__", "")
        live = isinstance(found, Tensor) and found.requires_grad
        if live and not self.depth and name not in LAID_OUT:
            self.names.add(name.strip("_"))
        return found


@contextmanager
def _entered(
    model: nn.Module, kinds: tuple[type, ...], enter: Callable[[nn.Module], None], leave: Callable[[nn.Module], None]
) -> Iterator[None]:
    """Tell when a module of these kinds, and of no kind made of them, begins to run and when it ends."""
    with ExitStack() as hooks:
        for module in (module for module in model.modules() if type(module) in kinds):
            hooks.enter_context(module.register_forward_pre_hook(lambda module, inputs: enter(module)))
            hooks.enter_context(module.register_forward_hook(lambda module, inputs, output: leave(module)))
        yield


def _sentence(called: set[str], kinds: tuple[type, ...], name: str, own: str) -> str:
    known = ", ".join(kind.__name__ for kind in kinds)
    return (
        f"model runs {', '.join(sorted(called))}, not each as a module {known}, and captum's {name} has rules for these"
        f" alone; call attributions.{own}, which has a rule for every call"
    )
