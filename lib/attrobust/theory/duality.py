"""Moving the input is moving the first layer: what the parameters of a dense first layer know about the pixels.

With first layer h = W x + b, extended input x~ = (x, 1) and any readout phi of the network,

    P1   phi(x + d; [W, b]) = phi(x; [W, b] + (W d) x~^T / |x~|^2)
    P2   |grad_x phi|   <= |W|_2   |grad_[W,b] phi| / |x~|,       since  grad_x = W^T g,  grad_[W,b] = g x~^T
    P3   |hess_x phi|_2 <= |W|_2^2 |hess_[W,b] phi|_2 / |x~|^2,   since  hess_[W,b] = hess_b (x) x~ x~^T

P1 after Feng and Tu 2022, P2 after Ma and Ying 2021 (bias forms ours), P3 ours as written. By P1 an input attack of
radius rho |x~| / |W|_2 does no more than a change of [W, b] of size rho, image by image (P7). Only a dense layer that
every pixel enters with its own weight will do; shared weights (convolutions, patch embeddings) break all of these.
Whatever stands before that layer must be affine (flattening, standardisation); W is then dh/dx in pixel units.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

from attrobust import curvature
from attrobust.models import readouts
from attrobust.models.readouts import logit
from attrobust.shapes import Images, Labels, PerImage
from attrobust.theory import draws
from attrobust.theory.tally import Cases, bound, identity, trial

Readout = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]
Changes = Float[Tensor, "batch units inputs_and_one"]
Matrices = Float[Tensor, "batch n n"]


#: What a statement is tried on: name -> (model, x, y) -> one number per image.
READOUTS: dict[str, Readout] = {
    "logit": logit,
    "loss": readouts.cross_entropy,
    "probability": lambda model, x, y: model(x).softmax(1).gather(1, y[:, None])[:, 0],
}


@dataclass(frozen=True)
class FirstLayer:
    """A dense first layer as the transfer sees it."""

    name: str
    matrix: Float[Tensor, "units inputs_and_one"]  # [W, b], weights and biases side by side
    jacobian: Float[Tensor, "units pixels"]  # dh / dx, the weights in pixel units
    extended: Float[Tensor, "batch inputs_and_one"]  # x~, the input of the layer with a 1 appended
    spectral: float  # largest singular value of the jacobian


def first_dense(model: nn.Module, x: Images) -> FirstLayer:
    """The dense first layer, at these images, of a network in eval mode that is affine before it.

    Raises ValueError if the first layer with weights is not a Linear with a bias, or runs on several positions of one
    image: its weights are then shared and bound nothing.
    """
    name, layer = curvature.first_layer(model)
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        kind = "Linear without a bias" if isinstance(layer, nn.Linear) else type(layer).__name__
        raise ValueError(f"the first layer is {kind}; the transfer needs a dense first layer (Linear with bias)")
    seen, hidden = [], []

    def note(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append(inputs[0])
        hidden.append(output)

    handle = layer.register_forward_hook(note)
    try:
        model(x)
        if len(seen) != 1 or seen[0].ndim != 2:
            shape = f"the first layer runs on inputs of shape {tuple(seen[0].shape)}"
            raise ValueError(f"{shape}; it must see each image once, as a flat vector, or its weights are shared")
        jacobian = torch.autograd.functional.jacobian(lambda im: (model(im), hidden[-1][0])[1], x[:1]).flatten(1)
    finally:
        handle.remove()
    matrix = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
    extended = torch.cat([seen[0], torch.ones_like(seen[0][:, :1])], dim=1).detach()
    return FirstLayer(name, matrix, jacobian, extended, float(torch.linalg.matrix_norm(jacobian, ord=2)))


def weight_change(first: FirstLayer, step: Float[Tensor, "batch pixels"]) -> Changes:
    """Smallest change of [W, b] that acts on each image of `first` like moving it by the flat `step` (P1)."""
    moved = step @ first.jacobian.T
    return torch.einsum("bu,bi->bui", moved, first.extended) / first.extended.square().sum(1)[:, None, None]


def with_change(model: nn.Module, x: Images, y: Labels, change: Changes, *, readout: Readout = logit) -> PerImage:
    """Readout of each image when [W, b] is changed, by another amount for every image; differentiable in it."""
    first = first_dense(model, x)
    return vmap(_of_matrix(model, first, readout))(first.matrix + change, x, y)


def weight_gradients(model: nn.Module, x: Images, y: Labels, *, readout: Readout = logit) -> Changes:
    """Gradient of each image's readout in [W, b], by automatic differentiation."""
    first = first_dense(model, x)
    return vmap(grad(_of_matrix(model, first, readout)), in_dims=(None, 0, 0))(first.matrix, x, y).detach()


def input_hessians(model: nn.Module, x: Images, y: Labels, *, readout: Readout = logit) -> Matrices:
    """Dense Hessian of each image's readout in its pixels; for small images."""

    def value(image: Tensor, label: Tensor) -> Tensor:
        return readout(model, image[None], label[None])[0]

    return _square(hessian(value)(image, label) for image, label in zip(x, y, strict=True))


