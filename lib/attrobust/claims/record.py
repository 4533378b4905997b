"""Cells of a notebook's claims as one table: claims.csv, whatever the arms of a claim are called."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from attrobust.claims.by_seed import named_cells
from attrobust.claims.cells import RATIO_MARGIN, TOLD, UNCLEAR
from attrobust.claims.rule import signed

#: Columns that name a line.
NAMES = ("claim", "arm", "by")
#: Columns that every such table has, one without a line too.
COLUMNS = (*NAMES, "start", "end", *TOLD)


def record(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of `cells`, `contrast` or `restoration` by claim, as one: the columns that name a cell become `arm`.

    Raises:
        ValueError: two cells of one name.

    Example:
        >>> from attrobust.claims.cells import cells
        >>> rows = pd.DataFrame([(s, h, 0.4 + 2 * h) for s in range(5) for h in (0.1, 0.2)])
        >>> rows = rows.set_axis(["seed", "step_size", "value"], axis=1).assign(comparable=True, map="raw", kernel="l2")
        >>> found = record({"C6": cells(rows, by="step_size", arm=["map", "kernel"], family=[])})
        >>> found[["claim", "arm", "by", "word"]].to_numpy().tolist()
        [['C6', 'raw, l2', 'step_size', 'leans up']]
    """
    parts = []
    for claim, table in tables.items():
        names = [name for name in table.columns[: [*table.columns].index("start")] if name != "by"]
        arms = [", ".join(filter(None, cell)) for cell in named_cells(table[names]).astype(str).to_numpy()]
        parts.append(table.drop(columns=names).assign(claim=claim, arm=arms))
    whole = pd.concat(parts, ignore_index=True)
    if (twice := whole[whole.duplicated([*NAMES])]).size:
        raise ValueError(f"two cells have one name: {', '.join(map(str, twice.iloc[0][[*NAMES]]))}")
    return whole[[*NAMES, *(name for name in whole if name not in NAMES)]]


def read_claims(path: Path, columns: Sequence[str] = (*NAMES, "word")) -> pd.DataFrame:
    r"""Lines of a claims file that has these columns at least; a ValueError if it is damaged, or another table.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "claims.csv").write_text("claim,arm,by,word\nC2,digits,step_size,up\n")
        ...     read_claims(Path(folder, "claims.csv"))["word"].tolist()
        ['up']
    """
    try:
        return pd.read_csv(path).dropna(subset=[*columns], how="all")
    except (ValueError, KeyError) as error:  # of pandas: what is no table, a column that lacks
        raise ValueError(f"{path} is damaged or no claims file ({str(error).strip()}); make it anew") from error


def lines_of(table: pd.DataFrame, claim: str, names: Sequence[str]) -> pd.DataFrame:
    """Lines of one claim of such a table, with the parts of `arm` in columns of these names again.

    Raises:
        ValueError: an arm that has not one part for each of `names`.

    Example:
        >>> table = pd.DataFrame({"claim": ["C6"], "arm": ["raw, l2"], "by": ["step_size"], "effect": [0.1]})
        >>> lines_of(table, "C6", ["map", "kernel"])[["map", "kernel", "effect"]].to_numpy().tolist()
        [['raw', 'l2', 0.1]]
    """
    found = table[table["claim"] == claim].reset_index(drop=True) if len(table) else pd.DataFrame(columns=table.columns)
    parts = found["arm"].str.split(", ").tolist() if len(found) else []
    for arm in parts:
        if len(arm) != len(names):
            raise ValueError(f"arm is {', '.join(arm)!r}; it must have a part for each of {', '.join(names)}")
    return found.join(pd.DataFrame(parts, columns=[*names], index=found.index, dtype=object))


def beyond(stored: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """Lines of one such table that another does not have, or has from fewer seeds: of another profile's grid.

    Example:
        >>> stored = pd.DataFrame({"claim": "C1", "arm": ["a", "b"], "by": "step_size", "seeds": 10})
        >>> beyond(stored, stored[:1])["arm"].tolist()
        ['b']
    """
    if not len(stored):
        return own[:0]
    both = stored.reset_index(drop=True).merge(own.reindex(columns=[*NAMES, "seeds"]), on=[*NAMES], how="left",
                                               suffixes=("", "_own"), indicator=True)  # fmt: skip
    more = both["_merge"].eq("left_only") | (both.get("seeds", np.nan) > both.get("seeds_own", np.nan))
    found = both.loc[more, [*stored.columns]].reset_index(drop=True)
    return found[[name for name in found if name in NAMES or found[name].notna().any()]]


def family(table: pd.DataFrame) -> str:
    """The cells that a claim is judged by, those with a p after Holm, as a table in Markdown.

    Example:
        >>> from attrobust.claims.cells import cells
        >>> rows = pd.DataFrame([(s, h, 0.4 + 2 * h) for s in range(10) for h in (0.1, 0.2)])
        >>> rows = rows.set_axis(["seed", "step_size", "value"], axis=1).assign(comparable=True, map="raw")
        >>> print(family(record({"C6": cells(rows, by="step_size", arm=["map"], family=["raw"])})).splitlines()[-1])
        | raw | step size 0.1 → 0.2 | 0.600 → 0.800 | +0.200 [+0.200, +0.200] | up |
    """
    return markdown(table[table["p_holm"].notna()])


def markdown(table: pd.DataFrame) -> str:
    """Cells of such a table with their ends, changes and words, a line each, in Markdown."""
    lines = ["| cell | axis | ends | change [95 % interval] | word |", "|---|---|---|---|---|"]
    for row in table.to_dict("records"):
        ratio = bool(np.isclose(row["margin"], RATIO_MARGIN, rtol=1e-3))
        told = [f"{np.exp(row[n]):.2f}" if ratio else signed(row[n]) for n in ("effect", "low", "high")]
        half = f"× {np.exp(row['half']):.2f}" if ratio else f"{row['half']:.3f}"
        seen = f" (sees {half})" if str(row["word"]).startswith(UNCLEAR) else ""
        seen += " (censored)" if str(row["censored"]) == "True" else ""
        arm = str(row["arm"]).replace("_", " ")
        told_of = isinstance(row["by"], str) and row["start"] == row["start"]
        axis = f"{row['by'].replace('_', ' ')} {place(row['start'])} → {place(row['end'])}" if told_of else ""
        ends = f"{row['first']:.3f} → {row['last']:.3f}"
        change = f"{'× ' if ratio else ''}{told[0]} [{told[1]}, {told[2]}]"
        lines.append(f"| {arm} | {axis} | {ends} | {change} | {row['word']}{seen} |")
    return "\n".join(lines)


def place(value: object) -> str:
    """An end of an axis: 256.0 reads as 256, a word as it stands."""
    try:
        return f"{float(value):g}"
    except ValueError:
        return str(value)
