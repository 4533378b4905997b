"""Three traps between curvature and explanations: what the explained number does to every measure of it.

    P15  phi -> c phi multiplies gradient, Hessian and every Lipschitz constant by c; relative curvature, cosine and
         ranks stay. An absolute number can be driven to zero by shrinking logits.
    P16  grad_x loss = J_x^T (p - e_y) and grad_x p_y = p_y J_x^T (e_y - p) fade at a good fit: explain a logit.
    P17  between kinks a ReLU logit is linear, so its Hessian is zero almost everywhere and all turning happens at the
         kinks; the Hessian of a softplus twin measures its sharpness beta.

P15 and P16 are ours, P17 is textbook.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attrobust import curvature, similarity
from attrobust.models import readouts
from attrobust.theory import certificates, draws, duality
from attrobust.theory.tally import Cases, NamedValues, identity, named_values, trial


@named_values(version=1)
def scales(seeds: Sequence[int], factors: Sequence[float]) -> NamedValues:
    """P15: one random step measured by absolute and by scale-free numbers, for logits times a factor."""
    for seed in seeds:
        model, x, y = draws.network(seed, images=1)
        moved = (x + 0.1 * draws.Source(seed).normal(*x.shape)).clamp(0, 1)
        for factor in factors:

            def readout(model: Callable, x: Tensor, y: Tensor, factor: float = factor) -> Tensor:
                return factor * readouts.logit(model, x, y)

            hessian = curvature.InputHessian(model, x, y, readout=readout)
            maps = [h.gradient.detach() for h in (hessian, curvature.InputHessian(model, moved, y, readout=readout))]
            generator = torch.Generator().manual_seed(0)
            numbers = {
                "input curvature": duality.spectral_norms(duality.input_hessians(model, x, y, readout=readout)),
                "displacement": similarity.displacement(*maps),
                "relative curvature": curvature.relative_curvature(hessian, generator=generator, steps=9).value,
                "cosine": similarity.cosine(*maps),
                "Spearman": similarity.spearman(*(m.abs().sum(1) for m in maps)),
            }
            yield {"case": seed, "factor": factor}, numbers


@trial(version=1)
def loss_gradients(case: int) -> Cases:
    """P16: the closed forms of the gradients of loss and probability."""
    model, x, y = draws.network(case)
    p, j = model(x).softmax(1).detach(), curvature.input_jacobian(model, x)
    onehot = torch.nn.functional.one_hot(y, p.shape[1]).to(p)
    forms = {"loss": p - onehot, "probability": (p * onehot).sum(1, keepdim=True) * (onehot - p)}
    for arm, weight in forms.items():
        exact = curvature.InputHessian(model, x, y, readout=duality.READOUTS[arm]).gradient.flatten(1)
        yield identity("P16", f"gradient of the {arm}", exact, torch.einsum("bc,bcn->bn", weight, j))


@named_values(version=1)
def twins(seeds: Sequence[int], betas: Sequence[float]) -> NamedValues:
    """P17: softplus twins of ReLU networks on a segment: curvature at its start, largest on it, total turn."""
    for seed in seeds:
        relu, x, y = draws.network(seed, activations=("relu",), images=2)
        way = x[0] + torch.linspace(0, 1, 201, dtype=x.dtype).view(-1, 1, 1, 1) * (x[1] - x[0])
        zero = duality.input_hessians(relu, x, y).abs().max()
        for beta in betas:
            soft = [nn.Softplus(beta, threshold=500) if isinstance(layer, nn.ReLU) else layer for layer in relu]
            twin, generator = nn.Sequential(*soft), torch.Generator().manual_seed(0)
            hessian = curvature.InputHessian(twin, way, y[:1].expand(201))
            turn = curvature.relative_curvature(hessian, generator=generator, steps=9).value
            value = certificates.logit_at(twin, x[:1], y[:1])
            total = certificates.turn(value, x[0].flatten(), (x[1] - x[0]).flatten(), nodes=400)
            numbers = {"at the image": turn[0], "largest on the way": turn.max(), "turn over the whole way": total}
            yield {"case": seed, "beta": beta}, {**numbers, "ReLU Hessian": zero}
