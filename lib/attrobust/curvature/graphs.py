"""Gradient graphs of a batch, chunk by chunk: kept while memory lasts, built again where it does not.

A Hessian-vector product through a kept graph costs two gradients, through a graph built again three
(Pearlmutter 1994). Chunks of a few hundred images are also faster on a CPU than one large batch: their
activations stay in reach of the cache and of the allocator.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import psutil
import torch
from torch import Tensor

from attrobust.curvature import guards

#: Share of the free memory that kept graphs may take (our choice: the products need room too).
SHARE = 0.5


@dataclass(frozen=True)
class Graph:
    """Gradients of a scalar with respect to `inputs`, with the graph that differentiates them again."""

    inputs: Sequence[Tensor]
    gradients: Sequence[Tensor]

    def times(self, vectors: Sequence[Tensor], *, retain: bool) -> Sequence[Tensor]:
        """Hessian times `vectors`, one piece per input; a gradient that is constant adds nothing."""
        live = [(g, v) for g, v in zip(self.gradients, vectors, strict=True) if g.requires_grad]
        if not live:
            return [torch.zeros_like(piece) for piece in self.inputs]
        outputs, directions = zip(*live, strict=True)
        return torch.autograd.grad(
            outputs, self.inputs, directions, retain_graph=retain, allow_unused=True, materialize_grads=True
        )


class Graphs:
    """The graphs of all chunks, in order.

    Args:
        builders: one function per chunk that runs forward and backward and returns its Graph.
        keep_graph: True keeps every graph, False builds each again for every product, "auto" keeps as many as fit.
        memory: bytes that "auto" may fill; None for half of what is free on the device.

    Attributes:
        kept: how many graphs are kept.
    """

    def __init__(
        self, builders: Sequence[Callable[[], Graph]], *, keep_graph: bool | str = "auto", memory: int | None = None
    ) -> None:
        self._builders = builders
        self._kept: list[Graph | None] = []
        spent, budget = 0, memory
        for build in builders:
            graph = build()
            nodes = _nodes(graph.gradients)
            guards.twice_differentiable(nodes)
            if keep_graph == "auto":
                budget = _free(graph.inputs[0].device) if budget is None else budget
                spent += _saved_bytes(nodes, graph.inputs)
            keep = keep_graph is True or (keep_graph == "auto" and spent <= budget)
            self._kept.append(graph if keep else None)

    @property
    def kept(self) -> int:
        """Number of graphs that are kept."""
        return sum(graph is not None for graph in self._kept)

    def gradients(self) -> Iterator[Sequence[Tensor]]:
        """The gradients of every chunk, detached."""
        for graph, build in zip(self._kept, self._builders, strict=True):
            yield [g.detach() for g in (graph or build()).gradients]

    def products(self, pieces: Callable[[int], Sequence[Tensor]]) -> Iterator[Sequence[Tensor]]:
        """Hessian times `pieces(i)` for every chunk i."""
        for i, (graph, build) in enumerate(zip(self._kept, self._builders, strict=True)):
            yield (graph or build()).times(pieces(i), retain=graph is not None)


def _nodes(gradients: Sequence[Tensor]) -> set[torch.autograd.graph.Node]:
    """Every node of the graph behind the gradients, which includes the forward pass."""
    waiting, seen = [g.grad_fn for g in gradients if g.grad_fn is not None], set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [below for below, _ in node.next_functions if below is not None]
    return seen


def _saved_bytes(nodes: set[torch.autograd.graph.Node], inputs: Sequence[Tensor]) -> int:
    """Bytes of the distinct tensors that the nodes hold for later, without the inputs themselves."""
    sizes: dict[int, int] = {}
    for node in nodes:
        for name in _saved_names(type(node)):
            held = getattr(node, name)
            for tensor in held if isinstance(held, tuple) else (held,):
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    sizes[storage.data_ptr()] = storage.nbytes()
    for tensor in inputs:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


@cache
def _saved_names(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_saved_"))


def _free(device: torch.device) -> int:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(SHARE * free)
