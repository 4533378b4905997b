"""Input attributions, (model, x, target) -> signed map of the image's shape, all differentiable in x.

Maps stay in the autograd graph, so that an attack or a penalty can differentiate *through* them; captum's either are
detached or have a derivative that silently misses the second-order term, so captum serves as an oracle for values only.
Images do not interact: the gradient of the summed readout is each image's own.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import checks
from attrobust.attributions.importance import brings_logits
from attrobust.balls import Ball
from attrobust.models.readouts import OF_LOGITS, Readout, logit
from attrobust.shapes import Images, Inputs, Labels, Logits
from attrobust.versions import versioned


def live(x: Inputs) -> Inputs:
    """The images as part of a graph: as they are, or as a leaf of their own."""
    return x if x.requires_grad else x.detach().requires_grad_()


def explained(model: Callable[[Tensor], Tensor], x: Images, target: Labels, readout: Readout) -> Float[Tensor, ""]:
    """What is differentiated: the readout, one number per image, summed."""
    return checks.per_image("readout", readout(model, x, target), batch=len(x)).sum()


@brings_logits
@versioned(1)
def saliency(
    model: nn.Module, x: Images, target: Labels, *, readout: Readout = logit, logits: bool = False
) -> Images | tuple[Images, Logits | None]:
    """Gradient of the target's readout with respect to the pixels, signed; of the logit: dz_target / dx.

    With `logits`, those of the same forward pass stand beside the map; None under a readout of the caller's own.

    Simonyan et al. 2014, "Deep inside convolutional networks" (there with absolute values).

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
        >>> m = saliency(linear, torch.rand(1, 1, 2, 2), torch.tensor([2]))
        >>> torch.equal(m.flatten(), linear[1].weight[2])
        True
    """
    x, scores = live(x), []

    def run(images: Images) -> Logits:
        scores.append(model(images))
        return scores[-1]

    known = logits and any(readout is r for r in OF_LOGITS)
    with torch.enable_grad():
        chosen = explained(run if known else model, x, target, readout)
        found = torch.autograd.grad(chosen, x, create_graph=True)[0]
    return (found, scores[0] if known else None) if logits else found


@versioned(1)
def input_x_gradient(model: nn.Module, x: Images, target: Labels, *, readout: Readout = logit) -> Images:
    """Pixel times gradient: x . dz_target / dx, the first-order share of each pixel in the readout.

    Shrikumar et al. 2017, "Learning important features through propagating activation differences".

    Example:
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)), torch.rand(1, 1, 2, 2)
        >>> torch.allclose(input_x_gradient(linear, x, torch.tensor([1])).sum(), linear(x)[0, 1])
        True
    """
    x = live(x)
    return x * saliency(model, x, target, readout=readout)


@versioned(1)
def integrated_gradients(
    model: nn.Module, x: Images, target: Labels, *, baseline: float = 0.0, steps: int = 32, readout: Readout = logit
) -> Images:
    """Gradient averaged along the straight path from a baseline, times the way travelled.

        (x - x0) . mean_k dz_target/dx at x0 + a_k (x - x0),   a_k = (k - 1/2) / steps

    x0 is an image of the constant `baseline`, black if 0 (our choice, the field's habit). The map sums to the readout's
    change from x0 to x as `steps` of the midpoint rule grow; 32 is our choice, the error falls with their square
    (Sundararajan et al. 2017, "Axiomatic attribution for deep networks", eq. 3).
    """
    checks.count("steps", steps)
    x = live(x)
    shares = (torch.arange(steps, device=x.device, dtype=x.dtype) + 0.5) / steps
    path = baseline + shares.view(-1, 1, 1, 1, 1) * (x - baseline)
    return (x - baseline) * _averaged(model, path, target, readout)


def smooth_grad(
    model: nn.Module, x: Images, target: Labels, *, sigma: float, samples: int, generator: torch.Generator,
    readout: Readout = logit,
) -> Images:  # fmt: skip
    """Gradient averaged over Gaussian noise: mean of dz_target/dx at x + n, n ~ N(0, sigma^2), in pixel units.

    Noisy pixels may leave [0, 1]. Seed the generator alike to compare maps under common noise (Smilkov et al. 2017,
    "SmoothGrad: removing noise by adding noise").
    """
    checks.at_least("sigma", sigma, 0)
    checks.count("samples", samples)
    noise = torch.randn(samples, *x.shape, dtype=x.dtype, device=generator.device, generator=generator).to(x.device)
    return _averaged(model, live(x) + sigma * noise, target, readout)


def uniform_grad(
    model: nn.Module, x: Images, target: Labels, *, ball: Ball, samples: int, generator: torch.Generator,
    readout: Readout = logit,
) -> Images:  # fmt: skip
    """Gradient averaged uniformly over a ball: mean of dz_target/dx at x + n, n uniform in `ball`.

    Ball("linf", r) is the box of half-width r of the source (Wang et al. 2020, "Smoothed geometry for robust
    attribution", definition 6). Moved pixels may leave [0, 1]. Seed the generator alike to compare maps under common
    noise. One forward and one backward pass of `samples` images per image.
    """
    checks.count("samples", samples)
    moves = ball.sample(x.detach().repeat(samples, 1, 1, 1), generator=generator)
    return _averaged(model, live(x) + moves.view(samples, *x.shape), target, readout)


def _averaged(
    model: nn.Module, copies: Float[Tensor, "samples batch channels height width"], target: Labels, readout: Readout
) -> Images:
    """Mean of the saliency maps of some copies of each image."""
    return saliency(model, copies.flatten(0, 1), target.repeat(len(copies)), readout=readout).view_as(copies).mean(0)
