"""Jacobian of the logits in the pixels, and the exact curvature of a network made of straight pieces.

Where the logits are piecewise linear (ReLU, max-pooling), their own Hessian is zero almost everywhere and that of
the cross-entropy is exactly

    H = J' (diag p - p p') J = B'B,   B_c = sqrt(p_c) (J_c - sum_k p_k J_k)

whose non-zero eigenvalues are those of the classes-by-classes Gram matrix B B': one backward pass per class and a
small eigenproblem instead of Lanczos. For any other network this is the Gauss-Newton part of H.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import checks
from attrobust.curvature import guards
from attrobust.curvature.spectra import Estimate

Inputs = Float[Tensor, "batch *shape"]


def input_jacobian(model: nn.Module, x: Inputs, *, chunk: int = 256) -> Float[Tensor, "batch classes n"]:
    """Derivative of every logit in every input, by one backward pass per class for the whole batch.

    Args:
        model: network in eval mode.
        x: images, or any floating-point inputs.
        chunk: images whose graph is held at once.

    Raises:
        ValueError: for a batch that is empty, not finite or of integers, or a model in train mode that couples it.
    """
    return torch.cat([jacobian for _, jacobian in _logits_and_jacobians(model, x, chunk)])


def jacobian_of(outputs: Float[Tensor, "batch outputs"], x: Inputs) -> Float[Tensor, "batch outputs n"]:
    """Derivative of outputs in each entry of `x`, every row from its own example alone; zero if `x` is never used.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]], requires_grad=True)
        >>> jacobian_of(x.square(), x).tolist()
        [[[2.0, 0.0], [0.0, 4.0]]]
    """
    if not outputs.requires_grad:
        return outputs.new_zeros(*outputs.shape, x[0].numel())
    how = {"retain_graph": True, "materialize_grads": True}
    return torch.stack([torch.autograd.grad(z.sum(), x, **how)[0].flatten(1) for z in outputs.unbind(1)], 1)


def input_jacobian_norm(model: nn.Module, x: Inputs, *, norm: str = "spectral", chunk: int = 256) -> Estimate:
    """Norm of each image's Jacobian, "spectral" or "frobenius": how fast the logits can move per unit of input change.

    Exact; `products` counts backward passes. Arguments and errors as of `input_jacobian`.
    """
    norms = {
        "spectral": lambda j: torch.linalg.eigvalsh(j @ j.mT)[:, -1].clamp_min(0).sqrt(),
        "frobenius": lambda j: j.flatten(1).norm(dim=1),
    }
    length = norms[checks.one_of("norm", norm, norms)]
    found = [(length(jacobian), jacobian.shape[1]) for _, jacobian in _logits_and_jacobians(model, x, chunk)]
    value = torch.cat([lengths for lengths, _ in found])
    return Estimate(value, torch.zeros_like(value), found[-1][1])


def gram_spectrum(model: nn.Module, x: Inputs, *, chunk: int = 256) -> Estimate:
    """Eigenvalues, ascending, of each image's cross-entropy Hessian, shape (batch, classes); all others are zero.

    Exact for a piecewise-linear network, wherever it is differentiable; the Gauss-Newton part for any other.
    `products` counts backward passes. Arguments and errors as of `input_jacobian`.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.eye(2)
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


def _logits_and_jacobians(model: nn.Module, x: Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    checks.count("chunk", chunk)
    guards.batch(x)
    guards.floating(x)
    guards.model(model)
    for images in x.split(chunk):
        at = images.detach().requires_grad_()
        logits = model(at)
        yield logits.detach(), jacobian_of(logits, at)
