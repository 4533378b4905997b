"""Hessian-vector products in the parameters and in the pixels, through gradient graphs that are built once.

Pearlmutter 1994: H v = d(g . v)/dw, at the price of two gradients once the graph of the gradient g is there, of three
where it is built again. Chunks of a few hundred images are faster on a CPU than one batch: they stay in its cache.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from attrobust import checks
from attrobust.curvature import guards
from attrobust.curvature.derivatives import CHANGED, FEW, Audit, Graph, spoken
from attrobust.models.derivatives import behind
from attrobust.models.readouts import OF_LOGITS, Readout, logit, usable

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]
Option = bool | str | int | None

#: Share of the free memory that kept graphs may take (our choice: the products need room too).
SHARE = 0.5


class _Hessian:
    """A batch in chunks, and the `_graph` of each: kept while memory lasts, built again where it does not."""

    model: nn.Module
    x: Tensor
    y: Tensor
    products: int

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, chunk: int, keep_graph: Option = "auto", memory: Option = None
    ) -> None:
        checks.count("chunk", chunk)
        if not isinstance(keep_graph, bool) and not (isinstance(keep_graph, str) and keep_graph == "auto"):
            raise ValueError(f"keep_graph is {checks.short(keep_graph)}; it must be True, False or 'auto'")
        if memory is not None:
            checks.count("memory", memory, least=0)
        guards.usable(model, x, checks.kind("y", y, Tensor), chunk=chunk)
        self.model, self.x, self.y, self.products, self._audited = model, x, y, 0, 0
        self._weights = [(p, p.detach().clone()) for p in model.parameters()]
        self._pairs = list(zip(x.split(chunk), y.split(chunk), strict=True))
        self._keep_graph, self._memory = keep_graph, memory

    @cached_property
    def _graphs(self) -> list[Graph | None]:
        """The graph of every chunk, None where it is built again for every product."""
        graphs, spent, budget = [], 0, self._memory
        for pair in self._pairs:
            graph = self._built(pair)
            nodes = behind(graph.gradients)
            guards.twice_differentiable(nodes)
            if self._keep_graph == "auto":
                if budget is None:
                    device = graph.inputs[0].device
                    cuda = device.type == "cuda"
                    budget = SHARE * (torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available)
                spent += _saved_bytes(nodes, graph.inputs)
            keep = self._keep_graph is True or (self._keep_graph == "auto" and spent <= budget)
            graphs.append(graph if keep else None)
        return graphs

    def _built(self, pair: tuple[Tensor, Tensor]) -> Graph:
        """The graph of a chunk, with gradients on wherever it is called."""
        guards.mode()
        with torch.enable_grad(), spoken():
            return self._graph(*pair)

    def unchanged(self) -> None:
        """Refuse weights that are not those for which the Hessian was built."""
        now = list(self.model.parameters())
        if len(now) != len(self._weights) or not all(map(_same, now, *zip(*self._weights, strict=True))):
            raise ValueError(CHANGED)

    def audit(self, *, order: int) -> None:
        """Refuse, once, a function of which autograd's derivatives up to this order are not right."""
        if self._audited < order:
            self._audit(order=order)
            self._audited = order

    def _ready(self, order: int) -> Iterator[tuple[Graph, bool]]:
        """The graph of every chunk and whether it is kept, once autograd's derivatives are known to be right."""
        guards.mode()
        self.unchanged()
        graphs = self._graphs
        self.audit(order=order)
        for graph, pair in zip(graphs, self._pairs, strict=True):
            yield graph or self._built(pair), graph is not None

    def _gradients(self) -> Iterator[Sequence[Tensor]]:
        """The gradients of every chunk, detached."""
        for graph, _ in self._ready(1):
            yield [g.detach() for g in graph.gradients]

    def _products(self, pieces: Callable[[int], Sequence[Sequence[Tensor]]]) -> Iterator[list[Sequence[Tensor]]]:
        """Hessian times each of `pieces(i)` for every chunk i, whose graph is built once at most."""
        for i, (graph, kept) in enumerate(self._ready(2)):
            *first, last = pieces(i)
            with spoken():
                products = [graph.times(vectors, retain=True) for vectors in first]
                products.append(graph.times(last, retain=kept))
            yield products


