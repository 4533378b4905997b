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
Wanted = Float[Tensor, "batch planes height width"]
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


def unseat_topk(attribution: Attribution, model: nn.Module, x: Images, target: Labels, *, k: int) -> Objective:
    """Push the k pixels that lead on the clean image below whatever leads now.

        - mean over the clean leaders i of  sigmoid((m_i - t) / s)

    with t halfway between the k-th and the next largest importance of the attacked map and s a quarter of their
    standard deviation: a smooth count of the leaders that still lead. It aims at the top-k intersection itself, where
    `shift_topk` may be content with one new large pixel (ours; a quarter is our choice).

    Args:
        attribution: (model, x, target) -> signed map.
        model: network whose map is moved.
        x: clean images.
        target: explained class.
        k: number of leading pixels, from 1 to height x width - 1.

    Raises:
        ValueError: if `k` is out of range.
    """
    clean = _clean_importances(attribution, model, x, target).flatten(1)
    leaders = clean.topk(checks.count("k", k, most=clean.shape[1] - 1)).indices

    def objective(images: Images) -> Float[Tensor, " batch"]:
        importances = pixelwise(attribution(model, images, like(target, images))).flatten(1)
        edge = importances.topk(k + 1).values[:, -2:].mean(1, keepdim=True)
        spread = importances.std(1, keepdim=True).clamp_min(torch.finfo(importances.dtype).tiny) / 4
        return -((importances.gather(1, like(leaders, images)) - edge) / spread).sigmoid().mean(1)

    return objective


def match_map(attribution: Attribution, model: nn.Module, x: Images, target: Labels, *, wanted: Wanted) -> Objective:
    """Move the map towards a given one: another image's map, a frame, whatever the explanation should show.

        1 - |h(x') - h*|^2 / |h(x) - h*|^2

    with h the importances divided by their sum: 0 at the clean map, 1 where the wanted map is reached.

    Args:
        attribution: (model, x, target) -> signed map.
        model: network whose map is moved.
        x: clean images.
        target: explained class.
        wanted: one map per image, of the attribution's height and width; only its importances matter.

    Raises:
        ValueError: if `wanted` has another shape, is zero for an image, or holds NaN or infinite entries.

    Reference: Dombrowski et al. 2019, "Explanations can be manipulated and geometry is to blame" (there with a
    soft penalty that holds the output; here the prediction is held by the judge).
    """
    clean, there = _clean_importances(attribution, model, x, target), pixelwise(wanted.detach())
    if there.shape != clean.shape or not bool(torch.isfinite(there).all()) or not bool(there.flatten(1).any(1).all()):
        raise ValueError(
            f"wanted has shape {tuple(wanted.shape)}; it must hold, for each of {len(clean)} images, a finite map of"
            f" {clean.shape[1]} x {clean.shape[2]} that is not zero everywhere"
        )
    there = _distribution(there)
    begin = (_distribution(clean) - there).square().sum((1, 2)).clamp_min(torch.finfo(there.dtype).tiny)

    def objective(images: Images) -> Float[Tensor, " batch"]:
        now = _distribution(pixelwise(attribution(model, images, like(target, images))))
        return 1 - (now - like(there, images)).square().sum((1, 2)) / like(begin, images)

    return objective


def frame(maps: Images, *, width: int = 1) -> Wanted:
    """A wanted map for `match_map`: importance on a border of `width` pixels and none inside.

    Args:
        maps: maps, or images, of the height and width that is framed.
        width: of the border in pixels; what is inside must not vanish.

    Raises:
        ValueError: if `width` is out of range.

    Example:
        >>> frame(torch.zeros(1, 1, 3, 3)).flatten().tolist()
        [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]

    Reference: Joo et al. 2023, "Towards more robust interpretation via local gradient alignment".
    """
    checks.count("width", width, most=(min(maps.shape[-2:]) - 1) // 2)
    border = torch.ones_like(maps[:, :1])
    border[:, :, width:-width, width:-width] = 0
    return border


def like(reference: Tensor, images: Images) -> Tensor:
    """Repeat a per-image reference as often as `images` repeats the batch it belongs to."""
    repeats = len(images) // len(reference)
    return reference if repeats == 1 else reference.repeat(repeats, *[1] * (reference.ndim - 1))


def _clean_importances(attribution: Attribution, model: nn.Module, x: Images, target: Labels) -> Tensor:
    return pixelwise(attribution(model, x, target)).detach()


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp_min(torch.finfo(whole.dtype).tiny)


def _distribution(importances: Float[Tensor, "batch height width"]) -> Float[Tensor, "batch height width"]:
    """Importances that sum to one; a map that is zero stays zero."""
    return _share(importances, importances.sum((1, 2), keepdim=True))
