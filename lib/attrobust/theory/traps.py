"""Three traps between curvature and explanations: what the explained number does to every measure of it.

    P15  phi -> c phi multiplies gradient, Hessian and every Lipschitz constant by c; relative curvature, cosine and
         ranks stay. An absolute number can be driven to zero by shrinking logits.
    P16  grad_x loss = J_x^T (p - e_y) and grad_x p_y = p_y J_x^T (e_y - p) fade at a good fit: explain a logit.
    P17  between kinks a ReLU logit is linear, so its Hessian is zero almost everywhere and all turning happens at the
         kinks; the Hessian of a softplus twin measures its sharpness beta.

P15 and P16 are ours, P17 is textbook.
"""

from collections.abc import Callable, Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from attrobust import curvature, similarity
from attrobust.models import readouts
from attrobust.shapes import Images
from attrobust.theory import draws, duality, tally, turning
from attrobust.versions import versioned


@versioned(1)
def scales(seeds: Sequence[int], factors: Sequence[float]) -> pd.DataFrame:
    """P15: one random step measured by absolute and by scale-free numbers, for logits times a factor."""
    rows = []
    for seed in seeds:
        model, x, y = draws.network(seed, images=1)
        step = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
        for factor in factors:
            numbers = _scaled(model, x, (x + step).clamp(0, 1), y, factor)
            rows += [{"case": seed, "factor": factor, "name": name, "value": float(v)} for name, v in numbers.items()]
    return pd.DataFrame(rows)


@versioned(1)
@tally.over_cases
def loss_gradients(case: int) -> Iterator[pd.DataFrame]:
    """P16: the closed forms of the gradients of loss and probability."""
    model, x, y = draws.network(case)
    p, j = model(x).softmax(1).detach(), curvature.input_jacobian(model, x)
    onehot = torch.nn.functional.one_hot(y, p.shape[1]).to(p)
    forms = {"loss": p - onehot, "probability": (p * onehot).sum(1, keepdim=True) * (onehot - p)}
    for arm, weight in forms.items():
        exact = curvature.InputHessian(model, x, y, readout=duality.READOUTS[arm]).gradient.flatten(1)
        yield tally.identity("P16", f"gradient of the {arm}", exact, torch.einsum("bc,bcn->bn", weight, j))


@versioned(1)
def twins(seeds: Sequence[int], betas: Sequence[float]) -> pd.DataFrame:
    """P17: softplus twins of ReLU networks on a segment: curvature at its start, largest on it, total turn."""
    rows = []
    for seed in seeds:
        relu, x, y = draws.network(seed, activations=("relu",), images=2)
        way = x[0] + torch.linspace(0, 1, 201, dtype=x.dtype).view(-1, 1, 1, 1) * (x[1] - x[0])
        zero = float(duality.input_hessians(relu, x, y).abs().max())
        for beta in betas:
            soft = [nn.Softplus(beta, threshold=500) if isinstance(layer, nn.ReLU) else layer for layer in relu]
            twin, generator = nn.Sequential(*soft), torch.Generator().manual_seed(0)
            hessian = curvature.InputHessian(twin, way, y[:1].expand(201))
            turn = curvature.relative_curvature(hessian, generator=generator, steps=9).value
            value = turning.logit_at(twin, x[:1], y[:1])
            numbers = {
                "at the image": turn[0],
                "largest on the way": turn.max(),
                "turn over the whole way": turning.turn(value, x[0].flatten(), (x[1] - x[0]).flatten(), nodes=400),
                "ReLU Hessian": zero,
            }
            rows += [{"case": seed, "beta": beta, "name": name, "value": float(v)} for name, v in numbers.items()]
    return pd.DataFrame(rows)


def _scaled(model: nn.Module, x: Images, moved: Images, y: Tensor, factor: float) -> dict[str, Tensor]:
    """Absolute and scale-free numbers of the step from x to moved, for the logit times a factor."""

    def readout(model: Callable, x: Tensor, y: Tensor) -> Tensor:
        return factor * readouts.logit(model, x, y)

    maps = [curvature.InputHessian(model, at, y, readout=readout).gradient.detach() for at in (x, moved)]
    generator = torch.Generator().manual_seed(0)
    hessian = curvature.InputHessian(model, x, y, readout=readout)
    relative = curvature.relative_curvature(hessian, generator=generator, steps=9)
    return {
        "input curvature": duality.spectral_norms(duality.input_hessians(model, x, y, readout=readout)),
        "displacement": similarity.displacement(*maps),
        "relative curvature": relative.value,
        "cosine": similarity.cosine(*maps),
        "Spearman": similarity.spearman(*(m.abs().sum(1) for m in maps)),
    }
