"""What is said of tables of cells: as a page, and against those of another processor."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from attrobust.claims.by_seed import named_cells
from attrobust.claims.cells import ALPHA, COUNTED, FEWEST_SEEDS, NO_PAIR, NO_ROOM, TOO_FEW, UNCLEAR
from attrobust.claims.record import NAMES, place
from attrobust.claims.rule import signed


def page(table: pd.DataFrame) -> str:
    """The table of `cells`, `contrast` or `restoration` as text, a line per cell; beneath it the leans due to chance.

    Chance: 5 % of the cells that could lean (five seeds or more, room, images counted), as if none had an effect.

    Example:
        >>> from attrobust.claims.cells import cells
        >>> rows = pd.DataFrame([(s, h, 0.4 + h + s * h / 10) for s in range(10) for h in (0.1, 0.2)])
        >>> rows = rows.set_axis(["seed", "step_size", "value"], axis=1).assign(comparable=True, map="saliency")
        >>> print(page(cells(rows, by="step_size", arm=["map"], family=["saliency"])).splitlines()[1])
        saliency step_size 0.1 -> 0.2  0.545 -> 0.690  +0.145 [+0.123, +0.167]  p .002, Holm .002  n = 10  up
    """
    names = [*table.columns[: [*table.columns].index("start")]]
    lines, unjudged = ["first -> last  change [95 % interval]  p and p after Holm  seeds  word"], []
    cells_named = named_cells(table[names]).astype(str).to_numpy()
    for named, row in zip(cells_named, table.to_dict("records"), strict=True):
        name = " ".join(part for part in named if part)
        if row["word"] in (NO_PAIR, TOO_FEW):
            unjudged.append(f"no verdict: {name}: {row['word']}, n = {row['seeds']:.0f}{_left(row)}")
            continue
        both = row["p"], row.get("p_holm", np.nan)  # of stored lines all of which lie outside a family it is no column
        p, after = ("<.001" if odds < 0.0005 else f"{odds:.3f}".removeprefix("0") for odds in both)
        odds = f"p {p}, Holm {after}" if np.isfinite(both[1]) else f"p {p}"
        seen = f" (sees {row['half']:.3f})" if row["word"].startswith(UNCLEAR) else ""
        back = f" | {row['restored']}" if "restored" in row else ""
        lines.append(
            f"{name} {row['start']} -> {row['end']}  {row['first']:.3f} -> {row['last']:.3f}  {signed(row['effect'])} "
            f"[{signed(row['low'])}, {signed(row['high'])}]  {odds}  n = {row['seeds']:.0f}  {row['word']}{seen}"
            f"{' (censored)' if row['censored'] else ''}{back}{_left(row)}"
        )
    able = int((~table["word"].isin([NO_PAIR, TOO_FEW, NO_ROOM, COUNTED])).sum())
    leaning = int(table["word"].str.startswith("leans").sum())
    chance = f"{leaning} of {len(table)} cells lean; {ALPHA * able:.1f} would by chance (5 % of the {able} that could"
    return "\n".join([*lines, *unjudged, f"{chance}: {FEWEST_SEEDS} seeds or more, room, images counted)"])


def _left(row: Mapping[str, object]) -> str:
    """What did not enter, and what it would have done."""
    lacking, gone = (int(row[name]) if row[name] == row[name] else 0 for name in ("without_pair", "left_out"))
    without = f"; {lacking} seeds without a pair of ends" if lacking else ""
    if not gone:
        return without
    low, high = signed(row["low_all"]), signed(row["high_all"])
    return f"{without}; {gone} runs left out, with them {signed(row['effect_all'])} [{low}, {high}]"


def agrees(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Do two computations of the same cells agree? Training is chaotic in the last bit: another processor draws anew.

    Args:
        one: table of `cells`, the committed one: it says how far a new draw may lie.
        other: the same cells from another processor; one that only one table has is `no pair`.

    Returns one row per cell: both effects and words, `gap`, `allowed` = sqrt(2) t SE (sqrt(2) times the half-width of
    `one`), and in `judged`: `agrees`, `differs` (gap above allowed, or one effect lacks) or `no pair` (no interval).

    Example:
        >>> from attrobust.claims.cells import cells
        >>> rows = pd.DataFrame([(s, h, 0.4 + 2 * h + s * h) for s in range(5) for h in (0.1, 0.2)])
        >>> rows = rows.set_axis(["seed", "step_size", "value"], axis=1).assign(comparable=True, map="saliency")
        >>> table = cells(rows, by="step_size", arm=["map"], family=[])
        >>> agrees(table, table.assign(effect=table["effect"] + 0.2))["judged"].tolist()
        ['agrees']
    """
    names = [*one.columns[: [*one.columns].index("start")]]
    sides = [t[["start", "end", "effect", "half", "word"]].join(named_cells(t[names])) for t in (one, other)]
    both = sides[0].merge(sides[1], on=names, how="outer", suffixes=("", "_other"))
    both["gap"] = (both["effect_other"] - both["effect"]).abs()
    both["allowed"] = np.sqrt(2) * both["half"].where(np.isfinite(both["half"].astype(float)))
    near = both["gap"] <= both["allowed"] + 1e-5 * both["effect"].abs()  # tables hold six digits
    same = np.all([both[e].map(place) == both[f"{e}_other"].map(place) for e in ("start", "end")], axis=0)
    judged = np.where(near & same, "agrees", "differs")
    lone = both["word"].isna() | both["word_other"].isna() | (both["effect"].isna() & both["effect_other"].isna())
    both["judged"] = np.where(lone | (both["effect"].notna() & both["allowed"].isna()), NO_PAIR, judged)
    return both[[*names, "start", "end", "effect", "effect_other", "gap", "allowed", "word", "word_other", "judged"]]


def elsewhere(own: pd.DataFrame, other: pd.DataFrame) -> str:
    """The cells of the families, beside a second computation of them on other processor instructions, as text.

    Both are tables as `record` makes them. A cell agrees as `agrees` says.

    Example:
        >>> from attrobust.claims.cells import cells
        >>> from attrobust.claims.record import record
        >>> rows = pd.DataFrame([(s, h, 0.4 + 2 * h + s * h) for s in range(5) for h in (0.1, 0.2)])
        >>> rows = rows.set_axis(["seed", "step_size", "value"], axis=1).assign(comparable=True, map="raw")
        >>> one = record({"C6": cells(rows, by="step_size", arm=["map"], family=["raw"])})
        >>> print(elsewhere(one, one.assign(effect=one["effect"] + 0.01)))
        C6 raw step_size: +0.400 and +0.410, apart 0.010, allowed 0.278: agrees
        1 of 1 cells of the families agree; the largest gap is 0.04 of what two draws may differ by
    """
    mine = own[own["p_holm"].notna()] if "p_holm" in own else own[:0]
    names = [*NAMES]
    shared = other.merge(mine[names], on=names) if len(other) else other
    if not len(shared):
        return "no second computation is stored"
    both = agrees(mine.merge(shared[names], on=names), shared)
    lines = [
        f"{row.claim} {row.arm} {row.by}: {signed(row.effect)} and {signed(row.effect_other)}, apart {row.gap:.3f},"
        f" allowed {row.allowed:.3f}: {row.judged}"
        + ("" if row.word == row.word_other else f" ({row.word}, {row.word_other})")
        for row in both.itertuples()
    ]
    agreed, most = int((both["judged"] == "agrees").sum()), (both["gap"] / both["allowed"]).max()
    last = f"the largest gap is {most:.2f} of what two draws may differ by"
    return "\n".join([*lines, f"{agreed} of {len(both)} cells of the families agree; {last}"])
