"""Judge every iterate under every measure, on the real network; nothing that an attack found is thrown away.

Attacks climb smooth objectives; what is reported are similarities and distances of maps. So the iterate that counts
is chosen for each measure by that measure itself, among those that keep the prediction.
"""

from collections.abc import Callable, Iterator

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attrobust.attacks.objectives import Objective, Wanted, match_map, shift_topk
from attrobust.attributions import distances, similarities, zero_maps

Images = Float[Tensor, "batch channels height width"]
Labels = Int[Tensor, " batch"]
Rows = Int[Tensor, " rows"]

#: Measures of every table with the direction that is worse: similarities fall, distances rise.
MEASURES = {
    "top_k": -1, "top_k_share": -1, "spearman": -1, "cosine": -1, "pearson": -1,
    "displacement": 1, "relative_displacement": 1, "center_shift": 1, "match": 1,
}  # fmt: skip

#: An image gives way to one that is worse by more than this many units in the last place: between ties, which the
#: maps of a piecewise linear network are full of, the first one stays, however a batch is rounded.
ROUNDING = 64

#: What a table says of a part and an image: it was tried, an iterate kept the prediction, no gradient was ever seen.
FLAGS = ("tried", "counted", "blind")


def on_maps(build: Callable[..., Objective], clean: Images, **options: object) -> Objective:
    """An objective as a function of the map in place of the image: built by `build` from clean maps.

    Example:
        >>> from attrobust.attacks import lower_cosine
        >>> maps = torch.rand(2, 1, 3, 3)
        >>> bool((on_maps(lower_cosine, maps)(-maps) > 1.99).all())
        True
    """
    labels = torch.zeros(len(clean), dtype=torch.long, device=clean.device)
    return build(lambda _, maps, __: maps, nn.Identity(), clean, labels, **options)


def measure(
    clean: Images, there: Images, *, k: int, wanted: Wanted | None = None
) -> dict[str, Float[Tensor, " batch"]]:
    """Every similarity and distance of two batches of maps.

    Two zero maps are alike (similarity 1, distance 0); a zero map and another are not (similarity 0).

    Args:
        clean: maps of the clean images.
        there: maps of the attacked images.
        k: leading pixels.
        wanted: maps that an attack aims at; adds `match`, the share of the squared way to them (see `match_map`).

    Returns:
        By name, in the order of `MEASURES`; `top_k_share` is the share of importance that the clean leaders hold,
        over the share they held.
    """
    share, zero = on_maps(shift_topk, clean, k=k), (zero_maps(clean), zero_maps(there))
    held, alike = -share(clean), similarities(clean, there, k=k)
    held_there = -share(there) / torch.where(held > 0, held, torch.ones_like(held))
    alike = {"top_k": alike.pop("top_k"), "top_k_share": held_there, **alike}
    found = {
        name: torch.where(zero[0] & zero[1], 1.0, torch.where(zero[0] ^ zero[1], 0.0, value))
        for name, value in alike.items()
    }
    found |= distances(clean, there)
    return found | ({} if wanted is None else {"match": on_maps(match_map, clean, wanted=wanted)(there)})


