"""What a recipe names: losses, what is done to examples, and trainers, which say where the gradient is taken.

An augmentation takes images, how many pixels they may move and the network's generator. A trainer takes a network, its
objective, a batch, the recipe's radius and a generator of the network's own; it returns the gradients of the
parameters, in their order, and the mean loss without the penalty, and leaves the parameters as found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust import checks
from attrobust.attacks.streams import stochastic, waits_for
from attrobust.balls import Ball
from attrobust.models.derivatives import again
from attrobust.regularizers import Penalty, ascend
from attrobust.shapes import Images, Labels, Logits, PerImage
from attrobust.versions import versioned

Loss = Callable[[Tensor, Tensor], Tensor]


@versioned(1)
def cross_entropy(logits: Logits, y: Labels, *, label_smoothing: float = 0.0) -> PerImage:
    """Cross-entropy of each example, in nats.

    Example:
        >>> round(cross_entropy(torch.zeros(1, 2), torch.tensor([0])).item(), 4)  # log 2
        0.6931
    """
    return F.cross_entropy(logits, y, reduction="none", label_smoothing=label_smoothing)


@versioned(1)
def squared(logits: Logits, y: Labels, *, label_smoothing: float = 0.0) -> PerImage:
    """Half the squared distance of the logits from the one-hot label, of each example.

    Example:
        >>> squared(torch.tensor([[1.0, 2.0]]), torch.tensor([0])).item()
        2.0
    """
    classes = logits.shape[-1]
    label = F.one_hot(y, classes).to(logits) * (1 - label_smoothing) + label_smoothing / classes
    return 0.5 * (logits - label).square().sum(-1)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "squared": squared}


@dataclass(frozen=True)
class Objective:
    """Mean of loss + strength * penalty; both give one number per example, the penalty from (model, x, y).

    `wanted` holds the maps of a batch that a penalty may wait for.
    """

    loss: Loss
    penalty: Penalty | None = None
    strength: float = 0.0
    wanted: Tensor | None = None

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The objective, live, and the mean loss without the penalty; a penalty that draws needs the generator."""
        loss = self.loss(model(x), y).mean()
        if self.penalty is None:
            return loss, loss.detach()
        given = {"generator": generator} if stochastic(self.penalty) else {}
        given |= {"wanted": self.wanted} if waits_for(self.penalty, "wanted") else {}
        penalty = checks.per_image("penalty", self.penalty(model, x, y, **given), batch=len(x))
        return loss + self.strength * penalty.mean(), loss.detach()


@versioned(1)
def sgd(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, radius: float, generator: torch.Generator | None
) -> tuple[Sequence[Tensor], Tensor]:
    """The gradient where the network is; only a penalty may draw."""
    value, loss = objective(model, x, y, generator)
    with again(value):
        return torch.autograd.grad(value, list(model.parameters())), loss


@versioned(1)
def sam(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, radius: float, generator: torch.Generator | None
) -> tuple[Sequence[Tensor], Tensor]:
    """The gradient at the end of a step of Euclidean length `radius` uphill, on the same batch; the loss before it.

    A penalty that draws draws anew. Reference: Foret et al. 2021, "Sharpness-aware minimization", alg. 1.
    """
    uphill, loss = sgd(model, objective, x, y, radius, generator)
    weights = list(model.parameters())
    kept, length = [w.detach().clone() for w in weights], torch.stack([g.norm() for g in uphill]).norm()
    try:
        with torch.no_grad():
            for w, g in zip(weights, uphill, strict=True):
                w.add_(g * torch.where(length > 0, radius / length, 0))
        return sgd(model, objective, x, y, radius, generator)[0], loss
    finally:
        with torch.no_grad():
            for w, before in zip(weights, kept, strict=True):
                w.copy_(before)


#: Steps of the attack on the predictions that adversarial training learns from.
ADVERSARIAL_STEPS = 7


@versioned(1)
def adversarial(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, radius: float, generator: torch.Generator | None
) -> tuple[Sequence[Tensor], Tensor]:
    """The gradient at images attacked in the linf ball of this radius in pixels, from a random start; the loss there.

    Seven signed steps of 2.5 / 7 of the radius raise the loss (Madry et al. 2018, "Towards deep learning models
    resistant to adversarial attacks").
    """
    return sgd(model, objective, _harder(model, objective, x, y, Ball("linf", radius), generator), y, radius, generator)


@versioned(1)
def adversarial_l2(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, radius: float, generator: torch.Generator | None
) -> tuple[Sequence[Tensor], Tensor]:
    """As `adversarial`, in the l2 ball, by steps along the normalised gradient."""
    return sgd(model, objective, _harder(model, objective, x, y, Ball("l2", radius), generator), y, radius, generator)


def _harder(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, ball: Ball, generator: torch.Generator | None
) -> Tensor:
    """Images of a ball at which the loss is larger."""

    def losses(at: Tensor) -> Tensor:
        return objective.loss(model(at), y)

    return ascend(losses, x, ball=ball, steps=ADVERSARIAL_STEPS, generator=generator)


TRAINERS: dict[str, Callable[..., tuple[Sequence[Tensor], Tensor]]]
TRAINERS = {"sgd": sgd, "sam": sam, "adversarial": adversarial, "adversarial_l2": adversarial_l2}

#: Trainers whose radius is one of pixels; and all that are `sgd` at radius 0.
IN_PIXELS = ("adversarial", "adversarial_l2")
AROUND = ("sam", *IN_PIXELS)


def noisy_labels(y: Labels, share: float, *, classes: int, generator: torch.Generator) -> Labels:
    """Labels of which a share in [0, 1], rounded to whole examples, is replaced evenly by the other classes.

    Raises:
        ValueError: a `share` out of [0, 1], or fewer than two classes.

    Example:
        >>> y = torch.zeros(4, dtype=torch.long)
        >>> noisy_labels(y, 0.5, classes=2, generator=torch.Generator()).sum().item()
        2
    """
    checks.share("share", share)
    checks.count("classes", classes, least=2)
    chosen = torch.randperm(len(y), generator=generator)[: round(share * len(y))].to(y.device)
    away = torch.randint(1, classes, (len(chosen),), generator=generator).to(y.device)
    noisy = y.clone()
    noisy[chosen] = (y[chosen] + away) % classes
    return noisy


@versioned(1)
def shift(x: Images, pixels: int, generator: torch.Generator) -> Images:
    """Each image moved by a whole number of pixels from -`pixels` to `pixels` along both sides; black moves in."""
    batch, _, height, width = x.shape
    start = torch.randint(2 * pixels + 1, (2, batch, 1), generator=generator).to(x.device)
    rows, columns = (first + torch.arange(n, device=x.device) for first, n in zip(start, (height, width), strict=True))
    image = torch.arange(batch, device=x.device)[:, None, None]
    return F.pad(x, [pixels] * 4)[image, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


@versioned(1)
def flip(x: Images, pixels: int, generator: torch.Generator) -> Images:
    """Each image mirrored left to right with probability one half."""
    mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(mirrored[:, None, None, None], x.flip(-1), x)


AUGMENTATIONS: dict[str, Callable[..., Tensor] | None] = {"none": None, "shift": shift, "flip": flip}
