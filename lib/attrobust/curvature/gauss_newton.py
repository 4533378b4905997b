"""Exact Gauss-Newton trace, and a flatness that re-scaling cannot change.

At a fitted minimum the loss Hessian is nearly the Gauss-Newton matrix, whose trace needs no randomness. With J_i
the Jacobian of example i's logits in the parameters and H_i = sum_r s_r b_r b_r' the loss Hessian in the logits,

    G = mean_i J_i' H_i J_i        tr G = mean_i sum_r s_r |J_i' b_r|^2

one gradient per example and row r, of which the cross-entropy has one less than classes; in a `chain` of layers their
lengths come from factors. Multiplying one layer by a and dividing the next by a leaves a homogeneous network's function
alone and changes every Hessian quantity (Dinh et al. 2017); |W|_2^2 tr G_(W, b) of the first layer is unchanged (after
Petzka et al. 2021), and it bounds the input gradients (notebook 02).
"""

from collections.abc import Sequence
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn import functional as F

from attrobust import checks
from attrobust.curvature import factored, guards
from attrobust.curvature.chain import layers_of, walks
from attrobust.curvature.derivatives import FEW, Audit
from attrobust.curvature.inputs import weighted
from attrobust.curvature.products import PerExampleLoss
from attrobust.curvature.spectra import Estimate
from attrobust.models.weights import called
from attrobust.shapes import Inputs

#: Losses known by name; neither Hessian depends on the labels.
LOSSES: dict[str, PerExampleLoss] = {
    "cross_entropy": lambda logits, y: F.cross_entropy(logits, y, reduction="none"),
    "squared": lambda logits, y: 0.5 * (logits - F.one_hot(y, logits.shape[1])).square().sum(1),
}


class GaussNewton:
    """Gauss-Newton matrix of the mean loss, mean_i J_i' H_i J_i, over all parameters of a network in eval mode.

    The loss is "cross_entropy", "squared" (half the squared distance), or (outputs, y) -> one loss per example, the
    only one that needs the labels. What `ParameterHessian` refuses raises a ValueError here too.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> gauss_newton_trace(GaussNewton(net, torch.tensor([[1.0, 2.0]]), loss="squared")).value
        5.0
    """

    model: nn.Module
    x: Inputs
    y: Tensor
    loss: PerExampleLoss

    #: Examples whose Jacobians are held at once, where the network is no chain.
    chunk = 64

    def __init__(
        self, model: nn.Module, x: Inputs, y: Tensor | None = None, *, loss: str | PerExampleLoss = "cross_entropy"
    ) -> None:
        if not callable(loss):
            checks.one_of("loss", loss, LOSSES)
        elif y is None:
            raise ValueError("y is None; a callable loss needs the labels")
        guards.usable(model, x, y, chunk=self.chunk)
        self.model, self.x = model, x
        self.y = torch.zeros(len(x), dtype=torch.long, device=x.device) if y is None else y
        self.loss = loss if callable(loss) else LOSSES[loss]


def gauss_newton_trace(gauss_newton: GaussNewton, *, block: str = "") -> Estimate:
    """Exact trace over parameters whose name starts with `block`; `products` counts the gradients of one example.

    Raises:
        ValueError: a `block` that no parameter's name starts with, or what is no GaussNewton.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> both = GaussNewton(net, torch.tensor([[1.0, 2.0]]), loss="squared")
        >>> gauss_newton_trace(both).value, gauss_newton_trace(both, block="bias").value
        (6.0, 1.0)
    """
    checks.kind("gauss_newton", gauss_newton, GaussNewton)
    checks.kind("block", block, str)
    model, x, y, chunk = gauss_newton.model, gauss_newton.x, gauss_newton.y, gauss_newton.chunk
    inside = {name: p for name, p in model.named_parameters() if name.startswith(block)}
    if not inside:
        raise ValueError(f"block is {block!r}; no parameter name starts with it")
    guards.mode()
    layers, total, trusted = layers_of(model, x[:1]), 0.0, gauss_newton.loss in LOSSES.values()
    _audit(model, x, inside)
    for part, labels in walks(layers, x, y) if layers else zip(x.split(chunk), y.split(chunk), strict=True):
        logits = part[-1].leaving if layers else checks.logits("model", model(part), batch=len(part))
        if not trusted:
            factored.audit_loss(gauss_newton.loss, logits, labels)
            trusted = True
        _, factor = factored.logit_factor(gauss_newton.loss, logits, labels)
        if layers:
            traces = factored.gauss_newton(part, factor, set(inside.values()))
        else:
            traces = _by_jacobians(model, part, factor, list(inside))
        total += float(traces.sum())
    return Estimate(total / len(x), 0.0, logits.shape[1])


