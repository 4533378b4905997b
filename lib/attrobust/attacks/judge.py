"""Judge every iterate under every measure, on the real network; nothing that an attack found is thrown away.

Attacks climb smooth objectives; what is reported are similarities and distances of maps. So the iterate that counts
is chosen for each measure by that measure itself, among those that keep the prediction. A map that no counted iterate
has reached was not attacked: its row is NaN, never "unmoved".
"""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrobust import checks, similarity
from attrobust.attacks.clean import Clean, Rows, share_of
from attrobust.attacks.objectives import match_map
from attrobust.attributions import pixelwise
from attrobust.shapes import Images, Maps, Marks, PerImage, Wanted

#: Measures of every table with the direction that is worse: similarities fall, distances rise.
MEASURES = {
    "top_k": -1, "top_k_share": -1, "spearman": -1, "cosine": -1, "pearson": -1,
    "displacement": 1, "relative_displacement": 1, "center_shift": 1, "match": 1,
}  # fmt: skip

#: An image gives way to one that is worse by more than this many units in the last place: between ties, which the
#: maps of a piecewise linear network are full of, the first one stays, however a batch is rounded.
ROUNDING = 64


def measure(clean: Maps, there: Maps, *, k: int, wanted: Wanted | None = None) -> dict[str, PerImage]:
    """Every similarity and distance of two batches of maps, by name.

    A clean map that is zero everywhere explains nothing: every measure of it is NaN, as is every measure of a map that
    is not finite. A map that has become zero is unlike the clean one (similarity 0). `top_k_share` is the share of
    importance that the k leaders of the clean map hold, over the share they held; `match`, if maps are `wanted`, the
    share of the squared way to them.

    Raises:
        ValueError: maps that are not floating-point batches of one shape, or none at all.

    Example:
        >>> a = torch.rand(2, 1, 3, 3)
        >>> measure(a, 2 * a, k=2)["top_k"].tolist()
        [1.0, 1.0]
    """
    if checks.floating("there", there).shape != checks.floating("clean", clean).shape or not clean.numel():
        raise ValueError(f"there has shape {tuple(there.shape)}; it must be that of clean, {tuple(clean.shape)}")
    told = (clean.isfinite() & there.isfinite()).flatten(1).all(1)
    found = compare(Clean(clean.nan_to_num(), k=k, wanted=wanted), there.nan_to_num())
    return dict(zip(MEASURES, torch.where(told, found, torch.nan), strict=False))


def compare(clean: Clean, there: Maps) -> Float[Tensor, "measures iterates"]:
    """Every measure of finite maps beside their clean ones, in the order of `MEASURES`; "match" if one is wanted."""
    there = similarity.exact(there)
    level = similarity.level(there)
    importances, flat = pixelwise(level), there.flatten(1)
    now, (ranks, leaders) = importances.flatten(1), similarity.ranks_and_leaders(importances, k=clean.k)
    alike = [
        clean.leaders.gather(1, leaders).sum(1).to(now) / clean.k,
        share_of(clean.top, importances) / clean.held,
        similarity.along(clean.ranks, ranks - (now.shape[1] + 1) / 2).to(now).clamp(-1, 1),
        similarity.along(clean.direction, level.flatten(1)).clamp(-1, 1),
        similarity.along(clean.profile, similarity.centred(now)).clamp(-1, 1),
    ]
    change = similarity.length(flat - clean.maps.flatten(1))
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


