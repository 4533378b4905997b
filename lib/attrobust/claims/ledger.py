"""The ledger: every claim with its source and its home, and the lines of the claims files that it is judged by."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from attrobust.claims.record import NAMES, beyond, markdown, read_claims
from attrobust.claims.rule import interval

SEED = "Mehrpanah et al. 2026"


@dataclass(frozen=True)
class Claim:
    """A claim, where it comes from, where it is tried, and which lines of its notebook's claims judge it.

    `cells` is a pattern that the names of these lines match; without one they are the family that Holm's correction
    was made over. The words `for_` speak for the claim, those of `against` against it, all others do neither.
    """

    says: str
    source: str
    notebook: str
    part: str = ""  # of the claims file, where it is not the claim's own name
    cells: str = ""
    for_: tuple[str, ...] = ("up", "leans up")
    against: tuple[str, ...] = ("down", "leans down")


CLAIMS: dict[str, Claim] = {
    "C1": Claim("flat minima have small input gradients and curvature", SEED, "03_sgd_flattens",
                for_=("down", "leans down"), against=("up", "leans up")),
    "C2": Claim("robustness rises with the step size and falls with the batch size", SEED, "03_sgd_flattens"),
    "C3": Claim("so it does across architectures, data sets and maps", SEED, "04_across_models"),
    "C4": Claim("it comes at negligible cost, against penalties that cost several times more", SEED,
                "05_explicit_regularizers", cells="saliency.*large step$"),
    "C5": Claim("entropy, sensitivity and rank margin of softmax rows constrain each other", f"{SEED}; theory",
                "06_softmax_entropy", for_=("holds",), against=("violated",)),
    "C6": Claim("the gain does not reach attention maps under softmax", SEED, "06_softmax_entropy",
                part="C6 reach", cells="wide", for_=("not reached", "leans not reached"), against=("reached",)),
    "C7": Claim("attention without row normalisation restores it", SEED, "07_kernel_attention"),
    "C8": Claim("SSR and smoothing make maps robust", "Wang et al. 2020", "05_explicit_regularizers", cells="saliency"),
    "C9": Claim("training for interpretable gradients makes predictions robust", "Noack et al. 2021",
                "10_interpretable_gradients"),
}  # fmt: skip


def read(folder: Path, notebook: str) -> pd.DataFrame:
    """Lines of a notebook's claims file below `folder`; a ValueError where there is none.

    Lines of profile full that rest on more seeds, where they are stored, stand in place of their own.
    """
    path = folder / notebook / "claims.csv"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; it must be the claims file of a run notebook")
    own, more = read_claims(path), path.with_name("claims_full.csv")
    if not more.is_file():
        return own
    longer = beyond(read_claims(more), own).merge(own[[*NAMES]], on=[*NAMES])
    kept = own.merge(longer[[*NAMES]], on=[*NAMES], how="left", indicator=True)["_merge"].eq("left_only")
    return pd.concat([own[kept.to_numpy()], longer], ignore_index=True) if len(longer) else own


def headline(folder: Path, name: str) -> pd.DataFrame:
    """The lines that judge the claim of this name (C1 to C9)."""
    claim = CLAIMS[name]
    return _lines(folder, claim.notebook, claim.part or name, claim.cells)


def measured(folder: Path, name: str) -> pd.DataFrame:
    """The lines of a claim that have an effect: its headline or, where that judges by words alone, its family."""
    lines = headline(folder, name)
    if "effect" in lines and lines["effect"].notna().any():
        return lines
    family = _lines(folder, CLAIMS[name].notebook, name, "")
    return family.dropna(subset="effect") if "effect" in family else family[:0]  # theory has none


def _lines(folder: Path, notebook: str, part: str, cells: str) -> pd.DataFrame:
    lines = read(folder, notebook)
    mine = lines[lines["claim"] == part]
    if cells:
        kept = mine["arm"].str.contains(cells)
    else:  # theory has no family
        kept = mine["p_holm"].notna() if "p_holm" in mine and mine["p_holm"].notna().any() else mine["word"].notna()
    return mine[kept].dropna(axis="columns", how="all").reset_index(drop=True)


def tally(name: str, lines: pd.DataFrame) -> dict[str, int]:
    """How many lines speak for the claim, how many against it, and how many leave it open.

    Example:
        >>> tally("C2", pd.DataFrame({"word": ["up", "leans down", "no room", "unclear (control)"]}))
        {'for': 1, 'against': 1, 'open': 2}
    """
    plain = lines["word"].astype(str).str.replace(r" \(.*", "", regex=True)
    pro, contra = (int(plain.isin(words).sum()) for words in (CLAIMS[name].for_, CLAIMS[name].against))
    return {"for": pro, "against": contra, "open": len(lines) - pro - contra}


def later_seeds(lines: pd.DataFrame, *, first: int = 5) -> pd.DataFrame:
    """Effect in the first seeds of each line and in those that came after, with the interval of the later ones.

    Lines of no more seeds than `first`, or without the effects of their seeds, are left out.

    Example:
        >>> lines = pd.DataFrame({"claim": ["C2"], "arm": ["digits"], "by": ["step_size"]})
        >>> later_seeds(lines.assign(per_seed="1 1 2 2"), first=2)[["early", "late"]].to_numpy().tolist()
        [[1.0, 2.0]]
    """
    if first < 2:
        raise ValueError(f"first is {first}; it must be at least 2, as must the seeds after it")
    found = []
    for line in lines.to_dict("records"):
        values = np.array([float(v) for v in str(line.get("per_seed", "")).split()])
        if len(values) >= first + 2 and np.isfinite(values).all():
            low, high = interval(values[first:])
            told = {"early": values[:first].mean(), "late": values[first:].mean(), "low": low, "high": high}
            found.append({n: line[n] for n in NAMES} | told | {"later": len(values) - first})
    return pd.DataFrame(found, columns=[*NAMES, "early", "late", "low", "high", "later"])


def filled(text: str, folder: Path) -> str:
    """A page in Markdown with the table of each claim's headline made anew between its marks, `<!-- cells of C2 -->`.

    A mark that names no claim, or is not closed by `<!-- end of cells -->`, is a ValueError.
    """
    opened, closed = text.count("<!-- cells of "), text.count("<!-- end of cells -->")
    if opened != closed:
        raise ValueError(f"the page opens {opened} tables of cells and closes {closed}; each must be closed")

    def table(mark: re.Match) -> str:
        name = mark[1]
        if name not in CLAIMS:
            raise ValueError(f"the page asks for cells of {name}; claims are {', '.join(CLAIMS)}")
        return f"<!-- cells of {name} -->\n\n{markdown(measured(folder, name))}\n\n<!-- end of cells -->"

    return re.sub(r"<!-- cells of (\w+) -->.*?<!-- end of cells -->", table, text, flags=re.DOTALL)
