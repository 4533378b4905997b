"""Exact Gauss-Newton trace, and a flatness that re-scaling cannot change.

At a fitted minimum the loss Hessian is nearly the Gauss-Newton matrix, whose trace needs no randomness:

    tr G = mean_i sum_c p_c |J_i^T (e_c - p)|^2    (cross-entropy),    mean_i |J_i|_F^2    (squared loss)

Multiplying one layer by a and dividing the next by a leaves a homogeneous network's function alone and changes
every Hessian quantity (Dinh et al. 2017); |W|_2^2 tr G_(W, b) of the first layer is unchanged (after Petzka et
al. 2021), and it bounds the input gradients (notebook 02).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from attrobust import checks

Images = Float[Tensor, "batch channels height width"]


def gauss_newton_trace(
    model: nn.Module, x: Images, *, loss: str = "cross_entropy", block: str = "", chunk: int = 64
) -> float:
    """Exact trace of the Gauss-Newton matrix of the mean loss.

    Args:
        model: network in eval mode.
        x: images the mean is taken over.
        loss: "cross_entropy" or "squared" (half the squared distance).
        block: only parameters whose name starts with this; "" for all.
        chunk: images whose Jacobians are held at once.

    Raises:
        ValueError: for an unknown loss, or a block that names no parameter.
    """
    checks.one_of("loss", loss, ("cross_entropy", "squared"))
    checks.images("x", x)
    inside = {name: p.detach() for name, p in model.named_parameters() if name.startswith(block)}
    if not inside:
        raise ValueError(f"block is {block!r}; no parameter name starts with it")
    rest = {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()] if name not in inside}

    def logits(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, {**rest, **weights}, (image[None],))[0]

    jacobian = vmap(jacrev(logits), in_dims=(None, 0))
    total = 0.0
    for images in x.split(chunk):
        j = torch.cat([part.flatten(2) for part in jacobian(inside, images).values()], dim=2)  # (batch, classes, n)
        if loss == "cross_entropy":
            p = model(images).detach().softmax(1)
            centred = j - torch.einsum("bc,bcn->bn", p, j)[:, None]
            total += float((p * centred.square().sum(2)).sum())
        else:
            total += float(j.square().sum())
    return total / len(x)


def invariant_flatness(model: nn.Module, x: Images, *, loss: str = "cross_entropy") -> float:
    """Squared spectral norm of the first layer's weights times the Gauss-Newton trace of that layer.

    Raises:
        ValueError: if the first layer with weights is not dense: shared weights break the transfer from
            parameters to pixels, so the number would bound nothing.
    """
    name, layer = first_layer(model)
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"the first layer is {type(layer).__name__}; this flatness needs a dense (Linear) first layer")
    spectral = float(torch.linalg.matrix_norm(layer.weight.detach(), ord=2))
    return spectral**2 * gauss_newton_trace(model, x, loss=loss, block=name + ".")


def first_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the first layer that holds a weight.

    Raises:
        ValueError: if no module does.
    """
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            return name, module
    raise ValueError("model has no layer with weights")
