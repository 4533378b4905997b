"""What each route is compared with: float64, tight tolerances, other code than ours where there is any."""

import copy

import curvlinops
import torch
from attrobust import curvature
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.func import grad, jacrev

from benchmarks import setting


def top_eigenvalue(network: str) -> float:
    """By curvlinops and ARPACK, residual 1e-10."""
    operator = _operator(network, setting.IMAGES)
    return float(eigsh(operator.to_scipy(), k=1, which="LA", tol=1e-10, return_eigenvectors=False)[0])


def trace(network: str) -> float:
    """From factors, exact or to 0.03 %: a hundred random changes of the weights for each image (tests: dense Hessians).

    Products alone would have to be as many as there are parameters.
    """
    model = copy.deepcopy(setting.trained(network)).double()
    x, y = (part[: setting.TRACED] for part in setting.digits())
    hessian = curvature.ParameterHessian(model, setting.loss, x.double(), y)
    return curvature.trace(hessian, generator=setting.seeded(7), products=1000).value


def input_ends(network: str, count: int = 4) -> Tensor:
    """Both ends from dense Hessians of the first images."""

    def logit(logits: Tensor, label: Tensor) -> Tensor:
        return logits.gather(0, label[None])[0]

    return torch.linalg.eigvalsh(_dense_input_hessians(setting.trained(network), count, logit))[:, [0, -1]]


def input_loss_ends(network: str, count: int = 4) -> Tensor:
    """Largest eigenvalue of the loss Hessians on the ReLU network, dense."""
    dense = _dense_input_hessians(setting.trained(network, relu=True), count, nn.functional.cross_entropy)
    return torch.linalg.eigvalsh(dense)[:, -1]


def _operator(network: str, count: int) -> curvlinops.HessianLinearOperator:
    model = copy.deepcopy(setting.trained(network)).double()
    x, y = setting.digits()
    parts = list(zip(x[:count].double().split(250), y[:count].split(250), strict=True))
    return curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), parts, check_deterministic=False
    )


def _dense_input_hessians(network: nn.Module, count: int, readout) -> Tensor:
    model = copy.deepcopy(network).double().requires_grad_(False)
    x, y = setting.digits()
    flat = x[:count].double().flatten(1)

    def of_one(pixels: Tensor, label: Tensor) -> Tensor:
        return readout(model(pixels.view(1, *x.shape[1:]))[0], label)

    dense = jacrev(grad(of_one), chunk_size=64)  # all rows at once would fill the memory
    return torch.stack([dense(pixels, label).detach() for pixels, label in zip(flat, y[:count], strict=True)])


OF = {
    "top eigenvalue": top_eigenvalue,
    "trace": trace,
    "both ends in the pixels": input_ends,
    "loss curvature in the pixels, ReLU": input_loss_ends,
}
