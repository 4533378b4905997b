"""Attention flow: how much can run from CLS down to each patch if attention weights are the capacities of pipes.

Exact and slow (one maximum flow per patch and image, on the CPU), and without a gradient: an attack can only be
carried over to it, not climb on it.
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor, nn

from attrobust.attributions.attention import attend, from_cls, with_skip
from attrobust.shapes import Images, Labels

#: Capacities become whole numbers whose sum over a token's pipes stays below this (a flow is a 32-bit number).
LARGEST = 2**30


def attention_flow(model: nn.Module, x: Images, target: Labels) -> Float[Tensor, "batch 1 rows columns"]:
    """Maximum flow from the top CLS token to each patch; between blocks, token i to token j holds (m(A_l) + I)_ij.

    Args:
        model: classifier in eval mode with `attend`.
        x: images, pixels in [0, 1].
        target: ignored; the map is the same for every class.

    Returns:
        One non-negative number per patch, in units of attention, detached; exact to about 1e-7.

    Raises:
        ValueError: if the model has no `attend`.

    Reference: Abnar and Zuidema 2020, "Quantifying attention flow in transformers", section 3 (there with rows
    divided by their sum, for softmax a factor of two).
    """
    with torch.no_grad():
        maps = torch.stack([with_skip(weights) for weights in attend(model, x)[1]], dim=1)
    rows = torch.zeros_like(maps[:, 0])
    for image, layers in enumerate(maps.double().cpu().numpy()):
        for token in range(1, layers.shape[-1]):
            rows[image, 0, token] = max_flow(layers, token)
    return from_cls(rows, x)


def max_flow(capacities: Float[np.ndarray, "layers tokens tokens"], token: int) -> float:
    """Maximum flow from token 0 above the last layer to `token` below the first.

    Example:
        >>> max_flow(np.array([[[0.5, 0.5], [0.0, 1.0]], [[0.25, 0.75], [0.0, 1.0]]]), 1)
        1.0
    """
    depth, n, _ = capacities.shape
    unit = LARGEST / (n * capacities.max())
    layer, above, below = np.indices(capacities.shape)
    whole = np.rint(capacities * unit).astype(np.int32).ravel()
    start, end = (layer + 1) * n + above, layer * n + below
    graph = coo_array((whole, (start.ravel(), end.ravel())), shape=((depth + 1) * n,) * 2).tocsr()
    return float(maximum_flow(graph, depth * n, token).flow_value / unit)
