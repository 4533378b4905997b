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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, vmap

from attrobust import curvature
from attrobust.models import readouts
from attrobust.shapes import Images, Labels, PerImage
from attrobust.theory import draws, tally
from attrobust.versions import versioned

Readout = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


def probability(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> PerImage:
    """Probability of class y."""
    return model(x).softmax(1).gather(1, y[:, None])[:, 0]


#: What a statement is tried on: name -> (model, x, y) -> one number per image.
READOUTS: dict[str, Readout] = {"logit": readouts.logit, "loss": readouts.cross_entropy, "probability": probability}


@dataclass(frozen=True)
class FirstLayer:
    """A dense first layer as the transfer sees it.

    Attributes:
        name: of the module.
        matrix: its weights and biases side by side, [W, b].
        jacobian: dh / dx, the weights in pixel units.
        extended: input of the layer with a 1 appended, x~, one row per image.
        spectral: largest singular value of `jacobian`.
    """

    name: str
    matrix: Float[Tensor, "units inputs_and_one"]
    jacobian: Float[Tensor, "units pixels"]
    extended: Float[Tensor, "batch inputs_and_one"]
    spectral: float


def first_dense(model: nn.Module, x: Images) -> FirstLayer:
    """The dense first layer of a network, at these images.

    Args:
        model: network in eval mode; everything before its first layer with weights must be affine.
        x: images.

    Returns:
        FirstLayer.

    Raises:
        ValueError: if the first layer with weights is not a Linear with a bias, or runs on several positions of one
            image: its weights are then shared and bound nothing.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> first_dense(net, torch.rand(5, 1, 2, 2)).extended.shape
        torch.Size([5, 5])
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
            raise ValueError(
                f"the first layer runs on inputs of shape {tuple(seen[0].shape)}; it must see each image once, as a"
                " flat vector, or its weights are shared"
            )
        jacobian = torch.autograd.functional.jacobian(lambda im: (model(im), hidden[-1][0])[1], x[:1]).flatten(1)
    finally:
        handle.remove()
    matrix = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
    extended = torch.cat([seen[0], torch.ones_like(seen[0][:, :1])], dim=1).detach()
    return FirstLayer(name, matrix, jacobian, extended, float(torch.linalg.matrix_norm(jacobian, ord=2)))


def weight_change(
    first: FirstLayer, step: Float[Tensor, "batch pixels"]
) -> Float[Tensor, "batch units inputs_and_one"]:
    """Smallest change of [W, b] that acts on each image like moving it by `step` (P1).

    Args:
        first: the layer, at the images that are moved.
        step: how far each image is moved, flat.
    """
    moved = step @ first.jacobian.T
    return torch.einsum("bu,bi->bui", moved, first.extended) / first.extended.square().sum(1)[:, None, None]


def with_change(
    model: nn.Module,
    x: Images,
    y: Labels,
    change: Float[Tensor, "batch units inputs_and_one"],
    *,
    readout: Readout = readouts.logit,
) -> PerImage:
    """Readout of each image when [W, b] is changed, by another amount for every image; differentiable in it."""
    first = first_dense(model, x)
    return vmap(_lifted(model, first, readout))(first.matrix + change, x, y)


def weight_gradients(
    model: nn.Module, x: Images, y: Labels, *, readout: Readout = readouts.logit
) -> Float[Tensor, "batch units inputs_and_one"]:
    """Gradient of each image's readout in [W, b], by automatic differentiation."""
    first = first_dense(model, x)
    return vmap(grad(_lifted(model, first, readout)), in_dims=(None, 0, 0))(first.matrix, x, y).detach()


def weight_hessians(
    model: nn.Module, x: Images, y: Labels, *, readout: Readout = readouts.logit
) -> Float[Tensor, "batch n n"]:
    """Dense Hessian of each image's readout in [W, b], read row by row; for small first layers."""
    first = first_dense(model, x)
    return dense_hessians(_lifted(model, first, readout), first.matrix, x, y)


def bias_hessians(
    model: nn.Module, x: Images, y: Labels, *, readout: Readout = readouts.logit
) -> Float[Tensor, "batch units units"]:
    """Hessian of each image's readout in the first layer's biases, which is its Hessian in h."""
    return parameter_hessians(model, x, y, of=f"{first_dense(model, x).name}.bias", readout=readout)


def input_hessians(
    model: nn.Module, x: Images, y: Labels, *, readout: Readout = readouts.logit
) -> Float[Tensor, "batch pixels pixels"]:
    """Dense Hessian of each image's readout in its pixels; for small images."""
    n = x[0].numel()

    def value(image: Tensor, label: Tensor) -> Tensor:
        return readout(model, image[None], label[None])[0]

    return torch.stack([hessian(value)(i, c).reshape(n, n) for i, c in zip(x, y, strict=True)]).detach()


def parameter_gradients(
    model: nn.Module, x: Images, y: Labels, *, readout: Readout = readouts.logit, only: str = ""
) -> Float[Tensor, "batch parameters"]:
    """Gradient of each image's readout in one parameter, or in all in the order of `model.parameters()`, flat."""
    weights = {name: p.detach() for name, p in model.named_parameters() if only in ("", name)}
    parts = vmap(grad(of_parameters(model, readout)), in_dims=(None, 0, 0))(weights, x, y)
    return torch.cat([parts[name].flatten(1) for name in weights], dim=1).detach()


def parameter_hessians(
    model: nn.Module, x: Images, y: Labels, *, of: str, readout: Readout = readouts.logit
) -> Float[Tensor, "batch n n"]:
    """Dense Hessian of each image's readout in the parameter called `of`, flat, read row by row."""
    value, weights = of_parameters(model, readout), dict(model.named_parameters())[of].detach()
    return dense_hessians(lambda at, image, label: value({of: at}, image, label), weights, x, y)


def of_parameters(model: nn.Module, readout: Readout) -> Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]:
    """The readout of one image as a function of parameters by name; those that are not named stay."""

    def value(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return readout(lambda images: functional_call(model, weights, (images,)), image[None], label[None])[0]

    return value


def dense_hessians(
    value: Callable[[Tensor, Tensor, Tensor], Tensor], at: Float[Tensor, "..."], x: Images, y: Labels
) -> Float[Tensor, "batch n n"]:
    """Hessian of value(at, image, label) in `at`, flat, for each image and label."""
    whole = [hessian(value)(at, image, label) for image, label in zip(x, y, strict=True)]
    return torch.stack([h.reshape(at.numel(), at.numel()) for h in whole]).detach()


def ascend(
    value: Callable[[Float[Tensor, "batch n"]], PerImage],
    start: Float[Tensor, "batch n"],
    radius: PerImage,
    *,
    steps: int = 10,
) -> Float[Tensor, "batch n"]:
    """Best points found by gradient ascent inside Euclidean balls around the origin, never worse than `start`.

    Args:
        value: differentiable; row i depends on point i alone.
        start: inside the balls.
        radius: of each ball.
        steps: of a quarter radius each, at least 1.
    """
    at, best, reached = start, start, value(start).detach()
    for _ in range(steps):
        at = at.detach().requires_grad_()
        slope = torch.autograd.grad(value(at).sum(), at)[0]
        unit = slope / slope.norm(dim=1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
        at = (at + radius[:, None] / 4 * unit).detach()
        at = at * (radius / at.norm(dim=1).clamp_min(torch.finfo(at.dtype).tiny)).clamp_max(1)[:, None]
        better = value(at).detach() > reached
        best = torch.where(better[:, None], at, best)
        reached = torch.where(better, value(at).detach(), reached)
    return best


def input_gradient_bound(model: nn.Module, x: Images, y: Labels, *, readout: Readout = readouts.logit) -> PerImage:
    """Upper bound on each image's input gradient by its gradient in the first layer (P2).

        |grad_x phi| <= |W|_2 |grad_[W,b] phi|_F / |x~|

    Args:
        model: network in eval mode with a dense first layer.
        x: images.
        y: class each readout refers to.
        readout: (model, x, y) -> one number per image.

    Returns:
        One bound per image, in units of the readout per pixel unit; attained iff dphi/dh is a top left singular
        vector of W.

    Raises:
        ValueError: if the first layer is convolutional or otherwise shared.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 2)).double()
        >>> x, y = torch.rand(3, 1, 2, 2).double(), torch.tensor([0, 1, 1])
        >>> exact = curvature.input_gradient_norm(net, x, y)
        >>> bool(torch.allclose(exact, input_gradient_bound(net, x, y)))
        True

    Reference: Ma and Ying 2021, "On linear stability of SGD and input-smoothness of neural networks".
    """
    first = first_dense(model, x)
    gradients = weight_gradients(model, x, y, readout=readout)
    return first.spectral * gradients.flatten(1).norm(dim=1) / first.extended.norm(dim=1)


def input_curvature_bound(model: nn.Module, x: Images, y: Labels, *, readout: Readout = readouts.logit) -> PerImage:
    """Upper bound on each image's input curvature by its own curvature in the first layer (P3).

        |hess_x phi|_2 <= |W|_2^2 |hess_[W,b] phi|_2 / |x~|^2 = |W|_2^2 |hess_b phi|_2

    The Hessian is that of one image's readout: the Hessian of a mean over images bounds no single one.

    Args:
        model: network in eval mode with a dense first layer.
        x: images.
        y: class each readout refers to.
        readout: (model, x, y) -> one number per image.

    Returns:
        One bound per image.

    Raises:
        ValueError: if the first layer is convolutional or otherwise shared.

    Reference: ours, by differentiating P1 twice.
    """
    first = first_dense(model, x)
    return first.spectral**2 * spectral_norms(bias_hessians(model, x, y, readout=readout))


def all_layers_gradient_bound(
    model: nn.Sequential, x: Images, y: Labels, *, readout: Readout = readouts.logit
) -> PerImage:
    """Upper bound on each image's input gradient by its gradient in all parameters (P2, summed over layers).

        |grad_x phi|^2 sum_l |h~_(l-1)|^2 / (|D_(l-1)|_2^2 |W_l|_2^2) <= |grad_theta phi|^2,    D_l = dh_l / dx

    Args:
        model: dense layers and activations in a row.
        x: images.
        y: class each readout refers to.
        readout: (model, x, y) -> one number per image.

    Raises:
        ValueError: if the first layer is not dense.

    Reference: ours, in the spirit of Dherin et al. 2022, "Why neural networks find simple solutions".
    """
    first_dense(model, x)
    weight = torch.zeros(len(x), dtype=x.dtype)
    for index, layer in enumerate(model):
        if isinstance(layer, nn.Linear):
            front = model[:index]
            entering = front(x).detach().flatten(1).square().sum(1) + 1
            spread = vmap(torch.func.jacrev(lambda im, front=front: front(im[None])[0]))(x).flatten(2).detach()
            stretch = torch.linalg.matrix_norm(spread, ord=2) * torch.linalg.matrix_norm(layer.weight.detach(), ord=2)
            weight += entering / stretch.square().clamp_min(torch.finfo(x.dtype).tiny)
    return parameter_gradients(model, x, y, readout=readout).norm(dim=1) / weight.sqrt()


# ---------------------------------------------------------------------- on random networks


@versioned(1)
@tally.over_cases
def identities(case: int) -> Iterator[pd.DataFrame]:
    """P1 and the identities under P2 and P3, for three readouts."""
    model, x, y = draws.network(case)
    first = first_dense(model, x)
    step = torch.randn(x.flatten(1).shape, generator=torch.Generator().manual_seed(case), dtype=x.dtype)
    lifted = weight_change(first, step)
    for arm, readout in READOUTS.items():
        moved = with_change(model, x, y, lifted, readout=readout)
        yield tally.identity("P1", f"{arm}, moved input", readout(model, x + step.view_as(x), y), moved)
        g = weight_gradients(model, x, y, readout=readout)[:, :, -1]
        exact = curvature.InputHessian(model, x, y, readout=readout).gradient.flatten(1)
        yield tally.identity("P2", f"{arm}, gradient identity", exact, g @ first.jacobian)
        bend = bias_hessians(model, x, y, readout=readout)
        exact = input_hessians(model, x, y, readout=readout)
        yield tally.identity("P3", f"{arm}, Hessian identity", exact, first.jacobian.T @ bend @ first.jacobian)
        whole = weight_hessians(model, x, y, readout=readout)
        outer = torch.stack([torch.kron(h, torch.outer(e, e)) for h, e in zip(bend, first.extended, strict=True)])
        yield tally.identity("P3", f"{arm}, Kronecker identity", whole, outer)


@versioned(1)
@tally.over_cases
def transfer(case: int) -> Iterator[pd.DataFrame]:
    """Both sides of P2 and P3 for three readouts; `spectral` and `ones` are what the wrong variants need."""
    model, x, y = draws.network(case)
    first = first_dense(model, x)
    ones = (first.extended.norm(dim=1) / first.extended.norm(p=1, dim=1)).numpy()
    bound = partial(tally.bound, spectral=first.spectral, ones=ones)
    for arm, readout in READOUTS.items():
        slope = curvature.input_gradient_norm(model, x, y, readout=readout)
        yield bound("P2", arm, slope, input_gradient_bound(model, x, y, readout=readout))
        everywhere = all_layers_gradient_bound(model, x, y, readout=readout)
        yield bound("P2", f"{arm}, all layers", slope, everywhere)
        bend = spectral_norms(input_hessians(model, x, y, readout=readout))
        yield bound("P3", arm, bend, input_curvature_bound(model, x, y, readout=readout))


@versioned(1)
@tally.over_cases
def radii(case: int) -> Iterator[pd.DataFrame]:
    """P7: an input attack against a weight attack of the matching radius; and one weight change for a batch."""
    model, x, y = draws.network(case)
    first, rho = first_dense(model, x), 10 ** np.random.default_rng(case).uniform(-2, 0.5)
    radius = rho * first.extended.norm(dim=1) / first.spectral

    def moved(step: Tensor) -> Tensor:
        return readouts.cross_entropy(model, x + step.view_as(x), y)

    def changed(change: Tensor) -> Tensor:
        by_image = change.view(len(x), *first.matrix.shape)
        return with_change(model, x, y, by_image, readout=readouts.cross_entropy)

    attacked = ascend(moved, torch.zeros_like(x.flatten(1)), radius)
    lifted = weight_change(first, attacked).flatten(1)
    sharp = ascend(changed, lifted, torch.full_like(radius, rho))
    after = moved(attacked)
    yield tally.bound("P7", "size of the weight change", lifted.norm(dim=1), rho)
    yield tally.identity("P7", "loss, moved input", after, changed(lifted))
    yield tally.bound("P7", "input attack and per-image SAM", after, changed(sharp))
    # Linear readouts s_i (w . x_i) of random signs: the best shared change is along the mean of s_i x~_i.
    signs = torch.where(y > 0, 1.0, -1.0).to(x)[:, None]
    mean, shared = first.extended.norm(dim=1).mean(), (signs * first.extended).mean(0).norm()
    yield tally.bound("P7", "with one change for the batch", rho * mean, rho * shared, holds=False)


def spectral_norms(matrices: Float[Tensor, "batch rows columns"]) -> PerImage:
    """Largest singular value of each matrix."""
    return torch.linalg.matrix_norm(matrices, ord=2)


def _lifted(model: nn.Module, first: FirstLayer, readout: Readout) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The readout of one image as a function of [W, b]."""
    value, weight, bias = of_parameters(model, readout), f"{first.name}.weight", f"{first.name}.bias"
    return lambda matrix, image, label: value({weight: matrix[:, :-1], bias: matrix[:, -1]}, image, label)
