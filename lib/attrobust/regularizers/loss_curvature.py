"""How much the loss bends in the pixels, as penalties: its Hessian's top eigenvalue, or what a short step changes.

    SSR    max |eigenvalue of H|,   H = d2 loss / dx2                      Wang et al. 2020, eq. 8
           H = J' (diag p - p p') J = (L'J)' (L'J),   L = diag(sqrt p) - p sqrt(p)'    for piecewise linear logits J x
    CURE   |grad loss(x + h z) - grad loss(x)|^2,   z = sign(grad loss(x)) / |sign(grad loss(x))|

An eigenvalue's slope in the weights is that of its Rayleigh quotient v'Hv with the eigenvector held fixed
(Hellmann and Feynman). So eigenvectors are found without a graph, one product is differentiated, and no slope of an
eigenvector, which does not exist where eigenvalues meet, is ever taken.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust import checks, curvature
from attrobust.curvature.spectra import lanczos, signs
from attrobust.models.derivatives import again
from attrobust.models.readouts import cross_entropy
from attrobust.regularizers.input_gradient import leaf, live_gradient
from attrobust.shapes import Images, Labels, PerImage
from attrobust.versions import versioned


@versioned(1)
def ssr(model: nn.Module, x: Images, y: Labels, *, channels: str = "all") -> PerImage:
    """Largest eigenvalue of the loss's Hessian at each image, of logits that are piecewise linear; y is not read.

    Smoothed surface regularisation, by the C x C matrix of C classes: C plain backward passes and one that is
    differentiated. Of smooth networks this is the Gauss-Newton part. With `channels` "mean" the Jacobian is averaged
    over colour channels first, as the original does: that is no eigenvalue, and can be zero where channels cancel.

    Raises:
        ValueError: `channels` that are neither "all" nor "mean", or what `input_gradient` refuses.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> linear[1].weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> p = ssr(linear, torch.zeros(1, 1, 1, 2), torch.tensor([0]))  # p (1 - p) at p = 1/2
        >>> round(p.item(), 4)
        0.25
    """
    checks.one_of("channels", channels, ("all", "mean"))
    at = leaf(model, x)
    logits = model(at)
    logs = F.log_softmax(logits, 1)
    p, root = logs.exp(), (logs / 2).exp()  # of logs, so that a class of no probability has a slope, of zero
    jacobian = curvature.jacobian_of(logits, at).to(p)
    if channels == "mean":
        jacobian = jacobian.unflatten(2, (x.shape[1], -1)).mean(2)
    b = root.detach()[..., None] * (jacobian - torch.einsum("bc,bcn->bn", p.detach(), jacobian)[:, None])
    gram = b @ b.mT
    real = gram.isfinite().all((1, 2), keepdim=True)  # a network that diverged is told by its loss, not by an error
    top = torch.linalg.eigh(torch.where(real, gram, 0)).eigenvectors[..., -1]
    mix = root * top - p * (root * top).sum(1, keepdim=True)  # L v
    (slope,) = torch.autograd.grad(logits, at, mix, create_graph=True)  # J' L v
    return (slope.mean(1) if channels == "mean" else slope).flatten(1).square().sum(1)


@versioned(1)
def ssr_lanczos(model: nn.Module, x: Images, y: Labels, *, generator: torch.Generator, steps: int = 5) -> PerImage:
    """Largest absolute eigenvalue of the loss's whole Hessian at each image, by so many products, however many classes.

    Lanczos finds it from below: on a few hundred pixels five steps reach a few per cent. A network without bends in its
    loss has none, 0.

    Raises:
        ValueError: `steps` below 1, or what `input_gradient` refuses.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> linear[1].weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> x, y = torch.zeros(1, 1, 1, 2), torch.tensor([0])
        >>> round(ssr_lanczos(linear, x, y, generator=torch.Generator()).item(), 4)  # as `ssr`
        0.25
    """
    at = leaf(model, x)
    slope = live_gradient(cross_entropy(model, at, y), at)
    draw = signs(tuple(at.flatten(1).shape), at, generator)
    if not slope.requires_grad:
        return slope.new_zeros(len(x))

    def times(v: Tensor, **graph: bool) -> Tensor:
        with again(slope):
            (product,) = torch.autograd.grad(slope, at, v.view_as(at), **graph)
        return product.flatten(1)

    low, high = lanczos(lambda v: times(v, retain_graph=True).nan_to_num(), draw, steps=steps)
    upper = high.value.abs() >= low.value.abs()
    vector = torch.where(upper[:, None], high.vector, low.vector)
    return (times(vector, create_graph=True) * vector).sum(1).abs()


@versioned(1)
def cure(model: nn.Module, x: Images, y: Labels, *, length: float = 1.5) -> PerImage:
    """Squared change of the loss's gradient over a step of this Euclidean length along its own signs.

    Raises:
        ValueError: a `length` that is not above 0, or what `input_gradient` refuses.

    Example:
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.full((1, 1, 2, 2), 0.5)
        >>> _ = linear[1].weight.data.zero_()
        >>> cure(linear, x, torch.tensor([0])).item()  # of a constant network the gradient does not change
        0.0

    Reference: Moosavi-Dezfooli et al. 2019, "Robustness via curvature regularization, and vice versa", eq. 6, whose
    largest length is the default; their factor 1 / length^2 is left to the strength.
    """
    at = leaf(model, x)
    slope = live_gradient(cross_entropy(model, at, y), at)
    way = slope.detach().sign()
    size = way.flatten(1).norm(dim=1).clamp_min(1).view(-1, *(1,) * (x.ndim - 1))
    moved = (x.detach() + checks.positive("length", length) * way / size).requires_grad_()
    return (live_gradient(cross_entropy(model, moved, y), moved) - slope).flatten(1).square().sum(1)
