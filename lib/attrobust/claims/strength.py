"""Was an attack strong enough? The judge is an attack of another kind, on the same images of the same networks."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from attrobust.claims.by_seed import by_image, named_cells, need
from attrobust.claims.cells import UNCLEAR
from attrobust.claims.rule import estimate

#: How far the judge may get below, in the deciding metric.
LIMIT = 0.02
STRONG, BOUND = "strong enough", "upper bound"


def strength(usual: pd.DataFrame, heavy: pd.DataFrame, *, arm: Sequence[str], limit: float = LIMIT) -> pd.DataFrame:
    """One row per arm: the deciding metric under both attacks, and how much lower the heavy one gets, over images.

    Args:
        usual, heavy: rows as `Rows.judged` gives them, one per network and map; networks that only one side has, and
            images that only one attack could judge, do not count.
        arm: columns that name what is judged, such as map, radius and step size.
        limit: how much lower the heavy attack may get.

    `effect` is heavy minus usual with its 95 % interval over the images of all networks, `worst` the lowest mean of a
    network. Words: `upper bound` (of the robustness that is told) if the effect lies below -limit, `strong enough` if
    its interval lies within the limit, else `unclear`.

    Raises:
        ValueError: a seed of which the attacks did not see the same images.

    Example:
        >>> usual = pd.DataFrame({"map": ["raw"], "seed": [0], "images": ["0.50 0.60 0.70"]})
        >>> strength(usual, usual.assign(images="0.49 0.60 0.70"), arm=["map"])[["effect", "word"]].round(4).to_numpy()
        array([[-0.0033, 'strong enough']], dtype=object)
    """
    arm = list(arm)
    for rows in (usual, heavy):
        need(rows, [*arm, "seed", "images"])
    sides = [rows.assign(**named_cells(rows[arm]))[[*arm, "seed", "images"]] for rows in (usual, heavy)]
    both = sides[0].merge(sides[1], on=[*arm, "seed"], suffixes=("_usual", "_heavy"), validate="one_to_one")
    records = []
    for names, part in both.groupby(arm, sort=False):
        pairs = []
        for run in part.to_dict("records"):
            one, other = (by_image(run[f"images_{side}"]) for side in ("usual", "heavy"))
            if len(one) != len(other):
                raise ValueError(f"seed {run['seed']}: {len(one)} images under one attack, {len(other)} under another")
            judged = np.isfinite(one) & np.isfinite(other)
            pairs.append((one[judged], other[judged]))
        first, last = map(np.concatenate, zip(*pairs, strict=True))
        found = estimate(last - first, "effect", "images")
        ends = {"first": np.mean(first), "last": np.mean(last)} if found["images"] else {}
        record = dict(zip(arm, names, strict=True)) | {"by": "attack", "start": "usual", "end": "heavy"} | ends | found
        record |= {"half": (found["high"] - found["low"]) / 2, "seeds": len(part)}
        means = [(there - here).mean() for here, there in pairs if len(here)]
        records.append(record | {"worst": min(means, default=np.nan), "word": _word(found, limit)})
    told = ["start", "end", "seeds", "images", "first", "last", "effect", "low", "high", "half", "worst", "word"]
    return pd.DataFrame(records, columns=[*arm, "by", *told])


def _word(found: dict[str, float], limit: float) -> str:
    if found["effect"] < -limit:
        return BOUND
    return STRONG if -limit <= found["low"] and found["high"] <= limit else UNCLEAR
