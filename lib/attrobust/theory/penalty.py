"""What explicit regularisation penalises, and how flatness bounds it.

Smooth surface regularisation (SSR, Wang et al. 2020) punishes the top eigenvalue of the loss's input Hessian. For a
network that is piecewise linear in x, cross-entropy, p = softmax(z) and S = diag(p) - p p^T, almost everywhere

    hess_x loss = J_x^T S J_x,    hess_W loss = (J_h^T S J_h) (x) x x^T,    lambda_max(hess_x loss) <= |J_x|_2^2 / 2

    mean_i |x_i|^2 lambda_max(hess_x loss_i)  <=  |W|_2^2 mean_i lambda_max(hess_W loss_i)  <=  |W|_2^2 tr H_W

so the penalty, averaged over the training set, lies under a flatness that re-scaling cannot change (P6, ours).
"""

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from attrobust import curvature
from attrobust.models import readouts
from attrobust.shapes import Images, PerImage
from attrobust.theory import draws
from attrobust.theory.duality import first_dense, input_hessians, spectral_norms
from attrobust.theory.tally import Cases, bound, equalities, identity, trial


def top_curvature(jacobian: Float[Tensor, "batch classes n"], logits: Float[Tensor, "batch classes"]) -> PerImage:
    """Largest eigenvalue of J^T (diag p - p p^T) J, p = softmax(logits), from a matrix as small as there are classes.

    The factor L with L L^T = diag p - p p^T is that of Wang et al. 2020, "Smoothed geometry for robust attribution";
    here L = diag(sqrt p) (I - sqrt p sqrt p^T).
    """
    root = logits.softmax(1).sqrt()
    factor = torch.diag_embed(root) - root.square()[:, :, None] * root[:, None]
    half = factor.mT @ jacobian
    return torch.linalg.eigvalsh(half @ half.mT)[:, -1]


def ordering(model: nn.Module, x: Images) -> tuple[float, float, float]:
    """The three members of the chain of P6: mean penalty, mean curvature in W, invariant flatness of W.

    They are mean |x|^2 lambda_max(hess_x), |W|^2 mean lambda_max(hess_W), |W|^2 tr H_W, of the cross-entropy; x is what
    enters the first layer, and W its weights in pixel units. Labels do not enter. The network is in eval mode,
    piecewise linear, with a dense first layer. Raises ValueError if the first layer is convolutional or otherwise
    shared.
    """
    first, logits = first_dense(model, x), model(x).detach()

    def of_bias(bias: Tensor, image: Tensor) -> Tensor:
        return functional_call(model, {f"{first.name}.bias": bias}, (image[None],))[0]

    hidden = vmap(jacrev(of_bias), in_dims=(None, 0))(first.matrix[:, -1].contiguous(), x).detach()
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


def equality() -> pd.DataFrame:
    """Two even classes whose logits move against each other."""
    apart, even = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    return equalities({("P6", "two even classes"): (top_curvature(apart, even), 1.0)})
