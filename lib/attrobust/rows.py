"""Rows of a grid: what belongs to a network (wide), and how similar its maps stay under attack (long).

    runs      key, the experiment's columns, what was measured on the network itself      one line a network
    attacked  key, readout, map, attack, metric, radius, value, n, images                 one line a number

``value`` is the mean of a metric over ``n`` images, under an attack of a radius (in 1/255 of the pixel range) on a map
that explains a readout ("none" for attention alone). Attack "clean", of radius 0, tells what the map itself is like.
``images`` holds the deciding metric image by image, as text ("nan" where an image was not attacked), and is blank
elsewhere. Never imports torch: rows can be joined wherever there is pandas.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

#: Columns that name one number of `Rows.attacked` within its network, and all of its columns.
IDENTITY = ("readout", "map", "attack", "metric", "radius")
ATTACKED = ("key", *IDENTITY, "value", "n", "images")
#: The line of which `images` are kept.
DECIDING = {"attack": "worst", "metric": "spearman"}


@dataclass(frozen=True)
class Rows:
    """Rows of a grid; in `joined` and `wide`, `where` gives columns of `attacked` and the value that is kept.

    Example:
        >>> runs = pd.DataFrame({"key": ["a", "b"], "step_size": [0.1, 0.2]})
        >>> line = {"key": "a", "readout": "logit", "map": "saliency", "attack": "worst", "radius": 8, "n": 4}
        >>> attacked = pd.DataFrame([line | {"metric": "top_k", "value": 0.5}, line | {"metric": "cosine", "value": 1}])
        >>> Rows(runs, attacked).wide(map="saliency", attack="worst", radius=8)
          key  step_size  top_k  cosine
        0   a        0.1    0.5     1.0
        1   b        0.2    NaN     NaN
    """

    runs: pd.DataFrame
    attacked: pd.DataFrame

    def joined(self, **where: object) -> pd.DataFrame:
        """Attacked similarities beside the columns of their network; one not attacked has lines without a value."""
        kept = self._kept(where)
        absent = self.runs.loc[~self.runs["key"].isin(self.attacked["key"]), ["key"]]
        every = absent.merge(kept[[*IDENTITY]].drop_duplicates(), how="cross")
        return self.runs.merge(pd.concat([kept, every]) if len(every) else kept, on="key")

    def judged(self) -> pd.DataFrame:
        """One row per network, map, readout and radius: the deciding metric with its images, and its controls.

        `value` under attack, `noise` under noise of the same size, and what the clean map is like (`between`, ..., its
        entropy as `map_entropy`, for a transformer's row has a column of that name).
        """
        names, lines = ["key", "readout", "map"], self.attacked
        like = lines[lines["attack"] == "clean"].pivot(index=names, columns="metric", values="value").reset_index()
        like = like.rename(columns={"entropy": "map_entropy"})
        quiet = lines[(lines["attack"] == "noise") & (lines["metric"] == DECIDING["metric"])]
        quiet = quiet[[*names, "radius", "value"]].rename(columns={"value": "noise"})
        worst = self.joined(**DECIDING).merge(quiet, on=[*names, "radius"], how="left")
        return worst.merge(like, on=names, how="left")

    def wide(self, **where: object) -> pd.DataFrame:
        """One row per network with a column for each metric of one map, attack and radius."""
        kept = self._kept(where)
        for name in IDENTITY:
            if name != "metric" and kept[name].nunique() > 1:
                found = ", ".join(map(str, kept[name].unique()))
                raise ValueError(f"rows of several values of {name} are left ({found}); choose one by {name}=...")
        columns = kept.pivot(index="key", columns="metric", values="value")
        columns = columns[list(dict.fromkeys(kept["metric"]))].reset_index()
        return self.runs.merge(columns, on="key", how="left")

    def sorted(self, column: str, order: Sequence[object]) -> "Rows":
        """The same rows with networks in the order that their values have in a list; others stay as they stand."""
        runs = self.runs.sort_values(column, key=lambda v: v.map(list(order).index), kind="stable", ignore_index=True)
        place = {key: i for i, key in enumerate(runs["key"])}
        by_run = {"key": lambda keys: keys.map(place), "kind": "stable", "ignore_index": True}
        return Rows(runs, self.attacked.sort_values("key", **by_run))

    def _kept(self, where: dict[str, object]) -> pd.DataFrame:
        kept = self.attacked
        for name, value in where.items():
            if name not in ATTACKED:
                raise ValueError(f"column is {name!r}; it must be one of {', '.join(ATTACKED)}")
            left = kept[kept[name] == value]
            if len(kept) and not len(left):
                raise ValueError(f"{name} is {value!r}; rows hold {', '.join(map(str, kept[name].unique()))}")
            kept = left
        return kept


def join(parts: Sequence[Rows]) -> Rows:
    """Rows of several grids as those of one; parts attacked at different radii are better judged one by one.

    A run that was not attacked takes part in every line that its grid has, and does not know which grid it came from.

    Example:
        >>> part = Rows(pd.DataFrame({"key": ["a"]}), pd.DataFrame({"key": ["a"], "value": [0.5]}))
        >>> len(join([part, part]).runs)
        2
    """
    return Rows(*(pd.concat([getattr(p, n) for p in parts], ignore_index=True) for n in ("runs", "attacked")))
