"""Another attention in a network that exists: our kernels in our transformers and in those of Hugging Face.

A swapped network is a copy of the modules around the *same* weights: training one trains the other, and swapping back
is swapping in "softmax", or using the original. Hugging Face models (extra: pip install attrobust[hf]) look their
attention up by name; `register` puts our kernels among the names. Their weights are the kernel's matrix, in the graph.

What `save_pretrained` writes of such a model names its kernel. `from_pretrained` gives the kernel back where `register`
has been called in the process, and raises transformers' ValueError where it has not.
"""

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial, wraps

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust import attention as kernels
from attrobust import checks
from attrobust.attention import Kernel, Mask, Weights
from attrobust.shapes import Images, Logits

#: How a kernel is called among transformers' attentions: with this before its name.
PREFIX = "attrobust_"

#: The layers that called a kernel, while somebody counts.
_CALLS: ContextVar[list[nn.Module] | None] = ContextVar("calls", default=None)


def attention(model: nn.Module, name: str, *, inputs: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The same network with another of `attention.KERNELS` and the same weights (shared, not copied).

    The network has our `attention.Attention` layers, or is a model of transformers; or it holds such. A model of
    transformers is run once, on `inputs` (made from its configuration if None), and the calls of the kernel are
    counted. A ValueError refuses a network in which none came, or fewer than there are layers of attention, and
    attention with scores of its own kind (another scale, a soft cap, sinks, biases).

    Example:
        >>> layer = kernels.Attention(6, 2)
        >>> swapped = attention(layer, "gaussian")
        >>> swapped.kernel, swapped.qkv.weight is layer.qkv.weight
        (Kernel(score=sqdist, link=exp, norm=none), True)
    """
    checks.one_of("attention", name, kernels.KERNELS)
    checks.kind("model", model, nn.Module)
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    ours = [module for module in twin.modules() if isinstance(module, kernels.Attention)]
    theirs = [module for module in twin.modules() if hasattr(module, "set_attn_implementation")]
    for module in ours:
        module.kernel = kernels.kernel(name)
    for module in theirs:
        module.set_attn_implementation(register(name))
    inside = {id(part) for module in theirs for part in module.modules() if part is not module}
    counts = [_counted(module, inputs) for module in theirs if id(module) not in inside]
    if not ours and not any(called for called, _ in counts):
        raise ValueError(
            f"model is {type(model).__name__}, whose attention cannot be swapped; it must hold `attention.Attention`"
            " layers or be a model of transformers that looks its attention up by name, and calls it on `inputs`"
        )
    for called, layers in counts:
        if called < layers:
            raise ValueError(
                f"model is {type(model).__name__}, of whose {layers} layers of attention {called} look it up by name;"
                " all must, so that no softmax stays among the kernels"
            )
    return twin


def _counted(model: nn.Module, inputs: Mapping[str, Tensor] | None) -> tuple[int, int]:
    """How often a model of transformers calls a kernel, and how many attention matrices it says it has."""
    training, layers = [module for module in model.modules() if module.training], 0
    token = _CALLS.set([])
    try:
        with torch.no_grad(), torch.random.fork_rng():
            output = model.eval()(**(_made(model) if inputs is None else inputs), output_attentions=True)
        layers = sum(len(found or ()) for key, found in output.items() if key.endswith("attentions"))
    except _OfItsOwnKindError:
        raise
    except Exception:
        if inputs is not None:
            raise  # what was made from the configuration may not suit; what came before it did not is counted
    finally:
        called = len(_CALLS.get())
        _CALLS.reset(token)
        for module in training:
            module.training = True
    return called, layers


def _made(model: nn.Module) -> dict[str, Tensor]:
    """One blank image and one short text, of those that a model of transformers takes."""
    like, config = next(model.parameters()), model.config
    vision, words = getattr(config, "vision_config", config), getattr(config.get_text_config(), "vocab_size", 1)
    size = getattr(vision, "image_size", None) or 224
    size = (size, size) if isinstance(size, int) else tuple(size)
    image = torch.zeros(1, getattr(vision, "num_channels", 3), *size[-2:]).to(like)
    text = torch.arange(4, device=like.device)[None] % words
    made = {"pixel_values": image, "input_ids": text, "decoder_input_ids": text}
    return {name: made[name] for name in inspect.signature(model.forward).parameters if name in made}


def register(name: str) -> str:
    """Make a kernel known to transformers, with boolean masks; returns the `attn_implementation` it is there.

    Raises:
        ValueError: an unknown kernel.
        ImportError: where transformers is not installed.

    Example:
        >>> from attrobust import swap  # of extra `hf`
        >>> swap.register("gaussian")
        'attrobust_gaussian'
    """
    mix = partial(_mix, kernels.kernel(name))
    try:
        from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
        from transformers.masking_utils import sdpa_mask
    except ImportError as error:
        raise ImportError("swap needs transformers for this; install it by pip install attrobust[hf]") from error

    def mask(*arguments: object, **options: object) -> Tensor | None:
        """Allowed keys as booleans, the causal ones spelled out."""
        return sdpa_mask(*arguments, **(options | {"allow_is_causal_skip": False}))

    AttentionInterface.register(PREFIX + name, mix)
    AttentionMaskInterface.register(PREFIX + name, mask)
    if not hasattr(PreTrainedConfig.to_dict, "__wrapped__"):
        PreTrainedConfig.to_dict = _naming_the_kernel(PreTrainedConfig.to_dict)
    return PREFIX + name


def _naming_the_kernel(to_dict: Callable) -> Callable:
    """What transformers writes of a configuration, with the kernel: of itself it forgets every attention."""

    @wraps(to_dict)
    def named(config: object) -> dict:
        known = config._attn_implementation
        return to_dict(config) | ({"attn_implementation": known} if str(known).startswith(PREFIX) else {})

    return named


class ImageClassifier(nn.Module):
    """An image classifier of transformers that answers as our models do, of pixels standardised by `mean`, `std`.

    Raises:
        ValueError: a model that does not take `pixel_values`, a `mean` that is not finite, or a `std` that is not above
            0.

    Example:
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        >>> config = ViTConfig(image_size=4, patch_size=2, num_channels=1, num_labels=3, **size)
        >>> ImageClassifier(ViTForImageClassification(config), mean=0.5, std=0.5)(torch.zeros(2, 1, 4, 4)).shape
        torch.Size([2, 3])
    """

    model: nn.Module
    mean: float
    std: float
    training: bool

    def __init__(self, model: nn.Module, *, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.model = checks.kind("model", model, nn.Module)
        takes = inspect.signature(model.forward).parameters
        if "pixel_values" not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            raise ValueError(
                f"model is {type(model).__name__}, which takes ({', '.join(takes)}); it must be an image classifier of"
                " transformers, which takes pixel_values"
            )
        self.mean, self.std = checks.number("mean", mean), checks.positive("std", std)
        self.training = model.training

    def forward(self, x: Images) -> Logits:
        """Logits of each image."""
        return self._logits(self.model(pixel_values=(checks.floating("x", x) - self.mean) / self.std))

    def attend(self, x: Images) -> tuple[Logits, list[Tensor]]:
        """Logits, and the attention matrix of every block, first block first; live. Windows have a matrix each."""
        pixels = (checks.floating("x", x) - self.mean) / self.std
        output = self.model(pixel_values=pixels, output_attentions=True)
        found = getattr(output, "attentions", None)
        if not found or any(weights is None for weights in found):
            raise ValueError(
                "model returns no attention weights; build it with attn_implementation='eager', or by"
                f" swap.attention(model, 'softmax'), if {type(self.model).__name__} has attention at all"
            )
        return self._logits(output), list(found)

    def _logits(self, output: object) -> Logits:
        if not hasattr(output, "logits"):
            raise ValueError(
                f"model returns a {type(output).__name__} without logits; it must be an image classifier of"
                f" transformers with a head and return_dict=True, which {type(self.model).__name__} is not"
            )
        return output.logits


class _OfItsOwnKindError(ValueError):
    """Attention that a kernel cannot stand in for."""


def _mix(
    kernel: Kernel, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Mask | None, **options
) -> tuple[Float[Tensor, "batch queries heads width"], Weights]:
    """What transformers calls in place of its attention: mixed values, tokens before heads, and the mixing matrix."""
    if _CALLS.get() is not None:
        _CALLS.get().append(module)
    usual, scaling = query.shape[-1] ** -0.5, options.get("scaling")
    if scaling is not None and not math.isclose(scaling, usual, rel_tol=1e-6):
        raise _OfItsOwnKindError(f"model scales its scores by {scaling:g}; a kernel scales by 1 / sqrt(dim), {usual:g}")
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        dtype = attention_mask.dtype
        raise _OfItsOwnKindError(f"attention_mask has dtype {dtype}; it must be boolean, True where a key may be read")
    if attention_mask is not None and not attention_mask.all() and kernel.norm == "rows_and_columns":
        raise ValueError(f"the kernel is {kernel}, in which every query enters the others' rows; a mask hides none")
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise _OfItsOwnKindError(f"the model asks its attention for {name}, which a kernel does not know")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    weights = F.dropout(kernel(query, key, mask=attention_mask), options.get("dropout", 0.0), module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
