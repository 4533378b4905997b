"""Exact Gauss-Newton trace, and a flatness that re-scaling cannot change.

At a fitted minimum the loss Hessian is nearly the Gauss-Newton matrix, whose trace needs no randomness:

    tr G = mean_i sum_c p_c |J_i^T (e_c - p)|^2    (cross-entropy),    mean_i |J_i|_F^2    (squared loss)
    tr G = mean_i <H_i, J_i J_i^T>                 (any loss; H_i its Hessian in the logits)

Multiplying one layer by a and dividing the next by a leaves a homogeneous network's function alone and changes
every Hessian quantity (Dinh et al. 2017); |W|_2^2 tr G_(W, b) of the first layer is unchanged (after Petzka et
al. 2021), and it bounds the input gradients (notebook 02).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from attrobust import checks
from attrobust.curvature import guards
from attrobust.curvature.estimate import Estimate
from attrobust.curvature.jacobian import jacobian_of
from attrobust.curvature.products import PerExampleLoss


def gauss_newton_trace(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Tensor | None = None,
    *,
    loss: str | PerExampleLoss = "cross_entropy",
    block: str = "",
    chunk: int = 64,
) -> Estimate:
    """Exact trace of the Gauss-Newton matrix of the mean loss, from per-example gradients.

    Args:
        model: network in eval mode that returns (batch, outputs).
        x: examples the mean is taken over.
        y: their labels; only a callable loss needs them.
        loss: "cross_entropy", "squared" (half the squared distance), or (outputs, y) -> one loss per example.
        block: only parameters whose name starts with this; "" for all.
        chunk: examples whose Jacobians are held at once.

    Returns:
        Estimate with error 0; `products` counts the per-example gradients of one example.

    Raises:
        ValueError: for an unknown loss, a callable loss without `y`, or a block that names no parameter.
    """
    if not callable(loss):
        checks.one_of("loss", loss, ("cross_entropy", "squared"))
    elif y is None:
        raise ValueError("y is None; a callable loss needs the labels")
    guards.batch(x, y)
    guards.model(model)
    inside = {name: p.detach() for name, p in model.named_parameters() if name.startswith(block)}
    if not inside:
        raise ValueError(f"block is {block!r}; no parameter name starts with it")
    rest = {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()] if name not in inside}

    def outputs(weights: dict[str, Tensor], example: Tensor) -> Tensor:
        return functional_call(model, {**rest, **weights}, (example[None],))[0]

    jacobian = vmap(jacrev(outputs), in_dims=(None, 0))
    total, width = 0.0, 0
    for at, examples in zip(range(0, len(x), chunk), x.split(chunk), strict=True):
        j = torch.cat([part.flatten(2) for part in jacobian(inside, examples).values()], dim=2)  # (batch, outputs, n)
        width = j.shape[1]
        if callable(loss):
            inner = _loss_hessian(loss, model(examples).detach(), y[at : at + chunk])
            total += float((inner * (j @ j.mT)).sum())
        elif loss == "cross_entropy":
            p = model(examples).detach().softmax(1)
            centred = j - torch.einsum("bc,bcn->bn", p, j)[:, None]
            total += float((p * centred.square().sum(2)).sum())
        else:
            total += float(j.square().sum())
    return Estimate(total / len(x), 0.0, width)


def _loss_hessian(loss: PerExampleLoss, outputs: Tensor, y: Tensor) -> Float[Tensor, "batch outputs outputs"]:
    at = outputs.requires_grad_()
    (slope,) = torch.autograd.grad(guards.values("loss", loss(at, y), outputs).sum(), at, create_graph=True)
    return jacobian_of(slope, at)


def invariant_flatness(model: nn.Module, x: Float[Tensor, "batch *shape"], *, loss: str = "cross_entropy") -> Estimate:
    """Squared spectral norm of the first layer's weights times the Gauss-Newton trace of that layer.

    Returns:
        Estimate with error 0.

    Raises:
        ValueError: if the first layer with weights is not dense: shared weights break the transfer from
            parameters to pixels, so the number would bound nothing.
    """
    name, layer = first_layer(model)
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"the first layer is {type(layer).__name__}; this flatness needs a dense (Linear) first layer")
    spectral = float(torch.linalg.matrix_norm(layer.weight.detach(), ord=2))
    block = gauss_newton_trace(model, x, loss=loss, block=name + ".")
    return Estimate(spectral**2 * block.value, 0.0, block.products)


def first_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the first layer that holds a weight.

    Raises:
        ValueError: if no module does.
    """
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            return name, module
    raise ValueError("model has no layer with weights")