def parameter_gradients(
    model: nn.Module, x: Images, y: Labels, *, readout: Readout = logit, only: str = ""
) -> Float[Tensor, "batch parameters"]:
    """Gradient of each image's readout in one parameter, or in all in the order of `model.parameters()`, flat."""
    weights = {name: p.detach() for name, p in model.named_parameters() if only in ("", name)}
    parts = vmap(grad(_of_parameters(model, readout)), in_dims=(None, 0, 0))(weights, x, y)
    return torch.cat([parts[name].flatten(1) for name in weights], dim=1).detach()


def parameter_hessians(model: nn.Module, x: Images, y: Labels, *, of: str, readout: Readout = logit) -> Matrices:
    """Dense Hessian of each image's readout in the parameter called `of`, flat."""
    value, weights = _of_parameters(model, readout), dict(model.named_parameters())[of].detach()
    return _hessians(lambda at, image, label: value({of: at}, image, label), weights, x, y)


def input_gradient_bound(model: nn.Module, x: Images, y: Labels, *, readout: Readout = logit) -> PerImage:
    """Upper bound on each image's input gradient by its gradient in the first layer (P2).

        |grad_x phi| <= |W|_2 |grad_[W,b] phi|_F / |x~|

    In units of the readout per pixel unit; attained iff dphi/dh is a top left singular vector of W. Ma and Ying 2021,
    "On linear stability of SGD and input-smoothness of neural networks". Raises ValueError if the first layer is
    convolutional or otherwise shared.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 2)).double()
        >>> x, y = torch.rand(3, 1, 2, 2).double(), torch.tensor([0, 1, 1])
        >>> bool(torch.allclose(curvature.input_gradient_norm(net, x, y), input_gradient_bound(net, x, y)))
        True
    """
    first = first_dense(model, x)
    gradients = weight_gradients(model, x, y, readout=readout)
    return first.spectral * gradients.flatten(1).norm(dim=1) / first.extended.norm(dim=1)


def input_curvature_bound(model: nn.Module, x: Images, y: Labels, *, readout: Readout = logit) -> PerImage:
    """Upper bound on each image's input curvature by its own curvature in the first layer (P3).

        |hess_x phi|_2 <= |W|_2^2 |hess_[W,b] phi|_2 / |x~|^2 = |W|_2^2 |hess_b phi|_2

    The Hessian is that of one image's readout: the Hessian of a mean over images bounds no single one. Ours, by
    differentiating P1 twice. Raises ValueError if the first layer is convolutional or otherwise shared.
    """
    first = first_dense(model, x)
    return first.spectral**2 * spectral_norms(parameter_hessians(model, x, y, of=f"{first.name}.bias", readout=readout))


def all_layers_gradient_bound(model: nn.Sequential, x: Images, y: Labels, *, readout: Readout = logit) -> PerImage:
    """Upper bound on each image's input gradient by its gradient in all parameters (P2, summed over layers).

        |grad_x phi|^2 sum_l |h~_(l-1)|^2 / (|D_(l-1)|_2^2 |W_l|_2^2) <= |grad_theta phi|^2,    D_l = dh_l / dx

    The model must be dense layers and activations in a row. Ours, in the spirit of Dherin et al. 2022, "Why neural
    networks find simple solutions". Raises ValueError if the first layer is not dense.
    """
    first_dense(model, x)
    weight = torch.zeros(len(x), dtype=x.dtype)
    for index, layer in enumerate(model):
        if isinstance(layer, nn.Linear):
            front = model[:index]
            entering = front(x).detach().flatten(1).square().sum(1) + 1
            spread = vmap(jacrev(lambda im, front=front: front(im[None])[0]))(x).flatten(2).detach()
            stretch = spectral_norms(spread) * torch.linalg.matrix_norm(layer.weight.detach(), ord=2)
            weight += entering / stretch.square().clamp_min(torch.finfo(x.dtype).tiny)
    return parameter_gradients(model, x, y, readout=readout).norm(dim=1) / weight.sqrt()


def spectral_norms(matrices: Float[Tensor, "batch rows columns"]) -> PerImage:
    """Largest singular value of each matrix."""
    return torch.linalg.matrix_norm(matrices, ord=2)


@trial(version=1)
def identities(case: int) -> Cases:
    """P1 and the identities under P2 and P3, for three readouts."""
    model, x, y = draws.network(case)
    first, step = first_dense(model, x), draws.Source(case).normal(len(x), x[0].numel())
    for arm, readout in READOUTS.items():
        moved = with_change(model, x, y, weight_change(first, step), readout=readout)
        yield identity("P1", f"{arm}, moved input", readout(model, x + step.view_as(x), y), moved)
        g = weight_gradients(model, x, y, readout=readout)[:, :, -1]
        exact = curvature.InputHessian(model, x, y, readout=readout).gradient.flatten(1)
        yield identity("P2", f"{arm}, gradient identity", exact, g @ first.jacobian)
        bend = parameter_hessians(model, x, y, of=f"{first.name}.bias", readout=readout)
        exact = input_hessians(model, x, y, readout=readout)
        yield identity("P3", f"{arm}, Hessian identity", exact, first.jacobian.T @ bend @ first.jacobian)
        whole = _hessians(_of_matrix(model, first, readout), first.matrix, x, y)
        outer = torch.stack([torch.kron(h, torch.outer(e, e)) for h, e in zip(bend, first.extended, strict=True)])
        yield identity("P3", f"{arm}, Kronecker identity", whole, outer)


