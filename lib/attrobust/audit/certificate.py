"""How far a picture may change while its saliency map surely stays alike: what no attack can break, where it is known.

One hidden layer of softplus units has a Hessian in the pixels that is bounded (notebook 02, P13): a change of
Euclidean length r moves the gradient by at most r times this bound. For deeper networks and other activations no bound
is known that says anything; then only an attack speaks, from the other side.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust import attributions
from attrobust.models.readouts import predictions
from attrobust.shapes import Images
from attrobust.theory import certificates

#: The cosine that surely stays, and by how much of its own length a map may move for that.
COSINE = 0.5
MOVE = math.sqrt(1 - COSINE**2)

#: How far logits may lie from those that two layers of softplus give, over the largest.
ROUNDING = 1e-4


def certified(model: nn.Module, x: Images) -> tuple[np.ndarray, str]:
    """By picture, the Euclidean radius within which the saliency map's cosine with the clean one is at least `COSINE`.

    And ""; for a network of another kind no radius, and the reason. Pixels may be shifted and scaled before the first
    layer; what the network computes is compared with the formula, on the pictures and on noise.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 2)).eval()
        >>> certified(net, torch.rand(5, 1, 2, 2))[0].shape
        (5,)
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    none = "known only for two dense layers with softplus between them, and this network is none"
    if len(layers) != 2 or any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return np.array([]), none
    first, head = layers
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
    units = _output(model, first)
    origin = torch.zeros_like(x[:1])
    bias = units(origin)[0]
    slopes = torch.autograd.functional.jacobian(lambda at: units(at)[0], origin).flatten(1)
    for at in (x, noise):
        hidden = at.flatten(1) @ slopes.T + bias
        with torch.no_grad():
            logits = model(at)
        if (head(F.softplus(hidden)) - logits).abs().max() > ROUNDING * logits.abs().max():
            return np.array([]), none
    target = predictions(model, x)
    weights = [layer.detach().double().cpu().numpy() for layer in (slopes, head.weight)]
    bounds = {c: certificates.two_layer_constant(weights[0], weights[1][c]) for c in target.unique().tolist()}
    length = attributions.saliency(model, x, target).detach().flatten(1).norm(dim=1).double().cpu().numpy()
    return MOVE * length / np.array([bounds[c] for c in target.tolist()]), ""


def _output(model: nn.Module, layer: nn.Module) -> Callable[[Images], Tensor]:
    """What a layer gives while the model runs on images."""

    def run(x: Images) -> Tensor:
        found: list[Tensor] = []
        hook = layer.register_forward_hook(lambda module, inputs, output: found.append(output))
        try:
            model(x)
        finally:
            hook.remove()
        return found[0]

    return run
