"""How alike are two attribution maps? One number per image; larger means more alike.

Every table of this project shows several at once, because each is blind to something: top-k sees only which pixels
lead, rank correlation only the order, cosine the signs and shape but not the scale, and the displacement (a distance)
the scale too. Cosine of two *non-negative* maps is near 1 for any two maps, so absolute maps are compared by rank or by
Pearson correlation instead. All refuse maps whose shapes differ (ValueError).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrobust import checks
from attrobust.shapes import Importances, Maps, PerImage

Flat = Float[Tensor, "batch pixels"]


def topk_intersection(reference: Importances, perturbed: Importances, *, k: int) -> PerImage:
    """Share of the k most important pixels of `reference` that stay among the k of `perturbed`.

    In [0, 1]: 1 = same pixels, k / (height x width) = chance; k runs from 1 to height x width.

    Raises:
        ValueError: `k` out of range.

    Example:
        >>> a = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
        >>> topk_intersection(a, a.flip(2), k=2).item(), topk_intersection(a, a.flip(1), k=2).item()
        (1.0, 0.0)

    Reference: Ghorbani et al. 2019, "Interpretation of neural networks is fragile".
    """
    first, second = _flat_pair(reference, perturbed)
    checks.count("k", k, most=first.shape[1])
    shared = (leaders(reference, k=k) & leaders(perturbed, k=k)).sum(1).to(first) / k
    return _unless_nan(shared, first, second)


def leaders(importances: Importances, *, k: int) -> Bool[Tensor, "batch pixels"]:
    """Which pixels are the k most important of their map.

    Example:
        >>> leaders(torch.tensor([[[0.2, 0.5], [0.4, 0.1]]]), k=2).tolist()
        [[False, True, True, False]]
    """
    flat = importances.flatten(1)
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, flat.topk(k).indices, True)


def topk_above_chance(reference: Importances, perturbed: Importances, *, k: int) -> PerImage:
    """Top-k intersection with its chance level taken out.

        (s - k / n) / (1 - k / n),   s = `topk_intersection`, n = height x width

    Maps of different sizes, or different k, can then be compared: 100 of 1,000 pixels and 1,000 of 1,024 cannot. In
    [-k / (n - k), 1]: 1 = same pixels, 0 = chance, negative = fewer than chance; k runs from 1 to n - 1.

    Raises:
        ValueError: `k` out of range, or maps of a single pixel.

    Example:
        >>> a = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
        >>> topk_above_chance(a, a.flip(2), k=2).item(), topk_above_chance(a, a.flip(1), k=2).item()
        (1.0, -1.0)

    Reference: the form of Cohen 1960, "A coefficient of agreement for nominal scales" (kappa).
    """
    _flat_pair(reference, perturbed)
    pixels = reference.shape[1:].numel()
    if pixels < 2:
        raise ValueError(f"reference has shape {tuple(reference.shape)}; its maps must have two pixels or more")
    chance = checks.count("k", k, most=pixels - 1) / pixels
    return (topk_intersection(reference, perturbed, k=k) - chance) / (1 - chance)


def spearman(reference: Importances, perturbed: Importances) -> PerImage:
    """Rank correlation of importances, in [-1, 1]; ties get average ranks, a constant map has no order and gets 0.

    Example:
        >>> a = torch.tensor([[[1.0, 2.0, 9.0]]])
        >>> spearman(a, a.square()).item(), spearman(a, a.flip(2)).item()
        (1.0, -1.0)
    """
    first, second = _flat_pair(reference, perturbed)
    found = along(unit(centred(ranks(reference))), centred(ranks(perturbed))).clamp(-1, 1)
    return _unless_nan(found.to(reference), first, second)


def between(importances: Importances) -> PerImage:
    """Mean rank correlation of each map with the maps of the other images, in [-1, 1]; NaN for a single image.

    A map with a NaN has none and is no other image; maps that are not floating-point are refused by a ValueError.

    A map that is much the same for every image survives any attack and explains none: what is left of a similarity S
    above this level is (S - between) / (1 - between).

    Example:
        >>> a = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> between(torch.cat([a, a, a.flip(2)])).tolist()
        [0.0, 0.0, -1.0]
    """
    known = ~checks.floating("importances", importances).isnan().flatten(1).any(1)
    directions = torch.where(known[:, None], unit(centred(ranks(importances))), 0)
    others = (directions * (directions.sum(0) - directions)).sum(1)
    return torch.where(known, others / (known.sum() - 1), torch.nan).to(importances)  # 0 / 0 of a single image


def ranks(importances: Importances) -> Flat:
    """Rank of each pixel in its map, 1 for the least important, in float64; ties share the mean of their ranks.

    Example:
        >>> ranks(torch.tensor([[[0.2, 0.5], [0.5, 0.1]]])).tolist()
        [[2.0, 3.5, 3.5, 1.0]]
    """
    return _sorted(importances)[0].double()


def ranks_and_leaders(importances: Importances, *, k: int) -> tuple[Flat, Int[Tensor, "batch k"]]:
    """`ranks`, in the map's own precision, and which pixels are `leaders`, as indices: from one sorting.

    Example:
        >>> order, top = ranks_and_leaders(torch.tensor([[[0.2, 0.5], [0.4, 0.1]]]), k=2)
        >>> order.tolist(), sorted(top[0].tolist())
        ([[2.0, 4.0, 3.0, 1.0]], [1, 2])
    """
    ranks, order, tied = _sorted(importances)
    chosen = order[:, -k:]
    if len(tied):  # between ties the order is chance: as `leaders` chooses
        chosen = chosen.index_copy(0, tied, importances.flatten(1)[tied].topk(k).indices)
    return ranks, chosen


def ascending(values: Flat) -> tuple[Int[Tensor, "batch pixels"], Bool[Tensor, "batch steps"]]:
    """The pixels of each map from the least to the most important, ties in any order; and where the next is no tie.

    Example:
        >>> order, rises = ascending(torch.tensor([[0.2, 0.5, 0.2]]))
        >>> order[0, 2].item(), rises.tolist()
        (1, [[False, True]])
    """
    pixels = torch.arange(values.shape[1], device=values.device)
    packed = values.dtype == torch.float32 and values.device.type == "cpu" and len(pixels) <= 2**16
    if not packed or not values.numel() or not bool(values.min() >= 0):  # NaN, too
        order = values.argsort()
        return order, values.gather(1, order).diff() != 0
    # Numbers sort several times faster than their places: value and place go into one number. The bits of floats that
    # are not negative are in the order of the floats (and -0 + 0 is 0).
    keys = (values + 0).view(torch.int32).long().bitwise_left_shift_(16).bitwise_or_(pixels)
    keys.numpy().sort()
    new = keys[:, 1:] ^ keys[:, :-1] > 0xFFFF
    return keys.bitwise_and_(0xFFFF), new


def _sorted(importances: Importances) -> tuple[Flat, Int[Tensor, "batch pixels"], Int[Tensor, " tied"]]:
    """Ranks, at least in single precision, the pixels in ascending order, and which maps have ties."""
    values = importances.detach().flatten(1)
    (order, new), exact = ascending(values), torch.promote_types(values.dtype, torch.float32)
    place = torch.arange(1, values.shape[1] + 1, dtype=exact, device=values.device)
    ranks = torch.empty_like(values, dtype=exact).scatter_(1, order, place.expand_as(order))
    tied = (~new.all(1)).nonzero().flatten()
    if len(tied):
        # Ties stand side by side: they share the mean of the first and the last place of their run.
        new, edge = new[tied], torch.ones_like(new[tied, :1])
        first = torch.where(torch.cat([edge, new], 1), place, 0).cummax(1).values
        last = torch.where(torch.cat([new, edge], 1), place, torch.inf).flip(1).cummin(1).values.flip(1)
        ranks[tied] = ranks[tied].scatter(1, order[tied], (first + last) / 2)
    return ranks, order, tied


def pearson(reference: Importances, perturbed: Importances) -> PerImage:
    """Linear correlation of importances, in [-1, 1]; 0 = chance, also where a map is constant.

    Example:
        >>> a = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> round(pearson(a, 5 - a).item(), 4), pearson(a, torch.ones_like(a)).item()
        (-1.0, 0.0)
    """
    first, second = (level(exact(m)) for m in _flat_pair(reference, perturbed))
    return along(unit(centred(first)), centred(second)).clamp(-1, 1).to(reference)


def cosine(reference: Maps, perturbed: Maps) -> PerImage:
    """Cosine of the angle between signed maps, in [-1, 1]; 0 = chance, also where a map is zero.

    Example:
        >>> a = torch.tensor([[[[1.0, 0.0]]]])
        >>> cosine(a, -2 * a).item(), cosine(a, a.flip(3)).item()
        (-1.0, 0.0)
    """
    first, second = (level(exact(m)) for m in _flat_pair(reference, perturbed))
    return along(unit(first), second).clamp(-1, 1).to(reference)


def displacement(reference: Maps, perturbed: Maps) -> PerImage:
    """Euclidean length of the change of a signed map, in units of the map (a distance: 0 = same map).

    Example:
        >>> displacement(torch.zeros(1, 1, 1, 2), torch.tensor([[[[3.0, 4.0]]]])).item()
        5.0
    """
    first, second = _flat_pair(reference, perturbed)
    return length(second - first)


def relative_displacement(reference: Maps, perturbed: Maps) -> PerImage:
    """Length of a signed map's change over the clean map's (a distance); infinite where only the clean map is zero.

    Example:
        >>> a = torch.tensor([[[[3.0, 4.0]]]])
        >>> relative_displacement(a, 3 * a).item(), relative_displacement(0 * a, a).item()
        (2.0, inf)
    """
    first, second = _flat_pair(reference, perturbed)
    power = -torch.maximum(exponent(first), exponent(second))  # no difference of theirs overflows
    first, second = (times(exact(m), power) for m in (first, second))
    change = length(second - first)
    return torch.where(change == 0, torch.zeros_like(change), change / length(first)).to(reference)


def center_shift(reference: Importances, perturbed: Importances) -> PerImage:
    """Distance in pixels between the centres of mass of two importance maps (0 = same centre).

    Example:
        >>> a = torch.tensor([[[1.0, 0.0, 0.0]]])
        >>> round(center_shift(a, a.flip(2)).item(), 4)
        2.0

    Reference: Ghorbani et al. 2019 (there truncated to whole pixels, here exact).
    """
    _flat_pair(reference, perturbed)
    return (center_of_mass(exact(perturbed)) - center_of_mass(exact(reference))).norm(dim=1).to(reference)


def center_of_mass(importances: Importances) -> Float[Tensor, "batch 2"]:
    """Row and column of the centre of mass, in pixels; the middle of the image where the map is zero.

    Raises:
        ValueError: importances that are not (batch, height, width).

    Example:
        >>> [round(place, 4) for place in center_of_mass(torch.tensor([[[0.0, 1.0], [0.0, 3.0]]]))[0].tolist()]
        [0.75, 1.0]
    """
    if importances.ndim != 3:
        raise ValueError(f"importances has shape {tuple(importances.shape)}; it must be (batch, height, width)")
    _, height, width = importances.shape
    mass = level(exact(importances.flatten(1)))
    rows, columns = (torch.arange(n, dtype=mass.dtype, device=mass.device) for n in (height, width))
    sums = torch.stack([rows.repeat_interleave(width), columns.repeat(height), torch.ones_like(rows).repeat(width)], 1)
    totals = (mass + torch.finfo(mass.dtype).tiny) @ sums
    return (totals[:, :2] / totals[:, 2:]).to(importances)


def _flat_pair(reference: Tensor, perturbed: Tensor) -> tuple[Tensor, Tensor]:
    for name, maps in (("reference", reference), ("perturbed", perturbed)):
        checks.floating(name, maps)
    if (shape := tuple(perturbed.shape)) != tuple(reference.shape):
        raise ValueError(f"perturbed has shape {shape}; it must match reference, {tuple(reference.shape)}")
    if reference.ndim < 2 or not reference.shape[1:].numel():
        raise ValueError(f"reference has shape {tuple(reference.shape)}; it must be a batch of maps, (batch, ...)")
    return reference.flatten(1), perturbed.flatten(1)


def _unless_nan(found: PerImage, *maps: Flat) -> PerImage:
    """NaN where a map has a NaN, which has no order."""
    return torch.where(torch.stack([m.isnan().any(1) for m in maps]).any(0), torch.nan, found)


def along(direction: Flat, vectors: Flat) -> PerImage:
    """Cosine of vectors, made `level` if of any scale, with directions of unit length; 0 of a vector that is zero.

    Example:
        >>> along(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item()
        0.0
    """
    size = vectors.norm(dim=1)
    return (direction * vectors).sum(1) / torch.where(size > 0, size, 1)


def centred(m: Flat) -> Flat:
    """Each row less its mean; of a constant row nothing is left, not even the rounding of its mean.

    Example:
        >>> centred(torch.tensor([[1.0, 3.0], [0.1, 0.1]])).tolist()
        [[-1.0, 1.0], [0.0, 0.0]]
    """
    rest, constant = m - m.mean(1, keepdim=True), m.amax(1, keepdim=True) == m.amin(1, keepdim=True)
    return torch.where(constant, 0 * m, rest) if bool(constant.any()) else rest  # 0 times infinity is NaN


def unit(m: Flat) -> Flat:
    """Each row at Euclidean length 1; a row of zeros stays one.

    Example:
        >>> unit(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    m = level(m)
    size = m.norm(dim=1, keepdim=True)
    return m / torch.where(size > 0, size, torch.ones_like(size))


def length(m: Flat) -> PerImage:
    """Euclidean length of each row.

    Example:
        >>> length(torch.tensor([[3.0, 4.0]])).item()
        5.0
    """
    size = m.norm(dim=1)
    # Most are told by their length alone: such a row is `_ordinary` whatever its entries.
    if torch.finfo(m.dtype).max > 2**100 and bool(((size > 2**-16) & (size < 2**32)).all()):
        return size
    power = exponent(m)
    return size if _ordinary(m, power) else times(times(m, -power).norm(dim=1), power[:, 0])


def level(m: Tensor) -> Tensor:
    """Maps of ordinary size as they are; else times the power of two that brings the largest entry between 1/2 and 1.

    Which rounds nothing; and squares and sums neither vanish nor overflow, as those of 1e-30 and 1e30 do in single
    precision.

    Example:
        >>> level(torch.tensor([[3e-30, 0.0], [0.0, 0.0]])).norm(dim=1).gt(0.5).tolist()
        [True, False]
    """
    power = exponent(m.flatten(1))
    return m if _ordinary(m, power) else times(m, -power.view(-1, *(1,) * (m.ndim - 1)))


def _ordinary(m: Tensor, power: Int[Tensor, "batch 1"]) -> bool:
    """Whether squares of these maps keep their digits as they are: in half precision no size is ordinary."""
    return torch.finfo(m.dtype).max > 2**100 and bool((power.abs() <= 32).all())


def exponent(m: Flat) -> Int[Tensor, "batch 1"]:
    """The power of two just above each row's largest entry; 0 of a row that is zero or not finite.

    Example:
        >>> exponent(torch.tensor([[3.0, 0.5], [0.0, 0.0]])).tolist()
        [[2], [0]]
    """
    m = m.detach()
    largest = torch.maximum(m.amax(1, keepdim=True), -m.amin(1, keepdim=True))  # of abs() torch is far slower
    return torch.frexp(exact(largest).nan_to_num(posinf=0)).exponent


def times(m: Tensor, power: Int[Tensor, "..."]) -> Tensor:
    """A tensor times powers of two, in two steps: 2^140, which lifts the least numbers, is none in single precision.

    Example:
        >>> times(torch.tensor([3.0]), torch.tensor([2])).item()
        12.0
    """
    half = torch.div(power, 2, rounding_mode="floor")
    one = torch.ones_like(power, dtype=m.dtype)
    return m * torch.ldexp(one, half) * torch.ldexp(one, power - half)


def exact(m: Tensor) -> Tensor:
    """At least in single precision.

    Example:
        >>> exact(torch.ones(1, dtype=torch.float16)).dtype, exact(torch.ones(1, dtype=torch.float64)).dtype
        (torch.float32, torch.float64)
    """
    return m.to(torch.promote_types(m.dtype, torch.float32))
