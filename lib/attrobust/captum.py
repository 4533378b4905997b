"""captum's classes and signatures over our maps, which can be differentiated: change one import.

    from attrobust.captum import IntegratedGradients      # in place of captum.attr
    IntegratedGradients(model).attribute(images, target=3)

Values are captum's. Where the images ask for a gradient, so does the map, and its derivative is the right one: an
attack or a penalty can go through it. Without that the map comes detached. What an adapter does not know is refused,
never answered otherwise than captum would. `of_captum` goes the other way. captum itself is not needed.
"""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import checks
from attrobust.attributions import cam, deep_lift, guided_backprop, input_x_gradient, occlusion, saliency
from attrobust.shapes import Attribution, Images, Labels, Maps, OnePlane

#: What captum takes for the class that is explained: one for all images, or one for each; without one nothing is said.
Target = int | Sequence[int] | Tensor | None
#: Where a path begins, or what a change is told from; None is black.
Baseline = float | Tensor | None

#: Rules along the path of integrated gradients: shares of it and their weights, for so many steps.
METHODS: dict[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
    "gausslegendre": lambda steps: _to_unit(*np.polynomial.legendre.leggauss(steps)),
    "riemann_middle": lambda steps: ((np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)),
    "riemann_left": lambda steps: (np.arange(steps) / steps, np.full(steps, 1 / steps)),
    "riemann_right": lambda steps: ((np.arange(steps) + 1) / steps, np.full(steps, 1 / steps)),
}


class _Method:
    """A classifier whose maps are asked for: images -> logits."""

    def __init__(self, forward_func: Callable[[Tensor], Tensor]) -> None:
        self.forward_func = checks.function("forward_func", forward_func)

    def _explained(self, attribution: Attribution, inputs: Images, target: Target, more: object) -> Maps:
        """A map with a graph where the images have one, else without."""
        if more is not None:
            raise ValueError(
                f"additional_forward_args is {checks.short(more)}; forward_func must take the images alone"
            )
        if not isinstance(inputs, Tensor):
            raise ValueError(f"inputs is a {type(inputs).__name__}; it must be one tensor of images")
        found = attribution(self.forward_func, inputs, _classes(target, inputs))
        return found if inputs.requires_grad and torch.is_grad_enabled() else found.detach()


class Saliency(_Method):
    """Gradient of the class's logit in the pixels; its absolute value unless `abs` is False.

    Example:
        >>> model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(2, 1, 2, 2)
        >>> Saliency(model).attribute(x, target=[2, 0]).shape
        torch.Size([2, 1, 2, 2])
    """

    def attribute(
        self, inputs: Images, target: Target = None, abs: bool = True, additional_forward_args: object = None
    ) -> Maps:
        """The map of each image."""
        found = self._explained(saliency, inputs, target, additional_forward_args)
        return found.abs() if abs else found


class InputXGradient(_Method):
    """Pixel times gradient."""

    def attribute(self, inputs: Images, target: Target = None, additional_forward_args: object = None) -> Maps:
        """The map of each image."""
        return self._explained(input_x_gradient, inputs, target, additional_forward_args)


class GuidedBackprop(_Method):
    """Gradient whose negative signals end at every activation; smooth ones too, which captum passes by."""

    def attribute(self, inputs: Images, target: Target = None, additional_forward_args: object = None) -> Maps:
        """The map of each image."""
        return self._explained(guided_backprop, inputs, target, additional_forward_args)


class DeepLift(_Method):
    """Shares of the logit's change from an image of one grey, by the rescale rule."""

    def attribute(
        self, inputs: Images, baselines: Baseline = None, target: Target = None, additional_forward_args: object = None
    ) -> Maps:
        """The map of each image."""
        start = 0.0 if baselines is None else baselines
        if isinstance(start, Tensor) and start.numel():
            if float(start.min()) != float(start.max()):
                raise ValueError("baselines holds several values; DeepLift starts from an image of one, as a number")
            start = float(start.min())

        def shares(model: nn.Module, x: Images, classes: Labels) -> Maps:
            return deep_lift(model, x, classes, baseline=start)

        return self._explained(shares, inputs, target, additional_forward_args)


class IntegratedGradients(_Method):
    """Gradient averaged on the straight path from a baseline, times the way: captum's rules, but for the trapezoid.

    Example:
        >>> model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(2, 1, 2, 2)
        >>> change = model(x)[:, 1] - model(0 * x)[:, 1]
        >>> torch.allclose(IntegratedGradients(model).attribute(x, target=1).flatten(1).sum(1), change, atol=1e-5)
        True
    """

    def attribute(
        self, inputs: Images, baselines: Baseline = None, target: Target = None, additional_forward_args: object = None,
        n_steps: int = 50, method: str = "gausslegendre", internal_batch_size: int | None = None,
    ) -> Maps:  # fmt: skip
        """The map of each image; at most `internal_batch_size` copies at a time, all if None."""
        places, weights = METHODS[checks.one_of("method", method, METHODS)](checks.count("n_steps", n_steps))
        most = None if internal_batch_size is None else checks.count("internal_batch_size", internal_batch_size)

        def path(model: nn.Module, x: Images, classes: Labels) -> Maps:
            start = checks.baseline("baselines", 0.0 if baselines is None else baselines, x)
            together = n_steps if most is None else max(1, most // len(x))
            shares, sizes = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (places, weights))
            total = torch.zeros_like(x)
            for some, by in zip(shares.split(together), sizes.split(together), strict=True):
                at = start + some[:, None, None, None, None] * (x - start)
                slopes = saliency(model, at.flatten(0, 1), classes.repeat(len(some))).view_as(at)
                total = total + (by[:, None, None, None, None] * slopes).sum(0)
            return (x - start) * total

        return self._explained(path, inputs, target, additional_forward_args)


