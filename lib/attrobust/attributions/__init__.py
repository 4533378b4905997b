"""Attribution maps, (model, x, target) -> map, differentiable in x unless said otherwise.

Input attributions return a signed map of the image's shape (Grad-CAM one channel of it); attention attributions one
non-negative number per patch, (batch, 1, rows, columns). `patches` brings the first to the grid of the second.

All take a classifier in eval mode, whose flags are left as found, images with pixels in [0, 1], and the explained class
of each; many a `readout` too: (model, x, target) -> the number of each image that is explained, instead of the logit.
They refuse in a sentence (ValueError) a model that does not return logits of shape (batch, classes), a readout that is
not one number per image, and an option out of range.
"""

from attrobust.attributions.attention import attention_flow, gradient_attention, raw_attention, relevance, rollout
from attrobust.attributions.cam import grad_cam
from attrobust.attributions.gradients import input_x_gradient, integrated_gradients, saliency, smooth_grad, uniform_grad
from attrobust.attributions.importance import (
    brings_logits,
    drawn_on_patches,
    draws_for_each,
    on_patches,
    patches,
    pixelwise,
    with_logits,
    zero_maps,
)
from attrobust.attributions.occlusion import occlusion
from attrobust.attributions.propagation import deep_lift, guided_backprop, lrp

__all__ = [
    "attention_flow", "brings_logits", "deep_lift", "drawn_on_patches", "draws_for_each", "grad_cam",
    "gradient_attention", "guided_backprop", "input_x_gradient", "integrated_gradients",
    "lrp", "occlusion", "on_patches", "patches", "pixelwise",
    "raw_attention", "relevance", "rollout", "saliency", "smooth_grad", "uniform_grad", "with_logits", "zero_maps",
]  # fmt: skip
