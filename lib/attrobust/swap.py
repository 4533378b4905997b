"""Another attention in a network that exists: our kernels in our transformers and in those of Hugging Face.

A swapped network is a copy of the modules around the *same* weights: training one trains the other, and swapping back
is swapping in "softmax", or using the original. Hugging Face models (extra: pip install attrobust[hf]) look their
attention up by name; `register` puts our kernels among the names. Their weights are the kernel's matrix, in the graph.
"""

import copy
import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust import attention as kernels
from attrobust import checks
from attrobust.attention import Kernel, Mask, Matrix, Weights
from attrobust.shapes import Images, Logits


def attention(model: nn.Module, name: str) -> nn.Module:
    """The same network with another of `attention.KERNELS` and the same weights (shared, not copied).

    The network has our `attention.Attention` layers, or is a model of transformers; or it holds such. Others raise a
    ValueError, as does, when it runs, attention with scores of its own kind (another scale, a soft cap, sinks, biases).

    Example:
        >>> layer = kernels.Attention(6, 2)
        >>> swapped = attention(layer, "gaussian")
        >>> swapped.kernel, swapped.qkv.weight is layer.qkv.weight
        (Kernel(score=sqdist, link=exp, norm=none), True)
    """
    checks.one_of("attention", name, kernels.KERNELS)
    shared = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    found = 0
    for module in list(twin.modules()):
        if isinstance(module, kernels.Attention):
            module.kernel, found = kernels.kernel(name), found + 1
        elif hasattr(module, "set_attn_implementation"):
            module.set_attn_implementation(register(name))
            found += module.config._attn_implementation == register(name)
    if not found:
        raise ValueError(
            f"model is {type(model).__name__}, whose attention cannot be swapped; it must hold `attention.Attention`"
            " layers or be a model of transformers that looks its attention up by name"
        )
    return twin


def register(name: str) -> str:
    """Make a kernel known to transformers, with boolean masks; returns the `attn_implementation` it is there."""
    mix = partial(_mix, kernels.kernel(name))
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask
    except ImportError as error:
        raise ImportError("swap needs transformers for this; install it by pip install attrobust[hf]") from error

    def mask(*arguments: object, **options: object) -> Tensor | None:
        """Allowed keys as booleans, the causal ones spelled out."""
        return sdpa_mask(*arguments, **(options | {"allow_is_causal_skip": False}))

    known = f"attrobust_{name}"
    AttentionInterface.register(known, mix)
    AttentionMaskInterface.register(known, mask)
    return known


class ImageClassifier(nn.Module):
    """An image classifier of transformers that answers as our models do, of pixels standardised by `mean`, `std`."""

    def __init__(self, model: nn.Module, *, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, checks.positive("std", std)
        self.training = model.training

    def forward(self, x: Images) -> Logits:
        """Logits of each image."""
        return self.model(pixel_values=(x - self.mean) / self.std).logits

    def attend(self, x: Images) -> tuple[Logits, list[Matrix]]:
        """Logits, and the attention matrix of every block, first block first; live."""
        output = self.model(pixel_values=(x - self.mean) / self.std, output_attentions=True)
        if not output.attentions or any(weights is None for weights in output.attentions):
            raise ValueError("model returns no attention weights; build it with attn_implementation='eager', or swap")
        return output.logits, list(output.attentions)


def _mix(
    kernel: Kernel, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Mask | None, **options
) -> tuple[Float[Tensor, "batch queries heads width"], Weights]:
    """What transformers calls in place of its attention: mixed values, tokens before heads, and the mixing matrix."""
    usual, scaling = query.shape[-1] ** -0.5, options.get("scaling")
    if scaling is not None and not math.isclose(scaling, usual, rel_tol=1e-6):
        raise ValueError(f"the model scales its scores by {scaling:g}; a kernel scales by 1 / sqrt(dim), {usual:g}")
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        dtype = attention_mask.dtype
        raise ValueError(f"attention_mask has dtype {dtype}; it must be boolean, True where a key may be read")
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"the model asks its attention for {name}, which a kernel does not know")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    weights = F.dropout(kernel(query, key, mask=attention_mask), options.get("dropout", 0.0), module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