@trial(version=1)
def transfer(case: int) -> Cases:
    """Both sides of P2 and P3 for three readouts; `spectral` and `ones` are what the wrong variants need."""
    model, x, y = draws.network(case)
    first = first_dense(model, x)
    ones = (first.extended.norm(dim=1) / first.extended.norm(p=1, dim=1)).numpy()
    both = partial(bound, spectral=first.spectral, ones=ones)
    for arm, readout in READOUTS.items():
        slope = curvature.input_gradient_norm(model, x, y, readout=readout)
        yield both("P2", arm, slope, input_gradient_bound(model, x, y, readout=readout))
        yield both("P2", f"{arm}, all layers", slope, all_layers_gradient_bound(model, x, y, readout=readout))
        bend = spectral_norms(input_hessians(model, x, y, readout=readout))
        yield both("P3", arm, bend, input_curvature_bound(model, x, y, readout=readout))


@trial(version=1)
def radii(case: int) -> Cases:
    """P7: an input attack against a weight attack of the matching radius; and one weight change for a batch."""
    model, x, y = draws.network(case)
    first, rho = first_dense(model, x), 10 ** np.random.default_rng(case).uniform(-2, 0.5)
    radius = rho * first.extended.norm(dim=1) / first.spectral

    def moved(step: Tensor) -> Tensor:
        return readouts.cross_entropy(model, x + step.view_as(x), y)

    def changed(change: Tensor) -> Tensor:
        return with_change(model, x, y, change.view(len(x), *first.matrix.shape), readout=readouts.cross_entropy)

    attacked = _ascend(moved, torch.zeros_like(x.flatten(1)), radius)
    lifted, after = weight_change(first, attacked).flatten(1), moved(attacked)
    sharp = _ascend(changed, lifted, torch.full_like(radius, rho))
    yield bound("P7", "size of the weight change", lifted.norm(dim=1), rho)
    yield identity("P7", "loss, moved input", after, changed(lifted))
    yield bound("P7", "input attack and per-image SAM", after, changed(sharp))
    # Linear readouts s_i (w . x_i) of random signs: the best shared change is along the mean of s_i x~_i.
    signs = torch.where(y > 0, 1.0, -1.0).to(x)[:, None]
    mean, shared = first.extended.norm(dim=1).mean(), (signs * first.extended).mean(0).norm()
    yield bound("P7", "with one change for the batch", rho * mean, rho * shared, holds=False)


def _ascend(value: Callable[[Tensor], Tensor], start: Tensor, radius: PerImage) -> Tensor:
    """Best points of ten steps of ascent, each row in its Euclidean ball around the origin, never below `start`."""
    tiny = torch.finfo(start.dtype).tiny
    at, best, reached = start, start, value(start).detach()
    for _ in range(10):
        at = at.detach().requires_grad_()
        slope = torch.autograd.grad(value(at).sum(), at)[0]
        at = (at + radius[:, None] / 4 * (slope / slope.norm(dim=1, keepdim=True).clamp_min(tiny))).detach()
        at = at * (radius / at.norm(dim=1).clamp_min(tiny)).clamp_max(1)[:, None]
        found = value(at).detach()
        better = found > reached
        best, reached = torch.where(better[:, None], at, best), torch.where(better, found, reached)
    return best


def _of_parameters(model: nn.Module, readout: Readout) -> Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]:
    """The readout of one image as a function of parameters by name; those that are not named stay."""

    def value(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return readout(lambda images: functional_call(model, weights, (images,)), image[None], label[None])[0]

    return value


def _of_matrix(model: nn.Module, first: FirstLayer, readout: Readout) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The readout of one image as a function of [W, b]."""
    value, weight, bias = _of_parameters(model, readout), f"{first.name}.weight", f"{first.name}.bias"
    return lambda matrix, image, label: value({weight: matrix[:, :-1], bias: matrix[:, -1]}, image, label)


def _hessians(value: Callable[[Tensor, Tensor, Tensor], Tensor], at: Tensor, x: Images, y: Labels) -> Tensor:
    """Hessian of value(at, image, label) in `at` for each image and label."""
    return _square(hessian(value)(at, image, label) for image, label in zip(x, y, strict=True))


def _square(hessians: Iterable[Tensor]) -> Matrices:
    """Hessians in tensors of any shape as matrices."""
    return torch.stack([h.reshape(math.isqrt(h.numel()), -1) for h in hessians]).detach()
