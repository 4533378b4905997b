"""A network that is a chain of layers, read off one forward pass.

Where every layer feeds the next and nothing else, the blocks of the Hessian on its diagonal have factors that need
no product with it (`factored`). Whether a network is such a chain is seen, not declared: each layer must receive
the very tensor that the one before returned, and all parameters must lie in dense or convolutional layers.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust.models import Standardize

BENDS = (
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid, nn.LogSigmoid),
)
PLAIN = (nn.Flatten, nn.Identity, nn.Dropout, nn.AvgPool2d, nn.AdaptiveAvgPool2d, Standardize)
#: Kinds of layers: a matrix that meets every example once ("dense") or patch by patch ("conv"), a function of one
#: number that is applied to every entry ("bend"), linear without parameters, or that and a constant ("plain").
KINDS = {nn.Linear: "dense", nn.Conv2d: "conv"} | dict.fromkeys(BENDS, "bend") | dict.fromkeys(PLAIN, "plain")
#: Numbers that a chunk of examples holds at once, about (our choice: they stay in reach of the cache).
HELD = 2**21


@dataclass(frozen=True, eq=False)
class Link:
    """One layer of a chain and what passed through it, one row an example."""

    layer: nn.Module
    entering: Tensor
    leaving: Tensor

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return KINDS[type(self.layer)]

    def holds(self, parameters: set[nn.Parameter]) -> bool:
        """Whether one of these is the layer's."""
        return any(p in parameters for p in self.layer.parameters())

    def push(self, t: Tensor) -> Tensor:
        """What the linear part of a layer without bend makes of `t`."""
        if self.kind == "dense":
            return F.linear(t, self.layer.weight)
        if self.kind == "conv":
            conv = self.layer
            return F.conv2d(t, conv.weight, None, conv.stride, conv.padding, conv.dilation)
        return self.layer(t) - self.layer(torch.zeros_like(t)) if type(self.layer) is Standardize else self.layer(t)


def layers_of(model: nn.Module, x: Tensor) -> list[nn.Module] | None:
    """The layers of a chain in the order in which they run on the batch `x`; None where the network is none."""
    if any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules()):
        return None  # a layer does something else than its kind
    seen: list[tuple[nn.Module, Tensor, Tensor, int, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        whole = len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)
        came = inputs[0] if whole else None
        seen.append((module, came, output, came._version if whole else -1, output._version if whole else -1))

    with ExitStack() as hooks, torch.no_grad():
        for module in (m for m in model.modules() if not list(m.children())):
            hooks.enter_context(module.register_forward_hook(note))
        last = model(x)
    before, version = x, x._version
    for module, came, left, entered, leaves in seen:
        inplace = getattr(module, "inplace", False)
        if came is not before or (entered != version and not inplace) or not _known(module, came):
            return None
        before, version = left, leaves
    layers = [module for module, *_ in seen]
    if not layers or last is not before or last._version != version or last.ndim != 2:
        return None
    weighted = [layer for layer in layers if KINDS[type(layer)] in ("dense", "conv")]
    inside = [id(p) for layer in weighted for p in (layer.weight, layer.bias) if p is not None]
    alone = len(set(inside)) == len(inside) and set(inside) == {id(p) for p in model.parameters()}
    # A network may run its layers under a mode that changes what they do, as a smooth twin does.
    return layers if alone and torch.allclose(_walk(layers, x)[-1].leaving, last, rtol=1e-4) else None


def walks(layers: list[nn.Module], x: Tensor, y: Tensor) -> Iterator[tuple[list[Link], Tensor]]:
    """The chain at all examples, a chunk at a time, with the labels of the chunk."""
    single = _walk(layers, x[:1])
    widths = [link.leaving[0].numel() for link in single if link.kind == "dense"]
    held = sum(link.leaving[0].numel() for link in single) + max((a * b for a, b in combinations(widths, 2)), default=0)
    chunk = min(512, max(64, HELD // held))
    for images, labels in zip(x.split(chunk), y.split(chunk), strict=True):
        yield _walk(layers, images), labels


def _walk(layers: list[nn.Module], x: Tensor) -> list[Link]:
    """The chain at these examples, with the graph that leads from the first weighted layer's output on."""
    links, at = [], x.detach()
    for layer in layers:
        entering, at = at, run(layer, at)
        links.append(Link(layer, entering, at))
        if links[-1].kind in ("dense", "conv") and not at.requires_grad:
            at.requires_grad_()
    return links


def run(layer: nn.Module, entering: Tensor) -> Tensor:
    """What the layer returns, live, its input left as it is."""
    with torch.enable_grad():
        return layer(entering.clone() if getattr(layer, "inplace", False) else entering)


def _known(module: nn.Module, entering: Tensor) -> bool:
    if type(module) is nn.Linear:
        return entering.ndim == 2
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) in KINDS
