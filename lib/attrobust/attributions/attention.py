"""Attention attributions: how much the CLS token takes from each patch, (model, x, target) -> one number per patch.

They read the attention matrices A_1 .. A_L that `model.attend(x)` returns, token 0 being CLS; dA_l is the gradient
of the target's readout (the logit, unless said otherwise) in A_l, m(.) the mean over heads, (.)^+ the positive part.
Maps are (batch, 1, rows, columns): the CLS row without the CLS column, in reading order, not enlarged to pixels.

A map with a positive part may be zero for a whole image; `zero_maps` finds such images.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import checks
from attrobust.models.readouts import Readout, logit
from attrobust.shapes import Images, Labels
from attrobust.versions import versioned

Patches = Float[Tensor, "batch 1 rows columns"]
Tokens = Float[Tensor, "batch tokens tokens"]


@versioned(1)
def raw_attention(model: nn.Module, x: Images, target: Labels) -> Patches:
    """What CLS attends to in the last block: m(A_L). The same for every class.

    Args:
        model: classifier in eval mode with `attend`, such as `models.ViT`.
        x: images, pixels in [0, 1].
        target: ignored; attributions share one signature.

    Returns:
        One non-negative number per patch; for softmax, at most 1 in sum.

    Raises:
        ValueError: if the model has no `attend`.
    """
    return from_cls(attend(model, x)[1][-1].mean(1), x)


@versioned(1)
def rollout(model: nn.Module, x: Images, target: Labels, *, renormalise: bool = True) -> Patches:
    """Attention followed through all blocks and their skip connections: B_L ... B_1 with B_l = m(A_l) + I.

    Args:
        model: classifier in eval mode with `attend`.
        x: images, pixels in [0, 1].
        target: ignored; the map is the same for every class.
        renormalise: whether each row of B_l is divided by its sum, as in the source. For a kernel whose rows do not
            sum to one this puts back the normalisation it left out, so look at both.

    Returns:
        One non-negative number per patch.

    Raises:
        ValueError: if the model has no `attend`.

    Reference: Abnar and Zuidema 2020, "Quantifying attention flow in transformers", eq. 1.
    """
    maps = [with_skip(weights) for weights in attend(model, x)[1]]
    if renormalise:
        maps = [m / m.sum(-1, keepdim=True) for m in maps]
    rolled = maps[0]
    for m in maps[1:]:
        rolled = m @ rolled
    return from_cls(rolled, x)


@versioned(1)
def gradient_attention(model: nn.Module, x: Images, target: Labels, *, readout: Readout = logit) -> Patches:
    """Attention of the last block that speaks for the class: m((dA_L * A_L)^+).

    Args:
        model: classifier in eval mode with `attend`.
        x: images, pixels in [0, 1].
        target: explained class of each image.
        readout: (model, x, target) -> the number of each image that is explained.

    Returns:
        One non-negative number per patch.

    Raises:
        ValueError: if the model has no `attend`.

    Reference: Chefer et al. 2021, "Generic attention-model explainability", eq. 5, of the last block.
    """
    return from_cls(_speaking_for(model, x, target, readout, blocks=1)[0], x)


@versioned(1)
def relevance(model: nn.Module, x: Images, target: Labels, *, readout: Readout = logit) -> Patches:
    """Relevance passed through all blocks: R <- R + m((dA_l * A_l)^+) R, from R = I.

    Args:
        model: classifier in eval mode with `attend`.
        x: images, pixels in [0, 1].
        target: explained class of each image.
        readout: (model, x, target) -> the number of each image that is explained.

    Returns:
        One non-negative number per patch.

    Raises:
        ValueError: if the model has no `attend`.

    Reference: Chefer et al. 2021, "Generic attention-model explainability", eqs. 5 and 6.
    """
    return from_cls(passed_on(_speaking_for(model, x, target, readout)), x)


def passed_on(updates: list[Tokens]) -> Tokens:
    """Relevance R of tokens for tokens after R <- R + U_l R for every update, first block first."""
    relevances = torch.eye(updates[0].shape[-1]).to(updates[0]).expand_as(updates[0])
    for update in updates:
        relevances = relevances + update @ relevances
    return relevances


def attend(model: nn.Module, x: Images) -> tuple[Tensor, list[Tensor]]:
    """Logits and attention matrices of the model.

    Raises:
        ValueError: if it has none.
    """
    if not callable(getattr(model, "attend", None)):
        raise ValueError(
            f"model is {type(model).__name__}, which has no `attend`; an attention map needs a transformer such as"
            " models.build('vit', ...)"
        )
    return model.attend(x)


def with_skip(weights: Float[Tensor, "batch heads tokens tokens"]) -> Tokens:
    """Mean over heads, and one on the diagonal for the skip connection: m(A) + I."""
    return weights.mean(1) + torch.eye(weights.shape[-1]).to(weights)


def from_cls(matrix: Tokens, x: Images) -> Patches:
    """The CLS row without its own column, laid out as the patches of the images lie."""
    row = matrix[:, 0, 1:]
    height, width = x.shape[-2:]
    side = round((height * width / row.shape[1]) ** 0.5)
    return row.unflatten(1, (height // side, width // side))[:, None]


def _speaking_for(model: nn.Module, x: Images, target: Labels, readout: Readout, *, blocks: int = 0) -> list[Tokens]:
    """m((dA_l * A_l)^+) of the last `blocks` blocks, or of all.

    The matrices need a graph even where neither images nor weights ask for one; their gradient needs one only if
    somebody can differentiate through the map.
    """
    live = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in model.parameters()))
    x = x if x.requires_grad else x.detach().requires_grad_()
    with torch.enable_grad():
        maps: list[Tensor] = []

        def run(images: Images) -> Tensor:
            logits, maps[:] = attend(model, images)
            return logits

        chosen = checks.per_image("readout", readout(run, x, target), batch=len(x)).sum()
        maps = maps[-blocks:]
        slopes = torch.autograd.grad(chosen, maps, create_graph=live)
        updates = [(slope * a).clamp_min(0).mean(1) for slope, a in zip(slopes, maps, strict=True)]
    return updates if live else [u.detach() for u in updates]
