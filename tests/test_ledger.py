"""The ledger says of each claim what the claims files say, and nothing else."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from attrobust import claims, paths
from attrobust.claims import ledger

PAGE = paths.root / "docs" / "claims.md"


def test_the_page_of_claims_has_a_part_for_each_claim_of_the_ledger():
    headings = set(re.findall(r"(?m)^## (C\d)", PAGE.read_text()))
    assert headings == set(ledger.CLAIMS)


def test_no_claim_can_be_changed_after_the_fact():
    for claim in ledger.CLAIMS.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            claim.against = ()


def test_tables_on_the_page_of_claims_are_those_of_the_claims_files():
    assert ledger.filled(PAGE.read_text(), paths.figures) == PAGE.read_text()
    assert PAGE.read_text().count("<!-- cells of ") == len(ledger.CLAIMS) - 1


def test_a_changed_number_on_the_page_of_claims_is_noticed():
    told = PAGE.read_text()
    line = next(line for line in told.splitlines() if line.startswith("| digits, matched, logit |"))
    assert ledger.filled(told.replace(line, line.replace("0.", "1.")), paths.figures) == told


def test_a_page_asks_for_known_claims_and_closes_its_tables():
    with pytest.raises(ValueError, match="C12"):
        ledger.filled("<!-- cells of C12 -->\n<!-- end of cells -->", paths.figures)
    with pytest.raises(ValueError, match="opens 1 tables of cells and closes 0"):
        ledger.filled("<!-- cells of C2 -->", paths.figures)


@pytest.mark.parametrize("name", ledger.CLAIMS)
def test_each_line_of_a_headline_is_a_line_of_a_claims_file(name):
    folder = paths.figures / ledger.CLAIMS[name].notebook
    stored = pd.concat([pd.read_csv(path) for path in folder.glob("claims*.csv")])
    lines = ledger.headline(paths.figures, name)
    known = set(zip(stored["claim"], stored["arm"], stored["by"], stored["word"], strict=True))
    assert len(lines)
    assert set(zip(lines["claim"], lines["arm"], lines["by"], lines["word"], strict=True)) <= known


@pytest.mark.parametrize("name", ledger.CLAIMS)
def test_every_line_speaks_for_a_claim_or_against_it_or_leaves_it_open(name):
    lines = ledger.headline(paths.figures, name)
    assert sum(ledger.tally(name, lines).values()) == len(lines)


def test_a_family_is_taken_whole_and_no_cell_is_left_out():
    stored = pd.read_csv(paths.figures / "04_across_models" / "claims.csv")
    family = stored[(stored["claim"] == "C3") & stored["p_holm"].notna()]
    assert set(ledger.headline(paths.figures, "C3")["arm"]) == set(family["arm"])


def test_words_of_both_signs_are_told_apart():
    lines = pd.DataFrame(
        {"word": ["up", "leans up", "down", "leans down (censored)", "no change", "unclear (control)"]}
    )
    assert ledger.tally("C2", lines) == {"for": 2, "against": 2, "open": 2}
    assert ledger.tally("C1", lines) == {"for": 2, "against": 2, "open": 2}
    assert ledger.tally("C1", lines[:2]) == {"for": 0, "against": 2, "open": 0}


def test_lines_of_more_seeds_stand_in_place_of_those_of_fewer(tmp_path: Path):
    own = pd.DataFrame(
        {"claim": ["C9", "C9"], "arm": ["a", "b"], "by": ["method"] * 2, "seeds": [5, 5], "effect": [1, 2]}
    )
    (tmp_path / "10").mkdir()
    own.to_csv(tmp_path / "10" / "claims.csv", index=False)
    assert ledger.read(tmp_path, "10")["effect"].tolist() == [1, 2]
    more = pd.concat([own[:1].assign(seeds=10, effect=7), own[:1].assign(arm="another", effect=9)])
    more.to_csv(tmp_path / "10" / "claims_full.csv", index=False)
    both = ledger.read(tmp_path, "10").set_index("arm")["effect"]
    assert both.to_dict() == {"b": 2, "a": 7}  # what profile full alone has is no part of the notebook's claims


def test_a_folder_without_claims_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="must be the claims file of a run notebook"):
        ledger.headline(tmp_path, "C2")


def test_later_seeds_are_those_after_the_first_with_an_interval_of_their_own():
    values = np.array([1.0, 2, 3, 4, 5, 10, 12, 14])
    line = pd.DataFrame({"claim": ["C2"], "arm": ["x"], "by": ["step_size"], "per_seed": [" ".join(map(str, values))]})
    found = ledger.later_seeds(line).iloc[0]
    low, high = claims.interval(values[5:])
    assert (found.early, found.late, found.low, found.high, found.later) == (3, 12, low, high, 3)
    assert not len(ledger.later_seeds(line, first=7))  # a single later seed has no interval
    with pytest.raises(ValueError, match="first is 1"):
        ledger.later_seeds(line, first=1)


def test_both_halves_together_are_the_effect_of_all_seeds():
    lines = ledger.headline(paths.figures, "C2")
    found = lines.merge(ledger.later_seeds(lines), on=["claim", "arm", "by"], validate="one_to_one")
    whole = (5 * found["early"] + found["later"] * found["late"]) / (5 + found["later"])
    assert np.allclose(whole, found["effect"], atol=2e-6)  # files hold six digits
