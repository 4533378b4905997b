"""Other weights in a network, for a while: in another precision, or those that something is differentiated in."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def exchanged(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, a network has these parameters and buffers, named as the network names its own; its own come back.

    A module or tensor of several names is exchanged under all of them, once. (torch's `functional_call` exchanges a
    module of two names twice, and leaves it with what it found the second time.)

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> with exchanged(layer, {"weight": torch.full((1, 1), 3.0)}):
        ...     layer(torch.ones(1, 1)).item()
        3.0
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    other = {id(t): tensors[name] for name, t in named if name in tensors}
    slots = [slot for module in model.modules() for slot in (module._parameters, module._buffers)]
    held = [(slot, name, t) for slot in slots for name, t in slot.items() if id(t) in other]
    try:
        for slot, name, t in held:
            slot[name] = other[id(t)]
        yield
    finally:
        for slot, name, t in held:
            slot[name] = t


def called(model: nn.Module, tensors: Mapping[str, Tensor], *inputs: Tensor) -> object:
    """What a network with these parameters and buffers makes of the inputs; see `exchanged`."""
    with exchanged(model, tensors):
        return model(*inputs)
