"""How far maps are from the clean ones, under every similarity and distance at once: what attacks are judged by."""

import torch
from jaxtyping import Float
from torch import Tensor

from attrobust import similarity
from attrobust.attacks.clean import Clean, along, centred, share_of
from attrobust.attacks.objectives import match_map
from attrobust.attributions import pixelwise
from attrobust.shapes import Maps, PerImage, Wanted

#: Measures of every table with the direction that is worse: similarities fall, distances rise.
MEASURES = {
    "top_k": -1, "top_k_share": -1, "spearman": -1, "cosine": -1, "pearson": -1,
    "displacement": 1, "relative_displacement": 1, "center_shift": 1, "match": 1,
}  # fmt: skip


def measure(clean: Maps, there: Maps, *, k: int, wanted: Wanted | None = None) -> dict[str, PerImage]:
    """Every similarity and distance of two batches of maps, by name.

    A clean map that is zero everywhere explains nothing: every measure of it is NaN. A map that has become zero is
    unlike the clean one (similarity 0). `top_k_share` is the share of importance that the k leaders of the clean map
    hold, over the share they held; `match`, if maps are `wanted`, the share of the squared way to them.

    Example:
        >>> a = torch.rand(2, 1, 3, 3)
        >>> measure(a, 2 * a, k=2)["top_k"].tolist()
        [1.0, 1.0]
    """
    return dict(zip(MEASURES, compare(Clean(clean, k=k, wanted=wanted), there), strict=False))


def compare(clean: Clean, there: Maps) -> Float[Tensor, "measures iterates"]:
    """Every measure of finite maps beside their clean ones, in the order of `MEASURES`; "match" if one is wanted."""
    importances, flat = pixelwise(there), there.flatten(1)
    now, (ranks, leaders) = importances.flatten(1), similarity.ranks_and_leaders(importances, k=clean.k)
    alike = [
        clean.leaders.gather(1, leaders).sum(1).to(now) / clean.k,
        share_of(clean.top, importances) / clean.held,
        along(clean.ranks, (ranks - (now.shape[1] + 1) / 2).to(now)),
        along(clean.direction, flat),
        along(clean.profile, centred(now)),
    ]
    change = (flat - clean.maps.flatten(1)).norm(dim=1)
    moved = [
        change,
        torch.where(change == 0, 0, change / clean.length),
        (similarity.center_of_mass(importances) - clean.center).norm(dim=1),
    ]
    if clean.wanted is not None:
        moved.append(match_map(clean, there))
    gone = now.sum(1) == 0
    found = torch.cat([torch.where(gone, 0, torch.stack(alike)), torch.stack(moved)])
    return torch.where(clean.zero, torch.nan, found)