def invariant_flatness(gauss_newton: GaussNewton) -> Estimate:
    """Squared spectral norm of the first layer's weights times the Gauss-Newton trace of that layer; exact.

    A ValueError refuses a first layer that is not dense: shared weights break the transfer from parameters to pixels,
    so the number would bound nothing.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> net.weight.data = torch.tensor([[3.0, 0.0]])
        >>> invariant_flatness(GaussNewton(net, torch.tensor([[1.0, 2.0]]), loss="squared")).value  # 3^2 (1 + 4)
        45.0
    """
    name, layer = first_layer(checks.kind("gauss_newton", gauss_newton, GaussNewton).model)
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"the first layer is {type(layer).__name__}; this flatness needs a dense (Linear) first layer")
    spectral = float(torch.linalg.matrix_norm(layer.weight.detach(), ord=2))
    block = gauss_newton_trace(gauss_newton, block=f"{name}." if name else "")
    return Estimate(spectral**2 * block.value, 0.0, block.products)


def first_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the first layer that holds a weight; a ValueError if none does.

    Example:
        >>> first_layer(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))[0]
        '1'
    """
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            return name, module
    raise ValueError("model has no layer with weights")


def _audit(model: nn.Module, x: Tensor, inside: dict[str, nn.Parameter]) -> None:
    """Refuse logits that autograd does not follow back to the parameters."""
    few = x[:FEW]

    def run(point: Sequence[Tensor], n: int) -> Tensor:
        return weighted(model(few[:n]), n)

    Audit("model", run, list(inside.values()), len(x), model, list(inside))(order=1)


def _by_jacobians(model: nn.Module, x: Tensor, factor: factored.Factor, names: list[str]) -> Float[Tensor, " batch"]:
    """Each example's trace from the Jacobian of its logits: any network, at the price of holding it.

    By torch's batching, or one by one where an operation cannot be batched, or comes out wrong as a PReLU does.
    """
    whole = {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    inside = {name: whole.pop(name) for name in names}

    def outputs(weights: dict[str, Tensor], example: Tensor) -> Tensor:
        return called(model, {**whole, **weights}, example[None])[0]

    def alone(example: Tensor) -> Tensor:
        leaves, how = [t.requires_grad_() for t in inside.values()], {"retain_graph": True, "materialize_grads": True}
        with torch.enable_grad():
            found = outputs(inside, example)
            if not found.requires_grad:  # it does not use the block
                return found.new_zeros(len(found), sum(t.numel() for t in leaves))
            rows = [torch.autograd.grad(z, leaves, **how) for z in found]
        return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])

    j = None  # (batch, outputs, n)
    with suppress(RuntimeError):
        batched = vmap(jacrev(outputs), in_dims=(None, 0))(inside, x)
        j = torch.cat([part.flatten(2) for part in batched.values()], dim=2)
    first = alone(x[0])
    near = torch.finfo(first.dtype).eps ** 0.5 * first.norm(dim=1)
    if j is None or not bool(((j[0] - first).norm(dim=1) <= near).all()):
        j = torch.stack([first, *map(alone, x[1:])])
    return sum(sign * torch.einsum("bc,bcn->bn", rows.to(j), j).square().sum(1).double() for rows, sign in factor)
