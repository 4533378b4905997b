"""Attribution maps, (model, x, target) -> map, differentiable in x unless said otherwise.

Input attributions return a signed map of the image's shape (Grad-CAM one channel of it); attention attributions one
non-negative number per patch, (batch, 1, rows, columns). `patches` brings the first to the grid of the second.
"""

from attrobust.attributions.attention import gradient_attention, raw_attention, relevance, rollout
from attrobust.attributions.cam import grad_cam
from attrobust.attributions.comparison import distances, similarities
from attrobust.attributions.flow import attention_flow
from attrobust.attributions.gradients import (
    Images,
    Labels,
    input_x_gradient,
    integrated_gradients,
    saliency,
    smooth_grad,
    uniform_grad,
)
from attrobust.attributions.importance import on_patches, patches, pixelwise, zero_maps
from attrobust.attributions.propagation import deep_lift, guided_backprop, lrp

__all__ = [
    "Images",
    "Labels",
    "attention_flow",
    "deep_lift",
    "distances",
    "grad_cam",
    "gradient_attention",
    "guided_backprop",
    "input_x_gradient",
    "integrated_gradients",
    "lrp",
    "on_patches",
    "patches",
    "pixelwise",
    "raw_attention",
    "relevance",
    "rollout",
    "saliency",
    "similarities",
    "smooth_grad",
    "uniform_grad",
    "zero_maps",
]
