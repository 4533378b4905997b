"""How far a picture may change while its saliency map surely stays alike: what no attack can break, where it is known.

One hidden layer of softplus units has a Hessian in the pixels that is bounded (notebook 02, P13): a change of
Euclidean length r moves the gradient by at most r times this bound. For deeper networks and other activations no bound
is known that says anything; then only an attack speaks, from the other side.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from attrobust import attributions
from attrobust.models.readouts import predictions
from attrobust.shapes import Images
from attrobust.theory import certificates, duality

#: The cosine that surely stays, and by how much of its own length a map may move for that.
COSINE = 0.5
MOVE = math.sqrt(1 - COSINE**2)

#: How far logits may lie from those that two layers of softplus give, over the largest.
ROUNDING = 1e-4


def certified(model: nn.Module, x: Images) -> tuple[np.ndarray, str]:
    """By picture, the Euclidean radius within which the saliency map's cosine with the clean one is at least `COSINE`.

    And ""; for a network of another kind no radius, and the reason. Pixels may be shifted and scaled before the first
    layer; what the network computes is compared with the formula, on the pictures, on noise, and between them.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 2)).eval()
        >>> certified(net, torch.rand(5, 1, 2, 2))[0].shape
        (5,)
    """
    none = np.array([]), "known only for two dense layers with softplus between them, and this network is none"
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    sizes = [sum(p.numel() for p in one.parameters()) for one in (*layers, model)]
    if len(layers) != 2 or sizes[0] + sizes[1] != sizes[2] or layers[0].out_features != layers[1].in_features:
        return none
    try:
        first, head = duality.first_dense(model, x), layers[1]
    except ValueError:  # a layer that sees an image more than once, or none that runs
        return none
    bias = (first.extended @ first.matrix.T - x.flatten(1) @ first.jacobian.T)[0]
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
    for share in (0.0, 0.5, 1.0):
        at = x.lerp(noise, share)
        with torch.no_grad():
            logits, formula = model(at), head(F.softplus(at.flatten(1) @ first.jacobian.T + bias))
        if (formula - logits).abs().max() > ROUNDING * logits.abs().max():
            return none
    target = predictions(model, x)
    weights = [layer.detach().double().cpu().numpy() for layer in (first.jacobian, head.weight)]
    bounds = {c: certificates.two_layer_constant(weights[0], weights[1][c]) for c in target.unique().tolist()}
    length = attributions.saliency(model, x, target).detach().flatten(1).norm(dim=1).double().cpu().numpy()
    return MOVE * length / np.array([bounds[c] for c in target.tolist()]), ""
