"""Every way to the same number: ours and each peer's, a function without arguments that returns (value, products)."""

import warnings
from collections.abc import Callable

import curvlinops
import hessian_eigenthings
import pyhessian
import torch
from attrobust import curvature
from attrobust.models import readouts
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

from benchmarks import setting

Route = Callable[[], tuple[Tensor | float, int | None]]
OURS = "attrobust"


def top_eigenvalue(network: str) -> dict[str, Route]:
    """Largest eigenvalue of the parameter Hessian; tolerance 1e-3 wherever a route takes one."""
    model, (x, y) = setting.trained(network), _examples(setting.IMAGES)

    def ours(*, keep_graph="auto", **options):
        hessian = curvature.ParameterHessian(model, setting.loss, x, y, keep_graph=keep_graph)
        found = curvature.sharpness(hessian, generator=setting.seeded(), **options)
        return found.value, found.products

    def with_curvlinops(*, check, **options):
        operator = _curvlinops(model, x, y, check=check)
        values = eigsh(operator.to_scipy(), k=1, which="LA", tol=1e-3, return_eigenvectors=False, **options)
        return float(values[0]), None

    def with_eigenthings(**options):
        result = hessian_eigenthings.lanczos(_eigenthings(model, x, y), k=1, which="LA", seed=0, **options)
        return float(result.eigenvalues.max()), options.get("max_iter")

    return {
        OURS: ours,
        f"{OURS}, tolerance 1e-2": lambda: ours(tolerance=1e-2),
        f"{OURS}, tolerance 3e-2": lambda: ours(tolerance=3e-2),
        f"{OURS}, graph built again": lambda: ours(keep_graph=False),
        "PyHessian": lambda: (_pyhessian(model, x, y).eigenvalues(top_n=1)[0][0], None),
        "curvlinops + eigsh, as shipped": lambda: with_curvlinops(check=True),
        "curvlinops + eigsh, ncv=8, unchecked": lambda: with_curvlinops(check=False, ncv=8),
        "hessian-eigenthings, as shipped": with_eigenthings,
        "hessian-eigenthings, 15 steps": lambda: with_eigenthings(max_iter=15),
        "torch.func power iteration": lambda: _power_iteration(model, x, y),
    }


def trace(network: str) -> dict[str, Route]:
    """Trace of the parameter Hessian, the same number of products wherever a route takes one."""
    model, (x, y) = setting.trained(network), _examples(setting.TRACED)

    def ours():
        hessian = curvature.ParameterHessian(model, setting.loss, x, y)
        found = curvature.trace(hessian, generator=setting.seeded(), products=setting.PRODUCTS)
        return found.value, found.products

    def multiplied():
        hessian = curvature.ParameterHessian(model, setting.loss, x, y)
        how = {"products": setting.PRODUCTS, "generator": setting.seeded()}
        like = torch.empty(1, hessian.size)
        return curvature.moments(hessian.matvec, like, **how)[0].value.item(), setting.PRODUCTS

    def density():
        hessian = curvature.ParameterHessian(model, setting.loss, x, y)
        found = curvature.spectral_density(hessian, generator=setting.seeded(), probes=2, steps=15)
        return found.trace.value, found.products

    def with_curvlinops(*, check):
        torch.manual_seed(0)
        operator = _curvlinops(model, x, y, check=check)
        return float(curvlinops.hutchpp_trace(operator, setting.PRODUCTS)), setting.PRODUCTS

    def with_eigenthings():
        operator = _eigenthings(model, x, y)
        result = hessian_eigenthings.hutch_plus_plus(operator, num_matvecs=setting.PRODUCTS, seed=0)
        return float(result.estimate), setting.PRODUCTS

    def with_pyhessian():
        torch.manual_seed(0)
        samples = _pyhessian(model, x, y).trace()
        return sum(samples) / len(samples), len(samples)

    return {
        OURS: ours,
        f"{OURS}, Hutch++": multiplied,
        f"{OURS}, density": density,
        "curvlinops, as shipped": lambda: with_curvlinops(check=True),
        "curvlinops, unchecked": lambda: with_curvlinops(check=False),
        "hessian-eigenthings": with_eigenthings,
        "PyHessian": with_pyhessian,
    }


