"""What an attack on a map tries to achieve: closures x -> one number per image, to be *increased*.

Each is built from the maps of the clean images and differentiates through the attribution. It accepts the batch it
was built for, or whole repeats of it (all restarts of an attack side by side).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrobust import checks, similarity
from attrobust.attributions import pixelwise

Images = Float[Tensor, "batch channels height width"]
Labels = Int[Tensor, " batch"]
Attribution = Callable[[nn.Module, Images, Labels], Images]
Objective = Callable[[Images], Float[Tensor, " batch"]]


def shift_topk(attribution: Attribution, model: nn.Module, x: Images, target: Labels, *, k: int) -> Objective:
    """Take importance away from the k pixels that lead on the clean image.

    Minus the share of importance that these pixels hold. Their set is fixed, as in the source.

    Args:
        attribution: (model, x, target) -> signed map.
        model: network whose map is moved.
        x: clean images.
        target: explained class.
        k: number of leading pixels, from 1 to height x width.

    Raises:
        ValueError: if `k` is out of range.

    Reference: Ghorbani et al. 2019, top-k attack.
    """
    clean = _clean_importances(attribution, model, x, target).flatten(1)
    leaders = clean.topk(checks.count("k", k, most=clean.shape[1])).indices

    def objective(images: Images) -> Float[Tensor, " batch"]:
        importances = pixelwise(attribution(model, images, like(target, images))).flatten(1)
        return -_share(importances.gather(1, like(leaders, images)).sum(1), importances.sum(1))

    return objective


def shift_center(attribution: Attribution, model: nn.Module, x: Images, target: Labels) -> Objective:
    """Move the map's centre of mass away from where it is on the clean image, in pixels.

    Reference: Ghorbani et al. 2019, mass-centre attack (here with the exact centre; its gradient is zero at the
    clean image, so start elsewhere).
    """
    clean = similarity.center_of_mass(_clean_importances(attribution, model, x, target))

    def objective(images: Images) -> Float[Tensor, " batch"]:
        importances = pixelwise(attribution(model, images, like(target, images)))
        moved = similarity.center_of_mass(importances) - like(clean, images)
        return (moved.square().sum(1) + torch.finfo(moved.dtype).eps).sqrt()

    return objective


def lower_cosine(attribution: Attribution, model: nn.Module, x: Images, target: Labels) -> Objective:
    """One minus the cosine between the signed maps of the attacked and the clean image."""
    clean = attribution(model, x, target).detach()

    def objective(images: Images) -> Float[Tensor, " batch"]:
        return 1 - similarity.cosine(like(clean, images), attribution(model, images, like(target, images)))

    return objective


def lower_pearson(attribution: Attribution, model: nn.Module, x: Images, target: Labels) -> Objective:
    """One minus the linear correlation between the importances; the smooth stand-in for rank correlation."""
    clean = _clean_importances(attribution, model, x, target)

    def objective(images: Images) -> Float[Tensor, " batch"]:
        importances = pixelwise(attribution(model, images, like(target, images)))
        return 1 - similarity.pearson(like(clean, images), importances)

    return objective


def like(reference: Tensor, images: Images) -> Tensor:
    """Repeat a per-image reference as often as `images` repeats the batch it belongs to."""
    repeats = len(images) // len(reference)
    return reference if repeats == 1 else reference.repeat(repeats, *[1] * (reference.ndim - 1))


def _clean_importances(attribution: Attribution, model: nn.Module, x: Images, target: Labels) -> Tensor:
    return pixelwise(attribution(model, x, target)).detach()


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp_min(torch.finfo(whole.dtype).tiny)
