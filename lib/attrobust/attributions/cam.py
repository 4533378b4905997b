"""Grad-CAM: what a convolutional layer saw, weighed by what the class makes of it, enlarged to the image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust import checks
from attrobust.attributions.gradients import explained, live
from attrobust.models.readouts import Readout, logit
from attrobust.shapes import Images, Labels, OnePlane


def grad_cam(
    model: nn.Module, x: Images, target: Labels, *, layer: nn.Module, positive: bool = False, readout: Readout = logit
) -> OnePlane:
    """Sum of a layer's channels A_k, each times the mean over places of dz_target / dA_k; enlarged bilinearly.

    The layer is as a rule the last convolution or the activation behind it; a readout that does not depend on it has a
    map of zeros. With `positive`, as in the source, negative values become 0 before enlarging; then a map may be zero
    for a whole image, see `zero_maps`. 1 forward pass, 1 backward down to the layer. Differentiable in x where the
    network is smooth from the pixels to the logit (and `positive` is off); on a ReLU network attack it on a smooth
    twin, which runs the same layer. A ValueError refuses a layer that does not run exactly once, or does not return
    (batch, channels, rows, columns), and x that is no batch of images. (Selvaraju et al. 2017, "Grad-CAM: visual
    explanations from deep networks", eqs. 1 and 2.)

    Example:
        >>> conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> grad_cam(conv, torch.full((1, 1, 4, 4), 0.5), torch.tensor([0]), layer=conv[0]).shape
        torch.Size([1, 1, 4, 4])
    """
    maps = coarse_grad_cam(model, x, target, layer=layer, positive=positive, readout=readout)
    return F.interpolate(maps, size=x.shape[-2:], mode="bilinear")


def coarse_grad_cam(
    model: nn.Module, x: Images, target: Labels, *, layer: nn.Module, positive: bool = False, readout: Readout = logit
) -> OnePlane:
    """`grad_cam` of the layer's own size, not enlarged."""
    if isinstance(checks.kind("layer", layer, nn.Module), torch.jit.ScriptModule):
        raise ValueError("layer is TorchScript, inside which nothing can be seen; explain the module it was made of")
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (batch, channels, height, width)")
    seen: list[object] = []

    def keep(module: nn.Module, inputs: tuple, output: object) -> object:
        seen.append(output)
        return output.clone() if isinstance(output, Tensor) else output  # the next layer may work in place

    lasting, x = torch.is_grad_enabled(), live(model, x, target, readout)
    with layer.register_forward_hook(keep), torch.enable_grad():
        chosen = explained(model, x, target, readout)
    name = type(layer).__name__
    if len(seen) != 1:
        raise ValueError(f"layer is a {name} that ran {len(seen)} times; it must be a module that the model runs once")
    (features,) = seen
    if not isinstance(features, Tensor) or features.ndim != 4 or len(features) != len(x):
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"layer is a {name} that returned {shape}; it must return (batch, channels, rows, columns)")
    with torch.enable_grad():
        how = {"create_graph": lasting, "allow_unused": True, "materialize_grads": True}
        weights = torch.autograd.grad(chosen, features, **how)[0].mean((2, 3), keepdim=True)
        maps = (weights * features).sum(1, keepdim=True)
        maps = maps.clamp_min(0) if positive else maps
        return maps if lasting else maps.detach()
