"""Size of the logits' derivatives in the pixels, as penalties: of the first (all classes), of the second (the label's).

    jacobian   |J|_F^2 = E |J' s|^2      J the derivative of all logits, s random signs
    hessian    |H|_F^2 = E |H v|^2       H the second derivative of the label's logit, v random signs

Any random vector with uncorrelated entries of variance one would do; signs scatter least.
"""

import torch
from torch import nn

from attrobust import checks
from attrobust.curvature.spectra import signs
from attrobust.models.derivatives import again
from attrobust.models.readouts import logit
from attrobust.regularizers.input_gradient import leaf, live_gradient
from attrobust.shapes import Images, Labels, PerImage
from attrobust.versions import versioned


@versioned(1)
def jacobian(model: nn.Module, x: Images, y: Labels, *, generator: torch.Generator, probes: int = 1) -> PerImage:
    """Squared Frobenius norm of the logits' Jacobian at each image, unbiased from so many products; y is not read.

    Raises:
        ValueError: `probes` below 1, or what `input_gradient` refuses.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
        >>> linear[1].weight.data = torch.tensor([[3.0, 4.0]])
        >>> jacobian(linear, torch.zeros(1, 1, 1, 2), torch.tensor([0]), generator=torch.Generator()).item()
        25.0

    Reference: Hoffman, Roberts and Yaida 2019, "Robust learning with Jacobian regularization", algorithm 1.
    """
    at = leaf(model, x)
    logits = model(at)
    draws = signs((len(x), checks.count("probes", probes), logits.shape[1]), logits, generator)
    slopes = [torch.autograd.grad(logits, at, draws[:, i], create_graph=True)[0] for i in range(probes)]
    return torch.stack(slopes).flatten(2).square().sum(2).mean(0)


@versioned(1)
def hessian(model: nn.Module, x: Images, y: Labels, *, generator: torch.Generator, probes: int = 1) -> PerImage:
    """Squared Frobenius norm of the Hessian of the label's logit at each image, unbiased; 0 of piecewise linear logits.

    Raises:
        ValueError: `probes` below 1, or what `input_gradient` refuses.

    Example:
        >>> bent = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False), nn.Tanh())
        >>> bent[1].weight.data = torch.ones(1, 1)
        >>> x = torch.full((1, 1, 1, 1), 0.5)
        >>> bend = -2 * x.tanh() * (1 - x.tanh() ** 2)  # the second derivative of tanh
        >>> torch.allclose(hessian(bent, x, torch.tensor([0]), generator=torch.Generator()), bend.flatten() ** 2)
        True

    Reference: Joo et al. 2023, "Towards more robust interpretation via local gradient alignment"; Dombrowski et al.
    2022, "Towards robust explanations for deep neural networks", section 4.3.
    """
    at = leaf(model, x)
    slope = live_gradient(logit(model, at, y), at)
    draws = signs((len(x), checks.count("probes", probes), *x.shape[1:]), at, generator)
    if not slope.requires_grad:
        return slope.new_zeros(len(x))
    how = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
    with again(slope):
        products = [torch.autograd.grad(slope, at, draws[:, i], **how)[0] for i in range(probes)]
    return torch.stack(products).flatten(2).square().sum(2).mean(0)
