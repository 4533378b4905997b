"""Curvature of a network in its pixels, per image: how fast the gradient map can turn; and Jacobians of the logits.

    input curvature     |H|_2              largest absolute eigenvalue of the Hessian H of the readout
    relative curvature  |P H|_2 / |g|      g the gradient, P the projection that removes its direction
    Gram spectrum       B B',   H = J' (diag p - p p') J = B'B,   B_c = sqrt(p_c) (J_c - sum_k p_k J_k)

The first bounds how far a saliency map moves per unit of input change. Scale-free similarities (cosine, ranks) see the
second: the angle of the map turns at most this fast. All are of one `InputHessian` of any readout.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from attrobust import checks, similarity
from attrobust.curvature import guards
from attrobust.curvature.derivatives import Audit
from attrobust.curvature.products import InputHessian
from attrobust.curvature.spectra import Estimate, lanczos, moments, normal
from attrobust.models.readouts import Readout, logit
from attrobust.shapes import Inputs, Labels, PerImage

#: Powers of two within which a Hessian keeps its digits when it is taken to the fourth power in single precision.
ORDINARY = 16


def input_gradient_norm(model: nn.Module, x: Inputs, y: Labels, *, readout: Readout = logit) -> PerImage:
    """Euclidean length of the readout's gradient at each image.

    Raises:
        ValueError: what `InputHessian` refuses.

    Example:
        >>> linear = nn.Linear(2, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> input_gradient_norm(linear, torch.ones(1, 2), torch.tensor([0])).tolist()
        [5.0]
    """
    return similarity.length(InputHessian(model, x, y, readout=readout).gradient.flatten(1))


def input_extremes(
    hessian: InputHessian, *, generator: Generator, steps: int = 15, tolerance: float = 0.0
) -> tuple[Estimate, Estimate]:
    """Lowest and highest eigenvalue of the readout's Hessian at each image, from the same products.

    Lanczos stops when both ends of every image have a residual below `tolerance` times the larger one, or after
    `steps` products; 15 reach a relative error near 1e-8 on small networks.

    Raises:
        ValueError: what is no InputHessian, `steps` below 1, or a negative `tolerance`.

    Example:
        >>> bent = lambda model, x, y: (x[:, 0].square() - 3 * x[:, 1].square()) / 2
        >>> h = InputHessian(nn.Flatten(), torch.ones(1, 2), torch.tensor([0]), readout=bent)
        >>> [round(end.value.item(), 4) for end in input_extremes(h, generator=Generator())]
        [-3.0, 1.0]
    """
    checks.kind("hessian", hessian, InputHessian)
    return lanczos(hessian.matvec, normal(hessian.x.flatten(1), generator), steps=steps, tolerance=tolerance, both=True)


def input_moments(hessian: InputHessian, *, generator: Generator, products: int = 30) -> tuple[Estimate, Estimate]:
    """Trace and Frobenius norm of the readout's Hessian at each image, by Hutch++ from 6 products or more.

    Raises:
        ValueError: what is no InputHessian, or `products` below 6.

    Example:
        >>> bent = lambda model, x, y: (x[:, 0].square() - 3 * x[:, 1].square()) / 2
        >>> h = InputHessian(nn.Flatten(), torch.ones(1, 2), torch.tensor([0]), readout=bent)
        >>> [round(m.value.item() ** 2, 3) for m in input_moments(h, generator=Generator())]  # (1 - 3)^2, 1 + 9
        [4.0, 10.0]
    """
    checks.kind("hessian", hessian, InputHessian)
    return moments(hessian.matvec, hessian.x.flatten(1), products=products, generator=generator)


def input_curvature(hessian: InputHessian, *, generator: Generator, steps: int = 15) -> Estimate:
    """Largest absolute eigenvalue of the readout's Hessian in the pixels, with its residual bound, at each image.

    Raises:
        ValueError: what is no InputHessian, or `steps` below 1.

    Example:
        >>> bent = lambda model, x, y: (x[:, 0].square() - 3 * x[:, 1].square()) / 2
        >>> h = InputHessian(nn.Flatten(), torch.ones(1, 2), torch.tensor([0]), readout=bent)
        >>> round(input_curvature(h, generator=Generator()).value.item(), 4)
        3.0
    """
    low, high = input_extremes(hessian, generator=generator, steps=steps)
    upper = high.value.abs() >= low.value.abs()
    value = torch.where(upper, high.value.abs(), low.value.abs())
    return Estimate(value, torch.where(upper, high.error, low.error), high.products)


def relative_curvature(hessian: InputHessian, *, generator: Generator, steps: int = 15) -> Estimate:
    """Spectral norm of the part of the Hessian that turns the gradient, over the gradient's length.

    Lanczos runs on H P H, whose top eigenvalue is |P H|_2^2; each step costs two products. In 1 / pixel units, per
    image; infinite where the gradient vanishes and the Hessian does not.

    Raises:
        ValueError: what is no InputHessian, or `steps` below 1.

    Example:
        >>> bent = lambda model, x, y: x[:, 0] + 3 * x[:, 1].square() / 2
        >>> h = InputHessian(nn.Flatten(), torch.tensor([[1.0, 0.0]]), torch.tensor([0]), readout=bent)
        >>> round(relative_curvature(h, generator=Generator()).value.item(), 4)
        3.0
    """
    g = checks.kind("hessian", hessian, InputHessian).gradient.flatten(1)
    length = similarity.length(g)
    unit = g / torch.where(length > 0, length, torch.ones_like(length))[:, None]
    power = None

    def turn_squared(v: Tensor) -> Tensor:
        nonlocal power
        w = hessian.matvec(v)
        if power is None:  # brings H to ordinary size: the recursion squares H P H, which has |H| to the fourth
            size = similarity.exponent(w)
            power = torch.where(size.abs() <= ORDINARY, 0, -size)
        w = similarity.times(w, power)
        return similarity.times(hessian.matvec(w - (w * unit).sum(1, keepdim=True) * unit), power)

    _, high = lanczos(turn_squared, normal(g, generator), steps=steps)
    norm = high.value.clamp_min(0).sqrt()
    # |sqrt(a) - sqrt(b)| <= |a - b| / sqrt(a) turns the bound on the square into one on the norm.
    error = torch.where(norm > 0, high.error / norm, high.error.sqrt())
    bounds = (similarity.times(bound, -power[:, 0]) for bound in (norm, error))
    found = (torch.where(length > 0, bound / length, torch.inf) for bound in bounds)
    return Estimate(*(torch.where(norm == 0, 0, part) for part in found), 2 * high.products)


def input_jacobian(model: nn.Module, x: Inputs, *, chunk: int = 256) -> Float[Tensor, "batch classes n"]:
    """Derivative of every logit in every input, by one backward pass per class for each chunk of the batch.

    A ValueError refuses a batch that is empty, not finite or of integers, and a model in train mode that couples it.

    Example:
        >>> linear = nn.Linear(2, 3, bias=False)
        >>> torch.equal(input_jacobian(linear, torch.ones(1, 2))[0], linear.weight)
        True
    """
    return torch.cat([jacobian for _, jacobian in _logits_and_jacobians(model, x, chunk)])


def jacobian_of(
    outputs: Float[Tensor, "batch outputs"], x: Inputs, *, constant: bool = False
) -> Float[Tensor, "batch outputs n"]:
    """Derivative of outputs in each entry of `x`, every row from its own example alone.

    A ValueError refuses outputs that were not computed from `x` with gradients on; with `constant` their row is zero.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]], requires_grad=True)
        >>> jacobian_of(x.square(), x).tolist()
        [[[2.0, 0.0], [0.0, 4.0]]]
    """
    guards.mode()
    how = {"retain_graph": True, "allow_unused": True, "materialize_grads": constant}
    live = outputs.requires_grad and x.requires_grad
    with torch.enable_grad():
        rows = [torch.autograd.grad(z.sum(), x, **how)[0] if live else None for z in outputs.unbind(1)]
    if any(row is None for row in rows):
        if not constant:
            raise ValueError("outputs have no graph that leads to x; compute them from x with gradients on")
        rows = [torch.zeros_like(x)] * len(rows)
    return torch.stack([row.flatten(1) for row in rows], 1)


def input_jacobian_norm(model: nn.Module, x: Inputs, *, norm: str = "spectral") -> Estimate:
    """Norm of each image's Jacobian, "spectral" or "frobenius": how fast the logits can move per unit of input change.

    Exact; `products` counts backward passes. Errors as of `input_jacobian`.

    Raises:
        ValueError: an unknown `norm`.

    Example:
        >>> linear = nn.Linear(2, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> found = [input_jacobian_norm(linear, torch.ones(1, 2), norm=name) for name in ("spectral", "frobenius")]
        >>> [round(norm.value.item(), 4) for norm in found]
        [4.0, 5.0]
    """
    norms = {
        "spectral": lambda j: torch.linalg.eigvalsh(j @ j.mT)[:, -1].clamp_min(0).sqrt(),
        "frobenius": lambda j: j.flatten(1).norm(dim=1),
    }
    length = norms[checks.one_of("norm", norm, norms)]
    found = [(length(jacobian), logits.shape[1]) for logits, jacobian in _logits_and_jacobians(model, x)]
    value = torch.cat([part for part, _ in found])
    return Estimate(value, torch.zeros_like(value), found[0][1])


def gram_spectrum(model: nn.Module, x: Inputs, *, chunk: int = 256) -> Estimate:
    """Eigenvalues, ascending, of each image's cross-entropy Hessian, shape (batch, classes); all others are zero.

    Exact where the logits are piecewise linear (ReLU, max-pooling), as their own Hessian is zero almost everywhere: one
    backward pass per class, which `products` counts, and a small eigenproblem instead of Lanczos. For any other network
    this is the Gauss-Newton part. Errors as of `input_jacobian`.

    Example:
        >>> linear = nn.Linear(1, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[1.0], [-1.0]])
        >>> [round(v, 4) for v in gram_spectrum(linear, torch.zeros(1, 1)).value[0].tolist()]  # 4 p (1 - p) at p = 1/2
        [0.0, 1.0]
    """
    found = []
    for logits, jacobian in _logits_and_jacobians(model, x, chunk):
        p = logits.softmax(1)
        b = p.sqrt()[..., None] * (jacobian - torch.einsum("bc,bcn->bn", p, jacobian)[:, None])
        found.append(torch.linalg.eigvalsh(b @ b.mT))
    value = torch.cat(found)
    return Estimate(value, torch.zeros_like(value), value.shape[1])


def _logits_and_jacobians(model: nn.Module, x: Tensor, chunk: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
    checks.count("chunk", chunk)
    checks.floating("x", x)
    guards.usable(model, x, chunk=chunk)
    Audit("model", lambda point, n: weighted(model(point[0][:n]), n), [x], len(x), model)(order=1)
    for images in x.split(chunk):
        at = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = checks.logits("model", model(at), batch=len(at))
        yield logits.detach(), jacobian_of(logits, at, constant=True)


def weighted(outputs: object, n: int) -> PerImage:
    """Sum of each example's logits with random weights, always the same: what the audit of a Jacobian looks at."""
    logits = checks.logits("model", outputs, batch=n)
    return (logits * normal(logits[0].detach(), Generator().manual_seed(0))).sum(1)
