"""Tiny float64 networks with known answers, and the slow, plain ways to get an answer that the tests compare with.

linear      z = W x + b                     its map is a row of W
quadratic   z_c = x' A_c x / 2 + b_c' x     gradient A_c x + b_c, Hessian A_c
mlp, conv   a hidden layer or two           any activation; smooth ones have maps that bend
folded      piecewise linear, by torch.where: no kink that a list of operations could know
vit         two blocks of two heads over six patches of two by two pixels; every weight drawn, none at its start
"""

import torch
from attrobust import attributions, models
from torch import nn
from torch.nn import functional as F

SHAPE = (2, 3, 3)
PIXELS = 18
CLASSES = 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 3, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """Images whose pixels stay away from 0 and 1, so that small attacks meet no wall."""
    return 0.25 + 0.5 * torch.rand(n, *shape, generator=generator(seed), dtype=torch.float64)


def labels(n: int = 3) -> torch.Tensor:
    return torch.arange(n) % CLASSES


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def filled(model: nn.Module, seed: int) -> nn.Module:
    """The network in float64 and eval mode, its parameters drawn from a generator of their own."""
    draw = generator(seed)
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            fan_in = p[0].numel() if p.ndim > 1 and len(p) else 16
            p.copy_(torch.randn(p.shape, generator=draw, dtype=p.dtype) * (2 / fan_in) ** 0.5)
    return model


def isolated(make):
    """Layers draw throw-away weights when they are made; that must not move the global generator."""

    def made(*arguments, **options):
        with torch.random.fork_rng(devices=[]):
            return make(*arguments, **options)

    return made


@isolated
def linear(seed: int = 0) -> nn.Module:
    return filled(nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES)), seed)


@isolated
def mlp(activation: nn.Module | None = None, *, seed: int = 0, width: int = 6) -> nn.Module:
    activation = activation or nn.Softplus()
    layers = [nn.Flatten(), nn.Linear(PIXELS, width), activation, nn.Linear(width, width), activation]
    return filled(nn.Sequential(*layers, nn.Linear(width, CLASSES)), seed)


@isolated
def conv(activation: nn.Module | None = None, *, seed: int = 0) -> nn.Module:
    layers = [nn.Conv2d(2, 3, 2), activation or nn.GELU(), nn.Flatten(), nn.Linear(12, CLASSES)]
    return filled(nn.Sequential(*layers), seed)


VIT_SHAPE = (2, 4, 6)


@isolated
def vit(*, seed: int = 0, **options) -> models.ViT:
    options = {"input_shape": VIT_SHAPE, "classes": CLASSES, "patch": 2, "dim": 6, "heads": 2, "depth": 2} | options
    return filled(models.build("vit", seed=seed, mean=0.4, std=0.3, **options), seed)


def partly_blind(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Saliency that no attack can climb where an image's first pixel is white: there it is cut off from the graph."""
    maps = attributions.saliency(model, x, target)
    return torch.where(x[:, :1, :1, :1] > 0.5, maps.detach(), maps)


def failing(*inputs: torch.Tensor) -> torch.Tensor:
    """A forward pass that ends in an error."""
    raise RuntimeError("on purpose")


class Called(nn.Module):
    """A function in the place of a layer or a network, so that no list of modules knows it."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Quadratic(nn.Module):
    """z_c = x' A_c x / 2 + b_c' x with given symmetric matrices A_c and vectors b_c."""

    def __init__(self, matrices: torch.Tensor, vectors: torch.Tensor) -> None:
        super().__init__()
        self.matrices = nn.Parameter(matrices)
        self.vectors = nn.Parameter(vectors)

    def forward(self, x):
        x = x.flatten(1)
        return 0.5 * torch.einsum("bi,cij,bj->bc", x, self.matrices, x) + x @ self.vectors.T


def quadratic(seed: int = 0) -> Quadratic:
    draw = generator(seed)
    matrices = torch.randn(CLASSES, PIXELS, PIXELS, generator=draw, dtype=torch.float64)
    vectors = torch.randn(CLASSES, PIXELS, generator=draw, dtype=torch.float64)
    return Quadratic((matrices + matrices.mT) / 2, vectors).eval()


class Folded(nn.Module):
    """A ReLU network in disguise: the kink is a torch.where."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.layers = original

    def forward(self, x):
        for layer in self.layers:
            x = torch.where(x > 0, x, 0 * x) if isinstance(layer, nn.ReLU) else layer(x)
        return x


def with_spectrum(values: list[float], seed: int = 0) -> torch.Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator(seed), dtype=torch.float64))
    a = q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T
    return (a + a.T) / 2


def matvec(matrices: torch.Tensor):
    """Product of row i with matrix i."""
    return lambda v: torch.einsum("bij,bj->bi", matrices, v)


def parameter_hessian(model: nn.Module, loss, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Dense Hessian of the mean loss over all parameters, in the order of model.parameters()."""
    names, shapes = zip(*[(n, p.shape) for n, p in model.named_parameters()], strict=True)
    sizes = [s.numel() for s in shapes]

    def value(flat):
        parts = [part.view(s) for part, s in zip(flat.split(sizes), shapes, strict=True)]
        return loss(torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (x,)), y).mean()

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.func.hessian(value)(flat)


def input_hessians(readout, x: torch.Tensor) -> torch.Tensor:
    """Dense Hessian of readout(images) at every image, one after the other."""
    n = x[0].numel()

    def one(i):
        return torch.autograd.functional.hessian(lambda im: readout(im[None], i)[0], x[i]).reshape(n, n)

    return torch.stack([one(i) for i in range(len(x))])


def slope(function, x: torch.Tensor, direction: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """Derivative of a function along a direction, by central differences; float64 leaves about ten digits."""
    with torch.no_grad():
        return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


def half_squared(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.5 * (logits - F.one_hot(y, logits.shape[1])).square().sum(1)


def per_example_cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, y, reduction="none")
