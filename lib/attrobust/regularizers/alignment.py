"""Whether gradients keep their direction, as penalties: with the image (ART), with the gradient beside (LGA).

    ART         mean over a in {x, x'} of log(1 + exp(d_pos - d_neg)) / 2, plus loss(x') - loss(x)
                d_pos = max over b in {x, x'} of 1 - cos(a, grad z_y(b)),   d_neg = min of 1 - cos(a, grad z_r(b))
                x' the image of the ball that makes d_pos - d_neg large at itself, r the best other class
    l2_cosine   u |g(x) - g(x + d)|^2 + v (1 - cos(g(x), g(x + d))) / 2,   g = grad z_y, d random in the ball

After Singh et al. 2020, "Attributional robustness training using input-gradient spatial alignment", whose images are
standardised first, and Joo et al. 2023, "Towards more robust interpretation via local gradient alignment", whose code
holds g(x) fixed. Here pixels are as they are, in [0, 1], and everything is live.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust import checks
from attrobust.balls import Ball
from attrobust.models.readouts import logit
from attrobust.regularizers.ascent import ascend, rise
from attrobust.regularizers.input_gradient import leaf, live_gradient
from attrobust.shapes import Images, Labels, PerImage
from attrobust.versions import versioned

#: Share of the pixels that the inner attack of ART looks at (1000 of CIFAR-10's 3072), and its step over its radius.
LEADING, STEP = 1000 / 3072, 5 / 8

#: Length below which a gradient or an image has less and less of a direction; without it slopes would explode there.
SHORT = 1e-4


@versioned(1)
def art(
    model: nn.Module, x: Images, y: Labels, *, generator: torch.Generator, radius: float = 8 / 255, steps: int = 3
) -> PerImage:
    """Misalignment of image and gradient, plus how much larger the loss is at the attacked image.

    At strength 1 the loss is taken at x', as in the original. Its attack looks at the pixels that lead the label's
    gradient where it starts.

    Raises:
        ValueError: a negative radius, `steps` below 1, or what `input_gradient` refuses.

    Example:
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.full((2, 1, 2, 2), 0.5)
        >>> art(linear, x, torch.tensor([0, 1]), generator=torch.Generator()).shape
        torch.Size([2])
    """
    leaf(model, x)
    leading: list[Tensor] = []

    def apart(at: Images) -> PerImage:
        own, other = _gradients(model, at, y)
        if not leading:
            first = own.detach().abs().topk(max(1, round(LEADING * own.shape[1]))).indices
            leading.append(torch.zeros_like(own).scatter(1, first, 1.0))
        image, own, other = (part * leading[0] for part in (at.flatten(1), own, other))
        return F.softplus(_away(image, own) - _away(image, other))

    end = ascend(apart, x, ball=Ball("linf", radius), steps=steps, length=STEP * radius, generator=generator)
    both = [at.detach() for at in (x, end)]
    own, other = (torch.stack(side) for side in zip(*(_gradients(model, at, y) for at in both), strict=True))
    anchors = [at.flatten(1) for at in both]
    found = [F.softplus(_away(a, own).amax(0) - _away(a, other).amin(0)) for a in anchors]
    return sum(found) / 4 + rise(model, x, end, y)


@versioned(1)
def l2_cosine(
    model: nn.Module, x: Images, y: Labels, *, generator: torch.Generator, radius: float = 4 / 255, l2: float = 0.01,
    cosine: float = 0.1,
) -> PerImage:  # fmt: skip
    """Change of the label's logit gradient at a random neighbour: its squared length and its direction, weighted.

    The original has the same weights, for CIFAR-10, of gradients in standardised pixels.

    Raises:
        ValueError: a negative weight or radius, or what `input_gradient` refuses.

    Example:
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.full((1, 1, 2, 2), 0.5)
        >>> l2_cosine(linear, x, torch.tensor([0]), generator=torch.Generator()).item() < 1e-6  # no change
        True
    """
    checks.at_least("l2", l2, 0)
    checks.at_least("cosine", cosine, 0)
    at = leaf(model, x)
    neighbour = x.detach() + Ball("linf", radius).sample(x, generator=generator)
    both = at, neighbour.requires_grad_()
    clean, moved = (live_gradient(logit(model, at, y), at).flatten(1) for at in both)
    return l2 * (moved - clean).square().sum(1) + cosine * _away(clean, moved) / 2


def _gradients(model: nn.Module, at: Images, y: Labels) -> tuple[Tensor, Tensor]:
    """Gradient of the label's logit and of the best other one, flat."""
    logits = model(at.requires_grad_())
    rival = logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
    own, other = (live_gradient(logits.gather(1, k[:, None])[:, 0], at).flatten(1) for k in (y, rival))
    return own, other


def _away(first: Tensor, second: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(first, second, dim=-1, eps=SHORT)
