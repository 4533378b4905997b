"""Readouts: which number of a classifier a map explains, (model, x, y) -> one number per image.

    logit            z_y
    log-probability  log p_y = -softplus(t),   1 - p_y = sigmoid(t),   t = logsumexp_{j != y} z_j - z_y
    margin           z_y - max_{j != y} z_j
    cross-entropy    -log p_y

An explanation is of a readout as much as of a network: the gradient of the log-probability,
sum_j p_j (dz_y/dx - dz_j/dx), fades where the network is sure, that of the logit does not. Attributions and curvature
in the pixels take any of these, or one of the reader's own: `saliency(model, x, target, readout=log_probability)`.
"""

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor
from torch.nn import functional as F

from attrobust import checks
from attrobust.models import guards
from attrobust.shapes import Labels, Logits, PerImage

Model = Callable[[Tensor], Tensor]
Readout = Callable[[Model, Tensor, Tensor], Tensor]

#: From here on the softplus is its argument to the last digit, in float64 too; above 88, float32 would overflow.
STRAIGHT = 60


def logit(model: Model, x: Tensor, y: Tensor) -> PerImage:
    """Logit of class y: the function a saliency map is the gradient of, unless said otherwise."""
    return _labelled(model, x, y).gather(1, y[:, None])[:, 0]


def log_probability(model: Model, x: Tensor, y: Tensor) -> PerImage:
    """Logarithm of the softmax's probability of class y, exact where that is close to 1.

    The common form z_y - logsumexp z subtracts nearly equal numbers there, and its gradient holds the complement
    1 - p_y, of which float32 keeps nothing above 1 - 6e-8. Against the other classes alone both stay exact.
    """
    own, others = _against_others(_labelled(model, x, y, least=2), y)
    return -F.softplus(others.logsumexp(1) - own, threshold=STRAIGHT)


def margin(model: Model, x: Tensor, y: Tensor) -> PerImage:
    """Logit of class y minus the largest of the others: how far the decision is from turning."""
    return lead(_labelled(model, x, y, least=2), y)


def lead(logits: Logits, y: Labels) -> PerImage:
    """The margin, of logits that are there already; wrongly classified images have none above 0.

    Example:
        >>> lead(torch.tensor([[1.0, 3.0, 0.5]]), torch.tensor([1])).item()
        2.0
    """
    own, others = _against_others(logits, y)
    return own - others.amax(1)


def cross_entropy(model: Model, x: Tensor, y: Tensor) -> PerImage:
    """Cross-entropy of each image."""
    return F.cross_entropy(_labelled(model, x, y, least=2), y, reduction="none")


#: Readouts that run the model once, on x, and see nothing of it but the logits.
OF_LOGITS = (logit, log_probability, margin, cross_entropy)


def predictions(model: Model, x: Tensor) -> Labels:
    """The class that each image is given, of a network and images that can be explained (`guards.classifier`)."""
    guards.classifier(model, x)
    with torch.no_grad():
        return _logits(model, x, least=2).argmax(1)


def usable(readout: Readout, model: Model, x: Tensor, y: Tensor, *, live: bool = True) -> None:
    """Refuse a readout of the reader's own that is no fixed number of each image, if `live` with a right gradient."""
    if not callable(readout):
        raise ValueError(
            f"readout is {checks.short(readout)}; it must be a function (model, x, target) -> one number an image, such"
            " as models.readouts.logit"
        )
    if not any(readout is known for known in OF_LOGITS):
        guards.each("readout", readout, model, x, y, live=live)


def _against_others(logits: Logits, y: Tensor) -> tuple[Tensor, Tensor]:
    return logits.gather(1, y[:, None])[:, 0], logits.scatter(1, y[:, None], -torch.inf)


def _labelled(model: Model, x: Tensor, y: Tensor, *, least: int = 1) -> Logits:
    """Logits, of classes of which every label is one."""
    logits = _logits(model, x, least=least)
    with suppress(RuntimeError):  # under vmap no label has a value
        checks.labels("y", y, batch=len(x), classes=logits.shape[1], device=logits.device)
    return logits


def _logits(model: Model, x: Tensor, *, least: int = 1) -> Logits:
    return checks.logits("model", checks.function("model", model)(checks.floating("x", x)), batch=len(x), least=least)