def input_ends(network: str) -> dict[str, Route]:
    """Both ends of each image's logit Hessian by the same Lanczos search; only the products differ."""
    model, (x, y) = setting.trained(network), _examples(setting.PIXELS_OF)
    start = torch.randn(len(x), x[0].numel(), generator=setting.seeded())

    def one_logit(image: Tensor, label: Tensor) -> Tensor:
        return model(image[None])[0].gather(0, label[None])[0]

    def search(matvec, begin):
        ends = curvature.lanczos(matvec, begin, steps=setting.STEPS)
        return torch.stack([end.value for end in ends], 1)

    def one_by_one(matvec_of):
        found = [search(matvec_of(x[i : i + 1], y[i : i + 1]), start[i : i + 1]) for i in range(len(x))]
        return torch.cat(found), setting.STEPS

    def with_vmap():
        def product(image, label, v):
            return jvp(grad(lambda at: one_logit(at, label)), (image,), (v,))[1]

        batched = vmap(product)
        return search(lambda v: batched(x, y, v.view_as(x)).flatten(1), start), setting.STEPS

    def ours():
        hessian = curvature.InputHessian(model, x, y)
        return search(hessian.matvec, start), setting.STEPS

    return {
        OURS: ours,
        "loop, recomputed": lambda: one_by_one(lambda image, label: _recomputed(model, image, label)),
        "loop, graph kept": lambda: one_by_one(lambda image, label: _kept(model, image, label)),
        "vmap of jvp(grad)": with_vmap,
    }


def input_loss_ends(network: str) -> dict[str, Route]:
    """Largest eigenvalue of each image's loss Hessian on a ReLU network: exact, and by Lanczos."""
    model, (x, y) = setting.trained(network, relu=True), _examples(setting.PIXELS_OF)

    def by_lanczos():
        _, high = curvature.input_extremes(
            curvature.InputHessian(model, x, y, readout=readouts.cross_entropy), generator=setting.seeded(), steps=10
        )
        return high.value, high.products

    def by_gram():
        found = curvature.gram_spectrum(model, x)
        return found.value[:, -1], found.products

    return {f"{OURS}, Gram matrix": by_gram, f"{OURS}, Lanczos": by_lanczos}


def _examples(count: int) -> tuple[Tensor, Tensor]:
    x, y = setting.digits()
    return x[:count], y[:count]


def _curvlinops(model: nn.Module, x: Tensor, y: Tensor, *, check: bool) -> curvlinops.HessianLinearOperator:
    parts = list(zip(x.split(250), y.split(250), strict=True))
    parameters = [p for p in model.parameters() if p.requires_grad]
    return curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, parts, check_deterministic=check)


def _eigenthings(model: nn.Module, x: Tensor, y: Tensor):
    parts = list(zip(x.split(250), y.split(250), strict=True))
    return hessian_eigenthings.HessianOperator(
        model, parts, lambda network, batch: F.cross_entropy(network(batch[0]), batch[1])
    )


def _pyhessian(model: nn.Module, x: Tensor, y: Tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.zero_grad(set_to_none=True)
        return pyhessian.hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False)


def _power_iteration(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, int]:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    draw = setting.seeded()
    v = {name: torch.randn(p.shape, generator=draw) for name, p in parameters.items()}

    def mean_loss(weights, images, labels):
        return F.cross_entropy(functional_call(model, {**weights, **buffers}, (images,)), labels, reduction="sum")

    def product(v):
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for images, labels in zip(x.split(250), y.split(250), strict=True):
            slope = grad(lambda w, images=images, labels=labels: mean_loss(w, images, labels))
            part = jvp(slope, (parameters,), (v,))[1]
            total = {name: total[name] + part[name] / len(x) for name in total}
        return total

    value, spent = None, 0
    while spent < 100:
        spent += 1
        length = sum((piece**2).sum() for piece in v.values()) ** 0.5
        v = {name: piece / length for name, piece in v.items()}
        w = product(v)
        before, value = value, float(sum((w[name] * v[name]).sum() for name in v))
        if before is not None and abs(value - before) < 1e-3 * abs(value):
            break
        v = w
    return value, spent


def _recomputed(model: nn.Module, image: Tensor, label: Tensor):
    def product(v):
        at = image.detach().requires_grad_()
        slope = torch.autograd.grad(model(at)[0, label[0]], at, create_graph=True)[0]
        return torch.autograd.grad(slope, at, v.view_as(at))[0].flatten(1)

    return product


def _kept(model: nn.Module, image: Tensor, label: Tensor):
    at = image.detach().requires_grad_()
    slope = torch.autograd.grad(model(at)[0, label[0]], at, create_graph=True)[0]
    return lambda v: torch.autograd.grad(slope, at, v.view_as(at), retain_graph=True)[0].flatten(1)


QUESTIONS = {
    "top eigenvalue": top_eigenvalue,
    "trace": trace,
    "both ends in the pixels": input_ends,
    "loss curvature in the pixels, ReLU": input_loss_ends,
}
