"""Was the attack strong enough? Too weak an attack looks like robustness."""

from collections.abc import Sequence

import pandas as pd

from attrobust.claims.rule import OPPOSITE, SUPPORTED

#: Mean similarity that a far stronger attack may take off beyond the default one; fixed before the runs.
STRENGTH_MARGIN = 0.02


def strong_enough(
    efforts: pd.DataFrame, *, claim: str, by: Sequence[str], metrics: Sequence[str], default: int
) -> pd.DataFrame:
    """One arm per attacked map and metric: what the default attack leaves on the table.

    Args:
        efforts: mean similarities, a row per attacked map and effort, with the columns `by`, `metrics` and `steps`.
        claim: name of the claim.
        by: columns that tell the attacked maps apart.
        metrics: columns of similarities.
        default: `steps` of the default attack; the other rows are the stronger one's.

    Returns:
        One row per arm: `change` (default minus stronger) and `verdict`, supported up to `STRENGTH_MARGIN`. Maps that
        could not be attacked (NaN: no image has a gradient) are left out.

    Raises:
        ValueError: if a map lacks one of two efforts.

    Example:
        >>> rows = pd.DataFrame({"map": ["a", "a"], "steps": [20, 200], "spearman": [0.5, 0.4]})
        >>> strong_enough(rows, claim="strong", by=["map"], metrics=["spearman"], default=20).verdict.item()
        'opposite'
    """
    if efforts.empty:
        return pd.DataFrame(columns=["claim", "arm", *by, "metric", "change", "verdict"])
    usual = efforts["steps"] == default
    first, second = (efforts[part].set_index([*by])[[*metrics]] for part in (usual, ~usual))
    if not first.index.is_unique or set(first.index) != set(second.index) or len(first) != len(second):
        raise ValueError(f"efforts must hold every {', '.join(by)} once with steps {default} and once with other steps")
    gaps = (first - second).rename_axis(columns="metric").stack().rename("change").dropna().reset_index()
    arms = gaps[[*by, "metric"]].astype(str).agg(" | ".join, axis=1)
    judged = gaps["change"].le(STRENGTH_MARGIN).map({True: SUPPORTED, False: OPPOSITE})
    return gaps.assign(claim=claim, arm=arms, verdict=judged)[["claim", "arm", *by, "metric", "change", "verdict"]]
