"""Jacobian of the logits in the pixels, and the exact curvature of a network made of straight pieces.

Where the logits are piecewise linear (ReLU, max-pooling), their own Hessian is zero almost everywhere and that of
the cross-entropy is exactly

    H = J' (diag p - p p') J = B'B,   B_c = sqrt(p_c) (J_c - sum_k p_k J_k)

whose non-zero eigenvalues are those of the classes-by-classes Gram matrix B B': one backward pass per class and a
small eigenproblem instead of Lanczos. For any other network this is the Gauss-Newton part of H.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import checks
from attrobust.curvature import guards
from attrobust.curvature.estimate import Estimate


def input_jacobian(
    model: nn.Module, x: Float[Tensor, "batch *shape"], *, chunk: int = 256
) -> Float[Tensor, "batch classes n"]:
    """Derivative of every logit in every input, by one backward pass per class for the whole batch.

    Args:
        model: network in eval mode.
        x: images, or any floating-point inputs.
        chunk: images whose graph is held at once.

    Raises:
        ValueError: for a batch that is empty, not finite or of integers, or a model in train mode that couples it.
    """
    return torch.cat([jacobian for _, jacobian in _logits_and_jacobians(model, x, chunk)])


def jacobian_of(
    outputs: Float[Tensor, "batch outputs"], x: Float[Tensor, "batch *shape"]
) -> Float[Tensor, "batch outputs n"]:
    """Derivative of outputs that hang on `x` in each of its entries, by one backward pass per output.

    Args:
        outputs: computed from `x`, every row from its own example alone.
        x: what the graph of `outputs` starts from; one that it never uses has derivative zero.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]], requires_grad=True)
        >>> jacobian_of(x.square(), x).tolist()
        [[[2.0, 0.0], [0.0, 4.0]]]
    """
    if not outputs.requires_grad:
        return outputs.new_zeros(*outputs.shape, x[0].numel())
    rows = [
        torch.autograd.grad(outputs[:, c].sum(), x, retain_graph=True, materialize_grads=True)[0].flatten(1)
        for c in range(outputs.shape[1])
    ]
    return torch.stack(rows, 1)


def input_jacobian_norm(
    model: nn.Module, x: Float[Tensor, "batch *shape"], *, norm: str = "spectral", chunk: int = 256
) -> Estimate:
    """Norm of each image's Jacobian: how fast the logits can move per unit of input change.

    Args:
        model: network in eval mode.
        x: images, or any floating-point inputs.
        norm: "spectral" (largest singular value) or "frobenius".
        chunk: images whose graph is held at once.

    Returns:
        Estimate without error, one value per image; `products` counts backward passes.
    """
    checks.one_of("norm", norm, ("spectral", "frobenius"))
    found, classes = [], 0
    for _, jacobian in _logits_and_jacobians(model, x, chunk):
        classes = jacobian.shape[1]
        if norm == "frobenius":
            found.append(jacobian.flatten(1).norm(dim=1))
        else:
            found.append(torch.linalg.eigvalsh(jacobian @ jacobian.mT)[:, -1].clamp_min(0).sqrt())
    value = torch.cat(found)
    return Estimate(value, torch.zeros_like(value), classes)


def gram_spectrum(model: nn.Module, x: Float[Tensor, "batch *shape"], *, chunk: int = 256) -> Estimate:
    """Eigenvalues, ascending, of each image's cross-entropy Hessian; all others are zero.

    Exact for a piecewise-linear network, wherever it is differentiable; the Gauss-Newton part for any other.

    Args:
        model: network in eval mode.
        x: images, or any floating-point inputs.
        chunk: images whose graph is held at once.

    Returns:
        Estimate without error, `value` of shape (batch, classes); `products` counts backward passes.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = net.weight.copy_(torch.eye(2))
        >>> gram_spectrum(net, torch.zeros(1, 2)).value.abs().round(decimals=4).tolist()
        [[0.0, 0.5]]
    """
    found = []
    for logits, jacobian in _logits_and_jacobians(model, x, chunk):
        p = logits.softmax(1)
        b = p.sqrt()[..., None] * (jacobian - torch.einsum("bc,bcn->bn", p, jacobian)[:, None])
        found.append(torch.linalg.eigvalsh(b @ b.mT))
    value = torch.cat(found)
    return Estimate(value, torch.zeros_like(value), value.shape[1])


def _logits_and_jacobians(model: nn.Module, x: Tensor, chunk: int) -> list[tuple[Tensor, Tensor]]:
    checks.count("chunk", chunk)
    guards.batch(x)
    guards.floating(x)
    guards.model(model)
    found = []
    for images in x.split(chunk):
        at = images.detach().requires_grad_()
        logits = model(at)
        found.append((logits.detach(), jacobian_of(logits, at)))
    return found
