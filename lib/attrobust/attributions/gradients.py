"""Input attributions, (model, x, target) -> signed map of the image's shape, all differentiable in x.

The explained quantity is the logit of `target`, or another readout of the model (`models.readouts`). Maps stay in
the autograd graph, so that an attack or a penalty can differentiate *through* them; captum's input-level methods
either detach their maps or return one whose derivative silently misses the second-order term, so captum serves as an
oracle for values only.

A map of a batch costs one backward pass: images do not interact, hence the gradient of the summed readout is each
image's own gradient.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import checks
from attrobust.balls import Ball
from attrobust.models.readouts import Readout, logit
from attrobust.shapes import Images, Labels
from attrobust.versions import versioned


@versioned(1)
def saliency(model: nn.Module, x: Images, target: Labels, *, readout: Readout = logit) -> Images:
    """Gradient of the target's readout with respect to the pixels, signed; of the logit: dz_target / dx.

    Args:
        model: classifier in eval mode; its flags are left as found.
        x: images, pixels in [0, 1].
        target: explained class of each image.
        readout: (model, x, target) -> the number of each image that is explained.

    Returns:
        One signed map per image.

    Raises:
        ValueError: if the model does not return logits of shape (batch, classes), or the readout not one number
            per image.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
        >>> m = saliency(linear, torch.rand(1, 1, 2, 2), torch.tensor([2]))
        >>> torch.equal(m.flatten(), linear[1].weight[2])
        True

    Reference: Simonyan et al. 2014, "Deep inside convolutional networks" (there with absolute values).
    """
    x = x if x.requires_grad else x.detach().requires_grad_()
    with torch.enable_grad():
        value = checks.per_image("readout", readout(model, x, target), batch=len(x)).sum()
        return torch.autograd.grad(value, x, create_graph=True)[0]


@versioned(1)
def input_x_gradient(model: nn.Module, x: Images, target: Labels, *, readout: Readout = logit) -> Images:
    """Pixel times gradient: x . dz_target / dx, the first-order share of each pixel in the readout.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
        >>> x = torch.rand(1, 1, 2, 2)
        >>> torch.allclose(input_x_gradient(linear, x, torch.tensor([1])).sum(), linear(x)[0, 1])
        True

    Reference: Shrikumar et al. 2017, "Learning important features through propagating activation differences".
    """
    x = x if x.requires_grad else x.detach().requires_grad_()
    return x * saliency(model, x, target, readout=readout)


@versioned(1)
def integrated_gradients(
    model: nn.Module,
    x: Images,
    target: Labels,
    *,
    baseline: float = 0.0,
    steps: int = 32,
    readout: Readout = logit,
) -> Images:
    """Gradient averaged along the straight path from a baseline, times the way travelled.

        (x - x0) . mean_k dz_target/dx at x0 + a_k (x - x0),   a_k = (k - 1/2) / steps

    Args:
        model: classifier in eval mode.
        x: images, pixels in [0, 1].
        target: explained class of each image.
        baseline: pixel value of the constant baseline image x0; 0 = black (our choice, the field's habit).
        steps: points on the path (midpoint rule), at least 1; 32 is our choice, the error falls with its square.
        readout: (model, x, target) -> the number of each image that is explained.

    Returns:
        One signed map per image; it sums to the readout's change from x0 to x as steps grow.

    Raises:
        ValueError: if `steps` is not a positive whole number.

    Reference: Sundararajan et al. 2017, "Axiomatic attribution for deep networks", eq. 3.
    """
    checks.count("steps", steps)
    x = x if x.requires_grad else x.detach().requires_grad_()
    shares = (torch.arange(steps, device=x.device, dtype=x.dtype) + 0.5) / steps
    path = baseline + shares.view(-1, 1, 1, 1, 1) * (x - baseline)
    gradients = saliency(model, path.flatten(0, 1), target.repeat(steps), readout=readout)
    return (x - baseline) * gradients.view(steps, *x.shape).mean(0)


def smooth_grad(
    model: nn.Module,
    x: Images,
    target: Labels,
    *,
    sigma: float,
    samples: int,
    generator: torch.Generator,
    readout: Readout = logit,
) -> Images:
    """Gradient averaged over Gaussian noise: mean of dz_target/dx at x + n, n ~ N(0, sigma^2).

    Args:
        model: classifier in eval mode.
        x: images, pixels in [0, 1]; noisy pixels may leave this range.
        target: explained class of each image.
        sigma: standard deviation of the noise in pixel units, at least 0; 0 gives the saliency map.
        samples: noisy copies per image, at least 1.
        generator: of the noise; seed it alike to compare maps under common noise.
        readout: (model, x, target) -> the number of each image that is explained.

    Returns:
        One signed map per image.

    Raises:
        ValueError: if `sigma` is negative or `samples` is not a positive whole number.

    Reference: Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise".
    """
    checks.at_least("sigma", sigma, 0)
    checks.count("samples", samples)
    x = x if x.requires_grad else x.detach().requires_grad_()
    noise = torch.randn(samples, *x.shape, dtype=x.dtype, device=generator.device, generator=generator).to(x.device)
    return _averaged(model, x, target, sigma * noise, readout)


def uniform_grad(
    model: nn.Module,
    x: Images,
    target: Labels,
    *,
    ball: Ball,
    samples: int,
    generator: torch.Generator,
    readout: Readout = logit,
) -> Images:
    """Gradient averaged uniformly over a ball: mean of dz_target/dx at x + n, n uniform in `ball`.

    One forward and one backward pass of `samples` images per image.

    Args:
        model: classifier in eval mode.
        x: images, pixels in [0, 1]; moved pixels may leave this range.
        target: explained class of each image.
        ball: where the gradient is averaged; Ball("linf", r) is the box of half-width r of the source. Radius 0 gives
            the saliency map.
        samples: moved copies per image, at least 1.
        generator: of the moves; seed it alike to compare maps under common noise.
        readout: (model, x, target) -> the number of each image that is explained.

    Returns:
        One signed map per image.

    Raises:
        ValueError: if `samples` is not a positive whole number.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
        >>> how = {"ball": Ball("linf", 0.1), "samples": 3, "generator": torch.Generator()}
        >>> m = uniform_grad(linear, torch.rand(1, 1, 2, 2), torch.tensor([2]), **how)
        >>> torch.allclose(m.flatten(), linear[1].weight[2])
        True

    Reference: Wang et al. 2020, "Smoothed geometry for robust attribution", definition 6 (uniform gradient).
    """
    checks.count("samples", samples)
    x = x if x.requires_grad else x.detach().requires_grad_()
    moves = ball.sample(x.detach().repeat(samples, 1, 1, 1), generator=generator)
    return _averaged(model, x, target, moves.view(samples, *x.shape), readout)


def _averaged(
    model: nn.Module,
    x: Images,
    target: Labels,
    moves: Float[Tensor, "samples batch channels height width"],
    readout: Readout,
) -> Images:
    noisy = (x + moves).flatten(0, 1)
    return saliency(model, noisy, target.repeat(len(moves)), readout=readout).view_as(moves).mean(0)
