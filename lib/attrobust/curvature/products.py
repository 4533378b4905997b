"""Hessian-vector products in the parameters and in the pixels, through gradient graphs that are built once.

Pearlmutter 1994: H v = d(g . v)/dw, at the price of two gradients once the graph of the gradient g is there.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from attrobust import checks
from attrobust.curvature import guards
from attrobust.curvature.graphs import Graph, Graphs
from attrobust.models.readouts import Readout, logit

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]


class ParameterHessian:
    """Hessian of the mean loss over all parameters that require a gradient, as a product `matvec(v)`.

    Args:
        model: network in eval mode; whatever it returns is handed to `loss`.
        loss: (outputs, y) -> one loss per example.
        x: examples the mean is taken over.
        y: their labels, or whatever `loss` compares with.
        chunk: examples per graph; the mean is weighted by chunk size, so ragged chunks are exact.
        keep_graph: True, False (three gradients a product instead of two, far less memory), or "auto".
        memory: bytes that "auto" may fill; None for half of what is free.

    The graph is built at the first product and is of the weights at that time; build another Hessian after training on.

    Attributes:
        model, loss, x, y: as given.
        parameters: those that require a gradient, in the order of the rows.
        size: number of rows.
        products: products computed so far.

    Raises:
        ValueError: if the model couples its examples or is random (train mode), uses an operation without a
            second derivative, or has no parameter to differentiate; if the batch is empty, not finite or of
            integers that no embedding reads; if the loss is not one finite number per example. What only a pass of
            the network can show is refused at the first product.

    Example:
        >>> from torch.nn.functional import mse_loss
        >>> net = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> h = ParameterHessian(net, lambda out, y: mse_loss(out, y, reduction="none")[:, 0], x, x[:, :1])
        >>> h.matvec(torch.eye(2)).tolist()
        [[1.0, 0.0], [0.0, 4.0]]
    """

    def __init__(
        self,
        model: nn.Module,
        loss: PerExampleLoss,
        x: Tensor,
        y: Tensor,
        *,
        chunk: int = 256,
        keep_graph: bool | str = "auto",
        memory: int | None = None,
    ) -> None:
        checks.count("chunk", chunk)
        guards.graphs(keep_graph, memory)
        guards.batch(x, y)
        guards.model(model)
        self.model, self.loss, self.x, self.y = model, loss, x, y
        self.parameters = guards.trainable(model, x)
        self.sizes = [p.numel() for p in self.parameters]
        self.size = sum(self.sizes)
        self.dtype, self.device = self.parameters[0].dtype, self.parameters[0].device
        self.products = 0
        self._chunk, self._keep_graph, self._memory = chunk, keep_graph, memory

    @cached_property
    def _graphs(self) -> Graphs:
        def builder(images: Tensor, labels: Tensor) -> Callable[[], Graph]:
            def build() -> Graph:
                total = guards.values("loss", self.loss(self.model(images), labels), images).sum() / len(self.x)
                return Graph(self.parameters, _gradients(total, self.parameters))

            return build

        pairs = zip(self.x.split(self._chunk), self.y.split(self._chunk), strict=True)
        return Graphs([builder(*pair) for pair in pairs], keep_graph=self._keep_graph, memory=self._memory)

    @property
    def kept(self) -> int:
        """Chunks whose graph is kept; the others are built again for every product."""
        return self._graphs.kept

    @property
    def gradient(self) -> Float[Tensor, " n"]:
        """Gradient of the mean loss, flat."""
        return sum(torch.cat([g.flatten() for g in chunk]) for chunk in self._graphs.gradients())

    def matvec(self, v: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """H v for each row of `v`."""
        return torch.stack([self._one(row) for row in v])

    def to_scipy(self) -> LinearOperator:
        """The same matrix as a scipy operator, for `scipy.sparse.linalg.eigsh` and its kin."""
        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype

        def matvec(v: np.ndarray) -> np.ndarray:
            rows = torch.as_tensor(np.ascontiguousarray(v.reshape(1, -1), dtype=dtype), device=self.device)
            return self.matvec(rows)[0].cpu().numpy()

        return LinearOperator((self.size, self.size), matvec=matvec, rmatvec=matvec, dtype=dtype)

    def _one(self, v: Tensor) -> Tensor:
        self.products += 1
        pieces = [piece.view_as(p) for piece, p in zip(v.split(self.sizes), self.parameters, strict=True)]
        total = torch.zeros_like(v)
        for product in self._graphs.products(lambda _: pieces):
            total += torch.cat([part.flatten() for part in product])
        return total


class InputHessian:
    """Hessian of a scalar readout in the inputs, one matrix per image, multiplied in one batch.

    Images do not interact, so one product of the summed readout multiplies every image's own Hessian.

    Args:
        model: network in eval mode.
        x: images, or any floating-point inputs.
        y: class each readout refers to.
        readout: (model, x, y) -> one number per image; the logit by default.
        chunk: images per graph; convolutions are fastest at about a hundred, dense networks do not care.
        keep_graph: True, False or "auto", as for ParameterHessian.
        memory: bytes that "auto" may fill; None for half of what is free.

    Raises:
        ValueError: as ParameterHessian, and for integer inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        readout: Readout = logit,
        chunk: int = 128,
        keep_graph: bool | str = "auto",
        memory: int | None = None,
    ) -> None:
        checks.count("chunk", chunk)
        guards.graphs(keep_graph, memory)
        guards.batch(x, y)
        guards.floating(x)
        guards.model(model)
        self.products = 0
        self.x, self.shape = x, x.shape

        def builder(images: Tensor, labels: Tensor) -> Callable[[], Graph]:
            def build() -> Graph:
                at = images.detach().requires_grad_()
                total = guards.values("readout", readout(model, at, labels), images).sum()
                return Graph([at], _gradients(total, [at]))

            return build

        self._chunk = chunk
        builders = [builder(*pair) for pair in zip(x.split(chunk), y.split(chunk), strict=True)]
        self._graphs = Graphs(builders, keep_graph=keep_graph, memory=memory)

    @property
    def gradient(self) -> Float[Tensor, "batch *shape"]:
        """Gradient of each image's readout, detached."""
        return torch.cat([gradient for (gradient,) in self._graphs.gradients()])

    def matvec(self, v: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """H_i v_i for each image i."""
        self.products += 1
        parts = v.view(self.shape).split(self._chunk)
        return torch.cat([product for (product,) in self._graphs.products(lambda i: [parts[i]])]).flatten(1)


def _gradients(total: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gradient with its graph; zero where `total` does not use an input."""
    if not total.requires_grad:
        return [torch.zeros_like(piece) for piece in inputs]
    return torch.autograd.grad(total, inputs, create_graph=True, allow_unused=True, materialize_grads=True)
