"""Clean maps, with what their comparison with other maps needs of them again and again."""

import torch
from jaxtyping import Int
from torch import Tensor

from attrobust import checks, similarity
from attrobust.attributions import pixelwise, zero_maps
from attrobust.shapes import Importances, Maps, Marks, PerImage, Wanted
from attrobust.similarity import centred, exact, length, level, unit

Rows = Int[Tensor, " iterates"]


class Clean:
    """Clean maps. `clean[rows]` stands for some of them, in any order and number.

    Args:
        maps: the clean maps.
        k: leading pixels of the top-k measures and objectives, from 1 to height x width - 1.
        wanted: maps that an attack aims at, one per image, if any; only their importances matter.

    Raises:
        ValueError: if `k` is out of range, or `wanted` has another shape, is zero for an image, or is not finite.

    Example:
        >>> clean = Clean(torch.tensor([[[[3.0, 1.0]]], [[[1.0, 3.0]]]]), k=1)
        >>> clean.leaders.tolist(), len(clean), clean[torch.tensor([1])].leaders.tolist()
        ([[True, False], [False, True]], 2, [[False, True]])
    """

    maps: Maps
    k: int
    importances: Importances
    zero: Marks
    length: PerImage
    center: Tensor
    leaders: Tensor
    top: Tensor
    held: PerImage
    ranks: Tensor
    profile: Tensor
    direction: Tensor
    wanted: Importances | None

    def __init__(self, maps: Maps, *, k: int, wanted: Wanted | None = None) -> None:
        if (pixels := maps[0, 0].numel()) < 2:
            raise ValueError("the maps have one pixel each, of which k cannot be some; they must have two or more")
        self.maps, self.k = (maps := exact(maps)), checks.count("k", k, most=pixels - 1)
        self.importances, self.zero, self.length = pixelwise(level(maps)), zero_maps(maps), length(maps.flatten(1))
        self.center = similarity.center_of_mass(self.importances)
        self.leaders, self.top = similarity.leaders(self.importances, k=k), self.importances.flatten(1).topk(k).indices
        self.held = share_of(self.top, self.importances)
        # Ranks, importances and signed maps as directions: of unit length, the first two centred.
        self.ranks = unit(centred(similarity.ranks(self.importances))).to(maps)
        self.profile, self.direction = unit(centred(self.importances.flatten(1))), unit(maps.flatten(1))
        self.wanted = None if wanted is None else distribution(self._check(wanted))

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, rows: Rows) -> "Clean":
        return _Chosen(self, rows)

    def _check(self, wanted: Wanted) -> Importances:
        goal, shape = pixelwise(checks.kind("wanted", wanted, Tensor).detach()), tuple(self.importances.shape)
        if goal.shape != shape or not bool(torch.isfinite(goal).all()) or not bool(goal.flatten(1).any(1).all()):
            raise ValueError(
                f"wanted has shape {tuple(wanted.shape)}; it must hold, for each of {shape[0]} images, a finite map of"
                f" {shape[1]} x {shape[2]} that is not zero everywhere"
            )
        return goal


class _Chosen(Clean):
    """Rows of clean maps; each attribute is gathered when it is first asked for."""

    def __init__(self, clean: Clean, rows: Rows) -> None:
        self._clean, self._rows = clean, rows

    def __getattr__(self, name: str) -> object:
        value = getattr(self._clean, name)
        value = value.index_select(0, self._rows) if isinstance(value, Tensor) else value
        setattr(self, name, value)
        return value


def share_of(chosen: Int[Tensor, "batch k"], importances: Importances) -> PerImage:
    """Share of a (level) map's importance that the chosen pixels hold; 0 of a map that is zero."""
    flat = importances.flatten(1)
    return _share(flat.gather(1, chosen).sum(1), flat.sum(1))


def distribution(importances: Importances) -> Importances:
    """Importances that sum to one; a map that is zero stays zero."""
    importances = level(importances)
    return _share(importances, importances.sum((1, 2), keepdim=True))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp_min(torch.finfo(whole.dtype).tiny)