class Judge:
    """Keeps, for each clean image and measure, the worst that each part and all parts together have found.

    An image that reaches the `goal`, a measure and its value, is broken.
    """

    clean: Clean
    broken: Tensor

    def __init__(self, x: Images, clean: Clean, *, goal: tuple[str, float] | None = None) -> None:
        self.clean, self._goal, like = clean, goal, clean.length
        self._names = [name for name in MEASURES if name != "match" or clean.wanted is not None]
        self._worse = like.new_tensor([[MEASURES[name]] for name in self._names])
        self._nothing = like.new_full((len(self._names), len(x)), -torch.inf)
        self._best, self._held = self._nothing.clone(), self._nothing.clone()  # of all iterates; of the image kept
        self._at, self._winner = x.repeat(len(self._names), 1, 1, 1, 1), torch.full_like(self._best, -1).long()
        self._parts: dict[str, dict[str, Tensor]] = {}
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    @property
    def x(self) -> dict[str, Images]:
        """By measure, the worst image found; the clean image where none counted."""
        return dict(zip(self._names, self._at, strict=True))

    def open(self, part: str, rows: Rows) -> Int[Tensor, " remaining"]:
        """Begin a part: with nothing counted, for those of the images that are not broken; they are returned."""
        rows = rows[~self.broken[rows]]
        tried = torch.zeros_like(self.broken)
        tried[rows] = True
        self._parts[part] = {"best": self._nothing.clone(), "tried": tried, "counted": torch.zeros_like(tried)}
        return rows

    def see(
        self, parts: Sequence[str], at: Images, rows: Rows, maps: Maps, kept: Bool[Tensor, " iterates"], of: Rows
    ) -> None:
        """Judge iterates `at` of the images `rows`, with their maps on the judged network.

        `kept` says whether it still predicts the clean class, `of` which of the open `parts` each iterate comes from.
        """
        maps = maps.detach()
        if not bool(maps.sum().isfinite()):
            kept, maps = kept & maps.isfinite().flatten(1).all(1), maps.nan_to_num()
        scores = self._worse * compare(self.clean[rows], maps)
        scores = torch.where(kept & ~scores.isnan(), scores, -torch.inf)
        n, place = len(self.clean), of * len(self.clean) + rows
        found = self._nothing.repeat(1, len(parts)).scatter_reduce_(1, place.expand_as(scores), scores, "amax")
        counted = torch.zeros_like(found[0], dtype=torch.bool).index_fill_(0, place[kept], True)
        for part, best, some in zip(parts, found.split(n, dim=1), counted.split(n), strict=True):
            self._parts[part]["best"] = self._parts[part]["best"].maximum(best)
            self._parts[part]["counted"] = self._parts[part]["counted"] | some
            self._best = self._best.maximum(best)
        margin = ROUNDING * torch.finfo(scores.dtype).eps * self._held.abs()
        worse = self._best > torch.where(self._held.isinf(), self._held, self._held + margin)
        if bool(worse.any()):
            self._keep(parts, at, rows, scores, of, worse)
        if self._goal is not None:
            name, value = self._goal
            self.broken = self._best[self._names.index(name)] >= MEASURES[name] * value

    def _keep(
        self, parts: Sequence[str], at: Images, rows: Rows, scores: Tensor, of: Rows, worse: Bool[Tensor, "measures n"]
    ) -> None:
        """Of the iterates that are worst for an image, up to rounding, keep the first."""
        best = self._best[:, rows]
        level = scores >= best - ROUNDING * torch.finfo(scores.dtype).eps * best.abs()
        place = torch.arange(len(rows), device=rows.device)
        candidates = torch.where(level & worse[:, rows], place, len(rows))
        first = torch.full_like(self._winner, len(rows))
        first.scatter_reduce_(1, rows.expand_as(candidates), candidates, "amin")
        measures, images = (first < len(rows)).nonzero(as_tuple=True)
        chosen, numbers = first[measures, images], list(self._parts)
        self._held[measures, images] = scores[measures, chosen]
        self._winner[measures, images] = torch.tensor([numbers.index(p) for p in parts], device=of.device)[of[chosen]]
        self._at[measures, images] = at.detach()[chosen]

    @property
    def counted(self) -> Marks:
        """Of which images some iterate of some part kept the prediction."""
        return self._any("counted")

    def table(self) -> pd.DataFrame:
        """One row per image and part, and "worst": every measure at its own worst counted iterate; NaN without one."""
        flags = ("tried", "counted")
        every = {flag: self._any(flag) for flag in flags}
        tables = []
        for part, found in {**self._parts, "worst": {"best": self._best, **every}}.items():
            values = torch.where(found["best"].isinf(), torch.nan, found["best"])
            columns = {name: MEASURES[name] * value for name, value in zip(self._names, values, strict=True)}
            columns |= {flag: found[flag] for flag in flags} | {"zero": self.clean.zero}
            numbers = {name: value.double().cpu().numpy() for name, value in columns.items()}
            tables.append(pd.DataFrame({"image": range(len(self.clean)), "part": part, **numbers}))
        return pd.concat(tables, ignore_index=True)

    def winners(self) -> pd.DataFrame:
        """Name of the part that found the worst, one row per image, one column per measure; "" where none did."""
        parts = ["", *self._parts]
        by_measure = zip(self._names, self._winner.tolist(), strict=True)
        columns = {name: [parts[i + 1] for i in row] for name, row in by_measure}
        return pd.DataFrame({"image": range(len(self.clean)), **columns})

    def _any(self, flag: str) -> Marks:
        return torch.stack([torch.zeros_like(self.broken), *(part[flag] for part in self._parts.values())]).any(0)
