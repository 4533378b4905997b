"""What an attack on a map tries to achieve: functions of the clean map and the attacked one, to be *increased*.

Each takes clean maps (`Clean`) and as many attacked ones, and returns one number per image. None knows of a network:
whoever climbs decides how maps are made and differentiated.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attrobust import checks, similarity
from attrobust.attacks.clean import Clean, distribution, share_of
from attrobust.attributions import pixelwise
from attrobust.shapes import Maps, OnePlane, PerImage
from attrobust.similarity import along, centred, level

Objective = Callable[[Clean, Maps], PerImage]

#: Largest map whose ranks are softened pair by pair (of 8 x 8 maps both ways reach the same ranks).
PAIRWISE = 16
#: What the logarithm of a large map is flattened by, in units of its mean.
FLATTEN = 0.5


def shift_topk(clean: Clean, there: Maps) -> PerImage:
    """Take importance away from the k pixels that lead on the clean image: minus the share that they hold.

    Example:
        >>> clean = Clean(torch.tensor([[[[1.0, 0.0]]]]), k=1)
        >>> shift_topk(clean, clean.maps).item(), shift_topk(clean, torch.tensor([[[[1.0, 3.0]]]])).item()
        (-1.0, -0.25)

    Reference: Ghorbani et al. 2019, top-k attack.
    """
    return -share_of(clean.top, pixelwise(level(there)))


def unseat_topk(clean: Clean, there: Maps) -> PerImage:
    """Push the k pixels that lead on the clean image below the others: from -1 (all lead by far) to 0.

        - mean over r of  sigmoid((L_r - N_(k - r + 1)) / s)

    with L_r the r-th largest importance among the clean leaders, N_r among all other pixels, and s an eighth of the
    standard deviation of all. As s goes to 0 this is minus the top-k intersection, exactly: at least r leaders still
    lead if and only if the r-th of them lies above the (k - r + 1)-th other pixel. It aims at the intersection itself,
    where `shift_topk` may be content with one new large pixel (ours; an eighth is our choice).

    Example:
        >>> clean = Clean(torch.tensor([[[[1.0, 0.0]]]]), k=1)
        >>> [round(unseat_topk(clean, maps).abs().item(), 3) for maps in (clean.maps, clean.maps.flip(3))]
        [1.0, 0.0]
    """
    now, k = pixelwise(level(there)).flatten(1), clean.k
    paired = min(k, now.shape[1] - k)  # a leader with nobody left to fall behind leads whatever happens
    leading = now.gather(1, clean.top).sort(1, descending=True).values[:, k - paired :]
    others = now.scatter(1, clean.top, -torch.inf).topk(paired).values.flip(1)
    ahead = ((leading - others) / (_spread(now) / 8)).sigmoid()
    return -(ahead.sum(1) + k - paired) / k


def lower_spearman(clean: Clean, there: Maps) -> PerImage:
    """One minus the correlation of the clean ranks with softened ranks of the attacked map: 0 (same order) to 2.

        r_i = sum_j sigmoid((a_i - a_j) / (std(a) / 6))      maps of at most 16 entries
        r_i = log(1/2 + a_i / mean(a))                       larger ones: n^2 pairs would cost more than the map

    The first goes to the true rank as differences grow beyond a sixth of the spread; the second has the true order, and
    its logarithm keeps few large pixels from outweighing the many (ours; a sixth and one half are our choice: on
    14 x 14 maps of dense networks both reach the same ranks, the logarithm at a tenth of the price; flattened by 0.1
    it reaches less).

    Example:
        >>> clean = Clean(torch.tensor([[[[1.0, 0.0]]]]), k=1)
        >>> [round(lower_spearman(clean, maps).abs().item(), 4) for maps in (clean.maps, clean.maps.flip(3))]
        [0.0, 2.0]
    """
    now = pixelwise(level(there)).flatten(1)
    if now.shape[1] <= PAIRWISE:
        width = _spread(now)[:, :, None] / 6
        ranks = ((now[:, :, None] - now[:, None, :]) / width).sigmoid().sum(2)
    else:
        ranks = (now / now.mean(1, keepdim=True).clamp_min(torch.finfo(now.dtype).tiny) + FLATTEN).log()
    return 1 - along(clean.ranks, centred(ranks))


def lower_cosine(clean: Clean, there: Maps) -> PerImage:
    """One minus the cosine between the signed maps: 0 (same direction) to 2 (reversed).

    Example:
        >>> clean = Clean(torch.tensor([[[[1.0, 0.0]]]]), k=1)
        >>> lower_cosine(clean, clean.maps).item(), lower_cosine(clean, -clean.maps).item()
        (0.0, 2.0)
    """
    return 1 - along(clean.direction, level(there).flatten(1))


def lower_pearson(clean: Clean, there: Maps) -> PerImage:
    """One minus the linear correlation between the importances: 0 to 2.

    Example:
        >>> clean = Clean(torch.tensor([[[[1.0, 0.0]]]]), k=1)
        >>> [round(lower_pearson(clean, maps).abs().item(), 4) for maps in (clean.maps, clean.maps.flip(3))]
        [0.0, 2.0]
    """
    return 1 - along(clean.profile, centred(pixelwise(level(there)).flatten(1)))


def shift_center(clean: Clean, there: Maps) -> PerImage:
    """Move the map's centre of mass away from where it is on the clean image, in pixels.

    Example:
        >>> clean = Clean(torch.tensor([[[[1.0, 0.0]]]]), k=1)
        >>> round(shift_center(clean, clean.maps.flip(3)).item(), 4)
        1.0

    Reference: Ghorbani et al. 2019, mass-centre attack (here with the exact centre; its gradient is zero at the
    clean image, so start elsewhere).
    """
    moved = similarity.center_of_mass(pixelwise(level(there))) - clean.center
    return (moved.square().sum(1) + torch.finfo(moved.dtype).eps).sqrt()


def match_map(clean: Clean, there: Maps) -> PerImage:
    """Move the map towards a wanted one: another image's map, a frame, whatever the explanation should show.

        1 - |h(x') - h*|^2 / |h(x) - h*|^2

    with h the importances divided by their sum: 0 at the clean map, 1 where the wanted map is reached.

    Example:
        >>> a = torch.tensor([[[[1.0, 0.0]]]])
        >>> clean = Clean(a, k=1, wanted=a.flip(3))
        >>> match_map(clean, a).item(), match_map(clean, a.flip(3)).item()
        (0.0, 1.0)

    Reference: Dombrowski et al. 2019, "Explanations can be manipulated and geometry is to blame" (there with a
    soft penalty that holds the output; here the prediction is held by the judge).
    """
    left, way = (
        (distribution(maps) - clean.wanted).square().sum((1, 2))
        for maps in (pixelwise(level(there)), clean.importances)
    )
    return 1 - left / way.clamp_min(torch.finfo(way.dtype).tiny)


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


def _spread(importances: Tensor) -> Tensor:
    """Standard deviation of each row, never zero."""
    spread = centred(importances).norm(dim=1, keepdim=True) / (importances.shape[1] - 1) ** 0.5
    return spread.clamp_min(torch.finfo(importances.dtype).tiny)
