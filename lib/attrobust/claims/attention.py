"""One word for an attention map from those of several cells: is it reached by a gain (C6), restored by a kernel (C7)?

Each word rests on the words of three cells; `page` and `record` tell these too.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from attrobust.claims.by_seed import Ends
from attrobust.claims.cells import (
    COUNTED,
    MARGIN,
    NO_CHANGE,
    NO_PAIR,
    NO_ROOM,
    ROOM,
    TOO_FEW,
    UNCLEAR,
    cells,
    contrast,
    holm,
)

#: Columns that name an arm of the notebook, beside map, readout and radius; words of C6.
SETTING = ("dataset", "initial", "arm")
NOT_REACHED, REACHED, NO_GAIN = "not reached", "reached", "no gain"

#: Words of a map under another attention kernel.
RESTORED, LEANS_RESTORED, NOT_RESTORED = "restored", "leans restored", "not restored"


def reach(effects: pd.DataFrame, contrasts: pd.DataFrame, *, radii: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Does the gain of saliency reach an attention map (C6)? One word for each contrast, from three.

    Args:
        effects: table of `claims.cells`, one row per map, readout and radius.
        contrasts: tables of `claims.contrast`, saliency minus map, of the same arms.
        radii: data set -> map -> the radius at which the map itself is judged.

    The words, of which the first that fits is said: `no pair` or `too few seeds` (in one of the three), `no gain`
    (saliency is down, leans down or does not change), `reached` or `leans reached` (saliency and the map gain; the map
    is up, or leans up), `no room` (in one of the three), `not reached` (saliency and saliency minus map gain, the map
    does not, and its images counted; `leans not reached` unless both are up), else `unclear`.

    Example:
        >>> arm = {"dataset": "digits", "initial": "wide", "arm": "plain", "radius": "8", "by": "step_size"}
        >>> arm |= {"start": 0.1, "end": 0.2}
        >>> one = arm | {"map": "saliency", "readout": "logit", "word": "up"}
        >>> effects = pd.DataFrame([one, arm | {"map": "raw", "readout": "none", "word": "no change"}])
        >>> contrasts = pd.DataFrame([one | {"map": "saliency - raw"}])
        >>> reach(effects, contrasts, radii={"digits": {"saliency": "8", "raw": "8"}})["word"].tolist()
        ['not reached']
    """
    names = [*SETTING, "map", "readout", "radius"]
    told = effects.set_index(names)["word"].to_dict()
    records = []
    for row in contrasts.to_dict("records"):
        (gaining, other), readout = row["map"].split(" - "), row["readout"].split(" - ")[0]
        setting, own = [row[name] for name in SETTING], radii[row["dataset"]]
        three = {
            "saliency": told.get((*setting, gaining, readout, own[gaining]), NO_PAIR),
            "difference": row["word"],
            "attention": told.get((*setting, other, "none", own[other]), NO_PAIR),
        }
        record = dict(zip(SETTING, setting, strict=True)) | {"map": other, "readout": readout, "radius": row["radius"]}
        record |= {"by": row["by"], "start": row["start"], "end": row["end"]}
        records.append(record | three | {"word": _reached(**three)})
    return pd.DataFrame(records, columns=[*names, "by", "start", "end", "saliency", "difference", "attention", "word"])


def _reached(saliency: str, difference: str, attention: str) -> str:
    """One word for the three of `reach`."""
    words, gains = (saliency, difference, attention), ("up", "leans up")
    for word in (NO_PAIR, TOO_FEW):
        if word in words:
            return word
    if saliency in ("down", "leans down", NO_CHANGE):
        return NO_GAIN
    if attention in gains and saliency in gains:
        return attention.replace("up", REACHED)
    if NO_ROOM in words:
        return NO_ROOM
    if saliency in gains and difference in gains and attention != COUNTED:
        return NOT_REACHED if saliency == difference == "up" else f"leans {NOT_REACHED}"
    return UNCLEAR


def restoration(
    rows: pd.DataFrame, *, by: str, arm: Sequence[str], twins: Mapping[str, str], maps: Sequence[str],
    reference: str = "softmax", kernel: str = "attention", ends: Ends | None = None, margin: float = MARGIN,
    room: tuple[float, float] | None = ROOM,
) -> pd.DataFrame:  # fmt: skip
    """Does an attention map gain under another kernel, where it does not under the reference (C7)?

    Args:
        rows, by, arm, ends, margin, room: as in `cells`; `arm` has `kernel` and "map", and rows have `between`.
        twins: kernel without division by the row -> the same kernel with it.
        maps: the deciding ones; Holm goes over them, within each of the three tests. Other maps say at most `leans`.
        reference: the kernel that is to be outdone.
        kernel: column that names the kernel.

    Returns the columns of `cells` and `says`: "gains", "gains more than" the reference, and than the twin, a row each;
    and `restored`, the same for the three: `no room` (in one), `restored` (all up), `leans restored` (all up or leaning
    up), `not restored` (one is down or does not change), else `unclear`.

    Raises:
        ValueError: rows without the control `between`, an arm without the kernel or "map", or a kernel or map that the
            rows lack.

    Example:
        >>> grid = [(s, h, k) for s in range(10) for h in (0.1, 0.2) for k in ("softmax", "bell", "divided")]
        >>> rows = pd.DataFrame(grid, columns=["seed", "step_size", "attention"]).assign(comparable=True, map="raw")
        >>> rows["value"] = 0.3 + rows["step_size"] * (rows["attention"] == "bell")
        >>> how = {"by": "step_size", "arm": ["attention", "map"], "twins": {"bell": "divided"}, "maps": ["raw"]}
        >>> restoration(rows.assign(between=0.1), **how)[["says", "restored"]].to_numpy().tolist()[2]
        ['gains more than divided', 'restored']
    """
    if "between" not in rows or kernel not in arm or "map" not in arm:
        raise ValueError(f"rows need the control 'between', and arm {kernel!r} and 'map'; arm is {[*arm]}")
    if absent := sorted({reference, *twins, *twins.values()} - {*rows[kernel]}):
        raise ValueError(f"rows have no {kernel} {', '.join(absent)}; they have {', '.join(rows[kernel].unique())}")
    how = {"by": by, "arm": arm, "family": [], "ends": ends, "margin": margin, "room": room}
    tables = []
    for name, twin in twins.items():
        tests = {"gains": cells(rows[rows[kernel] == name], **how)}
        for other in dict.fromkeys((reference, twin)):
            pair = rows[rows[kernel].isin([name, other])]
            tests[f"gains more than {other}"] = contrast(pair, of={kernel: name}, minus={kernel: other}, **how)
        for says, table in tests.items():
            table = table.assign(**{kernel: name})
            for _, part in table.groupby([c for c in arm if c != "map"], sort=False):
                family = [tuple(part.iloc[0][c] if c != "map" else m for c in arm) for m in maps]
                tables.append(holm(part, arm=arm, family=family).assign(says=says))
    if not tables:
        return pd.DataFrame(columns=[*arm, "says", "restored"])
    table = pd.DataFrame([record for part in tables for record in part.to_dict("records")])
    words = table.groupby(list(arm), sort=False)["word"].transform(lambda three: _restored({*three}))
    return table[[*arm, "says", *table.columns[len(arm) : -1]]].assign(restored=words)


def _restored(words: set[str]) -> str:
    """One word for the three tests of a map."""
    if NO_ROOM in words:
        return NO_ROOM
    if words <= {"up", "leans up"}:
        return RESTORED if words == {"up"} else LEANS_RESTORED
    return NOT_RESTORED if words & {"down", NO_CHANGE} else UNCLEAR
