"""Moving the input is moving the first layer: what the parameters of a dense first layer know about the pixels.

With first layer h = W x + b, extended input x~ = (x, 1) and any readout phi of the network,

    P1   phi(x + d; [W, b]) = phi(x; [W, b] + (W d) x~^T / |x~|^2)
    P2   |grad_x phi|   <= |W|_2   |grad_[W,b] phi| / |x~|,       since  grad_x = W^T g,  grad_[W,b] = g x~^T
    P3   |hess_x phi|_2 <= |W|_2^2 |hess_[W,b] phi|_2 / |x~|^2,   since  hess_[W,b] = hess_b (x) x~ x~^T

P1 after Feng and Tu 2022, P2 after Ma and Ying 2021, "On linear stability of SGD and input-smoothness of neural
networks" (bias forms ours), P3 ours, P1 differentiated twice. By P1 an input attack of radius rho |x~| / |W|_2 does no
more than a change of [W, b] of size rho, image by image (P7). Whatever stands before that layer must be affine
(flattening, standardisation); W is then dh/dx in pixel units.

Only a dense layer that every pixel enters with its own weight will do, or a ValueError is raised. A convolution (or a
patch embedding) uses one kernel at many positions: its gradient sums what the positions say, and the sum may vanish
while the pixels matter. In a vision transformer the learned position embedding Pos is an un-shared bias on every token:
with Z = X E^T + Pos and anything after Z, and likewise with |E|_2^2 for the Hessians (P4, ours),

    phi(X + D; Pos) = phi(X; Pos + D E^T),   grad_X = (grad_Pos) E,   |grad_X| <= |E|_2 |grad_Pos|

Smooth surface regularisation (SSR, Wang et al. 2020) punishes the top eigenvalue of the loss's input Hessian. For a
network that is piecewise linear in x, cross-entropy, p = softmax(z) and S = diag(p) - p p^T, almost everywhere

    hess_x loss = J_x^T S J_x,    hess_W loss = (J_h^T S J_h) (x) x x^T,    lambda_max(hess_x loss) <= |J_x|_2^2 / 2

    mean_i |x_i|^2 lambda_max(hess_x loss_i)  <=  |W|_2^2 mean_i lambda_max(hess_W loss_i)  <=  |W|_2^2 tr H_W

so the penalty, averaged over the training set, lies under a flatness that re-scaling cannot change (P6, ours).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

from attrobust import curvature
from attrobust.models import readouts
from attrobust.models.readouts import Readout, logit
from attrobust.shapes import Images, Labels, PerImage
from attrobust.theory import draws
from attrobust.theory.tally import Cases, NamedValues, bound, identity, named_values, trial

OfImage = Callable[[Tensor, Tensor, Tensor], Tensor]
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
    """A dense first layer as the transfer sees it.

    Example:
        >>> model, x, _ = draws.network(0)
        >>> first = first_dense(model, x)
        >>> first.extended[:, -1].tolist()  # the 1 that stands for the bias
        [1.0, 1.0, 1.0]
    """

    name: str
    matrix: Float[Tensor, "units inputs_and_one"]  # [W, b], weights and biases side by side
    jacobian: Float[Tensor, "units pixels"]  # dh / dx, the weights in pixel units
    extended: Float[Tensor, "batch inputs_and_one"]  # x~, the input of the layer with a 1 appended
    spectral: float  # largest singular value of the jacobian


def first_dense(model: nn.Module, x: Images) -> FirstLayer:
    """The dense first layer, at these images, of a network in eval mode that is affine before it; else a ValueError.

    Example:
        >>> model, x, _ = draws.network(0)
        >>> first_dense(model, x).name
        '1'
    """
    name, layer = curvature.first_layer(model)
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        kind = "Linear without a bias" if isinstance(layer, nn.Linear) else type(layer).__name__
        raise ValueError(f"the first layer is {kind}; the transfer needs a dense first layer (Linear with bias)")
    calls = []  # what enters and leaves the layer
    with layer.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output))):
        model(x)
        seen = calls[0][0]
        if len(calls) != 1 or seen.ndim != 2:
            shape = f"the first layer runs on inputs of shape {tuple(seen.shape)}"
            raise ValueError(f"{shape}; it must see each image once, as a flat vector, or its weights are shared")
        jacobian = torch.autograd.functional.jacobian(lambda im: (model(im), calls[-1][1][0])[1], x[:1]).flatten(1)
    matrix = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
    extended = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1).detach()
    return FirstLayer(name, matrix, jacobian, extended, float(torch.linalg.matrix_norm(jacobian, ord=2)))


def weight_change(first: FirstLayer, step: Float[Tensor, "batch pixels"]) -> Changes:
    """Smallest change of [W, b] that acts on each image of `first` like moving it by the flat `step` (P1).

    Example:
        >>> model, x, y = draws.network(0)
        >>> step = torch.full_like(x.flatten(1), 0.1)
        >>> change = weight_change(first_dense(model, x), step)
        >>> torch.allclose(with_change(model, x, y, change), logit(model, x + 0.1, y))
        True
    """
    moved = step @ first.jacobian.T
    return torch.einsum("bu,bi->bui", moved, first.extended) / first.extended.square().sum(1)[:, None, None]


def with_change(model: nn.Module, x: Images, y: Labels, change: Changes, *, readout: Readout = logit) -> PerImage:
    """Readout of each image when [W, b] is changed, by another amount for every image; differentiable in it.

    Example:
        >>> model, x, y = draws.network(0)
        >>> nothing = torch.zeros_like(weight_gradients(model, x, y))
        >>> torch.allclose(with_change(model, x, y, nothing), logit(model, x, y))
        True
    """
    first = first_dense(model, x)
    return vmap(_of_matrix(model, first, readout))(first.matrix + change, x, y)


def weight_gradients(model: nn.Module, x: Images, y: Labels, *, readout: Readout = logit) -> Changes:
    """Gradient of each image's readout in [W, b], by automatic differentiation.

    Example:
        >>> model, x, y = draws.network(0)
        >>> weight_gradients(model, x, y).shape[1:] == first_dense(model, x).matrix.shape
        True
    """
    first = first_dense(model, x)
    return vmap(grad(_of_matrix(model, first, readout)), in_dims=(None, 0, 0))(first.matrix, x, y).detach()


def input_hessians(model: nn.Module, x: Images, y: Labels, *, readout: Readout = logit) -> Matrices:
    """Dense Hessian of each image's readout in its pixels; for small images.

    Example:
        >>> model, x, y = draws.network(0)
        >>> found = input_hessians(model, x, y)
        >>> torch.allclose(found, found.mT)
        True
    """
    return _hessians(lambda at, _, label: readout(model, at[None], label[None])[0], x, x, y)


def parameter_gradients(
    model: nn.Module, x: Images, y: Labels, *, readout: Readout = logit, only: str = ""
) -> Float[Tensor, "batch parameters"]:
    """Gradient of each image's readout in one parameter, or in all in the order of `model.parameters()`, flat.

    Example:
        >>> model, x, y = draws.network(0)
        >>> parameter_gradients(model, x, y).shape[1] == sum(p.numel() for p in model.parameters())
        True
    """
    weights = {name: p.detach() for name, p in model.named_parameters() if only in ("", name)}
    parts = vmap(grad(_of_parameters(model, readout)), in_dims=(None, 0, 0))(weights, x, y)
    return torch.cat([parts[name].flatten(1) for name in weights], dim=1).detach()


def parameter_hessians(model: nn.Module, x: Images, y: Labels, *, of: str, readout: Readout = logit) -> Matrices:
    """Dense Hessian of each image's readout in the parameter called `of`, flat.

    Example:
        >>> model, x, y = draws.network(0)
        >>> found = parameter_hessians(model, x, y, of="1.bias")
        >>> torch.allclose(found, found.mT)
        True
    """
    value, weights = _of_parameters(model, readout), dict(model.named_parameters())[of].detach()
    return _hessians(lambda at, image, label: value({of: at}, image, label), [weights] * len(x), x, y)


def input_gradient_bound(model: nn.Module, x: Images, y: Labels, *, readout: Readout = logit) -> PerImage:
    """Upper bound on each image's input gradient by its gradient in the first layer, per pixel unit (P2).

    Attained iff dphi/dh is a top left singular vector of W.

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
    """Upper bound on each image's input curvature by its own, |W|_2^2 |hess_b phi|_2, in the first layer (P3).

    Example:
        >>> model, x, y = draws.network(0)
        >>> bool((spectral_norms(input_hessians(model, x, y)) <= input_curvature_bound(model, x, y) + 1e-9).all())
        True
    """
    first = first_dense(model, x)
    return first.spectral**2 * spectral_norms(parameter_hessians(model, x, y, of=f"{first.name}.bias", readout=readout))