class Referee:
    """Keeps, for each image and measure, the worst that each part and all parts together have found.

    Args:
        x: clean images.
        clean: their maps.
        k: leading pixels.
        wanted: maps to be matched, if any.
        goal: measure and value; an image that reaches it is broken.

    Attributes:
        broken: which images have reached the goal.
    """

    def __init__(
        self,
        x: Images,
        clean: Images,
        *,
        k: int,
        wanted: Wanted | None = None,
        goal: tuple[str, float] | None = None,
    ) -> None:
        self._clean = clean
        self._k, self._wanted, self._goal = k, wanted, goal
        self._start, self._parts = self._score(clean, torch.arange(len(x), device=x.device)), {}
        self._names = list(MEASURES)[: len(self._start)]
        self._best, self._held = self._start.clone(), self._start.clone()  # of all iterates; of the image kept
        self._at, self._winner = x.repeat(len(self._names), 1, 1, 1, 1), torch.full_like(self._start, -1).long()
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    @property
    def x(self) -> dict[str, Images]:
        """By measure, the worst image found; the clean image where none counted."""
        return dict(zip(self._names, self._at, strict=True))

    def open(self, part: str) -> None:
        """Begin a part: at the clean image, with nothing counted."""
        none = torch.zeros_like(self.broken)
        self._parts[part] = {"best": self._start.clone(), "tried": ~self.broken, "counted": none, "blind": none.clone()}

    def blind(self, part: str, blind: Bool[Tensor, " batch"]) -> None:
        """Note for which images a part never saw a gradient."""
        self._parts[part]["blind"] = blind & self._parts[part]["tried"]

    def see(self, part: str, at: Images, rows: Rows, maps: Images, kept: Bool[Tensor, " rows"]) -> None:
        """Judge iterates of a part.

        Args:
            part: an open part.
            at: iterates.
            rows: which image each belongs to; ascending, and again from the first for every restart.
            maps: their maps on the judged network.
            kept: whether it still predicts the clean class.
        """
        kept = kept & torch.isfinite(maps).flatten(1).all(1)
        scores = self._score(maps.nan_to_num(), rows)
        scores = torch.where(kept & ~scores.isnan(), scores, -torch.inf)
        mine, index = self._parts[part], list(self._parts).index(part)
        for turn in _once_each(rows):
            images, found = rows[turn], scores[:, turn]
            mine["counted"][images] |= kept[turn]
            mine["best"][:, images] = torch.maximum(mine["best"][:, images], found)
            self._best[:, images] = torch.maximum(self._best[:, images], found)
            held = self._held[:, images]
            measures, columns = (found > held + ROUNDING * torch.finfo(held.dtype).eps * held.abs()).nonzero(
                as_tuple=True
            )
            where = measures, images[columns]
            self._held[where], self._winner[where] = found[measures, columns], index
            self._at[where] = at.detach()[turn][columns]
        if self._goal is not None:
            name, value = self._goal
            self.broken = self._best[self._names.index(name)] >= MEASURES[name] * value

    @property
    def counted(self) -> Bool[Tensor, " batch"]:
        """Of which images some iterate of some part kept the prediction."""
        return torch.stack([part["counted"] for part in self._parts.values()]).any(0)

    def table(self) -> pd.DataFrame:
        """One row per image and part, and "worst": every measure at its own worst counted iterate."""
        every = {flag: torch.stack([part[flag] for part in self._parts.values()]) for flag in FLAGS}
        worst = {"best": self._best, **{flag: every[flag].any(0) for flag in FLAGS}}
        tables = []
        for part, found in {**self._parts, "worst": worst}.items():
            flags = {flag: found[flag] for flag in FLAGS} | {"zero": zero_maps(self._clean)}
            values = dict(zip(self._names, found["best"], strict=True))
            columns = {name: MEASURES[name] * value for name, value in values.items()} | flags
            numbers = {name: value.double().cpu().numpy() for name, value in columns.items()}
            tables.append(pd.DataFrame({"image": range(len(self._clean)), "part": part, **numbers}))
        return pd.concat(tables, ignore_index=True)

    def winners(self) -> pd.DataFrame:
        """Name of the part that found the worst, one row per image, one column per measure; "" where none did."""
        parts = ["", *self._parts]
        by_measure = zip(self._names, self._winner.tolist(), strict=True)
        columns = {name: [parts[i + 1] for i in row] for name, row in by_measure}
        return pd.DataFrame({"image": range(len(self._clean)), **columns})

    def _score(self, maps: Images, rows: Rows) -> Float[Tensor, "measures rows"]:
        wanted = None if self._wanted is None else self._wanted[rows]
        found = measure(self._clean[rows], maps.detach(), k=self._k, wanted=wanted)
        return torch.stack([MEASURES[name] * value for name, value in found.items()])


def _once_each(rows: Rows) -> Iterator[Tensor]:
    """Positions in turns, so that no turn holds an image twice."""
    ends = (rows.diff() <= 0).nonzero().flatten() + 1
    yield from torch.arange(len(rows), device=rows.device).tensor_split(ends.cpu())