class Occlusion(_Method):
    """Fall of the logit when a square is painted over, told for each pixel of it; squares side by side."""

    def attribute(
        self, inputs: Images, sliding_window_shapes: tuple[int, int, int], strides: int | tuple | None = None,
        baselines: float | None = None, target: Target = None, additional_forward_args: object = None,
    ) -> Maps:  # fmt: skip
        """The map of each image. The window covers all channels, and moves by its own side."""
        shape = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()
        window, moves = tuple(sliding_window_shapes), (strides if isinstance(strides, tuple) else (strides,) * 3)
        side = window[-1] if window else 0
        if len(shape) != 3 or window != (shape[0], side, side) or tuple(moves)[-2:] != (side, side):
            raise ValueError(
                f"sliding_window_shapes is {window} and strides {strides}; the window must be a square of all"
                " channels, (channels, side, side), that moves by its side"
            )
        black = checks.number("baselines", 0.0 if baselines is None else baselines)

        def covered(model: nn.Module, x: Images, classes: Labels) -> Maps:
            falls = occlusion(model, x, classes, patch=side, baseline=black)
            return falls.repeat_interleave(side, 2).repeat_interleave(side, 3).expand_as(x)

        return self._explained(covered, inputs, target, additional_forward_args)


class LayerGradCam(_Method):
    """Grad-CAM at the places of a layer, not enlarged; `attributions.grad_cam` enlarges it to the image."""

    def __init__(self, forward_func: nn.Module, layer: nn.Module) -> None:
        super().__init__(forward_func)
        self.layer = checks.kind("layer", layer, nn.Module)

    def attribute(
        self, inputs: Images, target: Target = None, additional_forward_args: object = None,
        attribute_to_layer_input: bool = False, relu_attributions: bool = False,
    ) -> Float[Tensor, "batch 1 rows columns"]:  # fmt: skip
        """The map of each image."""
        if attribute_to_layer_input:
            raise ValueError("attribute_to_layer_input is True; the map is of what the layer returns, so name another")

        def places(model: nn.Module, x: Images, classes: Labels) -> OnePlane:
            return cam.at_layer(model, x, classes, layer=self.layer, positive=relu_attributions)

        return self._explained(places, inputs, target, additional_forward_args)


def of_captum(explainer: Any, **options: object) -> Attribution:
    """Any attribution object of captum as one of our attributions, to report on: (model, x, target) -> map.

    It is asked for `attribute(x, target=target, **options)`. It explains its own network: asked about another one, a
    twin of it say, it is a ValueError. A map without a derivative, as most of captum's are, cannot be attacked by
    climbing; `attacks.auto` refuses it, and `robustness.compare`, `faithfulness` and comparisons with noise take it.

    Example:
        >>> model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(2, 1, 2, 2)
        >>> of_captum(Saliency(model), abs=False)(model, x, torch.tensor([1, 2])).shape
        torch.Size([2, 1, 2, 2])
    """
    if not callable(getattr(explainer, "attribute", None)):
        raise ValueError(f"explainer is a {type(explainer).__name__}; it must have a method attribute, as captum's do")
    own = getattr(explainer, "forward_func", None)

    def reported(model: nn.Module, x: Images, target: Labels) -> Maps:
        if model is not own and getattr(model, "model", None) is not own:
            raise ValueError(
                f"model is a {type(model).__name__} that explainer, a {type(explainer).__name__} of another network,"
                " does not explain; make one of this model"
            )
        found = explainer.attribute(x, target=target, **options)
        if not isinstance(found, Tensor) or len(found) != len(x):
            raise ValueError(f"explainer returned a {type(found).__name__}; it must be one map for each image")
        return found

    return reported


def _classes(target: Target, inputs: Tensor) -> Labels:
    """One class for each image."""
    n = len(inputs)
    if isinstance(target, Integral) and not isinstance(target, bool):
        return torch.full((n,), int(target), device=inputs.device)
    whole = isinstance(target, Sequence) and all(isinstance(t, Integral) for t in target)
    if isinstance(target, Tensor) and not target.is_floating_point():
        target, whole = (target.expand(n) if target.numel() == 1 and target.ndim < 2 else target), True
    if not whole or len(target) != n:
        raise ValueError(
            f"target is {checks.short(target)}; it must be a class index, or one for each of the {n} images"
        )
    return torch.as_tensor(target, dtype=torch.int64, device=inputs.device)


def _to_unit(places: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a rule on [-1, 1], on [0, 1]."""
    return (1 + places) / 2, weights / 2
