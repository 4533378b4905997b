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

from attrobust import similarity
from attrobust.attacks.objectives import match_map, share_of
from attrobust.attributions import distances, pixelwise, zero_maps
from attrobust.shapes import Images, Maps, Marks, PerImage, Wanted

Rows = Int[Tensor, " iterates"]

#: Measures of every table with the direction that is worse: similarities fall, distances rise.
MEASURES = {
    "top_k": -1, "top_k_share": -1, "spearman": -1, "cosine": -1, "pearson": -1,
    "displacement": 1, "relative_displacement": 1, "center_shift": 1, "match": 1,
}  # fmt: skip

#: An image gives way to one that is worse by more than this many units in the last place: between ties, which the
#: maps of a piecewise linear network are full of, the first one stays, however a batch is rounded.
ROUNDING = 64


def measure(clean: Maps, there: Maps, *, k: int, wanted: Wanted | None = None) -> dict[str, PerImage]:
    """Every similarity and distance of two batches of maps.

    A clean map that is zero everywhere explains nothing: every measure of it is NaN. A map that has become zero is
    unlike the clean one (similarity 0).

    Args:
        clean: maps of the clean images.
        there: maps of the attacked images.
        k: leading pixels.
        wanted: maps that an attack aims at; adds `match`, the share of the squared way to them (see `match_map`).

    Returns:
        By name, in the order of `MEASURES`; `top_k_share` is the share of importance that the clean leaders hold,
        over the share they held.
    """
    return Clean(clean, k=k, wanted=wanted).measure(there, torch.arange(len(clean), device=clean.device))


class Clean:
    """Clean maps, with everything that their comparison with other maps needs again and again.

    Args:
        maps: the clean maps.
        k: leading pixels.
        wanted: maps to be matched, if any.
    """

    def __init__(self, maps: Maps, *, k: int, wanted: Wanted | None = None) -> None:
        self.maps, self._k, self._wanted = maps, k, wanted
        self._importances = pixelwise(maps)
        self._ranks, self._leaders = similarity.ranks(self._importances), similarity.leaders(self._importances, k=k)
        self._held, self.zero = share_of(self._leaders, self._importances), zero_maps(maps)

    def measure(self, there: Maps, rows: Rows) -> dict[str, Float[Tensor, " iterates"]]:
        """Similarities and distances of maps and the clean ones that they belong to, as `measure` says."""
        now, clean, gone = pixelwise(there), self.maps[rows], zero_maps(there)
        leaders = self._leaders[rows]
        alike = {
            "top_k": (leaders & similarity.leaders(now, k=self._k)).sum(1).to(now) / self._k,
            "top_k_share": share_of(leaders, now) / self._held[rows],
            "spearman": similarity.pearson(self._ranks[rows][:, None], similarity.ranks(now)[:, None]).to(now),
            "cosine": similarity.cosine(clean, there),
            "pearson": similarity.pearson(self._importances[rows], now),
        }
        found = {name: torch.where(gone, 0.0, value) for name, value in alike.items()} | distances(clean, there)
        if self._wanted is not None:
            found["match"] = match_map(clean, there, wanted=self._wanted[rows])
        return {name: torch.where(self.zero[rows], torch.nan, value) for name, value in found.items()}


class Judge:
    """Keeps, for each image and measure, the worst that each part and all parts together have found.

    Args:
        x: clean images.
        clean: their maps.
        k: leading pixels.
        wanted: maps to be matched, if any.
        goal: measure and value; an image that reaches it is broken.

    Attributes:
        clean: the clean maps.
        broken: which images have reached the goal.
    """

    def __init__(
        self, x: Images, clean: Maps, *, k: int, wanted: Wanted | None = None, goal: tuple[str, float] | None = None
    ) -> None:
        self.clean, self._reference, self._goal = clean, Clean(clean, k=k, wanted=wanted), goal
        self._names = [name for name in MEASURES if name != "match" or wanted is not None]
        self._nothing = torch.full((len(self._names), len(x)), -torch.inf, dtype=clean.dtype, device=clean.device)
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
        """Judge iterates.

        Args:
            parts: open parts that they come from.
            at: iterates.
            rows: which image each belongs to.
            maps: their maps on the judged network.
            kept: whether it still predicts the clean class.
            of: which of the parts each comes from.
        """
        kept = kept & torch.isfinite(maps).flatten(1).all(1)
        found = self._reference.measure(maps.detach().nan_to_num(), rows)
        scores = torch.stack([MEASURES[name] * found[name] for name in self._names])
        scores = torch.where(kept & ~scores.isnan(), scores, -torch.inf)
        for index, part in enumerate(parts):
            own = of == index
            self._parts[part]["counted"][rows[own & kept]] = True
            _raise(self._parts[part]["best"], rows[own], scores[:, own])
        _raise(self._best, rows, scores)
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
            columns |= {flag: found[flag] for flag in flags} | {"zero": self._reference.zero}
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


def _raise(best: Float[Tensor, "measures n"], rows: Rows, scores: Float[Tensor, "measures iterates"]) -> None:
    """Put the largest score of each image, in place."""
    best.scatter_reduce_(1, rows.expand(len(best), -1), scores, "amax")
