"""Whether gradients keep their direction, as penalties: with the image (ART), with the gradient beside (LGA).

    ART         log(1 + exp(d_pos - d_neg)) / 2 + loss(x') - loss(x),   x' the image of the ball that makes it large
                d_pos = max over x, x' of 1 - cos(image, grad z_y),   d_neg = min of 1 - cos(image, grad z_runner-up)
    l2_cosine   a |g(x) - g(x + d)|^2 + b (1 - cos(g(x), g(x + d))) / 2,   g = grad z_y, d random in the ball

References: Singh et al. 2020, "Attributional robustness training using input-gradient spatial alignment"; Joo et al.
2023, "Towards more robust interpretation via local gradient alignment" (their code holds g(x) fixed; here both live).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust import checks
from attrobust.balls import Ball
from attrobust.regularizers.ascent import ascend
from attrobust.shapes import Images, Labels, PerImage
from attrobust.versions import versioned

#: Share of the pixels that the inner attack of ART looks at: 1000 of CIFAR-10's 3072.
LEADING = 1000 / 3072


@versioned(1)
def art(
    model: nn.Module, x: Images, y: Labels, *, generator: torch.Generator, radius: float = 8 / 255, steps: int = 3
) -> PerImage:
    """Misalignment of image and gradient at the attacked image, plus how much larger the loss is there.

    At strength 1 this is the original's objective, whose loss is taken at x' and whose softplus has weight 1/2. Its
    attack has 3 steps in a linf ball of radius 8/255, and looks at the leading pixels of the label's gradient.
    """
    ball = Ball("linf", radius)
    slope = _logit_gradient(model, x, y).detach()
    count = max(1, round(LEADING * slope[0].numel()))
    leading = torch.zeros_like(slope).flatten(1).scatter(1, slope.flatten(1).abs().topk(count).indices, 1.0)

    def apart(at: Images) -> PerImage:
        return F.softplus(_lead(model, at, y, leading))

    end = ascend(apart, x, ball=ball, steps=steps, generator=generator)
    both = [_distances(model, at, y, None) for at in (x.detach(), end)]
    positive = torch.maximum(*(own for own, _ in both))
    negative = torch.minimum(*(other for _, other in both))
    there, here = (F.cross_entropy(model(at), y, reduction="none") for at in (end, x.detach()))
    return F.softplus(positive - negative) / 2 + there - here


@versioned(1)
def l2_cosine(
    model: nn.Module, x: Images, y: Labels, *, generator: torch.Generator, radius: float = 4 / 255, l2: float = 0.01,
    cosine: float = 0.1,
) -> PerImage:  # fmt: skip
    """Change of the label's logit gradient at a random neighbour: its squared length and its direction, weighted.

    The defaults are those of the original for CIFAR-10 and ResNet-18. Where a gradient vanishes the cosine counts as 0.
    """
    checks.at_least("l2", l2, 0)
    checks.at_least("cosine", cosine, 0)
    neighbour = x.detach() + Ball("linf", radius).sample(x, generator=generator)
    clean, moved = (_logit_gradient(model, at, y).flatten(1) for at in (x, neighbour))
    return l2 * (moved - clean).square().sum(1) + cosine * (1 - F.cosine_similarity(clean, moved, dim=1)) / 2


def _lead(model: nn.Module, at: Images, y: Labels, leading: Tensor) -> PerImage:
    own, other = _distances(model, at, y, leading)
    return own - other


def _distances(model: nn.Module, at: Images, y: Labels, leading: Tensor | None) -> tuple[PerImage, PerImage]:
    """1 - cosine of the image with the gradient of its label's logit, and of the best other logit."""
    at = at if at.requires_grad else at.requires_grad_()
    logits = model(at)
    others = logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
    found = []
    for chosen in (y, others):
        (slope,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), at, create_graph=True)
        image, slope = at.flatten(1), slope.flatten(1)
        if leading is not None:
            image, slope = image * leading, slope * leading
        found.append(1 - F.cosine_similarity(image, slope, dim=1))
    return found[0], found[1]


def _logit_gradient(model: nn.Module, x: Images, y: Labels) -> Images:
    at = x.detach().requires_grad_()
    return torch.autograd.grad(model(at).gather(1, y[:, None]).sum(), at, create_graph=True)[0]
