"""What an attack on a map tries to achieve: functions of the clean map and the attacked one, to be *increased*.

Each takes maps of the clean images and maps of as many attacked ones, and returns one number per image. None knows of
a network: whoever climbs decides how maps are made and differentiated.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from attrobust import checks, similarity
from attrobust.attributions import pixelwise
from attrobust.shapes import Importances, Maps, OnePlane, PerImage, Wanted

Objective = Callable[[Maps, Maps], PerImage]

#: Largest map whose ranks are softened pair by pair (of 8 x 8 maps both ways reach the same ranks).
PAIRWISE = 16

#: What the logarithm of a large map is flattened by, in units of its mean.
FLATTEN = 0.5


def shift_topk(clean: Maps, there: Maps, *, k: int) -> PerImage:
    """Take importance away from the k pixels that lead on the clean image: minus the share that they hold.

    Args:
        clean: maps of the clean images.
        there: maps of the attacked images.
        k: number of leading pixels, from 1 to height x width.

    Returns:
        From -1 (the clean leaders hold everything) to 0.

    Raises:
        ValueError: if `k` is out of range.

    Reference: Ghorbani et al. 2019, top-k attack.
    """
    now = pixelwise(there)
    checks.count("k", k, most=now[0].numel())
    return -share_of(similarity.leaders(pixelwise(clean), k=k), now)


def unseat_topk(clean: Maps, there: Maps, *, k: int) -> PerImage:
    """Push the k pixels that lead on the clean image below whatever leads now.

        - mean over the clean leaders i of  sigmoid((m_i - t) / s)

    with t halfway between the k-th and the next largest importance of the attacked map and s a quarter of their
    standard deviation: a smooth count of the leaders that still lead. It aims at the top-k intersection itself, where
    `shift_topk` may be content with one new large pixel (ours; a quarter is our choice).

    Args:
        clean: maps of the clean images.
        there: maps of the attacked images.
        k: number of leading pixels, from 1 to height x width - 1.

    Returns:
        From -1 (all of them lead by far) to 0.

    Raises:
        ValueError: if `k` is out of range.
    """
    now = pixelwise(there).flatten(1)
    checks.count("k", k, most=now.shape[1] - 1)
    leaders = similarity.leaders(pixelwise(clean), k=k)
    edge = now.topk(k + 1).values[:, -2:].mean(1, keepdim=True)
    lead = ((now - edge) / (_spread(now) / 4)).sigmoid()
    return -torch.where(leaders, lead, 0).sum(1) / k


def lower_spearman(clean: Maps, there: Maps) -> PerImage:
    """One minus the correlation of the clean ranks with softened ranks of the attacked map.

        r_i = sum_j sigmoid((a_i - a_j) / (std(a) / 6))      maps of at most 16 entries
        r_i = log(1/2 + a_i / mean(a))                       larger ones: n^2 pairs would cost more than the map

    The first goes to the true rank as differences grow beyond a sixth of the spread; the second has the true order, and
    its logarithm keeps few large pixels from outweighing the many (ours; a sixth and one half are our choice: on
    14 x 14 maps of dense networks both reach the same ranks, the logarithm at a tenth of the price; flattened by 0.1
    it reaches less).

    Returns:
        From 0 (same order) to 2 (reversed).
    """
    now = pixelwise(there).flatten(1)
    if now.shape[1] <= PAIRWISE:
        width = _spread(now)[:, :, None] / 6
        ranks = ((now[:, :, None] - now[:, None, :]) / width).sigmoid().sum(2)
    else:
        ranks = (now / now.mean(1, keepdim=True).clamp_min(torch.finfo(now.dtype).tiny) + FLATTEN).log()
    order = similarity.ranks(pixelwise(clean)).to(ranks)
    return 1 - similarity.pearson(order[:, None], ranks[:, None])


def lower_cosine(clean: Maps, there: Maps) -> PerImage:
    """One minus the cosine between the signed maps: 0 (same direction) to 2 (reversed)."""
    return 1 - similarity.cosine(clean, there)


def lower_pearson(clean: Maps, there: Maps) -> PerImage:
    """One minus the linear correlation between the importances: 0 to 2."""
    return 1 - similarity.pearson(pixelwise(clean), pixelwise(there))


def shift_center(clean: Maps, there: Maps) -> PerImage:
    """Move the map's centre of mass away from where it is on the clean image, in pixels.

    Reference: Ghorbani et al. 2019, mass-centre attack (here with the exact centre; its gradient is zero at the
    clean image, so start elsewhere).
    """
    moved = similarity.center_of_mass(pixelwise(there)) - similarity.center_of_mass(pixelwise(clean))
    return (moved.square().sum(1) + torch.finfo(moved.dtype).eps).sqrt()


def match_map(clean: Maps, there: Maps, *, wanted: Wanted) -> PerImage:
    """Move the map towards a given one: another image's map, a frame, whatever the explanation should show.

        1 - |h(x') - h*|^2 / |h(x) - h*|^2

    with h the importances divided by their sum: 0 at the clean map, 1 where the wanted map is reached.

    Args:
        clean: maps of the clean images.
        there: maps of the attacked images.
        wanted: one map per image, of the same height and width; only its importances matter.

    Raises:
        ValueError: if `wanted` has another shape, is zero for an image, or holds NaN or infinite entries.

    Reference: Dombrowski et al. 2019, "Explanations can be manipulated and geometry is to blame" (there with a
    soft penalty that holds the output; here the prediction is held by the judge).
    """
    goal, begin = _distribution(check_wanted(wanted, clean)), _distribution(pixelwise(clean))
    way = (begin - goal).square().sum((1, 2)).clamp_min(torch.finfo(goal.dtype).tiny)
    return 1 - (_distribution(pixelwise(there)) - goal).square().sum((1, 2)) / way


def check_wanted(wanted: Wanted, clean: Maps) -> Importances:
    """Importances of wanted maps.

    Raises:
        ValueError: if `wanted` has another shape, is zero for an image, or holds NaN or infinite entries.
    """
    goal, shape = pixelwise(wanted.detach()), (len(clean), *clean.shape[-2:])
    if goal.shape != shape or not bool(torch.isfinite(goal).all()) or not bool(goal.flatten(1).any(1).all()):
        raise ValueError(
            f"wanted has shape {tuple(wanted.shape)}; it must hold, for each of {shape[0]} images, a finite map of"
            f" {shape[1]} x {shape[2]} that is not zero everywhere"
        )
    return goal


def frame(maps: Maps, *, width: int = 1) -> OnePlane:
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


def share_of(chosen: Bool[Tensor, "batch pixels"], importances: Importances) -> PerImage:
    """Share of a map's importance that the chosen pixels hold; 0 of a map that is zero."""
    flat = importances.flatten(1)
    return _share(torch.where(chosen, flat, 0).sum(1), flat.sum(1))


def _spread(importances: Tensor) -> Tensor:
    """Standard deviation of each row, never zero."""
    return importances.std(1, keepdim=True).clamp_min(torch.finfo(importances.dtype).tiny)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp_min(torch.finfo(whole.dtype).tiny)


def _distribution(importances: Importances) -> Importances:
    """Importances that sum to one; a map that is zero stays zero."""
    return _share(importances, importances.sum((1, 2), keepdim=True))
