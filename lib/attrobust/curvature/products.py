"""Hessian-vector products on a gradient graph that is built once and kept.

Pearlmutter 1994: H v = d(g . v)/dw. With the graph of the gradient g kept, each product costs two gradients
instead of the three of recomputing everything.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrobust import checks

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]
Readout = Callable[[nn.Module, Tensor, Tensor], Tensor]


def logit(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Float[Tensor, " batch"]:
    """Logit of class y: the function a saliency map is the gradient of."""
    return model(x).gather(1, y[:, None])[:, 0]


def cross_entropy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Float[Tensor, " batch"]:
    """Cross-entropy of each image."""
    return torch.nn.functional.cross_entropy(model(x), y, reduction="none")


class ParameterHessian:
    """Hessian of the mean loss over all parameters, as a product `matvec(v)` for flat vectors.

    Args:
        model: network in eval mode without batch-coupled layers.
        loss: (logits, y) -> one loss per example.
        x: images the mean is taken over.
        y: their labels.
        chunk: images per kept graph; the mean is weighted by chunk size, so ragged chunks are exact.

    Raises:
        ValueError: if the model is in train mode while it holds dropout or batch normalisation, the batch is
            empty or not finite, no parameter requires a gradient, or the loss is not finite.
    """

    def __init__(
        self, model: nn.Module, loss: PerExampleLoss, x: Tensor, y: Int[Tensor, " batch"], *, chunk: int = 256
    ) -> None:
        checks.images("x", x)
        checks.count("chunk", chunk)
        _refuse_batch_coupling(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("model has no parameter that requires a gradient; unfreeze the ones to differentiate")
        self.size = sum(p.numel() for p in self.parameters)
        self.products = 0
        self._graphs = []
        for images, labels in zip(x.split(chunk), y.split(chunk), strict=True):
            total = loss(model(images), labels).sum() / len(x)
            if not bool(torch.isfinite(total)):
                raise ValueError(f"loss is {float(total.detach())} on these images; curvature needs a finite loss")
            self._graphs.append(torch.autograd.grad(total, self.parameters, create_graph=True))

    def matvec(self, v: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """H v for each row of `v`."""
        return torch.stack([self._one(row) for row in v])

    def _one(self, v: Tensor) -> Tensor:
        self.products += 1
        pieces = [
            piece.view_as(p)
            for piece, p in zip(v.split([p.numel() for p in self.parameters]), self.parameters, strict=True)
        ]
        total = torch.zeros_like(v)
        for graph in self._graphs:
            product = torch.autograd.grad(
                graph, self.parameters, pieces, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            total += torch.cat([part.flatten() for part in product])
        return total


class InputHessian:
    """Hessian of a scalar readout in the pixels, one matrix per image, multiplied in one batch.

    Images do not interact, so one product of the summed readout multiplies every image's own Hessian.

    Args:
        model: network in eval mode without batch-coupled layers.
        x: images.
        y: class each readout refers to.
        readout: (model, x, y) -> one number per image; the logit by default.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Int[Tensor, " batch"], *, readout: Readout = logit) -> None:
        checks.images("x", x)
        _refuse_batch_coupling(model)
        self.x = x.detach().requires_grad_()
        self.products = 0
        self.gradient = torch.autograd.grad(readout(model, self.x, y).sum(), self.x, create_graph=True)[0]

    def matvec(self, v: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """H_i v_i for each image i."""
        self.products += 1
        if not self.gradient.requires_grad:
            return torch.zeros_like(v)
        product = torch.autograd.grad(
            self.gradient, self.x, v.view_as(self.x), retain_graph=True, allow_unused=True, materialize_grads=True
        )[0]
        return product.flatten(1)


def _refuse_batch_coupling(model: nn.Module) -> None:
    coupled = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for name, module in model.named_modules():
        if isinstance(module, coupled) and module.training:
            raise ValueError(f"model is in train mode and holds {type(module).__name__} ({name}); call model.eval()")
