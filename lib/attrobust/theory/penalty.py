"""What explicit regularisation penalises, and how flatness bounds it.

Smooth surface regularisation (SSR, Wang et al. 2020) punishes the top eigenvalue of the loss's input Hessian. For a
network that is piecewise linear in x, cross-entropy, p = softmax(z) and S = diag(p) - p p^T, almost everywhere

    hess_x loss = J_x^T S J_x,    hess_W loss = (J_h^T S J_h) (x) x x^T,    lambda_max(hess_x loss) <= |J_x|_2^2 / 2

    mean_i |x_i|^2 lambda_max(hess_x loss_i)  <=  |W|_2^2 mean_i lambda_max(hess_W loss_i)  <=  |W|_2^2 tr H_W

so the penalty, averaged over the training set, lies under a flatness that re-scaling cannot change (P6, ours).
"""

from collections.abc import Iterator

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from attrobust import curvature
from attrobust.models import readouts
from attrobust.shapes import Images, PerImage
from attrobust.theory import draws, tally
from attrobust.theory.duality import first_dense, input_hessians, spectral_norms
from attrobust.versions import versioned


def hidden_jacobians(model: nn.Module, x: Images) -> Float[Tensor, "batch classes units"]:
    """Derivative dz / dh of the logits, for each image, read off the biases of the dense first layer."""
    first = first_dense(model, x)

    def logits(bias: Tensor, image: Tensor) -> Tensor:
        return functional_call(model, {f"{first.name}.bias": bias}, (image[None],))[0]

    return vmap(jacrev(logits), in_dims=(None, 0))(first.matrix[:, -1].contiguous(), x).detach()


def top_curvature(jacobian: Float[Tensor, "batch classes n"], logits: Float[Tensor, "batch classes"]) -> PerImage:
    """Largest eigenvalue of J^T (diag p - p p^T) J, from a matrix as small as there are classes.

    Args:
        jacobian: derivative of the logits in whatever the Hessian is taken in.
        logits: z; p = softmax(z).

    Example:
        >>> z = torch.zeros(1, 2).double()
        >>> round(top_curvature(torch.eye(2).double()[None], z).item(), 9)
        0.5

    Reference: the factor L with L L^T = diag p - p p^T as in Wang et al. 2020, "Smoothed geometry for robust
        attribution"; here L = diag(sqrt p) (I - sqrt p sqrt p^T).
    """
    root = logits.softmax(1).sqrt()
    factor = torch.diag_embed(root) - root.square()[:, :, None] * root[:, None]
    half = factor.mT @ jacobian
    return torch.linalg.eigvalsh(half @ half.mT)[:, -1]


def ordering(model: nn.Module, x: Images) -> tuple[float, float, float]:
    """The three members of the chain of P6: mean penalty, mean curvature in W, invariant flatness of W.

    Args:
        model: network in eval mode, piecewise linear, with a dense first layer.
        x: training images; their labels do not enter.

    Returns:
        mean |x|^2 lambda_max(hess_x), |W|^2 mean lambda_max(hess_W), |W|^2 tr H_W, of the cross-entropy; x is what
        enters the first layer, and W its weights in pixel units.

    Raises:
        ValueError: if the first layer is convolutional or otherwise shared.
    """
    first = first_dense(model, x)
    logits = model(x).detach()
    seen = first.extended[:, :-1].square().sum(1)
    inputs = (seen * top_curvature(curvature.input_jacobian(model, x), logits)).mean()
    weights = (seen * top_curvature(hidden_jacobians(model, x), logits)).mean()
    trace = curvature.gauss_newton_trace(curvature.GaussNewton(model, x), block=f"{first.name}.weight").value
    return float(inputs), first.spectral**2 * float(weights), first.spectral**2 * trace


@versioned(1)
@tally.over_cases
def surfaces(case: int) -> Iterator[pd.DataFrame]:
    """P6 on a random ReLU network: closed form, the constant 1/2, and the chain of three."""
    model, x, y = draws.network(case, activations=("relu",))
    logits, jacobians = model(x).detach(), curvature.input_jacobian(model, x)
    top = top_curvature(jacobians, logits)
    dense = input_hessians(model, x, y, readout=readouts.cross_entropy)
    yield tally.identity("P6", "closed form of the penalty", torch.linalg.eigvalsh(dense)[:, -1], top)
    yield tally.bound("P6", "penalty and squared Jacobian", top, spectral_norms(jacobians).square() / 2)
    inputs, weights, flat = ordering(model, x)
    yield tally.bound("P6", "penalty and curvature in W", inputs, weights)
    yield tally.bound("P6", "curvature in W and flatness", weights, flat)


def equality() -> pd.DataFrame:
    """Two even classes whose logits move against each other."""
    apart, even = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    return tally.equalities({("P6", "two even classes"): (top_curvature(apart, even), 1.0)})
