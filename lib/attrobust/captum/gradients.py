"""Gradients of the logit: saliency, input x gradient, integrated gradients."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from attrobust import attributions, checks
from attrobust.captum.adapter import Adapter, Target, asked, graph, only
from attrobust.shapes import Inputs

#: Where n intervals of equal length are looked at, in units of one.
PLACES = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}


class Saliency(Adapter):
    """Absolute gradient of the logit, or signed.

    Example:
        >>> from torch import nn
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
        >>> m = Saliency(linear).attribute(torch.rand(1, 1, 2, 2), target=2, abs=False)
        >>> torch.equal(m.flatten(), linear[1].weight[2])
        True
    """

    def attribute(
        self, inputs: Inputs, target: Target = None, abs: bool = True, additional_forward_args: object = None
    ) -> Inputs:
        """Map of each image; signed unless `abs`."""
        x, labels = asked(inputs, target, additional_forward_args)
        with graph(x):
            found = attributions.saliency(self.network, x, labels)
            return found.abs() if abs else found


class InputXGradient(Adapter):
    """Pixel times gradient of the logit.

    Example:
        >>> from torch import nn
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)), torch.full((1, 1, 2, 2), 0.5)
        >>> torch.allclose(InputXGradient(linear).attribute(x, target=2).sum(), linear(x)[0, 2], atol=1e-6)
        True
    """

    def attribute(self, inputs: Inputs, target: Target = None, additional_forward_args: object = None) -> Inputs:
        """Map of each image."""
        x, labels = asked(inputs, target, additional_forward_args)
        with graph(x):
            return attributions.input_x_gradient(self.network, x, labels)


class IntegratedGradients(Adapter):
    """Gradient along the straight path from a baseline, times the way travelled.

    Args:
        forward_func: images -> logits.
        multiply_by_inputs: True alone is supported.

    Example:
        >>> from torch import nn
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)), torch.full((1, 1, 2, 2), 0.5)
        >>> m = IntegratedGradients(linear).attribute(x, target=2, n_steps=4)
        >>> torch.allclose(m.sum(), linear(x)[0, 2], atol=1e-6)
        True
    """

    def __init__(self, forward_func: Callable[[Tensor], Tensor], multiply_by_inputs: bool = True) -> None:
        super().__init__(forward_func)
        only("multiply_by_inputs", multiply_by_inputs, True)

    def attribute(
        self, inputs: Inputs, baselines: float | Tensor | None = None, target: Target = None,
        additional_forward_args: object = None, n_steps: int = 50, method: str = "gausslegendre",
        internal_batch_size: int | None = None, return_convergence_delta: bool = False,
    ) -> Inputs:  # fmt: skip
        """Map of each image.

        Args:
            inputs, target: images and explained classes.
            baselines: a number, or a tensor that spreads over the images; 0 if None.
            additional_forward_args, return_convergence_delta: captum's defaults alone are supported.
            n_steps: points on the path.
            method: gausslegendre, riemann_left, riemann_middle or riemann_right; not riemann_trapezoid, whose weights
                sum to 1 - 1 / n_steps in captum.
            internal_batch_size: images that run at a time, all points of one image or more; all if None. Captum keeps
                the points in single precision.
        """
        x, labels = asked(inputs, target, additional_forward_args)
        only("return_convergence_delta", return_convergence_delta, False)
        start = checks.baseline("baselines", 0.0 if baselines is None else baselines, x)
        both = points(method, checks.count("n_steps", n_steps))
        at, weights = (torch.tensor(part, dtype=x.dtype, device=x.device).view(-1, *(1,) * x.ndim) for part in both)
        size = n_steps * len(x) if internal_batch_size is None else internal_batch_size
        together, total = max(1, checks.count("internal_batch_size", size) // len(x)), 0
        with graph(x):
            for shares, counts in zip(at.split(together), weights.split(together), strict=True):
                path = (start + shares * (x - start)).flatten(0, 1)
                slopes = attributions.saliency(self.network, path, labels.repeat(len(shares)))
                total = total + (counts * slopes.view(-1, *x.shape)).sum(0)
            return (x - start) * total


def points(method: str, steps: int) -> tuple[list[float], list[float]]:
    """Points in [0, 1] and their weights, which sum to one.

    Example:
        >>> points("riemann_middle", 2)
        ([0.25, 0.75], [0.5, 0.5])
    """
    checks.one_of("method", method, ("gausslegendre", *PLACES))
    if method == "gausslegendre":
        roots, weights = np.polynomial.legendre.leggauss(steps)
        return ((1 + roots) / 2).tolist(), (weights / 2).tolist()
    return [(k + PLACES[method]) / steps for k in range(steps)], [1 / steps] * steps
