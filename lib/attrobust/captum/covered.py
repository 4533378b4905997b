"""Maps of places: windows that are covered, and the places of a layer."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from attrobust import checks
from attrobust.attributions.cam import coarse_grad_cam
from attrobust.captum.adapter import Adapter, Target, asked, graph, only
from attrobust.models import guards
from attrobust.models.readouts import logit
from attrobust.shapes import Images, Inputs, OnePlane


class LayerGradCam(Adapter):
    """Sum of a layer's channels, each times the mean of its gradient; of the layer's own size, not enlarged.

    Args:
        forward_func: images -> logits.
        layer: module that the network runs once, of (batch, channels, rows, columns).
        device_ids: None alone is supported.

    Example:
        >>> conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> LayerGradCam(conv, conv[0]).attribute(torch.full((1, 1, 4, 4), 0.5), target=0).shape
        torch.Size([1, 1, 2, 2])
    """

    layer: nn.Module

    def __init__(self, forward_func: Callable[[Tensor], Tensor], layer: nn.Module, device_ids: None = None) -> None:
        super().__init__(forward_func)
        self.layer = checks.kind("layer", layer, nn.Module)
        only("device_ids", device_ids, None)

    def attribute(
        self, inputs: Images, target: Target = None, additional_forward_args: object = None,
        attribute_to_layer_input: bool = False, relu_attributions: bool = False, attr_dim_summation: bool = True,
        grad_kwargs: object = None,
    ) -> OnePlane:  # fmt: skip
        """Map of each image; without its negative part if `relu_attributions`, the only option that may change."""
        x, labels = asked(inputs, target, additional_forward_args)
        only("attribute_to_layer_input", attribute_to_layer_input, False)
        only("attr_dim_summation", attr_dim_summation, True)
        only("grad_kwargs", grad_kwargs, None)
        with graph(x):
            return coarse_grad_cam(self.network, x, labels, layer=self.layer, positive=relu_attributions)


class Occlusion(Adapter):
    """Fall of the logit where a window is covered, averaged over the windows that hold a pixel.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
        >>> x = torch.rand(1, 1, 2, 2)
        >>> m = Occlusion(linear).attribute(x, (1, 1, 1), target=2)
        >>> torch.allclose(m, x * linear[1].weight[2].view_as(x), atol=1e-6)
        True
    """

    def attribute(
        self, inputs: Inputs, sliding_window_shapes: tuple[int, ...], strides: int | tuple[int, ...] | None = None,
        baselines: float | Tensor | None = None, target: Target = None, additional_forward_args: object = None,
        perturbations_per_eval: int = 1, show_progress: bool = False,
    ) -> Inputs:  # fmt: skip
        """Map of each image.

        Args:
            inputs, target: images and explained classes.
            sliding_window_shapes: sides of the window, one for each axis of an image.
            strides: steps of the window, one for all axes or one for each, no longer than its side; 1 if None.
            baselines: what covers, a number or a tensor that spreads over the images; 0 if None.
            additional_forward_args, show_progress: captum's defaults alone are supported.
            perturbations_per_eval: windows of every image in one batch.
        """
        x, labels = asked(inputs, target, additional_forward_args)
        only("show_progress", show_progress, False)
        cover = checks.baseline("baselines", 0.0 if baselines is None else baselines, x)
        checks.count("perturbations_per_eval", perturbations_per_eval)
        windows = _windows(sliding_window_shapes, strides, x)
        guards.classifier(self.network, x, labels)
        falls, covered = torch.zeros_like(x), torch.zeros_like(x[:1])
        with graph(x):
            whole = logit(self.network, x, labels)
            for first in range(0, len(windows), perturbations_per_eval):
                some = windows[first : first + perturbations_per_eval]
                masks = torch.stack(some)[:, None]
                hidden = torch.where(masks, cover, x).flatten(0, 1)
                fall = whole - logit(self.network, hidden, labels.repeat(len(some))).view(len(some), len(x))
                falls = falls + (fall.view(*fall.shape, *(1,) * (x.ndim - 1)) * masks).sum(0)
                covered = covered + masks.sum(0)
            return falls / covered


def _windows(shape: tuple[int, ...], strides: int | tuple[int, ...] | None, x: Inputs) -> list[Tensor]:
    """Which pixels each window covers; the last ones of an axis end where the image does."""
    sides, whole = tuple(checks.kind("sliding_window_shapes", shape, tuple, list)), x.shape[1:]
    strides = 1 if strides is None else strides
    steps = (strides,) * len(sides) if isinstance(strides, int) else tuple(checks.kind("strides", strides, tuple, list))
    if not len(sides) == len(steps) == len(whole):
        raise ValueError(
            f"sliding_window_shapes is {sides} and strides {steps}; each must have one number for each axis of an image"
            f" of {tuple(whole)}"
        )
    places = []
    for side, step, length in zip(sides, steps, whole, strict=True):
        checks.count("a side of sliding_window_shapes", side, most=length)
        checks.count("a stride", step, most=side)
        starts = range(0, math.ceil((length - side) / step) * step + 1, step)
        along = torch.arange(length, device=x.device)
        places.append([(start <= along) & (along < start + side) for start in starts])
    grids = itertools.product(*places)
    return [torch.stack(torch.meshgrid(*axes, indexing="ij")).all(0) for axes in grids]
