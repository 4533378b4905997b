"""Attention attributions: how much the CLS token takes from each patch, (model, x, target) -> one number per patch.

They read the attention matrices A_1 .. A_L that `model.attend(x)` returns, and refuse a model without `attend` or
whose head reads no CLS token; dA_l is the gradient of the target's readout (the logit, unless said otherwise) in A_l,
m(.) the mean over heads, (.)^+ the positive part. Maps are non-negative, (batch, 1, rows, columns): the CLS row at the
patches (`tokens.layout` measures where these are), in reading order, not enlarged to pixels. One with a positive part
may be zero for a whole image: `zero_maps`.
"""

from functools import reduce

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor, nn

from attrobust.attributions.gradients import explained, live
from attrobust.attributions.importance import brings_logits
from attrobust.attributions.tokens import INSTEAD, Layout, layout
from attrobust.models import guards
from attrobust.models.readouts import Readout, logit
from attrobust.shapes import Images, Labels, Logits, OnePlane
from attrobust.versions import versioned

Tokens = Float[Tensor, "batch tokens tokens"]
#: A map, and the logits of the same forward pass where they are asked for.
Found = OnePlane | tuple[OnePlane, Logits]

#: Capacities become whole numbers whose sum over a token's pipes stays below this (a flow is a 32-bit number).
LARGEST = 2**30


@brings_logits
@versioned(1)
def raw_attention(model: nn.Module, x: Images, target: Labels, *, even: bool = False, logits: bool = False) -> Found:
    """What CLS attends to in the last block: m(A_L), for softmax at most 1 in sum. The same for every class.

    A mean over heads counts each by its mass, which kernels that do not divide their rows leave free. With `even` each
    head's map is divided by its sum first, so that all count alike (one of zeros stays).

    Raises:
        ValueError: a model without attention weights, whose `attend` gives other logits than the model itself (in any
            order), or whose tokens are no grid of patches behind a CLS token.

    Example:
        >>> from attrobust import models
        >>> model = models.build("vit", input_shape=(1, 4, 4), classes=2, seed=0, patch=2).eval()
        >>> m = raw_attention(model, torch.full((1, 1, 4, 4), 0.5), torch.tensor([0]))
        >>> tuple(m.shape), bool(m.sum() < 1)  # what is missing to 1 goes to the CLS token itself
        ((1, 1, 2, 2), True)
    """
    scores, weights, places = _attend(model, x, target)
    heads = weights[-1]
    if even:
        mass = heads[:, :, places.cls, places.patches].sum(-1)[..., None, None]
        heads = heads / torch.where(mass > 0, mass, torch.ones_like(mass))
    raw = places.grid(heads.mean(1))
    return (raw, scores) if logits else raw


@brings_logits
@versioned(1)
def rollout(model: nn.Module, x: Images, target: Labels, *, renormalise: bool = True, logits: bool = False) -> Found:
    """Attention followed through all blocks and their skip connections: B_L ... B_1 with B_l = m(A_l) + I.

    The same for every class. With `renormalise`, as in the source (Abnar and Zuidema 2020, "Quantifying attention flow
    in transformers", eq. 1), each row of B_l is divided by its sum. For a kernel whose rows do not sum to one this puts
    back the normalisation it left out, so look at both.

    Raises:
        ValueError: a model without attention weights, whose `attend` gives other logits than the model itself (in any
            order), or whose tokens are no grid of patches behind a CLS token.

    Example:
        >>> from attrobust import models
        >>> model = models.build("vit", input_shape=(1, 4, 4), classes=2, seed=0, patch=2).eval()
        >>> x, y = torch.full((1, 1, 4, 4), 0.5), torch.tensor([0])
        >>> bool((rollout(model, x, y, renormalise=False) > rollout(model, x, y)).all())
        True
    """
    scores, weights, places = _attend(model, x, target)
    maps = [_with_skip(a) for a in weights]
    maps = [m / m.sum(-1, keepdim=True) for m in maps] if renormalise else maps
    rolled = places.grid(reduce(lambda rolled, m: m @ rolled, maps))
    return (rolled, scores) if logits else rolled


@versioned(1)
def gradient_attention(model: nn.Module, x: Images, target: Labels, *, readout: Readout = logit) -> OnePlane:
    """Attention of the last block that speaks for the class: m((dA_L * A_L)^+), eq. 5 of `relevance`'s source.

    Raises:
        ValueError: a model without attention weights, whose `attend` gives other logits than the model itself, or whose
            tokens are no grid of patches behind a CLS token; a readout that does not run the model exactly once.

    Example:
        >>> from attrobust import models
        >>> model = models.build("vit", input_shape=(1, 4, 4), classes=2, seed=0, patch=2).eval()
        >>> m = gradient_attention(model, torch.full((1, 1, 4, 4), 0.5), torch.tensor([0]))
        >>> tuple(m.shape), bool((m >= 0).all())
        ((1, 1, 2, 2), True)
    """
    updates, places = _speaking_for(model, x, target, readout, blocks=1)
    return places.grid(updates[0])