def all_layers_gradient_bound(model: nn.Sequential, x: Images, y: Labels, *, readout: Readout = logit) -> PerImage:
    """Upper bound on each image's input gradient by its gradient in all parameters (P2, summed over layers).

        |grad_x phi|^2 sum_l |h~_(l-1)|^2 / (|D_(l-1)|_2^2 |W_l|_2^2) <= |grad_theta phi|^2,    D_l = dh_l / dx

    For dense layers and activations in a row. Ours, in the spirit of Dherin et al. 2022, "Why neural networks find
    simple solutions".

    Example:
        >>> model, x, y = draws.network(0)
        >>> slope = curvature.input_gradient_norm(model, x, y)
        >>> bool((slope <= all_layers_gradient_bound(model, x, y) + 1e-9).all())
        True
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
    """Largest singular value of each matrix.

    Example:
        >>> [round(norm, 4) for norm in spectral_norms(torch.tensor([[[3.0, 0.0], [0.0, -4.0]]])).tolist()]
        [4.0]
    """
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
        whole = _hessians(_of_matrix(model, first, readout), [first.matrix] * len(x), x, y)
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


class TinyTransformer(nn.Module):
    """One float64 softmax-attention block over square patches, which must fit, with a learned position embedding.

    Example:
        >>> model = TinyTransformer(4, patch=2, dim=3, classes=2, generator=torch.Generator().manual_seed(0))
        >>> model(torch.zeros(1, 1, 4, 4, dtype=torch.float64)).shape
        torch.Size([1, 2])
    """

    def __init__(self, side: int, *, patch: int, dim: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        if side % patch:
            raise ValueError(f"patch is {patch}; it must divide side, {side}")
        self.patch = patch
        sizes = {"embedding": (dim, patch**2), "position": ((side // patch) ** 2, dim)}
        sizes |= dict.fromkeys(("query", "key", "value"), (dim, dim))
        sizes |= {"hidden": (2 * dim, dim), "head": (classes, 2 * dim)}
        for name, shape in sizes.items():
            draw = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(draw / shape[1] ** 0.5))

    def tokens(self, x: Images) -> Float[Tensor, "batch tokens pixels"]:
        """Patches of each image, row by row."""
        return nn.functional.unfold(x, self.patch, stride=self.patch).mT

    def forward(self, x: Images) -> Float[Tensor, "batch classes"]:
        """Logits of each image."""
        z = self.tokens(x) @ self.embedding.T + self.position
        scores = (z @ self.query.T) @ (z @ self.key.T).mT / math.sqrt(z.shape[-1])
        z = z + scores.softmax(-1) @ (z @ self.value.T)
        return torch.tanh(z @ self.hidden.T).mean(1) @ self.head.T


class DifferenceDetector(nn.Module):
    """The exact counterexample phi = tanh(k x_1) - tanh(k x_2): at x_1 = x_2 all derivatives in k vanish.

    Example:
        >>> DifferenceDetector(2.0)(torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)).item()
        0.0
    """

    kernel: nn.Module

    def __init__(self, kernel: float) -> None:
        super().__init__()
        self.kernel = nn.utils.skip_init(nn.Conv2d, 1, 1, 1, bias=False, dtype=torch.float64)
        nn.init.constant_(self.kernel.weight, kernel)

    def forward(self, x: Images) -> Float[Tensor, "batch 1"]:
        """The readout, as a single logit."""
        h = torch.tanh(self.kernel(x)).flatten(1)
        return (h[:, 0] - h[:, 1])[:, None]


@trial(version=1)
def transformers(case: int) -> Cases:
    """P4 on a random one-block transformer; and P2 misused through the kernel of a difference detector."""
    g = draws.Source(case)
    model = TinyTransformer(4, patch=2, dim=3, classes=3, generator=g.generator)
    x, y = g.uniform(2, 1, 4, 4), torch.randint(0, 3, (2,), generator=g.generator)
    stretch = torch.linalg.matrix_norm(model.embedding.detach(), ord=2)
    for arm, readout in READOUTS.items():
        slope = curvature.input_gradient_norm(model, x, y, readout=readout)
        position = parameter_gradients(model, x, y, readout=readout, only="position").norm(dim=1)
        yield bound("P4 gradient", f"transformer, {arm}", slope, stretch * position)
        bend = spectral_norms(input_hessians(model, x, y, readout=readout))
        position = spectral_norms(parameter_hessians(model, x, y, of="position", readout=readout))
        yield bound("P4 curvature", f"transformer, {arm}", bend, stretch.square() * position)
    kernel, gap = np.random.default_rng(case).uniform((0.5, -6.0), (2.5, 0.0))
    shared, label = DifferenceDetector(float(kernel)), torch.tensor([0])
    pixels = torch.tensor([1.0, 1.0 - 10.0**gap], dtype=torch.float64).view(1, 1, 1, 2)
    slope = curvature.input_gradient_norm(shared, pixels, label)
    limit = kernel * parameter_gradients(shared, pixels, label).norm(dim=1) / pixels.norm()
    yield bound("P2", "through a shared kernel", slope, limit, holds=False)


@named_values(version=1)
def detector(kernels: Sequence[float]) -> NamedValues:
    """Derivatives of the difference detector at (1, 1), in its kernel and in the pixels, for several kernels."""
    x, y = torch.ones(1, 1, 1, 2, dtype=torch.float64), torch.tensor([0])
    for kernel in kernels:
        model = DifferenceDetector(kernel)
        numbers = {
            "gradient in the kernel": parameter_gradients(model, x, y).norm(),
            "gradient in the pixels": curvature.input_gradient_norm(model, x, y),
            "Hessian in the pixels": spectral_norms(input_hessians(model, x, y)),
        }
        yield {"kernel": kernel}, numbers


def top_curvature(jacobian: Float[Tensor, "batch classes n"], logits: Float[Tensor, "batch classes"]) -> PerImage:
    """Largest eigenvalue of J^T (diag p - p p^T) J, p = softmax(logits), from a matrix as small as there are classes.

    With the factor L = diag(sqrt p) (I - sqrt p sqrt p^T) of Wang et al. 2020, "Smoothed geometry for robust
    attribution".

    Example:
        >>> round(top_curvature(torch.tensor([[[1.0], [-1.0]]]), torch.zeros(1, 2)).item(), 4)  # 4 p (1 - p) at p = 1/2
        1.0
    """
    root = logits.softmax(1).sqrt()
    factor = torch.diag_embed(root) - root.square()[:, :, None] * root[:, None]
    half = factor.mT @ jacobian
    return torch.linalg.eigvalsh(half @ half.mT)[:, -1]


def ordering(model: nn.Module, x: Images) -> tuple[float, float, float]:
    """Mean penalty, mean curvature in W and invariant flatness of W: the chain of P6, of the cross-entropy.

    x is what enters the dense first layer, W its weights in pixel units; the network is piecewise linear, in eval mode.

    Example:
        >>> model, x, _ = draws.network(0, activations=["relu"])
        >>> penalty, curved, flatness = ordering(model, x)
        >>> penalty <= curved + 1e-9 and curved <= flatness + 1e-9
        True
    """
    first, logits = first_dense(model, x), model(x).detach()
    of_bias = jacrev(lambda bias, image: functional_call(model, {f"{first.name}.bias": bias}, (image[None],))[0])
    hidden = vmap(of_bias, in_dims=(None, 0))(first.matrix[:, -1].contiguous(), x).detach()
    seen = first.extended[:, :-1].square().sum(1)
    inputs, weights = ((seen * top_curvature(j, logits)).mean() for j in (curvature.input_jacobian(model, x), hidden))
    trace = curvature.gauss_newton_trace(curvature.GaussNewton(model, x), block=f"{first.name}.weight").value
    return float(inputs), first.spectral**2 * float(weights), first.spectral**2 * trace


@trial(version=1)
def surfaces(case: int) -> Cases:
    """P6 on a random ReLU network: closed form, the constant 1/2, and the chain of three."""
    model, x, y = draws.network(case, activations=("relu",))
    jacobians = curvature.input_jacobian(model, x)
    top = top_curvature(jacobians, model(x).detach())
    dense = input_hessians(model, x, y, readout=readouts.cross_entropy)
    yield identity("P6", "closed form of the penalty", torch.linalg.eigvalsh(dense)[:, -1], top)
    yield bound("P6", "penalty and squared Jacobian", top, spectral_norms(jacobians).square() / 2)
    inputs, weights, flat = ordering(model, x)
    yield bound("P6", "penalty and curvature in W", inputs, weights)
    yield bound("P6", "curvature in W and flatness", weights, flat)


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
    call = partial(functional_call, model)
    return lambda weights, image, label: readout(partial(call, weights), image[None], label[None])[0]


def _of_matrix(model: nn.Module, first: FirstLayer, readout: Readout) -> OfImage:
    """The readout of one image as a function of [W, b]."""
    value, weight, bias = _of_parameters(model, readout), f"{first.name}.weight", f"{first.name}.bias"
    return lambda matrix, image, label: value({weight: matrix[:, :-1], bias: matrix[:, -1]}, image, label)


def _hessians(value: OfImage, at: Iterable[Tensor], x: Images, y: Labels) -> Matrices:
    """Hessian of value(at, image, label) in `at`, flat, for each image and label."""
    found = [hessian(value)(*case) for case in zip(at, x, y, strict=True)]
    return torch.stack([h.reshape(math.isqrt(h.numel()), -1) for h in found]).detach()
