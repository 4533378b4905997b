"""Attribution maps, (model, x, target) -> map, differentiable in x unless said otherwise.

Input attributions return a signed map of the image's shape; attention attributions one non-negative number per
patch, (batch, 1, rows, columns). `patches` brings the first to the grid of the second.
"""

from attrobust.attributions.attention import gradient_attention, raw_attention, relevance, rollout
from attrobust.attributions.flow import attention_flow
from attrobust.attributions.gradients import (
    Images,
    Labels,
    input_x_gradient,
    integrated_gradients,
    saliency,
    smooth_grad,
)
from attrobust.attributions.importance import on_patches, patches, pixelwise, zero_maps

__all__ = [
    "Images",
    "Labels",
    "attention_flow",
    "gradient_attention",
    "input_x_gradient",
    "integrated_gradients",
    "on_patches",
    "patches",
    "pixelwise",
    "raw_attention",
    "relevance",
    "rollout",
    "saliency",
    "smooth_grad",
    "zero_maps",
]