@versioned(1)
def relevance(model: nn.Module, x: Images, target: Labels, *, readout: Readout = logit) -> OnePlane:
    """Relevance through all blocks: R <- R + m((dA_l * A_l)^+) R, from R = I.

    Chefer et al. 2021, "Generic attention-model explainability", eqs. 5 and 6.

    Raises:
        ValueError: a model without attention weights, whose `attend` gives other logits than the model itself, or whose
            tokens are no grid of patches behind a CLS token; a readout that does not run the model exactly once.

    Example:
        >>> from attrobust import models
        >>> model = models.build("vit", input_shape=(1, 4, 4), classes=2, seed=0, patch=2).eval()
        >>> m = relevance(model, torch.full((1, 1, 4, 4), 0.5), torch.tensor([0]))
        >>> tuple(m.shape), bool((m >= 0).all())
        ((1, 1, 2, 2), True)
    """
    updates, places = _speaking_for(model, x, target, readout)
    return places.grid(passed_on(updates))


def passed_on(updates: list[Tokens]) -> Tokens:
    """Relevance R of tokens for tokens after R <- R + U_l R for every update, first block first."""
    relevances = torch.eye(updates[0].shape[-1]).to(updates[0]).expand_as(updates[0])
    for update in updates:
        relevances = relevances + update @ relevances
    return relevances


def attention_flow(model: nn.Module, x: Images, target: Labels) -> OnePlane:
    """Maximum flow from the top CLS token to each patch; between blocks, token i to token j holds (m(A_l) + I)_ij.

    In units of attention, exact to about 1e-7, the same for every class. Slow (one maximum flow per patch and image, on
    the CPU) and without a gradient: an attack can only be carried over to it, not climb on it. (Section 3 of
    `rollout`'s source, there with rows divided by their sum, for softmax a factor of two.)

    Raises:
        ValueError: a model without attention weights, whose `attend` gives other logits than the model itself (in any
            order), or whose tokens are no grid of patches behind a CLS token.

    Example:
        >>> from attrobust import models
        >>> model = models.build("vit", input_shape=(1, 4, 4), classes=2, seed=0, patch=2).eval()
        >>> attention_flow(model, torch.full((1, 1, 4, 4), 0.5), torch.tensor([0])).shape
        torch.Size([1, 1, 2, 2])
    """
    with torch.no_grad():
        _, weights, places = _attend(model, x, target)
        maps = torch.stack([_with_skip(w) for w in weights], dim=1)
    rows = torch.zeros_like(maps[:, 0])
    for image, layers in enumerate(maps.double().cpu().numpy()):
        for token in places.patches.tolist():
            rows[image, places.cls, token] = max_flow(layers, token, top=places.cls)
    return places.grid(rows)


def max_flow(capacities: Float[np.ndarray, "layers tokens tokens"], token: int, *, top: int = 0) -> float:
    """Maximum flow from token `top` above the last layer to `token` below the first."""
    depth, n, _ = capacities.shape
    most = capacities.sum((1, 2)).min() or 1.0
    capacities = np.minimum(capacities, most)  # more flows through none, and a huge one would leave others no digits
    unit = LARGEST / (n * capacities.max())
    layer, above, below = np.indices(capacities.shape)
    whole = np.rint(capacities * unit).astype(np.int32).ravel()
    start, end = (layer + 1) * n + above, layer * n + below
    graph = coo_array((whole, (start.ravel(), end.ravel())), shape=((depth + 1) * n,) * 2).tocsr()
    return float(maximum_flow(graph, depth * n + top, token).flow_value / unit)


def _attend(model: nn.Module, x: Images, target: Labels) -> tuple[Tensor, list[Tensor], Layout]:
    """Logits and attention matrices of the model, and where its tokens lie."""
    if not callable(getattr(model, "attend", None)):
        raise ValueError(
            f"model is {type(model).__name__}, which has no `attend`; an attention map needs a transformer such as"
            " models.build('vit', ...)"
        )
    guards.classifier(model, x, target)
    logits, weights = model.attend(x)
    return logits, weights, layout(model, x, weights)


def _with_skip(weights: Float[Tensor, "batch heads tokens tokens"]) -> Tokens:
    """Mean over heads, and one on the diagonal for the skip connection: m(A) + I."""
    return weights.mean(1) + torch.eye(weights.shape[-1]).to(weights)


def _speaking_for(
    model: nn.Module, x: Images, target: Labels, readout: Readout, *, blocks: int = 0
) -> tuple[list[Tokens], Layout]:
    """m((dA_l * A_l)^+) of the last `blocks` blocks, or of all, and where the tokens lie."""
    # The matrices always need a graph; their gradient needs one only if somebody can differentiate through the map.
    at, weights = live(model, x, target, readout), getattr(model, "parameters", list)()
    lasting = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in weights))
    with torch.enable_grad():
        seen: list[tuple[list[Tensor], Layout]] = []

        def run(images: Images) -> Tensor:
            logits, maps, places = _attend(model, images, target)
            seen.append((maps, places))
            return logits

        chosen = explained(run, at, target, readout)
        if len(seen) != 1:
            raise ValueError(f"readout runs the model {len(seen)} times; it must run it once, on x, which is explained")
        ((maps, places),) = seen
        maps = maps[-blocks:]
        if places.apart:  # as where they are given to other classes, which a map of no class does not mind
            raise ValueError(f"model gives other logits by `attend`, by up to {places.apart:.2g}; {INSTEAD}")
        slopes = torch.autograd.grad(chosen, maps, create_graph=lasting)
        updates = [(slope * a).clamp_min(0).mean(1) for slope, a in zip(slopes, maps, strict=True)]
    return updates if lasting else [u.detach() for u in updates], places