class ParameterHessian(_Hessian):
    """Hessian of the mean loss over all parameters that require a gradient, as a product `matvec(v)`.

    It is of the weights at the time when it is built; after training on it refuses to go on, and another must be built.

    Args:
        model: network in eval mode; whatever it returns is handed to `loss`.
        loss: (outputs, y) -> one loss per example; `y` is whatever it compares with.
        chunk: examples per graph; the mean is weighted by chunk size, so ragged chunks are exact.
        **graphs: keep_graph = True, False (three gradients a product instead of two, far less memory) or "auto", the
            default; memory = bytes that "auto" may fill, half of what is free unless said.

    A ValueError refuses a model that couples its examples or is random (train mode), uses an operation without a second
    derivative, or has no parameter to differentiate; a batch that is empty, not finite or of integers that no embedding
    reads; a loss that is not one finite number per example. What only a pass shows is refused then.

    Example:
        >>> from torch.nn.functional import mse_loss
        >>> net, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> h = ParameterHessian(net, lambda out, y: mse_loss(out, y, reduction="none")[:, 0], x, x[:, :1])
        >>> h.matvec(torch.eye(2)).tolist()
        [[1.0, 0.0], [0.0, 4.0]]
    """

    products: int
    loss: PerExampleLoss
    parameters: list[nn.Parameter]
    size: int
    dtype: torch.dtype
    device: torch.device

    def __init__(
        self, model: nn.Module, loss: PerExampleLoss, x: Tensor, y: Tensor, *, chunk: int = 256, **graphs: Option
    ) -> None:
        super().__init__(model, x, y, chunk, **graphs)
        names = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.loss, self.parameters = loss, list(names.values())
        if not names:
            raise ValueError("model has no parameter that requires a gradient; unfreeze the ones to differentiate")
        if len({p.dtype for p in self.parameters}) > 1:
            raise ValueError(f"model has parameters of {', '.join(sorted({str(p.dtype) for p in self.parameters}))}")
        self._sizes = [p.numel() for p in self.parameters]
        self.size = sum(self._sizes)
        self.dtype, self.device = self.parameters[0].dtype, self.parameters[0].device

        few = x[:FEW], y[:FEW]

        def run(point: Sequence[Tensor], n: int) -> Tensor:
            images, labels = (part[:n] for part in few)  # `point` is in the model, where the loss may read it too
            return guards.losses(loss, model(images), labels, images)

        self._audit = Audit("loss", run, self.parameters, len(x), model, list(names))

    def _graph(self, images: Tensor, labels: Tensor) -> Graph:
        losses = guards.losses(self.loss, self.model(images), labels, images)
        return Graph.of(losses.sum() / len(self.x), self.parameters)

    @property
    def of_outputs(self) -> bool:
        """Whether the loss meets the parameters in the network's output and nowhere else, by its gradient."""
        images, labels = self.x[:FEW], self.y[:FEW]
        with torch.enable_grad():
            outputs = self.model(images)
            try:
                total = guards.losses(self.loss, outputs.detach(), labels, images).sum()
            except ValueError:  # it asks for the graph behind the output
                return False
            if not total.requires_grad:
                return True
            found = torch.autograd.grad(total, self.parameters, allow_unused=True)
        return all(g is None for g in found)

    @property
    def kept(self) -> int:
        """Chunks whose graph is kept; the others are built again for every product."""
        return sum(graph is not None for graph in self._graphs)

    @property
    def gradient(self) -> Float[Tensor, " n"]:
        """Gradient of the mean loss, flat."""
        return sum(torch.cat([g.flatten() for g in chunk]) for chunk in self._gradients())

    def matvec(self, v: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """H v for each row of `v`."""
        if checks.floating("v", v).ndim != 2 or v.shape[1] != self.size or v.dtype != self.dtype:
            raise ValueError(
                f"v has shape {tuple(v.shape)} and dtype {v.dtype}; it must be (any, {self.size}), of {self.dtype}"
            )
        shapes = [p.shape for p in self.parameters]
        rows = [[piece.view(shape) for piece, shape in zip(row.split(self._sizes), shapes, strict=True)] for row in v]
        self.products += len(rows)
        total = torch.zeros_like(v)
        for products in self._products(lambda _: rows) if rows else ():
            total += torch.stack([torch.cat([part.flatten() for part in product]) for product in products])
        return total

    def to_scipy(self) -> Any:  # whose own package has no types
        """The same matrix as a scipy LinearOperator, for `scipy.sparse.linalg.eigsh` and its kin."""
        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype

        def matvec(v: np.ndarray) -> np.ndarray:
            rows = torch.as_tensor(np.ascontiguousarray(v.reshape(1, -1), dtype=dtype), device=self.device)
            return self.matvec(rows)[0].cpu().numpy()

        return LinearOperator((self.size, self.size), matvec=matvec, rmatvec=matvec, dtype=dtype)


class InputHessian(_Hessian):
    """Hessian of a readout, one number per image, in the inputs: one matrix per image, multiplied in one batch.

    Images do not interact, so one product of the summed readout multiplies every image's own Hessian. Arguments and
    errors are as of ParameterHessian, but integer inputs are refused. Convolutions like chunks of about a hundred.

    Example:
        >>> half_square = lambda model, x, y: x.flatten(1).square().sum(1) / 2
        >>> h = InputHessian(nn.Flatten(), torch.ones(1, 2), torch.tensor([0]), readout=half_square)
        >>> h.matvec(torch.tensor([[1.0, 3.0]])).tolist(), h.gradient.tolist()
        ([[1.0, 3.0]], [[1.0, 1.0]])
    """

    products: int

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, readout: Readout = logit, chunk: int = 128, **graphs: Option
    ) -> None:
        super().__init__(model, x, y, chunk, **graphs)
        checks.floating("x", x)
        if any(readout is known for known in OF_LOGITS):
            with torch.no_grad():
                classes = checks.logits("model", model(x[:1]), batch=1).shape[1]
            checks.labels("y", y, batch=len(x), classes=classes)
        usable(readout, model, x, y)
        self._readout, self._chunk = readout, chunk

        def run(point: Sequence[Tensor], n: int) -> Tensor:
            return guards.values("readout", readout(model, point[0][:n], y[:n]), point[0][:n])

        self._audit = Audit("readout", run, [x], len(x), model)
        _ = self._graphs  # built at once: refused here is what only a pass can show

    def _graph(self, images: Tensor, labels: Tensor) -> Graph:
        at = images.detach().requires_grad_()
        return Graph.of(guards.values("readout", self._readout(self.model, at, labels), images).sum(), [at])

    @property
    def gradient(self) -> Float[Tensor, "batch *shape"]:
        """Gradient of each image's readout, detached."""
        return torch.cat([gradient for (gradient,) in self._gradients()])

    def matvec(self, v: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """H_i v_i for each image i."""
        if checks.floating("v", v).numel() != self.x.numel() or v.dtype != self.x.dtype:
            raise ValueError(
                f"v has shape {tuple(v.shape)} and dtype {v.dtype}; it must be {tuple(self.x.flatten(1).shape)}, of"
                f" {self.x.dtype}"
            )
        self.products += 1
        parts = v.view(self.x.shape).split(self._chunk)
        return torch.cat([product for ((product,),) in self._products(lambda i: [[parts[i]]])]).flatten(1)


def _saved_bytes(nodes: set[torch.autograd.graph.Node], inputs: Sequence[Tensor]) -> int:
    """Bytes of the distinct tensors that the nodes hold for later, without the inputs themselves."""
    held = (getattr(node, name) for node in nodes for name in _saved_names(type(node)))
    tensors = (t for value in held for t in (value if isinstance(value, tuple) else (value,)) if isinstance(t, Tensor))
    sizes = {storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}
    own = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    return sum(size for pointer, size in sizes.items() if pointer not in own)


def _same(p: Tensor, known: Tensor, value: Tensor) -> bool:
    """Whether a parameter is the one that is known and has the value that it had."""
    how = [(t.shape, t.dtype, t.device) for t in (p, value)]
    if p is not known or how[0] != how[1]:
        return False
    return torch.equal(p, value) or torch.allclose(p.detach(), value, rtol=0, atol=0, equal_nan=True)


@cache
def _saved_names(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_saved_"))
